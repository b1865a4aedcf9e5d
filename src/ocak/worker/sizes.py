"""Settles how large a model's context is, and refuses what cannot be. Pure."""

from __future__ import annotations

from ocak.core.errors import LoadFailed
from ocak.core.limits import INT32_MAX
from ocak.engine.chunks import UNIFORM_ROWS
from ocak.engine.padding import MOST_TILE, tiled
from ocak.llama import library
from ocak.llama.context import ContextOptions, pad_cells
from ocak.memory.devices import cores
from ocak.worker.messages import LoadOptions

DEFAULT_CONTEXT = 4096  # at most, where the owner asked for none
MIN_CONTEXT = 2  # a token to read and one to say


def context_options(options: LoadOptions, trained_context: int) -> ContextOptions:
    """Settle every size that was left open, and refuse the impossible. Pure."""
    if trained_context < MIN_CONTEXT:
        raise LoadFailed(f"the model says that it was trained for a context of {trained_context} tokens")
    reach = options.rope.reach(trained_context)
    if options.context > reach:
        raise LoadFailed(
            f"context {options.context} is more than the {reach} tokens this model was trained for"
            + (" with its RoPE scaling" if reach != trained_context else "")
            + f"; set --context {reach} or less, or stretch it: --rope-scaling yarn "
            f"--rope-scale {-(-options.context // trained_context)}"
        )
    if options.parallel > library.MAX_SEQUENCES:
        raise LoadFailed(f"parallel {options.parallel} is more than llama.cpp's {library.MAX_SEQUENCES} sequences")
    _check_deterministic(options)
    context = options.context or min(trained_context, DEFAULT_CONTEXT)
    parallel = tiled(options.parallel) if options.deterministic else options.parallel
    kv_cells = min(options.kv_cells, context * parallel) or context * parallel
    if context < MIN_CONTEXT:
        raise LoadFailed(f"context {context} has no room for a prompt and an answer; set --context 512 or more")
    if pad_cells(context + MOST_TILE) * parallel > INT32_MAX:
        raise LoadFailed(
            f"context {context} x parallel {options.parallel} is more than {INT32_MAX} cells; set less of either"
        )
    if kv_cells < context:
        raise LoadFailed(
            f"kv_cells {kv_cells} cannot hold one sequence of {context} tokens; "
            f"set --kv-cells {pad_cells(context)} or more, or a smaller --context"
        )
    return ContextOptions(
        context=context,
        parallel=parallel,
        kv_cells=kv_cells,
        batch_tokens=max(options.batch_tokens, parallel, UNIFORM_ROWS if options.deterministic else 0),
        threads=options.threads or len(cores()),
        kv_type=options.kv_type,
        kv_offload=options.kv_offload,
        flash_attn="on" if options.deterministic else options.flash_attn,
        keeps_prefixes=options.prefix_cache,
        rope=options.rope,
        is_uniform=options.deterministic,
    )


def _check_deterministic(options: LoadOptions) -> None:
    if options.deterministic and options.kv_cells:
        raise LoadFailed(
            "deterministic needs cells of its own for every sequence, and kv_cells has them shared: "
            "leave out --kv-cells or --deterministic"
        )
    if options.deterministic and options.flash_attn == "off":
        raise LoadFailed(
            "deterministic needs flash attention, for the plain one adds up differently as a context grows: "
            "leave out --flash-attn off or --deterministic"
        )
