"""The events of one run, and who takes them. The run waits for none of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import Context, copy_context
from functools import partial
from inspect import isawaitable
from typing import Any, Protocol
from weakref import WeakSet

from taskiq_flow.cleanup import end
from taskiq_flow.errors import NODE_ERRORS
from taskiq_flow.events import Event, Gap, Listener, NodeStarted
from taskiq_flow.notes import OTHER, WIDTH, Attempt, Notes, events_of

logger = logging.getLogger("taskiq_flow")

MOST_EVENTS = 10_000
"""Events that are held for the slowest listener. One that lags by more misses the oldest."""

LISTENER_GRACE = 5.0
"""Seconds that a listener is given, after the run, for each event that it has not taken yet."""

CATCHING_UP = 30.0
"""Seconds that all listeners are given, after the run, for all of these events."""

SHORTEST_PAUSE = 0.001
"""Seconds between two calls of a listener while events keep coming."""

BATCH_DELAY = 0.01
"""Seconds after which events are told to those who take many at once."""

_AT_ONCE = 32
"""Events that are made before a listener is called for them, so few that the garbage collector does
not see them most often."""

OnEvents = Callable[[Sequence[Event]], Awaitable[None] | None]
"""The method of a ``BatchListener``."""

OnSending = Callable[[NodeStarted], Mapping[str, str]]
"""The method of a ``SendingListener``."""

OnNotes = Callable[[str, Notes, int], Awaitable[None] | None]
"""Takes a run's id, the notes of its next events, and the number of the first of them."""

_set = object.__setattr__
"""Sets the number of an event, which is frozen."""


class Listeners:
    """Numbers the events of one run, and holds them until all cursors have passed them.

    ``notes``: of events that are held, always the same list. ``passed``: how many events came
    before these. ``are_present``: whether anybody takes events; else they need not be made.
    ``are_shared``: whether several take events, which are then made once for all of them.
    ``are_asked``: whether anybody adds labels to messages. ``is_scheduled``: whether somebody is
    going to be called for what is noted.

    Listeners are called in the next turn of the event loop, or ``SHORTEST_PAUSE`` after the last
    call: so a run of many short nodes calls them once for many. Those that take batches, as a store
    does, are called once for all events of ``BATCH_DELAY``.
    """

    def __init__(self, run_id: str, seq: int = 0) -> None:
        self.run_id = run_id
        self.passed = seq
        self.are_present = False
        self.are_asked = False
        self.is_ended = False
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self.is_scheduled = False
        self.notes: Notes = []
        self._cursors: tuple[_ListenerCursor, ...] = ()
        self._prompt: tuple[_ListenerCursor, ...] = ()  # take the events of each turn
        self._batched: tuple[_ListenerCursor, ...] = ()
        self._readers: WeakSet[EventReader] = WeakSet()
        self._has_readers = False
        self.are_shared = False
        self._has_sent = False
        self._store: _StoreCursor | None = None
        self._batch_timer: asyncio.TimerHandle | None = None
        self._timer: asyncio.Handle | None = None  # of those that take events at once
        self._rests_until = 0.0

    @property
    def seq(self) -> int:
        """The number of the last event, also while nobody listens."""
        return self.passed + len(self.notes) // WIDTH

    def add(self, listener: Listener) -> None:
        """Have a listener take the events, from now on."""
        cursor = _ListenerCursor(self, listener)
        self._set_cursors((*self._cursors, cursor))
        self.are_present = True
        self.are_asked = self.are_asked or cursor.on_sending is not None

    def _set_cursors(self, cursors: tuple[_ListenerCursor, ...]) -> None:
        self._cursors = cursors
        self._prompt = tuple(cursor for cursor in cursors if not cursor.takes_batches)
        self._batched = tuple(cursor for cursor in cursors if cursor.takes_batches)
        self._note_takers()

    def _note_takers(self) -> None:
        takers = [cursor for cursor in self._cursors if cursor.on_notes is None]
        self.are_shared = len(takers) + len(self._readers) > 1

    def begin_after(self, seq: int) -> None:
        """Number the first event ``seq + 1``, as earlier engines have told ``seq`` of the run."""
        self.passed = seq
        for cursor in (*self._cursors, *self._readers):
            cursor.taken = seq

    def keep_for(self, store: EventStore) -> None:
        """Have a store take all events, from now on. It misses none, however far it lags."""
        self._store = _StoreCursor(self, store)
        self.are_present = True

    def reader(self, held: object) -> EventReader:
        """A reader of the events, from now on. It is referred to weakly."""
        reader = EventReader(self, held)
        self._readers.add(reader)
        self.are_present = self._has_readers = True
        self._note_takers()
        self.is_scheduled = False  # what is scheduled may be a batch, of which no reader is told
        return reader

    def tell(self, event: Event) -> None:
        """Number an event, and have every cursor take it."""
        _set(event, "seq", self.seq + 1)
        if self.are_present:
            self.note(OTHER, event.at, None, event)
        else:
            self.passed += 1

    def note(
        self, about: str, at: float, attempt: Attempt | None, event: Event | None = None
    ) -> None:
        """Have every cursor take what an attempt has come to, or an event. Somebody listens."""
        notes = self.notes
        notes += (about, at, attempt, event)
        if not self.is_scheduled or self._are_too_many:
            self.schedule()

    def sending(self, sending: NodeStarted) -> tuple[Context, dict[str, str]]:
        """Ask for the labels of a message. Returns the context in which to send it, and them."""
        context = copy_context()
        labels: dict[str, str] = {}
        for cursor in self._cursors:
            if cursor.on_sending is not None:
                if not self._has_sent and not cursor.is_busy:
                    cursor.advance(self._loop)  # it is to know the graph
                labels |= context.run(cursor.labels, sending)
        self._has_sent = True
        return context, labels

    def end(self) -> None:
        """There are no more events to come: readers end behind the last one."""
        self.is_ended = True
        self._wake_readers()
        self.let_go()

    async def aclose(self) -> None:
        """Have the store take the rest, and let the listeners catch up, for a bounded time."""
        for timer in (self._timer, self._batch_timer):
            if timer is not None:
                timer.cancel()
        if self._store is not None:
            self._store.advance()
        if not self._cursors:
            self.let_go()
            return
        self._loop.call_soon(partial(self._call, self._cursors), context=self._context)
        await asyncio.sleep(0)  # every listener has been called by then
        gives_up_at = self._loop.time() + CATCHING_UP
        while busy := {cursor: cursor.taken for cursor in self._cursors if cursor.is_busy}:
            left = gives_up_at - self._loop.time()
            tasks = [cursor.task for cursor in busy if cursor.task is not None]
            await asyncio.wait(tasks, timeout=min(LISTENER_GRACE, left))
            is_over = left <= LISTENER_GRACE
            await self._give_up(
                [c for c, taken in busy.items() if c.is_busy and (is_over or c.taken == taken)],
                f"{CATCHING_UP:g} s for its events"
                if is_over
                else f"{LISTENER_GRACE:g} s for an event",
            )

    async def _give_up(self, stuck: list[_ListenerCursor], too_long: str) -> None:
        tasks = [cursor.task for cursor in stuck if cursor.task is not None]
        for cursor in stuck:
            logger.warning(
                "a listener took more than %s; dropped, with %d events left",
                too_long,
                self.seq - cursor.taken,
            )
            self.drop(cursor)
        await end(tasks, LISTENER_GRACE)

    def drop(self, cursor: _ListenerCursor) -> None:
        """Call a listener no more in this run."""
        cursor.is_dropped = True
        self._set_cursors(tuple(other for other in self._cursors if other is not cursor))
        self.are_present = self._has_readers or bool(self._cursors) or self._store is not None
        if not self.are_present:
            self._pass(len(self.notes) // WIDTH)

    @property
    def _are_too_many(self) -> bool:
        """Whether more events are held than is allowed, by so many that letting go pays."""
        return len(self.notes) > WIDTH * (MOST_EVENTS + MOST_EVENTS // 10)

    def schedule(self) -> None:
        """See to it that all cursors are called, and that no more is held than is allowed."""
        self.is_scheduled = True
        if self._are_too_many:
            self.let_go()
        if self._timer is None and (self._prompt or self._has_readers):
            if self._loop.time() >= self._rests_until:
                self._timer = self._loop.call_soon(self._deliver, context=self._context)
            else:
                self._timer = self._loop.call_at(
                    self._rests_until, self._deliver, context=self._context
                )
        if self._batch_timer is None and (self._batched or self._store is not None):
            self._batch_timer = self._loop.call_later(
                BATCH_DELAY, self._deliver_batches, context=self._context
            )

    def _deliver(self) -> None:
        """Call the listeners that take events at once, and wake readers."""
        self.is_scheduled, self._timer = False, None
        self._rests_until = self._loop.time() + SHORTEST_PAUSE
        if self._has_readers:
            self._wake_readers()
        self._call(self._prompt)

    def _deliver_batches(self) -> None:
        """Call all others, for the events that came during the delay."""
        self.is_scheduled, self._batch_timer = False, None
        if self._store is not None:
            self._store.advance()
        self._call(self._batched)

    def _call(self, cursors: Iterable[_ListenerCursor]) -> None:
        """Call these listeners, unless they are still awaited, and let go of what all have."""
        for cursor in cursors:
            if not cursor.is_busy:
                cursor.advance(self._loop)
        self.let_go()

    def let_go(self) -> None:
        """Hold no events any more that all cursors have passed, nor more than is allowed."""
        seq = self.seq
        taken = seq if self._store is None else self._store.taken
        for cursor in self._cursors:
            if cursor.taken < taken:  # noqa: PLR1730 - no call, as this is done each turn
                taken = cursor.taken
        if self._has_readers:
            taken = min([taken, *(reader.taken for reader in self._readers)])
        if seq - taken > MOST_EVENTS:
            taken = seq - MOST_EVENTS
            if self._store is not None:
                self._store.advance()
        self._pass(taken - self.passed)

    def _pass(self, count: int) -> None:
        """Hold the oldest events no more."""
        self.passed += count
        del self.notes[: WIDTH * count]

    def _wake_readers(self) -> None:
        for reader in tuple(self._readers):
            reader.wake()


class _Cursor:
    """A place in the events of a run. ``taken``: the number of the last event that was taken.

    ``takes_singly``: whether it does not take all events that were made for it at once.
    """

    def __init__(self, listeners: Listeners) -> None:
        self._listeners = listeners
        self.taken = listeners.seq
        self.takes_singly = False

    def next_events(self, most: int) -> list[Event]:
        """The next events, ``most`` of them at the most; a ``Gap`` before those that are not held.

        ``taken`` is to be set to the number of each that was taken.
        """
        listeners = self._listeners
        back = listeners.seq - self.taken
        if back > MOST_EVENTS:
            return [self._gap(back - MOST_EVENTS)]
        held = listeners.notes
        start = len(held) - WIDTH * back
        stop = start + WIDTH * most
        events = events_of(held[start:stop], listeners.run_id, self.taken + 1)
        if self.takes_singly or listeners.are_shared:
            held[start + WIDTH - 1 : stop : WIDTH] = events
        return events

    def next_notes(self) -> Notes:
        """The notes of the next events, or of a ``Gap``, as ``next_events`` has it."""
        listeners = self._listeners
        back = listeners.seq - self.taken
        if back > MOST_EVENTS:
            gap = self._gap(back - MOST_EVENTS)
            return [OTHER, gap.at, None, gap]
        return listeners.notes[-WIDTH * back :]

    def _gap(self, missed: int) -> Gap:
        """What stands in the place of events that are not held."""
        logger.warning(
            "listener %s of run %s lags by more than %d events; %d of them are left out",
            self,
            self._listeners.run_id,
            MOST_EVENTS,
            missed,
        )
        self.taken += missed
        at = self._listeners.notes[1 - WIDTH * MOST_EVENTS]
        return Gap(self._listeners.run_id, at, missed, self.taken)


class EventStore(Protocol):
    """Stores all events of a run."""

    def take(self, notes: Notes, first: int) -> None:
        """Store the next events, of which this is the first one's number.

        Their values are those of the run: nothing may hold them.
        """


class _StoreCursor(_Cursor):
    """Gives a store the events as they are: it shows of values what it needs, at once."""

    def __init__(self, listeners: Listeners, store: EventStore) -> None:
        super().__init__(listeners)
        self._store = store

    def advance(self) -> None:
        """Give the store all events that it was not given yet."""
        listeners = self._listeners
        count = listeners.seq - self.taken
        if not count:
            return
        first, notes = self.taken + 1, listeners.notes[-WIDTH * count :]
        self.taken = listeners.seq
        self._store.take(notes, first)


class _ListenerCursor(_Cursor):
    """Calls one listener. ``task``: awaits what an async one has returned, and calls it further."""

    def __init__(self, listeners: Listeners, listener: Listener) -> None:
        super().__init__(listeners)
        self.task: asyncio.Task[None] | None = None
        self.is_busy = False  # its task has not ended
        self.is_dropped = False
        self.on_sending: OnSending | None = getattr(listener, "on_sending", None)
        self.on_events: OnEvents | None = getattr(listener, "on_events", None)
        self.on_notes = _on_notes_of(listener)
        self.takes_batches = not (self.on_events is None and self.on_notes is None)
        self._listener = listener
        self._context = copy_context()  # the listener's own, over all events

    def advance(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call the listener for all events there are, or until its answer is to be awaited."""
        answer = self._context.run(self._call)
        if answer is not None:
            self.is_busy = True
            self.task = loop.create_task(self._await(answer), context=self._context)

    def labels(self, sending: NodeStarted) -> Mapping[str, str]:
        """The labels that the listener adds to a message, if it adds any."""
        try:
            if self.on_sending is None or self.is_dropped:
                return {}
            return dict(self.on_sending(sending))
        except NODE_ERRORS as error:  # whatever it raises is its own affair
            self._drop(error)
            return {}

    def _call(self) -> Awaitable[Any] | None:
        """Call the listener for event after event. Returns an answer that is to be awaited."""
        try:
            on_event, on_events = self._listener.on_event, self.on_events
            listeners = self._listeners
            while self.taken != listeners.seq and not self.is_dropped:
                if self.on_notes is not None:
                    answer = self._give_notes(self.on_notes)
                    if answer is not None and isawaitable(answer):
                        return answer
                    continue
                events = self.next_events(_AT_ONCE if on_events is None else MOST_EVENTS)
                if on_events is not None:
                    self.taken = events[-1].seq
                    answer = on_events(events)
                    if answer is not None and isawaitable(answer):
                        return answer
                    continue
                for event in events:
                    answer = on_event(event)
                    if answer is not None and isawaitable(answer):
                        self.taken = event.seq
                        self.takes_singly = True
                        return answer
                self.taken = events[-1].seq
        except NODE_ERRORS as error:  # whatever it raises is its own affair
            self._drop(error)
        return None

    def _give_notes(self, on_notes: OnNotes) -> Awaitable[None] | None:
        """Give the listener what is held of all events there are."""
        before = self.taken
        notes = self.next_notes()
        if self.taken == before:
            first, self.taken = before + 1, self._listeners.seq
        else:  # a ``Gap`` has the number of the last event that was missed
            first = self.taken
        return on_notes(self._listeners.run_id, notes, first)

    async def _await(self, answer: Awaitable[Any] | None) -> None:
        try:
            while answer is not None:
                await answer
                answer = self._call()
        except NODE_ERRORS as error:  # likewise
            if isinstance(error, asyncio.CancelledError) and self._is_cancelled():
                self._listeners.drop(self)
                raise
            self._drop(error)
        finally:
            self.is_busy = False

    def _is_cancelled(self) -> bool:
        return self.task is not None and self.task.cancelling() > 0

    def _drop(self, error: BaseException) -> None:
        logger.error(
            "listener %r raised; it is dropped for this run", self._listener, exc_info=error
        )
        self._listeners.drop(self)

    def __str__(self) -> str:
        return repr(self._listener)


class EventReader(_Cursor):
    """An async iterator of one run's events. ``held``: what is alive as long as the reader is."""

    def __init__(self, listeners: Listeners, held: object) -> None:
        super().__init__(listeners)
        self._held = held
        self._news = asyncio.Event()

    def __aiter__(self) -> EventReader:
        return self

    async def __anext__(self) -> Event:
        while not (events := self.next_events(1)):
            if self._listeners.is_ended:
                self._listeners.let_go()
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        self.taken = events[0].seq
        return events[0]

    def wake(self) -> None:
        """There are events to take, or there will be none any more."""
        self._news.set()

    def __str__(self) -> str:
        return "run.events()"


def _on_notes_of(listener: Any) -> OnNotes | None:
    """The method that takes notes, unless a class of the user's replaces what takes events."""
    for kind in type(listener).__mro__:
        if "on_notes" in vars(kind):
            method: OnNotes = listener.on_notes
            return method
        if "on_events" in vars(kind):
            return None
    return None
