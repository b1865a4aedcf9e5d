"""Declares the settings that bend a model away from its file: adapters, positions, placement. Reads nothing.

They belong to `[models.KEY]` as all others do; the names are llama.cpp's.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from ocak.core.limits import INT32_MAX
from ocak.core.rope import MOST_FREQ_SCALE


class AdaptationSettings(Struct, frozen=True, kw_only=True):
    lora: Annotated[
        dict[str, str],
        Meta(
            description="LoRA adapter that requests may name: NAME=PATH[:SCALE]; may be repeated",
            extra={"metavar": "NAME=PATH", "path": True},
        ),
    ] = {}
    rope_scaling: Annotated[
        Literal["auto", "none", "linear", "yarn"],
        Meta(description="how positions are scaled; auto: as the model says"),
    ] = "auto"
    rope_scale: Annotated[
        float, Meta(ge=0, le=4096, description="factor by which the context grows; 0: the model's")
    ] = 0.0
    rope_freq_base: Annotated[float, Meta(ge=0, le=1e12, description="base frequency of RoPE; 0: the model's")] = (
        0.0
    )
    rope_freq_scale: Annotated[
        float,
        Meta(ge=0, le=MOST_FREQ_SCALE, description="1 / rope_scale, llama.cpp's other spelling; 0: the model's"),
    ] = 0.0
    yarn_orig_ctx: Annotated[
        int, Meta(ge=0, le=INT32_MAX, description="context before YaRN; 0: what the model was trained for")
    ] = 0
    yarn_ext_factor: Annotated[
        float, Meta(ge=-1, le=100, description="YaRN's extrapolation mix; negative: the model's")
    ] = -1.0
    yarn_attn_factor: Annotated[
        float, Meta(ge=-1, le=100, description="YaRN's scale of attention; negative: the model's")
    ] = -1.0
    yarn_beta_fast: Annotated[
        float, Meta(ge=-1, le=1e6, description="YaRN's low correction dimension; negative: the model's")
    ] = -1.0
    yarn_beta_slow: Annotated[
        float, Meta(ge=-1, le=1e6, description="YaRN's high correction dimension; negative: the model's")
    ] = -1.0
    cpu_moe: Annotated[
        bool, Meta(description="keep the experts of all layers on the CPU", extra={"flags": ["-cmoe"]})
    ] = False
    n_cpu_moe: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="keep the experts of the first N layers on the CPU",
            extra={"flags": ["-ncmoe"]},
        ),
    ] = 0
    override_tensor: Annotated[
        tuple[str, ...],
        Meta(
            description="tensors whose name holds a pattern go to a device: PATTERN=DEVICE; may be repeated",
            extra={"flags": ["-ot"], "metavar": "PATTERN=DEVICE"},
        ),
    ] = ()
