"""Reads the events of a run that is held. Neither the run nor its end waits for the reader."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Self

from taskiq_flow.engine.listeners import MOST_EVENTS
from taskiq_flow.events import Event

logger = logging.getLogger("taskiq_flow")


class EventReader:
    """An async iterator of one run's events. ``held``: what is alive as long as the reader is."""

    def __init__(self, run_id: str, held: object) -> None:
        self._run_id = run_id
        self._held = held
        self._events: deque[Event] = deque()
        self._missed = 0
        self._news = asyncio.Event()
        self._is_ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._is_ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        if self._missed:
            logger.warning(
                "a reader of the events of run %s lags by more than %d events; %d of them are "
                "left out",
                self._run_id,
                MOST_EVENTS,
                self._missed,
            )
            self._missed = 0
        return self._events.popleft()

    def put(self, event: Event) -> None:
        """One more event. The oldest one is dropped if the reader lags too far."""
        self._events.append(event)
        if len(self._events) > MOST_EVENTS:
            self._events.popleft()
            self._missed += 1
        self._news.set()

    def end(self) -> None:
        """There are no more events to come."""
        self._is_ended = True
        self._news.set()
