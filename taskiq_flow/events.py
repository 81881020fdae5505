"""The events that a run sends to its listeners.

Every event has its ``run_id``, its number ``seq`` in the run, from 1 on and without a gap, and
``at``, the seconds of ``time.monotonic()``, or of an event loop with a time of its own, such as a
virtual one. Events of nodes have the number of an attempt as ``attempt``, from 1 on. A fallback
counts as one more attempt; 0 stands for what no attempt gave. The events of a mapped node's
elements have names such as ``embed[3]``, and their place as ``index``. ``Event`` is a closed union:
a listener that matches all of its members handles every event.

``to_dict()`` of each event makes plain data for JSON, in the form in which other processes get it.
Its ``type`` says which event it is. Values and errors are represented by previews.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from taskiq_flow.previews import preview, printable, shown_error

T = TypeVar("T")

Source = Literal["task", "fallback", "cache", "journal"]
"""Where a result came from: the node's task, its fallback, its cache, or the journal."""

Index = int | tuple[int, ...]
"""The place of an element in its node's list. In lists within lists: its position in each of them,
from the outermost on."""

Outcome = Literal["completed", "failed", "cancelled"]
"""How a run has ended."""

GraphKind = Literal["dataflow", "sequential"]
"""How a graph was declared: by the keys of its nodes, or as a ``Pipeline`` of steps."""

WIRE_VERSION = 1
"""The version of what ``to_dict`` returns. It only grows: later ones add types and keys."""


class _Event:
    """What all events have in common. ``type``: names the event in ``to_dict``."""

    __slots__ = ()
    type: ClassVar[str]
    run_id: str
    at: float
    seq: int

    def to_dict(self) -> dict[str, Any]:
        """The event as plain data, which JSON can hold whatever the event is about.

        ``None`` is left out. Text is such as UTF-8 can hold: lone surrogates are escaped. Times are
        rounded to nanoseconds.
        """
        about = {key: value for key, value in self._content() if value is not None}
        return {
            "v": WIRE_VERSION,
            "run": printable(self.run_id),
            "seq": self.seq,
            "type": self.type,
            "at": _seconds(self.at),
            **about,
        }

    def _content(self) -> Iterator[tuple[str, Any]]:
        """What the event is about, by key."""
        raise NotImplementedError


class _NodeEvent(_Event):
    """What the events of nodes have in common."""

    __slots__ = ()
    task_name: str
    index: Index | None
    attempt: int


def node_of(name: str, index: Index | None) -> str:
    """The node of an event with this ``task_name`` and ``index``: of an element, the mapped one."""
    return name if index is None else name.rpartition("[")[0]


def _of_node(event: _NodeEvent) -> Iterator[tuple[str, Any]]:
    """What all events of nodes are about."""
    yield "node", printable(event.task_name)
    yield "index", list(event.index) if isinstance(event.index, tuple) else event.index
    yield "attempt", event.attempt
    if task_id := getattr(event, "task_id", ""):
        yield "task", printable(task_id)


def _seconds(seconds: float | None) -> float | None:
    """A time as plain data, to the nanosecond, as clocks tell it."""
    return None if seconds is None else round(seconds, 9)


def _names(names: Iterable[str]) -> list[str]:
    """Many names, as plain data."""
    names = list(names)
    return names if "".join(names).isascii() else [printable(name) for name in names]


def _by_name(names: Iterable[str], values: Iterable[T]) -> dict[str, T]:
    """A value for each of these names, as plain data."""
    return dict(zip(_names(names), values, strict=True))


@dataclass(frozen=True, slots=True)
class RunStarted(_Event):
    """A run has started, or an engine continues it. ``task_names``: the nodes that are known.

    ``time``: seconds since 1970 by the system's clock, at the moment ``at``. ``edges``: by node,
    the names of the nodes that it depends on; nodes without any are left out. ``mapped``: by mapped
    node, how many positions the ``index`` of its elements has. ``expected``: by node, its
    ``expected_seconds`` if that is not 1. ``tasks``: by node, the name of its task if that is
    another one; ``outputs``: its output keys if these are not just its name. ``kind``: how the
    graph was declared. ``in_memory``: whether its broker is an ``InMemoryBroker``, which executes
    tasks in this process, and sync ones in its threads. ``name``: the graph's. ``tags``: the
    engine's. ``origin``: where the command line found the graph, such as ``flows:nightly``.
    ``on_error``: the engine's; ``None`` if that was not told.
    """

    type: ClassVar[str] = "run.started"

    run_id: str
    at: float
    task_names: tuple[str, ...]
    time: float = 0.0
    edges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mapped: Mapping[str, int] = field(default_factory=dict)
    expected: Mapping[str, float] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seq: int = 0
    kind: GraphKind = "dataflow"
    in_memory: bool = False
    name: str | None = None
    tags: tuple[str, ...] = ()
    origin: str | None = None
    on_error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The event as plain data, which JSON can hold, as that of other events."""
        return {**self.session_to_dict(), **self.graph_to_dict()}

    def session_to_dict(self) -> dict[str, Any]:
        """What ``to_dict`` has, but for what that says of the graph."""
        return _Event.to_dict(self)

    def graph_to_dict(self) -> dict[str, Any]:
        """What ``to_dict`` says of the graph, which is the same for all of its runs."""
        return {
            "nodes": _names(self.task_names),
            "edges": _by_name(self.edges, map(_names, self.edges.values())),
            "mapped": _by_name(self.mapped, self.mapped.values()),
            "expected": _by_name(self.expected, self.expected.values()),
            "tasks": _by_name(self.tasks, _names(self.tasks.values())),
            "outputs": _by_name(self.outputs, map(_names, self.outputs.values())),
        }

    def _content(self) -> Iterator[tuple[str, Any]]:
        yield "time", self.time
        yield "kind", None if self.kind == "dataflow" else self.kind
        yield "in_memory", self.in_memory or None
        yield "name", None if self.name is None else printable(self.name)
        yield "tags", _names(self.tags) or None
        yield "origin", None if self.origin is None else printable(self.origin)
        yield "on_error", self.on_error


@dataclass(frozen=True, slots=True)
class NodeStarted(_NodeEvent):
    """A node's task is being sent to the broker. That it begins there, ``NodeBegan`` tells."""

    type: ClassVar[str] = "node.sent"

    run_id: str
    at: float
    task_name: str
    task_id: str
    index: Index | None = None
    attempt: int = 1
    seq: int = 0

    def _content(self) -> Iterator[tuple[str, Any]]:
        yield from _of_node(self)


@dataclass(frozen=True, slots=True)
class NodeBegan(_NodeEvent):
    """A worker has begun to execute a node's task, or this process has.

    ``worker``: the process, as ``host:pid``. Comes once for each worker that executes an attempt:
    again only if the task was delivered again, as that worker was lost. Does not come where nobody
    tells when a task begins: with workers that have no ``FlowMiddleware``.
    """

    type: ClassVar[str] = "node.began"

    run_id: str
    at: float
    task_name: str
    task_id: str
    worker: str
    index: Index | None = None
    attempt: int = 1
    seq: int = 0

    def _content(self) -> Iterator[tuple[str, Any]]:
        yield from _of_node(self)
        yield "worker", printable(self.worker)


@dataclass(frozen=True, slots=True)
class NodeRetried(_NodeEvent):
    """A node's task is being sent again. ``attempt``: the number of the new attempt.

    ``error``: the previous attempt's; ``None`` if a middleware of the broker sent the task again,
    or if the previous attempt was another engine's. ``delay``: seconds since that attempt ended.
    """

    type: ClassVar[str] = "node.retried"

    run_id: str
    at: float
    task_name: str
    task_id: str
    attempt: int
    error: BaseException | None = None
    index: Index | None = None
    delay: float = 0.0
    seq: int = 0

    def _content(self) -> Iterator[tuple[str, Any]]:
        yield from _of_node(self)
        yield "delay", self.delay
        yield "error", shown_error(self.error)


@dataclass(frozen=True, slots=True)
class NodeFellBack(_NodeEvent):
    """A node failed after ``attempts`` executions of its task, and its fallback is used.

    ``attempt``: the number that the fallback has as an attempt.
    """

    type: ClassVar[str] = "node.fell_back"

    run_id: str
    at: float
    task_name: str
    task_id: str
    error: BaseException
    attempts: int
    index: Index | None = None
    attempt: int = 0
    seq: int = 0

    def _content(self) -> Iterator[tuple[str, Any]]:
        yield from _of_node(self)
        yield "attempts", self.attempts
        yield "error", shown_error(self.error)


@dataclass(frozen=True, slots=True)
class NodeCompleted(_NodeEvent):
    """A node has its result. ``source``: where it came from.

    ``result`` is the value itself, which the reader and other listeners may hold too: do not change
    it. For an element that a resumed run passes over, it is a ``Preview`` without a text, as nobody
    asks for the value. ``queued``: seconds from the sending of the attempt until it began, ``ran``:
    from then on until now; ``None`` where that was not told.
    """

    type: ClassVar[str] = "node.completed"

    run_id: str
    at: float
    task_name: str
    task_id: str
    result: Any
    source: Source = "task"
    index: Index | None = None
    attempt: int = 0
    queued: float | None = None
    ran: float | None = None
    seq: int = 0

    def _content(self) -> Iterator[tuple[str, Any]]:
        yield from _of_node(self)
        yield "source", self.source
        yield "queued", _seconds(self.queued)
        yield "ran", _seconds(self.ran)
        yield "value", preview(self.result)


@dataclass(frozen=True, slots=True)
class NodeFailed(_NodeEvent):
    """A node failed for good. ``attempts``: how often its task was executed, with its fallback.

    ``queued``, ``ran``: as of ``NodeCompleted``. ``item``: a short text of what an element takes of
    the lists that its node maps over. ``after``: the task's error, if ``error`` is its fallback's.
    """

    type: ClassVar[str] = "node.failed"

    run_id: str
    at: float
    task_name: str
    task_id: str
    error: BaseException
    attempts: int
    index: Index | None = None
    attempt: int = 0
    queued: float | None = None
    ran: float | None = None
    seq: int = 0
    item: str | None = None
    after: BaseException | None = None

    def _content(self) -> Iterator[tuple[str, Any]]:
        yield from _of_node(self)
        yield "attempts", self.attempts
        yield "queued", _seconds(self.queued)
        yield "ran", _seconds(self.ran)
        yield "item", None if self.item is None else printable(self.item)
        yield "error", shown_error(self.error, self.after)


@dataclass(frozen=True, slots=True)
class NodeSkipped(_NodeEvent):
    """A node did not run: it depends on a failed node, or a condition was false.

    Under ``on_error="collect"`` the event is also the node's value in the stream. ``because_of``:
    the dependencies that failed or were skipped; empty if the node's own condition was false.
    ``reason``: ``"failure"`` if any node that it depends on has failed, directly or not.
    ``attempt``: of a filter that has left its element out.
    """

    type: ClassVar[str] = "node.skipped"

    run_id: str
    at: float
    task_name: str
    because_of: tuple[str, ...]
    reason: Literal["failure", "condition"] = "failure"
    index: Index | None = None
    attempt: int = 0
    seq: int = 0

    def _content(self) -> Iterator[tuple[str, Any]]:
        yield from _of_node(self)
        yield "because_of", _names(self.because_of)
        yield "reason", self.reason


@dataclass(frozen=True, slots=True)
class ElementsKnown(_Event):
    """It is known over how many elements a node maps: ``count``.

    In lists within lists, each list is told by its own name, ``read[0]`` for one; the outer ones
    say how many lists they have.
    """

    type: ClassVar[str] = "elements"

    run_id: str
    at: float
    task_name: str
    count: int
    seq: int = 0

    def _content(self) -> Iterator[tuple[str, Any]]:
        yield "node", printable(self.task_name)
        yield "known", self.count


@dataclass(frozen=True, slots=True)
class RunFinished(_Event):
    """A run has ended; sent once. ``error``: the one that the reader gets, if any."""

    type: ClassVar[str] = "run.ended"

    run_id: str
    at: float
    outcome: Outcome
    error: BaseException | None
    seq: int = 0

    def _content(self) -> Iterator[tuple[str, Any]]:
        yield "outcome", self.outcome
        yield "error", shown_error(self.error)


@dataclass(frozen=True, slots=True)
class Gap(_Event):
    """A listener lags by more than 10,000 events and misses the oldest ones.

    ``missed``: how many. ``seq``: the number of the last one of them; the next event has the number
    after it. ``at``: when that one was sent.
    """

    type: ClassVar[str] = "gap"

    run_id: str
    at: float
    missed: int
    seq: int = 0

    def _content(self) -> Iterator[tuple[str, Any]]:
        yield "missed", self.missed


Event = (
    RunStarted
    | NodeStarted
    | NodeBegan
    | NodeRetried
    | NodeFellBack
    | NodeCompleted
    | NodeFailed
    | NodeSkipped
    | ElementsKnown
    | RunFinished
    | Gap
)


class Listener(Protocol):
    """Receives events. A listener that raises gets no more events of that run.

    >>> class Log:
    ...     def on_event(self, event):
    ...         match event:
    ...             case NodeCompleted(task_name=name, source=source):
    ...                 print(name, "by", source)
    ...             case RunFinished(outcome=outcome):
    ...                 print(outcome)
    >>> dag = DAGBuilder().node(abs, inputs=["number"], fallback=0).build()
    >>> engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Log()])
    >>> engine.execute_sync({"number": "three"})
    abs by fallback
    completed
    {'abs': 0}
    """

    def on_event(self, event: Event, /) -> Awaitable[None] | None:
        """Handle one event; sync or async. A run's events come one at a time and in order."""


class BatchListener(Listener, Protocol):
    """A listener that takes many events at once, some hundredths of a second later. It costs less.

    ``on_events`` is called in place of ``on_event``, with all events of one run that came in the
    meantime. At the end of the run it is called at once.

    >>> class Log:
    ...     def __init__(self):
    ...         self.lines = []
    ...     def on_event(self, event):
    ...         self.on_events([event])
    ...     def on_events(self, events):
    ...         self.lines += [event.type for event in events]
    >>> log = Log()
    >>> dag = DAGBuilder().node(abs, inputs=["number"]).build()
    >>> ExecutionEngine(InMemoryBroker(), dag, listeners=[log]).execute_sync({"number": -1})
    {'abs': 1}
    >>> log.lines
    ['run.started', 'node.sent', 'node.began', 'node.completed', 'run.ended']
    """

    def on_events(self, events: Sequence[Event], /) -> Awaitable[None] | None:
        """Handle one event or more; sync or async. They come in order, each of them once."""


class SendingListener(Listener, Protocol):
    """A listener that adds labels to the messages of tasks, such as the context of a trace.

    >>> from taskiq import Context, TaskiqDepends
    >>> class Stamping:
    ...     def on_event(self, event): ...
    ...     def on_sending(self, sending):
    ...         return {"stamp": f"{sending.task_name}, attempt {sending.attempt}"}
    >>> def stamp(context: Context = TaskiqDepends()) -> str:
    ...     return context.message.labels["stamp"]
    >>> dag = DAGBuilder().node(stamp).build()
    >>> ExecutionEngine(InMemoryBroker(), dag, listeners=[Stamping()]).execute_sync()
    {'stamp': 'stamp, attempt 1'}
    """

    def on_sending(self, sending: NodeStarted, /) -> Mapping[str, str]:
        """Labels for the message of an attempt, which is sent right after the call.

        ``sending``: what is sent, also for a further attempt and a fallback; its ``seq`` is 0.
        ``RunStarted`` has been delivered before; later events perhaps not. The message is sent in
        the context of the call: context variables that are set here are seen by middlewares that
        are told of the sending, and by tasks of this process. Must neither wait nor cancel the run.
        """


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

    Its fields are those of ``NodeFailed``.

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
    after: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """How a node failed, for a node that takes it as its input ``"NAME.failures"``.

    ``index``: the place of the element that failed, ``None`` for a node that is no map. If the
    failures of one element are taken, it is the place within that element.
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
