"""The threads in which an ``InMemoryBroker`` calls sync functions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from taskiq_flow.giving_way import give_way
from taskiq_flow.processes.in_process import when_begun

logger = logging.getLogger("taskiq_flow")

STALLED_AFTER = 5.0
"""Seconds after which a warning says that no thread of the broker becomes free."""


class Threads(Executor):
    """The broker's threads for sync functions, which tell when they begin."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._waiting: set[object] = set()  # functions that no thread has begun with
        self._changed_at = time.monotonic()
        self._has_warned = False

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a thread call the function. ``run_in_executor`` calls this."""
        tell, ticket = when_begun.get(), object()

        def call() -> Any:
            self._begin(ticket)
            if tell is not None:
                tell()
            return function(*args, **kwargs)

        if not self._waiting:
            self._has_changed()
        self._waiting.add(ticket)
        future = self._executor.submit(call)
        future.add_done_callback(lambda _: self._begin(ticket))  # or it was cancelled before
        give_way(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as of its base
        """Shut the threads down."""
        self._executor.shutdown(wait=wait, cancel_futures=cancel_futures)

    def warn_if_stalled(self) -> None:
        """Say once that functions wait for a thread, if none has become free for a while."""
        stalled = self._waiting and time.monotonic() - self._changed_at > STALLED_AFTER
        if stalled and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%d sync tasks wait for a thread of their InMemoryBroker, and none has become free "
                "for %g s: its tasks take long, or they wait for other tasks of this broker, which "
                "cannot begin then; give it more threads by sync_tasks_pool_size=",
                len(self._waiting),
                STALLED_AFTER,
            )

    def _begin(self, ticket: object) -> None:
        self._waiting.discard(ticket)
        self._has_changed()

    def _has_changed(self) -> None:
        self._changed_at = time.monotonic()
        self._has_warned = False
