"""Runs a graph, and yields its results as a stream. All other methods collect from that stream."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sized,
)
from contextlib import aclosing
from functools import partial
from typing import Any, get_args

from aiostream.core import Stream
from anyio.from_thread import start_blocking_portal
from taskiq import AsyncBroker, InMemoryBroker
from taskiq.serializers import JSONSerializer
from taskiq.utils import maybe_awaitable

from taskiq_flow.cache.store import store_beside
from taskiq_flow.completion.in_memory_hooks import InMemoryHooks
from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.known_classes import ClassesOfTasks
from taskiq_flow.dataflow.options import (
    Retry,
    Seconds,
    as_retry,
    in_seconds,
    most_parallel,
    time_limit,
)
from taskiq_flow.dataflow.plan import Order
from taskiq_flow.dataflow.rows import MOST_IN_FLIGHT
from taskiq_flow.dataflow.type_check import TypeCheck
from taskiq_flow.dispatch.callables import embedded
from taskiq_flow.engine.arguments import (
    PassBy,
    check_choice,
    check_graph,
    check_loop_runs,
    check_resume,
    checked_listeners,
    checked_lost_after,
    checked_tags,
    id_or_new,
    isolation_of,
    reference_above,
    wanted_outputs,
)
from taskiq_flow.engine.beginnings import Beginning, Beginnings
from taskiq_flow.engine.connection import check_broker
from taskiq_flow.engine.many import HeldBack, as_results, check_source, in_order, with_numbers
from taskiq_flow.engine.mapped_lists import RUN_ENDED
from taskiq_flow.engine.planning import Planner
from taskiq_flow.engine.results import store_result
from taskiq_flow.engine.run import Run
from taskiq_flow.engine.run_handle import Progress, RunHandle
from taskiq_flow.engine.run_in_progress import RunInProgress
from taskiq_flow.engine.run_spec import Items, NodeOptions, OnError, RunSettings
from taskiq_flow.engine.started import started
from taskiq_flow.engine.starting import Starter
from taskiq_flow.events import Listener
from taskiq_flow.journal.given import as_journal
from taskiq_flow.journal.protocol import LEASE_WAIT, Journal
from taskiq_flow.journal.runs import JournaledRuns
from taskiq_flow.middleware import codec_of
from taskiq_flow.suggestions import suggests_keywords
from taskiq_flow.values.isolation import Sharing
from taskiq_flow.values.stored import StoredValues

StepCallback = Callable[[str, Any], Awaitable[None] | None]


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
    the run. ``listeners`` receive typed events.

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

    ``tags``: texts by which its runs are found among others, as ``RunReader.runs(tag=)`` does.

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
        tags: Iterable[str] = (),
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        check_broker(broker)
        check_graph(dag)
        check_choice("order", order, get_args(Order))
        check_choice("values", values, get_args(Sharing))
        max_parallel = most_parallel("max_parallel", max_parallel)
        check_choice("on_error", on_error, get_args(OnError))
        check_choice("type_check", type_check, get_args(TypeCheck))
        if on_step_complete is not None and not callable(on_step_complete):
            raise TypeError(
                f"on_step_complete is {on_step_complete!r}; give a function of a node's name and "
                "its result"
            )
        options = NodeOptions(
            as_retry("retry", retry),
            time_limit("timeout", timeout),
            time_limit("queue_timeout", queue_timeout),
        )
        codec, classes = codec_of(broker), ClassesOfTasks(lambda: [node.task for node in dag.nodes])
        settings = RunSettings(
            max_parallel=max_parallel,
            on_error=on_error,
            listeners=checked_listeners(listeners),
            run_timeout=time_limit("run_timeout", run_timeout),
            reference_above=reference_above(pass_by),
            isolation=isolation_of(values, codec, classes),
            name=dag.name,
            tags=checked_tags(tags),
            origin=dag.origin,
        )
        journal = as_journal(journal)
        serializer = JSONSerializer() if journal is None else journal.serializer
        stored = StoredValues(serializer, classes, codec)
        self._options = given | {
            "max_parallel": max_parallel,
            "listeners": settings.listeners,
            "journal": journal,
            "tags": settings.tags,
        }
        self._broker = broker
        self._dag = dag
        self._on_step_complete = on_step_complete
        self._in_progress: set[RunInProgress] = set()
        self._runs = JournaledRuns(journal, dag, stored, on_error=on_error)
        planner = Planner(dag, settings, options, order, type_check)
        if isinstance(broker, InMemoryBroker):
            InMemoryHooks.of(broker)
            for task in planner.tasks:  # here, not in the time of the first run
                with contextlib.suppress(Exception):  # a run raises it
                    embedded(broker, task)
        self._starter = Starter(
            broker, settings, checked_lost_after(lost_after), stored, store_beside(journal)
        )
        self._beginnings = Beginnings(broker, planner, self._starter, self._runs, stored)

    @property
    def options(self) -> dict[str, Any]:
        """What the engine was made with, by argument, for another engine that differs in some.

        >>> dag = DAGBuilder().node(abs, inputs=["number"]).build()
        >>> engine = ExecutionEngine(InMemoryBroker(), dag, run_timeout=30.0)
        >>> careful = ExecutionEngine(**engine.options | {"max_parallel": 1})
        >>> careful.options["run_timeout"], careful.options["max_parallel"]
        (30.0, 1)
        """
        return dict(self._options)

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
        replay: bool = True,
        items: Items = False,
    ) -> AsyncGenerator[tuple[str, Any], None]:
        """Run the graph and yield ``(task_name, result)`` as the results arrive.

        ``inputs``: the graph's external inputs by key. ``outputs``: run only what these keys need.
        ``run_id``: names the run. The ids of its tasks begin with
        ``{run_id}:{task_name}:{attempt}``. The same name may be given again when the run has ended;
        with a journal it may not, as ``resume`` continues the run of that name. ``resume=True``:
        continue the run ``run_id`` as ``resume`` does if the journal has it, otherwise begin it. It
        waits for the lease of an engine that was killed, which takes 11 s at the most, and raises
        ``RunLockedError`` if the engine lives. It raises ``InputConflictError`` if the run was
        begun with other inputs or outputs. The results of nodes that had completed come first,
        unless ``replay=False``.
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
        beginning = self._beginnings.begun(
            inputs, outputs, run_id, resume=resume, replay=replay, items=items
        )
        return self._pairs(beginning)

    def start(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        outputs: Iterable[str] | None = None,
        run_id: str | None = None,
        resume: bool = False,
        replay: bool = True,
        items: Items = False,
    ) -> RunHandle:
        """Begin a run on the running event loop and return it at once.

        The run can be awaited, read, watched and cancelled, by itself and by several tasks. Takes
        what ``execute_async`` takes. ``start_resume`` and ``start_rerun`` begin what ``resume`` and
        ``rerun`` do in this way.

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
        beginning = self._beginnings.begun(
            inputs, outputs, run_id, resume=resume, replay=replay, items=items
        )
        return self._hold(beginning)

    def stream(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        outputs: Iterable[str] | None = None,
        run_id: str | None = None,
        resume: bool = False,
        replay: bool = True,
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
        wanted = wanted_outputs(outputs)
        run = partial(
            self.execute_async,
            inputs,
            outputs=wanted,
            run_id=run_id,
            resume=resume,
            replay=replay,
            items=items,
        )
        return Stream(run)

    def execute_many(
        self,
        source: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        task_limit: int | None = 8,
        ordered: bool = False,
        whole: bool = False,
        outputs: Iterable[str] | None = None,
        items: bool = False,
        run_id: str | None = None,
        resume: bool = False,
        replay: bool = True,
        allow_changed: bool = False,
        wait: Seconds = LEASE_WAIT,
    ) -> AsyncGenerator[Any, None]:
        """Run the graph for each mapping of inputs, and yield ``(index, task_name, result)``.

        ``task_limit``: for how many inputs at once, ``None`` for 256; the source is read as far
        as there is room. ``ordered``: the results for one input after those for the one before it;
        so many inputs at the most wait for an earlier one. ``whole``: yield ``(index, results)``
        instead, once for each input, with what ``execute`` returns, and also under
        ``on_error="continue"`` what failed and was skipped. ``items``: also yield the elements of
        mapped nodes, each as an ``Item``. All of it is one run, called ``run_id``.

        ``resume=True``: continue the run ``run_id`` if the journal has it, otherwise begin it. The
        source is given once more, from its beginning. What had completed is not run again, and its
        results come again, unless ``replay=False``: then, with ``whole=True``, those of inputs that
        had not ended. If the source gives another input in the place of one that was begun, or
        fewer of them, the run ends with ``GraphChangedError``. So it does if the graph is another
        one, unless ``allow_changed=True``, as in ``resume``. ``wait``: how long to wait for an
        engine that has the run; 11 s, after which the lease of one that was killed has expired.

        An input that lacks a key fails by itself, as a node does: ``on_error`` says what follows.
        Raises ``GraphError`` for a graph that cannot be mapped, otherwise like ``execute_async``.

        >>> dag = DAGBuilder().node(str.split, name="words", inputs=["text"]).build()
        >>> async def main():
        ...     engine = ExecutionEngine(InMemoryBroker(), dag)
        ...     texts = ({"text": text} for text in ["ebb and flow", "tide"])
        ...     async for index, results in engine.execute_many(texts, ordered=True, whole=True):
        ...         print(index, results)
        >>> asyncio.run(main())
        0 {'words': ['ebb', 'and', 'flow']}
        1 {'words': ['tide']}
        """
        check_source(source)
        limit = most_parallel("task_limit", task_limit) or MOST_IN_FLIGHT
        if not isinstance(items, bool):
            raise TypeError(f"items is {items!r}; give True or False")
        if whole and items:
            raise ValueError("whole=True yields one result for each input; leave items= out")
        wanted = wanted_outputs(outputs)
        name = id_or_new("run_id", run_id)
        check_resume(run_id, resume=resume, replay=replay)
        if allow_changed and not resume:
            raise ValueError("allow_changed=True continues a run; give resume=True as well")
        held = HeldBack()
        beginning = self._beginnings.many(
            name,
            source,
            limit,
            held,
            wanted,
            whole=whole,
            items=items,
            resume=resume,
            replay=replay,
            allow_changed=allow_changed,
            wait=in_seconds("wait", wait),
            is_named=run_id is not None,
        )
        pairs = self._pairs(beginning)
        if ordered:
            pairs = in_order(pairs, held)
        if whole:
            return as_results(pairs, self._dag, replay=replay)
        return with_numbers(pairs)

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
        again = self._beginnings.resumed(
            run_id, inputs, replay=replay, allow_changed=allow_changed, wait=wait, items=items
        )
        return self._pairs(again)

    def start_resume(
        self,
        run_id: str,
        *,
        replay: bool = True,
        allow_changed: bool = False,
        wait: Seconds = 0.0,
        inputs: Mapping[str, Any] | None = None,
        items: Items = False,
    ) -> RunHandle:
        """Continue a run of the engine's journal and return it at once, as ``start`` does.

        Takes what ``resume`` takes. What the journal refuses is raised where the run is awaited or
        read.

        >>> dag = DAGBuilder().node(lambda: 1, name="a").node(lambda a: a + 1, name="b").build()
        >>> async def main():
        ...     engine = ExecutionEngine(InMemoryBroker(), dag, journal=MemoryJournal())
        ...     await engine.execute(run_id="r1")
        ...     return await engine.start_resume("r1")
        >>> asyncio.run(main())
        {'a': 1, 'b': 2}
        """
        again = self._beginnings.resumed(
            run_id, inputs, replay=replay, allow_changed=allow_changed, wait=wait, items=items
        )
        return self._hold(again)

    def rerun(
        self,
        run_id: str,
        from_: Iterable[str],
        *,
        replay: bool = True,
        allow_changed: bool = False,
        new_run_id: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        items: Items = False,
    ) -> AsyncGenerator[tuple[str, Any], None]:
        """Run nodes of an earlier run again, with all that depends on them, as a new run.

        ``from_``: names of nodes. The results of all others are taken from the earlier run, and
        come first unless ``replay=False``. What has none there is tried again as in ``resume``,
        with what was made of its failure. The new run is called ``new_run_id``. It has the inputs
        of the earlier run, which does not change. ``inputs``: others in the place of these, so that
        the nodes that take them run again as well; and those that have no length, as in ``resume``.
        Raises ``MissingNodeError`` for a name that the graph does not have, ``RunLockedError``
        while the earlier run is in progress, otherwise like ``resume``.

        >>> dag = DAGBuilder().node(lambda: 1, name="a").node(lambda a: a + 1, name="b").build()
        >>> async def main():
        ...     engine = ExecutionEngine(InMemoryBroker(), dag, journal=MemoryJournal())
        ...     await engine.execute(run_id="r1")
        ...     async for name, result in engine.rerun("r1", ["b"], replay=False):
        ...         print(name, result)
        >>> asyncio.run(main())
        b 2
        """
        again = self._beginnings.rerun(
            run_id,
            from_,
            replay=replay,
            allow_changed=allow_changed,
            new_run_id=new_run_id,
            inputs=inputs,
            items=items,
        )
        return self._pairs(again)

    def start_rerun(
        self,
        run_id: str,
        from_: Iterable[str],
        *,
        replay: bool = True,
        allow_changed: bool = False,
        new_run_id: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        items: Items = False,
    ) -> RunHandle:
        """Run nodes of an earlier run again, and return the new run at once, as ``start`` does.

        Takes what ``rerun`` takes. What the journal refuses is raised where the run is awaited or
        read.

        >>> dag = DAGBuilder().node(lambda: 1, name="a").node(lambda a: a + 1, name="b").build()
        >>> async def main():
        ...     engine = ExecutionEngine(InMemoryBroker(), dag, journal=MemoryJournal())
        ...     await engine.execute(run_id="r1")
        ...     run = engine.start_rerun("r1", ["b"], new_run_id="r2")
        ...     return run.run_id, await run
        >>> asyncio.run(main())
        ('r2', {'a': 1, 'b': 2})
        """
        again = self._beginnings.rerun(
            run_id,
            from_,
            replay=replay,
            allow_changed=allow_changed,
            new_run_id=new_run_id,
            inputs=inputs,
            items=items,
        )
        return self._hold(again)

    async def execute(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        outputs: Iterable[str] | None = None,
        run_id: str | None = None,
        resume: bool = False,
        replay: bool = True,
    ) -> dict[str, Any]:
        """Run the graph to its end and return all output keys with their values.

        Takes and raises what ``execute_async`` does. Under ``on_error="collect"`` the keys of a
        failed or skipped node have its ``NodeFailure`` or ``NodeSkipped`` as their value. With
        ``replay=False`` the keys of nodes that had completed before are left out.

        >>> dag = DAGBuilder().node(sorted, name="in_order", inputs=["numbers"]).build()
        >>> engine = ExecutionEngine(InMemoryBroker(), dag)
        >>> asyncio.run(engine.execute({"numbers": [1, 3, 2]}))
        {'in_order': [1, 2, 3]}
        """
        results: dict[str, Any] = {}
        stream = self.execute_async(
            inputs, outputs=outputs, run_id=run_id, resume=resume, replay=replay
        )
        async with aclosing(stream) as pairs:
            async for name, result in pairs:
                store_result(self._dag, results, name, result)
        return results

    def execute_sync(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        outputs: Iterable[str] | None = None,
        run_id: str | None = None,
        resume: bool = False,
        replay: bool = True,
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
                return await self.execute(
                    inputs, outputs=outputs, run_id=run_id, resume=resume, replay=replay
                )

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            is_in_loop = False
        else:
            is_in_loop = True
        if not is_in_loop:  # not while the error is handled, which would be in each traceback
            return asyncio.run(run())
        with start_blocking_portal() as portal:
            return portal.call(run)

    def cancel(self) -> None:
        """Stop every run of this engine that is in progress or about to begin.

        Their readers get ``RunCancelledError``. May be called in any thread. A run that ``start``
        began has a ``cancel`` of its own.
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
        self, beginning: Beginning, in_progress: RunInProgress | None = None
    ) -> AsyncGenerator[tuple[str, Any], None]:
        """The results of a run, which begins with the first read."""
        if in_progress is None:
            in_progress = RunInProgress(beginning.run_id, self._in_progress)
        try:
            run = await in_progress.begun(beginning.begin)
            unread, is_reported = run.stream.unread, self._on_step_complete is not None
            try:
                while unread or await run.stream.more():
                    yield await self._next_reported(run) if is_reported else run.take()
            finally:
                await run.aclose()
        finally:
            in_progress.ended()

    def _hold(self, beginning: Beginning) -> RunHandle:
        """Begin a run that its user holds."""
        check_loop_runs()
        sources = beginning.sources()
        in_progress = RunInProgress(beginning.run_id, self._in_progress)
        plan = self._dag.plan().by_items
        progress = Progress(
            in_progress,
            partial(store_result, self._dag),
            is_finite=all(isinstance(source.items, Sized) for source in sources.values()),
            yields_items=bool(beginning.items),
            has_generators=plan is not None and bool(plan.generators),
        )
        return RunHandle(beginning.run_id, progress, self._pairs(beginning, in_progress))

    async def _next_reported(self, run: Run) -> tuple[str, Any]:
        """The next pair, after ``on_step_complete`` was called with it."""
        pair = run.take()
        if self._on_step_complete is not None and pair[0] != RUN_ENDED:
            try:
                await maybe_awaitable(self._on_step_complete(*pair))
            except Exception as error:  # the caller's own, which ends the run
                run.end(error)
                raise
        return pair
