"""The graph: its nodes and its edges."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Literal, TextIO

from taskiq_flow.dataflow import render
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.plan import Plan, plan_of
from taskiq_flow.dataflow.tasks import Task, identity
from taskiq_flow.drawing.diagram import Diagram, RunState
from taskiq_flow.drawing.layout import lay_out
from taskiq_flow.drawing.svg import svg_of
from taskiq_flow.errors import ConfigurationError, GraphError, MissingNodeError
from taskiq_flow.events import GraphKind
from taskiq_flow.suggestions import did_you_mean, suggests_keywords

NodeRef = DAGNode | Task | str
"""A node, its task, or its name."""


@suggests_keywords()
class DAG:
    """A directed acyclic graph of tasks. Edges follow from the nodes' input and output keys.

    Nodes may be added in any order. ``add_edge`` adds an edge without data. Every operation takes
    time linear in nodes and edges, except for the topological sort, which adds a logarithm.

    >>> dag = DAG()
    >>> dag.add_node(DAGNode(print, name="report", inputs=["total"]))
    >>> dag.add_node(DAGNode(sum, name="total", inputs=["numbers"]))
    >>> dag.print()
    nodes: 2, edges: 1, levels: 2
    <BLANKLINE>
    0 ── total   takes numbers
    1 ── report  ← total
    >>> [node.task_name for node in dag.topological_sort()], dag.external_inputs
    (['total', 'report'], ['numbers'])
    """

    def __init__(self, name: str | None = None) -> None:
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name is {name!r}; give the graph's name as a string, or None")
        self.name = name
        self.kind: GraphKind = "dataflow"
        self.origin: str | None = None  # where the command line found it
        self._nodes: dict[str, DAGNode] = {}
        self._same_name: Counter[str] = Counter()
        self._orderings: list[tuple[NodeRef, NodeRef]] = []
        self._plan: Plan | None = None

    def add_node(self, node: DAGNode) -> None:
        """Add a node. The second node of a name becomes ``name_2``; adding one again does nothing.

        Raises ``GraphError`` if the name is taken here and another graph has fixed it already.
        """
        name = node.task_name
        if self._nodes.get(name) is node:
            return
        while name in self._nodes:
            self._same_name[node.task_name] += 1
            name = f"{node.task_name}_{self._same_name[node.task_name] + 1}"
        node.place(name)
        self._nodes[name] = node
        self._plan = None

    def add_edge(self, from_task: NodeRef, to_task: NodeRef) -> None:
        """Make ``to_task`` wait for ``from_task``; each is a node, its task, or its name.

        >>> dag = DAGBuilder().node(lambda: 1, name="load").node(lambda: 2, name="audit").build()
        >>> dag.add_edge("load", "audit")
        >>> [(before.task_name, after.task_name) for before, after in dag.edges]
        [('load', 'audit')]
        """
        self._orderings.append((from_task, to_task))
        self._plan = None

    def get_node(self, name: str) -> DAGNode:
        """The node of that name; raises ``MissingNodeError``."""
        try:
            return self._nodes[name]
        except KeyError:
            raise MissingNodeError(
                f"the graph has no node {name!r}{_hint('it has ', name, self._nodes)}",
                reference=name,
            ) from None

    @property
    def nodes(self) -> list[DAGNode]:
        """All nodes, in the order in which they were added."""
        return list(self._nodes.values())

    @property
    def edges(self) -> set[tuple[DAGNode, DAGNode]]:
        """All edges, including those of ``add_edge``."""
        return {
            (node, after) for node, others in self.plan().successors.items() for after in others
        }

    @property
    def roots(self) -> list[DAGNode]:
        """The nodes without dependencies."""
        return [node for node in self.nodes if node not in self.plan().predecessors]

    @property
    def leaves(self) -> list[DAGNode]:
        """The nodes on which no other depends."""
        return [node for node in self.nodes if node not in self.plan().successors]

    @property
    def outputs(self) -> list[str]:
        """All output keys."""
        return list(self.plan().producers)

    @property
    def external_inputs(self) -> list[str]:
        """The keys that a run takes as inputs, required ones first."""
        plan = self.plan()
        return [*plan.required, *(key for key in plan.optional if key not in plan.required)]

    def validate(self) -> None:
        """Check the graph.

        Raises ``DuplicateOutputError``, ``BindingError``, ``MissingNodeError`` or ``CycleError``.
        """
        self.plan()

    def topological_sort(self) -> list[DAGNode]:
        """The nodes, each after its dependencies, and otherwise in insertion order."""
        return list(self.plan().order)

    def get_parallel_levels(self) -> list[list[DAGNode]]:
        """The nodes by the length of the longest path to them. No run waits for a level."""
        plan = self.plan()
        depth: dict[DAGNode, int] = {}
        for node in plan.order:
            before = (depth[other] for other in plan.predecessors.get(node, ()))
            depth[node] = 1 + max(before, default=-1)
        levels: list[list[DAGNode]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
        for node in self._nodes.values():
            levels[depth[node]].append(node)
        return levels

    def print(self, file: TextIO | None = None) -> None:
        """Draw the graph as text, to ``file`` or standard output."""
        encoding = getattr(file or sys.stdout, "encoding", None) or "utf-8"
        print(render.encodable(self.to_text(), encoding), file=file)

    def to_text(self, *, width: int = render.WIDTH) -> str:
        """The drawing of ``print``, for a terminal of ``width`` columns."""
        return render.to_text(self.get_parallel_levels(), self.plan().predecessors, width)

    def to_mermaid(self, orientation: render.Orientation = "LR") -> str:
        """The graph as a Mermaid flowchart, from left to right, or top to bottom with ``"TB"``."""
        return render.to_mermaid(self.diagram(), orientation)

    def to_dot(self) -> str:
        """The graph in Graphviz's DOT language."""
        return render.to_dot(self.diagram())

    def to_json(self) -> str:
        """The nodes and the edges as JSON.

        >>> DAGBuilder().node(abs, inputs=["x"]).node(hex, inputs=["abs"]).build().to_json()
        '{"nodes": [{"id": "abs", "task": "abs", "inputs": ["x"], "outputs": ["abs"], \
"mapped": "", "rules": []}, {"id": "hex", "task": "hex", "inputs": ["abs"], "outputs": ["hex"], \
"mapped": "", "rules": []}], "edges": [{"from": "abs", "to": "hex", "keys": ["abs"]}]}'
        """
        return self.diagram().to_json()

    def to_svg(
        self,
        run: RunState | None = None,
        *,
        fold: bool | None = None,
        orientation: Literal["LR", "TB"] | None = None,
    ) -> str:
        """The graph as an SVG document, laid out by Graphviz. Needs the extra ``draw``.

        ``run``: a ``RunView``, whose states are shown. ``fold``: whether equal nodes, of the same
        task and with equal neighbours, are one box; ``None``: if there are more than 40.
        ``orientation``: from left to right, or from top to bottom; ``None``: from left to right
        unless that is too wide. Edges that follow from others are left out. The document follows
        the reader's dark or light theme, and needs neither scripts nor fonts.

        Raises ``ConfigurationError`` without pygraphviz, and ``ValueError`` for a drawing that is
        too large (2,000 boxes, or very many edges) and for the view of a run of another graph.
        """
        if run is not None and run.nodes and self._nodes.keys().isdisjoint(run.nodes):
            raise ValueError(
                f"the view is of run {run.run_id!r}, which has none of the nodes of this graph; "
                "give the view of one of its own runs"
            )
        states = run is not None
        layout = lay_out(self.diagram(), fold=fold, orientation=orientation, shows_states=states)
        return svg_of(layout, run)

    def diagram(self) -> Diagram:
        """The graph as boxes and arrows, of which drawings are made."""
        return render.diagram_of(self.get_parallel_levels(), self.plan().predecessors)

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """What notebooks show: a picture where the extra ``draw`` is installed, and else text."""
        try:
            text = self.to_text()
        except GraphError:  # the graph is not complete yet
            return {"text/plain": repr(self)}
        try:
            return {"image/svg+xml": self.to_svg(), "text/plain": text}
        except (ConfigurationError, ValueError):
            return {"text/plain": text}

    def __repr__(self) -> str:
        return f"<DAG of {counted_nodes(self._nodes.values())}>"

    def plan(self) -> Plan:
        """The validated graph, computed once per change; raises what ``validate`` raises."""
        if self._plan is None:
            self._plan = plan_of(self.nodes, self.resolved_orderings(), self.kind)
        return self._plan

    def plan_for(self, outputs: Iterable[str]) -> Plan:
        """The part of the graph that produces these output keys.

        Raises ``MissingNodeError`` for a key that no node produces.
        """
        return plan_of(self._needed_for(outputs), self.resolved_orderings(), self.kind)

    def part_for(self, outputs: Iterable[str]) -> DAG:
        """That part as a graph of its own, of the same nodes. Raises ``MissingNodeError``."""
        nodes = self._needed_for(outputs)
        part = DAG()
        for node in nodes:
            part.add_node(node)
        for node, before in self.resolved_orderings().items():
            for other in before if node in nodes else ():
                part.add_edge(other, node)
        return part

    def _needed_for(self, outputs: Iterable[str]) -> list[DAGNode]:
        whole = self.plan()
        needed: set[DAGNode] = set()
        pending = []
        for key in [outputs] if isinstance(outputs, str) else outputs:
            if key not in whole.producers:
                raise MissingNodeError(
                    f"no node of the graph produces {key!r}"
                    f"{_hint('outputs: ', key, whole.producers)}",
                    reference=key,
                )
            pending.append(whole.producers[key])
        while pending:
            node = pending.pop()
            if node not in needed:
                needed.add(node)
                pending.extend(whole.predecessors.get(node, ()))
        return [node for node in self.nodes if node in needed]

    def resolved_orderings(self) -> dict[DAGNode, list[DAGNode]]:
        """By node, those that it waits for without data. Raises ``MissingNodeError``."""
        by_task: dict[object, list[DAGNode]] = {}
        if any(not isinstance(end, (str, DAGNode)) for edge in self._orderings for end in edge):
            for node in self._nodes.values():
                by_task.setdefault(identity(node.task), []).append(node)
        before: dict[DAGNode, list[DAGNode]] = {}
        for start, end in self._orderings:
            resolved = self._resolve(start, by_task)
            before.setdefault(self._resolve(end, by_task), []).append(resolved)
        return before

    def _resolve(self, reference: NodeRef, by_task: dict[object, list[DAGNode]]) -> DAGNode:
        if isinstance(reference, str):
            return self.get_node(reference)
        if isinstance(reference, DAGNode):
            found = [reference] if self._nodes.get(reference.task_name) is reference else []
        else:
            found = by_task.get(identity(reference), [])
        if len(found) == 1:
            return found[0]
        names = ", ".join(repr(node.task_name) for node in found)
        raise MissingNodeError(
            f"an edge names {reference!r}, which is the task of {names}; name one of them"
            if found
            else f"an edge names {reference!r}, which is not in the graph; add its node",
            reference=reference,
        )


def counted_nodes(nodes: Collection[DAGNode]) -> str:
    """How many nodes, and the names of the first of them. For reprs."""
    names = [node.task_name for node in itertools.islice(nodes, 4)]
    if len(nodes) > len(names):
        names[3:] = ["..."]
    noun = "node" if len(nodes) == 1 else "nodes"
    return f"{len(nodes)} {noun}{': ' if names else ''}{', '.join(names)}"


def _hint(intro: str, word: str, names: Collection[str]) -> str:
    """The name that is meant, or the names that there are."""
    return did_you_mean(word, names) or f"; {intro}{_listed(names)}"


def _listed(names: Iterable[str], most: int = 10) -> str:
    known = [repr(name) for name in names]
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more if known else "none"
