"""A listener that keeps the events it receives."""

from __future__ import annotations

from typing import Any


class Recorder:
    """Keeps every event, in order."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_event(self, event: Any) -> None:
        self.events.append(event)

    def of(self, *kinds: type) -> list[Any]:
        """The events of these kinds."""
        return [event for event in self.events if isinstance(event, kinds)]
