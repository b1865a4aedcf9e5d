"""Where models come from and go to is taken from the environment alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ocak.core.errors import ConfigError
from ocak.hub.settings import HubSettings, RetryPolicy, ocak_home


def test_ocak_home_comes_first_then_the_cache_folder_then_home() -> None:
    assert ocak_home({"OCAK_HOME": "/srv/ocak", "XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/srv/ocak")
    assert ocak_home({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/ocak")
    assert ocak_home({"XDG_CACHE_HOME": "not/absolute", "HOME": "/h"}) == Path("/h/.cache/ocak")
    assert ocak_home({"HOME": "/h"}) == Path("/h/.cache/ocak")


def test_the_hub_and_the_token_come_from_the_environment() -> None:
    settings = HubSettings.from_environ(
        {"HF_ENDPOINT": "https://mirror.example/", "HF_TOKEN": " secret\n", "HF_HUB_OFFLINE": "1", "HOME": "/h"}
    )
    assert settings.endpoint == "https://mirror.example"
    assert settings.token == "secret"
    assert settings.is_offline
    plain = HubSettings.from_environ({"HOME": "/h"})
    assert (plain.endpoint, plain.token, plain.is_offline) == ("https://huggingface.co", None, False)


def test_the_token_is_not_shown() -> None:
    assert "secret" not in repr(HubSettings.from_environ({"HF_TOKEN": "secret", "HOME": "/h"}))


@pytest.mark.parametrize("token", ["a b", "a\r\nHost: x", "ä"])
def test_a_token_that_would_break_a_header_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ConfigError, match="HF_TOKEN") as caught:
        HubSettings.from_environ({"HF_TOKEN": token, "HOME": "/h"})
    assert token not in caught.value.message


@pytest.mark.parametrize("endpoint", ["mirror.example", "file:///models", "https://", "https://m/?x=1"])
def test_an_endpoint_that_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="HF_ENDPOINT"):
        HubSettings.from_environ({"HF_ENDPOINT": endpoint, "HOME": "/h"})


def test_waits_double_up_to_a_limit() -> None:
    retry = RetryPolicy(first_wait_s=1, longest_wait_s=5)
    assert [retry.wait_s(n) for n in range(4)] == [1, 2, 4, 5]


def test_a_start_without_a_download_imports_no_http_client() -> None:
    script = "import sys, ocak.hub.download; assert not {'aiohttp', 'huggingface_hub', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
