"""Run benchmarks, print their tables, keep them in docs/benchmarks.md.

    python -m bench                       all of them
    python -m bench throughput single [--short] [--no-save]

Exits with 1 when an asked-for figure was missed.
"""

import argparse
import signal
import sys
from importlib import import_module

from bench import prepare, report
from bench.neighbours import Neighbours
from bench.report import Report

ON_THE_SHAPE_MODEL = (
    "throughput",
    "single",
    "disturbed",
    "prefixes",
    "samples",
    "overcommit",
    "stalls",
    "one_by_one",
    "lookup",
    "draft",
    "disconnects",
    "shift",
    "structured",
    "scheduler",
    "swap",
    "growth",
)
NAMES = ("startup", "overhead", "state_leak", "estimate", "headers", *ON_THE_SHAPE_MODEL)


def main() -> int:
    """Run what the command line names."""
    args = _parse()
    names = args.names
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped
    if set(ON_THE_SHAPE_MODEL).intersection(names):
        prepare.prepare()
    reports = [_run(name, args) for name in names]
    missed = [row for done in reports for row in done.rows if row.met is False]
    for row in missed:
        report.say(f"missed: {row.what}: {row.measured}, asked for {row.figure}")
    return 1 if missed else 0


def _run(name: str, args: argparse.Namespace) -> Report:
    report.say(f"{name} begins")
    neighbours = Neighbours()
    done: Report = import_module(f"bench.{name}").measure(args.short)
    done.notes.append(f"other processes used {neighbours.share():.0%} of the machine's cores meanwhile")
    report.show(done)
    if not args.no_save:
        report.save(done, f"python -m bench {name}{' --short' if args.short else ''}")
    return done


def _name(text: str) -> str:
    if text not in NAMES:
        raise argparse.ArgumentTypeError(f"there is no benchmark {text}; there are {', '.join(NAMES)}")
    return text


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="benchmarks of ocak beside its peers")
    parser.add_argument("names", nargs="*", default=NAMES, type=_name, metavar="NAME", help=" | ".join(NAMES))
    parser.add_argument("--short", action="store_true", help="fewer rounds, to try the harness itself")
    parser.add_argument("--no-save", action="store_true", help="leave docs/benchmarks.md as it is")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
