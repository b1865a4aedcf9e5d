"""Whether tokens are picked inside the graph, from the owner's wish and where the logits are."""

from __future__ import annotations

import pytest

from ocak.core.errors import LoadFailed
from ocak.worker.device_sampling import samples_on_device
from ocak.worker.messages import LoadOptions

LAYERS = 24


@pytest.mark.parametrize(
    ("wish", "gpu_layers", "has_gpu", "expected"),
    [
        ("auto", -1, False, False),
        ("auto", -1, True, True),
        ("auto", 0, True, False),
        ("auto", LAYERS, True, False),
        ("auto", LAYERS + 1, True, True),
        ("on", -1, False, True),
        ("on", 0, True, True),
        ("off", -1, True, False),
    ],
)
def test_it_follows_the_output_layer_unless_told(
    wish: str, gpu_layers: int, has_gpu: bool, expected: bool
) -> None:
    options = LoadOptions(path="m.gguf", gpu_layers=gpu_layers, device_sampling=wish)  # type: ignore[arg-type]
    assert samples_on_device(options, num_layers=LAYERS, has_gpu=has_gpu) == expected


def test_determinism_keeps_it_on_the_host() -> None:
    options = LoadOptions(path="m.gguf", deterministic=True)
    assert not samples_on_device(options, num_layers=LAYERS, has_gpu=True)
    wanted = LoadOptions(path="m.gguf", deterministic=True, device_sampling="on")
    with pytest.raises(LoadFailed, match="--device-sampling"):
        samples_on_device(wanted, num_layers=LAYERS, has_gpu=True)
