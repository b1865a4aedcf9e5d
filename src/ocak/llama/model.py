"""Loads a GGUF model: its weights and its vocabulary. Large ones take minutes, so it calls back with progress."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from llama_cpp import llama_cpp as c

from ocak.core.errors import LoadFailed
from ocak.core.placement import TensorOverride
from ocak.core.shown import one_line
from ocak.llama import library
from ocak.llama.placement import OverrideArray, override_array
from ocak.llama.vocabulary import Vocabulary

TEXT_BYTES = 256
UNKNOWN_ARCHITECTURE = re.compile(r"unknown model architecture: '(.*?)'")


@dataclass(frozen=True, slots=True)
class WeightOptions:
    gpu_layers: int = -1  # -1: all
    mmap: bool = True
    mlock: bool = False
    tensor_overrides: tuple[TensorOverride, ...] = ()
    is_dry: bool = False  # read the header and the vocabulary, allocate nothing for the weights


class LlamaModel:
    """Weights in memory. `close()` frees them; every context of the model must be closed before."""

    def __init__(self, path: str, options: WeightOptions, on_progress: Callable[[float], object]) -> None:
        """Load; `on_progress` gives the load up by returning False. Raises `LoadFailed`."""
        self._overrides: OverrideArray = override_array(options.tensor_overrides)  # llama.cpp keeps its address
        self._callback = c.llama_progress_callback(lambda progress, _data: _tell(on_progress, progress))
        self.pointer = c.llama_model_load_from_file(os.fsencode(path), self._params(options))
        if not self.pointer:
            raise _failure(path, library.recent_errors() or "no reason given")
        self.vocabulary = Vocabulary(c.llama_model_get_vocab(self.pointer))

    def _params(self, options: WeightOptions) -> object:
        params = c.llama_model_default_params()
        params.n_gpu_layers = options.gpu_layers if options.gpu_layers >= 0 else 2**31 - 1
        params.load_mode = LOAD_MODES[options.mmap, options.mlock]
        params.progress_callback = self._callback
        if options.is_dry:
            params.no_alloc = True
            params.load_mode = LOAD_MODES[False, False]  # with any other llama.cpp ends the process
        if options.tensor_overrides:
            params.tensor_buft_overrides = ctypes.cast(self._overrides, ctypes.c_void_p)
        return params

    @property
    def architecture(self) -> str:
        return self.metadata("general.architecture") or "unknown"

    @property
    def name(self) -> str:
        return one_line(self.metadata("general.name") or self.architecture)

    @property
    def chat_template(self) -> str | None:
        text: bytes | None = c.llama_model_chat_template(self.pointer, None)
        return text.decode("utf-8", "replace") if text else None

    @property
    def num_parameters(self) -> int:
        return int(c.llama_model_n_params(self.pointer))

    @property
    def num_layers(self) -> int:
        return int(c.llama_model_n_layer(self.pointer))

    @property
    def weights_bytes(self) -> int:
        return int(c.llama_model_size(self.pointer))

    @property
    def trained_context(self) -> int:
        return int(c.llama_model_n_ctx_train(self.pointer))

    @property
    def can_generate(self) -> bool:
        return bool(c.llama_model_has_decoder(self.pointer)) and not c.llama_model_has_encoder(self.pointer)

    @property
    def can_trim(self) -> bool:
        """Whether cells may be taken off a sequence's end: not from a recurrent state, nor behind a window."""
        is_recurrent = c.llama_model_is_recurrent(self.pointer) or c.llama_model_is_hybrid(self.pointer)
        return not is_recurrent and c.llama_model_n_swa(self.pointer) == 0

    @property
    def scales_keys(self) -> bool:
        """Whether rotating keys also scales them, as YaRN does: then every shift would scale everybody's keys."""
        scaling = f"{self.architecture}.rope.scaling"
        has_factor = float(self.metadata(f"{scaling}.attn_factor") or 1) != 1
        return has_factor or self.metadata(f"{scaling}.type") not in (None, "none", "linear")

    def metadata(self, key: str) -> str | None:
        """Return a metadata value as text, None when the model does not carry it."""
        buffer = ctypes.create_string_buffer(TEXT_BYTES)
        length = c.llama_model_meta_val_str(self.pointer, key.encode(), buffer, TEXT_BYTES)
        return buffer.value.decode("utf-8", "replace") if length >= 0 else None

    def close(self) -> None:
        c.llama_model_free(self.pointer)


LOAD_MODES = {  # (mmap, mlock) -> llama_load_mode
    (False, False): 0,
    (True, False): 1,
    (False, True): 2,
    (True, True): 3,
}


def _failure(path: str, reason: str) -> LoadFailed:
    unknown = UNKNOWN_ARCHITECTURE.search(reason)
    if unknown is None:
        return LoadFailed(f"llama.cpp could not load {path}: {reason}")
    return LoadFailed(
        f"{path}: llama.cpp does not know the architecture {unknown[1]!r} (llama-cpp-python {library.VERSION}); "
        "choose another model, or a newer ocak"
    )


def _tell(on_progress: Callable[[float], object], progress: float) -> bool:
    return on_progress(progress) is not False
