"""The events that every node sends, in a form that is made fast and frozen when it is sent.

A frozen dataclass sets each field by a call of ``object.__setattr__``. With a listener, that would
be a tenth of what a short node costs. So a run makes a draft: an object of a class with the same
slots that is not frozen. ``Listeners.tell_draft`` numbers it and changes its class.
"""

from __future__ import annotations

from dataclasses import fields, make_dataclass
from typing import Any, TypeVar

from taskiq_flow.events import NodeBegan, NodeCompleted, NodeStarted

E = TypeVar("E")


def _draft_of(event: type[E]) -> type[E]:
    """The class of the drafts of an event. ``frozen``: the class that they get."""
    frozen: Any = event
    described = [(field.name, field.type, field) for field in fields(frozen)]
    draft: Any = make_dataclass(
        f"{event.__name__}Draft", described, bases=event.__bases__, slots=True, eq=False
    )
    draft.frozen = event
    return draft  # type: ignore[no-any-return]


NodeStartedDraft = _draft_of(NodeStarted)
NodeBeganDraft = _draft_of(NodeBegan)
NodeCompletedDraft = _draft_of(NodeCompleted)
