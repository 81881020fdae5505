"""Saving results behind the begin of the tasks that wait for a place.

taskiq frees a task's place when its result is saved and its message acknowledged, and begins the
next one then. For as long, a few tenths of a millisecond, the place would be empty.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sized
from functools import partial
from typing import Any

from taskiq import TaskiqResult

from taskiq_flow.transport.deliveries import Deliveries, Delivery
from taskiq_flow.values.inspection import NEVER_CHANGE
from taskiq_flow.values.isolation import detached
from taskiq_flow.values.plain import is_plain
from taskiq_flow.values.size import is_large
from taskiq_flow.worker.execution import Execution

logger = logging.getLogger("taskiq_flow")

WORTH = 0.002
"""Seconds that a task has to have had its place. Shorter ones keep the worker busy, not its places,
and the further asyncio task that saves the result would only make them longer."""

MOST_TURNS = 32
"""Turns of the event loop in which the next tasks should have begun. taskiq takes a dozen of them
for the first one, and eight for each further one."""

BLOCKED = 0.01
"""Seconds after which the next task, as it began, has held the event loop, and the result with it.
With 2 ms, a machine on which much else runs has it so now and then."""

RARELY = 100
"""For so many times as long no result is saved later then. So those of tasks that hold the loop are
late for a hundredth of the time at most."""


class LaterSaves:
    """Saves the results of one worker process while the next tasks have the places already.

    ``deliveries``: the messages that the worker holds. ``executions``: those that go on, also while
    their results are saved. ``report``: saves a result. ``acknowledge``: acknowledges a task, as
    often as that takes.
    """

    def __init__(
        self,
        deliveries: Deliveries,
        executions: Sized,
        report: Callable[[Execution, TaskiqResult[Any]], Awaitable[None]],
        acknowledge: Callable[[str, Callable[[], Awaitable[None]]], Awaitable[None]],
    ) -> None:
        self._deliveries = deliveries
        self._executions = executions
        self._report = report
        self._acknowledge = acknowledge
        self._to_begin = 0  # tasks that are to begin in places of results that wait
        self._again_from = 0.0  # the time of the monotonic clock until which none is saved later

    def takes(self, execution: Execution, result: TaskiqResult[Any]) -> bool:
        """Whether a result is saved later, as a message waits for the place of its task.

        No more results wait than tasks run. Saved at once are errors, which have frames of their
        tasks, and large values, which would be in memory beside those of the next task; values of
        which no copy can be made that the next task cannot change; and the result of a message that
        was delivered before: the next task may kill the worker, and it would be delivered again.
        """
        delivery, now = execution.delivery, time.monotonic()
        waiting, value = len(self._deliveries.saving), result.return_value
        return (
            delivery is not None
            and delivery.number == 1
            and result.error is None
            and now - execution.came_at >= WORTH
            and now >= self._again_from
            and self._deliveries.waits()
            and 2 * waiting < len(self._executions)
            and execution.saving is None  # a middleware saves it as well
            and not execution.is_running  # the task saves a result itself
            and (type(value) in NEVER_CHANGE or is_plain(value))
            and not is_large(value)
        )

    def begun(self) -> None:
        """A task has begun."""
        self._to_begin = max(0, self._to_begin - 1)

    def save(
        self, execution: Execution, delivery: Delivery, result: TaskiqResult[Any]
    ) -> Coroutine[Any, Any, None]:
        """Let the next task begin, save the result as it is now, and acknowledge the message."""
        value = result.return_value
        if type(value) not in NEVER_CHANGE:
            result = result.model_copy(update={"return_value": detached(value)})
        return self._save(execution, delivery, result)

    async def _save(
        self, execution: Execution, delivery: Delivery, result: TaskiqResult[Any]
    ) -> None:
        began = time.monotonic()
        self._to_begin += 1
        for _ in range(MOST_TURNS):
            await asyncio.sleep(0)
            if not self._to_begin:
                break
        self._to_begin = 0
        if (took := (now := time.monotonic()) - began) > BLOCKED:
            self._again_from = now + RARELY * took
        if not execution.is_over:
            try:
                await self._report(execution, result)
            except Exception:  # as taskiq handles it; the engine asks for what is missing
                logger.exception("the result of %s was not saved", execution.task_id)
        if not execution.is_acknowledged:
            execution.is_acknowledged = True
            let_go = partial(self._deliveries.let_go, delivery)
            await self._acknowledge(execution.task_id, let_go)
