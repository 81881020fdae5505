"""What a failed node was called with as text: short, whatever the size of the values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import islice
from pathlib import PurePath
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from taskiq_flow.elements.element import Element
from taskiq_flow.engine.node_run import NodeRun

MOST_CHARACTERS = 80  # of a value
MOST_ARGUMENTS = 10
_MOST_ITEMS = 4  # of a collection
_DEPTH = 2  # of values in values

_BRACKETS: dict[object, tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")")}
_SHORT = (type(None), bool, int, float, complex, Decimal, UUID, date, time, timedelta)
_SHOWN_BY_REPR = (*_SHORT, Enum, PurePath, BaseException, type)


def called_with(node_run: NodeRun) -> str:
    """The end of a message that says what a node's task was called with; empty if nothing."""
    try:
        args, kwargs = node_run.sent_node.arguments(node_run.inputs)
        shown = [*map(shortened, args), *(f"{k}={shortened(v)}" for k, v in kwargs.items())]
    except Exception:  # a key has no value, as the condition failed; or a value's own code raises
        return ""
    if len(shown) > MOST_ARGUMENTS:
        shown[MOST_ARGUMENTS:] = [f"{len(shown) - MOST_ARGUMENTS} more"]
    return f"; it was called with {', '.join(shown)}" if shown else ""


def item_text(node_run: NodeRun) -> str | None:
    """What an element is of, as text: what it takes of the lists that its node maps over."""
    node, inputs = node_run.node, node_run.inputs
    if not isinstance(node, Element):
        return None
    try:
        keys = [key for key in node.node.map_over if key in inputs]
        return ", ".join(_item(inputs[key]) for key in keys) or None
    except Exception:  # of a value's own code
        return None


def _item(value: Any) -> str:
    """A value as text. Of a long one, the end is shown as well: of a path, that is what differs."""
    if isinstance(value, (str, PurePath)) and len(text := str(value)) > MOST_CHARACTERS:
        half = MOST_CHARACTERS // 2
        return repr(f"{text[: half - 2]}...{text[1 - half :]}")
    return shortened(str(value) if isinstance(value, PurePath) else value)


def shortened(value: Any, depth: int = _DEPTH) -> str:
    """A value as text. Only a few of its parts are read, however many it has."""
    kind = type(value)
    if isinstance(value, (str, bytes)):
        return _cut(repr(value[: MOST_CHARACTERS + 1]))
    if isinstance(value, _SHOWN_BY_REPR):
        return _cut(repr(value))
    if isinstance(value, (BaseModel, Mapping)) or is_dataclass(value):
        parts: Iterator[str] = (f"{k}={shortened(v, depth - 1)}" for k, v in _named(value))
        opening, closing = f"{kind.__name__}(", ")"
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = (shortened(part, depth - 1) for part in value)
        opening, closing = _BRACKETS.get(kind, ("{", "}"))
    else:
        return f"<{kind.__name__}{_extent(value)}>"
    if depth == 0:
        return f"{opening}...{closing}"
    shown = list(islice(parts, _MOST_ITEMS))
    more = ["..."] if next(parts, None) is not None else []
    return _cut(f"{opening}{', '.join([*shown, *more])}{closing}")


def _named(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, BaseModel):
        return iter(value)
    return ((field.name, getattr(value, field.name)) for field in fields(value) if field.repr)


def _extent(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f" of shape {shape}" if isinstance(shape, tuple) else ""


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."
