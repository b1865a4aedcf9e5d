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
    host_tokens: int = 0  # that host memory may hold
    is_on_cpu: bool = False  # attention reads the cells one after another, so it matters how they lie

    @property
    def compacts(self) -> bool:
        """Whether cells are put together again, by way of host memory that is set aside for it."""
        can = self.shares_cells and self.reuse == "parts" and self.is_on_cpu
        return can and self.host_tokens >= 2 * self.num_cells

    @property
    def saved_tokens(self) -> int:
        """The budget of saved prefixes."""
        return self.host_tokens - self.num_cells if self.compacts else self.host_tokens
