"""Hooks for runs that are tracked: what a tracking manager is told, hooks are told as well."""

from __future__ import annotations

from collections.abc import Awaitable

from taskiq_flow.events import Event
from taskiq_flow.listeners.hooks import HookManager
from taskiq_flow.listeners.tracking import PipelineTrackingManager


class TrackingEventBroadcaster:
    """Calls the hooks of ``hooks`` for the runs that ``tracking`` is a listener of.

    It does so for runs that begin from then on, until ``close()``. ``hooks`` may be a listener of
    the same runs, and may be told by several managers: it tells each event once. Raises
    ``TypeError``.

    >>> class Log:
    ...     def on_step_complete(self, event):
    ...         print(event.pipeline_id, event.step_name, event.result)
    >>> tracking, hooks = PipelineTrackingManager(), HookManager().add_hook(Log())
    >>> broadcaster = TrackingEventBroadcaster(tracking, hooks)
    >>> pipeline = Pipeline(InMemoryBroker(), pipeline_id="nightly").with_tracking(tracking)
    >>> async def main():
    ...     return await (await pipeline.call_next(abs).kiq(-7))
    >>> asyncio.run(main())
    nightly abs 7
    7
    """

    def __init__(self, tracking: PipelineTrackingManager, hooks: HookManager) -> None:
        if not isinstance(tracking, PipelineTrackingManager):
            raise TypeError(f"tracking is {tracking!r}; give a PipelineTrackingManager")
        if not isinstance(hooks, HookManager):
            raise TypeError(f"hooks is {hooks!r}; give a HookManager")
        self._tracking = tracking
        self._hooks = hooks
        tracking.relays = (*tracking.relays, self)

    def on_event(self, event: Event) -> Awaitable[None] | None:
        """Call the hooks for an event that the tracking manager was told."""
        return self._hooks.take(event, self)

    def close(self) -> None:
        """Call them no more."""
        self._tracking.relays = tuple(each for each in self._tracking.relays if each is not self)
