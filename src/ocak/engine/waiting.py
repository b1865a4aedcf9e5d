"""Who waits for a slot, and who is next: a fair share for each tenant, and in it by priority, adapter and arrival.

The tenant with the fewest running sequences is next; of those, the one that was served longest ago. Nobody's
queue, however long, and nobody's priority holds up another tenant. Among a tenant's most urgent, its adapters
share the slots by the same rule.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import count

from ocak.engine.sequence import Sequence


class Waiting:
    def __init__(self) -> None:
        self._queues: dict[str, list[Sequence]] = {}  # by tenant, in order; none is empty
        self._served_at: dict[str, int] = {}  # of tenants that wait or run
        self._adapters: dict[str, dict[str, int]] = {}  # the same of each tenant's adapters
        self._turns = count()

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for queue in self._queues.values() for sequence in queue)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; one that was preempted comes before those that arrived after it."""
        bisect.insort(self._queues.setdefault(sequence.tenant, []), sequence, key=_place)

    def remove(self, sequence: Sequence) -> None:
        queue = self._queues[sequence.tenant]
        queue.remove(sequence)
        if not queue:
            del self._queues[sequence.tenant]

    def next(self, running: Iterable[Sequence], passed: Collection[int] = ()) -> Sequence | None:
        """Return whose turn it is, but for the ids that were passed over; None if nobody else waits."""
        seated = list(running)
        held = Counter(sequence.tenant for sequence in seated)
        for tenant in sorted(self._queues, key=lambda tenant: (held[tenant], self._served_at.get(tenant, -1))):
            left = [sequence for sequence in self._queues[tenant] if sequence.id not in passed]
            if left:
                return self._fairest(left, seated)
        return None

    def _fairest(self, queue: list[Sequence], seated: list[Sequence]) -> Sequence:
        """Of the most urgent, one of the adapter with the fewest running, or that was served longest ago."""
        urgent = [sequence for sequence in queue if sequence.priority == queue[0].priority]
        firsts = {sequence.adapter: sequence for sequence in reversed(urgent)}
        if len(firsts) == 1:
            return queue[0]
        tenant = queue[0].tenant
        held = Counter(sequence.adapter for sequence in seated if sequence.tenant == tenant)
        served_at = self._adapters.get(tenant, {})
        return min(firsts.values(), key=lambda one: (held[one.adapter], served_at.get(one.adapter, -1), one.id))

    def take(self, sequence: Sequence) -> None:
        """Note that the sequence waits no longer: it has a slot."""
        self.remove(sequence)
        self._served_at.pop(sequence.tenant, None)
        self._served_at[sequence.tenant] = turn = next(self._turns)
        self._adapters.setdefault(sequence.tenant, {})[sequence.adapter] = turn
        if len(self._served_at) > 2 * len(self._queues) + MOST_REMEMBERED:
            forgotten = next(iter(self._served_at))
            del self._served_at[forgotten]
            self._adapters.pop(forgotten, None)


MOST_REMEMBERED = 1000  # tenants that have nobody waiting


def _place(sequence: Sequence) -> tuple[int, int]:
    return sequence.priority, sequence.id
