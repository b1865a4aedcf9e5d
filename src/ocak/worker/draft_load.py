"""Loads a draft model beside the one that it guesses for, or says why the two do not fit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ocak.core.errors import LoadFailed
from ocak.llama.context import ContextOptions, LlamaContext
from ocak.llama.drafter import LlamaDrafter
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.llama.vocabulary import Vocabulary
from ocak.llama.vocabulary_match import difference
from ocak.memory.estimate import draft_bytes
from ocak.memory.gguf_header import GgufModel, read_model
from ocak.worker.messages import LoadOptions

logger = logging.getLogger("ocak.worker")

KV_TYPE = "f16"
WAY_OUT = "give a smaller model of the same family, or leave out --draft-model"


def load_draft(
    options: LoadOptions, sizes: ContextOptions, target: Vocabulary, on_progress: Callable[[float], object]
) -> LlamaDrafter:
    """Load the draft that the options name, and run it once. Raises `LoadFailed`, `ModelFileError`."""
    assert options.draft_path is not None
    file = read_model(Path(options.draft_path))
    weights = WeightOptions(0 if options.gpu_layers == 0 else -1, options.mmap, options.mlock)
    with ExitStack() as undo:
        model = LlamaModel(str(options.draft_path), weights, lambda _: on_progress(1.0))
        undo.callback(model.close)
        _check(model, target, file)
        context = LlamaContext(model, draft_sizes(sizes, model.trained_context))
        undo.callback(context.close)
        drafter = LlamaDrafter(model, context, target.size, draft_bytes(file, sizes.context))
        drafter.read(0, [0] * min(8, drafter.most_tokens, drafter.context))
        undo.pop_all()
    logger.info("%s guesses for the model, %d tokens of context", file.header.path, drafter.context)
    return drafter


def draft_sizes(sizes: ContextOptions, trained_context: int) -> ContextOptions:
    """One sequence as long as the model's, or as long as the draft was trained for. Pure."""
    context = min(sizes.context, trained_context)
    return ContextOptions(
        context=context,
        parallel=1,
        kv_cells=context,
        batch_tokens=sizes.batch_tokens,
        threads=sizes.threads,
        kv_type=KV_TYPE,
        kv_offload=sizes.kv_offload,
        flash_attn="auto",
    )


def is_used(options: LoadOptions, sizes: ContextOptions, *, can_trim: bool) -> bool:
    """Whether a draft is given and will ever be asked; says why if not."""
    if options.draft_path is None:
        return False
    reason = None
    if sizes.is_uniform:
        reason = "deterministic answers have no guesses"
    elif options.speculation == "off":
        reason = "speculation is off"
    elif not can_trim:
        reason = "nothing is guessed for a model whose memory gives no single cell back"
    if reason is not None:
        logger.warning("the draft model %s is left out: %s", options.draft_path, reason)
    return reason is None


def _check(model: LlamaModel, target: Vocabulary, file: GgufModel) -> None:
    problem = _problem(model, target)
    if problem is not None:
        where = f"the draft model {file.header.path} cannot guess for this model"
        raise LoadFailed(f"{where}: {problem}; {WAY_OUT}", param="draft_model")


def _problem(model: LlamaModel, target: Vocabulary) -> str | None:
    if not model.can_generate:
        return f"it is no text-generation model (architecture {model.architecture})"
    if not model.can_trim:
        return f"its memory gives no single cell back (architecture {model.architecture})"
    return difference(target, model.vocabulary)
