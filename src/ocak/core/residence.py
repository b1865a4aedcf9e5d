"""Words for a model's place in this machine's memory."""

from __future__ import annotations

from typing import Literal

ModelState = Literal[
    "unloaded", "planning", "loading", "ready", "draining", "unresponsive", "restarting", "failed"
]
Priority = Literal["pinned", "high", "normal", "low"]  # never sent away for others; last; as any; first
