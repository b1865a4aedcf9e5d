"""Decides whether tokens are picked inside the graph. Pure."""

from __future__ import annotations

from ocak.core.errors import LoadFailed
from ocak.worker.messages import LoadOptions


def samples_on_device(options: LoadOptions, *, num_layers: int, has_gpu: bool) -> bool:
    """Left open, it is so where the logits are on a GPU: on a CPU nothing is saved, see docs/adr/0010.

    Raises `LoadFailed` where the owner asks for what determinism excludes.
    """
    if options.deterministic:
        if options.device_sampling == "on":
            raise LoadFailed(
                "deterministic has tokens picked on the host, the same way for all: leave out "
                "--device-sampling on or --deterministic"
            )
        return False
    if options.device_sampling != "auto":
        return options.device_sampling == "on"
    return has_gpu and not 0 <= options.gpu_layers <= num_layers  # the output layer comes after the others
