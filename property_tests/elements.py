"""Random graphs with mapped nodes, and what a plain sequential evaluation makes of them."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hypothesis import strategies as st
from taskiq import Context, TaskiqDepends

from taskiq_flow import DAG, DAGBuilder, Join

MISSING = "missing"
"""The default of every parameter."""

Ending = Literal["completed", "failed", "skipped"]


class BrokenError(Exception):
    """What a task that fails raises."""


@dataclass(frozen=True)
class Outcome:
    """How a node, or an element of it, has ended."""

    ending: Ending
    value: Any = None


FAILED, SKIPPED = Outcome("failed"), Outcome("skipped")


@dataclass(frozen=True)
class Node:
    """A node. ``length``: of the list that it returns; ``None`` if it returns no list.

    ``fails``, ``declines``: out of ten calls, how many fail, and for how many its condition is
    false. ``retries``: whether each call fails once before that.
    """

    name: str
    keys: tuple[str, ...]
    map_over: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    length: int | None = None
    fails: int = 0
    declines: int = 0
    retries: bool = False
    join: Join = "all"
    limit: int | None = None

    def chance(self, what: str, *args: Any) -> int:
        """A number from 0 to 9 that depends on nothing but the arguments of a call."""
        return zlib.crc32(repr((what, self.name, args)).encode()) % 10

    def declined(self, *args: Any) -> bool:
        """Whether the condition is false. It is asked with the first key alone."""
        return self.chance("decline", *args[:1]) < self.declines

    def called(self, *args: Any) -> Any:
        """What the task returns. Raises ``BrokenError``."""
        if self.chance("fail", *args) < self.fails:
            raise BrokenError(self.name)
        if self.length is None:
            return (self.name, *(zlib.crc32(repr(arg).encode()) for arg in args))
        return [(self.name, number) for number in range(self.length)]


@dataclass(frozen=True)
class Graph:
    """Nodes, each after those whose keys it takes, and the lists that a run is given."""

    nodes: tuple[Node, ...]
    lists: Mapping[str, list[Any]]


@dataclass
class Sequential:
    """A plain sequential evaluation. ``elements``: by mapped node, outcomes in order."""

    graph: Graph
    whole: dict[str, Outcome] = field(default_factory=dict)
    elements: dict[str, list[Outcome]] = field(default_factory=dict)
    axes: dict[str, Any] = field(default_factory=dict)
    uneven: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)

    def evaluate(self) -> Sequential:
        """Evaluate all nodes."""
        self.whole = {key: Outcome("completed", value) for key, value in self.graph.lists.items()}
        for node in self.graph.nodes:
            if node.map_over:
                self._map(node)
            else:
                self.whole[node.name] = self._outcome(
                    node,
                    node.name,
                    [self._taken(k, node) for k in node.keys],
                    [self._taken(k, node) for k in node.after],
                )
        return self

    def partial(self, name: str) -> list[Any]:
        """What the elements of a mapped node have given that completed."""
        return [o.value for o in self.elements[name] if o.ending == "completed"]

    def _taken(self, key: str, node: Node) -> Outcome:
        """A key as a node takes it whole. An ``"ended"`` one is given what there is of a list."""
        outcome = self.whole[key]
        if outcome.ending == "failed" and node.join == "ended" and key in self.elements:
            return Outcome("failed", self.partial(key))
        return outcome

    def _outcome(
        self, node: Node, name: str, taken: Sequence[Outcome], after: Sequence[Outcome] = ()
    ) -> Outcome:
        endings = [outcome.ending for outcome in (*taken, *after)]
        worst: Ending = (
            "failed" if "failed" in endings else "skipped" if "skipped" in endings else "completed"
        )
        runs = worst == "completed" or node.join == "ended"
        if not runs and not (worst == "skipped" and node.join == "none_failed"):
            return Outcome(worst)
        args = [MISSING if o.value is None else o.value for o in taken]
        if node.declined(*args):
            return SKIPPED
        self.calls[name] += 1 + node.retries
        try:
            return Outcome("completed", node.called(*args))
        except BrokenError:
            return FAILED

    def _map(self, node: Node) -> None:
        axes = {self.axes.get(key, key) for key in node.map_over}
        axis = self.axes[node.name] = next(iter(axes)) if len(axes) == 1 else frozenset(axes)
        sources = [self.whole[key].ending for key in _lists(axis)]
        if any(ending != "completed" for ending in sources):
            self.whole[node.name] = FAILED if "failed" in sources else SKIPPED
            return
        length = self._length(axis)
        outcomes = []
        for index in range(length):
            taken = [self._element(key, index, node) for key in node.keys]
            after = [self._taken(key, node) for key in node.after]
            outcomes.append(self._outcome(node, f"{node.name}[{index}]", taken, after))
        self.elements[node.name] = outcomes
        if len(axes) > 1 and not self._is_even(axis):
            self.uneven.add(node.name)
        is_whole = self._is_even(axis) and all(o.ending != "failed" for o in outcomes)
        self.whole[node.name] = (
            Outcome("completed", self.partial(node.name)) if is_whole else FAILED
        )

    def _element(self, key: str, index: int, node: Node) -> Outcome:
        if key not in node.map_over:
            return self._taken(key, node)
        if key in self.elements:
            return self.elements[key][index]
        return Outcome("completed", self.whole[key].value[index])

    def _length(self, axis: Any) -> int:
        return min(len(self.whole[key].value) for key in _lists(axis))

    def _is_even(self, axis: Any) -> bool:
        return len({len(self.whole[key].value) for key in _lists(axis)}) == 1


def _lists(axis: Any) -> list[str]:
    return [axis] if isinstance(axis, str) else [key for part in axis for key in _lists(part)]


class Stage:
    """A graph on a broker, and what is seen of its tasks."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.calls: Counter[tuple[str, Any]] = Counter()
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def dag(self) -> DAG:
        """The graph as the engine takes it."""
        builder = DAGBuilder()
        for node in self.graph.nodes:
            builder.add_task(
                self._task(node),
                name=node.name,
                inputs={f"p{number}": key for number, key in enumerate(node.keys)},
                map_over=node.map_over or None,
                max_parallel=node.limit,
                join=node.join,
                when=self._condition(node) if node.declines else None,
                retry=2 if node.retries else None,
            )
        dag = builder.build()
        for node in self.graph.nodes:
            for other in node.after:
                dag.add_edge(other, node.name)
        return dag

    def _task(self, node: Node) -> Callable[..., Any]:
        names = [f"p{number}" for number in range(len(node.keys))]

        async def called(context: Context, *args: Any) -> Any:
            attempt = int(context.message.task_id.split(":")[-1].partition(".")[0])
            call = node.name, repr(args)
            self.calls[call] += 1
            for name in (node.name, "all"):
                self.running[name] += 1
                self.most[name] = max(self.most[name], self.running[name])
            try:
                if delay := node.chance("delay", attempt, *args) % 4:
                    await asyncio.sleep(delay)
                if node.retries and attempt == 1:
                    raise BrokenError(f"{node.name}, the first time")
                return node.called(*args)
            finally:
                for name in (node.name, "all"):
                    self.running[name] -= 1

        # A signature of its own, as every parameter has a name and a default.
        parameters = ", ".join([*(f"{name}={MISSING!r}" for name in names), "context=depends"])
        arguments = ", ".join(["context", *names])
        space: dict[str, Any] = {"called": called, "depends": TaskiqDepends(Context)}
        code = f"async def task({parameters}):\n    return await called({arguments})"
        exec(code, space)  # noqa: S102 - of names that are made here
        task: Callable[..., Any] = space["task"]
        return task

    def _condition(self, node: Node) -> Callable[..., bool] | None:
        if not node.keys:
            return lambda: not node.declined()
        space = {"wanted": lambda arg: not node.declined(arg)}
        key = node.keys[0]
        code = f"def condition({key}={MISSING!r}):\n    return wanted({key})"
        exec(code, space)  # noqa: S102 - of a name that is made here
        return space["condition"]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Graphs of plain and mapped nodes. Some lists are zipped that differ in length."""
    lists = {
        name: [(name, number) for number in range(draw(st.integers(0, 5)))]
        for name in ("xs", "ys")[: draw(st.integers(1, 2))]
    }
    nodes: list[Node] = []
    can_be_mapped = list(lists)
    keys = list(lists)
    for number in range(draw(st.integers(1, 7))):
        name = f"n{number}"
        own = tuple(draw(st.lists(st.sampled_from(keys), min_size=0, max_size=3, unique=True)))
        mappable = [key for key in own if key in can_be_mapped]
        map_over: tuple[str, ...] = ()
        if len(mappable) > 0 and draw(st.integers(0, 3)):
            map_over = tuple(mappable[: draw(st.integers(1, 3))])
        after: list[str] = []
        if len(nodes) > 0 and draw(st.booleans()):
            after.append(draw(st.sampled_from(nodes)).name)
        node = Node(
            name,
            own,
            map_over,
            tuple(other for other in after if other not in own),
            None if map_over else draw(st.none() | st.integers(0, 4)),
            draw(st.sampled_from([0, 0, 1, 3])),
            draw(st.sampled_from([0, 0, 0, 2])),
            draw(st.sampled_from([False, False, True])),
            draw(st.sampled_from(["all", "all", "ended", "none_failed"])),
            draw(st.none() | st.integers(1, 3)) if map_over else None,
        )
        nodes.append(node)
        keys.append(name)
        if map_over or node.length is not None:
            can_be_mapped.append(name)
    return Graph(tuple(nodes), lists)
