"""What `ocak.load` does to a process of its own: what it imports, Ctrl-C, and the end without a close."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.processes import DEADLINE_S, environ

ROOT = Path(__file__).parents[2]


def python(
    code: str, *arguments: str | Path, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=environ(extra),
        check=False,
    )


def test_importing_ocak_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import ocak; print(*(set(sys.modules) - before))"
    assert python(code).stdout.split() == ["ocak"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    import ocak

    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        ocak.lod  # noqa: B018


@pytest.mark.parametrize("ending", ["", "raise SystemExit(0)", "stream = model.stream('a'); next(stream)"])
def test_a_script_that_forgets_to_close_ends_all_the_same(tiny_model: Path, ending: str) -> None:
    answer = "print(model.generate('a', max_tokens=2).finish_reason)"
    code = f"import sys, ocak; model = ocak.load(sys.argv[1], threads=1); {answer}; {ending}"
    done = python(code, tiny_model)
    assert (done.returncode, done.stdout, done.stderr) == (0, "length\n", "")


def test_a_model_says_nothing_on_its_own(tiny_model: Path) -> None:
    code = "import sys, ocak\nwith ocak.load(sys.argv[1], context=64) as model: model.generate('a', max_tokens=2)"
    done = python(code, tiny_model)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    "work",
    [
        "for text in model.stream('a', ignore_eos=True): print(text, flush=True)",
        "print('begun', flush=True); model.generate(['a'] * 50_000, ignore_eos=True)",
    ],
)
def test_ctrl_c_ends_an_answer_and_the_model_goes_on(tiny_model: Path, work: str) -> None:
    code = f"""
import sys, ocak
with ocak.load(sys.argv[1], parallel=1, threads=1) as model:
    try:
        while True:
            {work}
    except KeyboardInterrupt:
        print("interrupted")
    print(model.generate("a", max_tokens=2).finish_reason)
"""
    command = [sys.executable, "-c", code, str(tiny_model)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ()
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=DEADLINE_S)
    assert out.endswith("interrupted\nlength\n") and err == "" and child.returncode == 0


def test_ctrl_c_gives_a_load_up(tiny_model: Path) -> None:
    code = """
import sys, time, ocak
import ocak.worker.service as service
from ocak.core.errors import LoadFailed

def load(options, on_progress, watch, is_awaited):
    print("loading", flush=True)
    while on_progress(0.0):
        time.sleep(0.001)
    raise LoadFailed("given up")

service.load = load
try:
    ocak.load(sys.argv[1])
except KeyboardInterrupt:
    print("interrupted")
"""
    command = [sys.executable, "-c", code, str(tiny_model)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ()
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=DEADLINE_S)
    assert (out, err, child.returncode) == ("interrupted\n", "", 0)


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is held to cores elsewhere")
def test_no_thread_of_the_process_is_held_to_a_core(tiny_model: Path) -> None:
    code = """
import os, sys, ocak
mine = os.sched_getaffinity(0)
with ocak.load(sys.argv[1], threads=len(mine)) as model:
    model.generate(["the", "and"], max_tokens=20)
    print(all(os.sched_getaffinity(int(thread)) == mine for thread in os.listdir("/proc/self/task")))
"""
    assert python(code, tiny_model, extra={"OPENBLAS_NUM_THREADS": "1"}).stdout == "True\n"


def test_a_forked_process_is_told_that_the_model_is_not_there(tiny_model: Path) -> None:
    code = """
import os, sys, ocak
model = ocak.load(sys.argv[1], threads=1)
if os.fork() == 0:
    try:
        model.generate("a")
    except Exception as error:
        print(error, flush=True)
    model.close()
    sys.exit(0)
os.wait()
print(model.generate("a", max_tokens=2).finish_reason)
"""
    done = python(code, tiny_model)
    told, after = done.stdout.splitlines()
    assert "forked" in told and after == "length" and done.returncode == 0


def test_the_examples_of_the_documentation_run() -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "offline.md").read_text(), re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        done = python(example)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) > 10
