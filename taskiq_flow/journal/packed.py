"""Many events in one line: the events that every node sends, in columns.

Earlier versions wrote a line for each event. A line of columns takes a third of the time, and a
sixth of the room. Numbers stand in it as arrays in base64, and values that are shown whole as they
are. A graph is compressed (zlib, in base64): each run of it begins with one.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from array import array
from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, count
from operator import attrgetter
from typing import Any

from taskiq_flow.errors import JournalError
from taskiq_flow.events import Event, Index, RunStarted
from taskiq_flow.notes import (
    BEGAN,
    COMPLETED,
    OTHER,
    WIDTH,
    Attempt,
    Notes,
    events_of,
    others,
    without_others,
)
from taskiq_flow.previews import Preview, preview, printable, short_text

PACKED = "packed"
"""The key of a line of columns that has the version of its form. A line of one event has none."""

VERSION = 2
"""The version of the form. In the first one, the graph of a ``RunStarted`` stood as it is."""

_GRAPH = "graph"
"""The key of a ``RunStarted`` that has its compressed graph."""

_name_of, _index_of = attrgetter("task_name"), attrgetter("index")
_node_of, _task_of, _number_of = attrgetter("node"), attrgetter("task_id"), attrgetter("number")
_worker_of, _value_of, _source_of = attrgetter("worker"), attrgetter("value"), attrgetter("source")
_queued_of, _ran_of = attrgetter("queued"), attrgetter("ran")

_IS = {about: bytes(code == ord(about) for code in range(256)) for about in (BEGAN, COMPLETED)}
"""By the kind of an event, a table that makes 1 of its code, and 0 of others."""

_LARGE = 1 << 62
"""Integers below it stand in the line as they are. Other values are asked for their text."""


class GraphText:
    """The text of a graph. It is made once for all runs of the graph, whose events share tables."""

    def __init__(self) -> None:
        self._made: tuple[tuple[object, ...], str] = ((), "")

    def of(self, event: RunStarted) -> str:
        """The text of what an event says of its graph."""
        tables = (
            *(event.task_names, event.edges, event.mapped),
            *(event.expected, event.tasks, event.outputs),
        )
        made, text = self._made
        if made != tables:  # takes no time where these are the same objects
            text = b64encode(zlib.compress(_json(event.graph_to_dict()).encode(), 1)).decode()
            self._made = tables, text
        return text

    @staticmethod
    def read(text: str) -> dict[str, Any]:
        """What a text says, as ``to_dict`` has it. Raises ``ValueError`` if it is damaged."""
        try:
            content: dict[str, Any] = json.loads(zlib.decompress(b64decode(text, validate=True)))
        except zlib.error as error:
            raise ValueError(str(error)) from error
        return content


class PackedWriter:
    """Writes the events of one run, many in a line. ``graph``: kept for other runs of the graph."""

    def __init__(self, run_id: str, graph: GraphText) -> None:
        self._run_id = run_id
        self._run = printable(run_id)
        self._graph = graph

    def line(self, notes: Notes, first: int) -> bytes:
        """The line of the events of these notes. ``first``: the number of the first one."""
        codes = "".join(notes[::WIDTH])
        content: dict[str, Any] = {PACKED: VERSION, "run": self._run, "seq": first, "events": codes}
        columns = {}
        if OTHER in codes:
            content["others"] = [self._about(event) for event in others(notes)]
            notes = without_others(notes)
        if notes:
            attempts = notes[2::WIDTH]  # one for each event
            places = defaultdict[Attempt, int](count().__next__)
            columns["of"] = _column("I", map(places.__getitem__, attempts))  # numbers them
            content |= self._attempts(places)
            columns["at"] = _column("d", notes[1::WIDTH])
            if _unless([*map(_number_of, places)], 1):
                content["attempt"] = [*map(_number_of, attempts)]
            told = codes.replace(OTHER, "").encode()
            workers = [*map(_worker_of, _about(BEGAN, told, attempts))]
            content["worker"] = _printable(workers[:1] if len({*workers}) == 1 else workers)
            if completed := [*_about(COMPLETED, told, attempts)]:
                content["value"] = _values([*map(_value_of, completed)])
                content["source"] = _unless([*map(_source_of, completed)], "task")
                columns["queued"] = _column("d", _numbered([*map(_queued_of, completed)]))
                columns["ran"] = _column("d", _numbered([*map(_ran_of, completed)]))
        head = _json({key: column for key, column in content.items() if column})
        # The encoder would look at each character of them.
        rest = "".join([f',"{key}":"{column}"' for key, column in columns.items() if column])
        return f"{head[:-1]}{rest}}}\n".encode()

    def _about(self, event: Event) -> dict[str, Any]:
        """What the line says of an event of no attempt."""
        if isinstance(event, RunStarted):
            return {**event.session_to_dict(), _GRAPH: self._graph.of(event)}
        return event.to_dict()

    def _attempts(self, attempts: Collection[Attempt]) -> dict[str, Any]:
        """The attempts of which events are."""
        nodes = [*map(_node_of, attempts)]
        names = _printable([*map(_name_of, nodes)])
        return {
            "nodes": names,
            "index": _unless([*map(_index_of, nodes)], None),
            **self._tasks(names, _printable([*map(_task_of, attempts)])),
        }

    def _tasks(self, names: Sequence[str], ids: Sequence[str]) -> dict[str, Any]:
        """The ids of tasks, or what they end with if they are all those of first attempts."""
        start = f"{self._run}:{names[0]}:1"
        end = ids[0][len(start) :]
        between, text = f":1{end}\n{self._run}:", "\n".join(ids)
        are_lines = text.count("\n") == len(ids) - 1  # no name has a line feed
        if are_lines and text == f"{self._run}:{between.join(names)}:1{end}":
            return {"end": end}
        return {"tasks": ids}


def _about(about: str, told: bytes, attempts: Iterable[Attempt]) -> Iterator[Attempt]:
    """The attempts of events of one kind. No bytecode is executed for each of them."""
    return compress(attempts, told.translate(_IS[about]))


def read_packed(run_id: str, content: Mapping[str, Any]) -> Iterator[Event | Mapping[str, Any]]:
    """The events of a line, and what the line has of others in the form of ``to_dict``.

    Raises ``JournalError`` for a line of a later version, and ``ValueError`` or ``LookupError`` for
    one that is damaged.
    """
    if not 1 <= (form := content[PACKED]) <= VERSION:
        raise JournalError(
            f"the events of run {run_id!r} were written in form {form}, and this version of "
            f"taskiq_flow reads form {VERSION}; read them with the version that wrote them"
        )
    attempts, rest = _attempts(content), [*map(_with_graph, content.get("others", ()))][::-1]
    for seq, code in enumerate(content["events"], content["seq"]):
        if code == OTHER:
            yield rest.pop()
        else:
            at, attempt = next(attempts)
            yield events_of([code, at, attempt, None], run_id, seq)[0]


def _with_graph(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a line has of an event of no attempt, in the form of ``to_dict``."""
    return about if _GRAPH not in about else {**about, **GraphText.read(about[_GRAPH])}


@dataclass(frozen=True, slots=True)
class _Node:
    task_name: str
    index: Index | None


def _attempts(content: Mapping[str, Any]) -> Iterator[tuple[float, Attempt]]:
    """When each event of an attempt was, and what it says."""
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
    codes = content["events"].replace(OTHER, "")
    workers = content.get("worker", [])
    workers = workers[::-1] if len(workers) != 1 else workers * codes.count(BEGAN)
    values = content.get("value", [])
    sources = content.get("source") or ["task"] * len(values)
    spans = [_numbers("d", content.get(key, "")) for key in ("queued", "ran")]
    completed = [*zip(values, sources, *spans, strict=True)][::-1]
    for code, at, place, number in zip(
        codes,
        _numbers("d", content.get("at", "")),
        _numbers("I", content.get("of", "")),
        content.get("attempt") or [1] * len(codes),
        strict=True,
    ):
        attempt = Attempt(nodes[place], tasks[place], number)
        if code == BEGAN:
            attempt.worker = workers.pop()
        elif code == COMPLETED:
            value, source, queued, ran = completed.pop()
            shown = Preview(value if isinstance(value, dict) else preview(value))
            attempt.complete(shown, source, _seconds(queued), _seconds(ran))
        yield at, attempt


def _values(values: list[Any]) -> list[Any]:
    """Values that are short, and previews of others."""
    if {*map(type, values)} == {int} and -_LARGE < min(values) <= max(values) < _LARGE:
        return values
    return [*map(_shown, values)]


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
