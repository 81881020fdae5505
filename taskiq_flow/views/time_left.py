"""Estimates how long a run will take from now on."""

from __future__ import annotations

from dataclasses import dataclass

from taskiq_flow.views.node_view import NodeView
from taskiq_flow.views.run_view import RunView


def seconds_left(view: RunView, now: float) -> float | None:
    """Estimate the seconds until the end of a run. ``now``: by the clock of ``Event.at``.

    The expected times of nodes are corrected by how long those that have ended ran. The estimate is
    the longest of two times: of the longest path that is left, and of all work that is left at the
    speed of the run so far. ``None`` if nothing is known: no node has ended and none has an
    ``expected_seconds``, or one has run for longer than it was expected to.
    """
    if view.started_at is None or view.status != "running":
        return None
    works = {name: _work(node, view.expected.get(name, 1.0)) for name, node in view.nodes.items()}
    measured = sum(work.done for work in works.values())
    ran = sum(view.nodes[name].running for name, work in works.items() if work.done)
    if measured and ran:
        scale = ran / measured
    elif view.expected:
        scale = 1.0
    else:
        return None
    path, total, done = 0.0, 0.0, 0.0
    longest: dict[str, float] = {}  # by name, the longest path behind the node
    for name in reversed(view.nodes):
        node, work = view.nodes[name], works[name]
        passed = 0.0
        if node.elements is None and node.state == "running" and node.began_at is not None:
            passed = now - node.began_at
            if passed > work.one * scale:
                return None
        total += work.left * scale - passed
        done += work.done * scale + passed
        length = longest.get(name, 0.0) + (work.one * scale - passed if work.left else 0.0)
        path = max(path, length)
        for other in view.edges.get(name, ()):
            longest[other] = max(longest.get(other, 0.0), length)
    elapsed = now - view.started_at
    return max(path, total * elapsed / done) if done else path


@dataclass(frozen=True, slots=True)
class _Work:
    """Expected seconds of a node's executions: that were measured, that are left, and of one."""

    done: float
    left: float
    one: float


def _work(node: NodeView, one: float) -> _Work:
    elements = node.elements
    if elements is None:
        ran = node.is_ended and node.began_at is not None
        return _Work(one if ran else 0.0, 0.0 if node.is_ended else one, one)
    left = 0 if node.is_ended else max(elements.known - elements.ended, not elements.known)
    ran_here = elements.completed + elements.failed - elements.kept
    return _Work(one * ran_here, one * left, one)
