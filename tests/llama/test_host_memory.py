"""Prefixes that leave shared cells for host memory and come back, on a tiny real model."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from llama_cpp import llama_cpp as c

from ocak.core.request import Sampling
from ocak.engine import compaction, prefix_cache
from ocak.engine.engine import Engine
from ocak.engine.runner import Chunk, RunFailed
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.llama import library
from ocak.llama.context import ContextOptions, LlamaContext
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.llama.runner import LlamaRunner

GREEDY = Sampling(temperature=0)
CONTEXT = 256
CELLS = 384
BEGINNING = [(5 * i) % 240 + 1 for i in range(80)]
PROMPTS = [[*BEGINNING, *((7 * i + 3 * who) % 240 + 1 for i in range(85))] for who in range(5)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[LlamaModel]:
    library.initialise()
    loaded = LlamaModel(str(tiny_model), WeightOptions(), lambda _progress: None)
    yield loaded
    loaded.close()


def options(kv_cells: int = CELLS, flash_attn: str = "auto") -> ContextOptions:
    return ContextOptions(
        context=CONTEXT,
        parallel=3,
        kv_cells=kv_cells,
        batch_tokens=128,
        threads=1,
        kv_type="f16",
        kv_offload=True,
        flash_attn=flash_attn,
    )


@dataclass
class Service:
    """An engine on a context of its own, whose account is compared with llama.cpp's after every step."""

    context: LlamaContext
    engine: Engine

    @classmethod
    def start(
        cls, model: LlamaModel, sizes: ContextOptions, host_tokens: int, *, is_on_cpu: bool = False
    ) -> Service:
        context = LlamaContext(model, sizes)
        limits = SchedulerLimits(
            parallel=sizes.parallel,
            context=sizes.context,
            num_cells=sizes.kv_cells,
            batch_tokens=sizes.batch_tokens,
            num_slots=sizes.num_slots,
            shares_cells=sizes.is_unified,
            keeps_prefixes=True,
            host_tokens=host_tokens,
            is_on_cpu=is_on_cpu,
        )
        return cls(context, Engine(LlamaRunner(context, model.vocabulary), limits))

    def answer(self, prompts: list[list[int]], root: Hashable = "") -> list[Sequence]:
        """Answer all, each a step behind the one before."""
        sequences = [Sequence(i, list(p), GREEDY, 12, frozenset(), root=root) for i, p in enumerate(prompts)]
        for sequence in sequences:
            self.engine.submit(sequence)
            self.step()
        while self.engine.has_work:
            self.step()
        return sequences

    def step(self) -> None:
        self.engine.step()
        self.engine.check_integrity()
        cells, memory = self.engine._scheduler.slots.cells, c.llama_get_memory(self.context.pointer)
        sequences = range(self.context.num_slots + 1)
        ends = [c.llama_memory_seq_pos_max(memory, sequence) + 1 for sequence in sequences]
        assert ends == [cells.length(slot) for slot in sequences], "the spare sequence holds nothing"
        assert all(c.llama_memory_seq_pos_min(memory, s) == 0 for s in sequences if ends[s])


def answers(sequences: list[Sequence]) -> list[list[int]]:
    return [sequence.tokens[sequence.num_prompt :] for sequence in sequences]


@pytest.mark.parametrize("flash_attn", ["on", "off"])
@pytest.mark.parametrize("most_idle", [100, 10_000], ids=["pushed out", "evicted"])
def test_what_left_shared_cells_comes_back_and_changes_no_answer(
    model: LlamaModel, flash_attn: str, most_idle: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_cache, "MOST_IDLE", most_idle)
    plain = Service.start(model, options(flash_attn=flash_attn), 0)
    told = [answers(plain.answer(PROMPTS)) for _ in range(2)]
    plain.context.close()
    service = Service.start(model, options(flash_attn=flash_attn), 2000)
    assert answers(service.answer(PROMPTS)) == told[0] == told[1]
    again = service.answer(PROMPTS)
    assert answers(again) == told[0]
    assert min(sequence.num_cached for sequence in again) == len(PROMPTS[0]) - 1, "all but the last token"
    stats = service.engine.stats()
    assert 0 < stats.saved_tokens <= len(BEGINNING) + len(PROMPTS) * (85 + 11), "the beginning is saved once"
    service.context.close()


@pytest.mark.parametrize("flash_attn", ["on", "off"])
def test_cells_that_steps_have_scattered_are_put_together_and_change_no_answer(
    model: LlamaModel, flash_attn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "LEAST", 9)
    monkeypatch.setattr(compaction, "WORTH_MOVING", 2)
    plain = Service.start(model, options(flash_attn=flash_attn), 0)
    told = answers(plain.answer(PROMPTS))
    plain.context.close()
    service = Service.start(model, options(flash_attn=flash_attn), 2000, is_on_cpu=True)
    runner = service.engine._runner
    restored: list[int] = []
    restore = runner.restore
    monkeypatch.setattr(runner, "restore", lambda key, *rest: (restored.append(key), restore(key, *rest)))
    assert answers(service.answer(PROMPTS)) == told
    assert len(restored) > len(PROMPTS)
    service.context.close()


def test_the_budget_is_kept_and_what_does_not_fit_is_computed_again(model: LlamaModel) -> None:
    plain = Service.start(model, options(), 0)
    told = answers(plain.answer(PROMPTS))
    plain.context.close()
    service = Service.start(model, options(), 250)
    for _ in range(2):
        assert answers(service.answer(PROMPTS)) == told
        assert 0 < service.engine.stats().saved_tokens <= 250
    states = service.engine._runner._saved  # type: ignore[attr-defined]
    assert sum(state.nbytes for state in states.values()) < 1.1 * 250 * bytes_per_token(model)
    service.context.close()


def bytes_per_token(model: LlamaModel) -> float:
    context = LlamaContext(model, options())
    runner = LlamaRunner(context, model.vocabulary)
    runner.run([Chunk(0, 0, BEGINNING, None)])
    size = context.states.save(0).nbytes / len(BEGINNING)
    context.close()
    return size


def test_nobody_is_given_what_was_saved_for_another(model: LlamaModel) -> None:
    service = Service.start(model, options(), 2000)
    first = service.answer(PROMPTS, ("one", ""))
    others = {("two", ""): [0, 0], ("one", "salt"): [0, 0]}
    for root in others:
        sequences = service.answer(PROMPTS, root)
        assert answers(sequences) == answers(first)
        assert sequences[0].num_cached == 0
    assert min(sequence.num_cached for sequence in service.answer(PROMPTS, ("one", ""))) > len(BEGINNING)
    service.context.close()


def test_a_conversation_in_host_memory_and_shared_cells_is_exported_whole(model: LlamaModel) -> None:
    service = Service.start(model, options(), 2000)
    told = answers(service.answer(PROMPTS))
    exported = [service.engine.export("", prompt) for prompt in PROMPTS]
    service.context.close()
    assert [length for length, _ in exported] == [len(prompt) for prompt in PROMPTS]
    other = Service.start(model, options(), 0)
    for prompt, answer, (length, data) in zip(PROMPTS, told, exported, strict=True):
        assert other.engine.adopt("", prompt[:length], bytes(data))
        (sequence,) = other.answer([prompt])
        assert sequence.num_cached == len(prompt) - 1
        assert answers([sequence]) == [answer]
    other.context.close()


def test_a_part_is_saved_alone_and_restored_behind_what_a_slot_shares(model: LlamaModel) -> None:
    context = LlamaContext(model, options())
    runner = LlamaRunner(context, model.vocabulary)
    prompt = PROMPTS[0]
    runner.run([Chunk(2, 0, prompt[:100], None)])
    runner.run([Chunk(2, 100, prompt[100:], None)])
    runner.save(2, 1)
    runner.save(2, 2, 80)
    whole, part = len(runner.saved_data(1)), len(runner.saved_data(2))
    assert part == pytest.approx(whole * (len(prompt) - 80) / len(prompt), rel=0.05)
    logits = [next_logits(runner, context, 2, len(prompt))]
    runner.run([Chunk(0, 0, PROMPTS[1][:100], None)])  # takes the cells in between
    runner.copy(2, 3, 90)
    runner.restore(2, 3, 150)
    runner.trim(2, 0)
    runner.run([Chunk(3, 150, prompt[150:], None)])
    logits.append(next_logits(runner, context, 3, len(prompt)))
    assert logits[1] == pytest.approx(logits[0], abs=0.02)
    with pytest.raises(RunFailed):
        runner.restore(99, 4, 10)
    context.close()


def next_logits(runner: LlamaRunner, context: LlamaContext, slot: int, depth: int) -> np.ndarray:
    sampler = runner.new_sampler(GREEDY, ())
    runner.run([Chunk(slot, depth, [7], sampler)])
    logits = runner.last_logits(0).copy()
    runner.trim(slot, depth)
    sampler.close()
    return logits


def test_all_of_llama_cpps_sequences_may_be_slots(model: LlamaModel) -> None:
    sizes = ContextOptions(
        context=16,
        parallel=library.MAX_SEQUENCES,
        kv_cells=1024,
        batch_tokens=256,
        threads=1,
        kv_type="f16",
        kv_offload=True,
        flash_attn="auto",
    )
    context = LlamaContext(model, sizes)
    assert context.num_slots == library.MAX_SEQUENCES and not context.can_save
    context.close()
