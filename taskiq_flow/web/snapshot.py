"""The state of a run and of a node as plain data, with times in seconds since the run began."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskiq_flow.drawing.theme import SIGNS
from taskiq_flow.events import WIRE_VERSION
from taskiq_flow.journal.summary import RunSummary
from taskiq_flow.previews import of_the_users, printable
from taskiq_flow.views.node_times import NodeTimes, times_of
from taskiq_flow.views.node_view import ElementsView, NodeView
from taskiq_flow.views.report import RunReport
from taskiq_flow.views.run_view import RunView
from taskiq_flow.web.recent import shown_run
from taskiq_flow.web.shown import Shown

MOST_RECORDS = 200
"""Elements of a mapped node that are listed."""

Content = dict[str, Any]


def snapshot(view: RunView, run: RunSummary, shown: Shown, left: float | None = None) -> Content:
    """A run: whoever applies the events after ``seq`` to it has the present state.

    ``left``: the seconds that it will take, as they are estimated.
    """
    report = RunReport.of(view)
    return {
        "v": WIRE_VERSION,
        **shown_run(run),
        "status": view.status,
        "seq": view.seq,
        "missed": view.missed,
        "sessions": view.sessions,
        "time": view.time,
        "clock": view.started_at,
        "seconds": view.seconds,
        "left": left,
        "error": _error(shown.error("", view.error)),
        "origin": None if view.origin is None else printable(view.origin),
        "on_error": view.on_error,
        "counts": view.counts,
        "sentence": printable(report.sentence),
        "critical_path": [printable(name) for name in report.critical_path],
        "edges": lists(view.edges),
        "nodes": [_node(node, view) for node in view.nodes.values()],
    }


def report_content(view: RunView, left: float | None = None) -> Content:
    """What held a run back. ``left``: as of ``snapshot``."""
    report = RunReport.of(view)
    return {
        "run": printable(report.run_id),
        "status": view.status,
        "seconds": report.seconds,
        "left": left,
        "ideal_seconds": report.ideal_seconds,
        "parallelism": report.parallelism,
        "critical_path": [printable(name) for name in report.critical_path],
        "sentence": printable(report.sentence),
        "nodes": {
            printable(name): {"state": times.state, **_times(times), "elements": times.elements}
            for name, times in report.nodes.items()
        },
    }


def node_content(node: NodeView, view: RunView, run: RunSummary, shown: Shown) -> Content:
    """One node or element with what it takes, what it gave, its error, and all of its attempts."""
    name = node.name
    records = [] if node.elements is None else list(node.elements.records.values())
    is_stored = run.is_resumable and node.state == "completed" and node.elements is None
    return {
        **_node(node, view),
        "seq": view.seq,
        "worker": node.worker,
        "item": shown.item(name, node.item),
        "error": _error(shown.error(name, node.error)),
        "value": shown.value(name, node.preview),
        "has_value": is_stored and shown.whole_values,
        "source": node.source,
        "because_of": [printable(other) for other in node.because_of],
        "reason": node.reason,
        "spans": [
            {"part": span.part, "start": span.start, "end": span.end, "attempt": span.attempt}
            for span in times_of(node, view).spans
        ],
        "inputs": [
            {
                "node": printable(other),
                "state": view.nodes[other].state,
                "value": shown.value(other, view.nodes[other].preview),
            }
            for other in view.edges.get(name, ())
            if other in view.nodes
        ],
        "listed": [
            {
                "node": printable(record.name),
                "state": record.state,
                "attempts": record.attempts,
                "item": shown.item(record.name, record.item),
                "error": _error(shown.error(record.name, record.error)),
            }
            for record in records[:MOST_RECORDS]
        ],
    }


def _error(error: dict[str, str] | None) -> dict[str, str] | None:
    """An error, as it is shown, with the part of its traceback that begins in the user's code."""
    return None if error is None else {**error, "frames": of_the_users(error["traceback"])}


def lists(by_node: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Names by node, as plain data."""
    return {
        printable(name): [printable(other) for other in others] for name, others in by_node.items()
    }


def _node(node: NodeView, view: RunView) -> Content:
    of_session = NodeView(node.name) if node.is_kept else node
    content: Content = {
        "node": printable(node.name),
        "state": node.state,
        **_times(of_session),
        "ready": _since(node.ready_at, view),
        "sent": _since(node.sent_at, view),
        "began": _since(node.began_at, view),
        "ended": _since(node.ended_at, view),
    }
    if node.earlier:
        content["earlier"] = [[_since(at, view) for at in moments] for moments in node.earlier]
    if node.elements is not None:
        content["elements"] = _elements(node.elements)
        content["ended_itself"] = node.ended_itself
    return content


def _times(of: NodeTimes | NodeView) -> Content:
    return {name: getattr(of, name) for name in ("attempts", "waiting", "queued", "running")}


def _elements(elements: ElementsView) -> Content:
    return {
        "levels": elements.levels,
        "known": elements.known,
        "are_all_known": elements.are_all_known,
        **{state: getattr(elements, state) for state in SIGNS},
        "in_flight": {
            printable(name): record.state
            for name, record in elements.records.items()
            if not record.is_ended
        },
    }


def _since(at: float | None, view: RunView) -> float | None:
    return None if at is None or view.started_at is None else at - view.started_at
