"""Completions that are pushed from workers in other processes: one run's share of an inbox."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from taskiq_flow.completion.inbox import Inbox, Watch
from taskiq_flow.completion.protocol import Observer
from taskiq_flow.errors import ConfigurationError
from taskiq_flow.outages import ride_out
from taskiq_flow.waiting import until_ended

logger = logging.getLogger("taskiq_flow")

REVOKING_PATIENCE = 3.0
"""Seconds for which a server may be away while workers are to be told that a run is over."""

REVOKING_GRACE = 5.0
"""Seconds that a run waits, when it is closed, until workers have been told."""


class PushedCompletions:
    """The completions of one run."""

    def __init__(
        self,
        inbox: Inbox,
        observer: Observer[Any],
        run_id: str,
        *,
        lost_after: float,
        limit: int | None,
    ) -> None:
        if run_id in inbox.run_ids:
            raise ConfigurationError(
                f"run id {run_id!r} is in use on this broker; give each run an id of its own"
            )
        inbox.run_ids.add(run_id)
        self._inbox = inbox
        self._observer = observer
        self._run_id = run_id
        self._lost_after = lost_after
        self._limit = limit
        self._expected: set[str] = set()
        self._revoking: asyncio.Task[None] | None = None

    def expect(self, task_id: str, node: Any, return_type: Any, queue: str | None) -> None:
        """Watch for a task, sent to a queue of that name or to the broker's own."""
        watch = Watch(
            node,
            self._observer,
            self._expected,
            return_type,
            queue,
            lost_after=self._lost_after,
            limit=self._limit,
        )
        self._inbox.watch(task_id, watch)

    def forget(self, task_id: str) -> bool:
        """Stop watching for a task that could not be sent."""
        return self._inbox.forget(task_id)

    def revoke(self) -> None:
        """Have workers cancel what they run of the run, and pass over what is queued."""
        if self._expected and self._revoking is None:
            self._revoking = asyncio.get_running_loop().create_task(self._tell_workers())
        for task_id in tuple(self._expected):
            self._inbox.forget(task_id)

    async def aclose(self) -> None:
        """Revoke, and wait until that is told, for a bounded time."""
        self.revoke()
        if self._revoking is not None:
            await until_ended([self._revoking], REVOKING_GRACE)
        self._inbox.run_ids.discard(self._run_id)

    async def _tell_workers(self) -> None:
        notifier = self._inbox.notifier
        if self._inbox.is_closed:
            logger.warning("the broker was shut down before its run %r had ended", self._run_id)
            return
        try:
            await ride_out(
                lambda: notifier.revoke(self._inbox.reply_to(self._run_id).run),
                notifier.outages,
                f"run {self._run_id!r} cannot be revoked",
                REVOKING_PATIENCE,
            )
        except Exception as error:  # whatever the client raises: the run is over all the same
            logger.warning(
                "workers were not told that run %r is over, and execute what is left of it: %r",
                self._run_id,
                error,
            )
