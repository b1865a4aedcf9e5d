"""What is known of a model's loads, and how that looks from outside."""

from __future__ import annotations

from dataclasses import dataclass

from ocak.core.residence import Priority
from ocak.core.status import EngineStats, LoadStatus, MemoryStatus, ModelInfo, ModelStatus
from ocak.fleet.connection import Connection
from ocak.fleet.spec import ModelSpec
from ocak.fleet.stage import Stage
from ocak.memory.needs import Needs


@dataclass(slots=True)
class LoadRecord:
    """`info` is there from a load until the worker has gone; `ready_at` is of the monotonic clock."""

    spec: ModelSpec
    needs: Needs | None = None  # as last measured
    info: ModelInfo | None = None
    loads: int = 0
    restarts: int = 0
    progress: float = 0.0  # of the load under way
    ready_at: float = 0.0
    loaded_at: float | None = None  # Unix seconds

    def status(
        self, stage: Stage, connection: Connection | None, priority: Priority, expires_at: float | None
    ) -> ModelStatus:
        """How the model looks from outside."""
        info = self.info if stage.state in ("ready", "draining") else None
        is_mute = stage.state == "ready" and not (connection is not None and connection.pulse.is_alive)
        return ModelStatus(
            key=self.spec.key,
            provider="llama",
            kind=info.kind if info else "text",
            state="unresponsive" if is_mute else stage.state,
            error=stage.error,
            loaded_at=self.loaded_at if info else None,
            memory=MemoryStatus(
                estimated=self.needs.total_bytes if self.needs else self.spec.estimated_bytes,
                reserved=info.weights_bytes + info.kv_bytes + info.draft_bytes if info else 0,
                resident=connection.rss_bytes if connection else 0,
            ),
            device=info.gpu or "cpu" if info else "cpu",
            priority=priority,
            expires_at=expires_at,
            is_expected=stage.is_expected,
            worker_pid=connection.pid if connection else None,
            restarts=self.restarts,
            load=LoadStatus(count=self.loads, progress=self.progress, last_seconds=info.load_s if info else None),
            engine=connection.stats if connection else EngineStats(),
            info=info,
        )
