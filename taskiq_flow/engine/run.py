"""One run of one graph. It carries out verdicts, ends once, and leaves no task behind.

Completions drive it, and it does not wait for its reader: results wait in a stream. It decides
nothing: ``NodeRun`` returns a verdict for a node, and the run carries it out.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from taskiq import AsyncBroker, TaskiqResult

from taskiq_flow.cache.results import PendingResult, ValueCache
from taskiq_flow.cleanup import to_the_end, until_ended
from taskiq_flow.completion.protocol import Completions
from taskiq_flow.dataflow.element import Element
from taskiq_flow.dataflow.items import ItemsNode
from taskiq_flow.dataflow.ready_set import COMPLETED, SKIPPED, ReadySet
from taskiq_flow.dispatch.dispatcher import Dispatcher, RunnableNode
from taskiq_flow.engine.call_text import called_with
from taskiq_flow.engine.frequent_events import new_node_began, new_node_completed
from taskiq_flow.engine.generating import Generating
from taskiq_flow.engine.listeners import Listeners
from taskiq_flow.engine.mapped_nodes import DECLINED, RUN_ENDED, MappedNodes, is_missing
from taskiq_flow.engine.node_run import (
    Ask,
    Fail,
    FallBack,
    GoOn,
    LookUp,
    NodeRun,
    PickUp,
    Send,
    Skip,
    Use,
    Verdict,
    Wait,
    WaitFor,
)
from taskiq_flow.engine.result_stream import ResultStream
from taskiq_flow.engine.run_spec import PLAIN_OPTIONS, RunSpec
from taskiq_flow.engine.run_state import RunState, SkipReason, as_whole
from taskiq_flow.engine.sender import RestOfStart, Sender, warn_not_cached
from taskiq_flow.engine.start_loop import StartLoop
from taskiq_flow.engine.timers import Timers
from taskiq_flow.errors import (
    NODE_ERRORS,
    RunCancelledError,
    RunError,
    RunTimeoutError,
    SerializationError,
    TaskLostError,
)
from taskiq_flow.events import (
    Event,
    Item,
    Listener,
    NodeCompleted,
    NodeFailed,
    NodeFailure,
    NodeFellBack,
    NodeRetried,
    NodeSkipped,
    Outcome,
    RunFinished,
    RunStarted,
    Source,
)
from taskiq_flow.journal.writer import LogWriter
from taskiq_flow.values.isolation import NEVER_CHANGE, Isolation, Take

N = TypeVar("N", bound=RunnableNode)

OnError = Literal["raise", "continue", "collect"]

CLEAN_UP_GRACE = 5.0
"""Seconds that cancelled sends are given to end before the run stops waiting for them."""


def new_run_id() -> str:
    """Sixteen random hexadecimal digits. Short, because every task's id begins with it."""
    return secrets.token_hex(8)


def new_task_suffix() -> str:
    """What tells the tasks of a run from those of another run of the same name."""
    return f".{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The options of an engine that all of its runs share.

    ``reference_above``: bytes above which results are passed by reference. ``isolation``:
    makes, for each run, what makes of a value what one of its takers in this process is given.
    """

    max_parallel: int | None = None
    on_error: OnError = "raise"
    listeners: Iterable[Listener] = ()
    run_timeout: float | None = None
    reference_above: int | None = None
    isolation: Callable[[], Take] = Isolation


class Run(Generic[N]):
    """One run. It is made, started, read and closed on one event loop."""

    def __init__(
        self,
        run_id: str,
        spec: RunSpec[N],
        settings: RunSettings,
        broker: AsyncBroker,
        completions: Completions,
        dispatcher: Dispatcher,
        listeners: Listeners,
        *,
        log: LogWriter[tuple[N, Any]] | None = None,
        cache: ValueCache | None = None,
    ) -> None:
        self.run_id = run_id
        self._spec = spec
        self._on_error = settings.on_error
        shows_failures = spec.shows_failures and settings.on_error == "continue"
        self._collects = settings.on_error == "collect" or shows_failures
        self._take = spec.take
        self._run_timeout = settings.run_timeout
        self._completions = completions
        self._dispatcher = dispatcher
        self._log = log
        self._cache = cache
        self._loop = asyncio.get_running_loop()
        self._state = RunState(run_id, spec)
        self._values = self._state.values
        self.stream: ResultStream[N] = ResultStream(log)
        self._is_over = False
        self._is_complete = False
        self._is_closing = False
        self._error: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._restored = self._restored_nodes()
        self._to_replay: dict[Any, tuple[Any, set[Any]]] = {}  # by node: what comes before it
        nodes: Iterable[Any] = spec.nodes
        no_tasks: dict[Any, None] = {}
        edges: Any = spec if spec.elements is None else spec.elements
        if spec.elements is not None:
            no_tasks = dict.fromkeys((*spec.elements.mapped, *spec.elements.openings.values()))
            nodes = dict.fromkeys((*spec.nodes, *no_tasks))
        self._ready: ReadySet[Any] = ReadySet.of_graph(
            nodes,
            edges.predecessors,
            edges.successors,
            spec.priority,
            settings.max_parallel,
            spec.joins,
            self._restored,
            no_tasks,
        )
        self._timers: Timers[NodeRun[N]] = Timers()
        self._suspended: dict[N, NodeRun[N]] = {}  # they are started once more later
        self._answers: set[asyncio.Future[object]] = set()  # of async conditions
        self._pending_results: dict[
            NodeRun[N], tuple[PendingResult, Callable[[object], None]]
        ] = {}  # by node: what it waits for, and the callback there
        self._listeners = listeners
        self._sender: Sender[N] = Sender(
            run_id,
            spec,
            broker,
            dispatcher,
            self._completions,
            self._listeners,
            log,
            cache,
            carry_out=self._carry_out,
            taken=self._was_taken,
            reference_above=settings.reference_above,
        )
        self._mapped: MappedNodes | None = None
        if spec.elements is not None:
            self._mapped = self._mapped_nodes(settings.max_parallel)
        self._generating: Generating[N] | None = None
        if self._mapped is not None and spec.elements is not None and spec.elements.generators:
            self._generating = self._begin_generating(self._mapped)
        pop = self._ready.pop if self._mapped is None else self._mapped.pop
        self._store = _store if self._mapped is None else self._mapped.store
        self._start_loop: StartLoop[Any] = StartLoop(pop, self._start_node, self._end)

    # The life of a run

    def start(self) -> None:
        """Restore what the journal has, and start the nodes that are ready. Called once."""
        if self._listeners.are_present:
            self._tell_start()
        else:
            self._listeners.seq += 1
        if self._run_timeout is not None:
            self._timer = self._loop.call_later(
                self._run_timeout, self._time_out, self._run_timeout
            )
        if self._log is not None:
            self._log.open(self.stream.release, self._journal_failed, self.cancel)
        for node in self._restored:
            self._restore(node)
        if self._mapped is not None:
            self._mapped.start()
        self._advance()

    def take(self) -> tuple[str, Any]:
        """The next result of ``stream``, for the reader."""
        node, value = self.stream.unread.popleft()
        if self._mapped is not None and self._mapped.waits_for_reader:
            self._loop.call_soon(self._advance)
        if isinstance(node, Element):
            return node.node.task_name, Item(node.index, self._handed_over(node, value))
        if isinstance(node, str):  # ``RUN_ENDED``
            return RUN_ENDED, Item(*value)
        return node.task_name, self._handed_over(node, value)

    def cancel(self) -> None:
        """Stop at once; the reader gets ``RunCancelledError`` at its next read.

        Called on the run's event loop.
        """
        if self._error is None and not self._is_closing:
            self.stream.drop()
            self._end(self._state.cancelled())

    @property
    def failures(self) -> Mapping[str, BaseException]:
        """What nodes have failed with so far, by their names."""
        return self._state.failures

    @property
    def failure_count(self) -> int:
        """How many have failed so far."""
        return self._state.failure_count

    @property
    def skipped(self) -> list[str]:
        """The nodes that were skipped so far because of a failure."""
        return list(self._state.skipped)

    def results_of_elements(self, whole: Collection[str]) -> dict[str, Any]:
        """What elements have given so far, but for lists that are ``whole``, by their names."""
        found = self._state.results_of_elements(whole)
        return {name: self._copied(value) for name, value in found.items()}

    def stop_because_of(self, error: BaseException) -> None:
        """Stop at once because the reader's own code has raised ``error``."""
        self._end(error)

    async def aclose(self) -> None:
        """End the run if it has not ended, and wait until nothing of it is left.

        Takes a bounded time. A cancellation does not cut it short.
        """
        self._is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._end(self._error)
        outcome = self._outcome()
        self._tell(RunFinished(self.run_id, self._loop.time(), outcome, self._error))
        await to_the_end(self._clean_up(outcome))

    # Called by node runs, for transports

    def settle(self, node_run: NodeRun[N], task_id: str, result: TaskiqResult[Any]) -> None:
        """Handle the result of an attempt, then start the nodes that it made ready."""
        if self._is_over or task_id != node_run.task_id:
            return
        if self._generating is not None and self._generating.keeps_end(node_run, result):
            return
        node_run.is_expected = False
        self._timers.cancel(node_run)
        try:
            if not result.is_err:
                source: Source = "fallback" if node_run.falls_back else "task"
                self._complete_node(node_run, result.return_value, source)
                return
            error = result.error or _without_error(node_run.node)
            if isinstance(error, TaskLostError):  # it may be executed all the same
                self._completions.revoke_task(task_id)
            now = self._loop.time()
            self._carry_out(node_run, node_run.on_error(error, result.execution_time, now))
        except BaseException as error:  # whatever it is, the run must end: else it would hang
            self._end(error)
            raise

    def began(self, node_run: NodeRun[N], task_id: str, worker: str) -> None:
        """A worker has begun to execute an attempt."""
        if not node_run.is_expected or task_id != node_run.task_id or self._is_over:
            return
        now = self._loop.time()
        if self._generating is not None:
            self._generating.begun(node_run)
        if self._listeners.are_present and worker not in node_run.workers:
            node, number, seq = node_run.node, node_run.number, self._listeners.seq + 1
            node_run.note_begun(now, worker)
            name, index = node.task_name, node.index
            self._listeners.hold(
                new_node_began(self.run_id, now, name, task_id, worker, index, number, seq)
            )
        if node_run.options.is_timed:
            ends_by_itself = self._sender.ends_by_itself(node_run)
            self._set_timer(node_run, node_run.on_began(now, ends_by_itself=ends_by_itself))

    def resent(self, node_run: NodeRun[N], task_id: str) -> None:
        """A middleware of the broker has sent an attempt's task once more."""
        if self._is_over:
            return
        self._set_timer(node_run, node_run.on_resent())
        node, number, at = node_run.node, node_run.number, self._loop.time()
        node_run.note_sent(at)
        self._tell(NodeRetried(self.run_id, at, node.task_name, task_id, number, index=node.index))

    def items(
        self, node_run: NodeRun[N], task_id: str, first: int, items: Sequence[Any], digest: bytes
    ) -> None:
        """Handle items that a generator has given: start what maps over them."""
        generating = self._generating
        if self._is_over or not node_run.is_expected or task_id != node_run.task_id:
            return
        try:
            if generating is None or not generating.take(node_run, first, items, digest):
                return
            self._set_timer(node_run, node_run.on_items(self._loop.time()))
            self._advance()
            if node_run.is_expected and not self._is_over:
                generating.grant(node_run)
        except BaseException as error:  # of the journal's serializer, say
            self._end(error)
            raise

    def interrupted(self, error: BaseException) -> None:
        """The process was told to stop: the run ends, and its reader gets the error itself."""
        if not self._is_over:
            self._end(error)

    # Starting nodes

    def _start_node(self, node: N) -> RestOfStart | None:
        if self._mapped is not None and node.task_name in self._spec.earlier.results:
            self._restore_started(node)
            return None
        node_run = self._suspended.pop(node, None) if self._suspended else None
        if node_run is None:
            inputs: Mapping[str, Any] = self._values
            if self._mapped is None:
                options = self._spec.options.get(node, PLAIN_OPTIONS)
            else:
                options = self._spec.options.get(as_whole(node), PLAIN_OPTIONS)
                inputs = self._mapped.inputs(node, inputs)
            node_run = NodeRun(node, self, options, inputs, self._spec.earlier)
            if self._generating is not None and self._mapped is not None:
                node_run.gives_items = self._mapped.gives_items(node)
            if not node_run.may_be_sent:
                self._sender.inputs_needed[node] = node_run
        return self._carry_out(node_run, node_run.on_ready())

    def _start_again(self, node_run: NodeRun[N]) -> None:
        if not self._is_over:
            self._ready.requeue(node_run.node)
            self._advance()

    # Generators

    def _begin_generating(self, mapped: MappedNodes) -> Generating[N]:
        return Generating(
            self.run_id,
            mapped,
            self._ready,
            self._completions,
            remembers=self._log is not None or self._dispatcher.may_repeat,
            is_elsewhere=self._dispatcher.is_elsewhere,
            block=self._block,
            advance=partial(self._loop.call_soon, self._advance),
        )

    def _block(self, node_run: NodeRun[N]) -> None:
        """A generator may make no more: until it may, others have its place."""
        self._timers.cancel(node_run)
        self._ready.suspend(node_run.node, keeps_gate=True)
        self._suspended[node_run.node] = node_run
        self._advance()

    def _let_generators_go_on(self) -> None:
        if self._generating is not None:
            self._generating.let_go_on()

    def _go_on(self, node_run: NodeRun[N], generating: Generating[N]) -> None:
        """A generator has its place again."""
        if (ended := generating.kept_end(node_run)) is not None:
            self.settle(node_run, node_run.task_id, ended)
            return
        self._set_timer(node_run, node_run.on_items(self._loop.time()))
        generating.grant(node_run)

    # Sending

    def _was_taken(self, node_run: NodeRun[N]) -> None:
        tells_begin = self._completions.tells_begin
        self._set_timer(node_run, node_run.on_sent(self._loop.time(), tells_begin=tells_begin))

    def _set_timer(self, node_run: NodeRun[N], seconds: float | None) -> None:
        if seconds is not None and not self._is_over:
            self._timers.set(node_run, seconds, self._time_out_attempt)

    def _time_out_attempt(self, node_run: NodeRun[N]) -> None:
        node_run.is_expected = False
        self._completions.revoke_task(node_run.task_id)
        self._carry_out(node_run, node_run.on_timeout())

    # Carrying out verdicts

    def _carry_out(  # noqa: C901, PLR0912 - one case for each verdict
        self, node_run: NodeRun[N], verdict: Verdict
    ) -> RestOfStart | None:
        """Carry out a verdict. Returns the part of the node's start that has to be awaited."""
        if self._is_over and not isinstance(verdict, Ask):  # a condition may have cancelled the run
            return None
        match verdict:
            case Send():
                if self._generating is not None:
                    self._generating.sending(node_run)
                return self._sender.send(node_run)
            case Ask(answer):
                self._await_answer(node_run, answer)
            case LookUp():
                return self._sender.look_up(node_run)
            case PickUp():
                return self._sender.pick_up(node_run)
            case GoOn() if self._generating is not None:
                self._go_on(node_run, self._generating)
            case Wait(seconds):
                node_run.suspended_at = self._loop.time()
                self._suspend(node_run)
                self._timers.set(node_run, seconds, self._start_again)
                self._advance()
            case WaitFor(pending):
                # Gives up its place of ``max_parallel``, which the other node may need.
                self._suspend(node_run)
                self._wait_for(node_run, pending)
                self._advance()
            case Use(value, source):
                self._complete_node(node_run, value, source)
            case FallBack(error, then):
                self._tell_fallback(node_run, error)
                return self._carry_out(node_run, then)
            case Skip():
                self._skip_by_condition(node_run)
            case Fail(error):
                self._fail_node(node_run, error)
        return None

    def _await_answer(self, node_run: NodeRun[N], answer: Awaitable[object]) -> None:
        """Await the answer of a condition, in a context of its own."""
        future = copy_context().run(asyncio.ensure_future, answer)
        if self._is_over:
            future.cancel()
        self._answers.add(future)
        future.add_done_callback(partial(self._answered, node_run))

    def _answered(self, node_run: NodeRun[N], future: asyncio.Future[object]) -> None:
        self._answers.discard(future)
        try:
            verdict = node_run.on_answer(is_wanted=bool(future.result()))
        except NODE_ERRORS as error:  # of the condition
            verdict = node_run.on_error(error)
        except BaseException as error:  # an order to stop, which asyncio has raised already
            self._end(error)
            return
        rest = self._carry_out(node_run, verdict)
        if rest is not None:
            self._start_loop.finish(rest)

    def _wait_for(self, node_run: NodeRun[N], pending: PendingResult) -> None:
        def start_again(_: object) -> None:
            del self._pending_results[node_run]
            self._start_again(node_run)

        self._pending_results[node_run] = pending, start_again
        pending.wait(start_again)

    def _suspend(self, node_run: NodeRun[N]) -> None:
        if not node_run.is_blocked:  # it is suspended already
            self._ready.suspend(node_run.node)
        node_run.is_blocked = False
        self._suspended[node_run.node] = node_run

    def _complete_node(self, node_run: NodeRun[N], value: Any, source: Source) -> None:
        node, log = node_run.node, self._log
        try:
            if log is not None:
                completion = log.completion(node.task_name, node_run.log_number, value)
            given = self._store(node, value, self._values)
        except NODE_ERRORS as error:  # of the wrong shape, a mapping that cannot be read, ...
            self._carry_out(node_run, node_run.on_error(error))
            return
        if log is not None:
            log.append(completion)
        if node_run.claim is not None and source == "task":
            self._cache_result(node_run, value)
        if given is DECLINED:
            self._skip_by_condition(node_run)
            return
        self._drop_inputs_and_claim(node_run)
        skipped = self._ready.complete(node)
        if self._listeners.are_present:
            self._tell_completion(node, given, source, node_run)
        else:
            self._listeners.seq += 1
        self._deliver(node, given)
        if skipped:
            self._skip_nodes(skipped)
        self._note_end(node)
        self._advance()

    def _fail_node(self, node_run: NodeRun[N], error: BaseException) -> None:
        node, task_id, attempts = node_run.node, node_run.task_id, node_run.attempts
        name = node.task_name
        self._drop_inputs_and_claim(node_run)
        self._state.add_failure(node, error)
        if self._log is not None:
            self._log.append(self._log.failure(name, node_run.log_number, error))
        skipped = self._ready.fail(node)
        at, index = self._loop.time(), node.index
        number, (queued, ran) = node_run.number, node_run.spans(at)
        self._tell(
            NodeFailed(self.run_id, at, name, task_id, error, attempts, index, number, queued, ran)
        )
        if self._on_error == "raise":
            self._end(self._state.node_failed(name, task_id, attempts, called_with(node_run)))
            return
        if self._collects:
            self._deliver(node, NodeFailure(name, task_id, error, attempts, index))
        self._skip_nodes(skipped)
        self._note_end(node)
        self._advance()

    def _skip_by_condition(self, node_run: NodeRun[N]) -> None:
        """A node does not run, because its condition is false, or a filter leaves it out."""
        self._drop_inputs_and_claim(node_run)
        never_run = self._ready.skip(node_run.node)
        self._skip_node(node_run.node, (), "condition", node_run.number)
        self._skip_nodes(never_run)
        self._advance()

    def _skip_nodes(self, nodes: Sequence[N]) -> None:
        for node in nodes:
            if isinstance(as_whole(node), ItemsNode):  # its generator was skipped, or has failed
                self._note_end(node)
            else:
                self._skip_node(node, *self._state.reason_to_skip(node))

    def _skip_node(
        self, node: N, because_of: tuple[str, ...], reason: SkipReason, attempt: int = 0
    ) -> None:
        self._tell_skip(node, because_of, reason, attempt)
        self._note_end(node)

    def _tell_skip(
        self, node: N, because_of: tuple[str, ...], reason: SkipReason, attempt: int = 0
    ) -> None:
        name, at = node.task_name, self._loop.time()
        self._state.add_skip(node, reason)
        event = NodeSkipped(self.run_id, at, name, because_of, reason, node.index, attempt)
        self._tell(event)
        if self._on_error == "collect" or (self._collects and reason == "failure"):
            self._deliver(node, event)

    def _note_end(self, node: N) -> None:
        """The ready set has been told that a node has ended. Its element is not needed any more."""
        if self._mapped is not None:
            self._mapped.ended(node)

    def _deliver(self, node: N, value: Any) -> None:
        """Give the reader what a node gives; what an element gives, if items are asked for."""
        if self._mapped is None:
            self.stream.deliver(node, value)
            return
        if self._mapped.gives_items(node):
            if isinstance(value, (NodeFailure, NodeSkipped)):
                self._mapped.hold_back(node, value)
            return  # its items are delivered
        if not isinstance(node, Element):
            self.stream.deliver(node, value)
            return
        is_list = len(node.path) == self._spec.lists_at
        if is_missing(value) and not is_list:
            self._mapped.missing(node, value)
        if self._spec.items or is_list:
            self.stream.deliver(node, value)

    # Mapped nodes

    def _mapped_nodes(self, limit: int | None) -> MappedNodes:
        return MappedNodes(
            self._spec,
            self._ready,
            self._state,
            take=self._take,
            log=self._log,
            limit=limit,
            collects=self._collects,
            restore=self._restore_if_completed,
            skip=self._skip_nodes,
            fail=self._fail_whole,
            deliver=self.stream.deliver,
            tell=self._tell,
            unread=lambda: len(self.stream),
            advance=self._advance,
            end=self._end_unless_over,
            was_yielded=self._was_yielded,
            let_generators_go_on=self._let_generators_go_on,
        )

    def _end_unless_over(self, error: BaseException) -> None:
        if not self._is_over:
            self._end(error)

    def _restore_if_completed(self, element: Element) -> int | None:
        if element.task_name not in self._spec.earlier.results:
            return None
        return self._restore(element)

    def _fail_whole(self, node: Any, error: BaseException) -> None:
        """A mapped node has failed, or an element of it, for which no task was sent."""
        name, index = node.task_name, node.index
        self._state.add_failure(node, error)
        self._tell(NodeFailed(self.run_id, self._loop.time(), name, "", error, 0, index))
        if self._on_error == "raise":
            self._end(self._state.node_failed(name, "", 0, ""))
        elif self._collects:
            deliver = self._deliver if isinstance(node, Element) else self.stream.deliver
            deliver(node, NodeFailure(name, "", error, 0, index))

    # Results that are cached

    def _cache_result(self, node_run: NodeRun[N], value: Any) -> None:
        """Give a result to the cache if this run has the claim to compute it."""
        claim, cache = node_run.claim, node_run.options.cache
        if claim is None or cache is None or self._cache is None:
            return
        try:
            self._cache.put(claim, value, cache.seconds)
            node_run.claim = None
        except Exception as error:  # whatever a value or a serializer raises
            warn_not_cached(node_run.node, error)

    def _drop_inputs_and_claim(self, node_run: NodeRun[N]) -> None:
        """A node has ended. Its inputs are not needed any more, nor is its claim on the cache."""
        if self._sender.inputs_needed:
            self._sender.inputs_needed.pop(node_run.node, None)
        if self._generating is not None:
            self._generating.forget(node_run)
            self._suspended.pop(node_run.node, None)
        if node_run.claim is not None and self._cache is not None:
            self._cache.release(node_run.claim)
            node_run.claim = None

    # What moves the run

    def _advance(self) -> None:
        """After every change: start what may start, or end."""
        if self._is_over:
            return
        if self._ready.exhausted:
            self._is_complete = True
            some_failed = self._state.failures and self._on_error == "continue"
            self._end(self._state.run_failed() if some_failed else None)
        else:
            self._start_loop.wake()
            if self._mapped is not None:
                self._mapped.make_room()
            # The reader is last: successors have the value by then, and it need not be copied.
            if self.stream.unread:
                self.stream.wake()

    def _journal_failed(self, error: RunError) -> None:
        """The journal cannot write any more. Nothing that it has not written is yielded."""
        self._end(self._error or self._state.filled(error))

    def _time_out(self, seconds: float) -> None:
        """The run's time is over. A journal that hangs must not keep the end from the reader."""
        if not self._is_over or self.stream.held_back:
            self.stream.drop_held_back()
            self._end(self._error or self._timed_out(seconds))

    def _timed_out(self, seconds: float) -> RunTimeoutError:
        in_progress = self._ready.in_progress()
        names = [
            node.task_name
            for node in in_progress
            if not getattr(node, "map_over", ())  # its elements are named
        ]
        waiting = self._ready.unfinished - len(in_progress)
        return self._state.timed_out(seconds, names, waiting)

    def _end(self, error: BaseException | None) -> None:
        """End the run: send nothing more, and cancel what is in flight.

        A later call only replaces the error that the reader gets.
        """
        self._error = error
        self.stream.end(error)
        if self._is_over:
            return
        self._is_over = True
        self._timers.stop()
        if self._generating is not None:
            self._generating.stop()
        for answer in self._answers:
            answer.cancel()
        for pending, callback in self._pending_results.values():
            pending.leave(callback)
        self._sender.stop()
        self._start_loop.stop()
        self._completions.revoke()
        if self._mapped is not None:
            self._mapped.stop()

    async def _clean_up(self, outcome: Outcome) -> None:
        # Side by side: what one part waits for is not added to what another does.
        reading = [] if self._mapped is None else self._mapped.stop()
        await asyncio.gather(
            until_ended([*self._start_loop.tasks, *self._answers, *reading], CLEAN_UP_GRACE),
            self._completions.aclose(is_complete=outcome == "completed"),
        )
        if self._mapped is not None:
            self._mapped.close()
        closing = [self._listeners.aclose()]
        if self._cache is not None:
            for node_run in tuple(self._sender.inputs_needed.values()):
                self._drop_inputs_and_claim(node_run)
            closing.append(self._cache.aclose())
        if self._log is not None:
            closing.append(self._log.aclose(outcome))
        await asyncio.gather(*closing)

    # Restoring what earlier engines have completed

    def _restored_nodes(self) -> dict[N, None]:
        results = self._spec.earlier.results
        if not results:
            return {}
        by_name = {node.task_name: node for node in self._spec.nodes}
        return {by_name[name]: None for name in results if name in by_name}

    def _restore(self, node: Any) -> int:
        """Store what an earlier engine has completed. Returns how the node has ended."""
        value = self._store(node, self._spec.earlier.results[node.task_name], self._values)
        if value is DECLINED:
            self._tell_skip(node, (), "condition")
            return SKIPPED
        self._tell_completion(node, value, "journal")
        is_element = isinstance(node, Element) and len(node.path) != self._spec.lists_at
        is_yielded = self._spec.items or not is_element
        if self._mapped is not None and self._mapped.gives_items(node):
            is_yielded = False  # its items are, and their list
        if self._spec.earlier.is_replayed and is_yielded:
            self._replay(node, value)
        return COMPLETED

    def _restore_started(self, node: Any) -> None:
        """Restore an element that could not be before those that it depends on had ended."""
        is_there = self._restore(node) == COMPLETED
        never_run = self._ready.complete(node) if is_there else self._ready.skip(node)
        self._skip_nodes(never_run)
        self._note_end(node)
        self._advance()

    def _replay(self, node: Any, value: Any) -> None:
        """Yield what an earlier engine has completed, after the lists that it was made of."""
        waits_for: set[Any] = set()
        if self._mapped is not None and not isinstance(node, Element):
            before: Any = self._spec.predecessors.get(node, ())
            waits_for = {
                other
                for other in before
                if other.map_over or other in self._to_replay or self._mapped.gives_items(other)
            }
        if waits_for:
            self._to_replay[node] = value, waits_for
        else:
            self.stream.unread.append((node, value))

    def _was_yielded(self, node: Any) -> None:
        """A node's value was yielded, if it is at all: go on with those that come after it."""
        ready = []
        for later, (_, waits_for) in self._to_replay.items():
            if node in waits_for:
                waits_for.remove(node)
                ready += [] if waits_for else [later]
        for later in ready:
            self.stream.deliver(later, self._to_replay.pop(later)[0])
            self._was_yielded(later)

    # What readers and listeners are given

    def _tell(self, event: Event) -> None:
        self._listeners.tell(event)

    def _tell_start(self) -> None:
        spec = self._spec
        graph = spec.describe()
        mapped = {} if spec.elements is None else spec.elements.mapped
        self._tell(
            RunStarted(
                self.run_id,
                self._loop.time(),
                graph.task_names,
                time.time(),
                graph.edges,
                {
                    node.task_name: len(how.axes)
                    for node, how in mapped.items()
                    if not isinstance(node, ItemsNode)
                },
                graph.expected,
                graph.tasks,
                graph.outputs,
                kind=graph.kind,
            )
        )

    def _tell_completion(
        self, node: N, value: Any, source: Source, node_run: NodeRun[N] | None = None
    ) -> None:
        """Tell that a node has its value. What listeners are given of it is made when they ask."""
        now, number, task_id = self._loop.time(), 0, ""
        queued = ran = None
        if node_run is not None:
            task_id = node_run.task_id
            if source in {"task", "fallback"}:
                number, (queued, ran) = node_run.number, node_run.spans(now)
        name, index, seq = node.task_name, node.index, self._listeners.seq + 1
        event = new_node_completed(
            self.run_id, now, name, task_id, value, source, index, number, queued, ran, seq
        )
        is_shared = type(value) in NEVER_CHANGE
        prepare = None if is_shared else partial(self._prepare, event, node)
        self._listeners.hold(event, prepare)

    def _prepare(self, event: NodeCompleted, node: N) -> None:
        object.__setattr__(event, "result", self._handed_over(node, event.result))

    def _tell_fallback(self, node_run: NodeRun[N], error: BaseException) -> None:
        node, task_id, attempts = node_run.node, node_run.task_id, node_run.attempts
        at, name, index = self._loop.time(), node.task_name, node.index
        number, run_id = node_run.number, self.run_id
        self._tell(NodeFellBack(run_id, at, name, task_id, error, attempts, index, number))

    def _handed_over(self, node: N, value: Any) -> Any:
        """What the reader is given: the value itself if no node has still to be sent it.

        An array cannot be written to, whoever else has it, so that it does not depend on chance.
        """
        if type(value) in NEVER_CHANGE:
            return value
        take = self._take
        has_no_array = "numpy" not in sys.modules or (
            isinstance(take, Isolation) and take.is_flat(value)
        )
        if has_no_array and (self._is_over or not self._is_still_needed(node)):
            return value
        return self._copied(value)

    def _copied(self, value: Any) -> Any:
        """A value for a taker of its own."""
        try:
            return self._take(value)
        except SerializationError:  # of something within it that can be read once only
            return value

    def _is_still_needed(self, node: N) -> bool:
        if self._mapped is not None:  # by elements that do not exist yet, perhaps
            return bool(isinstance(node, Element) or self._spec.successors.get(node))
        return any(
            self._needs_inputs(dependent)
            and (
                not dependent.binding.keys.isdisjoint(node.outputs)
                or self._spec.options.get(dependent, PLAIN_OPTIONS).condition is not None
            )
            for dependent in self._spec.successors.get(node, ())
        )

    def _needs_inputs(self, node: N) -> bool:
        """Whether a node's arguments are still to be encoded, or its condition to be asked."""
        return not self._ready.has_started(node) or node in self._sender.inputs_needed

    def _outcome(self) -> Outcome:
        if self._error is None and self._is_complete and not self.stream.unread:
            return "completed"
        if self._error is None or isinstance(self._error, RunCancelledError):
            return "cancelled"
        return "failed"


def _store(node: Any, value: Any, values: dict[str, Any]) -> Any:
    """Store what a node gives, in a graph without mapped nodes. Returns what its reader gets."""
    node.store(value, values)
    return value


def _without_error(node: RunnableNode) -> TaskLostError:
    return TaskLostError(
        f"node {node.task_name!r} failed on its worker, and its error was not stored",
        task_name=node.task_name,
    )
