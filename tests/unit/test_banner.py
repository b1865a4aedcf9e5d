"""What the banner says, from snapshots."""

from __future__ import annotations

import msgspec
import pytest

from ocak.cli.banner import banner
from ocak.cli.progress import bytes_text
from ocak.core.status import MemoryStatus, ModelInfo, ModelStatus

URL = "http://127.0.0.1:8080"
INFO = ModelInfo(
    architecture="llama",
    name="Some model",
    num_parameters=596_000_000,
    weights_bytes=400_000_000,
    kv_bytes=100_000_000,
    cache_ram_bytes=50_000_000,
    vocabulary=1000,
    context=4096,
    trained_context=4096,
    parallel=4,
    kv_cells=16384,
    has_chat_template=True,
    has_infill=False,
    gpu=None,
    idle_gpu=None,
    load_s=1.25,
)
READY = ModelStatus(
    key="some", provider="llama", kind="text", state="ready", info=INFO, memory=MemoryStatus(resident=520_000_000)
)


def with_info(**changes: object) -> ModelStatus:
    return msgspec.structs.replace(READY, info=msgspec.structs.replace(INFO, **changes))


def test_a_ready_model_shows_its_size_and_memory() -> None:
    text = banner(URL, [READY], needs_key=False)
    assert "Some model (llama, 596.0 M parameters) on CPU" in text
    assert (
        "400.0 MB weights + 100.0 MB KV = 500.0 MB, 520.0 MB resident; up to 50.0 MB more for saved prompts"
        in text
    )
    assert "Authorization" not in text and "GPU=" not in text


@pytest.mark.parametrize(
    ("gpu", "backend"),
    [("NVIDIA H200", "cuda"), ("Tesla T4", "cuda"), ("AMD GPU", "vulkan"), ("Apple GPU", "metal")],
)
def test_a_gpu_that_the_build_cannot_use_is_named_with_the_way_out(gpu: str, backend: str) -> None:
    text = banner(URL, [with_info(idle_gpu=gpu), READY], needs_key=False)
    assert f"{gpu} is there, but this build of llama.cpp cannot use it" in text
    assert text.count(f"make serve GPU={backend}") == 1


def test_a_model_without_a_chat_template_is_asked_to_complete() -> None:
    assert f"curl {URL}/v1/completions" in banner(URL, [with_info(has_chat_template=False)], needs_key=False)


def test_a_model_that_failed_is_shown_with_its_reason_beside_one_that_serves() -> None:
    failed = ModelStatus(key="other", provider="llama", kind="text", state="failed", error="no such architecture")
    text = banner(URL, [failed, READY], needs_key=True)
    assert "failed: no such architecture" in text
    assert '"model": "some"' in text and "$OCAK_API_KEY" in text


def test_without_models_the_banner_says_so() -> None:
    assert "no model is served" in banner(URL, [], needs_key=False)


def test_bytes_are_shown_in_steps_of_a_thousand() -> None:
    shown = [bytes_text(count) for count in (0, 999, 1000, 1_500_000, 2e9, 3e12)]
    assert shown == ["0 B", "999 B", "1.0 kB", "1.5 MB", "2.0 GB", "3.0 TB"]
