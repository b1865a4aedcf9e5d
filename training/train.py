#!/usr/bin/env python3
"""Train the embedded model from scratch on CPU cores, and export it whenever it is the best so far.

    python train.py --run FOLDER [--steps 10000] [--minutes 60] [--threads 2]

FOLDER keeps the tokenizer, the last checkpoint and the best weights; started again, a broken run goes on.
It ends after its steps or its minutes, whichever comes first, and slows its learning towards that end. The same
seed and texts give the same lessons as long as the minutes do not run out first.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from induction import plant_induction
from lessons import Lesson, LessonMaker
from model import Network, Shape
from probe import Probe
from texts import Texts, read_texts
from vocabulary import NUM_VOCAB, learn_tokenizer, load_tokenizer


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the outcome of a run."""

    steps: int = 10_000
    minutes: float = 60
    seed: int = 7
    batch_tokens: int = 4096
    pool_batches: int = 32
    warm_up: int = 200
    matrix_rate: float = 4e-3
    vector_rate: float = 3e-3
    decay: float = 0.1
    clip: float = 1.0


class Trainer:
    """Owns the network, its optimisers and the files of the run."""

    def __init__(self, run: Path, recipe: Recipe, texts: Texts, probe_every: int) -> None:
        torch.manual_seed(recipe.seed)
        self._run, self._recipe, self._texts = run, recipe, texts
        run.mkdir(parents=True, exist_ok=True)
        self._tokenizer = self._own_tokenizer()
        self._network = Network(Shape(num_vocab=NUM_VOCAB))
        plant_induction(self._network)
        self._optimisers = optimisers(self._network, recipe)
        self._probe = Probe(texts, self._tokenizer)
        self._probe_every = probe_every
        self._step, self._best, self._trained_s, self._tokens = 0, -1.0, 0.0, 0
        self._resume()

    def train(self) -> None:
        """Run the steps that are left."""
        started, before = time.monotonic(), self._trained_s
        losses: list[float] = []
        for batch in batches(self._texts, self._tokenizer, self._recipe, self._step, self._progress):
            losses.append(self._learn(batch))
            self._step += 1
            self._tokens += sum(len(lesson.ids) for lesson in batch)
            self._trained_s = before + time.monotonic() - started
            if self._step % 50 == 0:
                self._report(losses[-50:])
            is_done = self._progress() >= 1.0
            if self._step % self._probe_every == 0 or is_done:
                self._examine()
                self._save()
            if is_done:
                break

    def _progress(self) -> float:
        """Part of the run that is done, by steps or by time, whichever is further."""
        return max(self._step / self._recipe.steps, self._trained_s / 60 / self._recipe.minutes)

    def _own_tokenizer(self) -> Tokenizer:
        """The tokenizer this run began with, or a new one."""
        path = self._run / "tokenizer.json"
        if not path.exists():
            learn_tokenizer(self._texts).save(str(path))
        return load_tokenizer(path)

    def _learn(self, batch: list[Lesson]) -> float:
        """One step of all optimisers; returns the mean loss."""
        ids, targets, weights = tensors(batch)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self._network(ids)
            trained = weights > 0
            scores = self._network.logits(hidden[trained])
        each = functional.cross_entropy(scores.float(), targets[trained], reduction="none")
        loss = (each * weights[trained]).sum() / weights.sum()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._network.parameters(), self._recipe.clip)
        rate = schedule(self._step, self._progress(), self._recipe)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return loss.item()

    def _examine(self) -> None:
        """Probe on the development questions; keep the weights if they are the best so far."""
        result = self._probe.examine(self._network)
        print(f"  probe: {result}", flush=True)
        if result.score >= self._best:
            self._best = result.score
            torch.save(self._network.state_dict(), self._run / "best.pt")

    def _save(self) -> None:
        state = {
            "network": self._network.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
            "step": self._step,
            "best": self._best,
            "trained_s": self._trained_s,
            "tokens": self._tokens,
        }
        torch.save(state, self._run / "last.tmp")
        (self._run / "last.tmp").rename(self._run / "last.pt")

    def _resume(self) -> None:
        if not (self._run / "last.pt").exists():
            return
        state = torch.load(self._run / "last.pt")
        self._network.load_state_dict(state["network"])
        for optimiser, saved in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self._step, self._best = state["step"], state["best"]
        self._trained_s, self._tokens = state["trained_s"], state["tokens"]
        print(f"resumed at step {self._step}", flush=True)

    def _report(self, losses: list[float]) -> None:
        left_s = self._trained_s * (1 / self._progress() - 1)
        print(
            f"step {self._step}/{self._recipe.steps}  loss {sum(losses) / len(losses):.4f}"
            f"  {self._tokens / self._trained_s:.0f} token/s"
            f"  {self._trained_s / 60:.1f} min done, {left_s / 60:.1f} min left",
            flush=True,
        )


def optimisers(network: Network, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [
        weight for name, weight in network.named_parameters() if weight.dim() == 2 and "embedding" not in name
    ]
    others = [weight for name, weight in network.named_parameters() if weight.dim() == 1 or "embedding" in name]
    made: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            matrices, lr=recipe.matrix_rate, weight_decay=recipe.decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=recipe.vector_rate, betas=(0.9, 0.98), weight_decay=recipe.decay),
    ]
    for optimiser in made:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return made


def schedule(step: int, progress: float, recipe: Recipe) -> float:
    """Part of the peak rate: up in a line, then down to nearly nothing along a cosine."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def batches(
    texts: Texts, tokenizer: Tokenizer, recipe: Recipe, first: int, progress: Callable[[], float]
) -> Iterator[list[Lesson]]:
    """The batches from step `first` on. Each pool of them has its own seed, so a resumed run sees the same."""
    for pool in range(first // recipe.pool_batches, math.ceil(recipe.steps / recipe.pool_batches)):
        rng = random.Random(recipe.seed * 1_000_003 + pool)
        start = pool * recipe.pool_batches
        maker = LessonMaker(texts, tokenizer, rng, progress())
        made = cut(maker.lessons(recipe.pool_batches * recipe.batch_tokens), recipe, rng)
        yield from made[max(0, first - start) : max(0, recipe.steps - start)]


def cut(lessons: list[Lesson], recipe: Recipe, rng: random.Random) -> list[list[Lesson]]:
    """Exactly `pool_batches` batches of like length, in random order."""
    lessons.sort(key=lambda lesson: len(lesson.ids))
    total = sum(len(lesson.ids) for lesson in lessons)
    made: list[list[Lesson]] = [[] for _ in range(recipe.pool_batches)]
    done = 0
    for lesson in lessons:
        made[min(recipe.pool_batches - 1, done * recipe.pool_batches // total)].append(lesson)
        done += len(lesson.ids)
    rng.shuffle(made)
    return made


def tensors(batch: list[Lesson]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, next ids and the weights of their loss, each (rows, longest), padded with zeros."""
    longest = max(len(lesson.ids) for lesson in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    targets, weights = torch.zeros_like(ids), torch.zeros(len(batch), longest)
    for row, lesson in enumerate(batch):
        length = len(lesson.ids)
        ids[row, :length] = torch.tensor(lesson.ids)
        targets[row, : length - 1] = ids[row, 1:length]
        weights[row, : length - 1] = torch.tensor(lesson.weights[1:])
    return ids, targets, weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--run", type=Path, required=True, help="folder for the files of the run, outside the repository"
    )
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--minutes", type=float, default=Recipe().minutes)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--probe-every", type=int, default=150)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    Trainer(args.run, Recipe(steps=args.steps, minutes=args.minutes), read_texts(), args.probe_every).train()


if __name__ == "__main__":
    main()
