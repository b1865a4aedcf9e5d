"""Which of llama.cpp's samplers make up a chain, in which order.

Mirostat goes without all others but the temperature, as in llama.cpp.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from llama_cpp import llama_cpp as c

from ocak.core.request import Sampling
from ocak.llama.dry import DrySamplers
from ocak.llama.infill import InfillSamplers
from ocak.llama.vocabulary import Vocabulary

MIN_KEEP = 1
MIROSTAT_CANDIDATES = 100  # by which version 1 estimates the distribution: llama.cpp's choice
NEARLY_NOTHING = 1e-37  # of the likeliest token's probability: about where the exponential of a float ends
RANDOM_SEED: int = c.LLAMA_DEFAULT_SEED  # llama.cpp reads it as "draw a seed"


class SamplerStages:
    """Makes the stages of chains; whoever asked owns them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._num_vocab = vocabulary.size
        self._dry = DrySamplers(vocabulary)
        self._infill = InfillSamplers(vocabulary)
        self._named: dict[str, Callable[[Sampling], list[object]]] = {
            "penalties": self._penalties,
            "dry": self._repetitions,
            "top_n_sigma": _top_n_sigma,
            "top_k": _top_k,
            "typ_p": _typical,
            "top_p": _top_p,
            "min_p": _min_p,
            "xtc": _xtc,
            "temperature": _temperature,
            "adaptive_p": lambda _sampling: [],  # it draws, so `_last` makes it
            "infill": lambda _sampling: [self._infill.new()],
        }

    def prepare(self, sampling: Sampling) -> None:
        """Do what is slow about `of`; from any thread. Raises `InvalidRequest` for what the model cannot do."""
        self._dry.prepare(sampling)
        if sampling.fills_in:
            self._infill.check()

    def of(self, sampling: Sampling, *, is_masked: bool) -> list[object]:
        """Return bias, samplers in their order, and what picks the token; nothing at all for plain greedy.

        `is_masked` says that some logits may be minus infinity.
        """
        bias = [_logit_bias(sampling.logit_bias, self._num_vocab)] if sampling.logit_bias else []
        samplers = self._samplers(sampling)
        if sampling.is_greedy and not samplers and not bias:
            return []
        return [*bias, *([_possible()] if is_masked else []), *samplers, self._last(sampling)]

    def _samplers(self, sampling: Sampling) -> list[object]:
        if sampling.mirostat:
            return [] if sampling.is_greedy else [c.llama_sampler_init_temp(sampling.temperature), _possible()]
        return [stage for name in _names(sampling) for stage in self._named[name](sampling)]

    def _last(self, sampling: Sampling) -> object:
        if sampling.is_greedy:
            return c.llama_sampler_init_greedy()
        seed = _seed(sampling)
        if sampling.mirostat == 1:
            tau, eta = sampling.mirostat_tau, sampling.mirostat_eta
            return c.llama_sampler_init_mirostat(self._num_vocab, seed, tau, eta, MIROSTAT_CANDIDATES)
        if sampling.mirostat == 2:
            return c.llama_sampler_init_mirostat_v2(seed, sampling.mirostat_tau, sampling.mirostat_eta)
        if sampling.adaptive_target >= 0 and "adaptive_p" in sampling.samplers:
            return c.llama_sampler_init_adaptive_p(sampling.adaptive_target, sampling.adaptive_decay, seed)
        return c.llama_sampler_init_dist(seed)

    def _penalties(self, sampling: Sampling) -> list[object]:
        if not sampling.has_penalties or not sampling.penalty_window:
            return []
        return [
            c.llama_sampler_init_penalties(
                self._num_vocab,
                sampling.penalty_window,
                sampling.repetition_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        ]

    def _repetitions(self, sampling: Sampling) -> list[object]:
        return [self._dry.new(sampling)] if sampling.has_dry else []


def _names(sampling: Sampling) -> list[str]:
    """The samplers to apply. For greedy, only what can change which token is the likeliest."""
    if not sampling.is_greedy:
        return list(sampling.samplers)
    names = [name for name in sampling.samplers if name != "temperature"]
    cuts_the_top = (sampling.typical_p < 1 and "typ_p" in names) or (_is_xtc(sampling) and "xtc" in names)
    cuts_the_top |= sampling.fills_in
    return names if cuts_the_top else [name for name in names if name in ("penalties", "dry")]


def _top_n_sigma(sampling: Sampling) -> list[object]:
    return [c.llama_sampler_init_top_n_sigma(sampling.top_n_sigma)] if sampling.top_n_sigma > 0 else []


def _top_k(sampling: Sampling) -> list[object]:
    return [c.llama_sampler_init_top_k(sampling.top_k)] if sampling.top_k else []


def _typical(sampling: Sampling) -> list[object]:
    """The entropy is NaN where a candidate's probability is zero, as a bias or top-n-sigma make it."""
    if sampling.typical_p >= 1:
        return []
    return [_possible(), c.llama_sampler_init_typical(sampling.typical_p, MIN_KEEP)]


def _top_p(sampling: Sampling) -> list[object]:
    return [c.llama_sampler_init_top_p(sampling.top_p, MIN_KEEP)] if sampling.top_p < 1 else []


def _min_p(sampling: Sampling) -> list[object]:
    return [c.llama_sampler_init_min_p(sampling.min_p, MIN_KEEP)] if sampling.min_p > 0 else []


def _xtc(sampling: Sampling) -> list[object]:
    if not _is_xtc(sampling):
        return []
    seed = _seed(sampling)
    return [c.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, MIN_KEEP, seed)]


def _is_xtc(sampling: Sampling) -> bool:
    return sampling.xtc_probability > 0 and sampling.xtc_threshold <= 0.5


def _temperature(sampling: Sampling) -> list[object]:
    return [
        c.llama_sampler_init_temp_ext(sampling.temperature, sampling.dynatemp_range, sampling.dynatemp_exponent)
    ]


def _possible() -> object:
    """Drop the candidates that have no chance at all: zeros spoil the logarithms of typical and mirostat 1,
    and nothing that is forbidden can come back by way of an overflow."""
    return c.llama_sampler_init_min_p(NEARLY_NOTHING, MIN_KEEP)


def _seed(sampling: Sampling) -> int:
    if sampling.seed is None:
        assert sampling.is_greedy, "the worker draws a seed for every request"
        return 0
    return sampling.seed % RANDOM_SEED


def _logit_bias(bias: dict[int, float], num_vocab: int) -> object:
    pairs = [c.llama_logit_bias(token, value) for token, value in bias.items()]
    array = (c.llama_logit_bias * len(pairs))(*pairs)
    return c.llama_sampler_init_logit_bias(num_vocab, len(pairs), ctypes.cast(array, c.llama_logit_bias_p))
