"""Events as lines of JSON, as ``to_dict`` makes them, and the events that such lines say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from json.encoder import encode_basestring as quoted
from typing import Any, get_args

from taskiq_flow.events import (
    WIRE_VERSION,
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
    Source,
)
from taskiq_flow.previews import Preview, ReportedError, preview, printable, short_text

Content = Mapping[str, Any]


class LineWriter:
    """Writes the events of one run, one line each.

    Three events of each node are frequent. Their lines are put together by formats, in a tenth of
    the time that ``json.dumps(event.to_dict())`` takes, and say the same.
    """

    def __init__(self, run_id: str) -> None:
        run = quoted(printable(run_id)).replace("%", "%%").encode()
        start = b'{"v":%d,"run":%b,"seq":%%d,' % (WIRE_VERSION, run)
        self._sent = start + b'"type":"node.sent","at":%.9f,%b}\n'
        self._began = start + b'"type":"node.began","at":%.9f,%b,"worker":%b}\n'
        self._completed = start + (
            b'"type":"node.completed","at":%.9f,%b,"source":"%b",%b"value":%b}\n'
        )
        self._completed_timed = start + (
            b'"type":"node.completed","at":%.9f,%b,"source":"%b",'
            b'"queued":%.9f,"ran":%.9f,"value":%b}\n'
        )
        self._first_attempts: dict[str, bytes] = {}  # by task id, until they have completed

    def lines(self, events: Iterable[Event]) -> bytes:
        """The lines of these events. Many are best given in parts: large texts cost more."""
        sent, began, completed = self._sent, self._began, self._completed_timed
        attempts = self._first_attempts
        if len(attempts) > _MOST_ATTEMPTS:
            attempts.clear()
        lines = []
        event: Any
        for event in events:
            kind = type(event)
            if kind is NodeStarted:
                about = _attempt(event)
                if event.attempt == 1:
                    attempts[event.task_id] = about
                lines.append(sent % (event.seq, event.at, about))
            elif kind is NodeBegan:
                about = attempts.get(event.task_id, b"")
                if not about or event.attempt != 1:
                    about = _attempt(event)
                lines.append(began % (event.seq, event.at, about, _worker(event.worker)))
            elif kind is NodeCompleted:
                about = attempts.pop(event.task_id, b"")
                if not about or event.attempt != 1:
                    about = _attempt(event)
                source, value = _SOURCES[event.source], _value(event.result)
                queued, ran = event.queued, event.ran
                if queued is None or ran is None:
                    times = b"".join([_seconds(b"queued", queued), _seconds(b"ran", ran)])
                    lines.append(
                        self._completed % (event.seq, event.at, about, source, times, value)
                    )
                else:
                    lines.append(
                        completed % (event.seq, event.at, about, source, queued, ran, value)
                    )
            else:
                lines.append(_json(event.to_dict()).encode() + b"\n")
        return b"".join(lines)


_MOST_ATTEMPTS = 10_000
"""Attempts in flight of which it is held what their lines have in common."""

_SOURCES: Mapping[Source, bytes] = {source: source.encode() for source in get_args(Source)}


def _attempt(event: NodeStarted | NodeBegan | NodeCompleted) -> bytes:
    """What the lines of an attempt have in common."""
    name, task_id = event.task_name, event.task_id
    if not (name.isascii() and task_id.isascii()):
        name, task_id = printable(name), printable(task_id)
    index = "" if event.index is None else f',"index":{_json(event.index)}'
    task = f',"task":{quoted(task_id)}' if task_id else ""
    return f'"node":{quoted(name)}{index},"attempt":{event.attempt}{task}'.encode()


def _seconds(key: bytes, seconds: float | None) -> bytes:
    return b"" if seconds is None else b'"%b":%.9f,' % (key, seconds)


def _value(value: object) -> bytes:
    """The preview of a value."""
    text = short_text(value)
    if text is None:
        return _json(preview(value)).encode()
    kind, size = type(value).__name__, len(text)
    return f'{{"kind":"{kind}","size":{size},"text":{quoted(text)},"cut":false}}'.encode()


@lru_cache
def _worker(worker: str) -> bytes:
    return quoted(printable(worker)).encode()


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def read_lines(run_id: str, lines: bytes) -> Iterator[Event]:
    """The events of lines. Those of a type that is not known, of a later version, are left out.

    Values are ``Preview``, errors ``ReportedError``. Raises ``ValueError`` for other lines.
    """
    for line in lines.splitlines():
        content = json.loads(line)
        if (read := _READ.get(content["type"])) is not None:
            yield read(run_id, content)


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
