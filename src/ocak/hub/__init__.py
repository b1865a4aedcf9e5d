"""Fetches models from a hub that speaks Hugging Face's protocol: `hf:owner/repo[:file-or-quant]`."""
