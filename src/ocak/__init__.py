"""ocak: a self-hosted LLM inference server and gateway that keeps models warm."""

__version__ = "0.1.0"
