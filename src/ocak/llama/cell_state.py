"""Saves cells to host memory and puts them back, in llama.cpp's own form. Knows no slots, only sequences.

llama.cpp saves and restores whole sequences, and a restored one begins empty. Where sequences share cells, a part
goes by a *spare* sequence: it is lent the part to save, or takes what is restored and hands the part on.
Invariant: the spare sequence holds nothing between two calls.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from llama_cpp import llama_cpp as c
from numpy.typing import NDArray

from ocak.engine.runner import RunFailed
from ocak.llama import library

State = NDArray[np.uint8]


class CellStates:
    """`spare` is None where sequences share no cells, or all have slots of their own."""

    def __init__(self, context: object, spare: int | None) -> None:
        self._context = context
        self._memory = c.llama_get_memory(context)
        self._spare = spare

    def save(self, sequence: int, start: int = 0) -> State:
        """Return a copy of the sequence's cells from `start` on. Raises `RunFailed`, `MemoryError`."""
        if start == 0:
            return self._get(sequence)
        with self._empty_spare() as spare:
            c.llama_memory_seq_cp(self._memory, sequence, spare, start, -1)
            return self._get(spare)

    def restore(self, sequence: int, data: State, start: int, end: int) -> None:
        """Give a sequence of `start` cells those saved ones that come behind them, up to `end`.

        While they come, all that were saved need room. Raises `RunFailed`.
        """
        if start == 0:
            self._set(sequence, data)
            c.llama_memory_seq_rm(self._memory, sequence, end, -1)
            return
        with self._empty_spare() as spare:
            self._set(spare, data)
            c.llama_memory_seq_cp(self._memory, spare, sequence, start, end)

    @contextmanager
    def _empty_spare(self) -> Iterator[int]:
        assert self._spare is not None
        try:
            yield self._spare
        finally:
            c.llama_memory_seq_rm(self._memory, self._spare, -1, -1)

    def _get(self, sequence: int) -> State:
        size = c.llama_state_seq_get_size(self._context, sequence)
        data: State = np.empty(size, np.uint8)
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = c.llama_state_seq_get_data(self._context, pointer, size, sequence)
        if written != size:
            raise RunFailed(f"llama.cpp saved {written} of {size} bytes")
        return data

    def _set(self, sequence: int, data: State) -> None:
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if c.llama_state_seq_set_data(self._context, pointer, data.nbytes, sequence) != data.nbytes:
            raise RunFailed(f"llama.cpp did not take a saved prefix back: {library.recent_errors()}")
