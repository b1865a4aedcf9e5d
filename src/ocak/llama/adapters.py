"""LoRA adapters of a model, and which of them a context computes with.

llama.cpp applies adapters to a whole context, so one is in use at a time.
Invariant: every adapter is loaded before a context is made, which makes room in its graph for all of them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

from llama_cpp import llama_cpp as c

from ocak.core.errors import LoadFailed
from ocak.core.lora import LoraAdapter
from ocak.llama import library
from ocak.llama.model import LlamaModel


class LlamaAdapters:
    """They are freed with their model."""

    def __init__(self, model: LlamaModel, adapters: Sequence[LoraAdapter]) -> None:
        self._loaded = {adapter.name: (_load(model, adapter), adapter.scale) for adapter in adapters}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    def use(self, context: object, name: str) -> None:
        """Have the context compute with this adapter; empty: with none."""
        if not name:
            c.llama_set_adapters_lora(context, None, 0, None)
            return
        pointer, scale = self._loaded[name]
        c.llama_set_adapters_lora(
            context, (c.llama_adapter_lora_p_ctypes * 1)(pointer), 1, (ctypes.c_float * 1)(scale)
        )


def _load(model: LlamaModel, adapter: LoraAdapter) -> object:
    pointer = c.llama_adapter_lora_init(model.pointer, os.fsencode(adapter.path))
    if not pointer:
        reason = library.recent_errors() or "no reason given"
        raise LoadFailed(f"llama.cpp could not load the adapter {adapter.name!r} from {adapter.path}: {reason}")
    return pointer
