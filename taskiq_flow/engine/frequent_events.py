"""The events that every node sends, and the items that the reader is given, made fast.

A frozen dataclass sets each field by a call of ``object.__setattr__``, which takes eight times as
long as to set it. With a listener, that would be a tenth of what a short node costs. So these
functions set the fields of an object of another class, which has the same slots and is not frozen,
and then give it the event's class.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from taskiq_flow.events import Item, NodeBegan, NodeCompleted, NodeStarted

E = TypeVar("E")


def _maker_of(event: type[E]) -> type[E]:
    """A function that makes an event, given all of its fields in their order."""
    frozen: Any = event
    names = [field.name for field in fields(frozen)]
    draft = type(f"{event.__name__}Draft", event.__bases__, {"__slots__": names})
    known: dict[str, Any] = {"new": object.__new__, "draft": draft, "frozen": frozen}
    lines = [
        f"def make({', '.join(names)}):",
        "event = new(draft)",
        *(f"event.{name} = {name}" for name in names),
        "event.__class__ = frozen",
        "return event",
    ]
    exec("\n    ".join(lines), known)  # noqa: S102 - as dataclasses make theirs
    return known["make"]  # type: ignore[no-any-return]


new_node_started = _maker_of(NodeStarted)
new_node_began = _maker_of(NodeBegan)
new_node_completed = _maker_of(NodeCompleted)
new_item = _maker_of(Item)
