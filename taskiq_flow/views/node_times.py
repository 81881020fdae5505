"""When a node waited, when it was queued, and when it ran."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from taskiq_flow.views.critical_path import stage_of
from taskiq_flow.views.node_view import NodeState, NodeView
from taskiq_flow.views.run_view import RunView

Part = Literal["waiting", "queued", "running"]


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a node's time, from ``start`` to ``end`` in seconds since the run began."""

    part: Part
    start: float
    end: float
    attempt: int


@dataclass(frozen=True, slots=True)
class NodeTimes:
    """The times of a node in seconds, as of ``NodeView``.

    All of them and ``attempts`` are zero if the journal had its result.

    ``waiting`` of a mapped node has at least the seconds from when it was ready until it ended, but
    for those that its longest element ran and those in which elements were sent and not begun.

    ``elements``: of a mapped node, whose ``attempts`` are those of all elements that have ended.
    ``spans``: one after the other without a gap, if the view knows all attempts. Those of a mapped
    node are until its first element was sent, until that began, and until the last one ended.
    """

    state: NodeState
    attempts: int
    waiting: float
    queued: float
    running: float
    elements: int | None = None
    spans: tuple[Span, ...] = ()

    @property
    def sending(self) -> float:
        """The same as ``queued``."""
        return self.queued


def taken(times: NodeTimes) -> float:
    """Seconds from the beginning of the first span to the end of the last one."""
    return times.spans[-1].end - times.spans[0].start if times.spans else 0.0


def count_text(times: NodeTimes) -> str:
    """What stands behind the name of a mapped node: how many elements it has."""
    return "" if times.elements is None else f" ×{times.elements}"


def times_of(node: NodeView, view: RunView) -> NodeTimes:
    """The times of one of a view's nodes."""
    elements = None if node.elements is None else node.elements.known
    if node.is_kept:
        return NodeTimes(node.state, 0, 0.0, 0.0, 0.0, elements)
    attempts = node.attempts if node.elements is None else node.elements.attempts
    # When an element of a mapped node was ready is not known, but what is left of the node's time.
    waiting = node.waiting if elements is None else max(node.waiting, stage_of(node).waiting)
    parts = (waiting, node.queued, node.running)
    return NodeTimes(node.state, attempts, *parts, elements, tuple(_spans(node, view)))


def _spans(node: NodeView, view: RunView) -> Iterator[Span]:
    if view.started_at is None or view.at is None:
        return
    at = node.ready_at
    ended_at = node.ended_at if node.is_ended else view.at
    attempts = [*node.earlier]
    if node.sent_at is not None and ended_at is not None:
        attempts.append((node.sent_at, node.began_at, ended_at))
    elif at is not None and ended_at is not None and ended_at > at:
        # It was skipped, or needed no task.
        yield Span("waiting", at - view.started_at, ended_at - view.started_at, 0)
    first = node.attempts - len(attempts) + 1
    for attempt, (sent, told, ended) in enumerate(attempts, first):
        began = told
        if began is None:
            is_on_its_way = node.state in ("queued", "interrupted") and ended == ended_at
            began = ended if is_on_its_way else sent
        moments: tuple[tuple[Part, float | None, float], ...] = (
            ("waiting", at, sent),
            ("queued", sent, began),
            ("running", began, ended),
        )
        for part, start, end in moments:
            if start is not None and end > start:
                yield Span(part, start - view.started_at, end - view.started_at, attempt)
        at = ended
