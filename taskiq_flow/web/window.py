"""The newest events of one run, which all who watch it share.

Whoever watches has a cursor into the window, the number of the last event that was sent, and no
queue: what it has not taken in time is read from the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from contextlib import aclosing

from taskiq_flow.errors import JournalError, RunNotFoundError
from taskiq_flow.journal.protocol import stores_events
from taskiq_flow.journal.reader import LOOK_AGAIN, RunReader
from taskiq_flow.web.frames import Frame, FrameWriter
from taskiq_flow.web.news import News

MOST_EVENTS = 10_000
"""Events that a window holds."""

LOOK_EVERY = 0.5
"""Seconds between two looks for a request, which an engine sees within some two seconds."""

FRAME_SECONDS = 0.1
"""Seconds between two looks for events. Those that are found are sent together."""

QUIET_SECONDS = 15.0
"""After so many seconds without an event, a sign of life is due."""


class Window:
    """Follows a run from where ``writer`` is, and holds the frames of its newest events.

    ``floor``: the number of the last event that is not held any more. ``is_over``: the run has
    ended, or its journal failed: no frame will come. ``request``: what its engine was asked for.
    ``news``: told when any of these may have changed, and when a sign of life is due.
    """

    def __init__(self, reader: RunReader, run_id: str, writer: FrameWriter) -> None:
        self.floor = writer.last
        self.is_over = False
        self.watchers = 0
        self.request: str | None = None
        self.news = News()
        self._reader = reader
        self._run_id = run_id
        self._writer = writer
        self._frames: list[Frame] = []
        self._size = 0
        loop = asyncio.get_running_loop()
        self._told_at = loop.time()
        self._task = loop.create_task(self._follow())
        self._looking = loop.create_task(self._look())

    def next(self, after: int) -> Frame | None:
        """The frame that has the event after ``after``, which has to be at ``floor`` or later."""
        if not self._frames or after >= self._frames[-1].last:
            return None
        place = bisect_right(self._frames, after, key=lambda frame: frame.last)
        return self._frames[place].after(after)

    def close(self) -> None:
        """Stop following."""
        self._task.cancel()
        self._end()

    async def _follow(self) -> None:
        clock, store = asyncio.get_running_loop().time, self._reader.journal
        mark, started = None, 0.0
        try:
            while True:
                next_at = clock() + FRAME_SECONDS  # each look costs more than an event
                run = await self._reader.run(self._run_id)
                if started and run.started != started:
                    return  # another run has its id now
                started = run.started
                await self._read()
                if run.status not in ("running", "interrupted") or not stores_events(store):
                    return
                mark = await store.changed(self._run_id, mark, LOOK_AGAIN)
                await asyncio.sleep(next_at - clock())
        except (JournalError, RunNotFoundError):
            pass  # whoever connects next is told
        finally:
            self._end()

    async def _read(self) -> None:
        """Make frames of the events that are new."""
        async with aclosing(self._reader.events(self._run_id, self._writer.last)) as events:
            async for event in events:
                self._writer.add(event)
                if self._writer.is_full:
                    self._flush()
                    await asyncio.sleep(0)  # a journal in memory gives all events at once
        self._flush()

    async def _look(self) -> None:
        """No event tells of a request: it is written by whoever asks, and not by the engine."""
        store, clock = self._reader.journal, asyncio.get_running_loop().time
        while stores_events(store):
            with contextlib.suppress(JournalError, RunNotFoundError):
                request = await store.requested(self._run_id)
                if request != self.request and not self.is_over:
                    run = await self._reader.run(self._run_id)
                    self.request = request if run.status == "running" else None
                    self._tell()
            if clock() - self._told_at >= QUIET_SECONDS:
                self._tell(is_news=False)
            await asyncio.sleep(LOOK_EVERY)

    def _flush(self) -> None:
        if (frame := self._writer.take()) is None:
            return
        self._frames.append(frame)
        self._size += len(frame)
        dropped = 0
        while self._size > MOST_EVENTS and dropped < len(self._frames) - 1:
            self._size -= len(self._frames[dropped])
            self.floor = self._frames[dropped].last
            dropped += 1
        del self._frames[:dropped]
        self._tell()

    def _tell(self, *, is_news: bool = True) -> None:
        self._told_at = asyncio.get_running_loop().time()
        self.news.tell(is_news=is_news)

    def _end(self) -> None:
        self.is_over = True
        self._looking.cancel()
        self._tell()
