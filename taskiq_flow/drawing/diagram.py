"""A graph as boxes and arrows, as plain data: what is drawn, and not yet where."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from taskiq_flow.drawing.folding import ordered
from taskiq_flow.drawing.theme import SIGNS


@dataclass(frozen=True, slots=True)
class Box:
    """A node. ``id``: its name within the drawing.

    ``kind``: the name of its task; different tasks have different ones. ``mapped``: what it maps
    over, as it is written, and whether it is a generator. ``rules``: its join rule, its condition
    and its fallback, likewise.
    ``takes_whole``: the keys of mapped nodes whose elements it takes together.
    """

    id: str
    name: str
    kind: str
    mapped: str = ""
    rules: tuple[str, ...] = ()
    takes_whole: tuple[str, ...] = ()
    is_mapped: bool = False
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """All of it in one line."""
        rules = f"({', '.join(self.rules)})" if self.rules else ""
        return " ".join([self.name, *filter(None, (self.mapped, rules))])


@dataclass(frozen=True, slots=True)
class Input:
    """An input of the run."""

    id: str
    key: str


@dataclass(frozen=True, slots=True)
class Arrow:
    """An edge from a box or an input to a box. ``keys``: its data; without any, it is an order."""

    start: str
    end: str
    keys: tuple[str, ...] = ()
    label: str = ""
    is_optional: bool = False

    @property
    def is_order(self) -> bool:
        """Whether the end only waits for the start."""
        return not self.keys


@dataclass(frozen=True, slots=True)
class Diagram:
    """A graph: each box stands after those that it depends on."""

    boxes: Sequence[Box]
    inputs: Sequence[Input]
    arrows: Sequence[Arrow]

    def to_json(self) -> str:
        """The nodes and the edges between them as JSON, without a layout."""
        names = {box.id: box.name for box in self.boxes}
        nodes = [
            {
                "id": box.name,
                "task": box.kind,
                "inputs": box.inputs,
                "outputs": box.outputs,
                "mapped": box.mapped,
                "rules": box.rules,
            }
            for box in self.boxes
        ]
        edges = [
            {"from": names[arrow.start], "to": names[arrow.end], "keys": arrow.keys}
            for arrow in self.arrows
            if arrow.start in names
        ]
        return json.dumps({"nodes": nodes, "edges": edges})


class ElementStates(Protocol):
    """How many elements of a mapped node are in which state: an ``ElementsView``."""

    @property
    def known(self) -> int:
        """How many there are, as far as is known."""

    @property
    def ended(self) -> int:
        """How many have ended."""


class NodeState(Protocol):
    """The state of a node: a ``NodeView``."""

    @property
    def state(self) -> str:
        """The state of the node as a whole."""

    @property
    def elements(self) -> ElementStates | None:
        """Those of a mapped node."""


class RunState(Protocol):
    """The state of a run: a ``RunView``."""

    @property
    def run_id(self) -> str:
        """Which run it is."""

    @property
    def status(self) -> str:
        """The state of the run as a whole."""

    @property
    def nodes(self) -> Mapping[str, NodeState]:
        """The nodes by name."""

    @property
    def edges(self) -> Mapping[str, Sequence[str]]:
        """By name, what each node depends on."""


def diagram_of_run(run: RunState) -> Diagram:
    """What a run tells of its graph: the names of its nodes, its edges, which nodes are mapped.

    Nodes are of one kind if their names differ in numbers only, as ``crop`` and ``crop_2``.
    """
    names = list(run.nodes)
    numbers = {name: number for number, name in enumerate(names)}
    before = [[numbers[a] for a in run.edges.get(name, ()) if a in numbers] for name in names]
    ids = {names[number]: f"n{place}" for place, number in enumerate(ordered(before))}
    boxes = [
        Box(at, name, stem(name), "×" * is_mapped, is_mapped=is_mapped)
        for name, at in ids.items()
        for is_mapped in [run.nodes[name].elements is not None]
    ]
    arrows = [
        Arrow(ids[before], at, (before,))
        for name, at in ids.items()
        for before in run.edges.get(name, ())
        if before in ids
    ]
    return Diagram(boxes, [], arrows)


def state_of(members: Sequence[str], run: RunState) -> str:
    """The state of one node, or of several together."""
    states = {run.nodes[name].state if name in run.nodes else "pending" for name in members}
    if len(states) == 1:
        return states.pop()
    is_over = run.status not in ("pending", "running")
    if not is_over and states & {"running", "queued", "pending"} and "failed" not in states:
        return "running"
    order = ("failed", "interrupted", "running", "queued", "cancelled", "pending")
    return next((state for state in order if state in states), "completed")


def states_of(members: Sequence[str], run: RunState) -> Counter[str]:
    """How many nodes are in which state; of a single mapped node, how many of its elements."""
    nodes = [run.nodes[name] for name in members if name in run.nodes]
    if len(members) == 1 and nodes and (elements := nodes[0].elements) and elements.known:
        return Counter(dict(_element_states(elements)))
    states = Counter(node.state for node in nodes)
    states["pending"] += len(members) - len(nodes)
    return +states


def _element_states(elements: ElementStates) -> Iterator[tuple[str, int]]:
    left = elements.known
    for state in SIGNS:
        if count := getattr(elements, state):
            left -= count
            yield state, count
    if left > 0:
        yield "pending", left


def stem(name: str) -> str:
    """The name without its numbers, and without what parts them from it."""
    return re.sub(r"[\W_]*\d+", "", name) or name
