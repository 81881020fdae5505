"""The engine: graphs in, a stream of results out. All else collects from ``execute_async``."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

from taskiq import AsyncBroker
from taskiq.utils import maybe_awaitable

from taskiq_flow.cache.results import CachedResults
from taskiq_flow.completion.reading import pick_up
from taskiq_flow.dataflow.binding import Task
from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.fingerprint import behind
from taskiq_flow.dataflow.inputs import check_inputs
from taskiq_flow.dataflow.options import Retry, check_seconds
from taskiq_flow.dispatch.callables import return_type_of
from taskiq_flow.dispatch.dispatcher import Dispatcher
from taskiq_flow.engine.connection import Link, check_outlives, check_readable, link_to
from taskiq_flow.engine.node_run import PLAIN, Policy
from taskiq_flow.engine.run import OnError, Run
from taskiq_flow.engine.run import new_run_id as _new_run_id
from taskiq_flow.engine.run_spec import Before, Work
from taskiq_flow.errors import (
    ConfigurationError,
)
from taskiq_flow.events import Listener, NodeFailure, NodeSkipped
from taskiq_flow.journal.history import Recalled, loaded, loaded_inputs, recall
from taskiq_flow.journal.memory import MemoryJournal
from taskiq_flow.journal.protocol import Journal
from taskiq_flow.journal.runs import KeptRuns
from taskiq_flow.journal.writer import RunLog
from taskiq_flow.transport.notice import ALWAYS
from taskiq_flow.values.references import handle_of
from taskiq_flow.values.results import as_annotated
from taskiq_flow.worker.worker import BEAT

StepCallback = Callable[[str, Any], Awaitable[None] | None]

PassBy = Literal["value", "reference"] | int
"""How results reach later nodes; a number of bytes is where ``"value"`` ends."""

SHORTEST_LOST_AFTER = 2 * BEAT
"""Seconds; a task that is running has been reported once by then."""


class ExecutionEngine:
    """Runs a graph on a taskiq broker.

    ``max_parallel``: how many nodes may be in flight, ``None`` for any number; the node with the
    longest remaining path, by ``expected_seconds``, goes first. ``on_step_complete(task_name,
    result)``, sync or async, is called once per pair, in the stream's order; what it raises ends
    the run. ``listeners`` are told typed events.

    ``on_error``: ``"raise"`` ends the run at the first failure with ``NodeFailedError``;
    ``"continue"`` runs whatever does not depend on a failure, then raises ``RunFailedError``;
    ``"collect"`` never raises for a node and gives ``NodeFailure`` and ``NodeSkipped`` as values.

    On a broker with workers elsewhere, ``lost_after`` is for how many seconds a task of which
    nothing is heard counts as alive; then it fails with ``TaskLostError``. One that its worker
    reports as running, or that still stands in the broker's queue, is not lost, however long it
    takes.
    ``pass_by="reference"`` leaves what nodes return in the result backend: the stream gives a
    ``ResultHandle``, and later nodes are sent a reference in place of the value. A number of bytes
    does so for results above that size; ``"value"`` for none.

    ``retry``, ``timeout``, ``queue_timeout``: for all nodes that have none of their own.
    ``run_timeout``: seconds that a run may take; then it ends with ``RunTimeoutError``.
    ``journal``: where runs are kept, for ``resume`` and ``rerun`` to go on with; a pair is yielded
    once the journal has it.

    An engine may be used for any number of runs, also at the same time. Raises ``ValueError`` for
    an argument that cannot be.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        dag: DAG,
        max_parallel: int | None = None,
        on_step_complete: StepCallback | None = None,
        *,
        on_error: OnError = "raise",
        listeners: Iterable[Listener] = (),
        pass_by: PassBy = "value",
        lost_after: float = 60.0,
        retry: Retry | None = None,
        timeout: float | None = None,
        queue_timeout: float | None = None,
        run_timeout: float | None = None,
        journal: Journal | None = None,
    ) -> None:
        if max_parallel is not None and (
            isinstance(max_parallel, bool) or not isinstance(max_parallel, int) or max_parallel < 1
        ):
            raise ValueError(
                f"max_parallel is {max_parallel!r}; give a whole number from 1 on, or None for no "
                "limit"
            )
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error is {on_error!r}; give one of {get_args(OnError)}")
        if not (math.isfinite(lost_after) and lost_after >= SHORTEST_LOST_AFTER):
            raise ValueError(
                f"lost_after is {lost_after!r}; give a number of seconds from "
                f"{SHORTEST_LOST_AFTER:g} on, as workers report every {BEAT:g} s"
            )
        check_seconds("timeout", timeout)
        check_seconds("queue_timeout", queue_timeout)
        check_seconds("run_timeout", run_timeout)
        self._broker = broker
        self._dag = dag
        self._policy = Policy(retry=retry, timeout=timeout, queue_timeout=queue_timeout)
        self._run_timeout = run_timeout
        self._journal = journal
        self._memory = MemoryJournal()  # of cached results, where there is no journal
        self._limit = _limit(pass_by)
        self._lost_after = lost_after
        self._max_parallel = max_parallel
        self._on_step_complete = on_step_complete
        self._on_error: OnError = on_error
        self._listeners = tuple(listeners)
        self._runs: set[Run[Any]] = set()
        self._kept = KeptRuns(journal, dag)

    async def execute_async(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        outputs: Iterable[str] | None = None,
        run_id: str | None = None,
    ) -> AsyncGenerator[tuple[str, Any], None]:
        """Run the graph and yield ``(task_name, result)`` as the results arrive.

        ``inputs``: the graph's external inputs by key. ``outputs``: run only what these keys need.
        ``run_id``: names the run and its tasks, ``{run_id}:{task_name}:{attempt}``; it must not
        have been used on this broker before.

        Before anything is sent, raises ``MissingInputError``, ``InputConflictError``,
        ``MissingNodeError``, ``ConfigurationError`` or what ``DAG.validate`` raises. Afterwards,
        raises as ``on_error`` says, and ``RunCancelledError`` after ``cancel()``. Leaving the loop
        early cancels what is in flight; close the generator, as with
        ``contextlib.aclosing``, to have it done by a certain moment. To stop a run from another
        task while a read is pending, use ``cancel()``: Python lets no generator be closed then.
        """
        asked = None if outputs is None else _listed(outputs)  # it may be read only once
        work = self._work(inputs, asked)
        run_id = _new_run_id() if run_id is None else run_id
        log = self._kept.new_log(run_id, work.inputs, asked)
        run = await self._start(work, run_id, log)
        unread, is_told_on = run.pairs.unread, self._on_step_complete is not None
        try:
            while unread or await run.pairs.more():
                yield await self._next_pair(run) if is_told_on else run.take()
        finally:
            await self._end(run)

    async def resume(
        self, run_id: str, *, replay: bool = True, allow_changed: bool = False
    ) -> AsyncGenerator[tuple[str, Any], None]:
        """Go on with a run of the engine's journal where it has stopped, and yield its pairs.

        Nodes that had completed are not run again: their pairs come first, unless ``replay=False``.
        Of those that were in flight, what has become of them is taken from the result backend if it
        is there; the others, and those that had failed, are sent again.

        Raises ``RunNotFoundError``, ``RunLockedError`` while another engine is at it, and
        ``GraphChangedError`` if it was begun with another graph; ``allow_changed=True`` keeps what
        neither has changed nor depends on a node that has, and runs the rest. Otherwise as
        ``execute_async``.
        """
        log: RunLog[Any] = RunLog(self._kept.journal, run_id)
        await log.acquire()
        try:
            recalled = await recall(self._kept.journal, run_id)
            log.precede(self._kept.brought_up(recalled, allow_changed=allow_changed))
            work = self._recalled_work(recalled, replay=replay)
        except BaseException:
            await log.release()
            raise
        run = await self._start(work, run_id, log, recalled.sessions)
        try:
            while run.pairs.unread or await run.pairs.more():
                yield await self._next_pair(run)
        finally:
            await self._end(run)

    async def rerun(
        self,
        run_id: str,
        from_: Iterable[str],
        *,
        replay: bool = True,
        allow_changed: bool = False,
        new_run_id: str | None = None,
    ) -> AsyncGenerator[tuple[str, Any], None]:
        """Run these nodes of an earlier run, and all that depends on them, once more, as a new run.

        What other nodes had given is kept, and their pairs come first unless ``replay=False``. The
        new run is called ``new_run_id``, and its inputs are those of the earlier one, which stays
        as it is. Raises ``MissingNodeError`` for a name that the graph does not have, otherwise
        as ``resume``.
        """
        recalled = await recall(self._kept.journal, run_id)
        names = [self._dag.get_node(name).task_name for name in _listed(from_)]
        again = behind(self._dag.plan(), names)
        self._kept.brought_up(recalled, allow_changed=allow_changed)
        for name in again:
            recalled.results.pop(name, None)
        work = self._recalled_work(recalled, replay=replay)
        work = replace(work, before=Before(work.before.results, is_replayed=replay))
        new_id = _new_run_id() if new_run_id is None else new_run_id
        kept = [recalled.results[name] for name in work.before.results]
        log = self._kept.new_log(new_id, work.inputs, recalled.header.outputs, kept)
        run = await self._start(work, new_id, log)
        try:
            while run.pairs.unread or await run.pairs.more():
                yield await self._next_pair(run)
        finally:
            await self._end(run)

    async def execute(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        outputs: Iterable[str] | None = None,
        run_id: str | None = None,
    ) -> dict[str, Any]:
        """Run the graph to its end and return all output keys with their values.

        Takes and raises what ``execute_async`` does. Under ``on_error="collect"`` the keys of a
        failed or skipped node have its ``NodeFailure`` or ``NodeSkipped`` as their value.
        """
        results: dict[str, Any] = {}
        async with aclosing(self.execute_async(inputs, outputs=outputs, run_id=run_id)) as pairs:
            async for name, result in pairs:
                node = self._dag.get_node(name)
                if isinstance(result, (NodeFailure, NodeSkipped)):
                    results.update(dict.fromkeys(node.outputs, result))
                else:
                    node.store(result, results)
        return results

    def cancel(self) -> None:
        """Stop every run of this engine that is in progress.

        Their readers get ``RunCancelledError``. Safe from anywhere on the event loop.
        """
        for run in tuple(self._runs):
            run.cancel()

    # One run

    async def _prepare(self, work: Work[Any], run_id: str) -> tuple[Link, Dispatcher]:
        """Connect with the broker, and see that it can do what is asked."""
        broker = self._broker
        check_readable(broker)
        if self._journal is not None and self._limit is not None:
            check_outlives(broker)
        link = await link_to(broker, run_id, lost_after=self._lost_after, limit=self._limit)
        dispatcher = Dispatcher(broker, link.labels, link.kick)
        for node in work.nodes:
            dispatcher.address(node)
        for node, policy in work.policies.items():
            if policy.fallback_node is not None:
                dispatcher.address(policy.fallback_node)
            if policy.queue_timeout is not None and not link.tells_begin:
                raise ConfigurationError(
                    f"node {node.task_name!r} has a queue_timeout, and {type(broker).__name__} "
                    "does not tell when a task begins; add a FlowMiddleware to it, here and where "
                    "its workers run"
                )
        return link, dispatcher

    async def _next_pair(self, run: Run[Any]) -> tuple[str, Any]:
        """A pair for the reader, once it was told to whoever else asked for it."""
        pair = run.take()
        if self._on_step_complete is not None:
            try:
                await maybe_awaitable(self._on_step_complete(*pair))
            except Exception as error:  # the caller's own, which ends the run
                run.fail(error)
                raise
        return pair

    async def _start(
        self,
        work: Work[Any],
        run_id: str,
        log: RunLog[Any] | None,
        earlier_sessions: Iterable[str] = (),
    ) -> Run[Any]:
        """A run of ``work`` that has started, to be ended by ``_end``."""
        run: Run[Any] | None = None
        try:
            link, dispatcher = await self._prepare(work, run_id)
            if log is not None:
                await log.begin(link.session)
            if link.revoke is not None:
                for session in earlier_sessions:
                    await link.revoke(session)
            run = Run(
                work,
                dispatcher,
                link.completions,
                run_id=run_id,
                max_parallel=self._max_parallel,
                on_error=self._on_error,
                listeners=self._listeners,
                timeout=self._run_timeout,
                log=log,
                cache=self._cached_results(work),
            )
            self._runs.add(run)
            run.start()
        except BaseException:
            if run is not None:
                await self._end(run)
            elif log is not None:
                await log.release()
            raise
        return run

    async def _end(self, run: Run[Any]) -> None:
        """Leave nothing of a run behind but its log."""
        self._runs.discard(run)
        await run.aclose()

    def _work(self, inputs: Mapping[str, Any] | None, outputs: Iterable[str] | None) -> Work[Any]:
        """What is to be run. Raises for inputs and outputs that do not fit the graph."""
        whole = self._dag.plan()
        plan = whole if outputs is None else self._dag.plan_for(outputs)
        values = dict(inputs or {})
        check_inputs(values, whole, plan)
        for_all = self._policy != PLAIN
        policies = {n: self._policy.of(n) for n in plan.order if for_all or n.has_policy}
        return Work(
            nodes=plan.order,
            predecessors=plan.predecessors,
            successors=plan.successors,
            priority={} if self._max_parallel is None else plan.remaining_path(),
            joins=plan.joins(),
            inputs=values,
            policies=policies,
        )

    # What is kept of a run

    def _kept_tasks(self, work: Work[Any], recalled: Recalled) -> Mapping[str, Task]:
        """The tasks of the nodes whose results are kept, by the nodes' names."""
        return {node.task_name: node.task for node in work.nodes}

    def _cached_results(self, work: Work[Any]) -> CachedResults | None:
        if all(policy.cache is None for policy in work.policies.values()):
            return None
        return CachedResults(self._journal or self._memory)

    def _recalled_work(self, recalled: Recalled, *, replay: bool) -> Work[Any]:
        """What is left to do of a run."""
        serializer = self._kept.journal.serializer
        work = self._work(loaded_inputs(recalled, serializer), recalled.header.outputs)
        tasks = self._kept_tasks(work, recalled)
        backend, limit = self._broker.result_backend, self._limit
        results = loaded(
            recalled,
            serializer,
            tasks,
            lambda name, value: as_annotated(value, return_type_of(tasks[name])),
            lambda name, task_id: handle_of(backend, task_id, return_type_of(tasks[name])),
        )
        before = Before(
            results=results,
            is_replayed=replay,
            attempts=recalled.attempts,
            in_flight=recalled.in_flight,
            pick_up=partial(pick_up, backend, limit),
        )
        return replace(work, before=before)


def _listed(names: Iterable[str]) -> list[str]:
    """Names as a list, where a string is one of them."""
    return [names] if isinstance(names, str) else list(names)


def _limit(pass_by: PassBy) -> int | None:
    """The bytes above which results are passed by reference."""
    if pass_by == "value":
        return None
    if pass_by == "reference":
        return ALWAYS
    if isinstance(pass_by, bool) or not isinstance(pass_by, int) or pass_by < 0:
        raise ValueError(
            f"pass_by is {pass_by!r}; give 'value', 'reference' or a number of bytes, 0 or more"
        )
    return pass_by
