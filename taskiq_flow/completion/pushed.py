"""Completions that are pushed from workers in other processes: one run's share of an inbox."""

from __future__ import annotations

import asyncio
import logging

from taskiq_flow.cleanup import until_ended
from taskiq_flow.completion.inbox import Inbox
from taskiq_flow.completion.protocol import Addressed, InFlight, claim_run_id
from taskiq_flow.completion.watch import OuterTask, Watch
from taskiq_flow.generators.grant import Grant
from taskiq_flow.reconnect import retry_through_outage, text_of
from taskiq_flow.transport.notice import ReplyTo
from taskiq_flow.values.arguments import StoredArguments

logger = logging.getLogger("taskiq_flow")

REVOKING_PATIENCE = 3.0
"""Seconds for which a server may be away while workers are to be told that a run is over."""

REVOKING_GRACE = 5.0
"""Seconds that a run waits, when it is closed, until workers have been told."""


class PushedCompletions:
    """The completions of one run.

    ``reply_to``: what its messages tell the workers. ``within``: the task that runs it, if one
    does. ``arguments``: what it has in the broker's store.
    """

    tells_begin = True

    def __init__(
        self,
        inbox: Inbox,
        reply_to: ReplyTo,
        *,
        lost_after: float,
        within: OuterTask | None = None,
        arguments: StoredArguments | None = None,
    ) -> None:
        claim_run_id(inbox.run_ids, reply_to.run_id)
        self._inbox = inbox
        self._reply_to = reply_to
        self._lost_after = lost_after
        self._within = within
        self._arguments = arguments
        self._expected: set[str] = set()
        self._is_revoked = False
        self._revoking: set[asyncio.Task[None]] = set()

    def expect(
        self,
        task_id: str,
        in_flight: InFlight,
        address: Addressed,
        *,
        limit: int | None,
        tell_begin: bool,
    ) -> None:
        """Watch for a task, sent to a queue of that name or to the broker's own."""
        watch = Watch(
            in_flight,
            self._expected,
            address.return_type if in_flight.grant is None else None,
            address.queue,
            lost_after=self._lost_after,
            limit=limit,
            within=self._within,
            arguments=self._arguments,
        )
        if in_flight.grant is not None:
            self._inbox.items.expect(task_id, in_flight, in_flight.grant)
        self._inbox.watch(task_id, watch)

    def grant(self, task_id: str, grant: Grant) -> None:
        """Let a generator make more items."""
        self._inbox.items.grant(task_id, grant)

    def forget(self, task_id: str) -> bool:
        """Stop watching for a task that could not be sent."""
        return self._inbox.forget(task_id)

    def revoke_task(self, task_id: str) -> None:
        """Have workers cancel one task, or skip it if they have not begun it."""
        self._inbox.forget(task_id)
        self._expected.discard(task_id)
        self._start_telling(self._reply_to.task(task_id), f"task {task_id!r}")

    def revoke(self) -> None:
        """Have workers cancel the run's tasks that they execute, and skip those in the queue."""
        if self._expected and not self._is_revoked:
            self._start_telling(self._reply_to.run, f"run {self._reply_to.run_id!r}")
        self._is_revoked = True
        for task_id in tuple(self._expected):
            self._inbox.forget(task_id)

    async def aclose(self, *, is_complete: bool) -> None:
        """Revoke, and wait for a bounded time until the workers were told."""
        self.revoke()
        await until_ended(self._revoking, REVOKING_GRACE)
        if self._arguments is not None:
            await self._arguments.aclose(is_complete=is_complete)
        self._inbox.run_ids.discard(self._reply_to.run_id)

    def _start_telling(self, what: str, name: str) -> None:
        telling = asyncio.get_running_loop().create_task(tell_workers(self._inbox, what, name))
        self._revoking.add(telling)
        telling.add_done_callback(self._revoking.discard)


async def tell_workers(inbox: Inbox, what: str, name: str) -> None:
    """Tell every worker that a run or a task is over. ``what``: its id; ``name``: for the log.

    If they cannot be told within ``REVOKING_PATIENCE``, that is logged.
    """
    if inbox.is_closed:
        logger.warning("the broker was shut down before its %s had ended", name)
        return
    notifier = inbox.notifier
    try:
        await retry_through_outage(
            lambda: notifier.revoke(what),
            notifier.is_outage,
            "runs cannot be revoked",
            REVOKING_PATIENCE,
        )
    except Exception as error:  # whatever the client raises
        logger.warning(
            "workers were not told that %s is over, and execute what is left of it: %s",
            name,
            text_of(error),
        )
