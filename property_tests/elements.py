"""Random graphs with mapped nodes, and what a plain sequential evaluation makes of them."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hypothesis import strategies as st
from taskiq import AsyncBroker, Context, TaskiqDepends

from taskiq_flow import DAG, DAGBuilder, Failure, Join, Product

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


Axis = tuple[str, int] | frozenset[Any]
Place = Mapping[Any, int]
"""The position along each axis."""
Path = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """A node. ``lengths``: of the lists within lists that it returns; none if it returns no list.

    ``map_over``: keys with levels, by factor. ``generator``: whether it is one, of the outermost of
    these lists. ``fails``, ``declines``: out of ten calls, how many
    fail, and for how many its condition is false. ``retries``: whether each call fails once before
    that.
    """

    name: str
    keys: tuple[str, ...]
    map_over: tuple[tuple[tuple[str, int], ...], ...] = ()
    after: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    fails: int = 0
    declines: int = 0
    retries: bool = False
    join: Join = "all"
    limit: int | None = None
    flatten: bool = False
    filter: bool = False
    generator: bool = False
    window: int = 16

    @property
    def mapped(self) -> dict[str, int]:
        """The keys that it maps over, with their levels."""
        return {key: levels for factor in self.map_over for key, levels in factor}

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
        if self.filter:
            return self.chance("filter", *args) < 6
        return self._lists(self.lengths, *(zlib.crc32(repr(arg).encode()) for arg in args))

    def made(self, *args: Any) -> tuple[list[Any], bool]:
        """The items that a generator gives, and whether it fails behind them."""
        items = self._lists(self.lengths, *(zlib.crc32(repr(arg).encode()) for arg in args))
        if self.chance("fail", *args) < self.fails:
            return items[: self.chance("fail at", *args) % (len(items) + 1)], True
        return items, False

    def _lists(self, lengths: Sequence[int], *args: Any) -> Any:
        if not lengths:
            return (self.name, *args)
        length = self.chance("length", *args) % (lengths[0] + 1)
        return [self._lists(lengths[1:], *args, number) for number in range(length)]


@dataclass(frozen=True)
class Graph:
    """Nodes, each after those whose keys it takes, and the lists that a run is given."""

    nodes: tuple[Node, ...]
    lists: Mapping[str, list[Any]]


class NotTogetherError(Exception):
    """Keys that cannot be mapped over together."""


@dataclass(frozen=True)
class Shape:
    """The axes of a key. ``own``: of the elements that give it; ``levels``: of its lists.

    ``deeper``: how many further levels of lists its values have.
    """

    own: tuple[Axis, ...] = ()
    levels: tuple[tuple[Axis, ...], ...] = ()
    deeper: int = 0

    def first(self, key: str, count: int) -> tuple[tuple[Axis, ...], ...]:
        within = sum(map(len, self.levels)) - len(self.own)
        more = count - len(self.levels)
        return (
            *self.levels[:count],
            *(((key, within + number + 1),) for number in range(more)),
        )


class Shapes:
    """The axes of all keys, as nodes are added one by one."""

    def __init__(self, lists: Mapping[str, list[Any]]) -> None:
        self.keys = {key: Shape(deeper=depth_of(value)) for key, value in lists.items()}
        self.failures: dict[str, Shape] = {}

    def of(self, key: str) -> Shape:
        """The axes of a key, also of one that has the failures of a node."""
        return self.failures[key] if key in self.failures else self.keys[key]

    def add(self, node: Node) -> None:
        """Raises ``NotTogetherError`` for keys that cannot be mapped over together."""
        levels = self.levels(node)
        own = tuple(axis for level in levels for axis in level)
        self.failures[f"{node.name}.failures"] = Shape(own, levels)
        deeper = len(node.lengths)
        if node.filter:
            deeper = self.left(*node.map_over[0][0])
        elif node.flatten:
            levels = (*levels[:-1], (*levels[-1], (node.name, 1)))
            deeper -= 1
        self.keys[node.name] = Shape(own, levels, deeper)

    def left(self, key: str, levels: int) -> int:
        """How many levels of lists an element of a key has."""
        shape = self.keys[key]
        return len(shape.levels) + shape.deeper - levels

    def around(self, part: tuple[str, int]) -> tuple[Any, ...]:
        """The axes within which a list lies."""
        return (*self.keys[part[0]].own, *((part[0], depth) for depth in range(1, part[1])))

    def levels(self, node: Node) -> tuple[tuple[Axis, ...], ...]:
        """The axes of a node. Outer levels that all factors have in common are there once."""
        first, *others = [self._by_depth(factor) for factor in node.map_over or ((),)]
        further = []
        for number, other in enumerate(others):
            shared = self._count_shared(first, other)
            if shared == len(other) or (shared == len(first) and not number):
                raise NotTogetherError
            for depth in range(shared):
                first[depth] |= other[depth]
            further.append(self._together(other)[shared:])
        factors = [self._together(first), *further]
        check_apart([axis for level in factor for axis in level] for factor in factors)
        return tuple(level for factor in factors for level in factor)

    def _by_depth(self, factor: Iterable[tuple[str, int]]) -> list[set[tuple[Axis, ...]]]:
        found = [self.of(key).first(key, count) for key, count in factor]
        deepest = max(map(len, found), default=0)
        return [{own[depth] for own in found if len(own) > depth} for depth in range(deepest)]

    def _count_shared(
        self, first: list[set[tuple[Axis, ...]]], other: list[set[tuple[Axis, ...]]]
    ) -> int:
        for depth, (ours, theirs) in enumerate(zip(first, other, strict=False)):
            parts = [
                {part for level in levels for axis in level for part in parts_of(axis)}
                for levels in (ours, theirs)
            ]
            are_single = all(len(level) == 1 for level in ours | theirs)
            if ours != theirs and not (are_single and parts[0] & parts[1]):
                return depth
        return min(len(first), len(other))

    def _together(self, by_depth: list[set[tuple[Axis, ...]]]) -> tuple[tuple[Axis, ...], ...]:
        together: list[tuple[Axis, ...]] = []
        for levels in by_depth:
            level = next(iter(levels))
            if len(levels) > 1:
                if any(len(level) > 1 for level in levels):
                    raise NotTogetherError
                axes = {level[0] for level in levels}
                outer = {a for a in axes if not any(a in parts_of(b) for b in axes - {a})}
                level = (frozenset(outer),) if len(outer) > 1 else tuple(outer)
            together.append(level)
        check_apart(together)
        return tuple(together)


def check_apart(levels: Iterable[Iterable[Axis]]) -> None:
    seen: set[Axis] = set()
    for level in levels:
        parts = {part for axis in level for part in parts_of(axis)}
        if parts & seen:
            raise NotTogetherError
        seen |= parts


def leaves_of(axis: Axis) -> list[tuple[str, int]]:
    """The lists that are taken together along an axis."""
    return [part for part in parts_of(axis) if isinstance(part, tuple)]


def parts_of(axis: Axis) -> set[Axis]:
    """An axis and those that it takes together."""
    if not isinstance(axis, frozenset):
        return {axis}
    return {axis}.union(*map(parts_of, axis))


def depth_of(value: Any) -> int:
    """How many levels of lists a value has: as many as its first values."""
    depth = 0
    while isinstance(value, list):
        depth, value = depth + 1, value[0] if value else None
    return depth


@dataclass
class Sequential:
    """A plain sequential evaluation. ``elements``: by mapped node and path.

    ``takes``: the nodes that each node or element depends on, with the path that leads to what it
    takes of their lists; an empty one if it takes all.
    """

    graph: Graph
    whole: dict[str, Outcome] = field(default_factory=dict)
    elements: dict[str, dict[Path, Outcome]] = field(default_factory=dict)
    uneven: dict[str, set[Path]] = field(default_factory=dict)  # where lists differ in length
    lacking: dict[str, set[Path]] = field(default_factory=dict)  # the lists that are made of these
    failed: dict[str, list[Path]] = field(default_factory=dict)  # what has failed by itself
    calls: Counter[str] = field(default_factory=Counter)
    cut: dict[str, set[Path]] = field(default_factory=dict)  # where a generator has failed
    items: dict[str, dict[Path, Any]] = field(default_factory=dict)  # of generators
    takes: dict[str, list[tuple[str, Path]]] = field(default_factory=dict)  # by element

    def __post_init__(self) -> None:
        self.shapes = Shapes(self.graph.lists)
        self.rows: dict[str, set[Path]] = {}  # by mapped node: the paths at which it has a list

    def evaluate(self) -> Sequential:
        """Evaluate all nodes."""
        self.whole = {key: Outcome("completed", value) for key, value in self.graph.lists.items()}
        for node in self.graph.nodes:
            self.shapes.add(node)
            if node.map_over:
                self._map(node)
            else:
                taken = [self._taken(k, node) for k in node.keys]
                after = [self._taken(k, node) for k in node.after]
                self.whole[node.name] = self._outcome(node, node.name, taken, after)
            self.takes[node.name] = [(name_of(key), ()) for key in (*node.keys, *node.after)]
        return self

    def sizes(self, name: str) -> list[int]:
        """How many axes of the node are in each level of its lists."""
        shape = self.shapes.keys[name]
        return [len([axis for axis in level if axis in shape.own]) for level in shape.levels]

    def depth(self, name: str) -> int:
        """How many positions lead to what a node yields one by one."""
        gives_items = any(node.name == name and node.generator for node in self.graph.nodes)
        return len(self.shapes.keys[name].own) + gives_items

    def _taken(self, key: str, node: Node) -> Outcome:
        """A key as a node takes it whole. An ``"ended"`` one is given what there is of a list."""
        if key in self.shapes.failures:
            return self._failures(key, ())
        outcome = self.whole[key]
        if outcome.ending == "failed" and key in self.elements:
            return Outcome("failed", self.lists(key) if node.join == "ended" else None)
        return outcome

    def _failures(self, key: str, within: Path) -> Outcome:
        """The failures of a node within a path, in order."""
        name = name_of(key)
        depth = len(within)
        found = [path for path in self.failed.get(name, ()) if path[:depth] == within]
        return Outcome("completed", [(name, index_of(path[depth:])) for path in sorted(found)])

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
        path = tuple(map(int, name[len(node.name) + 1 : -1].split(","))) if "[" in name else ()
        if node.generator:
            items, fails = node.made(*args)
            if fails:
                self.failed.setdefault(node.name, []).append(path)
            given = self.items.setdefault(node.name, {})
            given.update({(*path, index): item for index, item in enumerate(items)})
            return Outcome("failed", items or None) if fails else Outcome("completed", items)
        try:
            value = node.called(*args)
        except BrokenError:
            self.failed.setdefault(node.name, []).append(path)
            return FAILED
        if node.filter:
            mapped = args[node.keys.index(node.map_over[0][0][0])]
            return Outcome("completed", mapped) if value and mapped != MISSING else SKIPPED
        return Outcome("completed", value)

    def _map(self, node: Node) -> None:
        axes = self.shapes.keys[node.name].own
        roots = [
            "completed" if self.whole[part[0]].value is not None else self.whole[part[0]].ending
            for axis in axes
            for part in leaves_of(axis)
            if part[0] not in self.elements and not self.shapes.keys[part[0]].own
        ]
        if any(ending != "completed" for ending in roots):
            self.whole[node.name] = FAILED if "failed" in roots else SKIPPED
            return
        self.elements[node.name], self.rows[node.name] = {}, set()
        self.cut[node.name], self.uneven[node.name] = set(), set()
        self.lacking[node.name] = set()
        self._walk(node, axes, (), {})
        endings = [outcome.ending for outcome in self.elements[node.name].values()]
        self.failed.setdefault(node.name, []).extend(self.uneven[node.name])
        is_whole = not (self.uneven[node.name] or "failed" in endings or self.cut[node.name])
        self.whole[node.name] = Outcome("completed", self.lists(node.name)) if is_whole else FAILED

    def _walk(self, node: Node, axes: Sequence[Axis], path: Path, place: Place) -> None:
        if len(path) == len(axes):
            taken = [self._element(key, place, node) for key in node.keys]
            after = [self._taken(key, node) for key in node.after]
            outcome = self._outcome(node, named(node.name, path), taken, after)
            self.elements[node.name][path] = outcome
            self.takes[named(node.name, path)] = [
                *((name_of(key), self._path(key, place, node)) for key in node.keys),
                *((key, ()) for key in node.after),
            ]
            return
        # All lists that are at this place have to be there, also those that are read within others.
        parts = [part for axis in axes[len(path) :] for part in leaves_of(axis)]
        here = [part for part in parts if place.keys() >= {*self.shapes.around(part)}]
        found = {part: self._length(part, place) for part in here}
        if missing := [each for each in found.values() if isinstance(each, Outcome)]:
            self.elements[node.name][path] = FAILED if FAILED in missing else SKIPPED
            return
        axis = axes[len(path)]
        lengths = {p: each for p in leaves_of(axis) if isinstance(each := found[p], int)}
        length = min(lengths.values())
        if any(self._is_cut(part, place) for part in lengths if lengths[part] == length):
            self.cut[node.name].add(path)
        elif len({*lengths.values()}) > 1:
            around = {other for part in lengths for other in self.shapes.around(part)}
            fixed = [n for n, other in enumerate(axes) if around & parts_of(other)]
            self.uneven[node.name].add(path[: max(fixed, default=-1) + 1])
            self.lacking[node.name].add(path)
        self.rows[node.name].add(path)
        for index in range(length):
            further = {**place, **dict.fromkeys(parts_of(axis), index)}
            self._walk(node, axes, (*path, index), further)

    def _length(self, part: tuple[str, int], place: Place) -> int | Outcome:
        key, depth = part
        outcome = self._value(key, place, depth - 1)
        has_items = outcome.ending == "completed" or outcome.value
        return len(outcome.value) if has_items else Outcome(outcome.ending)

    def _is_cut(self, part: tuple[str, int], place: Place) -> bool:
        """Whether a list has ended because the generator that makes it has failed."""
        return self._value(part[0], place, part[1] - 1).ending == "failed"

    def _value(self, key: str, place: Place, depth: int) -> Outcome:
        """The value of a key at a place, so many lists deep within what its node has given."""
        if key in self.elements:
            own = self.shapes.keys[key].own
            outcome = self.elements[key][tuple(place[axis] for axis in own)]
        else:
            outcome = self.whole[key]
        value = outcome.value
        if depth and outcome.ending == "failed" and value is not None:  # of a generator
            outcome = Outcome("completed")
        for level in range(1, depth + 1):
            if outcome.ending == "completed":
                value = value[place[key, level]]
        return Outcome(outcome.ending, value)

    def _element(self, key: str, place: Place, node: Node) -> Outcome:
        if key not in node.mapped:
            return self._taken(key, node)
        path, own = self._path(key, place, node), self.shapes.of(key).own
        if key in self.shapes.failures:
            return self._failures(key, path)
        if len(path) >= len(own):
            return self._value(key, place, len(path) - len(own))
        return self._part(key, path, node)

    def _path(self, key: str, place: Place, node: Node) -> Path:
        """What leads to that part of a key's lists which a node takes at a place."""
        levels = self.shapes.of(key).first(key, node.mapped.get(key, 0))
        return tuple(place[axis] for level in levels for axis in level)

    def _part(self, key: str, path: Path, node: Node) -> Outcome:
        """What a mapped node has given within a path, as lists."""
        if key not in self.elements:  # it has no lists to map over
            return Outcome(self.whole[key].ending)
        within = {p: o for p, o in self.elements[key].items() if p[: len(path)] == path}
        for depth in range(len(path) + 1):
            if (outcome := self.elements[key].get(path[:depth])) is not None:  # there is no list
                return Outcome(outcome.ending)
        failed = any(outcome.ending == "failed" for outcome in within.values()) or any(
            broken[: len(path)] == path for broken in (*self.cut[key], *self.lacking[key])
        )
        if failed and node.join != "ended":
            return FAILED
        return Outcome("failed" if failed else "completed", self.lists(key, path))

    def lists(self, name: str, within: Path = (), *, shown: bool = False) -> list[Any]:
        """What a mapped node has given, as lists. ``shown``: with failures in their places."""
        node = next(node for node in self.graph.nodes if node.name == name)
        sizes, begun = self.sizes(name), len(within)
        while begun:
            first = min(begun, sizes[0])
            begun -= first
            sizes = [sizes[0] - first, *sizes[1:]] if first < sizes[0] else sizes[1:]
        return self._lists(node, within, sizes, shown=shown)

    def _lists(self, node: Node, path: Path, sizes: Sequence[int], *, shown: bool) -> list[Any]:
        found: list[Any] = []
        stops = (self.cut[node.name] | self.uneven[node.name]) - {()} if shown else set[Path]()
        for inner in self._paths(node, path, sizes[0], stops):
            outcome = self.elements[node.name].get(inner)
            if inner in stops:
                found.append("failed")
            elif outcome is None:
                found.append(self._lists(node, inner, sizes[1:], shown=shown))
            elif outcome.ending == "completed" or (outcome.value is not None and not shown):
                found += outcome.value if node.flatten and len(sizes) == 1 else [outcome.value]
            elif outcome.ending == "failed" and shown:
                found.append("failed")
        return found

    def _paths(self, node: Node, path: Path, size: int, stops: set[Path]) -> list[Path]:
        """The paths that are longer by so many positions, and shorter ones that lead nowhere."""
        if not size or path in self.elements[node.name] or path in stops:
            return [path]
        known = (*self.elements[node.name], *self.rows[node.name])
        depth = len(path)
        steps = {p[: depth + 1] for p in known if len(p) > depth and p[:depth] == path}
        return [
            inner for step in sorted(steps) for inner in self._paths(node, step, size - 1, stops)
        ]


def index_of(path: Path) -> Any:
    """The place of an element as users see it; ``None`` for a node as a whole."""
    return (path[0] if len(path) == 1 else path) if path else None


def name_of(key: str) -> str:
    """The node that gives a key, or whose failures the key has."""
    return key.removesuffix(".failures")


def named(name: str, path: Path) -> str:
    """The name of an element."""
    return f"{name}[{','.join(map(str, path))}]"


class Stage:
    """A graph on a broker, and what is seen of its tasks. ``broker``: of tasks that need one."""

    def __init__(self, graph: Graph, broker: AsyncBroker | None = None) -> None:
        self.graph = graph
        self.broker = broker
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
                map_over=map_over_of(node),
                flatten=node.flatten,
                filter=node.filter,
                max_parallel=node.limit,
                window=node.window if node.generator else None,
                join=node.join,
                when=self._condition(node) if node.declines else None,
                retry=2 if node.retries else None,
            )
        dag = builder.build()
        for node in self.graph.nodes:
            for other in node.after:
                dag.add_edge(other, node.name)
        return dag

    def _task(self, node: Node) -> Callable[..., Any]:  # noqa: C901 - one function per kind
        names = [f"p{number}" for number in range(len(node.keys))]

        @contextmanager
        def running(*counted: str) -> Iterator[None]:
            for name in counted:
                self.running[name] += 1
                self.most[name] = max(self.most[name], self.running[name])
            try:
                yield
            finally:
                for name in counted:
                    self.running[name] -= 1

        async def called(context: Context, *given: Any) -> Any:
            attempt, args = attempt_of(context), [*map(as_modelled, given)]
            self.calls[node.name, repr(args)] += 1
            with running(node.name, "all"):
                if delay := node.chance("delay", attempt, *args) % 4:
                    await asyncio.sleep(delay)
                if node.retries and attempt == 1:
                    raise BrokenError(f"{node.name}, the first time")
                return node.called(*args)

        async def generated(context: Context, *given: Any) -> AsyncIterator[Any]:
            attempt, args = attempt_of(context), [*map(as_modelled, given)]
            self.calls[node.name, repr(args)] += 1
            items, fails = node.made(*args)
            fails_first = node.retries and attempt == 1
            for number, item in enumerate(items):
                if delay := node.chance("delay", attempt, number, *args) % 3:
                    with running("all"):  # while it waits for room, it has no place
                        await asyncio.sleep(delay)
                if fails_first and number == node.chance("first time", *args) % len(items):
                    raise BrokenError(f"{node.name}, the first time")
                yield item
            if fails or fails_first:
                raise BrokenError(node.name)

        # A signature of its own, as every parameter has a name and a default.
        parameters = ", ".join([*(f"{name}={MISSING!r}" for name in names), "context=depends"])
        arguments = ", ".join(["context", *names])
        space: dict[str, Any] = {
            "called": called,
            "generated": generated,
            "closing": aclosing,
            "depends": TaskiqDepends(Context),
            "__name__": __name__,
        }
        code = f"async def task({parameters}):\n    return await called({arguments})"
        if node.generator:
            code = (
                f"async def task({parameters}):\n"
                f"    async with closing(generated({arguments})) as items:\n"
                "        async for item in items:\n"
                "            yield item"
            )
        exec(code, space)  # noqa: S102 - of names that are made here
        task: Callable[..., Any] = space["task"]
        if self.broker is None:
            return task
        return self.broker.register_task(task, task_name=node.name)

    def _condition(self, node: Node) -> Callable[..., bool] | None:
        if not node.keys:
            return lambda: not node.declined()
        space = {"wanted": lambda arg: not node.declined(arg)}
        key = node.keys[0]
        code = f"def condition({key}={MISSING!r}):\n    return wanted({key})"
        exec(code, space)  # noqa: S102 - of a name that is made here
        return space["condition"]


def as_modelled(value: Any) -> Any:
    """A list of failures as the model has it; other values as they are."""
    if isinstance(value, list) and value and isinstance(value[0], Failure):
        # Without the name of the graph that the node may be a part of.
        return [(each.task_name.rpartition("/")[2], each.index) for each in value]
    return value


def attempt_of(context: Context) -> int:
    """The number of the attempt that is executed."""
    return int(context.message.task_id.split(":")[-1].partition(".")[0])


def map_over_of(node: Node) -> Any:
    """What a node is declared with."""
    factors = [dict(factor) for factor in node.map_over]
    if len(factors) > 1:
        return Product(*factors)
    return factors[0] if factors else None


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Graphs of plain and mapped nodes. Some lists are zipped that differ in length."""
    lists: dict[str, list[Any]] = {  # longer than most runs read ahead
        name: [(name, number) for number in range(draw(st.integers(0, 9)))]
        for name in ("xs", "ys")[: draw(st.integers(1, 2))]
    }
    if draw(st.booleans()):
        lengths = [draw(st.integers(1, 2)), *draw(st.lists(st.integers(0, 2), max_size=2))]
        lists["zs"] = [
            [("zs", n, inner) for inner in range(lengths[n])] for n in range(len(lengths))
        ]
    shapes = Shapes(lists)
    nodes: list[Node] = []
    for number in range(draw(st.integers(1, 7))):
        node = draw(nodes_of(f"n{number}", shapes, nodes))
        try:
            shapes.add(node)
        except NotTogetherError:
            first = (node.map_over[0][:1],)
            node = replace(node, map_over=first, filter=False)
            shapes.add(node)
        nodes.append(node)
    return Graph(tuple(nodes), lists)


@st.composite
def nodes_of(draw: st.DrawFn, name: str, shapes: Shapes, nodes: Sequence[Node]) -> Node:
    """A node that may take all keys there are."""
    known = list(shapes.keys)
    own = tuple(draw(st.lists(st.sampled_from(known), max_size=4, unique=True)))
    mappable = [key for key in own if shapes.left(key, 0)]
    mapped: list[tuple[str, int]] = []
    if mappable and draw(st.sampled_from([False, True, True, True])):
        mapped = [
            (key, draw(st.integers(1, shapes.left(key, 0))))
            for key in mappable[: draw(st.integers(1, 4))]
        ]
    factors: tuple[tuple[tuple[str, int], ...], ...] = (tuple(mapped),) if mapped else ()
    if len(mapped) > 1 and draw(st.booleans()):
        factors = (tuple(mapped[:1]), tuple(mapped[1:]))
    after = (
        draw(st.lists(st.sampled_from([node.name for node in nodes]), max_size=1)) if nodes else []
    )
    gives = draw(st.sampled_from(["value", "list", "lists", "flatten", "filter"]))
    is_generator = gives in ("list", "lists", "flatten") and draw(st.booleans())
    if gives in ("flatten", "filter") and (not mapped or (gives == "filter" and len(mapped) > 1)):
        gives = "list"
    deep = {"value": 0, "filter": 0, "lists": 2}.get(gives, 1)
    failures = draw(st.lists(st.sampled_from([*shapes.failures]), max_size=1)) if nodes else []
    if failures and factors and gives != "filter":
        most = len(shapes.failures[failures[0]].levels)
        taken = [(key, count) for key in failures if (count := draw(st.integers(0, most)))]
        factors = ((*factors[0], *taken), *factors[1:])
    return Node(
        name,
        (*own, *failures),
        factors,
        tuple(other for other in after if other not in own),
        # A generator gives more than its window holds.
        tuple(draw(st.integers(1, 3 if level or not is_generator else 7)) for level in range(deep)),
        draw(st.sampled_from([0, 0, 1, 3])),
        draw(st.sampled_from([0, 0, 0, 2])) if own else 0,
        draw(st.sampled_from([False, False, True])),
        "ended" if failures else draw(st.sampled_from(["all", "all", "ended", "none_failed"])),
        draw(st.none() | st.integers(1, 3)) if mapped else None,
        gives == "flatten",
        gives == "filter",
        is_generator and (gives != "flatten" or bool(mapped)),
        draw(st.integers(1, 3)),
    )
