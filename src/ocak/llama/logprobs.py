"""Log-probabilities out of a row of raw logits: before bias, penalties, temperature and every other sampler."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ocak.engine.runner import Logprobs

LOWEST = -9999.0  # told instead of minus infinity, which JSON does not have


def logprobs(logits: NDArray[np.float32], token: int, count: int, *, is_ranked: bool = False) -> Logprobs:
    """Return the log-softmax at `token`, and at the `count` largest logits: the lower id first among equals.

    `logits` is one row over the vocabulary; nothing of its size is sorted, and it is not written to.
    """
    best = _largest(logits, min(count, len(logits)))
    with np.errstate(invalid="ignore"):  # infinite logits
        peak = np.max(logits)
        total = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    return Logprobs(
        _finite(float(logits[token]) - total),
        tuple((int(other), _finite(float(logits[other]) - total)) for other in best),
        int((logits >= logits[token]).sum()) if is_ranked else 0,
    )


def _largest(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    if count == 0:
        return np.empty(0, np.intp)
    found = np.argpartition(logits, -count)[-count:]
    return found[np.lexsort((found, -logits[found]))]


def _finite(value: float) -> float:
    return value if value > LOWEST else LOWEST  # also for NaN
