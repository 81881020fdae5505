"""One run of one graph: driven by completions, ended once, and gone without a trace.

Nothing here waits for the reader. A completion is taken in at once, what it makes ready is sent at
once, and pairs wait in a buffer for whoever reads them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from aiostream import streamcontext
from taskiq import TaskiqResult

from taskiq_flow.completion.protocol import Completions, Observer, failed
from taskiq_flow.dataflow.ready_set import ReadySet
from taskiq_flow.dispatch import Dispatcher, RunnableNode
from taskiq_flow.errors import RunCancelledError, TaskLostError
from taskiq_flow.events import (
    Event,
    Listener,
    NodeCompleted,
    NodeFailed,
    NodeFailure,
    NodeRetried,
    NodeSkipped,
    NodeStarted,
    RunFinished,
    RunStarted,
)
from taskiq_flow.listening import Listeners
from taskiq_flow.record import Record
from taskiq_flow.sending import Senders
from taskiq_flow.values import NEVER_CHANGE, copied
from taskiq_flow.waiting import to_the_end, until_ended

N = TypeVar("N", bound=RunnableNode)

OnError = Literal["raise", "continue", "collect"]

CLEAN_UP_GRACE = 5.0
"""Seconds that cancelled sends are given to end before the run stops waiting for them."""


def new_run_id() -> str:
    """Sixteen hexadecimal digits of chance: short, as it stands in every task's id."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class Work(Generic[N]):
    """What a run has to do: nodes, those they wait for, those that wait for them.

    ``inputs``: the run's inputs by key. ``priority``: for the order under a limit.

    ``source`` brings further nodes while the run goes on, which wait for none and whose results
    are not kept. It is read while fewer than ``window`` nodes are unsent, in flight or unread;
    ``None`` for no such bound.
    """

    nodes: Sequence[N] = ()
    predecessors: Mapping[N, Sequence[N]] = field(default_factory=dict)
    successors: Mapping[N, Sequence[N]] = field(default_factory=dict)
    priority: Mapping[N, float] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    source: AsyncIterable[N] | None = None
    window: int | None = None


class Run(Generic[N]):
    """The state of one run. Made, started, read to its end, closed; all on one event loop."""

    def __init__(
        self,
        work: Work[N],
        dispatcher: Dispatcher,
        completions: Callable[[Observer[N]], Completions[N]],
        *,
        run_id: str,
        max_parallel: int | None,
        on_error: OnError,
        listeners: Iterable[Listener],
    ) -> None:
        self.run_id = run_id
        self._work = work
        self._dispatcher = dispatcher
        self._on_error = on_error
        self._loop = asyncio.get_running_loop()
        self._record = Record(run_id, work.inputs, work.successors)
        self._being_sent: set[N] = set()
        self._attempts: dict[str, int] = {}  # of the tasks that were sent more than once
        self.unread: deque[tuple[N, Any]] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._feeder: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._is_fed = work.source is not None
        self._over = False
        self._complete = False
        self._error: BaseException | None = None
        self._ready: ReadySet[N] = ReadySet.of_graph(
            work.nodes, work.predecessors, work.successors, work.priority, max_parallel
        )
        self._senders = Senders(self._ready, self._send)
        self._completions = completions(self)
        self._listeners = Listeners(listeners)
        self._listened_to = bool(self._listeners)

    # The life of a run

    def start(self) -> None:
        """Send what may start. Called once."""
        work = self._work
        if self._listened_to:
            names = tuple(node.task_name for node in work.nodes)
            self._tell(RunStarted(self.run_id, self._loop.time(), names))
        if work.source is not None:
            self._feeder = self._loop.create_task(self._feed(work.source))
        self._advance()

    async def more(self) -> bool:
        """Wait until there is something to take, or, with ``False``, nothing to come.

        Raises what ended the run, once all that had arrived before it has been taken.
        """
        while not self.unread:
            if self._over:
                if self._error is not None:
                    raise self._error
                return False
            self._reader = self._loop.create_future()
            await self._reader
        return True

    def take(self) -> tuple[str, Any]:
        """The next pair, in order of completion, of those that are ``unread``."""
        node, value = self.unread.popleft()
        if self._is_fed:
            _wake(self._room)
        return node.task_name, self._handed_over(node, value)

    def cancel(self) -> None:
        """Stop at once; the reader gets ``RunCancelledError`` at its next read."""
        if self._error is None:
            self.unread.clear()
            self._stop(self._record.cancelled())

    def fail(self, error: BaseException) -> None:
        """Stop at once because of what its reader's own code raised."""
        self._stop(error)

    async def aclose(self) -> None:
        """End the run if it has not ended, and leave nothing of it behind.

        Takes a bounded time and is not cut short by cancellation.
        """
        self._stop(self._error)
        self._tell(RunFinished(self.run_id, self._loop.time(), self._outcome(), self._error))
        await to_the_end(self._clean_up())

    # What happens to a node

    async def _send(self, node: N) -> None:
        task_id = f"{self.run_id}:{node.task_name}:1"
        self._being_sent.add(node)
        if self._listened_to:
            self._tell(NodeStarted(self.run_id, self._loop.time(), node.task_name, task_id))
        address = self._dispatcher.address(node)
        args, kwargs = node.arguments(self._record.values)
        self._completions.expect(task_id, node, address.return_type, address.queue)
        try:
            await self._dispatcher.send(node, address, task_id, args, kwargs)
        except (Exception, asyncio.CancelledError) as error:
            # Whatever the broker or its middlewares raise, unless it is the run that ends the send.
            if self._over:
                raise
            if self._completions.forget(task_id):
                self.settle(node, task_id, failed(error))
        finally:
            self._being_sent.discard(node)

    def settle(self, node: N, task_id: str, result: TaskiqResult[Any]) -> None:
        """Take in how a task ended, and send what that makes ready."""
        if self._over:
            return
        try:
            self._take_in(node, task_id, result)
        except Exception as error:  # not foreseen; a run that lost its thread would wait for ever
            self._stop(error)
            raise

    def _take_in(self, node: N, task_id: str, result: TaskiqResult[Any]) -> None:
        if result.is_err:
            self._fail(node, task_id, result.error or _without_error(node))
            return
        value = result.return_value
        try:
            node.store(value, self._record.values)
        except Exception as error:  # of the wrong shape, or a mapping that cannot be read
            self._fail(node, task_id, error)
            return
        if self._attempts:
            self._attempts.pop(task_id, None)
        skipped = self._ready.complete(node)
        if self._is_fed:
            self._ready.forget(node)
        if self._listened_to:
            event = partial(NodeCompleted, self.run_id, self._loop.time(), node.task_name, task_id)
            self._listeners.tell(lambda: event(self._handed_over(node, value)))
        self.unread.append((node, value))
        if skipped:
            self._skip(skipped)
        self._advance()

    def is_being_sent(self, node: N) -> bool:
        """Whether the broker has not taken the node's task yet."""
        return node in self._being_sent

    def retried(self, node: N, task_id: str) -> None:
        """Take in that a task was sent once more."""
        attempt = self._attempts[task_id] = self._attempts.get(task_id, 1) + 1
        self._tell(NodeRetried(self.run_id, self._loop.time(), node.task_name, task_id, attempt))

    def _fail(self, node: N, task_id: str, error: BaseException) -> None:
        name, attempts = node.task_name, self._attempts.pop(task_id, 1)
        self._record.add_failure(node, error)
        skipped = self._ready.fail(node)
        self._tell(NodeFailed(self.run_id, self._loop.time(), name, task_id, error, attempts))
        if self._on_error == "raise":
            self._stop(self._record.node_failed(name, task_id, attempts))
            return
        if self._on_error == "collect":
            self.unread.append((node, NodeFailure(name, task_id, error, attempts)))
        self._skip(skipped)
        self._advance()

    def _skip(self, nodes: Sequence[N]) -> None:
        record = self._record
        for node in nodes:
            before = (other.task_name for other in self._work.predecessors[node])
            broken = tuple(n for n in before if n in record.failures or n in record.skipped)
            record.skipped.add(node.task_name)
            event = NodeSkipped(self.run_id, self._loop.time(), node.task_name, broken)
            self._tell(event)
            if self._on_error == "collect":
                self.unread.append((node, event))

    # What moves the run

    def _advance(self) -> None:
        """After every change: send what may start, read the source and be read on, or end."""
        if self._ready.exhausted and not self._is_fed:
            self._complete = True
            some_failed = self._record.failures and self._on_error == "continue"
            self._stop(self._record.run_failed() if some_failed else None)
        else:
            self._senders.wake()
            if self._is_fed:
                _wake(self._room)
            # Last: what a value made ready is sent before it is read, and needs no copy of it.
            _wake(self._reader)

    async def _feed(self, source: AsyncIterable[N]) -> None:
        """Take nodes from the source, no faster than there is room for them."""
        window = self._work.window
        try:
            async with streamcontext(source) as nodes:
                async for node in nodes:
                    self._ready.add(node)
                    self._senders.wake()
                    while window and self._ready.unfinished + len(self.unread) >= window:
                        self._room = self._loop.create_future()
                        await self._room
        except BaseException as error:  # the source's own, which the reader gets as it is
            if not self._over:
                self._stop(error)
            raise
        self._is_fed = False
        self._advance()

    def _stop(self, error: BaseException | None) -> None:
        """Nothing more is sent or taken in; what is in flight is cancelled, once."""
        self._error = error
        _wake(self._reader)
        if self._over:
            return
        self._over = True
        self._senders.stop()
        self._completions.revoke()
        if self._feeder is not None and self._feeder is not asyncio.current_task():
            self._feeder.cancel()

    async def _clean_up(self) -> None:
        feeders = [] if self._feeder is None else [self._feeder]
        await until_ended([*self._senders.tasks, *feeders], CLEAN_UP_GRACE)
        await self._completions.aclose()
        await self._listeners.aclose()

    # What others are given

    def _tell(self, event: Event) -> None:
        self._listeners.tell(lambda: event)

    def _handed_over(self, node: N, value: Any) -> Any:
        """The value itself, or a copy as long as later nodes are still to get it as it is."""
        if type(value) in NEVER_CHANGE or self._over:
            return value
        for later in self._work.successors.get(node, ()):
            sent = self._ready.has_started(later) and later not in self._being_sent
            if not sent and not later.binding.keys.isdisjoint(node.outputs):
                return copied(value)
        return value

    def _outcome(self) -> Literal["completed", "failed", "cancelled"]:
        if self._error is None and self._complete and not self.unread:
            return "completed"
        if self._error is None or isinstance(self._error, RunCancelledError):
            return "cancelled"
        return "failed"


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _without_error(node: RunnableNode) -> TaskLostError:
    return TaskLostError(
        f"node {node.task_name!r} failed on its worker, and its error was not stored",
        task_name=node.task_name,
    )
