"""The events that lines of JSON say: lines of many events, or one each as ``to_dict`` makes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, get_args

from taskiq_flow.events import Event, Index, NodeFailed, NodeFellBack
from taskiq_flow.journal.packed import PACKED, read_packed
from taskiq_flow.previews import Preview, ReportedError


def read_lines(run_id: str, lines: bytes) -> Iterator[Event]:
    """The events of lines. Those of a type that is not known, of a later version, are left out.

    Values are ``Preview``, errors ``ReportedError``. Raises ``ValueError``, ``LookupError``,
    ``TypeError`` or ``RecursionError`` for other lines.
    """
    for line in lines.splitlines():
        content = json.loads(line)
        found = read_packed(run_id, content) if PACKED in content else [content]
        for event in found:
            if not isinstance(event, Mapping):
                yield event
            elif (kind := _KINDS.get(event["type"])) is not None:
                yield _event(kind, run_id, event)


def _event(kind: type[Event], run_id: str, content: Mapping[str, Any]) -> Event:
    """The event of a line. What the line leaves out is what the event has without it."""
    given: dict[str, Any] = {"run_id": run_id, "seq": content["seq"]}
    if "error" in _FIELDS[kind]:
        given["error"] = ReportedError("", "") if kind in (NodeFailed, NodeFellBack) else None
    if "task_id" in _FIELDS[kind]:
        given["task_id"] = ""
    for name in _FIELDS[kind]:
        if (value := content.get(_KEYS.get(name, name))) is not None:
            given[name] = _READ[name](value) if name in _READ else value
    return kind(**given)


def _place(index: int | list[int]) -> Index:
    return tuple(index) if isinstance(index, list) else index


def _tuples(lists: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(others) for name, others in lists.items()}


_KINDS: Mapping[str, type[Event]] = {kind.type: kind for kind in get_args(Event)}

_FIELDS = {kind: [each.name for each in fields(kind)] for kind in _KINDS.values()}

_KEYS = {
    "task_name": "node",
    "task_id": "task",
    "task_names": "nodes",
    "result": "value",
    "count": "known",
}
"""The keys of fields that have other names in a line."""

_READ: Mapping[str, Callable[[Any], Any]] = {
    "index": _place,
    "error": lambda error: ReportedError(**error),
    "result": Preview,
    "because_of": tuple,
    "task_names": tuple,
    "tags": tuple,
    "edges": _tuples,
    "outputs": _tuples,
}
"""By field, what makes its value of that in a line."""
