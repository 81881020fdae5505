"""The events that a run sends to its listeners.

Every event has its ``run_id`` and ``at``, the event loop's monotonic time in seconds. The events of
a mapped node's elements have names such as ``embed[3]``, and their place as ``index``. ``Event`` is
a closed union: a listener that matches all of its members handles every event.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Source = Literal["task", "fallback", "cache", "journal"]
"""Where a result came from: the node's task, its fallback, its cache, or the journal."""

Index = int | tuple[int, ...]
"""The place of an element in its node's list. In lists within lists: its position in each of them,
from the outermost on."""


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run has started. ``task_names``: the nodes known at that moment."""

    run_id: str
    at: float
    task_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """A node's task is being sent to the broker."""

    run_id: str
    at: float
    task_name: str
    task_id: str
    index: Index | None = None


@dataclass(frozen=True, slots=True)
class NodeRetried:
    """A node's task is being sent again. ``attempt``: the number of the new attempt.

    ``error``: the previous attempt's; ``None`` if a middleware of the broker sent the task again,
    or if the previous attempt was another engine's.
    """

    run_id: str
    at: float
    task_name: str
    task_id: str
    attempt: int
    error: BaseException | None = None
    index: Index | None = None


@dataclass(frozen=True, slots=True)
class NodeFellBack:
    """A node failed after ``attempts`` executions of its task, and its fallback is used."""

    run_id: str
    at: float
    task_name: str
    task_id: str
    error: BaseException
    attempts: int
    index: Index | None = None


@dataclass(frozen=True, slots=True)
class NodeCompleted:
    """A node has its result. ``source``: where it came from.

    ``result`` is the value itself, which the reader and other listeners may hold too: do not change
    it.
    """

    run_id: str
    at: float
    task_name: str
    task_id: str
    result: Any
    source: Source = "task"
    index: Index | None = None


@dataclass(frozen=True, slots=True)
class NodeFailed:
    """A node failed for good. ``attempts``: how often its task was executed."""

    run_id: str
    at: float
    task_name: str
    task_id: str
    error: BaseException
    attempts: int
    index: Index | None = None


@dataclass(frozen=True, slots=True)
class NodeSkipped:
    """A node did not run: it depends on a failed node, or a condition was false.

    Under ``on_error="collect"`` the event is also the node's value in the stream. ``because_of``:
    the dependencies that failed or were skipped; empty if the node's own condition was false.
    ``reason``: ``"failure"`` if any node that it depends on has failed, directly or not.
    """

    run_id: str
    at: float
    task_name: str
    because_of: tuple[str, ...]
    reason: Literal["failure", "condition"] = "failure"
    index: Index | None = None


@dataclass(frozen=True, slots=True)
class ElementsKnown:
    """It is known over how many elements a node maps: ``count``."""

    run_id: str
    at: float
    task_name: str
    count: int


@dataclass(frozen=True, slots=True)
class RunFinished:
    """A run has ended; sent once. ``error``: the one that the reader gets, if any."""

    run_id: str
    at: float
    outcome: Literal["completed", "failed", "cancelled"]
    error: BaseException | None


Event = (
    RunStarted
    | NodeStarted
    | NodeRetried
    | NodeFellBack
    | NodeCompleted
    | NodeFailed
    | NodeSkipped
    | ElementsKnown
    | RunFinished
)


class Listener(Protocol):
    """Receives events. A listener that raises gets no more events of that run.

    >>> class Progress:
    ...     def on_event(self, event):
    ...         match event:
    ...             case NodeCompleted(task_name=name, source=source):
    ...                 print(name, "by", source)
    ...             case RunFinished(outcome=outcome):
    ...                 print(outcome)
    >>> dag = DAGBuilder().node(abs, inputs=["number"], fallback=0).build()
    >>> engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Progress()])
    >>> engine.execute_sync({"number": "three"})
    abs by fallback
    completed
    {'abs': 0}
    """

    def on_event(self, event: Event, /) -> Awaitable[None] | None:
        """Handle one event; sync or async. A run's events come one at a time and in order."""


@dataclass(frozen=True, slots=True)
class Item:
    """The value of one element of a mapped node in the stream, with ``items=True``.

    ``index``: its place in the list, or in lists within lists. Under ``on_error="collect"`` the
    value of an element that failed or was skipped is a ``NodeFailure`` or ``NodeSkipped``.

    >>> dag = DAGBuilder().node(abs, inputs=["numbers"], map_over="numbers").build()
    >>> async def main():
    ...     engine = ExecutionEngine(InMemoryBroker(), dag, max_parallel=1)
    ...     async for name, result in engine.execute_async({"numbers": [-1, 2]}, items=True):
    ...         print(name, result)
    >>> asyncio.run(main())
    abs Item(index=0, value=1)
    abs Item(index=1, value=2)
    abs [1, 2]
    """

    index: Index
    value: Any


@dataclass(frozen=True, slots=True)
class NodeFailure:
    """The value of a failed node in the stream, under ``on_error="collect"``.

    >>> dag = DAGBuilder().node(abs, inputs=["number"]).build()
    >>> engine = ExecutionEngine(InMemoryBroker(), dag, on_error="collect")
    >>> engine.execute_sync({"number": "x"})["abs"].error
    TypeError("bad operand type for abs(): 'str'")
    """

    task_name: str
    task_id: str
    error: BaseException
    attempts: int
    index: Index | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """How a node failed, for a node that takes it as its input ``"NAME.failures"``.

    ``index``: the place of the element that failed, ``None`` for a node that is no map.
    ``error_type``: the name of the exception's class.

    >>> def report(failures=()):
    ...     return [failure.error_type for failure in failures]
    >>> dag = (
    ...     DAGBuilder()
    ...     .node(abs, inputs=["number"])
    ...     .node(report, inputs={"failures": "abs.failures"}, join="ended")
    ...     .build()
    ... )
    >>> engine = ExecutionEngine(InMemoryBroker(), dag, on_error="collect")
    >>> engine.execute_sync({"number": "x"})["report"]
    ['TypeError']
    """

    task_name: str
    index: Index | None
    error_type: str
    message: str
