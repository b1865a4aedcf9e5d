"""A pull ends with verified files, or with a reason and a way out; whatever the network and the hub do."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from tests.hub.stand_in import COMMIT, Fault, HubState, hub_stand_in
from tests.models import write_split_model

from ocak.core.errors import DownloadError
from ocak.hub.download import find_local, pull
from ocak.hub.progress import DownloadProgress, rich_progress
from ocak.hub.settings import HubSettings, RetryPolicy
from ocak.memory.gguf_header import read_model

REPO = "owner/Model-GGUF"
Q8 = bytes(range(256)) * 4000
Q4 = b"four" * 1000
SPLIT = {f"big-Q2_K-{n:05d}-of-00003.gguf": bytes([n]) * 5000 for n in (1, 2, 3)}
LFS = f"/lfs/{REPO}/m-Q8_0.gguf"
LISTING = f"/api/models/{REPO}"
NO_WAIT = RetryPolicy(attempts=3, first_wait_s=0.0)


@pytest.fixture
def hub() -> Iterator[HubState]:
    with hub_stand_in() as state:
        state.repos[REPO] = {"README.md": b"#", "m-Q8_0.gguf": Q8, "m-Q4_0.gguf": Q4, **SPLIT}
        state.outside_lfs = {"README.md", "m-Q4_0.gguf"}
        yield state


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def settings(hub: HubState, tmp_path: Path) -> HubSettings:
    return HubSettings(home=tmp_path / "home", endpoint=hub.endpoint, retry=NO_WAIT)


def folder(settings: HubSettings) -> Path:
    return settings.home / "models" / REPO


def partials(settings: HubSettings) -> list[Path]:
    return [path for name in ("partial", "staged") for path in folder(settings).glob(f".ocak/{name}/*")]


def broken_pull(settings: HubSettings, hub: HubState) -> None:
    """A pull that gives up half-way: the connection breaks and the hub then stays away."""
    hub.faults[LFS].extend(["break", 500, 500, 500])
    with pytest.raises(DownloadError):
        pull(f"hf:{REPO}:Q8_0", settings=settings)


def test_a_file_arrives_under_its_name(hub: HubState, settings: HubSettings) -> None:
    path = pull(f"hf:{REPO}:m-Q8_0.gguf", settings=settings)
    assert path == folder(settings) / "m-Q8_0.gguf"
    assert path.read_bytes() == Q8
    assert partials(settings) == []


def test_a_file_outside_lfs_is_verified_by_gits_digest(hub: HubState, settings: HubSettings) -> None:
    assert pull(f"hf:{REPO}:q4_0", settings=settings).read_bytes() == Q4
    assert hub.contents("cdn") == []


def test_all_parts_of_a_split_arrive_and_the_first_is_returned(hub: HubState, settings: HubSettings) -> None:
    path = pull(f"hf:{REPO}:Q2_K", settings=settings)
    assert path.name == "big-Q2_K-00001-of-00003.gguf"
    assert {p.name: p.read_bytes() for p in path.parent.glob("*.gguf")} == SPLIT


def test_a_real_split_model_can_be_read_after_the_pull(
    hub: HubState, settings: HubSettings, tmp_path: Path
) -> None:
    parts = write_split_model(tmp_path / "tiny-F16.gguf")
    hub.repos["o/tiny"] = {f"F16/{part.name}": part.read_bytes() for part in parts}
    model = read_model(pull("hf:o/tiny", settings=settings))
    assert len(model.parts) == 3


def test_progress_counts_all_files_and_ends_with_done(hub: HubState, settings: HubSettings) -> None:
    seen: list[DownloadProgress] = []
    pull(f"hf:{REPO}:Q2_K", settings=settings, progress=seen.append)
    assert seen[-1] == DownloadProgress("done", "", 15_000, 15_000)
    assert {p.total_bytes for p in seen} == {15_000}
    done = [p.done_bytes for p in seen]
    assert done == sorted(done)
    assert {p.file for p in seen if p.stage == "downloading"} == set(SPLIT)


def test_the_progress_bar_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with rich_progress() as show:
        show(DownloadProgress("waiting"))
        show(DownloadProgress("downloading", "m.gguf", 5, 10))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "m.gguf" in captured.err


# Breaks and resuming


def test_a_broken_connection_is_resumed_where_it_broke(hub: HubState, settings: HubSettings) -> None:
    hub.faults[LFS].extend(["break", "break"])
    assert pull(f"hf:{REPO}:Q8_0", settings=settings).read_bytes() == Q8
    half, three_quarters = len(Q8) // 2, len(Q8) // 4 * 3
    assert [a.range for a in hub.contents()] == [None, f"bytes={half}-", f"bytes={three_quarters}-"]


def test_a_later_pull_resumes_what_an_earlier_one_left(hub: HubState, settings: HubSettings) -> None:
    broken_pull(settings, hub)
    assert [path.stat().st_size for path in partials(settings)] == [len(Q8) // 2]
    assert not (folder(settings) / "m-Q8_0.gguf").exists()
    hub.asked.clear()
    assert pull(f"hf:{REPO}:Q8_0", settings=settings).read_bytes() == Q8
    assert [a.range for a in hub.contents()] == [f"bytes={len(Q8) // 2}-"]


@pytest.mark.parametrize("fault", ["ignore range", "wrong range"])
def test_a_server_that_does_not_continue_is_read_from_the_beginning(
    hub: HubState, settings: HubSettings, fault: Fault
) -> None:
    hub.faults[LFS].extend(["break", fault])
    assert pull(f"hf:{REPO}:Q8_0", settings=settings).read_bytes() == Q8


def test_partial_bytes_that_are_wrong_are_thrown_away(hub: HubState, settings: HubSettings) -> None:
    broken_pull(settings, hub)
    (partial,) = partials(settings)
    partial.write_bytes(b"x" * 1000)
    assert pull(f"hf:{REPO}:Q8_0", settings=settings).read_bytes() == Q8


def test_a_partial_file_that_is_too_long_is_thrown_away(hub: HubState, settings: HubSettings) -> None:
    broken_pull(settings, hub)
    (partial,) = partials(settings)
    partial.write_bytes(b"x" * (len(Q8) + 1))
    assert pull(f"hf:{REPO}:Q8_0", settings=settings).read_bytes() == Q8


def test_a_partial_file_that_is_whole_is_only_verified(hub: HubState, settings: HubSettings) -> None:
    broken_pull(settings, hub)
    (partial,) = partials(settings)
    partial.write_bytes(Q8)
    hub.asked.clear()
    assert pull(f"hf:{REPO}:Q8_0", settings=settings).read_bytes() == Q8
    assert hub.contents() == []


def test_a_hub_that_stumbles_is_asked_again(hub: HubState, settings: HubSettings) -> None:
    hub.faults[LISTING].extend([500, 429])
    hub.faults[LFS].extend([503, "empty"])
    assert pull(f"hf:{REPO}:Q8_0", settings=settings).read_bytes() == Q8


def test_a_hub_that_stays_broken_is_given_up(hub: HubState, settings: HubSettings) -> None:
    hub.faults[LFS].extend(["empty"] * 4)
    with pytest.raises(DownloadError, match=r"ended before its end.*No complete copy"):
        pull(f"hf:{REPO}:Q8_0", settings=settings)
    hub.faults[LISTING].extend([500] * 3)
    with pytest.raises(DownloadError, match="answered 500"):
        pull(f"hf:{REPO}:Q8_0", settings=settings)


FAULTS: list[Fault] = ["break", "corrupt", "ignore range", "wrong range", "empty", 403, 416, 429, 500]


@given(st.lists(st.sampled_from(FAULTS), max_size=6), st.binary(max_size=3))
@settings_of(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_goes_wrong_only_right_bytes_get_the_name(
    hub: HubState, settings: HubSettings, faults: list[Fault], junk: bytes
) -> None:
    shutil.rmtree(settings.home, ignore_errors=True)
    hub.faults[LFS] = deque(faults)
    target = folder(settings) / "m-Q8_0.gguf"
    for _ in range(len(faults)):
        try:
            pull(f"hf:{REPO}:Q8_0", settings=settings)
            break
        except DownloadError:
            assert not target.exists()
        for partial in partials(settings):
            partial.write_bytes(partial.read_bytes()[: len(junk) * 1000] + junk)
    hub.faults[LFS].clear()
    assert pull(f"hf:{REPO}:Q8_0", settings=settings).read_bytes() == Q8


# Digests


def test_corrupted_bytes_are_fetched_once_more(hub: HubState, settings: HubSettings) -> None:
    hub.faults[LFS].append("corrupt")
    assert pull(f"hf:{REPO}:Q8_0", settings=settings).read_bytes() == Q8
    assert len(hub.contents()) == 2


def test_bytes_that_stay_wrong_are_refused_and_leave_nothing(hub: HubState, settings: HubSettings) -> None:
    hub.faults[LFS].extend(["corrupt", "corrupt"])
    bad = hashlib.sha256(Q8[:-1] + bytes([Q8[-1] ^ 1])).hexdigest()
    expected = hashlib.sha256(Q8).hexdigest()
    with pytest.raises(DownloadError, match=f"expected sha256:{expected}, got sha256:{bad}"):
        pull(f"hf:{REPO}:Q8_0", settings=settings)
    assert list(folder(settings).glob("*.gguf")) == []
    assert partials(settings) == []


def test_a_file_without_a_digest_is_not_fetched(hub: HubState, settings: HubSettings) -> None:
    hub.listed_digests["m-Q8_0.gguf"] = "unknown"
    with pytest.raises(DownloadError, match="lists no digest"):
        pull(f"hf:{REPO}:Q8_0", settings=settings)
    assert hub.contents("cdn") == []


def test_no_part_gets_its_name_before_all_are_verified(hub: HubState, settings: HubSettings) -> None:
    last = f"/lfs/{REPO}/big-Q2_K-00003-of-00003.gguf"
    hub.faults[last].extend(["corrupt", "corrupt"])
    with pytest.raises(DownloadError, match="wrong digest"):
        pull(f"hf:{REPO}:Q2_K", settings=settings)
    assert list(folder(settings).glob("*.gguf")) == []
    hub.asked.clear()
    pull(f"hf:{REPO}:Q2_K", settings=settings)
    assert [a.path for a in hub.contents()] == [last]


def test_a_file_put_there_by_hand_is_hashed_and_taken(hub: HubState, settings: HubSettings) -> None:
    folder(settings).mkdir(parents=True)
    (folder(settings) / "m-Q8_0.gguf").write_bytes(Q8)
    pull(f"hf:{REPO}:Q8_0", settings=settings)
    assert hub.contents() == []


def test_a_wrong_file_put_there_by_hand_is_replaced(hub: HubState, settings: HubSettings) -> None:
    folder(settings).mkdir(parents=True)
    (folder(settings) / "m-Q8_0.gguf").write_bytes(b"x" * len(Q8))
    assert pull(f"hf:{REPO}:Q8_0", settings=settings).read_bytes() == Q8


# Tokens and refusals


def test_the_token_is_sent_to_the_hub_and_to_nobody_else(hub: HubState, settings: HubSettings) -> None:
    hub.token = "secret"
    pull(f"hf:{REPO}:Q8_0", settings=replace(settings, token="secret"))
    assert {a.authorization for a in hub.asked if a.host == "hub"} == {"Bearer secret"}
    assert {a.authorization for a in hub.asked if a.host == "cdn"} == {None}


def test_a_gated_repository_says_to_set_a_token(hub: HubState, settings: HubSettings) -> None:
    hub.gated.add(REPO)
    with pytest.raises(DownloadError, match=r"accept the model's terms there, then set HF_TOKEN"):
        pull(f"hf:{REPO}:Q8_0", settings=settings)
    pull(f"hf:{REPO}:Q8_0", settings=replace(settings, token="anything"))


def test_a_token_without_access_says_to_use_another(hub: HubState, settings: HubSettings) -> None:
    hub.faults[LISTING].append(403)
    with pytest.raises(DownloadError, match=r"answered 403.*use another HF_TOKEN"):
        pull(f"hf:{REPO}:Q8_0", settings=replace(settings, token="weak"))


@pytest.mark.parametrize(("status", "advice"), [(401, "private"), (403, "gated"), (404, "not there")])
def test_a_file_that_may_not_be_seen_says_what_to_do(
    hub: HubState, settings: HubSettings, status: int, advice: str
) -> None:
    hub.faults[f"/{REPO}/resolve/{COMMIT}/m-Q8_0.gguf"].append(status)
    with pytest.raises(DownloadError, match=f"answered {status}.*{advice}.*set HF_TOKEN"):
        pull(f"hf:{REPO}:Q8_0", settings=settings)


def test_an_address_that_expired_is_asked_for_anew(hub: HubState, settings: HubSettings) -> None:
    hub.faults[LFS].extend(["break", 403])
    assert pull(f"hf:{REPO}:Q8_0", settings=settings).read_bytes() == Q8


def test_a_refused_token_is_named(hub: HubState, settings: HubSettings) -> None:
    hub.token = "secret"
    with pytest.raises(DownloadError, match="HF_TOKEN was refused"):
        pull(f"hf:{REPO}:Q8_0", settings=replace(settings, token="wrong"))


@pytest.mark.parametrize("token", [None, "t"])
def test_a_repository_that_is_not_there_is_answered_with_its_neighbours(
    hub: HubState, settings: HubSettings, token: str | None
) -> None:
    with pytest.raises(
        DownloadError, match=r"no repository owner/Modle-GGUF \(there is owner/Model-GGUF\)"
    ) as caught:
        pull("hf:owner/Modle-GGUF", settings=replace(settings, token=token))
    assert caught.value.param == "source"
    assert "HF_TOKEN" in caught.value.message


def test_a_file_that_is_not_there_is_answered_with_its_neighbours(hub: HubState, settings: HubSettings) -> None:
    with pytest.raises(DownloadError, match=r"'m-Q8.gguf'; there is: m-Q8_0.gguf"):
        pull(f"hf:{REPO}:m-Q8.gguf", settings=settings)


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://[broken", "//"])
def test_a_redirect_to_no_web_address_is_refused(hub: HubState, settings: HubSettings, location: str) -> None:
    hub.redirect_to = location
    with pytest.raises(DownloadError, match="redirects"):
        pull(f"hf:{REPO}:Q8_0", settings=settings)


def test_endless_redirects_are_refused(hub: HubState, settings: HubSettings) -> None:
    hub.redirect_to = f"/{REPO}/resolve/x/m-Q8_0.gguf"
    with pytest.raises(DownloadError, match="redirects more than 5 times"):
        pull(f"hf:{REPO}:Q8_0", settings=settings)


# Paths and disks


def test_a_listed_path_cannot_leave_the_folder(hub: HubState, settings: HubSettings) -> None:
    hub.repos["o/evil"] = {"../../../evil-Q8_0.gguf": b"x"}
    with pytest.raises(DownloadError, match="unsafe"):
        pull("hf:o/evil", settings=settings)


def test_a_link_in_the_folder_cannot_lead_out_of_it(hub: HubState, settings: HubSettings, tmp_path: Path) -> None:
    hub.repos[REPO] = {"sub/m-Q8_0.gguf": Q8}
    outside = tmp_path / "outside"
    outside.mkdir()
    folder(settings).mkdir(parents=True)
    (folder(settings) / "sub").symlink_to(outside)
    with pytest.raises(DownloadError, match="outside of"):
        pull(f"hf:{REPO}", settings=settings)
    assert list(outside.iterdir()) == []


def test_a_disk_without_room_is_told_before_the_download(
    hub: HubState, settings: HubSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(settings.home.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(DownloadError, match=f"room for 100 bytes, the model needs {len(Q8)} more"):
        pull(f"hf:{REPO}:Q8_0", settings=settings)
    assert hub.contents() == []


def test_a_disk_that_fills_up_keeps_what_came(
    hub: HubState, settings: HubSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DownloadError, match="disk is full"):
        pull(f"hf:{REPO}:Q8_0", settings=settings)
    monkeypatch.undo()
    hub.asked.clear()
    assert pull(f"hf:{REPO}:Q8_0", settings=settings).read_bytes() == Q8
    assert hub.contents() == []


@pytest.mark.parametrize(("number", "advice"), [(13, "no right to"), (30, "no right to"), (5, "Check")])
def test_a_disk_that_refuses_is_explained(
    hub: HubState, settings: HubSettings, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DownloadError, match=advice):
        pull(f"hf:{REPO}:Q8_0", settings=settings)


# Again, offline, together


def test_a_second_pull_asks_nobody(hub: HubState, settings: HubSettings) -> None:
    first = pull(f"hf:{REPO}:Q8_0", settings=settings)
    hub.asked.clear()
    assert pull(f"hf:{REPO}:q8_0", settings=settings) == first
    assert find_local(f"hf:{REPO}:Q8_0", settings) == first
    assert hub.asked == []


def test_names_that_differ_only_in_case_are_different_files(hub: HubState, settings: HubSettings) -> None:
    hub.repos["o/r"] = {"m.gguf": b"small", "M.gguf": b"LARGE"}
    assert pull("hf:o/r:m.gguf", settings=settings).read_bytes() == b"small"
    assert pull("hf:o/r:M.gguf", settings=settings).read_bytes() == b"LARGE"


def test_what_was_not_pulled_is_not_found(settings: HubSettings) -> None:
    assert find_local(f"hf:{REPO}:Q8_0", settings) is None


def test_a_file_that_was_cut_or_deleted_is_fetched_again(hub: HubState, settings: HubSettings) -> None:
    path = pull(f"hf:{REPO}:Q8_0", settings=settings)
    path.write_bytes(Q8[:100])
    assert find_local(f"hf:{REPO}:Q8_0", settings) is None
    assert pull(f"hf:{REPO}:Q8_0", settings=settings).read_bytes() == Q8
    path.unlink()
    assert pull(f"hf:{REPO}:Q8_0", settings=settings).read_bytes() == Q8


@pytest.mark.parametrize("state", ["not json", "[]", '{"files": 3}'])
def test_a_damaged_record_costs_a_hashing_not_a_download(hub: HubState, settings: HubSettings, state: str) -> None:
    pull(f"hf:{REPO}:Q8_0", settings=settings)
    (folder(settings) / ".ocak" / "state.json").write_text(state)
    hub.asked.clear()
    assert pull(f"hf:{REPO}:Q8_0", settings=settings).read_bytes() == Q8
    assert hub.contents() == []


def test_a_refresh_fetches_the_newer_version(hub: HubState, settings: HubSettings) -> None:
    path = pull(f"hf:{REPO}:Q8_0", settings=settings)
    pull(f"hf:{REPO}:Q8_0", settings=settings, refresh=True)
    assert len(hub.contents()) == 1
    hub.repos[REPO]["m-Q8_0.gguf"] = newer = Q8[::-1]
    assert pull(f"hf:{REPO}:Q8_0", settings=settings) == path
    assert path.read_bytes() == Q8
    assert pull(f"hf:{REPO}:Q8_0", settings=settings, refresh=True).read_bytes() == newer


def test_a_refresh_that_breaks_leaves_the_old_version_in_use(
    hub: HubState, settings: HubSettings, caplog: pytest.LogCaptureFixture
) -> None:
    path = pull(f"hf:{REPO}:Q2_K", settings=settings)
    for name in SPLIT:
        hub.repos[REPO][name] = b"new" * 2000
    hub.faults[f"/lfs/{REPO}/big-Q2_K-00003-of-00003.gguf"].extend([500] * 3)
    assert pull(f"hf:{REPO}:Q2_K", settings=settings, refresh=True) == path
    assert {p.name: p.read_bytes() for p in path.parent.glob("*.gguf")} == SPLIT
    assert "Using the copy" in caplog.text


def test_without_a_network_the_copy_is_used_and_it_is_said(
    hub: HubState, settings: HubSettings, caplog: pytest.LogCaptureFixture
) -> None:
    path = pull(f"hf:{REPO}:m-Q8_0.gguf", settings=settings)
    away = replace(settings, endpoint="http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        assert pull(f"hf:{REPO}:Q8_0", settings=away) == path
    assert "cannot be reached" in caplog.text
    with pytest.raises(DownloadError, match=r"cannot be reached.*check the network.*No complete copy"):
        pull(f"hf:{REPO}:Q2_K", settings=away)


def test_offline_the_hub_is_never_asked(hub: HubState, settings: HubSettings) -> None:
    path = pull(f"hf:{REPO}:Q8_0", settings=settings)
    hub.asked.clear()
    offline = replace(settings, is_offline=True)
    assert pull(f"hf:{REPO}:Q8_0", settings=offline, refresh=True) == path
    with pytest.raises(DownloadError, match=r"HF_HUB_OFFLINE is set.*No complete copy"):
        pull(f"hf:{REPO}:Q2_K", settings=offline)
    assert hub.asked == []


def test_two_processes_pulling_at_once_download_once(hub: HubState, settings: HubSettings) -> None:
    hub.pause.clear()
    script = (
        "import os; from ocak.hub.download import pull; from ocak.hub.settings import HubSettings;"
        f"print(pull('hf:{REPO}:Q8_0', settings=HubSettings.from_environ(os.environ)))"
    )
    environ = {**os.environ, "OCAK_HOME": str(settings.home), "HF_ENDPOINT": hub.endpoint}
    other = subprocess.Popen([sys.executable, "-c", script], env=environ, stdout=subprocess.PIPE, text=True)
    try:
        assert hub.started.wait(20)
        path = pull(f"hf:{REPO}:Q8_0", settings=settings, progress=let_go_when_waiting(hub.pause))
        assert other.communicate(timeout=20)[0].strip() == str(path)
    finally:
        hub.pause.set()
        other.kill()
        other.wait()
    assert len(hub.contents()) == 1


def let_go_when_waiting(pause: threading.Event) -> Callable[[DownloadProgress], None]:
    def watch(progress: DownloadProgress) -> None:
        if progress.stage == "waiting":
            pause.set()

    return watch


def test_waiting_for_another_process_has_an_end(hub: HubState, settings: HubSettings) -> None:
    hub.pause.clear()
    thread = threading.Thread(target=pull, args=(f"hf:{REPO}:Q8_0",), kwargs={"settings": settings})
    thread.start()
    try:
        assert hub.started.wait(20)
        impatient = replace(settings, retry=replace(NO_WAIT, lock_wait_s=0))
        with pytest.raises(DownloadError, match="Another process"):
            pull(f"hf:{REPO}:Q8_0", settings=impatient)
    finally:
        hub.pause.set()
        thread.join()


@pytest.mark.parametrize("answer", [b"", b"not json", b"[]", b'{"sha": 3}', b'{"sha": "main", "siblings": []}'])
def test_an_answer_that_is_no_listing_is_refused(answer: bytes) -> None:
    from ocak.hub.listing import parse_listing

    with pytest.raises(DownloadError, match="listing of o/r"):
        parse_listing(answer, "o/r")


def test_the_stand_in_speaks_as_the_hubs_own_client_expects(hub: HubState, tmp_path: Path) -> None:
    """The official client, where it is installed, must understand the stand-in, or these tests prove little."""
    pytest.importorskip("huggingface_hub")
    script = f"""
import json
from huggingface_hub import HfApi, hf_hub_download
info = HfApi(endpoint={hub.endpoint!r}).model_info({REPO!r}, files_metadata=True)
path = hf_hub_download({REPO!r}, "m-Q8_0.gguf", endpoint={hub.endpoint!r}, local_dir={str(tmp_path)!r})
print(json.dumps([path, info.sha, {{s.rfilename: s.lfs.sha256 if s.lfs else s.blob_id for s in info.siblings}}]))
"""
    environ = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    path, _, digests = json.loads(done.stdout)
    assert Path(path).read_bytes() == Q8
    assert digests["m-Q8_0.gguf"] == hashlib.sha256(Q8).hexdigest()
