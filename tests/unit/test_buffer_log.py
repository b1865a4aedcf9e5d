"""Where llama.cpp's log says that its buffers are: on a machine with GPUs, in its own words."""

from __future__ import annotations

import threading

import pytest

from ocak.llama import library
from ocak.llama.buffer_log import (
    MIB,
    buffer_bytes,
    by_device,
    cache_bytes,
    device_of,
    listening,
    pass_bytes,
    weight_bytes,
)
from ocak.memory.gguf_tensors import TensorInfo

LOADED = """\
load_tensors: offloaded 3/5 layers to GPU
load_tensors:   CPU_Mapped model buffer size =   315.30 MiB
load_tensors:        CUDA0 model buffer size =   934.70 MiB
load_tensors:        CUDA1 model buffer size =    20.00 MiB
llama_context:  CUDA_Host  output buffer size =     2.32 MiB
llama_kv_cache:        CPU KV buffer size =    12.00 MiB
llama_kv_cache:      CUDA0 KV buffer size =    36.00 MiB
llama_kv_cache: size =   48.00 MiB (  4096 cells,   4 layers,  1/1 seqs), K (f16): 24.00 MiB, V (f16): 24.00 MiB
llama_memory_recurrent:      CUDA0 RS buffer size =     1.50 MiB
sched_reserve:      CUDA0 compute buffer size =   298.50 MiB
sched_reserve:  CUDA_Host compute buffer size =    16.01 MiB
~llama_context:      CUDA0 compute buffer size is 298.5000 MiB, matches expectation of 298.5000 MiB
""".splitlines()

DRY = """\
load_tensors: layer   0 assigned to device CPU, is_swa = 0
load_tensors: layer   1 assigned to device CUDA0, is_swa = 1
load_tensors: layer   2 assigned to device CUDA1, is_swa = 0
tensor blk.1.ffn_up_exps.weight (40 MiB q4_K) buffer type overridden to CPU
load_tensors:          CPU model buffer size =     0.00 MiB
llama_kv_cache: layer   0: dev = CPU
llama_kv_cache:        CPU KV buffer size =     0.00 MiB
llama_kv_cache: size =   10.00 MiB (  4096 cells,   1 layers,  1/1 seqs), K (f16): 5.00 MiB, V (f16): 5.00 MiB
llama_kv_cache: layer   1: dev = CUDA0
llama_kv_cache: layer   2: dev = CUDA0
llama_kv_cache: layer   3: dev = CUDA1
llama_kv_cache:      CUDA0 KV buffer size =     0.00 MiB
llama_kv_cache:      CUDA1 KV buffer size =     0.00 MiB
llama_kv_cache: size =    9.00 MiB (  1024 cells,   3 layers,  1/1 seqs), K (f16): 4.50 MiB, V (f16): 4.50 MiB
""".splitlines()


def tensors(**sizes: int) -> list[TensorInfo]:
    return [TensorInfo(name.replace("__", "."), (1,), "F32", 0, size) for name, size in sizes.items()]


def test_a_load_tells_each_devices_buffers() -> None:
    assert buffer_bytes(LOADED, ("model",)) == {
        "CPU": round(315.3 * MIB),
        "CUDA0": round(934.7 * MIB),
        "CUDA1": 20 * MIB,
    }
    assert cache_bytes(LOADED) == {"CPU": 12 * MIB, "CUDA0": 36 * MIB + 3 * MIB // 2}
    assert pass_bytes(LOADED) == {"CUDA0": round(298.5 * MIB), "CPU": round(2.32 * MIB) + round(16.01 * MIB)}


def test_a_dry_run_divides_each_cache_among_its_layers() -> None:
    assert cache_bytes(DRY) == {"CPU": 10 * MIB, "CUDA0": 6 * MIB, "CUDA1": 3 * MIB}


def test_weights_lie_where_their_layers_do_and_a_shared_embedding_twice() -> None:
    shared = tensors(
        token_embd__weight=100,
        output_norm__weight=1,
        blk__0__attn_q__weight=10,
        blk__1__attn_q__weight=20,
        blk__1__ffn_up_exps__weight=40,
    )
    assert weight_bytes(DRY, shared) == {"CPU": 150, "CUDA0": 20, "CUDA1": 101}
    own = [*shared, *tensors(output__weight=7)]
    assert weight_bytes(DRY, own) == {"CPU": 150, "CUDA0": 20, "CUDA1": 8}


def test_without_a_gpu_all_is_the_cpus() -> None:
    lines = [line.replace("CUDA0", "CPU").replace("CUDA1", "CPU") for line in DRY]
    assert weight_bytes(lines, tensors(token_embd__weight=100, blk__1__w=5)) == {"CPU": 105}
    assert cache_bytes(lines) == {"CPU": 19 * MIB}


def test_the_devices_of_a_model_add_up_with_the_cpu_first() -> None:
    devices = by_device(weight_bytes(DRY, tensors(blk__1__w=5)), cache_bytes(DRY), pass_bytes(LOADED))
    assert [device.name for device in devices] == ["CPU", "CUDA0", "CUDA1"]
    assert [device.weights_bytes for device in devices] == [0, 5, 0]
    assert sum(device.kv_bytes for device in devices) == 19 * MIB
    assert sum(device.compute_bytes for device in devices) == pass_bytes(LOADED).total()


@pytest.mark.parametrize(
    ("buffer", "device"),
    [("CPU", "CPU"), ("CPU_Mapped", "CPU"), ("CPU_REPACK", "CPU"), ("CUDA_Host", "CPU"), ("AMX", "CPU"),
     ("CUDA0", "CUDA0"), ("CUDA0_Split", "CUDA0"), ("MTL0_Mapped", "MTL0"), ("Vulkan1", "Vulkan1")],
)  # fmt: skip
def test_a_buffers_name_tells_its_device(buffer: str, device: str) -> None:
    assert device_of(buffer) == device


def test_what_is_heard_is_this_threads_and_the_log_is_as_before_afterwards() -> None:
    before = (library.logger.level, library.logger.propagate, list(library.logger.handlers))
    with listening() as log:
        library.logger.debug("mine")
        other = threading.Thread(target=library.logger.debug, args=("another's",))
        other.start()
        other.join()
    assert log.lines == ["mine"]
    assert (library.logger.level, library.logger.propagate, list(library.logger.handlers)) == before
