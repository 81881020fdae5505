"""Validates a graph, and orders its nodes."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from taskiq import AsyncTaskiqDecoratedTask

from taskiq_flow.dataflow.axes import node_name
from taskiq_flow.dataflow.description import Description, described
from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.element_planning import element_plan
from taskiq_flow.dataflow.map_hints import check_map_over
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.ready_set import Join
from taskiq_flow.dataflow.tasks import Task, is_same_function, place_of
from taskiq_flow.errors import BindingError, CycleError, DuplicateOutputError, GraphError
from taskiq_flow.events import GraphKind

FAILURES = ".failures"
"""Ends the key under which a node is given the failures of the node before the dot."""

Order = Literal["critical_path", "depth_first"]
"""Which ready node goes first under a limit. ``"critical_path"``: the one with the longest
remaining path. ``"depth_first"``: one with dependencies before one without any, and among those the
one with the longest remaining path, so that little is begun and not finished."""

_SHOWN = 5  # nodes at either end of a long cycle


@dataclass(frozen=True)
class Plan:
    """A validated graph. It never changes.

    ``order``: the nodes, each after its dependencies. ``predecessors``, ``successors``: only for
    nodes that have some. ``producers``: output key → the node that produces it. ``required``,
    ``optional``: external input key → the first node that takes it; a run must be given the
    required keys and may be given the optional ones. ``failure_keys``: the key ``"NAME.failures"``
    of each node whose failures are an input of another one; ``whole_failures``: those of them that
    are taken whole. ``elements``: how nodes map; ``None``
    if none does. ``by_items``: the same, where the items of all generators are asked for.
    ``by_value``: the nodes whose results a run looks into, and not only passes on; besides those of
    generators whose items are taken. ``kind``: how the graph was declared.
    """

    order: list[DAGNode]
    predecessors: dict[DAGNode, tuple[DAGNode, ...]]
    successors: dict[DAGNode, tuple[DAGNode, ...]]
    producers: dict[str, DAGNode]
    required: dict[str, DAGNode]
    optional: dict[str, DAGNode]
    failure_keys: list[str]
    whole_failures: list[str]
    elements: ElementPlan | None
    by_items: ElementPlan | None
    by_value: frozenset[DAGNode]
    kind: GraphKind

    def node_of(self, name: str) -> str:
        """The name of the node to which an element's name belongs; other names are their own."""
        has_elements = self._have_elements
        if name in has_elements:
            return name
        owner = node_name(name)
        return owner if has_elements.get(owner) else name

    @cached_property
    def _have_elements(self) -> dict[str, bool]:
        """By the names of all nodes, whether they have elements."""
        return {node.task_name: bool(node.map_over or node.is_generator) for node in self.order}

    @cached_property
    def description(self) -> Description:
        """What listeners are told of the graph when a run begins."""
        return described(self.order, self.predecessors, self.kind)

    @cached_property
    def joins(self) -> dict[DAGNode, Join]:
        """The join rules other than ``"all"``. Those of mapped nodes hold for their elements."""
        return {node: node.join for node in self.order if node.join != "all" and not node.map_over}

    @cached_property
    def of_each_task(self) -> list[DAGNode]:
        """For each task that is sent to a worker, the first node that calls it."""
        first: dict[int, DAGNode] = {}
        for node in self.order:
            task = id(node.task)
            if task not in first and not node.is_computed and node.given_key is None:
                first[task] = node
        return [*first.values()]

    @cached_property
    def with_policy(self) -> list[DAGNode]:
        """The nodes that ask for more than to be run once."""
        return [node for node in self.order if node.has_policy]

    def priority(self, order: Order) -> dict[DAGNode, float]:
        """Which of several ready nodes goes first: the one with the highest number."""
        path = self.remaining_path()
        if order == "critical_path":
            return path
        longest = max(path.values(), default=0.0)
        behind_others = self.predecessors.keys()
        return {n: path[n] + longest + 1.0 if n in behind_others else path[n] for n in self.order}

    def remaining_path(self) -> dict[DAGNode, float]:
        """Expected seconds from the start of each node to the end of the longest path from it."""
        longest: dict[DAGNode, float] = {}
        for node in reversed(self.order):
            paths = (longest[successor] for successor in self.successors.get(node, ()))
            longest[node] = node.expected_seconds + max(paths, default=0.0)
        return longest


def plan_of(
    nodes: Sequence[DAGNode], orderings: Mapping[DAGNode, Iterable[DAGNode]], kind: GraphKind
) -> Plan:
    """The plan of a graph. ``orderings``: by node, those that it waits for without data.

    Raises ``DuplicateOutputError``, ``BindingError``, ``CycleError`` or another ``GraphError``.
    """
    _check_tasks(nodes)
    producers = _producers(nodes)
    by_name = {node.task_name: node for node in nodes}
    predecessors: dict[DAGNode, tuple[DAGNode, ...]] = {}
    required: dict[str, DAGNode] = {}
    optional: dict[str, DAGNode] = {}
    failed_nodes: dict[str, DAGNode] = {}
    for node in nodes:
        before = dict.fromkeys(orderings.get(node, ()))
        # Only an outcome of a node may be missing, not an input of the run that the node names.
        named = {*node.required_keys, *node.inputs, *node.map_over}
        taken = dict.fromkeys((*node.required_keys, *node.optional_keys))
        check_map_over(node, taken, producers, nodes)
        for key in taken:
            name = key.removesuffix(FAILURES)
            if key in producers:
                before[producers[key]] = None
            elif name != key and name in by_name:
                if node.join != "ended":
                    raise _not_ended_error(node, key)
                before[by_name[name]] = None
                failed_nodes[key] = by_name[name]
            elif key in named:
                required.setdefault(key, node)
            else:
                optional.setdefault(key, node)
        if before:
            predecessors[node] = tuple(before)
    del by_name  # ordering a large graph is when most memory is taken
    successors = _successors(predecessors)
    order = _topological_order(nodes, predecessors, successors)
    elements, by_items = (
        element_plan(order, predecessors, orderings, producers, failed_nodes, all_items=all_items)
        for all_items in (False, True)
    )
    for node in nodes:
        _check_may_start(node, producers, elements)
    return Plan(
        order,
        predecessors,
        successors,
        producers,
        required,
        optional,
        list(failed_nodes),
        [key for key in failed_nodes if any(_takes_whole(node, key) for node in nodes)],
        elements,
        by_items,
        _by_value(order, producers, elements),
        kind,
    )


def _successors(
    predecessors: Mapping[DAGNode, tuple[DAGNode, ...]],
) -> dict[DAGNode, tuple[DAGNode, ...]]:
    found: dict[DAGNode, list[DAGNode]] = {}
    for node, before in predecessors.items():
        for other in before:
            found.setdefault(other, []).append(node)
    return {node: tuple(after) for node, after in found.items()}


def _takes_whole(node: DAGNode, key: str) -> bool:
    return key not in node.map_over and key in (*node.required_keys, *node.optional_keys)


def _by_value(
    order: Sequence[DAGNode], producers: Mapping[str, DAGNode], elements: ElementPlan | None
) -> frozenset[DAGNode]:
    """The nodes whose results a run looks into.

    These are the answers of filters, results that are cached, lists that are mapped over or joined,
    and what conditions and functions of the engine take.
    """
    keys = set[str]() if elements is None else {k for k, n in elements.depths.items() if n}
    for node in reversed(order):
        if node.condition is not None:
            keys.update(node.condition.keys)
        if node.looks_into:
            keys.update(node.inputs)
        if node.filtered is not None and not keys.isdisjoint(node.outputs):
            keys.add(node.filtered)  # it gives what it is given
    nodes = [node for node in order if node.filtered is not None or node.cache is not None]
    return frozenset([*nodes, *(producers[key] for key in keys if key in producers)])


def _check_may_start(
    node: DAGNode, producers: Mapping[str, DAGNode], elements: ElementPlan | None
) -> None:
    """Raise ``BindingError`` if a node may start without a key that its task requires."""
    if node.join == "all":
        return
    taken = () if elements is None or not node.map_over else elements.mapped[node].taken
    never_missing = {each.key for each in taken if each.is_listed}  # there is no element then
    for key in node.required_keys:
        may_be_missing = key in producers and producers[key].given_key is None
        if may_be_missing and key not in never_missing and key not in node.waits_for:
            raise BindingError(
                f"node {node.task_name!r} has join={node.join!r} and may start without {key!r}; "
                "give the parameter that takes it a default",
                task_name=node.task_name,
                key=key,
            )


def _not_ended_error(node: DAGNode, key: str) -> BindingError:
    return BindingError(
        f"node {node.task_name!r} takes {key!r}, and with join={node.join!r} it does not run if "
        "there are any; give it join='ended'",
        task_name=node.task_name,
        key=key,
    )


def _check_tasks(nodes: Sequence[DAGNode]) -> None:
    """Raise ``GraphError`` for two tasks of one name, of which a broker runs the last alone."""
    known: dict[str, tuple[DAGNode, Task]] = {}
    for node in nodes:
        for task in (node.task, node.fallback):
            if not isinstance(task, AsyncTaskiqDecoratedTask):
                continue
            other, first = known.setdefault(task.task_name, (node, task))
            if first is not task and not is_same_function(first, task):
                whose = f"nodes {other.task_name!r} and {node.task_name!r} have"
                if other is node:
                    whose = f"node {node.task_name!r} has"
                raise GraphError(
                    f"{whose} two tasks of the name {task.task_name!r}{place_of(first)} "
                    f"and{place_of(task)[1:]}, of which a broker runs the last one; give each a "
                    "name of its own, as in @broker.task(task_name=...), or pass what differs as a "
                    "parameter"
                )


def _producers(nodes: Sequence[DAGNode]) -> dict[str, DAGNode]:
    producers: dict[str, DAGNode] = {}
    for node in nodes:
        for key in node.outputs:
            other = producers.setdefault(key, node)
            if other is not node:
                raise DuplicateOutputError(
                    f"nodes {other.task_name!r} and {node.task_name!r} both declare the output "
                    f"{key!r}; give one of them another output=",
                    key=key,
                    task_names=[other.task_name, node.task_name],
                )
    return producers


def _topological_order(
    nodes: Sequence[DAGNode],
    predecessors: Mapping[DAGNode, Sequence[DAGNode]],
    successors: Mapping[DAGNode, Sequence[DAGNode]],
) -> list[DAGNode]:
    """Kahn's algorithm (1962) with a heap of insertion indices, so that the order is stable."""
    index = {node: position for position, node in enumerate(nodes)}
    waiting = {node: len(before) for node, before in predecessors.items()}
    ready = [position for position, node in enumerate(nodes) if node not in waiting]
    order = []
    while ready:
        node = nodes[heapq.heappop(ready)]
        order.append(node)
        for after in successors.get(node, ()):
            waiting[after] -= 1
            if not waiting[after]:
                del waiting[after]
                heapq.heappush(ready, index[after])
    if waiting:
        raise _cycle_error(waiting, predecessors)
    return order


def _cycle_error(
    stuck: dict[DAGNode, int], predecessors: Mapping[DAGNode, Sequence[DAGNode]]
) -> CycleError:
    """Walk backwards until a node repeats: every stuck node has a stuck predecessor."""
    walked: dict[DAGNode, int] = {}
    node = next(iter(stuck))
    while node not in walked:
        walked[node] = len(walked)
        node = next(before for before in predecessors[node] if before in stuck)
    cycle = [other.task_name for other in list(walked)[walked[node] :]][::-1]
    shown = cycle
    if len(cycle) > 2 * _SHOWN:
        shown = [*cycle[:_SHOWN], f"... {len(cycle) - 2 * _SHOWN} more", *cycle[-_SHOWN:]]
    remedy = "remove one of these dependencies"
    own = [key for key in node.outputs if key in node.binding.keys]
    if len(cycle) == 1 and own:
        remedy = f"node {node.task_name!r} takes and gives {own[0]!r}: give it another output="
    return CycleError(
        f"the graph has a cycle: {' -> '.join([*shown, cycle[0]])}; {remedy}", cycle=cycle
    )
