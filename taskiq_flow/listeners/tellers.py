"""Only this file decides who tells hooks of a run, where several do."""

from __future__ import annotations

from taskiq_flow.events import Event, RunFinished, RunStarted

_MOST_STARTS = 1_000
"""Starts of runs that are remembered. All who tell of a run have its start in the same moment."""

_Start = tuple[str, float, float]
"""The id of a run, and when it has started or was resumed: ids are used again."""


class Tellers:
    """The first who tells of the start of a run tells all of it; the others are not heard.

    One teller for each run keeps its events in order, also while one of them is awaited.
    """

    def __init__(self) -> None:
        self._first: dict[_Start, object] = {}
        self._is_heard: dict[tuple[object, str], bool] = {}

    def are_heard(self, teller: object, event: Event, *, by_default: bool) -> bool:
        """Whether an event counts. ``by_default``: if the teller did not tell of the start."""
        key = teller, event.run_id
        if isinstance(event, RunStarted):
            first = self._first.setdefault((event.run_id, event.time, event.at), teller)
            self._is_heard[key] = first is teller
            if len(self._first) > _MOST_STARTS:
                del self._first[next(iter(self._first))]
        if isinstance(event, RunFinished):
            return self._is_heard.pop(key, by_default)
        return self._is_heard.get(key, by_default)
