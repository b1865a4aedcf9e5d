"""Which samplers llama.cpp can make part of the graph, and what of them is fixed there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama_cpp import llama_cpp as c

from ocak.core.request import Sampling

MOST_CANDIDATES = 256  # they come out of the graph three times: as ids, logits and probabilities
# Near 1 the graph rounds the threshold up to the likeliest logit, and drops that too.
MOST_MIN_P = 0.99
BEHIND_TOP_K = frozenset(
    {"top-p", "min-p", "temp-ext", "?temp-ext"}
)  # llama.cpp's names; with `?` it does nothing


@dataclass(frozen=True, slots=True)
class Shape:
    """All that samplers in the graph do to the logits."""

    stages: tuple[str, ...] = ()  # none: they take the likeliest
    values: tuple[float, ...] = ()


GREEDY = Shape()


def shape_of(sampling: Sampling, stages: Sequence[object], num_vocab: int) -> Shape | None:
    """Return what would do in the graph what these stages do on the host; None if nothing would.

    Top-k comes first, for the others are slow among all tokens, and no stage knows more than the logits.
    """
    if not stages:
        return GREEDY
    names = tuple(str(c.llama_sampler_name(stage).decode()) for stage in stages)
    if names[0] != "top-k" or names[-1] != "dist" or not BEHIND_TOP_K.issuperset(names[1:-1]):
        return None
    if sampling.top_k > min(MOST_CANDIDATES, num_vocab) or sampling.min_p > MOST_MIN_P or sampling.dynatemp_range:
        return None
    return Shape(names, (sampling.top_k, sampling.top_p, sampling.min_p, sampling.temperature))
