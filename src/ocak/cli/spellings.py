"""What other servers call our settings: for the error that their flags get. Knows no command line."""

from __future__ import annotations

OURS = {
    "-c": "--context, in tokens per sequence",
    "--ctx-size": "--context, in tokens per sequence",
    "--max-model-len": "--context, in tokens per sequence",
    "--max-total-tokens": "--context, in tokens per sequence",
    "--context-shift": "--context-policy shift",
    "--no-context-shift": "--context-policy error",
    "--keep": "--n-keep",
    "-b": "--batch-tokens",
    "--batch-size": "--batch-tokens",
    "--max-num-batched-tokens": "--batch-tokens",
    "--max-batch-total-tokens": "--kv-cells",
    "--max-num-seqs": "--parallel",
    "--max-concurrent-requests": "--parallel, with --max-queued for those that wait",
    "-ctk": "--kv-type, for keys and values",
    "--cache-type-k": "--kv-type, for keys and values",
    "--cache-type-v": "--kv-type, for keys and values",
    "-fa": "--flash-attn",
    "--embeddings": "--embedding",
    "--rerank": "--pooling rank",
    "--reranking": "--pooling rank",
    "--served-model-name": "--served-name",
    "--hf-repo": "MODEL: hf:owner/repo[:file-or-quant]",
    "-hf": "MODEL: hf:owner/repo[:file-or-quant]",
    "--model-id": "MODEL: a path or hf:owner/repo[:file-or-quant]",
    "--api-key-file": "--api-key file:PATH",
}


def hint(option: str) -> str:
    """Return what to write instead of another server's option; empty for one we have not heard of."""
    ours = OURS.get(option.partition("=")[0])
    return f"; ocak's is {ours}" if ours else ""
