"""The ready set against a naive model that looks at every node again after each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from property_tests.strategies import Edges, acyclic_edges
from taskiq_flow.dataflow.ready_set import (
    COMPLETED,
    FAILED,
    SKIPPED,
    Gate,
    Join,
    ReadySet,
)

PICKS = st.lists(st.integers(0, 40), max_size=4)
"""Which of the nodes known so far; counted round if there are fewer."""

PRIORITIES = st.sampled_from([0.0, 0.0, 1.0, 2.5])

JOINS: st.SearchStrategy[Join] = st.sampled_from(["all", "all", "any", "none_failed", "ended"])

UNKNOWN = -1

ENDED = ("completed", "failed", "skipped", "broken")

OUTCOMES = {"completed": COMPLETED, "failed": FAILED, "broken": FAILED, "skipped": SKIPPED}

GATES = (1, 2)
"""The limits of the gates that nodes may have."""


@dataclass
class ModelNode:
    after: frozenset[int]
    priority: float
    join: Join = "all"
    gate: int | None = None
    state: str = "waiting"  # ready, running, suspended, or one of ENDED

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


class Model:
    """Nodes are numbered as they are added; ``ready`` in the order in which they became so."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.nodes: dict[int, ModelNode] = {}
        self.ready: list[int] = []
        self.told: set[int] = set()  # whose end those behind them know of
        self.at_gate: dict[int, list[int]] = {gate: [] for gate in GATES}

    def add(
        self, node: int, after: Iterable[int], priority: float, join: Join, gate: int | None
    ) -> bool:
        self.nodes[node] = ModelNode(frozenset(after), priority, join, gate)
        passed_over = self.decide_over([node])
        self.told.update(passed_over)
        return not passed_over

    def end(self, number: int, state: str) -> list[int]:
        """Have a node end. Returns those that are passed over, each behind what it waited for."""
        was_running = self.nodes[number].state == "running"
        self.nodes[number].state = state
        if was_running:
            self.leave_gate(number)
        ended = [number]
        for other in ended:  # grows while it is walked
            self.told.add(other)
            ended += self.decide_over(n for n, node in self.nodes.items() if other in node.after)
        return ended[1:]

    def decide_over(self, numbers: Iterable[int]) -> list[int]:
        """Decide over those that wait and need not any more. Returns those passed over."""
        passed_over: list[int] = []
        for number in numbers:
            node = self.nodes[number]
            state = self.decide(node)
            if node.state != "waiting" or state == "waiting":
                continue
            node.state = state
            if state == "ready":
                self.enqueue(number)
            else:
                passed_over.append(number)
        return passed_over

    def enqueue(self, number: int) -> None:
        """Have a node wait for its turn, or before its gate if that is full."""
        gate = self.nodes[number].gate
        if gate is not None and self.taken(gate) == gate:
            self.at_gate[gate].append(number)
        else:
            self.ready.append(number)

    def taken(self, gate: int) -> int:
        running = self.those("running")
        return sum(self.nodes[number].gate == gate for number in (*self.ready, *running))

    def leave_gate(self, number: int) -> None:
        """A node does not run any more."""
        gate = self.nodes[number].gate
        if gate is not None and self.at_gate[gate]:
            self.ready.append(self.at_gate[gate].pop(0))

    def decide(self, node: ModelNode) -> str:
        states = [self.nodes[other].state for other in node.after & self.told]
        if node.join == "any" and "completed" in states:
            return "ready"
        if len(states) < len(node.after):
            return "waiting"
        if node.join == "ended":
            return "ready"
        if "failed" in states or "broken" in states:
            return "broken"
        return "skipped" if "skipped" in states and node.join != "none_failed" else "ready"

    def those(self, *states: str) -> list[int]:
        return [number for number, node in self.nodes.items() if node.state in states]

    def next(self) -> int | None:
        if not self.ready or len(self.those("running")) == self.limit:
            return None
        if self.limit is None:
            return self.ready[0]
        return min(self.ready, key=lambda number: (-self.nodes[number].priority, number))


class ReadySetMachine(RuleBasedStateMachine):
    """Adds, starts, ends and forgets nodes in any order, in both at once."""

    @initialize(
        limit=st.none() | st.integers(1, 3),
        edges=acyclic_edges(most_nodes=6),
        priorities=st.lists(PRIORITIES, min_size=6, max_size=6),
        joins=st.lists(JOINS, min_size=6, max_size=6),
        picks=PICKS,
    )
    def begin(
        self,
        limit: int | None,
        edges: Edges,
        priorities: list[float],
        joins: list[Join],
        picks: list[int],
    ) -> None:
        """A graph that is known whole, perhaps an empty one, comes first.

        Some of its nodes had completed before.
        """
        self.model = Model(limit)
        for node, before in enumerate(edges):
            self.model.nodes[node] = ModelNode(frozenset(before), priorities[node], joins[node])
        completed = self.with_what_they_waited_for({p % len(edges) for p in picks if edges})
        for node in completed:
            self.model.nodes[node].state = "completed"
        self.model.told.update(completed)
        self.model.decide_over(self.model.nodes)
        self.ready = ReadySet.of_graph(
            range(len(edges)),
            {node: before for node, before in enumerate(edges) if before},
            {
                node: [n for n, before in enumerate(edges) if node in before]
                for node in self.model.nodes
            },
            dict(enumerate(priorities)),
            limit,
            {node: join for node, join in enumerate(joins[: len(edges)]) if join != "all"},
            completed,
        )
        self.gates = {limit: Gate(limit) for limit in GATES}
        self.forgotten: set[int] = set()
        self.place_of_end: dict[int, int] = {}
        self.passed_over: set[int] = set()

    def with_what_they_waited_for(self, nodes: set[int]) -> set[int]:
        pending = list(nodes)
        while pending:
            before = self.model.nodes[pending.pop()].after
            pending += before - nodes
            nodes |= before
        return nodes

    def pick(self, picks: list[int]) -> list[int]:
        known = [number for number in self.model.nodes if number not in self.forgotten]
        return [known[pick % len(known)] for pick in picks] if known else []

    @rule(picks=PICKS, priority=PRIORITIES, join=JOINS, gate=st.none() | st.sampled_from(GATES))
    def add(self, picks: list[int], priority: float, join: Join, gate: int | None) -> None:
        """A node may depend on nodes that are forgotten, by how they have ended."""
        node = len(self.model.nodes)
        depends_on = {pick % node for pick in picks} if node else set()
        after = [other for other in depends_on if other not in self.forgotten]
        ended = [OUTCOMES[self.model.nodes[o].state] for o in depends_on & self.forgotten]
        expected = self.model.add(node, depends_on, priority, join, gate)
        its_gate = None if gate is None else self.gates[gate]
        added = self.ready.add(node, after, priority, join, ended=ended, gate=its_gate)
        assert added == expected
        if self.model.nodes[node].has_ended:
            self.place_of_end[node] = len(self.place_of_end)

    @rule(picks=PICKS, place=st.integers(0, 4))
    def add_behind_an_unknown_node(self, picks: list[int], place: int) -> None:
        after = self.pick(picks)
        after.insert(place, UNKNOWN)
        with pytest.raises(ValueError, match="not in the set"):
            self.ready.add(len(self.model.nodes), after)

    @precondition(lambda self: self.model.nodes)
    @rule(pick=st.integers(0, 40))
    def add_again(self, pick: int) -> None:
        for node in self.pick([pick]):
            with pytest.raises(ValueError, match="added before"):
                self.ready.add(node)

    @rule()
    def start(self) -> None:
        node = self.model.next()
        assert self.ready.pop() == node
        if node is not None:
            self.model.ready.remove(node)
            self.model.nodes[node].state = "running"

    @precondition(lambda self: self.model.those("running", "suspended"))
    @rule(pick=st.integers(0, 40))
    def complete(self, pick: int) -> None:
        self.end(pick, "completed", self.ready.complete)

    @precondition(lambda self: self.model.those("running", "suspended"))
    @rule(pick=st.integers(0, 40))
    def fail(self, pick: int) -> None:
        self.end(pick, "failed", self.ready.fail)

    @precondition(lambda self: self.model.those("running", "suspended"))
    @rule(pick=st.integers(0, 40))
    def skip(self, pick: int) -> None:
        self.end(pick, "skipped", self.ready.skip)

    @precondition(lambda self: self.model.those("running"))
    @rule(pick=st.integers(0, 40))
    def suspend(self, pick: int) -> None:
        running = self.model.those("running")
        node = running[pick % len(running)]
        self.model.nodes[node].state = "suspended"
        self.model.leave_gate(node)
        self.ready.suspend(node)

    @precondition(lambda self: self.model.those("suspended"))
    @rule(pick=st.integers(0, 40))
    def requeue(self, pick: int) -> None:
        suspended = self.model.those("suspended")
        node = suspended[pick % len(suspended)]
        self.model.enqueue(node)
        self.model.nodes[node].state = "ready"
        self.ready.requeue(node)

    def end(self, pick: int, state: str, report: Callable[[int], list[int]]) -> None:
        started = self.model.those("running", "suspended")
        node = started[pick % len(started)]
        self.place_of_end[node] = len(self.place_of_end)
        skipped = report(node)
        assert skipped == self.model.end(node, state)
        self.passed_over.update(skipped)
        for other in skipped:
            self.place_of_end[other] = len(self.place_of_end)

    @precondition(lambda self: self.model.nodes)
    @rule(
        pick=st.integers(0, 40),
        what=st.sampled_from(["complete", "fail", "skip", "suspend", "requeue"]),
    )
    def refuse_what_a_node_in_another_state_may_do(self, pick: int, what: str) -> None:
        may = {"suspend": ["running"], "requeue": ["suspended"]}.get(what, ["running", "suspended"])
        for node in self.pick([pick]):
            if self.model.nodes[node].state not in may:
                with pytest.raises(ValueError, match=f"not {may[0]}"):
                    getattr(self.ready, what)(node)

    @precondition(lambda self: self.model.nodes)
    @rule(pick=st.integers(0, 40))
    def forget(self, pick: int) -> None:
        for node in self.pick([pick]):
            if self.model.nodes[node].has_ended:
                self.ready.forget(node)
                self.forgotten.add(node)
                with pytest.raises(ValueError, match="not in the set"):
                    self.ready.add(len(self.model.nodes), [node])
            else:
                with pytest.raises(ValueError, match="has not ended"):
                    self.ready.forget(node)

    @invariant()
    def both_say_the_same(self) -> None:
        model, ready = self.model, self.ready
        unfinished = model.those("waiting", "ready", "running", "suspended")
        assert ready.unfinished == len(unfinished)
        for number, node in model.nodes.items():
            if number not in self.forgotten:
                assert ready.has_started(number) == (node.state not in ("waiting", "ready"))
                assert ready.has_ended(number) == node.has_ended

    @invariant()
    def nodes_end_in_an_order_that_follows_the_edges(self) -> None:
        place = self.place_of_end
        for node, ended in place.items():
            model = self.model.nodes[node]
            before = [place.get(other, -1) for other in model.after]
            if model.join != "any" or node in self.passed_over:
                assert all(other < ended for other in before)

    def teardown(self) -> None:
        """Whatever was done, what is left can be run to its end."""
        if not hasattr(self, "model"):
            return
        while self.model.those("ready", "running", "suspended"):
            if self.model.those("suspended"):
                self.requeue(0)
            self.start()
            if self.model.next() is None:
                self.complete(0)
        assert not self.ready.unfinished


ReadySetMachine.TestCase.settings = settings(stateful_step_count=40)
TestReadySet = ReadySetMachine.TestCase
