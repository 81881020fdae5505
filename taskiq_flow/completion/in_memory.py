"""Completions of an ``InMemoryBroker``. A task's result is passed on when the task ends.

Its middleware tells when that is (``in_memory_hooks.py``). A slow sweep finds the tasks of whose
end the middleware was never told.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import current_task
from collections.abc import Callable
from typing import Any

from taskiq import InMemoryBroker

from taskiq_flow.cleanup import until_ended
from taskiq_flow.completion.in_memory_hooks import Execution, InMemoryHooks
from taskiq_flow.completion.protocol import Addressed, InFlight, claim_run_id
from taskiq_flow.errors import TaskLostError
from taskiq_flow.generators.grant import Grant
from taskiq_flow.generators.here import SinkHere
from taskiq_flow.processes.name import process_name
from taskiq_flow.values.isolation import Isolation, Take, detaching
from taskiq_flow.values.results import failed

logger = logging.getLogger("taskiq_flow")

SWEEP_INTERVAL = 1.0
"""Seconds between two checks of the tasks in flight."""

CANCEL_GRACE = 5.0
"""Seconds that cancelled tasks have to end before the run stops waiting for them."""


class InMemoryCompletions:
    """The completions of one run on an ``InMemoryBroker``.

    ``isolation``: makes what takes the items of one generator.
    """

    tells_begin = True

    def __init__(
        self,
        broker: InMemoryBroker,
        run_id: str,
        isolation: Callable[[], Take] = Isolation,
    ) -> None:
        self._hooks = hooks = InMemoryHooks.of(broker)
        self.broker = broker
        claim_run_id(hooks.run_ids, run_id)
        # A subclass's own ``kick`` may delay a task for any time.
        self._begins_at_once = type(broker).kick is InMemoryBroker.kick
        self._run_id = run_id
        self._isolation = isolation
        self._executions = hooks.executions
        self.here = process_name()
        self.expected: dict[str, Execution] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._arm()

    def expect(
        self,
        task_id: str,
        in_flight: InFlight,
        address: Addressed,
        *,
        limit: int | None,
        tell_begin: bool,
    ) -> None:
        """Watch for a task. Its result is taken as it is, whatever it is annotated with."""
        execution = Execution(
            task_id,
            in_flight,
            self,
            tells_begin=tell_begin,
            begins_at_once=tell_begin and address.is_async,
        )
        execution.limit = limit
        if (grant := in_flight.grant) is not None:
            execution.sink = SinkHere(task_id, in_flight, grant, detaching(self._isolation()))
        self._executions[task_id] = self.expected[task_id] = execution

    def grant(self, task_id: str, grant: Grant) -> None:
        """Let a generator make more items."""
        execution = self.expected.get(task_id)
        if execution is not None and execution.sink is not None:
            execution.sink.grant_more(grant)

    def forget(self, task_id: str) -> bool:
        """Stop watching for a task whose sending has failed. It is cancelled if it runs anyway.

        Returns whether it was neither settled nor revoked.
        """
        execution = self.expected.get(task_id)
        if execution is None or execution.revoked:
            return False
        if execution.worker is current_task():  # a broker that runs tasks in place
            self.drop(task_id)
        else:
            execution.revoke()
        return True

    def drop(self, task_id: str) -> None:
        """Stop watching for a task, which has ended or is not waited for any more."""
        execution = self.expected.pop(task_id, None)
        if execution is not None:
            del self._executions[task_id]
            if execution.call is not None:
                execution.call.forget()

    def revoke_task(self, task_id: str) -> None:
        """Cancel a task that runs, or have it end as it begins; it is forgotten when it has."""
        execution = self.expected.get(task_id)
        if execution is not None:
            execution.revoke()

    def revoke(self) -> None:
        """Cancel the tasks that run, and have those that were only sent end as they begin."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for execution in self.expected.values():
            execution.revoke()

    async def aclose(self, *, is_complete: bool) -> None:
        """Revoke, and wait for the cancelled tasks to end, for a bounded time."""
        self.revoke()
        if self.expected:
            await asyncio.sleep(0)  # what was sent has begun by then, and ended as it was revoked
            workers = [e.worker for e in self.expected.values() if e.worker is not None]
            await until_ended(workers, CANCEL_GRACE)
            for task_id in list(self.expected):
                self.drop(task_id)
        self._hooks.forget_saved()
        self._hooks.run_ids.discard(self._run_id)

    def _arm(self) -> None:
        self._sweep_timer = asyncio.get_running_loop().call_later(SWEEP_INTERVAL, self._sweep)

    def _sweep(self) -> None:
        """Settle tasks that ended or vanished unnoticed, as when a middleware raised."""
        self._arm()
        if self._hooks.threads is not None:
            self._hooks.threads.warn_if_stalled()
        for task_id, execution in list(self.expected.items()):
            if execution.revoked:
                if execution.worker is not None and execution.worker.done():
                    self.drop(task_id)
                continue
            error = self._what_became_of(task_id, execution)
            if error is not None:
                self.drop(task_id)
                execution.in_flight.settle(task_id, failed(error))

    def _what_became_of(self, task_id: str, execution: Execution) -> BaseException | None:
        """The error of a task that has vanished; ``None`` if it is alive."""
        worker = execution.worker
        if worker is not None and not worker.done():
            return None
        error = _ended_with(worker, task_id)
        if worker is not None and worker not in execution.superseded:
            return error or TaskLostError(
                f"task {task_id!r} ended without a result; a middleware of the broker swallowed it"
            )
        return self._unless_it_begins(task_id, execution, error)

    def _unless_it_begins(
        self, task_id: str, execution: Execution, error: BaseException | None
    ) -> BaseException | None:
        """The error of a task that was sent and will not begin; ``None`` if it may."""
        waits_for_others = execution.scheduled and error is None
        being_sent = execution.in_flight.is_being_sent
        if waits_for_others or being_sent or not self._begins_at_once:
            return None
        execution.sweeps += 1
        if execution.sweeps == 1:  # from one sweep to the next, the loop begins what it can
            return None
        return error or TaskLostError(
            f"task {task_id!r} was taken by the broker and never began: its message could not be "
            "read back, or it was cancelled first; see the log of 'taskiq'"
        )


def _ended_with(worker: asyncio.Task[Any] | None, task_id: str) -> BaseException | None:
    """What an attempt's asyncio task raised, if there was one and it did."""
    if worker is None:
        return None
    if worker.cancelled():
        return asyncio.CancelledError(f"task {task_id!r} was cancelled on its worker")
    return worker.exception()
