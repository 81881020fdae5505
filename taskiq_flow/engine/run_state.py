"""What a run has reached, and the errors that carry it to whoever reads the run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypedDict

from taskiq_flow.dataflow.axes import element_name
from taskiq_flow.dataflow.items import ItemsNode
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.plan import FAILURES
from taskiq_flow.dataflow.ready_set import FAILED
from taskiq_flow.dispatch.encoding import RunnableNode
from taskiq_flow.elements.element import Element, Unreached, place_of
from taskiq_flow.elements.values import ElementValues
from taskiq_flow.engine.run_spec import RunSpec
from taskiq_flow.errors import (
    NodeFailedError,
    RunCancelledError,
    RunError,
    RunFailedError,
    RunTimeoutError,
    describe,
    message_of,
)
from taskiq_flow.events import Failure

_MOST_NAMED = 5
"""Nodes that a message names."""

MOST_FAILURES = 1_000
"""Elements that failed, and elements that were skipped because of it, of which a run keeps more
than a count."""

SkipReason = Literal["failure", "condition"]

DECLINED: Final = object()
"""What the reader of an element is given that a filter has left out: nothing."""


def as_whole(node: Any) -> Any:
    """The node to which an element belongs; other nodes are their own."""
    return node.node if isinstance(node, Element) else node


def as_declared(node: Any) -> Any:
    """The node of the graph, of one that stands for its items; other nodes are their own."""
    return node.generator if isinstance(node, ItemsNode) else node


def _has_task(node: object) -> bool:
    """Whether a task is sent for a node of a ready set: for elements, not for mapped nodes."""
    return isinstance(node, Element) or (isinstance(node, DAGNode) and not node.map_over)


class Reached(TypedDict):
    """What every ``RunError`` carries."""

    results: dict[str, Any]
    failures: dict[str, BaseException]
    skipped: list[str]
    failure_count: int


@dataclass(frozen=True, slots=True)
class Failures:
    """What has failed in a run, by names, and what was skipped because of it.

    Of elements, the first 1,000; ``count``: how many failed in all.
    """

    errors: Mapping[str, BaseException] = field(default_factory=dict)
    count: int = 0
    skipped: Sequence[str] = ()


class RunState:
    """Values by key, failures and skips by node name.

    ``failures``, ``skipped``: of nodes, and of the first 1,000 elements; ``skipped`` has those that
    a failure skipped. ``failure_count``: how many failed in all.
    ``values``: the run's inputs, and what its nodes have given. ``partial``: lists of mapped nodes
    of which some elements are missing because of a failure; ``incomplete``: the names of these
    nodes. ``elements``: what the elements of mapped nodes have given, if there are any.
    """

    def __init__(self, run_id: str, spec: RunSpec) -> None:
        self.run_id = run_id
        self.elements: ElementValues | None = None
        self.partial: dict[str, list[Any]] = {}
        self.incomplete: set[str] = set()
        self.values = {**spec.inputs, **{key: [] for key in spec.failure_keys}}
        self.failures: dict[str, BaseException] = {}
        self._fell_back: dict[str, BaseException] = {}  # errors of tasks whose fallbacks failed
        self.failure_count = 0
        self.skipped: list[str] = []
        self._spec = spec
        self._failed_nodes: dict[Any, None] = {}
        self._not_completed: dict[str, Literal["failed"] | SkipReason] = {}

    @property
    def so_far(self) -> Failures:
        """What has failed so far."""
        return Failures(self.failures, self.failure_count, self.skipped)

    def add_failure(
        self, node: RunnableNode, error: BaseException, after: BaseException | None = None
    ) -> None:
        """A node has failed for good. ``after``: as of ``NodeFailed``."""
        self._not_completed[node.task_name] = "failed"
        self._failed_nodes[as_declared(as_whole(node))] = None
        if not isinstance(node, Element) or len(self.failures) < MOST_FAILURES:
            self.failures[node.task_name] = error
            if after is not None:
                self._fell_back[node.task_name] = after
        self.failure_count += 1
        name = as_whole(node).task_name
        failure = Failure(name, node.index, type(error).__name__, message_of(error, after))
        if (failures := self.values.get(f"{name}{FAILURES}")) is not None:
            failures.append(failure)
        if self.elements is not None and isinstance(node, Element):
            self.elements.add_failure(node, failure)

    def add_skip(self, node: RunnableNode, reason: SkipReason) -> None:
        """A node does not run, because of a failure or of a condition."""
        self._not_completed[node.task_name] = reason
        is_listed = not isinstance(node, Element) or len(self.skipped) < MOST_FAILURES
        if reason == "failure" and is_listed:
            self.skipped.append(node.task_name)

    def forget(self, name: str) -> None:
        """No node will ask any more how an element has ended."""
        self._not_completed.pop(name, None)
        self.incomplete.discard(name)

    def sort_failures(self, name: str) -> None:
        """Put the failures of a mapped node's elements into the order of these."""
        if (failures := self.values.get(f"{name}{FAILURES}")) is not None:
            failures.sort(key=place_of)

    def reason_to_skip(self, node: RunnableNode) -> tuple[tuple[str, ...], SkipReason]:
        """The dependencies because of which a node does not run, and whether one has failed."""
        if isinstance(node, Element):
            dependencies = node.dependencies
        else:  # a mapped node never came to be because of its lists, whatever else it depends on
            edges: Any = self._spec if self._spec.elements is None else self._spec.elements
            dependencies = [other.task_name for other in edges.predecessors[node]]
        ended = {name: self._not_completed.get(name) for name in dependencies}
        failed = [n for n in dependencies if ended[n] == "failed" or n in self.incomplete]
        because_of = tuple(n for n in dependencies if n in failed or ended[n])
        if isinstance(node, Unreached):  # whatever else it would have waited for
            return because_of, "failure" if node.outcome == FAILED else "condition"
        of_failure = failed or "failure" in ended.values()
        return because_of, "failure" if of_failure else "condition"

    def skipped_dependencies(self, element: Element) -> tuple[str, ...]:
        """The dependencies of an element that are skipped because of a condition."""
        return tuple(n for n in element.dependencies if self._not_completed.get(n) == "condition")

    def node_failed(
        self, name: str, task_id: str, attempts: int, called_with: str
    ) -> NodeFailedError:
        """The error of a run that one failure has ended. ``called_with``: the task's arguments."""
        cause, after = self.failures[name], self._fell_back.get(name)
        where = f"in attempt {attempts}" if attempts else "before its first attempt"
        told = f" with {describe(cause)}"
        if after is not None:
            told = f": its fallback failed{told}, after {describe(after)}"
        error = NodeFailedError(
            f"node {name!r} failed {where}{told}{called_with}{self._progress()}",
            task_name=name,
            task_id=task_id,
            attempts=attempts,
            **self.reached(),
        )
        error.__cause__ = cause
        return error

    def run_failed(self) -> RunFailedError:
        """The error of a run that went on to its end in spite of failures."""
        named = list(self.failures.items())[:_MOST_NAMED]
        failures = "; ".join(
            f"{name!r} with {describe(error, self._fell_back.get(name))}" for name, error in named
        )
        if (more := self.failure_count - len(named)) > 0:
            failures += f"; and {more} more"
        return RunFailedError(
            f"nodes of run {self.run_id!r} failed: {failures}{self._progress()}",
            **self.reached(),
        )

    def cancelled(self) -> RunCancelledError:
        """The error of a run that was stopped."""
        return RunCancelledError(
            f"run {self.run_id!r} was cancelled{self._progress()}", **self.reached()
        )

    def source_cancelled(self, error: BaseException) -> RunError:
        """The error of a run whose source has raised a ``CancelledError`` of its own.

        To the reader it would look as if its own asyncio task were cancelled.
        """
        ended = RunError(
            f"run {self.run_id!r} ended, as an iterable that it reads raised CancelledError"
            f"{self._progress()}; have it raise another error if what it waits for is cancelled",
            **self.reached(),
        )
        ended.__cause__ = error
        return ended

    def timed_out(
        self, seconds: float, in_progress: Sequence[Any], unfinished: int
    ) -> RunTimeoutError:
        """The error of a run that took too long.

        ``in_progress``: the nodes that had started; ``unfinished``: how many had not ended.
        """
        names = [node.task_name for node in in_progress if _has_task(node)]
        waiting = unfinished - len(in_progress)
        named = ", ".join(map(repr, names[:_MOST_NAMED]))
        if (more := len(names) - _MOST_NAMED) > 0:
            named += f" and {more} more"
        state = f"in progress were {named}" if named else "no node was in progress"
        if waiting:
            state += f"; nodes that had not started: {waiting}"
        return RunTimeoutError(
            f"run {self.run_id!r} did not end within {seconds:g} s, its run_timeout: {state}"
            f"{self._progress()}; give it more time, or give nodes a timeout= or a queue_timeout=, "
            "which say which of them is slow and which no worker takes",
            **self.reached(),
        )

    def filled(self, error: RunError) -> RunError:
        """The same error, raised elsewhere, with what the run has reached."""
        for name, value in self.reached().items():
            setattr(error, name, value)
        return error

    def _progress(self) -> str:
        count = len(self.reached()["results"])
        return f"; results of what had completed are in .results: {count}" if count else ""

    def reached(self) -> Reached:
        """What an error of the run has."""
        given = {*self._spec.inputs, *self._spec.failure_keys}
        results = {k: value for k, value in self.values.items() if k not in given}
        return Reached(
            results={**results, **self.results_of_elements(self.values)},
            failures=self.failures,
            skipped=self._dependents_of_failures(),
            failure_count=self.failure_count,
        )

    def results_of_elements(self, whole: Collection[str]) -> dict[str, Any]:
        """What elements of lists to come have given, by their names.

        ``whole``: keys whose lists are there. Elements that nobody takes as a list have been given
        to the reader one by one. Some of their values may still be there, and do not count.
        """
        if self.elements is None or self._spec.elements is None:
            return {}
        nodes: Any = self._spec.nodes
        wanted = {
            key
            for node in nodes
            for key in (*node.required_keys, *node.optional_keys)
            if key not in node.map_over
        }
        return {
            element_name(node.task_name, path): value
            for node in self._spec.elements.mapped
            if node.given_key is None or isinstance(node, ItemsNode)
            if self._spec.lists_at == 0 or not wanted.isdisjoint(node.outputs)
            if not any(key in whole for key in node.outputs)
            for path, value in self.elements.returned(node)
        }

    def _dependents_of_failures(self) -> list[str]:
        """The names of all nodes that depend on a failure and cannot run because of it."""
        found: dict[Any, None] = {}
        pending: dict[Any, None] = dict(self._failed_nodes)
        walked = list(pending)
        for node in walked:  # grows while it is walked
            for dependent in self._spec.successors.get(node, ()):
                if dependent in pending or not self._cannot_run(dependent, found):
                    continue
                pending[dependent] = None
                walked.append(dependent)
                if not self._takes_elements(dependent, node):
                    found[dependent] = None
        names = [node.task_name for node in found]
        if self.elements is not None:
            names += sorted({*self.skipped}.difference(names))
        return names

    def _takes_elements(self, node: Any, of: Any) -> bool:
        """Whether a node goes on without elements ``of`` another that have failed."""
        elements = self._spec.elements
        mapped = None if elements is None else elements.mapped.get(node)
        if elements is None or mapped is None:
            return False
        of = elements.generators.get(of, of)
        return of in mapped.producers and of not in mapped.whole

    def _cannot_run(self, node: Any, found: Mapping[Any, None]) -> bool:
        """Whether a node cannot run with such a dependency. By ``"any"``, another is enough."""
        join = self._spec.joins.get(node)
        if join == "ended":
            return False
        return join != "any" or all(
            other in found or other.task_name in self._not_completed
            for other in self._spec.predecessors[node]
        )
