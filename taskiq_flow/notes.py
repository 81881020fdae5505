"""Notes of the events that every node sends, and the events that are made of them when needed.

A run notes such an event as a tuple, in a tenth of the time that making an event takes. A store
writes notes as they are. The events that a listener takes are made of them in batches, and fast: a
frozen dataclass sets each field by a call of ``object.__setattr__``. So the fields are set in a
draft, an object of another class that has the same slots and is not frozen. It is then given the
event's class.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from taskiq_flow.events import Event, Item, NodeBegan, NodeCompleted, NodeStarted

Note = tuple[Any, ...]
"""The event's class, ``at``, a node, ``task_id``, ``attempt``, and what else the event is about.

Node: anything that has the ``task_name`` and ``index`` of the event. Of ``NodeBegan`` there follows
the ``worker``; of ``NodeCompleted`` the value, ``source``, ``queued``, ``ran``, and a function that
makes of the node and the value what listeners are given: ``None`` if that is the value.
"""

Told = Event | Note
"""What is held of an event."""


def _draft_of(frozen: Any) -> type[Any]:
    """A class of drafts for a frozen dataclass."""
    names = [field.name for field in fields(frozen)]
    return type(f"{frozen.__name__}Draft", frozen.__bases__, {"__slots__": names})


_new: Any = object.__new__
_StartedDraft = _draft_of(NodeStarted)
_BeganDraft = _draft_of(NodeBegan)
_CompletedDraft = _draft_of(NodeCompleted)
_ItemDraft = _draft_of(Item)


def event_of(note: Note, run_id: str, seq: int) -> Event:
    """The event of a note, as listeners are given it."""
    kind = note[0]
    event: Any
    if kind is NodeStarted:
        event = _new(_StartedDraft)
        _, event.at, node, event.task_id, event.attempt = note
    elif kind is NodeBegan:
        event = _new(_BeganDraft)
        _, event.at, node, event.task_id, event.attempt, event.worker = note
    else:
        event = _new(_CompletedDraft)
        _, event.at, node, event.task_id, event.attempt, value, source, queued, ran, hand_over = (
            note
        )
        event.result = value if hand_over is None else hand_over(node, value)
        event.source, event.queued, event.ran = source, queued, ran
    event.run_id, event.seq = run_id, seq
    event.task_name, event.index = node.task_name, node.index
    event.__class__ = kind
    return event  # type: ignore[no-any-return]


def told(event: Event) -> Told:
    """What is held of an event that was made already: a note, if there are notes of its kind."""
    if isinstance(event, NodeStarted):
        return (NodeStarted, event.at, event, event.task_id, event.attempt)
    if isinstance(event, NodeBegan):
        return (NodeBegan, event.at, event, event.task_id, event.attempt, event.worker)
    if isinstance(event, NodeCompleted):
        about = event.result, event.source, event.queued, event.ran, None
        return (NodeCompleted, event.at, event, event.task_id, event.attempt, *about)
    return event


def new_item(index: Any, value: Any) -> Item:
    """An item for the reader."""
    item: Any = _new(_ItemDraft)
    item.index, item.value = index, value
    item.__class__ = Item
    return item  # type: ignore[no-any-return]
