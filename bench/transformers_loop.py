"""transformers' `generate`, one request after another; run by an interpreter that has torch and transformers.

    python bench/transformers_loop.py PROMPT_TOKENS OUTPUT_TOKENS REQUESTS

The model has the shape of the benchmark model (Qwen2.5-0.5B), random weights, bfloat16, on two threads.
Prints one JSON object.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

THREADS = 2


def main() -> None:
    """Build the model, warm it up, generate."""
    prompt_tokens, output_tokens, requests = map(int, sys.argv[1:])
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_shape(), dtype=torch.bfloat16).eval()
    _generate(model, prompt_tokens, 4)
    started = time.perf_counter()
    for _ in range(requests):
        _generate(model, prompt_tokens, output_tokens)
    seconds = time.perf_counter() - started
    print(json.dumps({"tokens_per_s": requests * output_tokens / seconds, "wall_s": seconds}))  # noqa: T201


def _shape() -> Qwen2Config:
    return Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_theta=1e6,
        tie_word_embeddings=True,
    )


def _generate(model: torch.nn.Module, prompt_tokens: int, output_tokens: int) -> None:
    ids = torch.randint(1000, 150000, (1, prompt_tokens))
    with torch.inference_mode():
        answer = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=output_tokens,
            max_new_tokens=output_tokens,
        )
    assert answer.shape[1] == prompt_tokens + output_tokens


main()
