"""Reading results from a result backend, whichever it is and whether it answers or not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import anyio
from aiostream import stream
from aiostream.core import Stream, Streamer
from taskiq import AsyncResultBackend, TaskiqResult

from taskiq_flow.cleanup import was_cancelled
from taskiq_flow.errors import ServerUnreachableError
from taskiq_flow.reconnect import may_pass, text_of, warn_of_outage
from taskiq_flow.transport.systems import outages_of
from taskiq_flow.values.references import handle_of, refers
from taskiq_flow.values.results import arrived, failed
from taskiq_flow.values.wire import Wire

ASKED_AT_ONCE = 32
"""Questions to the result backend that are on their way at the same time."""

LONGEST_ANSWER = 10.0
"""Seconds that one question may take; its answer is missing then like that of a failing backend."""

BACKEND_PATIENCE = 60.0
"""Seconds of nothing but errors from the result backend before a task is given up."""

Answer = tuple[str, TaskiqResult[Any] | None]
"""A task's id, and its result if there is one."""


class ResultReader:
    """Asks a result backend for the results of tasks."""

    def __init__(self, backend: AsyncResultBackend[Any]) -> None:
        self._backend = backend
        self._is_outage = outages_of(backend)
        self._unreadable_since: dict[str, float] = {}

    def forget(self, task_id: str) -> None:
        """A task will not be asked for again."""
        self._unreadable_since.pop(task_id, None)

    def answers(self, task_ids: Iterable[str]) -> Streamer[Answer]:
        """Ask for several tasks; the answers come in any order."""
        asked: Stream[Answer] = stream.map(
            stream.iterate(list(task_ids)), self.ask, task_limit=ASKED_AT_ONCE, ordered=False
        )
        return asked.stream()

    def has_no_answer(self, task_id: str) -> bool:
        """Whether the backend raised when it was last asked for a task."""
        return task_id in self._unreadable_since

    async def ask(self, task_id: str, *_: str) -> Answer:
        """A task's result, if there is one by now. A failing backend is asked again for a while."""
        now = asyncio.get_running_loop().time()
        try:
            with anyio.fail_after(LONGEST_ANSWER):
                ready = await self._backend.is_result_ready(task_id)
                result = await self._backend.get_result(task_id) if ready else None
        except (Exception, asyncio.CancelledError) as error:
            if was_cancelled():
                raise
            since = self._unreadable_since.setdefault(task_id, now)
            if since == now:
                warn_of_outage("results cannot be read yet", error, BACKEND_PATIENCE)
            return task_id, self._given_up(error) if now - since > BACKEND_PATIENCE else None
        self.forget(task_id)
        return task_id, result

    def _given_up(self, error: BaseException) -> TaskiqResult[Any]:
        """The result of a task that cannot be asked for any longer."""
        if not may_pass(error, self._is_outage):
            return failed(error)
        away = ServerUnreachableError(
            f"the result cannot be read, as the server of {type(self._backend).__name__} has been "
            f"away for {BACKEND_PATIENCE:g} s: {text_of(error)}"
        )
        away.__cause__ = error
        return failed(away)


async def pick_up(
    backend: AsyncResultBackend[Any],
    limit: int | None,
    task_id: str,
    return_type: Any,
    wire: Wire | None,
) -> TaskiqResult[Any] | None:
    """The outcome of a task that another engine has sent, if it is in the result backend by now.

    A cancellation is no outcome: that engine cancelled the task when its part of the run was over.
    """
    _, result = await ResultReader(backend).ask(task_id)
    if result is None or isinstance(result.error, asyncio.CancelledError):
        return None
    if await refers(result, limit):
        result.return_value = handle_of(backend, task_id, return_type, wire)
        return result
    return await arrived(task_id, result, return_type, wire)
