"""Runs a graph, and yields its results as a stream. All other methods collect from that stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
    Sized,
)
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, get_args

from aiostream.core import Stream
from anyio.from_thread import start_blocking_portal
from taskiq import AsyncBroker, InMemoryBroker
from taskiq.serializers import JSONSerializer
from taskiq.utils import maybe_awaitable

from taskiq_flow.cache.results import ResultCache, ValueCache
from taskiq_flow.cache.store import store_beside
from taskiq_flow.cleanup import to_the_end
from taskiq_flow.completion.in_memory import InMemoryHooks
from taskiq_flow.dataflow.binding import Task
from taskiq_flow.dataflow.builder import DAGBuilder
from taskiq_flow.dataflow.dag import DAG, Order, Plan
from taskiq_flow.dataflow.fingerprint import with_dependents
from taskiq_flow.dataflow.inputs import as_inputs, check_inputs, sources_among
from taskiq_flow.dataflow.known_classes import ClassesOfTasks
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.options import (
    Retry,
    Seconds,
    as_retry,
    in_seconds,
    most_parallel,
    time_limit,
)
from taskiq_flow.dataflow.registry import DataflowRegistry
from taskiq_flow.dataflow.type_check import TypeCheck, check_types
from taskiq_flow.dispatch.callables import return_type_of
from taskiq_flow.dispatch.dispatcher import Dispatcher
from taskiq_flow.engine.connection import check_broker, check_outlives, check_readable, connect
from taskiq_flow.engine.run import OnError, Run, RunSettings
from taskiq_flow.engine.run import new_run_id as _new_run_id
from taskiq_flow.engine.run import new_task_suffix as _new_task_suffix
from taskiq_flow.engine.run_handle import RunHandle
from taskiq_flow.engine.run_in_progress import Begin, RunInProgress
from taskiq_flow.engine.run_spec import (
    PLAIN_OPTIONS,
    EarlierSessions,
    Items,
    NodeOptions,
    RunSpec,
)
from taskiq_flow.engine.started import started
from taskiq_flow.errors import (
    ConfigurationError,
    GraphError,
    InputConflictError,
    RunNotFoundError,
    SerializationError,
)
from taskiq_flow.events import Item, Listener, NodeFailure, NodeSkipped
from taskiq_flow.journal.given import as_journal
from taskiq_flow.journal.history import (
    RestoredRun,
    check_same_inputs,
    load_inputs,
    load_results,
    restore_run,
)
from taskiq_flow.journal.protocol import Journal
from taskiq_flow.journal.runs import JournaledRuns
from taskiq_flow.journal.writer import LogWriter
from taskiq_flow.middleware import codec_of, wire_of
from taskiq_flow.suggestions import suggests_keywords
from taskiq_flow.transport.notice import ALWAYS
from taskiq_flow.transport.systems import any_of, fullness_of, outages_of
from taskiq_flow.values.codec import ValueCodec
from taskiq_flow.values.isolation import Isolation, Sharing, Take, shared
from taskiq_flow.values.references import handle_of, store_large_inputs
from taskiq_flow.values.results import as_annotated
from taskiq_flow.values.store import folder_of
from taskiq_flow.values.stored import StoredValues
from taskiq_flow.worker.worker import BEAT

StepCallback = Callable[[str, Any], Awaitable[None] | None]

PassBy = Literal["value", "reference"] | int
"""How results reach later nodes; a number of bytes is where ``"value"`` ends."""

SHORTEST_LOST_AFTER = 2 * BEAT
"""Seconds; a task that is running has been reported once by then."""


@suggests_keywords(
    cache="cache= of a node",
    callback="on_step_complete=",
    concurrency="max_parallel=",
    graph="dag=",
    inputs="them in engine.execute(inputs)",
    listener="listeners=[listener]",
    max_concurrency="max_parallel=",
    max_retries="retry=3, or retry=Retry(attempts=3)",
    max_workers="max_parallel=",
    retries="retry=3, or retry=Retry(attempts=3)",
)
class ExecutionEngine:
    """Runs a graph on a taskiq broker.

    ``max_parallel``: how many nodes may be in flight, ``None`` for any number. Under such a limit,
    ``order="critical_path"`` sends the node with the longest remaining path first, by
    ``expected_seconds``; ``"depth_first"`` sends nodes with dependencies before those without any,
    so that little is begun and not finished. ``on_step_complete(task_name,
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
    ``run_timeout``: how long a run may take; then it ends with ``RunTimeoutError``. Times are
    numbers of seconds, or each a ``timedelta``.
    ``journal``: stores runs for ``resume`` and ``rerun``. A path is taken as a ``SqliteJournal``, a
    ``redis://`` address as a ``RedisJournal``. A pair is yielded once the journal has it.

    ``values="isolated"``: in one process, each taker of a value of plain data has a copy of its
    own, and NumPy arrays cannot be written to. ``"shared"``: all takers have the same object.
    ``"encoded"``: each taker is given what a worker elsewhere would be, to rehearse that.

    ``type_check``: what is done about two nodes whose annotations contradict each other. ``"warn"``
    issues a ``TypeMismatchWarning``, ``"error"`` raises ``TypeMismatchError``, ``"off"`` does not
    compare them. They are compared here, and by the next run when the graph was changed.

    An engine may be used for any number of runs, also at the same time. Raises ``TypeError`` or
    ``ValueError`` for a wrong argument.

    >>> dag = DAGBuilder().node(sum, name="total", inputs=["numbers"]).build()
    >>> engine = ExecutionEngine(InMemoryBroker(), dag, max_parallel=8, run_timeout=30.0)
    >>> engine.execute_sync({"numbers": [1, 2, 3]})
    {'total': 6}
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
        lost_after: Seconds = 60.0,
        retry: Retry | int | None = None,
        timeout: Seconds | None = None,
        queue_timeout: Seconds | None = None,
        run_timeout: Seconds | None = None,
        journal: Journal | str | os.PathLike[str] | None = None,
        values: Sharing = "isolated",
        order: Order = "critical_path",
        type_check: TypeCheck = "warn",
    ) -> None:
        check_broker(broker)
        _check_graph(dag)
        if order not in get_args(Order):
            raise ValueError(f"order is {order!r}; give one of {get_args(Order)}")
        if values not in get_args(Sharing):
            raise ValueError(f"values is {values!r}; give one of {get_args(Sharing)}")
        most_parallel("max_parallel", max_parallel)
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error is {on_error!r}; give one of {get_args(OnError)}")
        lost_after = in_seconds("lost_after", lost_after)
        if type_check not in get_args(TypeCheck):
            raise ValueError(f"type_check is {type_check!r}; give one of {get_args(TypeCheck)}")
        if not (math.isfinite(lost_after) and lost_after >= SHORTEST_LOST_AFTER):
            raise ValueError(
                f"lost_after is {lost_after!r}; give a number of seconds from "
                f"{SHORTEST_LOST_AFTER:g} on, as workers report every {BEAT:g} s"
            )
        if on_step_complete is not None and not callable(on_step_complete):
            raise TypeError(
                f"on_step_complete is {on_step_complete!r}; give a function of a node's name and "
                "its result"
            )
        if isinstance(broker, InMemoryBroker):
            InMemoryHooks.of(broker)
        self._broker = broker
        self._dag = dag
        self._options = NodeOptions(
            as_retry("retry", retry),
            time_limit("timeout", timeout),
            time_limit("queue_timeout", queue_timeout),
        )
        self._reference_above = _reference_above(pass_by)
        self._settings = RunSettings(
            max_parallel,
            on_error,
            _checked_listeners(listeners),
            time_limit("run_timeout", run_timeout),
            self._reference_above,
            self._isolation(values),
        )
        self._journal = journal = as_journal(journal)
        self._lost_after = lost_after
        self._order = order
        self._on_step_complete = on_step_complete
        self._in_progress: set[RunInProgress] = set()
        self._cache_store = store_beside(journal)
        serializer = JSONSerializer() if journal is None else journal.serializer
        self._stored_values = StoredValues(serializer, self._classes(), codec_of(broker))
        self._runs = JournaledRuns(journal, dag, self._stored_values)
        self._type_check = type_check
        self._type_checked: Plan | None = None
        try:
            plan = dag.plan()
        except GraphError:  # a run raises it
            return
        self._check_types(plan)

    @property
    def journal(self) -> Journal:
        """The engine's journal, to be closed for example. ``ConfigurationError`` without one."""
        return self._runs.journal

    def execute_async(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        outputs: Iterable[str] | None = None,
        run_id: str | None = None,
        resume: bool = False,
        items: Items = False,
    ) -> AsyncGenerator[tuple[str, Any], None]:
        """Run the graph and yield ``(task_name, result)`` as the results arrive.

        ``inputs``: the graph's external inputs by key. ``outputs``: run only what these keys need.
        ``run_id``: names the run. The ids of its tasks begin with
        ``{run_id}:{task_name}:{attempt}``. The same name may be given again when the run has ended;
        with a journal it may not, as ``resume`` continues the run of that name. ``resume=True``:
        continue the run ``run_id`` as ``resume`` does if the journal has it, otherwise begin it. It
        raises ``InputConflictError`` if the run was begun with other inputs or outputs.
        ``items=True``: besides the list of a mapped node, yield ``(task_name, Item(index, value))``
        for each of its elements as it completes. ``"only"``: in place of the lists, which are not
        kept then unless a node takes them.

        Raises ``TypeError`` at once for ``inputs`` that are no mapping, for example.
        Before anything is sent, raises ``MissingInputError``, ``InputConflictError``,
        ``MissingNodeError``, ``ConfigurationError`` or what ``DAG.validate`` raises. Afterwards,
        raises as ``on_error`` says, and ``RunCancelledError`` after ``cancel()``. Leaving the loop
        early cancels what is in flight. Leave it within ``contextlib.aclosing``: then that is done
        at once, and not when the generator is collected as garbage. To stop a run from another task
        while a read is pending, use ``cancel()``: Python refuses to close a generator then.

        >>> dag = DAGBuilder().node(str.split, name="words", inputs=["text"]).build()
        >>> async def main():
        ...     engine = ExecutionEngine(InMemoryBroker(), dag)
        ...     async for name, result in engine.execute_async({"text": "ebb and flow"}):
        ...         print(name, result)
        >>> asyncio.run(main())
        words ['ebb', 'and', 'flow']
        """
        wanted = None if outputs is None else _listed("outputs", outputs)  # may be read only once
        given = as_inputs(inputs)
        name = _new_run_id() if run_id is None else _checked_id("run_id", run_id)
        if resume and run_id is None:
            raise ValueError("resume=True continues a run by its run_id; give one")
        _check_items(items)

        async def begin(listeners: Sequence[Listener]) -> Run[Any]:
            if resume:
                with contextlib.suppress(RunNotFoundError):
                    return await self._begin_again(
                        listeners,
                        name,
                        inputs=None if inputs is None else given,
                        outputs=wanted,
                        items=items,
                    )
            spec = replace(self._spec(given, wanted), items=items)
            log = self._runs.new_log(name, spec.inputs, wanted)
            return await self._begin(listeners, name, spec, log, is_named=run_id is not None)

        return self._pairs(name, begin)

    def start(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        outputs: Iterable[str] | None = None,
        run_id: str | None = None,
        items: Items = False,
    ) -> RunHandle:
        """Begin a run on the running event loop and return it at once.

        The run can be awaited, read, watched and cancelled, by itself and by several tasks. Takes
        what ``execute_async`` takes.

        Raises at once, before anything is started, what ``execute_async`` raises before anything is
        sent, as far as that shows without asking the broker or the journal. Raises ``RuntimeError``
        where no event loop is running.

        >>> dag = DAGBuilder().node(str.split, name="words", inputs=["text"]).build()
        >>> async def main():
        ...     engine = ExecutionEngine(InMemoryBroker(), dag)
        ...     async with engine.start({"text": "ebb and flow"}, run_id="r1") as run:
        ...         print(run.run_id, run.status)
        ...         return await run
        >>> asyncio.run(main())
        r1 running
        {'words': ['ebb', 'and', 'flow']}
        """
        _check_loop_runs()
        wanted = None if outputs is None else _listed("outputs", outputs)
        name = _new_run_id() if run_id is None else _checked_id("run_id", run_id)
        _check_items(items)
        check_readable(self._broker)
        spec = replace(self._spec(inputs, wanted), items=items)
        log = self._runs.new_log(name, spec.inputs, wanted)

        async def begin(listeners: Sequence[Listener]) -> Run[Any]:
            return await self._begin(listeners, name, spec, log, is_named=run_id is not None)

        ends = all(isinstance(source.items, Sized) for source in spec.sources.values())
        return self._hold(name, begin, ends=ends, items=items)

    def stream(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        outputs: Iterable[str] | None = None,
        run_id: str | None = None,
        resume: bool = False,
        items: Items = False,
    ) -> Stream[tuple[str, Any]]:
        """The pairs of ``execute_async`` as a stream of aiostream, for its operators.

        A run begins when the stream is read, and is cancelled when it is left. Each reading is a
        run of its own. Takes and raises what ``execute_async`` does.

        >>> from aiostream import pipe
        >>> dag = DAGBuilder().node(str.split, name="words", inputs=["text"]).build()
        >>> async def main():
        ...     engine = ExecutionEngine(InMemoryBroker(), dag)
        ...     first = engine.stream({"text": "ebb and flow"}) | pipe.take(1)
        ...     async with first.stream() as pairs:
        ...         async for name, result in pairs:
        ...             print(name, result)
        >>> asyncio.run(main())
        words ['ebb', 'and', 'flow']
        """
        wanted = None if outputs is None else _listed("outputs", outputs)  # may be read only once
        run = partial(
            self.execute_async, inputs, outputs=wanted, run_id=run_id, resume=resume, items=items
        )
        return Stream(run)

    def resume(
        self,
        run_id: str,
        *,
        replay: bool = True,
        allow_changed: bool = False,
        wait: Seconds = 0.0,
        inputs: Mapping[str, Any] | None = None,
        items: Items = False,
    ) -> AsyncGenerator[tuple[str, Any], None]:
        """Continue a run of the engine's journal where it stopped, and yield its results.

        Nodes that had completed are not run again. Their results come first, unless
        ``replay=False``. The result backend is asked for the outcomes of nodes that were in flight.
        Nodes whose outcome it does not have, and nodes that had failed, are sent again.

        Raises ``RunNotFoundError``, ``RunLockedError`` while another engine runs it, and
        ``GraphChangedError`` if it was begun with another graph. ``allow_changed=True`` keeps the
        results of unchanged nodes whose dependencies are unchanged, and runs the other nodes.
        ``wait``: how long to wait for an engine that has the run, as one that was killed has it
        until its lease expires. ``inputs``: those of a run's inputs that have no length, such as
        generators. The journal does not have them: they are given once more, from their beginning.
        If one gives another element in the place of one that was sent, the run ends with
        ``GraphChangedError``. Otherwise like ``execute_async``.

        >>> dag = DAGBuilder().node(lambda: 1, name="a").node(lambda a: a + 1, name="b").build()
        >>> async def main():
        ...     engine = ExecutionEngine(InMemoryBroker(), dag, journal="runs.db")
        ...     try:
        ...         async for name, result in engine.execute_async(run_id="r1"):
        ...             engine.cancel()  # or a kill of the process
        ...     except RunCancelledError:
        ...         print("stopped")
        ...     async for name, result in engine.resume("r1"):
        ...         print(name, result)
        ...     await engine.journal.aclose()
        >>> asyncio.run(main())
        stopped
        a 1
        b 2
        """
        _checked_id("run_id", run_id)
        _check_items(items)
        again = partial(
            self._begin_again,
            run_id=run_id,
            replay=replay,
            allow_changed=allow_changed,
            wait=in_seconds("wait", wait),
            sources=as_inputs(inputs),
            items=items,
        )
        return self._pairs(run_id, again)

    def _start_again(self, run_id: str, sources: Mapping[str, Any], *, ends: bool) -> RunHandle:
        """``resume`` as a run that its user holds, without the lists of its mapped nodes."""
        _checked_id("run_id", run_id)
        again = partial(self._begin_again, run_id=run_id, sources=sources, items="only")
        return self._hold(run_id, again, ends=ends, items="only")

    def rerun(
        self,
        run_id: str,
        from_: Iterable[str],
        *,
        replay: bool = True,
        allow_changed: bool = False,
        new_run_id: str | None = None,
    ) -> AsyncGenerator[tuple[str, Any], None]:
        """Run nodes of an earlier run again, with all that depends on them, as a new run.

        ``from_``: names of nodes. The results of all others are taken from the earlier run, and
        come first unless ``replay=False``. The new run is called ``new_run_id``. It has the inputs
        of the earlier run, which does not change. Raises ``MissingNodeError`` for a name that the
        graph does not have, otherwise like ``resume``.

        >>> dag = DAGBuilder().node(lambda: 1, name="a").node(lambda a: a + 1, name="b").build()
        >>> async def main():
        ...     engine = ExecutionEngine(InMemoryBroker(), dag, journal=MemoryJournal())
        ...     await engine.execute(run_id="r1")
        ...     async for name, result in engine.rerun("r1", ["b"], replay=False):
        ...         print(name, result)
        >>> asyncio.run(main())
        b 2
        """
        asked = _listed("from_", from_)
        _checked_id("run_id", run_id)
        name = _new_run_id() if new_run_id is None else _checked_id("new_run_id", new_run_id)

        async def begin(listeners: Sequence[Listener]) -> Run[Any]:
            restored = await restore_run(self._runs.journal, run_id)
            again = [self._dag.get_node(name).task_name for name in asked]
            self._runs.adapt_to_graph(restored, allow_changed=allow_changed)
            plan = self._dag.plan()
            rerun = with_dependents(plan, again)
            for node_name in [n for n in restored.results if plan.node_of(n) in rerun]:
                del restored.results[node_name]
            spec = self._restored_spec(restored, replay=replay)
            earlier = EarlierSessions(spec.earlier.results, is_replayed=replay, rerun=rerun)
            kept = [restored.results[node_name] for node_name in earlier.results]
            values = self._stored_values.like(restored.header.serializer)
            log = self._runs.new_log(name, spec.inputs, restored.header.outputs, kept, values)
            spec = replace(spec, earlier=earlier)
            return await self._begin(listeners, name, spec, log, is_named=new_run_id is not None)

        return self._pairs(name, begin)

    async def execute(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        outputs: Iterable[str] | None = None,
        run_id: str | None = None,
        resume: bool = False,
    ) -> dict[str, Any]:
        """Run the graph to its end and return all output keys with their values.

        Takes and raises what ``execute_async`` does. Under ``on_error="collect"`` the keys of a
        failed or skipped node have its ``NodeFailure`` or ``NodeSkipped`` as their value.

        >>> dag = DAGBuilder().node(sorted, name="in_order", inputs=["numbers"]).build()
        >>> engine = ExecutionEngine(InMemoryBroker(), dag)
        >>> asyncio.run(engine.execute({"numbers": [1, 3, 2]}))
        {'in_order': [1, 2, 3]}
        """
        results: dict[str, Any] = {}
        stream = self.execute_async(inputs, outputs=outputs, run_id=run_id, resume=resume)
        async with aclosing(stream) as pairs:
            async for name, result in pairs:
                self._store(results, name, result)
        return results

    def execute_sync(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        outputs: Iterable[str] | None = None,
        run_id: str | None = None,
        resume: bool = False,
    ) -> dict[str, Any]:
        """Like ``execute``, for code without ``async``: scripts, and cells of a notebook.

        Starts the broker before the run and shuts it down afterwards, unless it is started. Where
        an event loop runs already, as in a notebook, the run has a thread and a loop of its own.

        >>> dag = DAGBuilder().node(sorted, name="in_order", inputs=["numbers"]).build()
        >>> ExecutionEngine(InMemoryBroker(), dag).execute_sync({"numbers": [1, 3, 2]})
        {'in_order': [1, 2, 3]}
        """

        async def run() -> dict[str, Any]:
            async with started(self._broker):
                return await self.execute(inputs, outputs=outputs, run_id=run_id, resume=resume)

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(run())
        with start_blocking_portal() as portal:
            return portal.call(run)

    def cancel(self) -> None:
        """Stop every run of this engine that is in progress or about to begin.

        Their readers get ``RunCancelledError``. May be called in any thread.
        """
        for run in tuple(self._in_progress):
            run.cancel()

    def __repr__(self) -> str:
        running = len(self._in_progress)
        return (
            f"<ExecutionEngine of {self._dag!r} on {type(self._broker).__name__}, "
            f"{running} {'run' if running == 1 else 'runs'} in progress>"
        )

    # One run

    async def _pairs(
        self, run_id: str, begin: Begin, in_progress: RunInProgress | None = None
    ) -> AsyncGenerator[tuple[str, Any], None]:
        """The results of a run. ``begin`` makes and starts it."""
        if in_progress is None:
            in_progress = RunInProgress(run_id, self._in_progress)
        try:
            run = await in_progress.begun(begin)
            unread, is_reported = run.stream.unread, self._on_step_complete is not None
            try:
                while unread or await run.stream.more():
                    yield await self._next_reported(run) if is_reported else run.take()
            finally:
                await run.aclose()
        finally:
            in_progress.ended()

    async def _begin_again(
        self,
        listeners: Sequence[Listener],
        run_id: str,
        *,
        replay: bool = True,
        allow_changed: bool = False,
        wait: float = 0.0,
        inputs: Mapping[str, Any] | None = None,
        outputs: list[str] | None = None,
        sources: Mapping[str, Any] = MappingProxyType({}),
        items: Items = False,
    ) -> Run[Any]:
        """Continue a run of the journal. ``inputs``, ``outputs``: what it must have begun with.

        ``sources``: inputs that the journal does not have.
        """
        journal = self._runs.journal
        log: LogWriter[Any] = LogWriter(journal, run_id, self._stored_values)
        await log.acquire(wait)
        try:
            restored = await restore_run(journal, run_id)
            log.values = self._stored_values.like(restored.header.serializer)
            if inputs is not None:
                sources = sources_among(inputs, self._dag.plan(), self._settings.max_parallel)
                stored = {key: value for key, value in inputs.items() if key not in sources}
                check_same_inputs(restored, log.values, stored, outputs)
            log.prepend(self._runs.adapt_to_graph(restored, allow_changed=allow_changed))
            spec = self._restored_spec(restored, replay=replay, sources=sources)
            spec = replace(spec, items=items)
        except BaseException:  # a cancellation too
            await to_the_end(log.release())
            raise
        return await self._begin(listeners, run_id, spec, log, restored.sessions, is_named=True)

    async def _begin(
        self,
        listeners: Sequence[Listener],
        run_id: str,
        spec: RunSpec[Any],
        log: LogWriter[Any] | None,
        earlier_sessions: Iterable[str] = (),
        *,
        is_named: bool,
    ) -> Run[Any]:
        """Connect, open the log, and start the run. Closes what was opened if that fails.

        ``listeners``: of this run, besides the engine's. ``is_named``: whether another run may have
        had this run id, as its user gave it.
        """
        broker = self._broker
        suffix = _new_task_suffix() if is_named else ""
        run: Run[Any] | None = None
        try:
            check_readable(broker)
            if self._journal is not None and self._reference_above is not None:
                check_outlives(broker)
            connection = await connect(
                broker,
                run_id,
                lost_after=self._lost_after,
                reference_above=self._reference_above,
                is_journaled=log is not None,
                keeps_values=not spec.sources,
            )
            take = self._settings.isolation()
            dispatcher = Dispatcher(
                broker, connection.labels, connection.kick, take, connection.arguments
            )
            self._check(spec, dispatcher, tells_begin=connection.tells_begin)
            stored = await self._stored_inputs(spec, run_id, connection.session)
            if log is not None:
                await log.begin(connection.session, suffix)
            if connection.revoke is not None:
                for session in earlier_sessions:
                    await connection.revoke(session)
            completions, cache = connection.completions(), self._cache(spec)
            settings = self._settings
            if listeners:
                settings = replace(settings, listeners=(*settings.listeners, *listeners))
            run = Run(
                run_id,
                replace(spec, task_suffix=suffix, stored_inputs=stored),
                settings,
                broker,
                completions,
                dispatcher,
                take=take,
                log=log,
                cache=cache,
            )
            run.start()
        except BaseException:  # a cancellation too
            if run is not None:
                await run.aclose()
            elif log is not None:
                await to_the_end(log.release())
            raise
        return run

    def _hold(self, run_id: str, begin: Begin, *, ends: bool, items: Items) -> RunHandle:
        """Begin a run that its user holds. ``ends``: whether all that it maps over has a length."""
        in_progress = RunInProgress(run_id, self._in_progress)
        pairs = self._pairs(run_id, begin, in_progress)
        return RunHandle(in_progress, pairs, self._store, ends=ends, yields_items=bool(items))

    def _store(self, results: dict[str, Any], name: str, result: Any) -> None:
        """Store what a node gives, by its output keys. Elements are not stored."""
        node = self._dag.get_node(name)
        if isinstance(result, (NodeFailure, NodeSkipped)):
            results.update(dict.fromkeys(node.outputs, result))
        elif node.map_over and isinstance(result, Item):
            return
        elif node.map_over and len(node.outputs) > 1:
            results.update(_lists_by_key(node, result))
        else:
            node.store(result, results)

    async def _next_reported(self, run: Run[Any]) -> tuple[str, Any]:
        """The next pair, after ``on_step_complete`` was called with it."""
        pair = run.take()
        if self._on_step_complete is not None:
            try:
                await maybe_awaitable(self._on_step_complete(*pair))
            except Exception as error:  # the caller's own, which ends the run
                run.stop_because_of(error)
                raise
        return pair

    def _spec(
        self, inputs: Mapping[str, Any] | None, outputs: Iterable[str] | None
    ) -> RunSpec[Any]:
        """What a run has to do. Raises for inputs and outputs that do not fit the graph."""
        whole = self._dag.plan()
        self._check_types(whole)
        plan = whole if outputs is None else self._dag.plan_for(outputs)
        take = self._settings.isolation()
        given = as_inputs(inputs)
        check_inputs(given, whole, plan)
        sources = sources_among(given, whole, self._settings.max_parallel)
        values = {k: _taken_input(take, k, v) for k, v in given.items() if k not in sources}
        of_engine = self._options
        for_all = of_engine != PLAIN_OPTIONS
        return RunSpec(
            nodes=plan.order,
            predecessors=plan.predecessors,
            successors=plan.successors,
            priority={} if self._settings.max_parallel is None else plan.priority(self._order),
            failure_keys=plan.failure_keys,
            elements=plan.elements,
            sources={key: source for key, source in sources.items() if key in plan.required},
            joins=plan.joins(),
            inputs=values,
            options={n: of_engine.of(n, take) for n in plan.order if for_all or n.has_policy},
        )

    def _check_types(self, plan: Plan) -> None:
        """Compare the annotations of a graph's nodes, unless that was done."""
        if plan is not self._type_checked:
            check_types(plan, self._type_check)
            self._type_checked = plan

    def _check(self, spec: RunSpec[Any], dispatcher: Dispatcher, *, tells_begin: bool) -> None:
        """Raise ``ConfigurationError`` if the broker cannot do what a node's options ask for."""
        if spec.elements is not None and self._reference_above is not None:
            raise ConfigurationError(
                "the graph has mapped nodes, and its engine has pass_by=, which cannot be combined "
                "yet; give the engine pass_by='value'"
            )
        for node in spec.nodes:
            dispatcher.address(node)
        for node, options in spec.options.items():
            if options.fallback_node is not None:
                dispatcher.address(options.fallback_node)
            if options.queue_timeout is not None and not tells_begin:
                raise ConfigurationError(
                    f"node {node.task_name!r} has a queue_timeout, and "
                    f"{type(self._broker).__name__} does not tell when a task begins; add a "
                    "FlowMiddleware to it, here and where its workers run"
                )

    async def _stored_inputs(
        self, spec: RunSpec[Any], run_id: str, session: str
    ) -> Mapping[str, Any]:
        """Handles of the run's large inputs, if these are to go by reference."""
        broker, limit = self._broker, self._reference_above
        if limit is None or isinstance(broker, InMemoryBroker):
            return {}
        backend = broker.result_backend
        is_outage = any_of(outages_of(backend), fullness_of(backend))
        wire = wire_of(broker)
        if wire is None:  # refused when the run connects
            return {}
        folder = folder_of(session)
        return await store_large_inputs(
            backend, spec.inputs, limit, run_id, is_outage, wire, folder
        )

    def _cache(self, spec: RunSpec[Any]) -> ValueCache | None:
        if all(options.cache is None for options in spec.options.values()):
            return None
        return ValueCache(ResultCache.of(self._cache_store), self._stored_values)

    def _isolation(self, values: Sharing) -> Callable[[], Take]:
        """What makes, for each run, what its takers in this process are given."""
        if values == "encoded":
            codec, classes = codec_of(self._broker) or ValueCodec(), self._classes()

            def take(value: Any) -> Any:
                text = json.dumps(codec.encode(value, strict=True))
                return codec.decode(json.loads(text), classes)

            return lambda: take
        return (lambda: shared) if values == "shared" else Isolation

    def _classes(self) -> ClassesOfTasks:
        """The classes whose objects are restored from the journal and the cache."""
        return ClassesOfTasks(lambda: [node.task for node in self._dag.nodes])

    # A run of the journal

    def _restored_tasks(self, spec: RunSpec[Any], restored: RestoredRun) -> Mapping[str, Task]:
        """The tasks of the nodes and elements whose results are kept, by their names."""
        tasks = {node.task_name: node.task for node in spec.nodes}
        if spec.elements is None:
            return tasks
        owners = {name: self._dag.plan().node_of(name) for name in restored.results}
        return {name: tasks[owner] for name, owner in owners.items() if owner in tasks}

    def _restored_spec(
        self,
        restored: RestoredRun,
        *,
        replay: bool,
        sources: Mapping[str, Any] = MappingProxyType({}),
    ) -> RunSpec[Any]:
        """What is left to do of a run. ``sources``: inputs that the journal does not have.

        Raises ``InputConflictError`` if the journal has one of them.
        """
        values = self._stored_values.like(restored.header.serializer)
        inputs = load_inputs(restored, values)
        if known := [key for key in sources if key in inputs]:
            raise InputConflictError(
                f"run {restored.run_id!r} has its input {known[0]!r} in the journal; resume it "
                "without that one",
                keys=known,
            )
        spec = self._spec({**inputs, **sources}, restored.header.outputs)
        tasks = self._restored_tasks(spec, restored)
        backend = self._broker.result_backend
        results = load_results(
            restored,
            values,
            tasks,
            lambda name, value: as_annotated(value, return_type_of(tasks[name])),
            lambda name, task_id: handle_of(
                backend, task_id, return_type_of(tasks[name]), wire_of(self._broker)
            ),
        )
        earlier = EarlierSessions(
            results,
            replay,
            restored.attempts,
            restored.in_flight,
            digests=restored.digests,
            lengths=restored.lengths,
        )
        return replace(spec, earlier=earlier)


def _taken_input(take: Take, key: str, value: Any) -> Any:
    """An input as it is when the run begins. Raises ``SerializationError``, naming the key."""
    try:
        return take(value)
    except SerializationError as error:
        raise SerializationError(
            f"the run was given the input {key!r}, which cannot be passed on: {error}",
            key=key,
            value_type=type(value),
        ) from None


def _check_loop_runs() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "engine.start() begins a run on the running event loop, and none is running in this "
            "thread; call it in a coroutine, or use engine.execute_sync()"
        ) from None


def _check_items(items: object) -> None:
    if items not in (True, False, "only"):
        raise ValueError(f"items is {items!r}; give True, False or 'only'")


def _lists_by_key(node: DAGNode, returned: Iterable[Any], levels: int) -> dict[str, list[Any]]:
    """The lists of a mapped node with several outputs, of what each of its elements returned.

    ``levels``: of lists within lists.
    """
    lists: dict[str, list[Any]] = {key: [] for key in node.outputs}
    for result in returned:
        given: dict[str, Any] = {}
        is_missing = isinstance(result, (NodeFailure, NodeSkipped))
        if is_missing:
            given = dict.fromkeys(node.outputs, result)
        elif levels > 1:
            given = {**_lists_by_key(node, result, levels - 1)}
        else:
            node.store(result, given)
        for key, value in given.items():
            if node.flatten and levels == 1 and not is_missing:
                lists[key] += value
            else:
                lists[key].append(value)
    return lists


def _listed(argument: str, names: Iterable[str]) -> list[str]:
    """A list of names. A single string becomes a list of one."""
    if not isinstance(names, Iterable):
        raise TypeError(f"{argument} is {names!r}; give a list of names")
    return [names] if isinstance(names, str) else list(names)


def _checked_id(argument: str, run_id: str) -> str:
    if not isinstance(run_id, str):
        raise TypeError(f"{argument} is {run_id!r}; give a string")
    if not run_id:
        raise ValueError(f"{argument} is empty; give a name, or leave it out")
    return run_id


def _check_graph(dag: object) -> None:
    if isinstance(dag, DAG):
        return
    instead = {DAGBuilder: "builder.build()", DataflowRegistry: "registry.build_dag()"}
    shown = f"the class {dag.__name__}" if isinstance(dag, type) else repr(dag)
    raise TypeError(
        f"dag is {shown}; give the graph, as in ExecutionEngine(broker, "
        f"{instead.get(type(dag), 'builder.build()')})"
    )


def _checked_listeners(listeners: Any) -> tuple[Listener, ...]:
    """The listeners of an engine. Raises ``TypeError`` for what is none."""
    if hasattr(listeners, "on_event") and not isinstance(listeners, type):
        raise TypeError(f"listeners is {listeners!r}, a single listener; give a list of listeners")
    if not isinstance(listeners, Iterable):
        raise TypeError(f"listeners is {listeners!r}; give a list of listeners")
    checked = tuple(listeners)
    for listener in checked:
        if isinstance(listener, type):
            raise TypeError(
                f"listeners holds the class {listener.__name__}; give an instance of it"
            )
        if not callable(getattr(listener, "on_event", None)):
            raise TypeError(
                f"listeners holds {listener!r}, which has no method on_event(event); give an "
                "object that has one"
            )
    return checked


def _reference_above(pass_by: PassBy) -> int | None:
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
