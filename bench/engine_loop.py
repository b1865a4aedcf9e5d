"""ocak's engine as its server sets it up, in one process, with no HTTP and no text: where the time of steps goes.

    python -m bench.engine_loop MODEL --clients 128 --requests 256

All requests are there from the beginning. Prints one JSON object.
"""

import time
from concurrent.futures import ThreadPoolExecutor

from bench import loops
from bench.load import Load
from bench.loops import Figures
from ocak.core.request import Sampling
from ocak.engine.engine import Engine
from ocak.engine.sequence import Sequence
from ocak.llama.context import Output
from ocak.llama.runner import LlamaRunner
from ocak.llama.sampler import LlamaSampler
from ocak.offline.settings import plan
from ocak.worker.loading import load as load_model
from ocak.worker.stopwatch import Stopwatch

GREEDY = Sampling(temperature=0)
CELLS = 256  # llama.cpp gives a sequence a multiple of these


class TimedSampling:
    """Adds up the seconds in which runners pick tokens, from now on."""

    def __init__(self) -> None:
        self.seconds = 0.0
        sample = LlamaRunner._sample

        def timed(runner: LlamaRunner, samplers: list[LlamaSampler], outputs: list[Output]) -> object:
            started = time.perf_counter()
            try:
                return sample(runner, samplers, outputs)
            finally:
                self.seconds += time.perf_counter() - started

        LlamaRunner._sample = timed  # type: ignore[method-assign, assignment]


def run(model_path: str, work: Load, num_threads: int) -> Figures:
    """Run the load; a thread that is not the first is held to its core, as the server's."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_run, model_path, work, num_threads).result()


def _run(model_path: str, work: Load, num_threads: int) -> Figures:
    engine = _engine(model_path, work, num_threads)
    sampling, busy_s, longest_s = TimedSampling(), 0.0, 0.0
    for number, prompt in enumerate(work.prompts()):
        engine.submit(Sequence(number, prompt, GREEDY, work.output_tokens, frozenset()))
    while engine.has_work:
        before = engine.stats().decode_s + sampling.seconds
        started = time.perf_counter()
        engine.step()
        step_s = time.perf_counter() - started
        busy_s += step_s
        longest_s = max(longest_s, step_s - (engine.stats().decode_s + sampling.seconds - before))
    engine.check_integrity()
    stats = engine.stats()
    rest_s = busy_s - stats.decode_s - sampling.seconds
    return {
        "tokens_per_s": stats.generation_tokens / busy_s,
        "decode_share": stats.decode_s / busy_s,
        "sampling_share": sampling.seconds / busy_s,
        "rest_share": rest_s / busy_s,
        "step_us": busy_s / stats.steps * 1e6,
        "rest_us": rest_s / stats.steps * 1e6,
        "longest_rest_us": longest_s * 1e6,
        "steps": stats.steps,
    }


def _engine(model_path: str, work: Load, num_threads: int) -> Engine:
    tokens = work.prefix_tokens + work.prompt_tokens + work.output_tokens
    sizes = {"parallel": work.clients, "context": -(-tokens // CELLS) * CELLS, "threads": num_threads}
    loaded = load_model(plan(model_path, sizes).spec.options, lambda progress: None, Stopwatch())
    assert isinstance(loaded.engine, Engine)
    return loaded.engine


if __name__ == "__main__":
    loops.main("ocak's engine alone", run)
