"""Writes the sound files that mutants are made of: several architectures, splits, adapters, a large vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.adapters import write_adapter
from tests.embedding_models import write_causal_ranker, write_cross_encoder, write_encoder
from tests.models import TinyModel, write_model, write_split_model, write_vocabulary

LARGE_VOCABULARY = 20_000  # more words than the others have


@dataclass(frozen=True, slots=True)
class Files:
    """`usual` and `large` are there to be damaged; an adapter and its base to be used with what they became."""

    usual: Sequence[Path]
    large: Path
    base: Path
    adapter: Path


def write_files(folder: Path, *, large_vocabulary: int = LARGE_VOCABULARY) -> Files:
    """Each in a folder of its own, for a split's parts are looked for beside each other."""

    def place(name: str) -> Path:
        path = folder / name / f"{name}.gguf"
        path.parent.mkdir()
        return path

    usual = [
        write_model(place("llama"), TinyModel(num_layers=1)),
        write_model(place("qwen2"), TinyModel(architecture="qwen2", num_layers=1)),
        write_model(place("gemma2"), TinyModel(architecture="gemma2")),
        write_model(place("mamba"), TinyModel(architecture="mamba", num_layers=1)),
        write_model(place("experts"), TinyModel(num_experts=4, num_layers=1, is_quantized=True)),
        write_encoder(place("bert")),
        write_cross_encoder(place("cross-encoder")),
        write_causal_ranker(place("ranker")),
        write_vocabulary(place("vocabulary")),
        write_adapter(place("lora")),
        *(write_split_model(place(f"part{n}"))[n] for n in range(3)),
    ]
    words = tuple(f"{n:x}" for n in range(4096, 4096 + large_vocabulary))
    large = write_model(place("large"), TinyModel(embedding_length=32, num_layers=1, extra_tokens=words))
    return Files(usual, large, write_model(place("base"), TinyModel()), write_adapter(place("adapter")))
