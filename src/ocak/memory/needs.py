"""What loading a model takes, in bytes, and by how much a budget is more than that. Pure.

*Reserved* is what a budget must hold; *resident* is what is in memory once every sequence has had a first prompt:
of the buffers for a pass, those for long contexts and for many rows of logits are touched when they are needed.
A further sequence takes its own part of the KV cache; how many of them would still fit is the verdict.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

GRAIN = 256  # llama.cpp rounds a context up to whole ones of these


class Verdict(StrEnum):
    """By how many further sequences fit: none, one, two or more."""

    DOES_NOT_FIT = "does not fit"
    RISKY = "risky"
    SAFE = "safe"
    VERY_SAFE = "very safe"


CPU = "CPU"  # the device whose memory is the host's


class DeviceBytes(Struct, frozen=True, kw_only=True):
    """What one device holds of a model, as llama.cpp names it: `CPU`, `CUDA0`."""

    name: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int  # reserved


class Needs(Struct, frozen=True, kw_only=True):
    """Of one model with one set of settings; `context`, `parallel` and `kv_cells` as they were settled."""

    context: int  # tokens a sequence
    parallel: int
    kv_cells: int  # of all sequences together
    trained_context: int
    weights_bytes: int
    kv_bytes: int  # cells and recurrent states
    compute_bytes: int  # llama.cpp's buffers for a pass and for its logits
    work_bytes: int  # what passes may come to need besides: more logits, and kernels' copies (`work_bytes.py`)
    touched_bytes: int  # the part of these two that is resident
    vocabulary_bytes: int  # in host memory: the tokens, and the tables for grammars
    process_bytes: int  # resident: the interpreter and its libraries
    besides_bytes: int = 0  # adapters, and a draft model
    saved_bytes: int = 0  # that prompts in host memory may come to take
    devices: tuple[DeviceBytes, ...] = ()  # weights, cache and what passes need, by where they lie

    @property
    def sequence_bytes(self) -> int:
        """One sequence's part of the cache."""
        return self.kv_bytes // self.parallel

    @property
    def total_bytes(self) -> int:
        """What is reserved, on all devices together."""
        held = self.weights_bytes + self.kv_bytes + self.compute_bytes + self.work_bytes
        return held + self.vocabulary_bytes + self.process_bytes + self.besides_bytes + self.saved_bytes

    @property
    def host_bytes(self) -> int:
        """What of it is reserved in the host's memory."""
        others = (device for device in self.devices if device.name != CPU)
        return self.total_bytes - sum(one.weights_bytes + one.kv_bytes + one.compute_bytes for one in others)

    @property
    def resident_bytes(self) -> int:
        untouched = self.compute_bytes + self.work_bytes - self.touched_bytes
        return self.total_bytes - untouched - self.saved_bytes


class Measured(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a dry run found: the needs, or why there are none and which setting is to blame."""

    needs: Needs | None = None
    error: str = ""
    param: str | None = None


def verdict(needs: Needs, budget: int) -> Verdict:
    """Judge whether a budget of so many bytes is enough."""
    spare = budget - needs.total_bytes
    if spare < 0:
        return Verdict.DOES_NOT_FIT
    further = spare // max(1, needs.sequence_bytes)
    return (Verdict.RISKY, Verdict.SAFE, Verdict.VERY_SAFE)[min(further, 2)]


def largest_that_fit(needs: Needs, budget: int) -> tuple[int, int]:
    """Return the longest context with as many sequences, and the most sequences with as long a context.

    Only the cache is counted as shrinking, though buffers shrink too; 0 where no size is small enough.
    """
    cache = budget - (needs.total_bytes - needs.kv_bytes)
    share = min(1.0, max(0, cache) / max(1, needs.kv_bytes))
    context = int(needs.context * share)
    return context - context % GRAIN, int(needs.parallel * share)
