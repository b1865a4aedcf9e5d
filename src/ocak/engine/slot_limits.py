"""What slots have room for, and what can be done with a model's cells: settled once, when it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reuse = Literal["parts", "wholes"]  # whether a model's cells can be taken off the end of a sequence


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """`moves_cells`: a shift leaves what was computed behind the tokens that go; else it is computed again."""

    num_slots: int  # sequence ids that llama.cpp knows
    num_cells: int
    shares_cells: bool = False  # a copy takes no cells (the unified layout)
    reuse: Reuse = "parts"
    keeps_prefixes: bool = False  # for others, when a sequence ends
    moves_cells: bool = True
    host_tokens: int = 0  # the budget of saved prefixes
