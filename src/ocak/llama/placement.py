"""Tensor overrides as llama.cpp reads them: a list of patterns and buffer types that ends with nothing."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from ocak.core.errors import LoadFailed
from ocak.core.placement import TensorOverride
from ocak.llama import library


class BufferOverride(ctypes.Structure):
    """`llama_model_tensor_buft_override`."""

    _fields_ = [("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p)]


OverrideArray = ctypes.Array[BufferOverride]


def override_array(overrides: Sequence[TensorOverride]) -> OverrideArray:
    """Raises `LoadFailed` for a device that this build does not have. Must live as long as the model."""
    known = library.buffer_types()
    array = (BufferOverride * (len(overrides) + 1))()
    for place, override in enumerate(overrides):
        if override.device not in known:
            raise LoadFailed(
                f"--override-tensor {override.pattern}={override.device}: there is no device {override.device}; "
                f"this build has {', '.join(known)}"
            )
        array[place] = BufferOverride(override.pattern.encode(), known[override.device])
    return array
