"""What a run is to do: its nodes, what is asked of each, and what earlier engines have reached."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

from taskiq_flow.dataflow.description import Description
from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.options import NO_FALLBACK, Cache, Retry
from taskiq_flow.dataflow.ready_set import Join
from taskiq_flow.dataflow.rows import Source
from taskiq_flow.dispatch.encoding import RunnableNode
from taskiq_flow.events import Listener
from taskiq_flow.journal.finished import PassedOver, Positions
from taskiq_flow.transport.notice import BEGIN_LABEL, TELL_AT_ONCE
from taskiq_flow.values.isolation import Isolation, Take, isolated

TIMEOUT_LABEL = "timeout"
"""taskiq's label for the seconds that a task may run. It has an effect on coroutines only."""

Items = bool | Literal["only"]
"""Whether elements of mapped nodes are yielded; ``"only"``: in place of their lists."""

OnError = Literal["raise", "continue", "collect"]


class Ahead(Protocol):
    """How many of many runs have ended and are held back from the reader.

    ``when_fewer``: called when there are fewer.
    """

    when_fewer: Callable[[], object]

    def __call__(self) -> int:
        """Their number."""


_ONCE = Retry(attempts=1)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The options of an engine that all of its runs share.

    ``reference_above``: bytes above which results are passed by reference. ``isolation``:
    makes, for each run, what makes of a value what one of its takers in this process is given.
    ``name``, ``origin``, ``tags``: what is told of runs, of the graph and of the engine.
    """

    max_parallel: int | None = None
    on_error: OnError = "raise"
    listeners: Iterable[Listener] = ()
    run_timeout: float | None = None
    reference_above: int | None = None
    isolation: Callable[[], Take] = Isolation
    name: str | None = None
    tags: tuple[str, ...] = ()
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What is asked of a node, by itself or by its engine. ``PLAIN_OPTIONS`` asks for nothing.

    ``condition``: called with all values there are. It returns its answer, or an awaitable of it;
    the node is skipped if the answer is false. ``compute``: makes the node's value of its inputs,
    in place of a task.
    """

    retry: Retry | None = None
    timeout: float | None = None
    queue_timeout: float | None = None
    fallback: Any = NO_FALLBACK
    fallback_node: RunnableNode | None = None
    condition: Callable[[Mapping[str, Any]], bool | Awaitable[object]] | None = None
    cache: Cache | None = None
    compute: Callable[[Mapping[str, Any]], Any] | None = None

    keeps_inputs: bool = field(init=False)
    """Whether a node keeps its inputs: something is asked first, or it may be sent again."""

    is_timed: bool = field(init=False)
    """Whether an attempt has a time limit."""

    labels: tuple[tuple[str, object], ...] = field(init=False)
    """What the message of an attempt carries for its worker, and for taskiq's middlewares."""

    def __post_init__(self) -> None:
        is_timed = self.timeout is not None or self.queue_timeout is not None
        may_send_again = self.retry is not None or self.fallback_node is not None
        asks = any(part is not None for part in (self.condition, self.cache, self.compute))
        labels: list[tuple[str, object]] = []
        if self.timeout is not None:
            labels.append((TIMEOUT_LABEL, self.timeout))
        if is_timed:
            labels.append((BEGIN_LABEL, TELL_AT_ONCE))
        if self.retry is not None:
            labels.append(("retry_on_error", False))  # the engine tries the task again
        object.__setattr__(self, "keeps_inputs", asks or may_send_again)
        object.__setattr__(self, "is_timed", is_timed)
        object.__setattr__(self, "labels", tuple(labels))

    def of(self, node: DAGNode, take: Take = isolated) -> NodeOptions:
        """The options of a node whose engine has these.

        ``take``: makes of a value what the node's condition is given.
        """
        return NodeOptions(
            retry=self.retry if node.retry is None else node.retry,
            timeout=self.timeout if node.timeout is None else node.timeout,
            queue_timeout=(
                self.queue_timeout if node.queue_timeout is None else node.queue_timeout
            ),
            fallback=node.fallback,
            fallback_node=node.fallback_node,
            condition=None if node.condition is None else partial(node.condition.answer, take=take),
            cache=node.cache,
            compute=node.computing(take),
        )

    def of_fallback(self) -> NodeOptions:
        """The options of the fallback's one attempt."""
        return NodeOptions(_ONCE, self.timeout, self.queue_timeout)


PLAIN_OPTIONS = NodeOptions()


@dataclass(frozen=True, slots=True)
class EarlierSessions:
    """What earlier engines have reached of a run, by the names of nodes.

    ``results``: of nodes that are not run again, in order of completion. ``is_replayed``: whether
    their pairs are yielded. ``attempts``: how often each other node was sent. ``in_flight``: nodes
    whose last attempt has an unknown outcome, with the ``task_suffix`` of its task's id.
    ``rerun``: nodes that run also if their results are cached. ``digests``: of what elements were
    given of a source. ``lengths``: by mapped node, how many elements it had in all. ``finished``:
    by the first node there, positions at which all has ended, without a failure. ``passed_over``:
    those that are not let in again.
    """

    results: Mapping[str, Any] = field(default_factory=dict)
    is_replayed: bool = True
    attempts: Mapping[str, int] = field(default_factory=dict)
    in_flight: Mapping[str, str] = field(default_factory=dict)
    rerun: Collection[str] = ()
    digests: Mapping[str, bytes] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)
    finished: Mapping[str, Positions] = field(default_factory=dict)
    passed_over: PassedOver | None = None


NO_SESSIONS = EarlierSessions()


@dataclass(frozen=True, slots=True)
class RunSpec:
    """The nodes of a run, in an order that follows the edges.

    ``of_each_task``: for each task that is sent, one node that calls it. ``inputs``: the run's
    inputs by key. ``priority``: the order of sending under a limit. ``joins``: the rules of nodes
    that have another than ``"all"``. ``options``: of nodes that have any.

    ``task_suffix``: ends the ids of all tasks. It tells them from those of another run of the same
    name. ``stored_inputs``: handles that tasks are sent in place of large inputs.

    ``failure_keys``: keys under which nodes are given the failures of another node. ``elements``:
    how nodes map, if any does. ``items``: whether the elements of mapped nodes are yielded, besides
    or in place of their lists.

    ``by_value``: nodes whose results are passed by value, whatever the engine's limit is.

    ``sources``: by key, inputs that are mapped over and read while the run goes on. ``take``:
    makes of a value what one of its takers in this process is given.

    ``ahead``: where the graph is one that runs for each of many inputs, how many of these runs have
    ended and are held back from the reader. It is given the results of each such run.

    ``shows_failures``: whether the reader is given failures in the places of values under
    ``on_error="continue"`` too.

    ``describe``: makes what listeners are told of the graph.
    """

    nodes: Sequence[DAGNode] = ()
    predecessors: Mapping[Any, Sequence[DAGNode]] = field(default_factory=dict)
    successors: Mapping[Any, Sequence[DAGNode]] = field(default_factory=dict)
    of_each_task: Sequence[DAGNode] = ()
    priority: Mapping[Any, float] = field(default_factory=dict)
    joins: Mapping[Any, Join] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[Any, NodeOptions] = field(default_factory=dict)
    earlier: EarlierSessions = NO_SESSIONS
    task_suffix: str = ""
    stored_inputs: Mapping[str, Any] = field(default_factory=dict)
    failure_keys: Collection[str] = ()
    elements: ElementPlan | None = None
    items: Items = False
    by_value: Collection[Any] = ()
    sources: Mapping[str, Source] = field(default_factory=dict)
    take: Take = isolated
    ahead: Ahead | None = None
    shows_failures: bool = False
    describe: Callable[[], Description] = Description

    @property
    def has_generators(self) -> bool:
        """Whether the items of some nodes are taken while their tasks run."""
        return self.elements is not None and bool(self.elements.generators)

    @property
    def lists_at(self) -> int | None:
        """How many positions lead to the lists that the reader is given; ``None`` for none."""
        if self.ahead is not None:
            return 1
        return None if self.items == "only" else 0
