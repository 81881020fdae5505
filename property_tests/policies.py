"""Random nodes with policies as plain data, and what a sequential evaluation makes of them."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import Parameter, Signature
from typing import Any, Literal

from property_tests.model import DEFAULT, BrokenError, GraphSpec, NodeSpec
from taskiq_flow import Join, NodeTimeoutError, OutputShapeError, Retry
from taskiq_flow.dataflow.options import in_seconds

Fate = Literal[
    "value",
    "broken",  # raises
    "gives up",  # raises a TimeoutError of its own, in time
    "cancelled",  # raises a CancelledError of its own
    "misshapen",  # returns what cannot be split into several outputs
    "late",  # runs for longer than its timeout
    "stubborn",  # runs for longer than its timeout, and does not heed its worker either
    "refused",  # is not taken by the broker
    "held up",  # is not begun within its queue_timeout
]
"""What one attempt comes to."""

Verdict = Literal["yes", "no", "by value", "raises"]
"""What a condition says."""

FALLBACK = ":fallback"
"""Behind a node's name: the task that stands in for it."""

GRACE = 1
"""Seconds that a worker has to end an attempt whose time is over, before the engine does."""


class SendingError(Exception):
    """What a broker raises that does not take a task."""


class ConditionError(Exception):
    """What a condition raises that cannot say."""


ERRORS: Mapping[Fate, type[BaseException]] = {
    "broken": BrokenError,
    "gives up": TimeoutError,
    "cancelled": asyncio.CancelledError,
    "misshapen": OutputShapeError,
    "late": NodeTimeoutError,
    "stubborn": NodeTimeoutError,
    "refused": SendingError,
    "held up": NodeTimeoutError,
}
"""What an attempt ends with that gives no value."""

NEVER_BEGUN: tuple[Fate, ...] = ("refused", "held up")
TOO_LONG: tuple[Fate, ...] = ("late", "stubborn")


@dataclass(frozen=True)
class Condition:
    """A condition that asks for one key; ``may_lack`` it, if its parameter has a default."""

    key: str
    verdict: Verdict
    may_lack: bool = False

    def says(self, values: Mapping[str, Any]) -> bool:
        if self.verdict == "raises":
            raise ConditionError(self.key)
        value = values.get(self.key, DEFAULT) if self.may_lack else values[self.key]
        by_value = zlib.crc32(json.dumps(value).encode()) % 3 > 0
        return by_value if self.verdict == "by value" else self.verdict == "yes"

    @property
    def function(self) -> Callable[..., bool]:
        def when(**values: Any) -> bool:
            assert values.keys() <= {self.key}
            return self.says(values)

        default = DEFAULT if self.may_lack else Parameter.empty
        parameter = Parameter(self.key, Parameter.KEYWORD_ONLY, default=default)
        vars(when)["__signature__"] = Signature([parameter])
        return when


@dataclass(frozen=True)
class PolicyNode(NodeSpec):
    """A node with policies, those of its engine included.

    ``course``: what its attempts come to, one after the other; the last says it for all that
    follow. ``stand_in``: its fallback as a task; ``has_fallback_value``: it has one as a value.
    A node that may start with some of its inputs gives the same value whichever these are.
    ``kick``: how the broker's is, once it has handed the task over: it returns, or waits until the
    attempt has long ended, and raises then.
    """

    course: tuple[Fate, ...] = ("value",)
    retry: Retry | None = None
    timeout: float | None = None
    queue_timeout: float | None = None
    join: Join = "all"
    condition: Condition | None = None
    stand_in: PolicyNode | None = None
    has_fallback_value: bool = False
    kick: Literal["returns", "lingers", "raises late"] = "returns"

    @property
    def keys(self) -> tuple[str, ...]:
        return (*super().keys, *([self.condition.key] if self.condition else []))

    @cached_property
    def signature(self) -> Signature:
        signature = super().signature
        if self.join == "all":
            return signature
        return Signature([p.replace(default=DEFAULT) for p in signature.parameters.values()])

    def result(self, arguments: Mapping[str, Any]) -> Any:
        return super().result({} if self.join == "any" else arguments)

    @property
    def fallback_value(self) -> Any:
        return replace(self, index=-1 - self.index).result({})

    def fate(self, number: int) -> Fate:
        """What the attempt of that number comes to; the first has 1."""
        return self.course[min(number, len(self.course)) - 1]

    @cached_property
    def tries(self) -> tuple[Fate, ...]:
        """The attempts there are if nothing comes between."""
        tries = [self.fate(1)]
        while self.is_tried_again(tries):
            tries.append(self.fate(len(tries) + 1))
        return tuple(tries)

    def is_tried_again(self, tries: list[Fate]) -> bool:
        if self.retry is None or tries[-1] == "value" or len(tries) >= self.retry.attempts:
            return False
        return issubclass(ERRORS[tries[-1]], self.retry.on)

    def lasts(self, fate: Fate) -> float:
        """Seconds from the moment in which an attempt is sent to its end."""
        if fate == "refused":
            return self.sending
        if fate == "held up":
            return self.sending + (self.queue_timeout or 0)
        if fate in TOO_LONG:
            return self.sending + (self.timeout or 0) + (GRACE if fate == "stubborn" else 0)
        return self.sending + self.seconds

    def pause(self, failures: int) -> float:
        """Seconds between an attempt and the next one."""
        assert self.retry is not None
        pause = in_seconds("wait", self.retry.wait)
        for _ in range(failures - 1):
            pause *= self.retry.factor
        return min(pause, in_seconds("max_wait", self.retry.max_wait))

    @property
    def steady(self) -> PolicyNode:
        """The same, with an end that does not depend on how often it was tried before."""
        tries = self.tries
        return replace(
            self,
            course=tries if tries[-1] == "value" else tries[-1:],
            stand_in=self.stand_in and replace(self.stand_in, course=self.stand_in.course[:1]),
        )


@dataclass(frozen=True)
class Defaults:
    """What an engine asks for nodes that have nothing of their own."""

    retry: Retry | None = None
    timeout: float | None = None
    queue_timeout: float | None = None


@dataclass(frozen=True)
class PolicyGraph(GraphSpec):
    """A graph of nodes with policies."""

    nodes: tuple[PolicyNode, ...] = ()
    defaults: Defaults = field(default_factory=Defaults)

    def __iter__(self) -> Iterator[PolicyNode]:
        return iter(self.nodes)

    def part(self, outputs: Iterable[str]) -> PolicyGraph:
        """All that is needed for these output keys."""
        needed = self.needed_for(outputs)
        return replace(self, nodes=tuple(node for node in self if node.name in needed))

    @property
    def declared(self) -> dict[str, object]:
        """What tells each node from another of its name: all but what it is like to run it."""
        return {
            node.name: (
                node.outputs,
                node.required,
                node.optional,
                node.join,
                node.condition and (node.condition.key, node.condition.may_lack),
                {other.name for other in self.waits_for[node.name]},
            )
            for node in self
        }

    @property
    def steady(self) -> PolicyGraph:
        return replace(self, nodes=tuple(node.steady for node in self))


@dataclass(frozen=True)
class Completed:
    """``tries``: what its attempts came to before its result was there, from whatever source."""

    result: Any
    source: Literal["task", "fallback"] = "task"
    tries: tuple[Fate, ...] = ()


@dataclass(frozen=True)
class Failed:
    """``fell_back``: what its fallback was tried for, and has failed as well."""

    error: type[BaseException]
    tries: tuple[Fate, ...] = ()
    fell_back: bool = False

    @property
    def attempts(self) -> int:
        """How many there were, with that of its fallback."""
        return len(self.tries) + self.fell_back


@dataclass(frozen=True)
class Skipped:
    because_of: frozenset[str] = frozenset()
    reason: Literal["failure", "condition"] = "condition"


Outcome = Completed | Failed | Skipped


def evaluate(graph: PolicyGraph) -> dict[str, Outcome]:
    """The reference: one node after the other, each with all of its attempts."""
    outcomes: dict[str, Outcome] = {}
    values = dict(graph.inputs)
    for node in sorted(graph, key=lambda node: node.index):
        before = {other.name: outcomes[other.name] for other in graph.waits_for[node.name]}
        outcomes[node.name] = outcome = _skipped(node, before) or _run(node, values)
        if isinstance(outcome, Completed):
            values |= node.keyed(outcome.result)
    return outcomes


def _skipped(node: PolicyNode, before: Mapping[str, Outcome]) -> Skipped | None:
    """Whether its join rule passes the node over."""
    bad = {name: o for name, o in before.items() if not isinstance(o, Completed)}
    failed = behind_failures(bad) or any(isinstance(outcome, Failed) for outcome in bad.values())
    is_met = {
        "all": not bad,
        "any": len(bad) < len(before) or not before,
        "none_failed": not failed,
    }
    if is_met[node.join]:
        return None
    return Skipped(frozenset(bad), "failure" if failed else "condition")


def _run(node: PolicyNode, values: Mapping[str, Any]) -> Outcome:
    try:
        if node.condition is not None and not node.condition.says(values):
            return Skipped()
    except ConditionError:
        return _without_result(node, values, (), ConditionError)
    if node.tries[-1] == "value":
        return Completed(node.result(_arguments(node, values)), "task", node.tries)
    return _without_result(node, values, node.tries, ERRORS[node.tries[-1]])


def _without_result(
    node: PolicyNode,
    values: Mapping[str, Any],
    tries: tuple[Fate, ...],
    error: type[BaseException],
) -> Outcome:
    if node.has_fallback_value:
        return Completed(node.fallback_value, "fallback", tries)
    if node.stand_in is None:
        return Failed(error, tries)
    fate = node.stand_in.fate(1)
    if fate == "value":
        result = node.stand_in.result(_arguments(node, values))
        return Completed(result, "fallback", tries)
    return Failed(ERRORS[fate], tries, fell_back=True)


def _arguments(node: PolicyNode, values: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {node.parameter(key): values.get(key, DEFAULT) for key in node.required}
    return arguments | {key: values.get(key, DEFAULT) for key in node.optional}


def behind_failures(outcomes: Mapping[str, Outcome]) -> set[str]:
    """The nodes that are skipped because of a failure."""
    return {
        name
        for name, outcome in outcomes.items()
        if isinstance(outcome, Skipped) and outcome.reason == "failure"
    }


Told = tuple[object, ...]
"""An event in short: what happened, and what it says of it."""


def story(node: PolicyNode, outcome: Outcome) -> list[Told]:
    """What listeners are told of a node, in order."""
    if isinstance(outcome, Skipped):
        return [("skipped", outcome.because_of, outcome.reason)]
    errors = [ERRORS[fate] for fate in outcome.tries if fate != "value"]
    tries = len(outcome.tries)
    told: list[Told] = [("started",)] if tries else []
    told += [("retried", number + 1, errors[number - 1]) for number in range(1, tries)]
    if isinstance(outcome, Failed):
        if outcome.fell_back:
            told.append(("fell back", tries, [ConditionError, *errors][-1]))
        return [*told, ("failed", outcome.attempts, outcome.error)]
    if outcome.source == "fallback":
        told.append(("fell back", tries, [ConditionError, *errors][-1]))
    return [*told, ("completed", outcome.source, outcome.result)]


def executions(graph: PolicyGraph, outcomes: Mapping[str, Outcome]) -> Counter[str]:
    """How often the task of each node is executed, and that of its fallback."""
    counts: Counter[str] = Counter()
    for node in graph:
        outcome = outcomes[node.name]
        if isinstance(outcome, Skipped):
            continue
        counts[node.name] = sum(fate not in NEVER_BEGUN for fate in outcome.tries)
        if node.stand_in is not None and outcome.tries[-1:] != ("value",):
            counts[node.stand_in.name] = int(node.stand_in.fate(1) not in NEVER_BEGUN)
    return +counts
