"""A listener that stores how far runs are, and answers questions about them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Self, get_args

from taskiq import AsyncBroker

from taskiq_flow.errors import ConfigurationError, describe
from taskiq_flow.events import Event, Listener, RunFinished
from taskiq_flow.listeners.hook_events import HookEvent
from taskiq_flow.listeners.hooks import HookManager
from taskiq_flow.listeners.tracking_storage import (
    InMemoryPipelineStorage,
    RedisPipelineStorage,
    TrackingStorage,
)
from taskiq_flow.middleware import prefix_of
from taskiq_flow.suggestions import suggests_keywords
from taskiq_flow.transport.systems import system_of
from taskiq_flow.views.pipeline_status import (
    PipelineState,
    PipelineStatus,
    TrackingMetrics,
    status_of,
)
from taskiq_flow.views.run_view import RunView

logger = logging.getLogger("taskiq_flow")

SHORTEST_PAUSE = 0.1
"""Seconds between two times at which the status of a run in progress is saved."""

_SHARE = 20
"""A pause is at least so many times as long as saving took."""


_TOLD = {
    "pipeline_start": ("pipeline_id",),
    "step_start": ("pipeline_id", "step_name"),
    "step_complete": ("pipeline_id", "step_name", "result"),
    "pipeline_complete": ("pipeline_id", "status"),
    "pipeline_error": ("pipeline_id", "error"),
}
"""By type of event, what listeners that are objects are told of it."""


@suggests_keywords()
class PipelineTrackingManager:
    """Stores the status of the runs of the engines that it is a listener of.

    A status is saved soon after each change, and when the run has ended. A storage that fails is
    logged, and never fails a run. Questions are answered from the storage, so that any process
    gets the same answers. They raise what the storage raises.

    ``storage``: otherwise statuses are stored in memory. ``max_history``: runs that are looked at
    for ``get_history`` and ``get_metrics``, the newest ones. ``auto_cleanup``: whether older ones
    that have ended are removed from the storage, now and then.

    >>> tracking = PipelineTrackingManager()
    >>> dag = DAGBuilder().node(abs, inputs=["number"]).build()
    >>> engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[tracking])
    >>> async def main():
    ...     await engine.execute({"number": -7}, run_id="nightly")
    ...     status = await tracking.get_status("nightly")
    ...     print(status.status, status.steps[0].step_name, status.steps[0].result["text"])
    >>> asyncio.run(main())
    COMPLETED abs 7
    """

    def __init__(
        self,
        storage: TrackingStorage | None = None,
        max_history: int = 1000,
        auto_cleanup: bool = True,
    ) -> None:
        if max_history < 1:
            raise ConfigurationError(
                f"PipelineTrackingManager() was given max_history={max_history}; it is 1 or more"
            )
        self._storage = InMemoryPipelineStorage(max_history) if storage is None else storage
        self._max_history = max_history
        self._auto_cleanup = auto_cleanup
        self.relays: tuple[Listener, ...] = ()  # are told each event as well
        self._hooks = HookManager()
        self._runs: dict[str, _Run] = {}
        self._ended = 0

    def with_storage(self, storage: TrackingStorage) -> Self:
        """Store statuses there from now on."""
        self._storage = storage
        return self

    def with_auto_storage(self, broker: AsyncBroker) -> Self:
        """Store statuses on the server of a broker over Redis; otherwise in memory.

        Their keys begin with ``{prefix}:tracking:``, by the ``prefix`` of the broker's
        ``FlowMiddleware``, which the broker has to have by then.
        """
        client_of = getattr(system_of(broker), "client_of", None)
        if client_of is None:
            return self.with_storage(InMemoryPipelineStorage(self._max_history))
        key_prefix = f"{prefix_of(broker)}:tracking:"
        return self.with_storage(RedisPipelineStorage(client_of(broker), key_prefix))

    def add_listener(self, listener: object) -> Self:
        """Tell an object of runs, by those of these methods that it has, sync or async.

        ``on_pipeline_start(id)``, ``on_step_start(id, name)``,
        ``on_step_complete(id, name, result)``, ``on_pipeline_complete(id, status)`` and
        ``on_pipeline_error(id, error)``. One that raises is logged, and called further. Raises
        ``ConfigurationError`` if there is none of them.
        """
        methods = [f"on_{kind}" for kind in _TOLD]
        if not any(callable(getattr(listener, method, None)) for method in methods):
            raise ConfigurationError(
                f"listener {listener!r} has no method that is called; give it one of "
                f"{', '.join(methods)}"
            )
        self._hooks.add_hook(_Told(listener))
        return self

    async def get_status(self, pipeline_id: str) -> PipelineStatus | None:
        """How far a run is, or how it has ended; ``None`` for one that is not stored."""
        return await self._storage.get_status(pipeline_id)

    async def list_pipelines(
        self, status_filter: PipelineState | None = None, limit: int = 100
    ) -> list[PipelineStatus]:
        """The runs that are stored, with this status if one is given; the newest first.

        Raises ``ConfigurationError`` for a status that no run has.
        """
        if status_filter is not None and status_filter not in get_args(PipelineState):
            raise ConfigurationError(
                f"no pipeline has the status {status_filter!r}; it is one of "
                f"{', '.join(get_args(PipelineState))}"
            )
        return await self._storage.list_pipelines(status_filter, limit)

    async def get_history(
        self, since: datetime | None = None, until: datetime | None = None, limit: int = 100
    ) -> list[PipelineStatus]:
        """The runs that have ended, of those that started in this time; the newest first.

        Times without a zone are local ones, as everywhere in Python.
        """
        return (await self._history(since, until))[:limit]

    async def delete_pipeline(self, pipeline_id: str) -> bool:
        """Remove a run from the storage. Returns whether it was there.

        One that is in progress comes back with its next change.
        """
        return await self._storage.delete_pipeline(pipeline_id)

    async def cleanup_older_than(self, days: float = 30) -> int:
        """Remove the runs that started so many days ago. Returns how many there were."""
        return await self._storage.cleanup_older_than(days)

    async def get_metrics(self, days: float = 7) -> TrackingMetrics:
        """Figures of the runs that have started in so many days, and have ended."""
        return TrackingMetrics.of(await self._history(datetime.now(UTC) - timedelta(days), None))

    def on_event(self, event: Event) -> Awaitable[None] | None:
        """Apply an event to the view of its run, whose status is saved a little later."""
        run = self._runs.get(event.run_id)
        if run is None:
            run = self._runs[event.run_id] = _Run()
        run.view.apply(event)
        run.is_changed = True
        if run.saving is None or run.saving.done():
            run.saving = asyncio.create_task(self._save_changes(run))
        telling = self._tell(event)
        if isinstance(event, RunFinished):
            del self._runs[event.run_id]
            return self._finish(run, run.saving, telling)
        return telling

    def _tell(self, event: Event) -> Awaitable[None] | None:
        answers = [each.on_event(event) for each in (self._hooks, *self.relays)]
        awaited = [answer for answer in answers if answer is not None]
        return _all(awaited) if awaited else None

    async def _history(
        self, since: datetime | None, until: datetime | None
    ) -> list[PipelineStatus]:
        first = datetime.min.replace(tzinfo=UTC) if since is None else since.astimezone(UTC)
        last = datetime.max.replace(tzinfo=UTC) if until is None else until.astimezone(UTC)
        statuses = await self._storage.list_pipelines(None, self._max_history)
        return [
            status
            for status in statuses
            if status.is_finished() and first <= (status.started_at or first) <= last
        ]

    async def _save_changes(self, run: _Run) -> None:
        """Save the status of a run until it is the present one, with pauses in between."""
        while run.is_changed:
            run.is_changed = False
            began = time.perf_counter()
            await self._save(run)
            pause = max(SHORTEST_PAUSE, (time.perf_counter() - began) * _SHARE)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(run.has_ended.wait(), pause)

    async def _save(self, run: _Run) -> None:
        try:
            await self._storage.save_status(status_of(run.view))
            run.has_failed = False
        except Exception as error:  # whatever a storage raises
            if not run.has_failed:
                logger.warning(
                    "the status of run %s was not saved: %s", run.view.run_id, describe(error)
                )
            run.has_failed = True

    async def _finish(
        self, run: _Run, saving: asyncio.Task[None], telling: Awaitable[None] | None
    ) -> None:
        """Save how a run has ended."""
        run.has_ended.set()
        await asyncio.gather(saving, *(() if telling is None else (telling,)))
        self._ended += 1
        if self._auto_cleanup and self._ended % max(1, self._max_history // 10) == 0:
            await self._remove_oldest()

    async def _remove_oldest(self) -> None:
        try:
            statuses = await self._storage.list_pipelines(None, 2 * self._max_history)
            for status in statuses[self._max_history :]:
                if status.is_finished():
                    await self._storage.delete_pipeline(status.pipeline_id)
        except Exception as error:  # whatever a storage raises
            logger.warning("old statuses of runs were not removed: %s", describe(error))


@dataclass(slots=True, eq=False)
class _Run:
    """A run in progress. ``saving``: the asyncio task that saves its changes.

    ``is_changed``: since it was saved last. ``has_failed``: whether that was not possible.
    """

    view: RunView = field(default_factory=RunView)
    is_changed: bool = False
    has_failed: bool = False
    has_ended: asyncio.Event = field(default_factory=asyncio.Event)
    saving: asyncio.Task[None] | None = None


async def _all(answers: list[Awaitable[None]]) -> None:
    await asyncio.gather(*answers)


class _Told:
    """A hook that passes on to a listener what it has methods for."""

    def __init__(self, listener: object) -> None:
        self._listener = listener
        for kind, names in _TOLD.items():
            if (method := getattr(listener, f"on_{kind}", None)) is not None:
                setattr(self, f"on_{kind}", partial(_tell, method, names))

    def __repr__(self) -> str:
        return repr(self._listener)


def _tell(method: Callable[..., object], names: Sequence[str], event: HookEvent) -> object:
    return method(*(getattr(event, name) for name in names))
