"""What chance may make of policies: courses of attempts, retries, limits, joins, conditions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from hypothesis import strategies as st

from property_tests.model import BrokenError, NodeSpec
from property_tests.policies import (
    FALLBACK,
    Condition,
    Defaults,
    Failed,
    Fate,
    PolicyGraph,
    PolicyNode,
    Verdict,
    evaluate,
)
from property_tests.strategies import graphs, one_of_each, subsets
from taskiq_flow import Join, NodeTimeoutError, Retry

_ANY_ERROR = [
    Retry(2, wait=0, jitter=0),
    Retry(3, wait=1, jitter=0),
    Retry(4, wait=1, factor=3, max_wait=2, jitter=0),
]
_SOME_ERRORS = [
    Retry(1),
    Retry(3, wait=0, jitter=0, on=(BrokenError,)),
    Retry(3, wait=0.5, jitter=0, on=(TimeoutError,)),
    Retry(2, wait=1, jitter=0, on=(NodeTimeoutError, BrokenError)),
    Retry(2, wait=1, jitter=0, on=(asyncio.CancelledError,)),
]
_RETRIES = (None, None, *_ANY_ERROR, *_ANY_ERROR, *_ANY_ERROR, *_SOME_ERRORS)
_BEYOND = (None, None, 0.5, 1.5)
"""Seconds of a limit beyond what it limits; at half seconds nothing else happens."""

_JOINS: tuple[Join, ...] = ("all", "all", "all", "any", "none_failed")
_DEFAULTS = st.just(Defaults()) | one_of_each(
    retry=_RETRIES, timeout=[None, 3.5], queue_timeout=[None, 3.5]
).map(lambda parts: Defaults(**parts))
_POLICIES = one_of_each(
    retry=_RETRIES,
    timeout=_BEYOND,
    queue_timeout=_BEYOND,
    join=_JOINS,
    kick=["returns"] * 10 + ["lingers", "raises late"],
    fallback=["none", "none", "none", "value", "task"],
)
_WITH_RETRY = st.sampled_from(["well"] * 3 + ["well after all"] * 3 + ["never well"])
_WITHOUT_RETRY = st.sampled_from(["well"] * 5 + ["never well"])
_VERDICTS: st.SearchStrategy[Verdict] = st.sampled_from(
    ["by value", "by value", "by value", "by value", "yes", "no", "raises"]
)
_OUTSIDE = ("x", "y", "maybe")


@st.composite
def policy_graphs(draw: st.DrawFn, *, most_nodes: int = 7, varied: bool = True) -> PolicyGraph:
    """Acyclic graphs of nodes with policies, added in any order, and policies of their engine."""
    defaults = draw(_DEFAULTS)
    base = draw(graphs(most_nodes=most_nodes, varied=varied))
    made: list[PolicyNode] = []
    for node in base.in_order:
        produced = [key for other in made for key in other.outputs]
        made.append(_policy_node(draw, node, defaults, [*produced, *_OUTSIDE]))
    asked_for = {node.condition.key for node in made if node.condition}
    inputs = {key: draw(st.integers(0, 9)) for key in ("x", "y") if key in asked_for}
    return PolicyGraph(
        nodes=tuple(made[node.index] for node in base),
        inputs=inputs | dict(base.inputs),
        defaults=defaults,
    )


def _policy_node(
    draw: st.DrawFn, base: NodeSpec, defaults: Defaults, keys: Sequence[str]
) -> PolicyNode:
    """``keys``: those that a condition may ask for."""
    policies = draw(_POLICIES)
    timeout, queue_timeout = policies["timeout"], policies["queue_timeout"]
    node = PolicyNode(
        **{field.name: getattr(base, field.name) for field in fields(NodeSpec)},
        retry=policies["retry"] or defaults.retry,
        timeout=defaults.timeout if timeout is None else base.seconds + timeout,
        queue_timeout=(
            defaults.queue_timeout if queue_timeout is None else base.sending + queue_timeout
        ),
        join=policies["join"],
        kick=policies["kick"],
    )
    mishaps = _mishaps(node)
    node = replace(
        node, course=_course(draw, node, mishaps), condition=_condition(draw, node, keys)
    )
    fallback = policies["fallback"]
    if fallback == "none":
        return node
    if fallback == "value":
        return replace(node, has_fallback_value=True)
    stand_in = replace(
        node,
        index=-1 - node.index,
        name=node.name + FALLBACK,
        course=(draw(st.sampled_from(["value", "value", *mishaps])),),
    )
    return replace(node, stand_in=stand_in)


def _mishaps(node: PolicyNode) -> list[Fate]:
    """What an attempt of the node may come to, beside its value."""
    mishaps: list[Fate] = ["broken", "broken", "broken", "gives up", "cancelled", "refused"]
    if len(node.outputs) > 1:
        mishaps.append("misshapen")
    if node.timeout is not None:
        mishaps += ["late", "late", "stubborn"]
    if node.queue_timeout is not None:
        mishaps += ["held up", "held up"]
    return mishaps


def _course(draw: st.DrawFn, node: PolicyNode, mishaps: Sequence[Fate]) -> tuple[Fate, ...]:
    goes = draw(_WITH_RETRY if node.retry else _WITHOUT_RETRY)
    if goes == "well":
        return ("value",)
    fates = draw(st.lists(st.sampled_from(mishaps), min_size=1, max_size=3))
    return (*fates, "value") if goes == "well after all" else tuple(fates)


def _condition(draw: st.DrawFn, node: PolicyNode, keys: Sequence[str]) -> Condition | None:
    if not keys or draw(st.sampled_from([True, True, True, False])):
        return None
    key = draw(st.sampled_from(keys))
    verdict = draw(_VERDICTS)
    may_lack = key == "maybe" or draw(st.booleans())
    if key not in _OUTSIDE and node.join != "all":
        may_lack = True
        if node.join == "any" and verdict == "by value":  # what is there is a matter of time
            verdict = "yes"
    return Condition(key, verdict, may_lack)


@dataclass(frozen=True)
class ChangedGraph:
    """A graph as it was when a run was begun, and as it is now."""

    before: PolicyGraph
    now: PolicyGraph

    @property
    def added(self) -> set[str]:
        return self.now.declared.keys() - self.before.declared.keys()

    @property
    def removed(self) -> set[str]:
        return self.before.declared.keys() - self.now.declared.keys()

    @property
    def changed(self) -> set[str]:
        before, now = self.before.declared, self.now.declared
        return {name for name in before.keys() & now.keys() if before[name] != now[name]}


@st.composite
def changed_graphs(draw: st.DrawFn, *, most_nodes: int = 8) -> ChangedGraph:
    """Graphs in which nodes came and went, were declared otherwise, or mended where they failed."""
    before: list[PolicyNode] = []
    now: list[PolicyNode] = []
    for index in range(draw(st.integers(1, most_nodes))):
        what = draw(st.sampled_from(["same"] * 7 + ["changed", "added", "removed"]))
        node = _named_node(draw, index).steady
        if what != "added":
            before.append(_fitted(node, before))
        if what == "changed":
            node = _changed(draw, node)
        if what != "removed":
            now.append(_fitted(node, now))
    old = PolicyGraph(nodes=tuple(draw(st.permutations(before))))
    failed = {name for name, outcome in evaluate(old).items() if isinstance(outcome, Failed)}
    mended = [n for n in now if n.name in failed and draw(st.booleans())]
    return ChangedGraph(
        old,
        PolicyGraph(
            nodes=tuple(_mended(n) if n in mended else n for n in draw(st.permutations(now)))
        ),
    )


def _named_node(draw: st.DrawFn, index: int) -> PolicyNode:
    name = f"n{index}"
    keys = [f"n{number}_gives" for number in range(index)]
    base = NodeSpec(
        index=index,
        name=name,
        given_name=name,
        outputs=(f"{name}_gives",),
        required=tuple(keys[number] for number in draw(subsets(index))),
        after=draw(subsets(index)),
        seconds=draw(st.integers(0, 2)),
    )
    return _policy_node(draw, base, Defaults(), keys)


def _changed(draw: st.DrawFn, node: PolicyNode) -> PolicyNode:
    keys = [f"n{number}_gives" for number in range(node.index)]
    required = tuple(keys[number] for number in draw(subsets(node.index)))
    node = _with(
        node, required=required, after=draw(subsets(node.index)), join=draw(st.sampled_from(_JOINS))
    )
    return _with(node, condition=_condition(draw, node, keys))


def _fitted(node: PolicyNode, others: Sequence[PolicyNode]) -> PolicyNode:
    """The node without what no other gives and what it waits for in vain."""
    keys = {key for other in others for key in other.outputs}
    condition = node.condition if node.condition and node.condition.key in keys else None
    required = tuple(key for key in node.required if key in keys)
    present = {other.index for other in others}
    after = tuple(index for index in node.after if index in present)
    return _with(node, required=required, after=after, condition=condition)


def _with(node: PolicyNode, **changes: Any) -> PolicyNode:
    """The node with these changes, for its fallback as well."""
    return replace(node, **changes, stand_in=node.stand_in and replace(node.stand_in, **changes))


def _mended(node: PolicyNode) -> PolicyNode:
    condition = node.condition and replace(node.condition, verdict="yes")
    return replace(node, course=("value",), condition=condition, stand_in=None)
