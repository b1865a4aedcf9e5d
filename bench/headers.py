"""A million damaged GGUF headers: each is read and planned with, or refused with one clear line.

Anything but a result or a refusal is a crash; so is more than a second of CPU, or memory beyond a limit on the
address space of the process. Every mutant has a seed, and `python -m bench.headers SEED…` makes single ones again
and says what becomes of them.
"""

import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from bench.header_mutants import Mutant, Source, mutant
from bench.header_sources import Files, write_files
from bench.header_uses import Uses
from bench.report import Report, Row, say

MUTANTS, MUTANTS_SHORT, SLICE = 1_000_000, 20_000, 5_000
CPU_LIMIT_S = 1.0
MEMORY_BYTES = 128 << 20  # of address space, beyond what a process has when it begins
RARE = 97  # one in so many is made of the header that takes long to read
SHM = Path("/dev/shm")  # where it is there, no disk is worn
SHOWN = 5


@dataclass(slots=True)
class Tally:
    """What became of some mutants."""

    num_mutants: int = 0
    num_with: Counter[str] = field(default_factory=Counter)  # by use, how many had a result
    crashes: list[str] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)  # seconds of CPU, and the seed
    grown_bytes: int = 0  # most that the process was larger than when it began

    def add(self, other: "Tally") -> None:
        self.num_mutants += other.num_mutants
        self.num_with += other.num_with
        self.crashes += other.crashes
        self.slowest = max(self.slowest, other.slowest)
        self.grown_bytes = max(self.grown_bytes, other.grown_bytes)


class Examiner:
    """Puts mutants in the place of sound files and uses them."""

    def __init__(self, files: Files) -> None:
        self._usual = [_source(path) for path in files.usual]
        self._large = _source(files.large)
        self._uses = Uses(files.base, files.adapter)

    def examine(self, seed: int, tally: Tally) -> str:
        """Return what becomes of the mutant with this seed."""
        path, source = self._large if seed % RARE == 0 else self._usual[seed % len(self._usual)]
        made = mutant(source, seed)
        _write(path, made)
        started = time.process_time()
        try:
            results = self._uses.use(path)
        except Exception:  # noqa: BLE001 - that is what is looked for
            said = traceback.format_exc()
            tally.crashes.append(f"seed {seed}, {source.name}, {made.changes}: {said}")
        else:
            said = ", ".join(results) or "refused"
            tally.num_with.update(results)
        tally.num_mutants += 1
        tally.slowest = max(tally.slowest, (time.process_time() - started, seed))
        return f"{source.name}, {', '.join(made.changes)}: {said}"


def measure(short: bool = False) -> Report:
    """Examine a million mutants (short: 20,000) on every core."""
    total, whole = MUTANTS_SHORT if short else MUTANTS, Tally()
    started = time.monotonic()
    with _folder() as name, ProcessPoolExecutor() as pool:
        for done in pool.map(partial(examine_slice, Path(name)), range(0, total, SLICE)):
            whole.add(done)
            if whole.num_mutants % (total // 10) == 0:
                say(f"{whole.num_mutants} examined, {len(whole.crashes)} crashes")
    for crash in whole.crashes[:SHOWN]:
        say(crash)
    return _report(whole, time.monotonic() - started)


def examine_slice(folder: Path, first: int) -> Tally:
    """Examine `SLICE` mutants in this process, with a limit to its memory."""
    tally = Tally()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        examiner = Examiner(write_files(Path(name)))
        before = psutil.Process().memory_info()
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (before.vms + MEMORY_BYTES, limits[1]))
        for seed in range(first, first + SLICE):
            examiner.examine(seed, tally)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        tally.grown_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before.rss
    return tally


def _report(tally: Tally, seconds: float) -> Report:
    slowest_s, seed = tally.slowest
    shares = {use: f"{count / tally.num_mutants:.1%}" for use, count in tally.num_with.most_common()}
    return Report(
        name="headers",
        title=f"{tally.num_mutants:,} damaged GGUF headers",
        rows=[
            Row("neither a result nor one clear line", "0", f"{len(tally.crashes)}", not tally.crashes),
            Row(
                "slowest, CPU of all uses together",
                f"< {CPU_LIMIT_S:.0f} s",
                f"{slowest_s:.2f} s (seed {seed})",
                slowest_s < CPU_LIMIT_S,
            ),
            Row(
                "address space above that of a process that begins",
                f"≤ {MEMORY_BYTES >> 20} MiB",
                "held by RLIMIT_AS",
                True,
            ),
            Row("resident memory above the same", "reported", f"{tally.grown_bytes / 2**20:.0f} MiB"),
            Row("speed", "reported", f"{tally.num_mutants / seconds:,.0f} a second"),
        ],
        notes=[
            "uses with a result, of all mutants: " + ", ".join(f"{use} {share}" for use, share in shares.items())
        ],
        samples={"crashes": tally.crashes, "slowest": tally.slowest, "with": dict(tally.num_with)},
    )


def _source(path: Path) -> tuple[Path, Source]:
    return path, Source.of(path.parent.name, path.read_bytes())


def _write(path: Path, made: Mutant) -> None:
    """Write the beginning; what follows is a hole."""
    with path.open("wb", buffering=0) as file:
        file.write(made.data)
        file.truncate(made.num_bytes)


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else None)


def main() -> None:
    with _folder() as name:
        examiner = Examiner(write_files(Path(name)))
        for seed in map(int, sys.argv[1:]):
            say(f"{seed}: {examiner.examine(seed, Tally())}")


if __name__ == "__main__":
    main()
