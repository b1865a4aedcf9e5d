"""Loops without HTTP and text, each a module run in a process of its own: reads a load, prints its figures."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping

from bench import paths
from bench.load import Load

Figures = dict[str, float]
OPTIONS = ("clients", "requests", "prompt_tokens", "output_tokens", "seed", "prefixes", "prefix_tokens")
NOTHING: Mapping[str, str] = {}


def run(module: str, work: Load, environment: Mapping[str, str] = NOTHING) -> Figures:
    """Run the module's loop on the benchmark model with the load, of token ids, and two threads."""
    options = [part for name in OPTIONS for part in (_flag(name), str(getattr(work, name)))]
    command = [sys.executable, "-m", module, str(paths.model()), *options]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=paths.ROOT,
        env=os.environ | environment,
    )
    figures: Figures = json.loads(done.stdout)
    return figures


def main(description: str, loop: Callable[[str, Load, int], Figures]) -> None:
    """Run a loop with the model, the load and the threads of the command line, and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    default = Load(clients=16, requests=32)
    for name in OPTIONS:
        parser.add_argument(_flag(name), type=int, default=getattr(default, name))
    args = parser.parse_args()
    work = Load(**{name: getattr(args, name) for name in OPTIONS})
    json.dump(loop(args.model, work, args.threads), sys.stdout)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
