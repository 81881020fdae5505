"""A run that its user holds: awaited, read, watched and cancelled by itself.

The run has an asyncio task of its own, which reads its stream. That task and all that it refers to
have no reference to the handle, so that the garbage collector tells when nobody holds the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator
from contextlib import aclosing
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from taskiq import AsyncResultBackend, AsyncTaskiqTask, TaskiqResult, TaskiqResultTimeoutError

from taskiq_flow.cleanup import to_the_end
from taskiq_flow.engine.listeners import EventReader
from taskiq_flow.engine.run_in_progress import RunInProgress
from taskiq_flow.engine.run_state import Failures
from taskiq_flow.errors import RunCancelledError, RunError, TaskiqFlowError, describe
from taskiq_flow.events import Event, Item

T = TypeVar("T")

Pair = tuple[str, Any]

Status = Literal["running", "completed", "failed", "cancelled"]

StoreResult = Callable[[dict[str, Any], str, Any], None]
"""Stores what a node gives, by its output keys."""

READ_AHEAD = 16
"""Pairs of a graph with generators, or over an input without a length, that are taken before its
reader asks for them. Of such an input they count as unread: it is read no further for them."""

logger = logging.getLogger("taskiq_flow")

_running: dict[asyncio.AbstractEventLoop, set[asyncio.Task[None]]] = {}
"""The tasks of all runs. An event loop refers to its tasks weakly, and nobody may hold the run."""


class RunHandle(AsyncTaskiqTask[dict[str, Any]]):
    """A run in progress, as ``engine.start`` returns it. It behaves as a task of taskiq.

    ``await run`` gives what ``engine.execute`` returns, or raises what that raises; any number of
    tasks may await it, also again. ``async for name, result in run`` gives each pair once, to one
    reader at a time; another loop goes on where the one before it has stopped. Neither a waiter
    nor a reader stops the run by being cancelled or by leaving: ``cancel`` does, ``engine.cancel``,
    and ``async with engine.start(...) as run:``, which cancels the run on leaving and waits until
    nothing of it is left.

    A run that nobody holds any more goes on to its end, and its results are dropped. If it fails,
    the log has one line. If it maps over an input without a length, it is cancelled instead.

    With ``items=`` such an input is read only as far as the pairs are read, unless somebody awaits
    the run. Where it is awaited and nobody reads it, the pairs of its elements are dropped. A node
    that is a generator waits for a reader that lags. It does not wait where nobody reads.

    >>> dag = DAGBuilder().node(str.split, name="words", inputs=["text"]).build()
    >>> async def main():
    ...     run = ExecutionEngine(InMemoryBroker(), dag).start({"text": "ebb and flow"})
    ...     async for name, result in run:
    ...         print(name, result)
    ...     return run.status, await run
    >>> asyncio.run(main())
    words ['ebb', 'and', 'flow']
    ('completed', {'words': ['ebb', 'and', 'flow']})
    """

    def __init__(self, run_id: str, progress: Progress, pairs: AsyncGenerator[Pair, None]) -> None:
        self._progress = progress
        progress.start(pairs)
        super().__init__(run_id, progress)
        weakref.finalize(self, progress.call, progress.drop).atexit = False

    @property
    def run_id(self) -> str:
        """The run's id, which is its ``task_id`` as well."""
        return self.task_id

    @property
    def status(self) -> Status:
        """Whether the run is in progress, or how it has ended."""
        return self._progress.status

    @property
    def results(self) -> dict[str, Any]:
        """The output keys that have their values so far, and elements of lists to come.

        The elements are named as in ``"read[0]"``. A run that has completed has none; one that has
        ended early has those of lists that are not whole. With ``items="only"``, a run in progress
        has the elements of lists that a node takes whole, one that has ended early has those lists
        if they were whole, or else their elements, and one that has completed has none of them.
        """
        return self._progress.results_so_far()

    @property
    def failures(self) -> dict[str, BaseException]:
        """What nodes have failed with so far, by their names; of elements, the first 1,000."""
        return dict(self._progress.failures.errors)

    @property
    def failure_count(self) -> int:
        """How many nodes and elements have failed so far."""
        return self._progress.failures.count

    @property
    def skipped(self) -> list[str]:
        """The names of nodes that do not run because of a failure, so far."""
        return list(self._progress.failures.skipped)

    def cancel(self) -> None:
        """Stop this run. Its readers get ``RunCancelledError``. May be called in any thread."""
        self._progress.cancel()

    def events(self) -> AsyncIterator[Event]:
        """The run's events from now on. Called right after ``start``, it has all of them.

        Neither the run nor its end waits for whoever reads them. The newest 10,000 are held.
        """
        return self._progress.event_reader(held=self)

    async def wait_result(
        self,
        check_interval: float = 0.2,
        timeout: float = -1.0,
        with_logs: bool = False,
    ) -> TaskiqResult[dict[str, Any]]:
        """Wait for the result, ``timeout`` seconds at the most if that is above zero.

        What the run raises is the result's ``error``, as with any task of taskiq. The result is
        pushed, so ``check_interval`` has no effect. Raises ``TaskiqResultTimeoutError``; the run
        goes on then.
        """
        await self._progress.wait(timeout if timeout > 0 else None)
        if not self._progress.outcome.done():
            raise TaskiqResultTimeoutError(timeout=timeout)
        return await self.get_result(with_logs=with_logs)

    def __await__(self) -> Generator[Any, None, dict[str, Any]]:
        return self._results().__await__()

    async def _results(self) -> dict[str, Any]:
        result = await self.wait_result()
        if result.error is not None:
            raise result.error
        return self.results

    def __aiter__(self) -> AsyncIterator[Pair]:
        return _PairReader(self._progress, held=self)

    def __or__(self, operator: Callable[[AsyncIterable[Pair]], T]) -> T:
        """Pass the pairs to an operator of ``aiostream.pipe``."""
        return operator(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.status == "running":  # else its failure is still news
            self.cancel()
        await to_the_end(self._progress.wait(None))

    def __repr__(self) -> str:
        count = len(self._progress.results)
        return (
            f"<{type(self).__name__} {self.run_id!r}, {self.status}, "
            f"{count} {'result' if count == 1 else 'results'}>"
        )


class _PairReader:
    """An async iterator of a run's pairs. ``held``: what is alive as long as the reader is."""

    def __init__(self, progress: Progress, held: object) -> None:
        self._progress = progress
        self._held = held

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Pair:
        return await self._progress.next_pair(self)

    async def aclose(self) -> None:
        """Let another reader read on."""
        self._progress.leave(self)


class Progress(AsyncResultBackend[dict[str, Any]]):
    """What is known of a run, for its handle. It has no reference to the handle.

    ``is_finite``: whether all inputs that are mapped over have a length. ``yields_items``: whether
    elements are read one by one; ``has_generators``: whether nodes give their items in this way.
    ``outcome``: how the run has ended.
    """

    def __init__(
        self,
        in_progress: RunInProgress,
        store: StoreResult,
        *,
        is_finite: bool,
        yields_items: bool,
        has_generators: bool,
    ) -> None:
        self._in_progress = in_progress
        self._store = store
        self._is_finite = is_finite
        self._waits_for_reader = yields_items and not is_finite
        self._waits_while_read = yields_items and has_generators
        self._loop = asyncio.get_running_loop()
        self._begun_at = self._loop.time()
        self._unread: deque[Pair] = deque()
        self._reader: weakref.ref[_PairReader] | None = None
        self._late: weakref.ref[_PairReader] | None = None
        self._news: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._waiters = 0
        self._is_over = False
        self._is_dropped = False
        self._is_error_seen = False
        self._failures = Failures()
        self._reached: dict[str, Any] = {}
        self.results: dict[str, Any] = {}
        self.outcome: asyncio.Future[TaskiqResult[dict[str, Any]]] = self._loop.create_future()
        in_progress.on_end = self._stream_ended

    # For the handle

    def start(self, pairs: AsyncGenerator[Pair, None]) -> None:
        """Read the run's stream in an asyncio task, which begins the run."""
        for loop in [loop for loop in _running if loop.is_closed()]:
            del _running[loop]
        task = self._loop.create_task(self._read(pairs))
        _running.setdefault(self._loop, set()).add(task)
        task.add_done_callback(self._ended)

    @property
    def status(self) -> Status:
        """Whether the run is in progress, or how it has ended."""
        if not self.outcome.done():
            return "cancelled" if self._loop.is_closed() else "running"
        error = self.outcome.result().error
        if error is None:
            return "completed"
        return "cancelled" if isinstance(error, RunCancelledError) else "failed"

    def results_so_far(self) -> dict[str, Any]:
        """The results, with those of elements while the run goes on."""
        results = self.results
        if self.outcome.done():
            return dict(results)
        return {**results, **self._in_progress.results_of_elements(results)}

    @property
    def failures(self) -> Failures:
        """What has failed so far; at the end, what the run's error has."""
        return self._failures if self.outcome.done() else self._in_progress.failures

    def cancel(self) -> None:
        """Stop the run. Whoever does so wants no news of how it had failed."""
        self._is_error_seen = True
        self._in_progress.cancel()

    def event_reader(self, held: object) -> EventReader:
        """A reader of the events from now on. It is referred to weakly."""
        if not self.outcome.done():
            self._check_loop()
        return self._in_progress.listeners.reader(held)

    async def wait(self, seconds: float | None) -> None:
        """Wait for the run's end, for some seconds at the most."""
        if self.outcome.done():
            return
        self._check_loop()
        self._waiters += 1
        self._has_read()
        try:
            await asyncio.wait([self.outcome], timeout=seconds)
        finally:
            self._waiters -= 1
            self._has_read()

    async def next_pair(self, reader: _PairReader) -> Pair:
        """The next pair. After the last one, raises what ended the run if that is an error."""
        self._check_reader(reader)
        while not self._unread:
            if self.outcome.done():
                self.leave(reader)
                result = await self.get_result("")
                raise StopAsyncIteration if result.error is None else result.error
            self._check_loop()
            if self._news is not None:
                raise RuntimeError(f"run {self._in_progress.run_id!r} is read by two tasks at once")
            self._news = self._loop.create_future()
            try:
                await self._news
            except BaseException:  # another loop may go on, whatever still refers to this reader
                self.leave(reader)
                self._late = weakref.ref(reader)
                raise
            finally:
                self._news = None
        pair = self._unread.popleft()
        self._has_read()
        return pair

    def leave(self, reader: _PairReader) -> None:
        """A reader does not read on."""
        if self._late is not None and self._late() is reader:
            self._late = None
        if self._reader is not None and self._reader() is reader:
            self._reader = None
            self._make_room()

    def call(self, function: Callable[[], None]) -> None:
        """Call a function on the run's loop, from any thread, as the garbage collector may."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and all on it has ended
            self._loop.call_soon_threadsafe(function)

    def drop(self) -> None:
        """Nobody holds the run any more."""
        self._is_dropped = True
        self._unread.clear()
        if not self._is_finite:
            self._in_progress.cancel()
        self._make_room()
        self._report()

    # For taskiq

    async def set_result(self, task_id: str, result: TaskiqResult[dict[str, Any]]) -> None:
        raise TypeError(f"the result of run {task_id!r} is gathered, not set")

    async def is_result_ready(self, task_id: str) -> bool:
        return self.outcome.done()

    async def get_result(
        self, task_id: str, with_logs: bool = False
    ) -> TaskiqResult[dict[str, Any]]:
        result = self.outcome.result()
        self._is_error_seen = True
        return result

    # Reading the run's stream

    async def _read(self, pairs: AsyncGenerator[Pair, None]) -> None:
        await asyncio.sleep(0)  # also where tasks start eagerly, the caller may call events() first
        async with aclosing(pairs):
            async for name, result in pairs:
                if self._is_dropped:
                    continue
                self._store(self.results, name, result)
                if self._is_wanted(result):
                    self._unread.append((name, result))
                    self._count_ahead()
                self._wake(self._news)
                while not self._has_room():
                    self._room = self._loop.create_future()
                    await self._room

    def _has_room(self) -> bool:
        if len(self._unread) < READ_AHEAD or self._is_over or self._waiters > 0:
            return True
        return not (self._waits_for_reader or (self._waits_while_read and self._has_reader()))

    def _has_reader(self) -> bool:
        return self._reader is not None and self._reader() is not None

    def _is_wanted(self, result: Any) -> bool:
        """Whether a reader may still ask for a result.

        Elements of a source may be without number: none waits where a run is awaited and not read.
        A reader whose last read was cancelled, as by a time limit, may read on.
        """
        is_of_source = self._waits_for_reader and isinstance(result, Item)
        may_read_on = self._late is not None and self._late() is not None
        return self._has_reader() or may_read_on or not (is_of_source and self._waiters)

    def _count_ahead(self) -> None:
        """Have what nobody has read yet take room, where an input is read as far as its reader."""
        if self._waits_for_reader:
            self._in_progress.read_ahead(0 if self._waiters else len(self._unread))

    def _has_read(self) -> None:
        """Somebody has read a pair, or waits for the run."""
        self._count_ahead()
        self._make_room()

    def _make_room(self) -> None:
        """Have the stream be read on, if there is room now."""
        if self._room is not None and not self._room.done() and self._has_room():
            self._room.set_result(None)

    def _wake(self, waiting: asyncio.Future[None] | None) -> None:
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _stream_ended(self, error: BaseException | None) -> None:
        """The run sends nothing more. It is closed now, and what is left of its stream is read.

        Of a run that was cancelled nothing is read any more.
        """
        self._is_over = True
        if isinstance(error, RunCancelledError):
            self._unread.clear()
        if error is not None and not isinstance(error, RunError):  # that has no ``results``
            self._reached = self._in_progress.reached()
        self._make_room()

    def _ended(self, task: asyncio.Task[None]) -> None:
        tasks = _running[self._loop]
        tasks.discard(task)
        if not tasks:
            del _running[self._loop]
        error = self._error_of(task)
        if isinstance(error, RunError):
            self.results = {**error.results, **self.results}
            self._failures = Failures(error.failures, error.failure_count, error.skipped)
        else:
            self.results = {**self._reached, **self.results}
            self._failures = self._in_progress.failures
        seconds = round(self._loop.time() - self._begun_at, 2)
        self._in_progress.ended()
        self._in_progress.forget()
        result = TaskiqResult(
            is_err=error is not None, return_value=self.results, execution_time=seconds
        )
        result.error = error  # taskiq leaves one out that is false, as one with a length of 0
        self.outcome.set_result(result)
        self._wake(self._news)
        self._in_progress.listeners.end()
        self._report()

    def _error_of(self, task: asyncio.Task[None]) -> BaseException | None:
        if not task.cancelled():
            return task.exception()
        so_far = self._in_progress.failures
        # As at the end of ``asyncio.run``. A ``CancelledError`` would look like the waiter's own.
        return RunCancelledError(
            f"run {self._in_progress.run_id!r} was cancelled with all tasks of its event loop",
            results=self.results,
            failures=so_far.errors,
            skipped=so_far.skipped,
            failure_count=so_far.count,
        )

    def _report(self) -> None:
        """Log the failure of a run that nobody holds, once, unless somebody has seen it."""
        if self._is_dropped and self.status == "failed" and not self._is_error_seen:
            self._is_error_seen = True
            error = self.outcome.result().error
            logger.warning(
                "run %s, which nobody held any more: %s",
                self._in_progress.run_id,
                error if isinstance(error, TaskiqFlowError) or error is None else describe(error),
            )

    def _check_reader(self, reader: _PairReader) -> None:
        current = None if self._reader is None else self._reader()
        if current is None:
            self._reader = weakref.ref(reader)
            weakref.finalize(reader, self.call, self._make_room).atexit = False
        elif current is not reader:
            raise RuntimeError(
                f"run {self._in_progress.run_id!r} is being read already; each pair goes to one "
                "reader: read on with that one, or close it"
            )

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                f"run {self._in_progress.run_id!r} is in progress on another event loop; read it "
                "and wait for it there"
            )
