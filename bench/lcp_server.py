"""Starts llama-cpp-python's batching server script; run by the interpreter of its own environment.

    python bench/lcp_server.py SERVER_SCRIPT MODEL PORT SEQUENCES CELLS

It is configured by a file alone, so one is written first.
"""

import json
import os
import sys
import tempfile


def main() -> None:
    """Write the configuration and become the server."""
    script, model, port, sequences, cells = sys.argv[1:]
    sizes = {"n_ctx": int(cells), "n_seq_max": int(sequences), "n_batch": 512, "n_ubatch": 512}
    threads = {"threads": 2, "threads_batch": 2}
    options = {"alias": "bench", "path": model, "kv_unified": True, "store_logits": False, **sizes, **threads}
    config = {"server": {"host": "127.0.0.1", "port": int(port)}, "model": options}
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(config, file)
    os.execv(sys.executable, [sys.executable, script, "-C", file.name])


main()
