"""What a run has to do, and what is asked of it on the way."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from taskiq import TaskiqResult

from taskiq_flow.dataflow.ready_set import Join
from taskiq_flow.dispatch.dispatcher import RunnableNode
from taskiq_flow.engine.node_run import Policy

N = TypeVar("N", bound=RunnableNode)


PickUp = Callable[[str, Any], Awaitable[TaskiqResult[Any] | None]]


@dataclass(frozen=True, slots=True)
class Before:
    """What earlier engines have reached of a run, by the names of nodes.

    ``results``: what nodes have given that are not run again, in the order in which they did;
    ``is_replayed``: whether their pairs are yielded. ``attempts``: how often each other node was
    sent; ``in_flight``: those of which it is not known how their last attempt has ended, which
    ``pick_up`` reads, given the task's id and what it returns, if it is there by now.
    """

    results: Mapping[str, Any] = field(default_factory=dict)
    is_replayed: bool = True
    attempts: Mapping[str, int] = field(default_factory=dict)
    in_flight: Collection[str] = ()
    pick_up: PickUp | None = None


NOTHING = Before()


@dataclass(frozen=True, slots=True)
class Work(Generic[N]):
    """What a run has to do: nodes, those they wait for, those that wait for them.

    ``inputs``: the run's inputs by key. ``priority``: for the order under a limit. ``joins``: the
    rules of nodes that have another than ``"all"``. ``policies``: those of nodes that have one.

    ``source`` brings further nodes while the run goes on, which wait for none and whose results
    are not kept. It is read while fewer than ``window`` nodes are unsent, in flight or unread;
    ``None`` for no such bound. ``digest``: tells what such a node was made of from other such.
    """

    nodes: Sequence[N] = ()
    predecessors: Mapping[N, Sequence[N]] = field(default_factory=dict)
    successors: Mapping[N, Sequence[N]] = field(default_factory=dict)
    priority: Mapping[N, float] = field(default_factory=dict)
    joins: Mapping[N, Join] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    policies: Mapping[N, Policy] = field(default_factory=dict)
    before: Before = NOTHING
    source: AsyncIterable[N] | None = None
    window: int | None = None
    digest: Callable[[N], bytes] | None = None
