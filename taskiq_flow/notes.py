"""Notes of a run's events, and the events that are made of them when a listener takes these.

Three events tell of each attempt of a node: it is sent, begins and completes. A run notes them, and
holds what they say in one ``Attempt``: making three objects for each node would take longer, and
wake the garbage collector. Notes stand in a flat list, ``WIDTH`` places for each event. So their
columns are slices, from which a journal writes its lines and views take what they show.

Where a listener takes events, they are made in batches, and fast: a frozen dataclass sets each
field by a call of ``object.__setattr__``. So the fields are set in a draft, an object of another
class that has the same slots and is not frozen. It is then given the event's class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from itertools import chain
from typing import Any

from taskiq_flow.events import Event, Item, NodeBegan, NodeCompleted, NodeStarted, Source

SENT, BEGAN, COMPLETED, OTHER = "s", "b", "c", "o"
"""What a note is about. ``OTHER``: an event that was made already."""

WIDTH = 4
"""Places of one note: what it is about, ``Event.at``, the ``Attempt`` and the event. Of ``OTHER``
there is no attempt; of the rest there is no event until one is made."""

Notes = list[Any]


class Attempt:
    """What events tell of one attempt of a node, or of how a node has completed without one.

    ``node``: anything that has the ``task_name`` and ``index`` of the events. ``sent_at`` and
    ``began_at``: ``None`` if that was not told. Attributes are not set before something of them is
    noted: with the begin the ``worker``; with the end the ``value``, ``source``, ``queued``,
    ``ran``, and ``hand_over``, which makes of the node and the value what listeners are given:
    ``None`` if that is the value. ``later_workers``: those that have begun it after the first one.
    """

    __slots__ = (
        *("node", "task_id", "number", "sent_at", "began_at", "worker", "later_workers"),
        *("value", "source", "queued", "ran", "hand_over"),
    )

    began_at: float | None
    worker: str
    later_workers: tuple[str, ...]
    value: Any
    source: Source
    queued: float | None
    ran: float | None
    hand_over: Callable[[Any, Any], Any] | None

    def __init__(self, node: Any, task_id: str, number: int, sent_at: float | None = None) -> None:
        self.node = node
        self.task_id = task_id
        self.number = number
        self.sent_at = sent_at
        self.began_at = None
        self.later_workers = ()

    def complete(self, value: Any, source: Source, queued: float | None, ran: float | None) -> None:
        """The node has completed with a value that listeners are given as it is."""
        self.value, self.source, self.queued, self.ran = value, source, queued, ran
        self.hand_over = None


def _draft_of(frozen: Any) -> type[Any]:
    """A class of drafts for a frozen dataclass."""
    names = [field.name for field in fields(frozen)]
    return type(f"{frozen.__name__}Draft", frozen.__bases__, {"__slots__": names})


_new: Any = object.__new__
_StartedDraft = _draft_of(NodeStarted)
_BeganDraft = _draft_of(NodeBegan)
_CompletedDraft = _draft_of(NodeCompleted)
_ItemDraft = _draft_of(Item)


def events_of(notes: Notes, run_id: str, first: int) -> list[Event]:
    """The events of notes, as listeners are given them. ``first``: the number of the first one."""
    found: list[Any] = []
    places = iter(notes)
    seq = first
    event: Any
    for about, at, attempt, made in zip(places, places, places, places, strict=True):
        # Each kind has lines of its own: the interpreter sets a field faster where its object is
        # always of the same class.
        if made is not None:
            event = made
        elif about == SENT:
            event, node = _new(_StartedDraft), attempt.node
            event.run_id, event.seq, event.at = run_id, seq, at
            event.task_name, event.index = node.task_name, node.index
            event.task_id, event.attempt = attempt.task_id, attempt.number
            event.__class__ = NodeStarted
        elif about == BEGAN:
            event, node = _new(_BeganDraft), attempt.node
            event.run_id, event.seq, event.at = run_id, seq, at
            event.task_name, event.index = node.task_name, node.index
            event.task_id, event.attempt = attempt.task_id, attempt.number
            event.worker = attempt.worker
            event.__class__ = NodeBegan
        else:
            event, node = _new(_CompletedDraft), attempt.node
            value, hand_over = attempt.value, attempt.hand_over
            event.run_id, event.seq, event.at = run_id, seq, at
            event.task_name, event.index = node.task_name, node.index
            event.task_id, event.attempt = attempt.task_id, attempt.number
            event.result = value if hand_over is None else hand_over(node, value)
            event.source, event.queued = attempt.source, attempt.queued
            event.ran = attempt.ran
            event.__class__ = NodeCompleted
        found.append(event)
        seq += 1
    return found


def notes_of(events: Iterable[Event]) -> Notes:
    """The notes of events that were made already, each with an attempt of its own."""
    notes: Notes = []
    for event in events:
        if not isinstance(event, NodeStarted | NodeBegan | NodeCompleted):
            notes += (OTHER, event.at, None, event)
            continue
        attempt = Attempt(event, event.task_id, event.attempt)
        about = SENT
        if isinstance(event, NodeBegan):
            about, attempt.worker = BEGAN, event.worker
        elif isinstance(event, NodeCompleted):
            about = COMPLETED
            attempt.complete(event.result, event.source, event.queued, event.ran)
        notes += (about, event.at, attempt, event)
    return notes


def others(notes: Notes) -> Sequence[Event]:
    """The events of notes about anything but attempts."""
    return [notes[place + WIDTH - 1] for place in _places_of_others(notes)]


def without_others(notes: Notes) -> Notes:
    """The notes about attempts alone."""
    left_out = _places_of_others(notes)
    starts, ends = [0, *(place + WIDTH for place in left_out)], [*left_out, len(notes)]
    parts = (notes[start:end] for start, end in zip(starts, ends, strict=True))
    return [*chain.from_iterable(parts)]


def _places_of_others(notes: Notes) -> list[int]:
    """Where the notes about anything but attempts begin, which are few most often."""
    kinds = "".join(notes[::WIDTH])
    return [WIDTH * found.start() for found in re.finditer(OTHER, kinds)]


def new_item(index: Any, value: Any) -> Item:
    """An item for the reader."""
    item: Any = _new(_ItemDraft)
    item.index, item.value = index, value
    item.__class__ = Item
    return item  # type: ignore[no-any-return]
