"""How far positions are stretched, so that a model reads beyond the context it was trained for. Pure.

The names are llama.cpp's. A value left at its default is the model's own.
"""

from __future__ import annotations

import msgspec

from ocak.core.errors import ConfigError

SCALINGS = ("auto", "none", "linear", "yarn")  # auto: what the model says


class RopeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`freq_scale` is the inverse of the factor by which the context grows."""

    scaling: str = "auto"
    freq_base: float = 0.0  # 0: the model's
    freq_scale: float = 0.0  # 0: the model's
    yarn_orig_ctx: int = 0  # 0: what the model was trained for
    yarn_ext_factor: float = -1.0  # negative: the model's
    yarn_attn_factor: float = -1.0
    yarn_beta_fast: float = -1.0
    yarn_beta_slow: float = -1.0

    @property
    def is_plain(self) -> bool:
        """Nothing but the model's own values."""
        return self == RopeOptions()

    def reach(self, trained_context: int) -> int:
        """Return the longest context that makes sense: positions beyond it were never seen in training.

        A higher base stretches too, by how much depends on the model: then there is no telling.
        """
        if self.freq_base:
            return MOST_CONTEXT
        if self.scaling == "none" or not self.freq_scale:
            return trained_context
        return min(MOST_CONTEXT, round((self.yarn_orig_ctx or trained_context) / min(1.0, self.freq_scale)))


MOST_CONTEXT = 2**31 - 1
MOST_FREQ_SCALE = 16.0


def freq_scale(scale: float, freq_scale: float) -> float:
    """Settle the two spellings of one value: `rope_scale` 4 is `rope_freq_scale` 0.25. Raises `ConfigError`."""
    if scale and freq_scale:
        raise ConfigError(
            f"rope_scale {scale:g} and rope_freq_scale {freq_scale:g} say the same in two ways; leave one out",
            param="rope_freq_scale",
        )
    if scale and scale * MOST_FREQ_SCALE < 1:
        raise ConfigError(
            f"rope_scale must be 0 or at least {1 / MOST_FREQ_SCALE:g}, not {scale:g}", param="rope_scale"
        )
    return 1.0 / scale if scale else freq_scale
