"""The words and numbers in which progress is shown, on terminals and as lines."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from taskiq_flow.previews import duration, one_line, without_python
from taskiq_flow.views.node_view import ElementsView, NodeView
from taskiq_flow.views.run_view import RunView

MOST_FAILED = 5
"""Failed elements of a mapped node that are named. Further ones are only counted."""

_LONGEST_ERROR = 200
_MINUTE = 60


def counted(count: int, what: str) -> str:
    """How many there are of something."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def left_text(seconds: float) -> str:
    """How long a run is going to take, which is not known to a part of a second."""
    if seconds >= _MINUTE:
        return f"{duration(seconds)} left"
    return f"{round(seconds)} s left" if seconds >= 1 else "< 1 s left"


def error_text(error: dict[str, str] | None) -> str:
    """An error's type, and the first line of its message."""
    if error is None:
        return ""
    first = without_python(error["message"]).strip().partition("\n")[0]
    if len(first) > _LONGEST_ERROR:
        first = f"{first[:_LONGEST_ERROR]}…"
    return one_line(f"{error['type']}: {first}" if first else error["type"])


def counts_text(view: RunView) -> str:
    """How many nodes are in which state."""
    counts = view.counts
    ended = ("completed", "failed", "skipped", "cancelled", "interrupted")
    states = (*ended, "running", "queued", "pending")
    texts = [f"{counts[state]} {state}" for state in states if state in counts]
    return ", ".join(texts) or "no nodes"


def failed_elements(node: NodeView) -> list[NodeView]:
    """The first elements of a mapped node that failed, in the order in which they did."""
    records = () if node.elements is None else node.elements.records.values()
    return list(islice((each for each in records if each.state == "failed"), MOST_FAILED))


def first_error_text(node: NodeView) -> str:
    """The error of a failed node; of a mapped one, that of an element, with the element's name.

    A mapped node that was stopped before its end may have failed elements too.
    """
    if not node.is_ended:
        return ""
    if (first := next(iter(failed_elements(node)), None)) is not None:
        return _element_text(first)
    return error_text(node.error) if node.state == "failed" else ""


def other_errors(node: NodeView) -> Iterator[str]:
    """A line for each of the first elements that failed after the very first one."""
    named = failed_elements(node)
    yield from map(_element_text, named[1:])
    if node.elements is not None and (left := node.elements.failed - len(named)) > 0 and named:
        yield f"and {counted(left, 'more element')} failed"


def element_name(element: NodeView) -> str:
    """The name of a failed node; of an element, with its item: ``read[3] ('tides.txt')``."""
    return one_line(element.name if element.item is None else f"{element.name} ({element.item})")


def _element_text(element: NodeView) -> str:
    return f"{element_name(element)}: {error_text(element.error)}"


def elements_text(elements: ElementsView) -> str:
    """How many elements are done of how many, as in lists of runs, and what has become of them."""
    known = f"{elements.known}" if elements.are_all_known else f"{elements.known}+"
    done = elements.completed + elements.failed + elements.skipped
    text = f"{done}/{known}"
    for state in ("failed", "skipped", "interrupted"):
        count = getattr(elements, state)
        text += f", {count} {state}" if count else ""
    return text


def node_text(node: NodeView) -> str:
    """What became of a node: ``"completed in 1.2 s"``."""
    text: str = node.state
    if node.elements is not None:
        counts = elements_text(node.elements)
        if node.is_ended or node.state == "interrupted":
            text += f", {counts}" if node.elements.known else ""
        else:
            running = node.elements.running
            text = f"{counts}, {running} running" if running else counts
        return f"{text}; {error}" if (error := first_error_text(node)) else text
    if node.state == "completed":
        if node.source in ("cache", "journal"):
            return f"{text}, from the {node.source}"
        text += f" in {duration(node.running)}"
        return f"{text}, by its fallback" if node.source == "fallback" else text
    if node.state == "running" and node.attempts > 1:
        text += f", attempt {node.attempts}"
    if node.state == "failed" and node.attempts > 1:
        text += f" after {node.attempts} attempts"
    if node.error and node.state in ("running", "failed"):
        text += f": {error_text(node.error)}"
    return text


def run_text(view: RunView, seconds: float | None = None) -> str:
    """How a run has ended, or is in progress. ``seconds``: how long it took, if not as viewed.

    Nothing tells how long an interrupted run went on after its last event.
    """
    took = duration(view.seconds if seconds is None else seconds)
    words = {"running": "running for", "interrupted": "interrupted, last event after"}
    text = f"{words.get(view.status, f'{view.status} in')} {took}; {counts_text(view)}"
    maps = [node.elements for node in view.nodes.values() if node.state != "failed"]
    if failed := sum(elements.failed for elements in maps if elements is not None):
        text += f"; {counted(failed, 'element')} failed"
    if view.missed:
        text += f"; {counted(view.missed, 'event')} not seen"
    return text


def share_done(view: RunView) -> float:
    """Which part of the nodes has ended, from 0 to 1. A mapped node counts by its elements."""
    if not view.nodes:
        return 0.0
    done = 0.0
    for node in view.nodes.values():
        if node.is_ended:
            done += 1
        elif node.elements is not None and node.elements.are_all_known and node.elements.known:
            done += node.elements.ended / node.elements.known
    return done / len(view.nodes)
