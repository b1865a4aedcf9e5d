"""What a benchmark hands back, printed while it runs and kept in docs/benchmarks.md.

Each benchmark owns one section of that file, between two comments; a new run
replaces its own section and leaves the others as they are.
"""

import json
import platform
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from rich.console import Console

from bench import paths

INTRODUCTION = """# Benchmarks

Written by `make bench` (`python -m bench`). Both sides of every comparison run in one
invocation on one machine, in ABBA order; figures are medians, and only the ratios should be
compared between machines. The first run fetches the sources of the installed llama-cpp-python,
builds llama.cpp's own tools from them and makes a model with the shape of Qwen2.5-0.5B (random
weights, Q4_0), in the folder `OCAK_PEERS` (default `.peers`); raw samples and logs are kept there too.
"""

_console = Console(highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: what is asked for, and what was measured."""

    what: str
    figure: str
    measured: str
    met: bool | None = None

    @property
    def verdict(self) -> str:
        """Whether the figure was reached; a dash where none is asked for."""
        return "–" if self.met is None else "yes" if self.met else "**no**"


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of one benchmark; ``samples`` is anything JSON can hold."""

    name: str
    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    samples: object = None

    @property
    def met(self) -> bool:
        """Whether no asked-for figure was missed."""
        return all(row.met is not False for row in self.rows)


def say(text: str) -> None:
    """Tell the person who watches what is going on."""
    _console.print(f"{datetime.now(UTC):%H:%M:%S}  {text}")


def show(report: Report) -> None:
    """Print a report as it will stand in the results."""
    _console.print("\n" + _markdown(report, command=None))


def save(report: Report, command: str) -> None:
    """Keep the raw samples and replace the report's section in docs/benchmarks.md."""
    paths.samples().mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    raw = {"command": command, "machine": machine(), "versions": versions(), "samples": report.samples}
    (paths.samples() / f"{report.name}-{stamp}.json").write_text(json.dumps(raw, indent=1))
    _replace_section(paths.RESULTS, report.name, _markdown(report, command))


def machine() -> str:
    """The machine in a few words."""
    memory_gib = psutil.virtual_memory().total / 2**30
    return f"{_processor()}, {psutil.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.system()}"


def versions() -> str:
    """The versions of what was measured."""
    found = []
    for package in ("ocak", "llama-cpp-python"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} from its sources")
    return ", ".join([*found, f"Python {platform.python_version()}"])


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return match.group(1) if match else platform.processor()


def _markdown(report: Report, command: str | None) -> str:
    lines = [f"## {report.title}", ""]
    if command:
        lines += [f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {machine()} · {versions()} · `{command}`", ""]
    lines += ["| what | asked for | measured | met |", "|---|---|---|---|"]
    lines += [f"| {row.what} | {row.figure} | {row.measured} | {row.verdict} |" for row in report.rows]
    if report.notes:
        lines += ["", *(f"- {note}" for note in report.notes)]
    return "\n".join(lines) + "\n"


def _replace_section(path: Path, name: str, text: str) -> None:
    content = path.read_text() if path.exists() else INTRODUCTION
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    section = f"{start}\n{text}{end}\n"
    if start in content:
        head, rest = content.split(start, 1)
        content = head + section + rest.split(end + "\n", 1)[1]
    else:
        content = content.rstrip("\n") + "\n\n" + section
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
