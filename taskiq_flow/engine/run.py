"""One run of one graph: driven by completions, ended once, and gone without a trace.

Nothing here waits for the reader. A completion is taken in at once, what it makes ready is sent at
once, and pairs wait in a buffer for whoever reads them; with a journal, until that has them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from taskiq import TaskiqResult

from taskiq_flow.cache.results import CachedResults
from taskiq_flow.cleanup import to_the_end, until_ended
from taskiq_flow.completion.protocol import Completions, Observer
from taskiq_flow.dataflow.options import NO_FALLBACK
from taskiq_flow.dataflow.ready_set import ReadySet
from taskiq_flow.dispatch.dispatcher import Dispatcher, RunnableNode
from taskiq_flow.engine.feeder import Feeder
from taskiq_flow.engine.listening import Listeners
from taskiq_flow.engine.node_run import PLAIN, Flight
from taskiq_flow.engine.result_stream import Pairs
from taskiq_flow.engine.run_spec import Work
from taskiq_flow.engine.run_state import Record
from taskiq_flow.engine.senders import Senders
from taskiq_flow.engine.starter import Attempts
from taskiq_flow.errors import RunCancelledError, RunError, TaskLostError
from taskiq_flow.events import (
    Event,
    Listener,
    NodeCompleted,
    NodeFailed,
    NodeFailure,
    NodeRetried,
    NodeSkipped,
    RunFinished,
    RunStarted,
    Source,
)
from taskiq_flow.journal.writer import RunLog
from taskiq_flow.values.copying import NEVER_CHANGE, copied

N = TypeVar("N", bound=RunnableNode)

OnError = Literal["raise", "continue", "collect"]

CLEAN_UP_GRACE = 5.0
"""Seconds that cancelled sends are given to end before the run stops waiting for them."""


def new_run_id() -> str:
    """Sixteen hexadecimal digits of chance: short, as it stands in every task's id."""
    return secrets.token_hex(8)


class Run(Generic[N]):
    """The state of one run. Made, started, read to its end, closed; all on one event loop.

    ``log``: where it is kept, if it is.
    """

    def __init__(
        self,
        work: Work[N],
        dispatcher: Dispatcher,
        completions: Callable[[Observer[Flight[N]]], Completions[Flight[N]]],
        *,
        run_id: str,
        max_parallel: int | None,
        on_error: OnError,
        listeners: Iterable[Listener],
        timeout: float | None = None,
        log: RunLog[tuple[N, Any]] | None = None,
        cache: CachedResults | None = None,
    ) -> None:
        self.run_id = run_id
        self._work = work
        self._on_error = on_error
        self._timeout = timeout
        self._log = log
        self._cache = cache
        self._loop = asyncio.get_running_loop()
        self._record = Record(run_id, work)
        self.pairs: Pairs[N] = Pairs(log)
        self._timer: asyncio.TimerHandle | None = None
        self._feeder = None if work.source is None else self._feeder_of(work.source)
        self._over = False
        self._complete = False
        self._error: BaseException | None = None
        restored = self._restored_nodes()
        self._ready: ReadySet[N] = ReadySet.of_graph(
            work.nodes,
            work.predecessors,
            work.successors,
            work.priority,
            max_parallel,
            work.joins,
            restored,
        )
        self._restored = restored
        self._completions = completions(self)
        self._listeners = Listeners(listeners)
        self.is_listened_to = bool(self._listeners)
        self._attempts = Attempts(
            run_id,
            work,
            self._ready,
            dispatcher,
            self._completions,
            self._record.values,
            log,
            cache,
            self,
        )
        self._senders = Senders(self._ready, self._attempts.start)

    # The life of a run

    def start(self) -> None:
        """Send what may start. Called once."""
        work = self._work
        if self.is_listened_to:
            names = tuple(node.task_name for node in work.nodes)
            self._tell(RunStarted(self.run_id, self._loop.time(), names))
        if self._timeout is not None:
            self._timer = self._loop.call_later(self._timeout, self._time_out, self._timeout)
        if self._log is not None:
            self._log.open(self.pairs.release, self._lose)
        for node in self._restored:
            self._restore(node)
        if self._feeder is not None:
            self._feeder.start()
        self.advance()

    def take(self) -> tuple[str, Any]:
        """The next of the ``pairs``, as it is handed over."""
        node, value = self.pairs.unread.popleft()
        if self._feeder is not None:
            self._feeder.make_room()
        return node.task_name, self._handed_over(node, value)

    def cancel(self) -> None:
        """Stop at once; the reader gets ``RunCancelledError`` at its next read."""
        if self._error is None:
            self.pairs.drop()
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

    def settle(self, flight: Flight[N], task_id: str, result: TaskiqResult[Any]) -> None:
        """Take in how an attempt ended, and send what that makes ready."""
        if self._over or task_id != flight.task_id:
            return
        try:
            if flight.policy is not PLAIN:
                self._attempts.ended(flight)
            if result.is_err:
                error = result.error or _without_error(flight.node)
                seconds = max(result.execution_time, self._attempts.lasted(flight))
                self._fail(flight, flight.explained(error, seconds))
            else:
                source: Source = "fallback" if flight.falls_back else "task"
                self._succeed(flight, result.return_value, source)
        except Exception as error:  # not foreseen; a run that lost its thread would wait for ever
            self._stop(error)
            raise

    def take_cached(self, flight: Flight[N], value: Any) -> None:
        """Take in a result that was kept from another time."""
        self._succeed(flight, value, "cache")

    def pass_over(self, flight: Flight[N]) -> None:
        """Take in that a node is not to run, as its condition says."""
        self._skip(flight.node, (), "condition")
        self._skip_behind(self._ready.skip(flight.node))
        self.advance()

    def is_being_sent(self, flight: Flight[N]) -> bool:
        """Whether the broker has not taken the node's task yet."""
        return self._attempts.is_being_sent(flight.node)

    def began(self, flight: Flight[N], task_id: str) -> None:
        """Take in that a worker executes a task."""
        self._attempts.began(flight, task_id)

    def retried(self, flight: Flight[N], task_id: str) -> None:
        """Take in that a middleware of the broker's has sent a task once more."""
        flight.resent += 1
        name, attempt = flight.node.task_name, flight.attempts
        self._tell(NodeRetried(self.run_id, self._loop.time(), name, task_id, attempt))

    def _succeed(self, flight: Flight[N], value: Any, source: Source) -> None:
        node = flight.node
        try:
            noted = (
                None
                if self._log is None
                else self._log.completion(node.task_name, flight.attempt, value)
            )
            node.store(value, self._record.values)
        except Exception as error:  # of the wrong shape, a mapping that cannot be read, ...
            self._fail(flight, error)
            return
        if self._log is not None and noted is not None:
            self._log.note(noted)
        if flight.policy is not PLAIN:
            if source == "task":
                self._attempts.keep(flight, value)
            self._attempts.finish(flight)
        passed_over = self._ready.complete(node)
        if self._feeder is not None:
            self._ready.forget(node)
        if self.is_listened_to:
            self._tell_completion(node, flight.task_id, value, source)
        self.pairs.deliver(node, value)
        if passed_over:
            self._skip_behind(passed_over)
        self.advance()

    def _fail(self, flight: Flight[N], error: BaseException) -> None:
        flight.failures += 1
        if isinstance(error, TaskLostError):  # it may be executed all the same, and is not to be
            self._completions.revoke_task(flight.task_id)
        if self._attempts.again(flight, error):
            self.advance()
        elif flight.policy.fallback is not NO_FALLBACK and not flight.falls_back:
            self._attempts.fall_back(flight, error)
            self._succeed(flight, flight.policy.fallback, "fallback")
        else:
            self._fail_for_good(flight, error)

    def _fail_for_good(self, flight: Flight[N], error: BaseException) -> None:
        node, task_id, attempts = flight.node, flight.task_id, flight.attempts
        name = node.task_name
        self._attempts.finish(flight)
        self._record.add_failure(node, error)
        if self._log is not None:
            self._log.note(self._log.failure(name, flight.attempt, error))
        passed_over = self._ready.fail(node)
        self._tell(NodeFailed(self.run_id, self._loop.time(), name, task_id, error, attempts))
        if self._on_error == "raise":
            self._stop(self._record.node_failed(name, task_id, attempts))
            return
        if self._on_error == "collect":
            self.pairs.deliver(node, NodeFailure(name, task_id, error, attempts))
        self._skip_behind(passed_over)
        self.advance()

    def _skip_behind(self, nodes: Sequence[N]) -> None:
        for node in nodes:
            self._skip(node, *self._record.reason_to_skip(node))

    def _skip(
        self, node: N, because_of: tuple[str, ...], reason: Literal["failure", "condition"]
    ) -> None:
        self._record.skipped[node.task_name] = reason
        event = NodeSkipped(self.run_id, self._loop.time(), node.task_name, because_of, reason)
        self._tell(event)
        if self._on_error == "collect":
            self.pairs.deliver(node, event)

    # What earlier engines have reached

    def _restored_nodes(self) -> dict[N, None]:
        results = self._work.before.results
        if not results:
            return {}
        by_name = {node.task_name: node for node in self._work.nodes}
        return {by_name[name]: None for name in results if name in by_name}

    def _restore(self, node: N) -> None:
        value = self._work.before.results[node.task_name]
        node.store(value, self._record.values)
        if self.is_listened_to:
            self._tell_completion(node, "", value, "journal")
        if self._work.before.is_replayed:
            self.pairs.unread.append((node, value))

    # What moves the run

    def advance(self) -> None:
        """After every change: send what may start, read the source and be read on, or end."""
        if self._ready.exhausted and (self._feeder is None or not self._feeder.is_feeding):
            self._complete = True
            some_failed = self._record.failures and self._on_error == "continue"
            self._stop(self._record.run_failed() if some_failed else None)
        else:
            self._senders.wake()
            if self._feeder is not None:
                self._feeder.make_room()
            # Last: what a value made ready is sent before it is read, and needs no copy of it.
            if self.pairs.unread:
                self.pairs.wake()

    def _feeder_of(self, source: AsyncIterable[N]) -> Feeder[N]:
        return Feeder(
            source,
            self._work.window,
            take=self._feed,
            unfinished=self._unfinished,
            ended=self.advance,
            fail=self._lose_source,
        )

    def _feed(self, node: N) -> None:
        if node.task_name in self._work.before.results:
            self._restore(node)
            self.pairs.wake()
        else:
            self._ready.add(node)
            self._senders.wake()

    def _lose_source(self, error: BaseException) -> None:
        if not self._over:
            self._stop(error)

    def _time_out(self, seconds: float) -> None:
        self._stop(self._record.timed_out(seconds))

    def _stop(self, error: BaseException | None) -> None:
        """Nothing more is sent or taken in; what is in flight is cancelled, once."""
        self._error = error
        self.pairs.end(error)
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        self._attempts.stop()
        self._senders.stop()
        self._completions.revoke()
        if self._feeder is not None:
            self._feeder.stop()

    async def _clean_up(self) -> None:
        feeding = [] if self._feeder is None else self._feeder.tasks
        await until_ended([*self._senders.tasks, *feeding], CLEAN_UP_GRACE)
        await self._completions.aclose()
        if self._cache is not None:
            await self._cache.aclose()
        if self._log is not None:
            await self._log.aclose(self._outcome())
        await self._listeners.aclose()

    # What others are given

    def tell(self, make_event: Callable[[], Event]) -> None:
        """Have listeners told."""
        self._listeners.tell(make_event)

    def _tell(self, event: Event) -> None:
        self._listeners.tell(lambda: event)

    def _tell_completion(self, node: N, task_id: str, value: Any, source: Source) -> None:
        event = partial(NodeCompleted, self.run_id, self._loop.time(), node.task_name, task_id)
        self._listeners.tell(lambda: event(self._handed_over(node, value), source))

    def _lose(self, error: RunError) -> None:
        """Nothing can be kept any more, and so nothing more is yielded."""
        self._stop(self._error or self._record.filled(error))

    def _unfinished(self) -> int:
        return self._ready.unfinished + len(self.pairs)

    def _handed_over(self, node: N, value: Any) -> Any:
        """The value itself, or a copy as long as later nodes are still to get it as it is."""
        if type(value) in NEVER_CHANGE or self._over:
            return value
        return copied(value) if self._attempts.is_still_needed(node) else value

    def _outcome(self) -> Literal["completed", "failed", "cancelled"]:
        if self._error is None and self._complete and not self.pairs.unread:
            return "completed"
        if self._error is None or isinstance(self._error, RunCancelledError):
            return "cancelled"
        return "failed"


def _without_error(node: RunnableNode) -> TaskLostError:
    return TaskLostError(
        f"node {node.task_name!r} failed on its worker, and its error was not stored",
        task_name=node.task_name,
    )
