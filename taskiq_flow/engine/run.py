"""One run of one graph. It carries out verdicts, ends once, and leaves no task behind.

Completions drive it, and it does not wait for its reader: results wait in a stream. ``NodeRun``
returns a verdict for a node, and the run carries it out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any

from taskiq import AsyncBroker, TaskiqResult

from taskiq_flow.cache.results import ValueCache
from taskiq_flow.cleanup import to_the_end, until_ended
from taskiq_flow.completion.protocol import Completions
from taskiq_flow.dataflow.ready_set import COMPLETED, SKIPPED, ReadySet
from taskiq_flow.dispatch.dispatcher import Dispatcher
from taskiq_flow.dispatch.encoding import RunnableNode
from taskiq_flow.engine.cached_results import CachedResults
from taskiq_flow.engine.call_text import called_with
from taskiq_flow.engine.handing_over import HandingOver
from taskiq_flow.engine.listeners import Listeners
from taskiq_flow.engine.node_run import (
    SENDABLE,
    Ask,
    Fail,
    FallBack,
    LookUp,
    MakeItems,
    NodeRun,
    PickUp,
    Send,
    Skip,
    Use,
    Verdict,
    Wait,
    WaitFor,
)
from taskiq_flow.engine.replay import Replay
from taskiq_flow.engine.result_stream import ResultStream
from taskiq_flow.engine.run_events import RunEvents
from taskiq_flow.engine.run_spec import PLAIN_OPTIONS, RunSettings, RunSpec
from taskiq_flow.engine.run_state import DECLINED, Failures, RunState, SkipReason
from taskiq_flow.engine.sender import Sender
from taskiq_flow.engine.start_loop import RestOfStart, StartLoop
from taskiq_flow.engine.suspended import Suspended
from taskiq_flow.engine.timers import Timers
from taskiq_flow.errors import NODE_ERRORS, RunCancelledError, RunError, TaskLostError
from taskiq_flow.events import NodeFailure, Outcome, Source
from taskiq_flow.journal.writer import LogWriter
from taskiq_flow.values.inspection import NEVER_CHANGE
from taskiq_flow.values.isolation import Isolation

CLEAN_UP_GRACE = 5.0
"""Seconds that cancelled sends are given to end before the run stops waiting for them."""


class Run:
    """One run. It is made, started, read and closed on one event loop.

    If any of its nodes is mapped, or takes a run's input without a length, it is a ``MappedRun``.
    """

    def __init__(
        self,
        run_id: str,
        spec: RunSpec,
        settings: RunSettings,
        broker: AsyncBroker,
        completions: Completions,
        dispatcher: Dispatcher,
        listeners: Listeners,
        *,
        log: LogWriter[Any] | None = None,
        cache: ValueCache | None = None,
    ) -> None:
        self.run_id = run_id
        self._spec = spec
        self._on_error = settings.on_error
        shows_failures = spec.shows_failures and settings.on_error == "continue"
        self._collects = settings.on_error == "collect" or shows_failures
        self._settings = settings
        self._completions = completions
        self._dispatcher = dispatcher
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._state = RunState(run_id, spec)
        self._values = self._state.values
        self.stream = ResultStream(log)
        self._is_over = False
        self._is_complete = False
        self._is_closing = False
        self._error: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._replay = Replay(spec, self.stream)
        self._restored = self._restored_nodes()
        self._ready: ReadySet[Any] = self._ready_set()
        self._timers = Timers()
        self._suspended = Suspended(
            self._ready,
            self._timers,
            advance=self.advance,
            carry_out=self._carry_out_and_finish,
            end=self.end,
        )
        self._waiting = self._suspended.node_runs
        self._inputs_needed: dict[RunnableNode, NodeRun] = {}  # for arguments, perhaps again
        self._handing_over = HandingOver(spec, self._ready, self._inputs_needed, listeners)
        self._to_reader = self._handing_over.to_reader
        self._listeners = listeners
        self._events = RunEvents(run_id, listeners, self._handing_over.handed_over)
        self._cached = None if cache is None else CachedResults(cache, dispatcher)
        self._sender = Sender(
            run_id,
            spec,
            broker,
            dispatcher,
            self._completions,
            self._events,
            log,
            self._cached,
            self._inputs_needed,
            carry_out=self._carry_out_and_finish,
            taken=self._limit_time,
            reference_above=settings.reference_above,
        )
        self._reading: Sequence[asyncio.Task[None]] = ()  # of sources, until they have stopped
        self._reader = reader = asyncio.current_task()  # until the run is over
        self._cancellations = 0 if reader is None else reader.cancelling()  # before it began
        pop, start = self._prepared()
        self._start_loop = StartLoop(pop, start, self.end, self.advance)

    def _ready_set(self) -> ReadySet[Any]:
        spec = self._spec
        return ReadySet.of_graph(
            spec.nodes,
            spec.predecessors,
            spec.successors,
            spec.priority,
            self._settings.max_parallel,
            spec.joins,
            self._restored,
        )

    # The life of a run

    def start(self) -> None:
        """Restore what the journal has, and start the nodes that are ready. Called once."""
        if self._listeners.are_present:
            in_memory = not self._dispatcher.is_elsewhere
            self._events.started(self._spec, self._settings, in_memory=in_memory)
        else:
            self._listeners.passed += 1
        if (seconds := self._settings.run_timeout) is not None:
            self._timer = self._loop.call_later(seconds, self._on_run_timeout, seconds)
        if self._log is not None:
            self._log.open(self.stream.release, self._journal_failed, self.cancel)
        for node in self._restored:
            self._restore(node)
        self._begin()
        self.advance()

    def take(self) -> tuple[str, Any]:
        """The next result of ``stream``, for the reader."""
        node, value = self.stream.unread.popleft()
        if type(value) not in NEVER_CHANGE:
            value = self._to_reader(node, value)
        return node.task_name, value

    def read_ahead(self, count: int) -> None:
        """So many results were taken for a reader who has not asked for them yet."""
        self.stream.read_ahead = count

    def cancel(self) -> None:
        """Stop at once; the reader gets ``RunCancelledError`` at its next read.

        Called on the run's event loop.
        """
        if self._error is None and not self._is_closing:
            self.stream.drop()
            self.end(self._state.cancelled())

    @property
    def failures(self) -> Failures:
        """What has failed so far."""
        return self._state.so_far

    def results_of_elements(self, whole: Collection[str]) -> dict[str, Any]:
        """What elements have given so far, but for lists that are ``whole``, by their names."""
        found = self._state.results_of_elements(whole)
        return {name: self._handing_over.copied(value) for name, value in found.items()}

    def reached(self) -> dict[str, Any]:
        """What the run has reached, as the ``results`` of an error have it."""
        return self._state.reached()["results"]

    async def aclose(self) -> None:
        """End the run if it has not ended, and wait until nothing of it is left.

        Takes a bounded time. A cancellation does not cut it short.
        """
        self._is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        self.end(self._error)
        outcome = self._outcome()
        self._events.finished(outcome, self._error)
        await to_the_end(self._clean_up(outcome))
        self._forget_values()

    @property
    def _reader_is_cancelled(self) -> bool:
        """Whether the asyncio task that has begun the run, and reads it, is being cancelled."""
        return self._reader is not None and self._reader.cancelling() > self._cancellations

    # Called by node runs, for transports

    def settle(self, node_run: NodeRun, result: TaskiqResult[Any]) -> None:
        """Handle the result of an attempt, then start the nodes that it made ready."""
        if self._is_over:
            return
        if node_run.options.is_timed:
            self._timers.cancel(node_run)
        try:
            if not result.is_err:
                source: Source = "fallback" if node_run.falls_back else "task"
                self._complete_node(node_run, result.return_value, source)
                return
            error = _without_error(node_run.node) if result.error is None else result.error
            if isinstance(error, asyncio.CancelledError) and self._reader_is_cancelled:
                self.cancel()  # as all asyncio tasks are, at the end of their event loop
                return
            if isinstance(error, TaskLostError):  # it may be executed all the same
                self._completions.revoke_task(node_run.task_id)
            seconds = max(result.execution_time, node_run.running_for(self._events.now()))
            self._carry_out(node_run, node_run.on_error(error, seconds))
        except BaseException as error:  # whatever it is, the run must end: else it would hang
            self.end(error)
            raise

    def began(self, node_run: NodeRun, worker: str) -> None:
        """A worker has begun to execute an attempt."""
        if self._is_over:
            return
        clock = self._events.now
        now = clock()
        if self._listeners.are_present:
            self._events.began(node_run, now, worker)
        if node_run.options.is_timed:
            ends_by_itself = self._sender.ends_by_itself(node_run)
            self._set_timer(node_run, node_run.on_began(now, ends_by_itself=ends_by_itself))

    def resent(self, node_run: NodeRun) -> None:
        """A middleware of the broker has sent an attempt's task once more."""
        if self._is_over:
            return
        self._set_timer(node_run, node_run.on_resent())
        self._events.resent(node_run)

    def items(self, node_run: NodeRun, first: int, items: Sequence[Any], digest: bytes) -> None:
        """Handle items that a generator has given. Only in a ``GeneratingRun`` there are any."""

    # Starting nodes

    def _start_node(self, node: RunnableNode) -> RestOfStart | None:
        node_run = self._waiting.pop(node, None) if self._waiting else None
        if node_run is None:
            node_run = self._node_run(node)
            if node_run.phase is not SENDABLE:
                self._inputs_needed[node] = node_run
        return self._carry_out(node_run, node_run.on_ready())

    def _node_run(self, node: RunnableNode) -> NodeRun:
        spec = self._spec
        options = spec.options.get(node, PLAIN_OPTIONS)
        return NodeRun(node, self, options, self._values, spec.earlier)

    # Sending

    def _limit_time(self, node_run: NodeRun) -> None:
        tells_begin = self._completions.tells_begin
        self._set_timer(node_run, node_run.on_sent(self._events.now(), tells_begin=tells_begin))

    def _set_timer(self, node_run: NodeRun, seconds: float | None) -> None:
        if seconds is not None and not self._is_over:
            self._timers.set(node_run, seconds, self._on_attempt_timeout)

    def _on_attempt_timeout(self, node_run: NodeRun) -> None:
        self._completions.revoke_task(node_run.task_id)
        self._carry_out(node_run, node_run.on_timeout())

    # Carrying out verdicts

    def _carry_out(  # noqa: C901 - one case for each verdict
        self, node_run: NodeRun, verdict: Verdict
    ) -> RestOfStart | None:
        """Carry out a verdict. Returns the part of the node's start that takes time."""
        if self._is_over and not isinstance(verdict, Ask):  # a condition may have cancelled the run
            return None
        match verdict:
            case Send():
                return self._send(node_run)
            case Ask(answer):
                self._suspended.ask(node_run, answer)
            case LookUp():
                return self._sender.look_up(node_run)
            case PickUp():
                return self._sender.pick_up(node_run)
            case MakeItems():
                self._make_items(node_run)
            case Wait(seconds):
                node_run.suspended_at = self._events.now()
                self._suspended.wait(node_run, seconds)
            case WaitFor(pending):
                self._suspended.wait_for(node_run, pending)
            case Use(value, source):
                self._complete_node(node_run, value, source)
            case FallBack(error, then):
                self._events.fell_back(node_run, error)
                return self._carry_out(node_run, then)
            case Skip():
                self._skip_by_condition(node_run)
            case Fail(error):
                self._fail_node(node_run, error)
        return None

    def _carry_out_and_finish(self, node_run: NodeRun, verdict: Verdict) -> None:
        rest = self._carry_out(node_run, verdict)
        if rest is not None:
            self._start_loop.finish(rest)

    def _complete_node(self, node_run: NodeRun, value: Any, source: Source) -> None:
        node, log = node_run.node, self._log
        try:
            if log is not None:
                completion = log.completion(node.task_name, node_run.log_number, value)
            given = self._store(node, value)
            if type(value) not in NEVER_CHANGE:
                self._handing_over.arrived(node, value)
        except NODE_ERRORS as error:  # of the wrong shape, a mapping that cannot be read, ...
            self._carry_out(node_run, node_run.on_error(error))
            return
        if log is not None:
            log.append(completion)
        if self._cached is not None and source == "task":
            self._cached.put(node_run, value)
        if given is DECLINED:
            self._skip_by_condition(node_run)
            return
        self._release(node_run)
        skipped = self._ready.complete(node)
        if self._listeners.are_present:
            self._events.completed(node, given, source, node_run)
        else:
            self._listeners.passed += 1
        self._deliver(node, given)
        if skipped:
            self.skip_nodes(skipped)
        self._note_end(node)
        self.advance()

    def _fail_node(self, node_run: NodeRun, error: BaseException) -> None:
        node, task_id, attempts = node_run.node, node_run.task_id, node_run.number
        name, after = node.task_name, node_run.fell_back_after
        self._release(node_run)
        self._state.add_failure(node, error, after)
        if self._log is not None:
            self._log.append(self._log.failure(name, node_run.log_number, error, after))
        skipped = self._ready.fail(node)
        self._events.failed(node_run, error)
        if self._on_error == "raise":
            self.end(self._state.node_failed(name, task_id, attempts, called_with(node_run)))
            return
        if self._collects:
            self._deliver(node, NodeFailure(name, task_id, error, attempts, node.index, after))
        self._go_on_after(node, skipped)

    def _skip_by_condition(self, node_run: NodeRun) -> None:
        """A node does not run, because its condition is false, or a filter leaves it out."""
        self._release(node_run)
        never_run = self._ready.skip(node_run.node)
        self._tell_skip(node_run.node, (), "condition", node_run.number)
        self._go_on_after(node_run.node, never_run)

    def _go_on_after(self, node: RunnableNode, never_run: Sequence[RunnableNode]) -> None:
        """A node has ended, and was told. ``never_run``: the nodes that it keeps from running."""
        self.skip_nodes(never_run)
        self._note_end(node)
        self.advance()

    def skip_nodes(self, nodes: Sequence[RunnableNode]) -> None:
        """Nodes that never run, because of what they depend on."""
        for node in nodes:
            self._tell_skip(node, *self._state.reason_to_skip(node))
        for node in nodes:  # which may skip others, that depend on any of these
            self._note_end(node)

    def _tell_skip(
        self, node: RunnableNode, because_of: tuple[str, ...], reason: SkipReason, attempt: int = 0
    ) -> None:
        self._state.add_skip(node, reason)
        event = self._events.skipped(node, because_of, reason, attempt)
        if self._on_error == "collect" or (self._collects and reason == "failure"):
            self._deliver(node, event)

    def _release(self, node_run: NodeRun) -> None:
        """A node has ended. Its inputs are not needed any more, nor is its claim on the cache."""
        if self._inputs_needed:
            self._inputs_needed.pop(node_run.node, None)
        if self._cached is not None:
            self._cached.release(node_run)

    # What ``MappedRun`` and ``GeneratingRun`` do more, or in another way

    def _prepared(self) -> tuple[Callable[[], Any], Callable[[Any], RestOfStart | None]]:
        """What gives the next node that may start, and what starts it. Called once, at the end."""
        return self._ready.pop, self._starter

    def _begin(self) -> None:
        """Begin to read the run's sources, if it has any."""

    def _store(self, node: Any, value: Any) -> Any:
        """Store what a node gives. Returns what its reader gets, or ``DECLINED``."""
        node.store(value, self._values)
        return value

    def _send(self, node_run: NodeRun) -> RestOfStart | None:
        return self._sender.send(node_run)

    def _deliver(self, node: Any, value: Any) -> None:
        self.stream.put((node, value))

    def _note_end(self, node: Any) -> None:
        """A node has ended, of which the ready set has been told."""

    def _make_items(self, node_run: NodeRun) -> None:
        """A generator has its place again."""

    def _close_sources(self) -> None:
        """Close the run's sources, of which nothing is read any more."""

    # What moves the run

    def advance(self) -> None:
        """After every change: start what may start, or end."""
        if self._is_over:
            return
        if not self._ready.unfinished:
            self._is_complete = True
            some_failed = self._state.failures and self._on_error == "continue"
            self.end(self._state.run_failed() if some_failed else None)
        else:
            self._start_loop.wake()
            # The reader is last: successors have the value by then, and it need not be copied.
            if self.stream.unread:
                self.stream.wake()

    def _journal_failed(self, error: RunError) -> None:
        """The journal cannot write any more. Nothing that it has not written is yielded."""
        self.end(self._state.filled(error) if self._error is None else self._error)

    def _on_run_timeout(self, seconds: float) -> None:
        """The run's time is over. A journal that hangs must not keep the end from the reader."""
        if not self._is_over or self.stream.held_back:
            self.stream.drop_held_back()
            error, in_progress = self._error, self._ready.in_progress()
            if error is None:
                error = self._state.timed_out(seconds, in_progress, self._ready.unfinished)
            self.end(error)

    def end_unless_over(self, error: BaseException) -> None:
        """End the run with an error, if it has not ended."""
        if not self._is_over:
            self.end(error)

    def end(self, error: BaseException | None) -> None:
        """End the run: send nothing more, and cancel what is in flight.

        A later call only replaces the error that the reader gets.
        """
        self._error = error
        self.stream.end(error)
        if self._is_over:
            return
        self._is_over = self._handing_over.is_over = True
        self._stop()

    def _stop(self) -> None:
        """Send nothing more, and cancel what is in flight."""
        self._reader = None
        self._timers.stop()
        self._suspended.stop()
        if self._cached is not None:
            self._cached.stop(self._inputs_needed.values())
        self._sender.stop()
        self._start_loop.stop()
        self._completions.revoke()

    async def _clean_up(self, outcome: Outcome) -> None:
        # Side by side: what one part waits for is not added to what another does.
        answers = self._suspended.answers
        tasks: list[asyncio.Future[Any]] = [*self._start_loop.tasks, *answers, *self._reading]
        await asyncio.gather(
            until_ended(tasks, CLEAN_UP_GRACE),
            self._completions.aclose(is_complete=outcome == "completed"),
        )
        self._close_sources()
        closing = [self._listeners.aclose()]
        if self._cached is not None:
            closing.append(self._cached.aclose())
        if self._log is not None:
            closing.append(self._log.aclose(outcome))
        await asyncio.gather(*closing)

    def _forget_values(self) -> None:
        """Let go of all values. The parts of a run refer to each other, and would keep them alive.

        Large ones would otherwise stay until the garbage collector looks at everything.
        """
        self._values.clear()
        if isinstance(self._spec.take, Isolation):
            self._spec.take.forget_all()

    # Restoring what earlier engines have completed

    def _restored_nodes(self) -> dict[RunnableNode, None]:
        results = self._spec.earlier.results
        if not results:
            return {}
        by_name = {node.task_name: node for node in self._spec.nodes}
        nodes = [by_name[name] for name in results if name in by_name]
        return {node: None for node in nodes if not self._replay.is_late(node)}

    @property
    def _starter(self) -> Callable[[Any], RestOfStart | None]:
        """What starts a node that may start."""
        earlier = self._spec.earlier
        restores = earlier.results or earlier.finished
        return self._start_or_restore if restores else self._start_node

    def _start_or_restore(self, node: RunnableNode) -> RestOfStart | None:
        if node.task_name in self._spec.earlier.results:
            self._restore_started(node)
            return None
        return self._start_node(node)

    def _restore_started(self, node: Any) -> None:
        """Restore what could not be before the nodes that it depends on had ended."""
        is_there = self._restore(node) == COMPLETED
        never_run = self._ready.complete(node) if is_there else self._ready.skip(node)
        self._go_on_after(node, never_run)

    def _restore(self, node: Any) -> int:
        """Store what an earlier engine has completed. Returns how the node has ended."""
        value = self._store(node, self._spec.earlier.results[node.task_name])
        if value is DECLINED:
            self._tell_skip(node, (), "condition")
            return SKIPPED
        self._events.completed(node, value, "journal")
        if self._spec.earlier.is_replayed:
            self._replay.add(node, value)
        return COMPLETED

    def _outcome(self) -> Outcome:
        if self._error is None and self._is_complete and not self.stream.unread:
            return "completed"
        if self._error is None or isinstance(self._error, RunCancelledError):
            return "cancelled"
        return "failed"


def _without_error(node: RunnableNode) -> TaskLostError:
    return TaskLostError(
        f"node {node.task_name!r} failed on its worker, and its error was not stored",
        task_name=node.task_name,
    )
