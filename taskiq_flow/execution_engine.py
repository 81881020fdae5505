"""The engine: graphs in, a stream of results out. All else collects from ``execute_async``."""

from __future__ import annotations

import math
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Literal, get_args

from taskiq import AsyncBroker
from taskiq.utils import maybe_awaitable

from taskiq_flow.completion import check_readable, link_to
from taskiq_flow.completion.notice import ALWAYS
from taskiq_flow.completion.worker import BEAT
from taskiq_flow.dataflow.dag import DAG, Plan
from taskiq_flow.dispatch import Dispatcher
from taskiq_flow.errors import InputConflictError, MissingInputError, UnusedInputWarning
from taskiq_flow.events import Listener, NodeFailure, NodeSkipped
from taskiq_flow.run import OnError, Run, Work, new_run_id

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
        self._broker = broker
        self._dag = dag
        self._limit = _limit(pass_by)
        self._lost_after = lost_after
        self._max_parallel = max_parallel
        self._on_step_complete = on_step_complete
        self._on_error: OnError = on_error
        self._listeners = tuple(listeners)
        self._runs: set[Run[Any]] = set()

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
        work = self._work(inputs, outputs)
        check_readable(self._broker)
        run_id = new_run_id() if run_id is None else run_id
        link = await link_to(self._broker, run_id, lost_after=self._lost_after, limit=self._limit)
        dispatcher = Dispatcher(self._broker, link.labels, link.kick)
        for node in work.nodes:
            dispatcher.address(node)
        run = Run(
            work,
            dispatcher,
            link.completions,
            run_id=run_id,
            max_parallel=self._max_parallel,
            on_error=self._on_error,
            listeners=self._listeners,
        )
        self._runs.add(run)
        try:
            run.start()
            while run.unread or await run.more():
                pair = run.take()
                if self._on_step_complete is not None:
                    await self._step(self._on_step_complete, run, pair)
                yield pair
        finally:
            self._runs.discard(run)
            await run.aclose()

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

    @staticmethod
    async def _step(call: StepCallback, run: Run[Any], pair: tuple[str, Any]) -> None:
        try:
            await maybe_awaitable(call(*pair))
        except Exception as error:  # the caller's own, which ends the run
            run.fail(error)
            raise

    def _work(self, inputs: Mapping[str, Any] | None, outputs: Iterable[str] | None) -> Work[Any]:
        """What is to be run. Raises for inputs and outputs that do not fit the graph."""
        whole = self._dag.plan()
        plan = whole if outputs is None else self._dag.plan_for(outputs)
        values = dict(inputs or {})
        _check_inputs(values, whole, plan)
        return Work(
            nodes=plan.order,
            predecessors=plan.predecessors,
            successors=plan.successors,
            priority={} if self._max_parallel is None else plan.remaining_path(),
            inputs=values,
        )


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


def _check_inputs(values: Mapping[str, Any], whole: Plan, plan: Plan) -> None:
    """Hold a run's inputs against the whole graph and the part of it that is to be run."""
    if conflicts := [key for key in values if key in whole.producers]:
        listed = ", ".join(
            f"{key!r} (node {whole.producers[key].task_name!r})" for key in conflicts
        )
        raise InputConflictError(
            f"the run was given {listed}, which its own nodes produce; leave them out, or rename "
            "the nodes' outputs",
            keys=conflicts,
        )
    if missing := [key for key in plan.required if key not in values]:
        raise MissingInputError(
            "; ".join(
                f"node {plan.required[key].task_name!r} needs {key!r}, which no node produces and "
                f"the run was not given; pass it as an input, or add a node with output={key!r}"
                for key in missing
            ),
            keys=missing,
        )
    for key in values:
        if key not in whole.required and key not in whole.optional:
            warnings.warn(
                f"the run was given {key!r}, which no node takes; external inputs: "
                f"{', '.join(map(repr, (*whole.required, *whole.optional))) or 'none'}",
                UnusedInputWarning,
                stacklevel=4,  # the line that reads the stream
            )
