"""What tests record: the events of runs, and how much goes on at once."""

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


class AtOnce:
    """Counts the blocks that run at once. ``most``: the highest count so far."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def __enter__(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        self.now -= 1
