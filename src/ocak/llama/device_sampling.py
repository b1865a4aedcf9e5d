"""Tokens picked inside the graph, where the logits are, so that none of the rows of logits leaves the device.

A slot has a *seat*: a chain of samplers that is part of the graph. What it does is fixed with the graph; another
one costs building the graph anew. What a sequence has drawn its own chain knows: that is put into the seat before
a pass and taken back with the token, so who has the slot next, or goes on elsewhere, sees nothing of another's.
A sequence that asks for what no seat can do is sampled on the host, beside the others.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence

from llama_cpp import llama_cpp as c

from ocak.engine.runner import Chunk
from ocak.llama.sampler import LlamaSampler
from ocak.llama.shapes import Shape

ABLE = ("+", "?")  # how llama.cpp's names of stages begin that the device can do, or that do nothing


class GraphSeat:
    """A chain that is part of the graph; it is freed when nobody knows it any more."""

    def __init__(self, shape: Shape, chain: object) -> None:
        self.shape = shape
        self.chain = chain
        self._stages = [c.llama_sampler_chain_get(chain, i) for i in range(c.llama_sampler_chain_n(chain))]
        weakref.finalize(self, c.llama_sampler_free, chain)

    @property
    def is_able(self) -> bool:
        """Whether the device does all of it, known once the chain is part of the graph."""
        return all(c.llama_sampler_name(stage).decode().startswith(ABLE) for stage in self._stages)

    def take(self, sampler: LlamaSampler) -> None:
        """Draw in the next pass what the sequence's own chain would."""
        if sampler.last is not None:
            c.llama_sampler_copy(sampler.last, self._stages[-1])

    def pick(self, sampler: LlamaSampler, context: object, row: int) -> int:
        """Return what was picked at the output `row`; the sequence's own chain knows of the draw then.

        Nothing else that came out may be read: llama.cpp 0c1e57098 plans the graph's memory for the slots of an
        earlier batch, and what is only on the way to another slot's token is overwritten.
        """
        token = int(c.llama_get_sampled_token_ith(context, row))
        assert token >= 0, "the graph picked nothing"
        c.llama_sampler_accept(self._stages[-1], token)
        if sampler.last is not None:
            c.llama_sampler_copy(self._stages[-1], sampler.last)
        return token


class DeviceSampling:
    """The seats of a context's slots."""

    def __init__(self, context: object, slots: Iterable[int], usual: LlamaSampler) -> None:
        """Give every slot a seat that does as `usual`, so that the first pass shows whether there is memory."""
        self._context = context
        self._seats: dict[int, GraphSeat] = {}
        self._is_able = True
        for slot in slots if usual.shape is not None else ():
            self._seat(slot, usual)

    def settle(self, chunks: Sequence[Chunk]) -> None:
        """Decide for each sampler where it picks in the next pass."""
        for chunk in chunks:
            sampler = chunk.sampler if isinstance(chunk.sampler, LlamaSampler) else None
            needs_logits = chunk.scored or chunk.has_logprobs or (sampler is not None and sampler.shape is None)
            if needs_logits:
                self._leave(chunk.slot)
            if sampler is not None:
                sampler.seat = None if needs_logits else self._seat(chunk.slot, sampler)

    def _seat(self, slot: int, sampler: LlamaSampler) -> GraphSeat | None:
        seat = self._seats.get(slot)
        if seat is None or seat.shape != sampler.shape:
            seat = self._put(slot, sampler) if self._is_able else None
        if seat is not None:
            seat.take(sampler)
        return seat

    def _put(self, slot: int, sampler: LlamaSampler) -> GraphSeat | None:
        """Make a seat part of the graph, from the next pass on; None where the device cannot do all of it."""
        assert sampler.shape is not None
        seat = GraphSeat(
            sampler.shape, _taker() if sampler.chain is None else c.llama_sampler_clone(sampler.chain)
        )
        self._is_able = bool(c.llama_set_sampler(self._context, slot, seat.chain)) and seat.is_able
        self._seats[slot] = seat
        if not self._is_able:
            self._leave(slot)
            return None
        return seat

    def _leave(self, slot: int) -> None:
        if slot in self._seats:
            c.llama_set_sampler(self._context, slot, None)
            del self._seats[slot]


def _taker() -> object:
    """A chain that draws from the likeliest alone; llama.cpp's greedy one has all logits come out too."""
    chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
    c.llama_sampler_chain_add(chain, c.llama_sampler_init_temp(0.0))
    c.llama_sampler_chain_add(chain, c.llama_sampler_init_dist(0))
    return chain
