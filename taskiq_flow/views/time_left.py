"""Estimates how long a run will take from now on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from taskiq_flow.views.node_view import NodeView
from taskiq_flow.views.run_view import RunView


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """How long an earlier run of a graph took: an estimate for the next one.

    ``parallelism``: how many nodes ran at once on average; 0 if that is not known. ``executions``:
    by node, for how many seconds an execution ran, and how many elements a mapped node had, or 1.
    """

    parallelism: float = 0.0
    executions: Mapping[str, tuple[float, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, view: RunView) -> EarlierRun:
        """What the view of a run that has completed tells."""
        executions: dict[str, tuple[float, int]] = {}
        for name, node in view.nodes.items():
            elements = node.elements
            ran, known = (1, 1) if elements is None else (elements.attempts, elements.known)
            if node.state == "skipped":
                executions[name] = (0.0, 0)
            elif node.running and ran:
                executions[name] = (node.running / ran, known)
        running = sum(n.running for n in view.nodes.values() if not n.was_completed_before)
        return cls(running / view.seconds if view.seconds else 0.0, executions)


_UNKNOWN = EarlierRun()


def seconds_left(view: RunView, now: float, earlier: EarlierRun = _UNKNOWN) -> float | None:
    """Estimate the seconds until the end of a run. ``now``: by the clock of ``Event.at``.

    The times of nodes in an ``earlier`` run, or else their expected times, are corrected by how
    long those that have ended ran. The estimate is the longest of two times: of the longest path
    that is left, and of all work that is left at the speed of the earlier run, or else of this run
    so far. ``None`` if nothing is known: no node has ended, none has an ``expected_seconds``
    and there is no earlier run, or a node has run for longer than it was expected to.
    """
    if view.started_at is None or view.status != "running":
        return None
    works = {name: _work(node, view.expected, earlier) for name, node in view.nodes.items()}
    measured = sum(work.done for work in works.values())
    ran = sum(view.nodes[name].running for name, work in works.items() if work.done)
    if measured and ran:
        scale = ran / measured
    elif view.expected or earlier.executions:
        scale = 1.0
    else:
        return None
    path, total, done = 0.0, 0.0, 0.0
    longest: dict[str, float] = {}  # by name, the longest path behind the node
    for name in reversed(view.nodes):
        node, work = view.nodes[name], works[name]
        one = work.one * scale
        passed = _passed(node, now)
        if node.elements is None and passed and passed[0] > one:
            return None
        passed = [min(seconds, one) for seconds in passed]
        total += work.left * scale - sum(passed)
        done += work.done * scale + sum(passed)
        # Of a map, an element that has not begun runs longest from now on, if there is one.
        is_begun = len(passed) * work.one >= work.left
        length = longest.get(name, 0.0)
        if work.left:
            length += one - min(passed) if passed and is_begun else one
        path = max(path, length)
        for other in view.edges.get(name, ()):
            longest[other] = max(longest.get(other, 0.0), length)
    if earlier.parallelism:
        return max(path, total / earlier.parallelism)
    elapsed = now - view.started_at
    return max(path, total * elapsed / done) if done else path


def _passed(node: NodeView, now: float) -> list[float]:
    """For how many seconds a node runs that has not ended, or each of its elements."""
    elements = node.elements
    if node.is_ended:
        return []
    found = [node] if elements is None else elements.records.values()
    return [
        now - one.began_at for one in found if one.state == "running" and one.began_at is not None
    ]


@dataclass(frozen=True, slots=True)
class _Work:
    """Expected seconds of a node's executions: that were measured, that are left, and of one."""

    done: float
    left: float
    one: float


def _work(node: NodeView, expected: Mapping[str, float], earlier: EarlierRun) -> _Work:
    elements = node.elements
    one, known = earlier.executions.get(node.name, (expected.get(node.name, 1.0), 1))
    if elements is None:
        ran = node.is_ended and node.began_at is not None
        return _Work(one if ran else 0.0, 0.0 if node.is_ended else one, one)
    known = elements.known if elements.are_all_known else max(elements.known, known)
    left = 0 if node.is_ended else max(0, known - elements.ended)
    ran_here = elements.completed + elements.failed - elements.kept
    return _Work(one * ran_here, one * left, one)
