"""Delivers a run's events to its listeners without making the run wait for them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable

from taskiq.utils import maybe_awaitable

from taskiq_flow.cleanup import until_ended
from taskiq_flow.events import Event, Listener

logger = logging.getLogger("taskiq_flow")

MOST_EVENTS = 10_000
"""Events that are held for the slowest listener. One that lags by more misses the oldest."""

LISTENER_GRACE = 5.0
"""Seconds that a listener is given, after the run, for each event that it has not taken yet."""

CATCHING_UP = 30.0
"""Seconds that all listeners are given, after the run, for all of these events."""

MakeEvent = Callable[[], Event]
"""Makes an event when the first listener takes it."""


class Listeners:
    """The listeners of one run. Each takes every event in order, at its own pace.

    The events stand in one list for all of them, and each listener has a place in it.
    """

    def __init__(self, listeners: Iterable[Listener]) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[MakeEvent] = deque()
        self._dropped = 0  # events that stood in front of these
        self._news = asyncio.Event()
        self._is_closed = False
        self._places: dict[asyncio.Task[None], int] = {}  # numbers of the events to be taken next
        for listener in listeners:
            self.add(listener)

    def __bool__(self) -> bool:
        return bool(self._places)

    def add(self, listener: Listener) -> None:
        """Have one more listener take the events, from now on."""
        task = self._loop.create_task(self._deliver(listener))
        self._places[task] = self._dropped + len(self._events)

    def tell(self, make_event: MakeEvent) -> None:
        """Have every listener take an event."""
        if self._places:
            self._events.append(make_event)
            if len(self._events) > MOST_EVENTS:
                self._drop()
            self._news.set()

    async def aclose(self) -> None:
        """Let the listeners catch up, for a bounded time."""
        self._is_closed = True
        self._news.set()
        gives_up_at = self._loop.time() + CATCHING_UP
        while self._places:
            places = dict(self._places)
            left = gives_up_at - self._loop.time()
            await asyncio.wait(places, timeout=min(LISTENER_GRACE, left))
            is_over = left <= LISTENER_GRACE
            await self._give_up(
                [t for t, place in self._places.items() if is_over or place == places[t]],
                f"{CATCHING_UP:g} s for its events"
                if is_over
                else f"{LISTENER_GRACE:g} s for an event",
            )

    async def _give_up(self, stuck: list[asyncio.Task[None]], too_long: str) -> None:
        for task in stuck:
            missed = self._dropped + len(self._events) - self._places.pop(task)
            logger.warning(
                "a listener took more than %s; dropped, with %d events left", too_long, missed
            )
            task.cancel()
        await until_ended(stuck, LISTENER_GRACE)

    async def _deliver(self, listener: Listener) -> None:
        me = asyncio.current_task()
        if me is None:
            raise AssertionError("a listener is served by an asyncio task")
        await asyncio.sleep(0)  # its place is noted by then, also where tasks start eagerly
        try:
            while await self._has_next(me, listener):
                make_event = self._events[self._places[me] - self._dropped]
                await maybe_awaitable(listener.on_event(make_event()))
                self._places[me] += 1
                while self._events and self._dropped < min(self._places.values()):
                    self._drop()
        except Exception:  # whatever it raises is its own affair
            logger.exception("listener %r raised; it is dropped for this run", listener)
        finally:
            self._places.pop(me, None)

    async def _has_next(self, me: asyncio.Task[None], listener: Listener) -> bool:
        """Wait for an event that a listener has not taken; ``False``: there will be none."""
        if self._places[me] < self._dropped:
            logger.warning(
                "listener %r lags by more than %d events; %d of them are left out",
                listener,
                MOST_EVENTS,
                self._dropped - self._places[me],
            )
            self._places[me] = self._dropped
        while self._places[me] == self._dropped + len(self._events):
            if self._is_closed:
                return False
            self._news.clear()
            await self._news.wait()
        return True

    def _drop(self) -> None:
        self._events.popleft()
        self._dropped += 1
