"""The arrays behind a `llama_batch`, written through numpy: no loop over tokens, and C reads them in place."""

from __future__ import annotations

import ctypes

import numpy as np
from llama_cpp import llama_cpp as c
from numpy.typing import NDArray


class Rows:
    """Room for `size` rows; `batch.n_tokens` says how many are meant."""

    def __init__(self, size: int) -> None:
        self.tokens: NDArray[np.int32] = np.zeros(size, np.int32)
        self.positions: NDArray[np.int32] = np.zeros(size, np.int32)
        self.slots: NDArray[np.int32] = np.zeros(size, np.int32)
        self.outputs: NDArray[np.int8] = np.zeros(size, np.int8)
        self._counts: NDArray[np.int32] = np.ones(size, np.int32)
        self._slot_pointers = self.slots.ctypes.data + np.arange(size, dtype=np.uintp) * 4
        self.batch = c.llama_batch(
            0,
            self.tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            None,
            self.positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            self._slot_pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            self.outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
