"""Who waits for a slot, and who is next: a fair share for each tenant, and in it by priority and arrival.

The tenant with the fewest running sequences is next; of those, the one that was served longest ago. Nobody's
queue, however long, and nobody's priority holds up another tenant.
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
        held = Counter(sequence.tenant for sequence in running)
        for tenant in sorted(self._queues, key=lambda tenant: (held[tenant], self._served_at.get(tenant, -1))):
            for sequence in self._queues[tenant]:
                if sequence.id not in passed:
                    return sequence
        return None

    def take(self, sequence: Sequence) -> None:
        """Note that the sequence waits no longer: it has a slot."""
        self.remove(sequence)
        self._served_at.pop(sequence.tenant, None)
        self._served_at[sequence.tenant] = next(self._turns)
        if len(self._served_at) > 2 * len(self._queues) + MOST_REMEMBERED:
            del self._served_at[next(iter(self._served_at))]


MOST_REMEMBERED = 1000  # tenants that have nobody waiting


def _place(sequence: Sequence) -> tuple[int, int]:
    return sequence.priority, sequence.id
