"""Completions of any broker: one loop that asks the result backend for all tasks in flight."""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq import AsyncBroker

from taskiq_flow.cleanup import until_ended
from taskiq_flow.completion.protocol import Addressed, InFlight
from taskiq_flow.completion.reading import ResultReader
from taskiq_flow.generators.grant import Grant
from taskiq_flow.values.results import restored

SHORTEST_INTERVAL = 0.005
"""Seconds between two rounds while results keep coming."""

LONGEST_INTERVAL = 0.2
"""Seconds between two rounds when nothing has come for a while."""

CLOSING_GRACE = 5.0
"""Seconds that a question to the result backend may take to end after it was cancelled."""


class PollingCompletions:
    """The completions of one run, read from the broker's result backend."""

    tells_begin = False

    def __init__(self, broker: AsyncBroker) -> None:
        self._reader = ResultReader(broker.result_backend)
        self._expected: dict[str, tuple[InFlight, Any]] = {}  # id → in flight, return type
        self._interval = SHORTEST_INTERVAL
        self._poller: asyncio.Task[None] | None = None

    def expect(
        self,
        task_id: str,
        in_flight: InFlight,
        address: Addressed,
        *,
        limit: int | None,
        tell_begin: bool,
    ) -> None:
        """Watch for a task; its result is parsed as its annotation says, as taskiq does."""
        self._expected[task_id] = in_flight, address.return_type
        self._interval = SHORTEST_INTERVAL
        if self._poller is None:
            self._poller = asyncio.get_running_loop().create_task(self._poll())

    def grant(self, task_id: str, grant: Grant) -> None:
        """Never called: without a ``FlowMiddleware``, items are not taken one by one."""

    def forget(self, task_id: str) -> bool:
        """Stop watching for a task."""
        self._reader.forget(task_id)
        return self._expected.pop(task_id, None) is not None

    def revoke_task(self, task_id: str) -> None:
        """Stop asking for a task, which cannot be reached."""
        self.forget(task_id)

    def revoke(self) -> None:
        """Stop asking. The tasks themselves cannot be reached: they run on, and end unheard."""
        self._expected.clear()
        if self._poller is not None:
            self._poller.cancel()

    async def aclose(self, *, is_complete: bool) -> None:
        """Stop asking, and wait for the loop to end, for a bounded time."""
        self.revoke()
        if self._poller is not None:
            await until_ended([self._poller], CLOSING_GRACE)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            self._interval = min(self._interval * 1.5, LONGEST_INTERVAL)
            async with self._reader.answers(self._expected) as answers:
                async for task_id, result in answers:
                    if result is not None and task_id in self._expected:
                        self._interval = SHORTEST_INTERVAL
                        in_flight, return_type = self._expected[task_id]
                        self.forget(task_id)
                        in_flight.settle(task_id, restored(task_id, result, return_type, None))
