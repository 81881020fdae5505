"""A run from the moment it is asked for to its end, so that it can be cancelled at any time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from taskiq_flow.engine.listeners import Listeners
from taskiq_flow.engine.run import Run
from taskiq_flow.engine.run_state import Failures
from taskiq_flow.errors import RunCancelledError

Begin = Callable[[Listeners], Awaitable[Run]]
"""Begins a run, whose events these listeners take."""


class RunInProgress:
    """A run that ``cancel`` can stop. It is in ``runs`` until it has ended.

    ``on_end``: called when the run is over, with its error, and again if that is replaced.
    """

    def __init__(self, run_id: str, runs: set[RunInProgress]) -> None:
        self.run_id = run_id
        self.on_end: Callable[[BaseException | None], None] | None = None
        self._runs = runs
        self._loop = asyncio.get_running_loop()
        self._beginning = asyncio.timeout(None)
        self._has_begun = False
        self._is_cancelled = False
        self.listeners = Listeners(run_id)
        self._run: Run | None = None
        runs.add(self)

    async def begun(self, begin: Begin) -> Run:
        """Begin the run. Raises ``RunCancelledError`` if it is cancelled before it has begun."""
        if self._is_cancelled:
            raise self._never_began()
        self._has_begun = True
        try:
            async with self._beginning:
                self._run = run = await begin(self.listeners)
        except TimeoutError:
            if not self._is_cancelled:
                raise
            raise self._never_began() from None
        if self.on_end is not None:
            run.stream.when_over(self.on_end)
        if self._is_cancelled:
            run.cancel()
        return run

    def _never_began(self) -> RunCancelledError:
        return RunCancelledError(f"run {self.run_id!r} was cancelled before it began")

    def ended(self) -> None:
        """The run has ended, or its beginning has. May be called more than once."""
        self._runs.discard(self)

    def forget(self) -> None:
        """Nobody asks any more what the run has reached."""
        self._run = None

    def results_of_elements(self, whole: Collection[str]) -> dict[str, Any]:
        """What elements have given so far, but for lists that are ``whole``, by their names."""
        return {} if self._run is None else self._run.results_of_elements(whole)

    def reached(self) -> dict[str, Any]:
        """What the run has reached, as the ``results`` of an error have it."""
        return {} if self._run is None else self._run.reached()

    def read_ahead(self, count: int) -> None:
        """So many results were taken for a reader who has not asked for them yet."""
        if self._run is not None:
            self._run.read_ahead(count)

    @property
    def failures(self) -> Failures:
        """What has failed so far."""
        return Failures() if self._run is None else self._run.failures

    def cancel(self) -> None:
        """Stop the run. May be called in any thread."""
        try:
            is_here = asyncio.get_running_loop() is self._loop
        except RuntimeError:  # a thread without an event loop
            is_here = False
        if is_here:
            self._cancel()
        else:
            with contextlib.suppress(RuntimeError):  # that loop is closed, and the run has ended
                self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._run is not None:
            self._run.cancel()
        elif not self._is_cancelled and self in self._runs:
            self._is_cancelled = True
            if self._has_begun:
                self._beginning.reschedule(self._loop.time())
