"""The door to llama.cpp: the bound C functions, their log, and what the build can do.

Only this folder imports `llama_cpp`. Every ctypes callback is kept alive here or by its user for as long as C
may call it.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from typing import Any

import llama_cpp
from llama_cpp import llama_cpp as c

from ocak.core.shown import one_line

logger = logging.getLogger("ocak.llama")

KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
ROPE_SCALING = {"auto": -1, "none": 0, "linear": 1, "yarn": 2}
LOG_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
LOG_CONTINUED = 5
EXPECTED = ("cannot use buft",)  # said of every adapter's tensor whose weight is repacked; nothing is amiss
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
VERSION: str = llama_cpp.__version__

_recent_errors: list[str] = []
abort_wanted = threading.Event()  # llama.cpp calls an abort that was asked for an error


def _log(level: int, text: bytes, _user_data: object) -> None:
    line = text.decode("utf-8", "replace").rstrip()
    if abort_wanted.is_set() or any(said in line for said in EXPECTED):
        level = min(level, 1)
    if level == 4 and line:
        _recent_errors[:] = [*_recent_errors[-4:], line]
    if level != LOG_CONTINUED and line:
        logger.log(LOG_LEVELS.get(level, logging.DEBUG), line)


_log_callback = c.llama_log_callback(_log)


def initialise() -> None:
    """Send llama.cpp's log to ours and start its backends; once a process, before anything else."""
    c.llama_log_set(_log_callback, ctypes.c_void_p(0))
    c.llama_backend_init()


def recent_errors() -> str:
    """What llama.cpp last complained of, for an error message; empty if nothing."""
    return one_line("; ".join(_recent_errors))


def forget_errors() -> None:
    """Of a try that may fail."""
    _recent_errors.clear()


def gpu_device() -> str | None:
    """Describe the first GPU that this build can use; None if it has none."""
    if not c.llama_supports_gpu_offload():
        return None
    ggml = _ggml()
    for index in range(ggml.ggml_backend_dev_count()):
        device = ctypes.c_void_p(ggml.ggml_backend_dev_get(index))
        if ggml.ggml_backend_dev_type(device) in GPU_DEVICE_TYPES:
            description: bytes = ggml.ggml_backend_dev_description(device)
            return description.decode("utf-8", "replace")
    return None


def buffer_types() -> dict[str, int]:
    """Return the addresses of where this build can put tensors, by the names that llama.cpp gives them."""
    ggml = _ggml()
    found: dict[str, int] = {}
    for index in range(ggml.ggml_backend_dev_count()):
        device = ctypes.c_void_p(ggml.ggml_backend_dev_get(index))
        address = ggml.ggml_backend_dev_buffer_type(device)
        if address:
            name: bytes = ggml.ggml_backend_buft_name(ctypes.c_void_p(address))
            found[name.decode("utf-8", "replace")] = address
    return found


GPU_DEVICE_TYPES = (1, 2)  # GGML_BACKEND_DEVICE_TYPE_GPU, _IGPU


def _ggml() -> Any:
    from llama_cpp._ggml import libggml

    libggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    libggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    libggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    libggml.ggml_backend_dev_description.restype = ctypes.c_char_p
    libggml.ggml_backend_dev_buffer_type.restype = ctypes.c_void_p
    libggml.ggml_backend_buft_name.restype = ctypes.c_char_p
    return libggml
