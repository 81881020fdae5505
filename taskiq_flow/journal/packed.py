"""Many events in one line: the events that every node sends, in columns.

Earlier versions wrote a line for each event. A line of columns takes a third of the time, and a
sixth of the room. Numbers stand in it as arrays in base64, and values that are shown whole as they
are.
"""

from __future__ import annotations

import json
import math
import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, repeat
from operator import attrgetter, is_
from typing import Any

from taskiq_flow.events import Event, Index, NodeBegan, NodeCompleted, NodeStarted
from taskiq_flow.journal import errors
from taskiq_flow.notes import Note, Told, event_of
from taskiq_flow.previews import Preview, preview, printable, short_text

PACKED = "packed"
"""The key of a line of columns that has the version of its form. A line of one event has none."""

VERSION = 1

_CODES = {NodeStarted: "s", NodeBegan: "b", NodeCompleted: "c"}
_KINDS = {code: kind for kind, code in _CODES.items()}
_OTHER = "o"

_name_of, _index_of = attrgetter("task_name"), attrgetter("index")

_LARGE = 1 << 62
"""Integers below it stand in the line as they are. Other values are asked for their text."""


class PackedWriter:
    """Writes the events of one run, many in a line."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._run = printable(run_id)

    def line(self, events: Sequence[Told], first: int) -> bytes:
        """The line of these events, of which this is the first one's number."""
        content: dict[str, Any] = {PACKED: VERSION, "run": self._run, "seq": first}
        if {*map(type, events)} == {tuple}:
            notes: Sequence[Any] = events
        else:
            notes = [note for note in events if isinstance(note, tuple)]
            content["others"] = [
                event.to_dict() for event in events if not isinstance(event, tuple)
            ]
            content["events"] = "".join(
                [_CODES[note[0]] if isinstance(note, tuple) else _OTHER for note in events]
            )
        if notes:
            kinds, at, nodes, tasks, attempts, *_ = zip(*notes, strict=False)  # what all have
            content.setdefault("events", "".join(map(_CODES.__getitem__, kinds)))
            content["at"] = _column("d", at)
            content["attempt"] = _unless(attempts, 1)
            content |= self._nodes(nodes, tasks)
            content |= _begun([*_of_kind(NodeBegan, kinds, notes)])
            content |= _completed([*_of_kind(NodeCompleted, kinds, notes)])
        return _json({key: column for key, column in content.items() if column}).encode() + b"\n"

    def _nodes(self, nodes: Sequence[Any], tasks: Sequence[str]) -> dict[str, Any]:
        """The attempts of which events are, and which event is of which of them."""
        keys: Sequence[Any] = tasks  # a task is that of one node
        if not all(tasks):
            keys = [task or (node.task_name,) for task, node in zip(tasks, nodes, strict=True)]
        by_key = dict(zip(keys, nodes, strict=True))
        places = dict(zip(by_key, range(len(by_key)), strict=True))
        names = _printable([*map(_name_of, by_key.values())])
        ids = [*by_key] if keys is tasks else [*dict(zip(keys, tasks, strict=True)).values()]
        return {
            "of": _column("I", map(places.__getitem__, keys)),
            "nodes": names,
            "index": _unless([*map(_index_of, by_key.values())], None),
            **self._tasks(names, _printable(ids)),
        }

    def _tasks(self, names: Sequence[str], ids: Sequence[str]) -> dict[str, Any]:
        """The ids of tasks, or what they end with if they are all those of first attempts."""
        if not ids:
            return {}
        start = f"{self._run}:{names[0]}:1"
        end = ids[0][len(start) :]
        if ids == [f"{self._run}:{name}:1{end}" for name in names]:
            return {"end": end}
        return {"tasks": ids}


def _of_kind(kind: type, kinds: Iterable[type], notes: Iterable[Note]) -> Iterator[Note]:
    """The notes of one kind. Nothing here is executed for each of them but C code."""
    return compress(notes, map(is_, kinds, repeat(kind)))


def _begun(notes: Sequence[Note]) -> dict[str, Any]:
    workers = [note[5] for note in notes]
    return {"worker": _printable(workers[:1] if len({*workers}) == 1 else workers)}


def _completed(notes: Sequence[Note]) -> dict[str, Any]:
    if not notes:
        return {}
    *_, values, sources, queued, ran, _ = zip(*notes, strict=True)
    return {
        "value": [
            value if type(value) is int and -_LARGE < value < _LARGE else _shown(value)
            for value in values
        ],
        "source": _unless(sources, "task"),
        "queued": _column("d", _numbered(queued)),
        "ran": _column("d", _numbered(ran)),
    }


def read_packed(run_id: str, content: Mapping[str, Any]) -> Iterator[Event | Mapping[str, Any]]:
    """The events of a line, and what the line has of others in the form of ``to_dict``.

    Raises ``JournalError`` for a line of a later version, and ``ValueError`` or ``LookupError`` for
    one that is damaged.
    """
    if content[PACKED] != VERSION:
        raise errors.later_events(run_id, content[PACKED], VERSION)
    notes, others = _notes(content), [*reversed(content.get("others", ()))]
    for seq, code in enumerate(content["events"], content["seq"]):
        yield others.pop() if code == _OTHER else event_of(next(notes), run_id, seq)


@dataclass(frozen=True, slots=True)
class _Node:
    task_name: str
    index: Index | None


def _notes(content: Mapping[str, Any]) -> Iterator[Note]:
    """The notes of a line."""
    names = content.get("nodes", [])
    count = len(names)
    indexes = content.get("index") or [None] * count
    nodes = [
        _Node(name, tuple(index) if isinstance(index, list) else index)
        for name, index in zip(names, indexes, strict=True)
    ]
    if (tasks := content.get("tasks")) is None:
        end = content.get("end", "")
        tasks = [f"{content['run']}:{name}:1{end}" for name in names]
    codes = content["events"].replace(_OTHER, "")
    workers = content.get("worker", [])
    workers = workers[::-1] if len(workers) != 1 else workers * codes.count("b")
    values = content.get("value", [])
    sources = content.get("source") or ["task"] * len(values)
    spans = [_numbers("d", content.get(key, "")) for key in ("queued", "ran")]
    completed = [*zip(values, sources, *spans, strict=True)][::-1]
    for code, at, place, attempt in zip(
        codes,
        _numbers("d", content.get("at", "")),
        _numbers("I", content.get("of", "")),
        content.get("attempt") or [1] * len(codes),
        strict=True,
    ):
        head = (_KINDS[code], at, nodes[place], tasks[place], attempt)
        if code == "s":
            yield head
        elif code == "b":
            yield (*head, workers.pop())
        else:
            value, source, queued, ran = completed.pop()
            shown = Preview(value if isinstance(value, dict) else preview(value))
            yield (*head, shown, source, _seconds(queued), _seconds(ran), None)


def _shown(value: object) -> object:
    """A value whose text is short, or its preview."""
    return preview(value) if short_text(value) is None else value


def _printable(texts: list[str]) -> list[str]:
    """Many texts, as UTF-8 can hold them."""
    return texts if "".join(texts).isascii() else [printable(text) for text in texts]


def _unless(column: Sequence[Any], usual: object) -> Sequence[Any]:
    """A column, unless it has nothing but what is usual."""
    return column if column.count(usual) != len(column) else ()


def _column(code: str, numbers: Iterable[Any]) -> str:
    """Numbers as text, in the order of bytes of most machines."""
    column = array(code, numbers)
    if sys.byteorder == "big":
        column.byteswap()
    return b64encode(column).decode()


def _numbers(code: str, text: str) -> Sequence[Any]:
    column = array(code, b64decode(text, validate=True))
    if sys.byteorder == "big":
        column.byteswap()
    return column


def _numbered(column: Sequence[float | None]) -> Iterable[Any]:
    return [math.nan if s is None else s for s in column] if None in column else column


def _seconds(number: float) -> float | None:
    return None if math.isnan(number) else number


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
