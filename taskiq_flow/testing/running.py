"""``run``: a graph on a virtual clock, without a server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.options import Seconds, in_seconds
from taskiq_flow.engine.run_spec import Items
from taskiq_flow.events import NodeStarted
from taskiq_flow.testing.flows import Flow, parts_of
from taskiq_flow.testing.outcome import RunOutcome, outcome_of
from taskiq_flow.testing.shared_values import SharedValues
from taskiq_flow.testing.stage import Stage, Turn, no_such_node
from taskiq_flow.testing.virtual_clock import HangingError, run_on_clock


def run(
    dag: Flow,
    inputs: Mapping[str, Any] | None = None,
    *,
    replace: Mapping[str, Any] | None = None,
    takes: Seconds | Mapping[str, Seconds] = 0.0,
    check_values: bool = False,
    outputs: Iterable[str] | None = None,
    items: Items = False,
    **options: Any,
) -> RunOutcome:
    """Run a graph or a pipeline on a virtual clock, without a server, and return how it has gone.

    The options of a pipeline hold, except for its broker; its inputs are those of ``pipeline.dag``.
    ``replace``: by name of a node, what stands in for its task: a function that is called as the
    task would be, an exception to be raised, or any other value to be given. ``takes``: how long
    each execution takes, in virtual seconds or as a ``timedelta``; one for all, or by name of a
    node or of an element, as ``"page[2]"``. A generator takes so long for each item.
    ``check_values``: with ``values="shared"``, raise ``ValueChangedError`` if a node changes a
    value that others hold. ``outputs``, ``items``: as for ``execute_async``. ``options`` are those
    of ``ExecutionEngine``.

    Tasks are executed on the event loop, one at a time, sync ones and those of ``in_process`` too.
    What they wait for in real time (a thread, a connection) must be replaced. Caches are not asked.

    Raises what the engine raises before anything is sent, ``MissingNodeError`` for a name that the
    graph does not have, ``TypeError`` or ``ValueError`` for other wrong arguments, and
    ``HangingError`` if the run waits for something that will not come. A run that fails is
    returned: its ``results`` raise the error.

    >>> from taskiq_flow.testing import run
    >>> def fetch(url): return urlopen(url).read()
    >>> dag = DAGBuilder().node(fetch, retry=2).node(len, inputs=["fetch"], name="size").build()
    >>> outcome = run(dag, {"url": "a"}, replace={"fetch": "<html>"}, takes={"fetch": 5})
    >>> outcome.results, outcome.ended_at
    ({'fetch': '<html>', 'size': 6}, {'fetch': 5.0, 'size': 5.0})
    >>> outcome = run(dag, {"url": "a"}, replace={"fetch": OSError("away")})
    >>> outcome.failures, outcome.attempts["fetch"]
    ({'fetch': OSError('away')}, 2)
    """
    graph, options = parts_of(dag, options)
    turn = _seconds_of(graph, takes)
    if not check_values:
        return perform(
            Stage(graph, replace or {}, turn, options=options), inputs, outputs, items=items
        )
    if options.get("values") != "shared":
        raise ValueError(
            "check_values=True is given without values='shared', where each taker of a value has "
            "its own; leave it out, or give both"
        )
    shared = SharedValues(inputs or {})
    stage = Stage(graph, replace or {}, turn, shared.call, options)
    outcome = perform(stage, inputs, outputs, items=items)
    shared.check()
    return outcome


def perform(
    stage: Stage,
    inputs: Mapping[str, Any] | None,
    outputs: Iterable[str] | None,
    *,
    items: Items = False,
    on_idle: Callable[[], bool] = lambda: False,
) -> RunOutcome:
    """Run a staged graph on a virtual clock. ``on_idle``: as of ``VirtualClockLoop``."""
    log = stage.log
    log.clear()
    pairs: list[tuple[str, Any]] = []
    in_flight: list[str] = []
    is_cancelled = False

    async def read() -> Exception | None:
        nonlocal is_cancelled
        stream = stage.engine.execute_async(inputs, outputs=outputs, items=items)
        try:
            async with aclosing(stream):
                async for pair in stream:
                    pairs.append(pair)  # noqa: PERF401 - what came before an error counts
        except asyncio.CancelledError:
            is_cancelled = True
            raise
        except Exception as error:
            if not log.events:  # nothing was begun
                raise
            return error
        return None

    def idle() -> bool:
        if not is_cancelled:
            in_flight[:] = stage.in_flight
        return on_idle()

    try:
        error = run_on_clock(read(), idle)
    except HangingError as caught:
        names = ", ".join(map(repr, in_flight)) or "nothing"
        raise HangingError(
            f"{caught}; in flight: {names}; replace= tasks that wait for a thread, a process or a "
            "connection, or for more than a day"
        ) from None
    return outcome_of(stage.dag, pairs, error, log.sent, log.events)


def _seconds(name: str, value: Seconds) -> float:
    seconds = in_seconds(name, value)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{name} is {value!r}; give a number of seconds, zero or more")
    return seconds


def _seconds_of(dag: DAG, takes: Seconds | Mapping[str, Seconds]) -> Turn:
    """Has each execution take its time before its task is called."""
    of_all, by_name = 0.0, dict[str, float]()
    if isinstance(takes, Mapping):
        by_name = {name: _seconds(f"takes of {name!r}", takes[name]) for name in takes}
    else:
        of_all = _seconds("takes", takes)
    names = [node.task_name for node in dag.nodes]
    node_of = dag.plan().node_of
    for name in by_name:
        if node_of(name) not in names:
            raise no_such_node("takes", name, names)

    sleeps = _Sleeps()

    @asynccontextmanager
    async def turn(attempt: NodeStarted) -> AsyncIterator[None]:
        name = attempt.task_name
        seconds = by_name.get(name, by_name.get(node_of(name), of_all))
        if seconds:
            await sleeps.sleep(seconds)
        yield

    return turn


class _Sleeps:
    """Sleeps of one run. Those that end at the same moment end in the order in which they began.

    A heap, as event loops have for timers, does not keep that order.
    """

    def __init__(self) -> None:
        self._by_end: dict[float, list[asyncio.Future[None]]] = {}

    async def sleep(self, seconds: float) -> None:
        """Wait so many seconds of the running loop."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        if end not in self._by_end:
            self._by_end[end] = []
            loop.call_at(end, self._wake, end)
        sleeping: asyncio.Future[None] = loop.create_future()
        self._by_end[end].append(sleeping)
        await sleeping

    def _wake(self, end: float) -> None:
        for sleeping in self._by_end.pop(end):
            if not sleeping.done():  # by a cancellation
                sleeping.set_result(None)
