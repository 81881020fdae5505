"""The events that lines of JSON say: lines of many events, or one each as ``to_dict`` makes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from taskiq_flow.events import (
    ElementsKnown,
    Event,
    Gap,
    Index,
    NodeBegan,
    NodeCompleted,
    NodeFailed,
    NodeFellBack,
    NodeRetried,
    NodeSkipped,
    NodeStarted,
    RunFinished,
    RunStarted,
)
from taskiq_flow.journal.packed import PACKED, read_packed
from taskiq_flow.previews import Preview, ReportedError

Content = Mapping[str, Any]


def read_lines(run_id: str, lines: bytes) -> Iterator[Event]:
    """The events of lines. Those of a type that is not known, of a later version, are left out.

    Values are ``Preview``, errors ``ReportedError``. Raises ``ValueError`` for other lines.
    """
    for line in lines.splitlines():
        content = json.loads(line)
        found = read_packed(run_id, content) if PACKED in content else [content]
        for event in found:
            if not isinstance(event, Mapping):
                yield event
            elif (read := _READ.get(event["type"])) is not None:
                yield read(run_id, event)


def _place(content: Content) -> Index | None:
    index = content.get("index")
    return tuple(index) if isinstance(index, list) else index


def _error(content: Content) -> ReportedError | None:
    error = content.get("error")
    return None if error is None else ReportedError(**error)


def _tuples(lists: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(others) for name, others in lists.items()}


def _run_started(run_id: str, e: Content) -> Event:
    return RunStarted(
        run_id,
        e["at"],
        tuple(e["nodes"]),
        e["time"],
        _tuples(e["edges"]),
        e["mapped"],
        e["expected"],
        e["tasks"],
        _tuples(e["outputs"]),
        seq=e["seq"],
        kind=e.get("kind", "dataflow"),
        in_memory=e.get("in_memory", False),
        name=e.get("name"),
        tags=tuple(e.get("tags", ())),
        origin=e.get("origin"),
        on_error=e.get("on_error"),
    )


def _node_sent(run_id: str, e: Content) -> Event:
    return NodeStarted(
        run_id, e["at"], e["node"], e.get("task", ""), _place(e), e["attempt"], e["seq"]
    )


def _node_began(run_id: str, e: Content) -> Event:
    at, task_id = e["at"], e.get("task", "")
    return NodeBegan(run_id, at, e["node"], task_id, e["worker"], _place(e), e["attempt"], e["seq"])


def _node_retried(run_id: str, e: Content) -> Event:
    at, name, task_id = e["at"], e["node"], e.get("task", "")
    return NodeRetried(
        run_id, at, name, task_id, e["attempt"], _error(e), _place(e), e["delay"], e["seq"]
    )


def _node_fell_back(run_id: str, e: Content) -> Event:
    at, name, task_id = e["at"], e["node"], e.get("task", "")
    error = _error(e) or ReportedError("", "")
    return NodeFellBack(
        run_id, at, name, task_id, error, e["attempts"], _place(e), e["attempt"], e["seq"]
    )


def _node_completed(run_id: str, e: Content) -> Event:
    at, name, task_id = e["at"], e["node"], e.get("task", "")
    return NodeCompleted(
        run_id,
        at,
        name,
        task_id,
        Preview(e["value"]),
        e["source"],
        _place(e),
        e["attempt"],
        e.get("queued"),
        e.get("ran"),
        e["seq"],
    )


def _node_failed(run_id: str, e: Content) -> Event:
    return NodeFailed(
        run_id,
        e["at"],
        e["node"],
        e.get("task", ""),
        _error(e) or ReportedError("", ""),
        e["attempts"],
        _place(e),
        e["attempt"],
        e.get("queued"),
        e.get("ran"),
        e["seq"],
        e.get("item"),
    )


def _node_skipped(run_id: str, e: Content) -> Event:
    because_of = tuple(e["because_of"])
    return NodeSkipped(
        run_id, e["at"], e["node"], because_of, e["reason"], _place(e), e["attempt"], e["seq"]
    )


def _elements(run_id: str, e: Content) -> Event:
    return ElementsKnown(run_id, e["at"], e["node"], e["known"], e["seq"])


def _run_ended(run_id: str, e: Content) -> Event:
    return RunFinished(run_id, e["at"], e["outcome"], _error(e), e["seq"])


def _gap(run_id: str, e: Content) -> Event:
    return Gap(run_id, e["at"], e["missed"], e["seq"])


_READ: Mapping[str, Callable[[str, Content], Event]] = {
    RunStarted.type: _run_started,
    NodeStarted.type: _node_sent,
    NodeBegan.type: _node_began,
    NodeRetried.type: _node_retried,
    NodeFellBack.type: _node_fell_back,
    NodeCompleted.type: _node_completed,
    NodeFailed.type: _node_failed,
    NodeSkipped.type: _node_skipped,
    ElementsKnown.type: _elements,
    RunFinished.type: _run_ended,
    Gap.type: _gap,
}
