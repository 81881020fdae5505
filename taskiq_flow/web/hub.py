"""What all connections share: windows of runs that are watched, views of runs, the list of runs."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from taskiq_flow.events import ElementsKnown, Gap, RunFinished, RunStarted
from taskiq_flow.journal.earlier import earlier_run
from taskiq_flow.journal.reader import RunReader
from taskiq_flow.journal.summary import RunSummary
from taskiq_flow.views.node_view import NodeView
from taskiq_flow.views.run_view import RunView
from taskiq_flow.views.time_left import EarlierRun, seconds_left
from taskiq_flow.web.frames import (
    ALL,
    MOST_IN_FRAME,
    Frame,
    FrameWriter,
    KnownElements,
    requested,
    reset,
)
from taskiq_flow.web.recent import RecentRuns
from taskiq_flow.web.shown import Shown
from taskiq_flow.web.window import MOST_EVENTS, Window

_MOST_VIEWS = 16
"""Views of runs that are held, to go on with."""


_OF_RUN = (RunStarted, RunFinished, Gap, ElementsKnown)
"""Events that are of no node or element."""


@dataclass(slots=True)
class _Cached:
    view: RunView
    started: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    earlier: EarlierRun | None = None


class Hub:
    """Gives the events of runs to all who watch them. One event loop uses it."""

    def __init__(self, reader: RunReader, shown: Shown) -> None:
        self.reader = reader
        self.shown = shown
        self.recent = RecentRuns(reader)
        self._windows: dict[str, Window] = {}
        self._views: OrderedDict[str, _Cached] = OrderedDict()
        self._is_closed = False

    def close(self) -> None:
        """End all streams."""
        self._is_closed = True
        self.recent.close()
        for window in self._windows.values():
            window.close()

    async def view(self, run_id: str) -> tuple[RunView, RunSummary]:
        """The state of a run until now, and its summary. The view is shared: do not change it.

        Raises ``RunNotFoundError`` and ``JournalError``.
        """
        run = await self.reader.run(run_id)
        cached = self._views.get(run_id)
        if cached is None or cached.started != run.started or cached.view.seq > run.seq:
            cached = self._views[run_id] = _Cached(RunView(run_id), run.started)
        self._views.move_to_end(run_id)
        if len(self._views) > _MOST_VIEWS:
            self._views.popitem(last=False)
        async with cached.lock, aclosing(self.reader.events(run_id, cached.view.seq)) as events:
            async for event in events:
                cached.view.apply(event)
                if not event.seq % MOST_IN_FRAME:
                    await asyncio.sleep(0)  # a journal in memory gives all events at once
            if cached.view.seq <= run.seq:  # else another engine may have begun meanwhile
                cached.view.note_status(run.status)
        return cached.view.until(time.time()), run

    async def left(self, view: RunView, run: RunSummary) -> float | None:
        """The seconds that a run is going to take, as far as they can be estimated."""
        cached = self._views.get(run.run_id)
        if cached is None or view.status != "running" or view.started_at is None:
            return None
        if cached.earlier is None:
            found = await earlier_run(self.reader, run.name, run.run_id)
            cached.earlier = found or EarlierRun()
        return seconds_left(view, view.started_at + view.seconds, cached.earlier)

    async def element(self, run_id: str, name: str) -> NodeView | None:
        """What the events say of an element, of which a view has no record once it has ended.

        Reads all events. Raises ``RunNotFoundError`` and ``JournalError``.
        """
        view = RunView(run_id)
        async with aclosing(self.reader.events(run_id)) as events:
            async for event in events:
                if isinstance(event, RunStarted):
                    view = RunView(run_id)  # this session tells of earlier ones what counts
                elif not isinstance(event, _OF_RUN) and event.task_name == name:
                    view.apply(replace(event, index=None))  # as of a node, with all that it has
                if not event.seq % MOST_IN_FRAME:
                    await asyncio.sleep(0)
        return view.nodes.get(name)

    async def begins_after(self, run_id: str, given: str | None) -> int | None:
        """The number of the event after which a client goes on, as it was given.

        ``None`` for one that the run does not have, and for what is no number. Raises
        ``RunNotFoundError`` and ``JournalError``.
        """
        run = await self.reader.run(run_id)
        if given is None:
            return 0
        if not (given.isascii() and given.isdecimal()) or len(given) > len(str(run.seq)):
            return None
        after = int(given)
        return after if after <= run.seq else None

    async def watch(self, run_id: str, given: str | None) -> AsyncGenerator[Frame | None, None]:
        """The events of a run that a client has not seen, or for ``*`` the list of runs.

        Raises ``RunNotFoundError`` and ``JournalError``.
        """
        if run_id == ALL:
            found = self.recent.frames()
        else:
            found = self.frames(run_id, await self.begins_after(run_id, given))
        async with aclosing(found) as frames:
            async for frame in frames:
                yield frame

    async def frames(self, run_id: str, after: int | None) -> AsyncGenerator[Frame | None, None]:
        """The events after ``after``, until the run has ended. ``None``: a sign of life is due.

        Without ``after``, a ``reset`` comes first, and then all events.
        """
        if after is None:
            yield reset(run_id)
            after = 0
        window = await self._enter(run_id, after)
        told: str | None = None
        try:
            while not self._is_closed:
                if after < window.floor:
                    floor = window.floor
                    async with aclosing(self._stored(run_id, after, floor)) as frames:
                        async for frame in frames:
                            yield frame
                    after = floor
                elif (found := window.next(after)) is not None:
                    yield found
                    after = found.last
                elif after and window.request is not None and window.request is not told:
                    told = window.request
                    yield requested(run_id, after, told)
                elif window.is_over:
                    return
                elif not await window.news.wait():
                    yield None
        finally:
            window.watchers -= 1
            if not window.watchers and self._windows.get(run_id) is window:
                del self._windows[run_id]
                window.close()

    async def _enter(self, run_id: str, after: int) -> Window:
        window = self._windows.get(run_id)
        if window is None or window.is_over:
            last = (await self.reader.run(run_id)).seq
            window = self._windows.get(run_id)  # of one who came meanwhile
        if window is None or window.is_over:
            start = after if last - after <= MOST_EVENTS else last
            known = await self._known(run_id, start)
            window = self._windows.get(run_id)  # likewise
        if window is None or window.is_over:
            writer = FrameWriter(run_id, self.shown, start, known)
            window = self._windows[run_id] = Window(self.reader, run_id, writer)
        window.watchers += 1
        return window

    async def _known(self, run_id: str, after: int) -> KnownElements:
        """What is known of elements after event ``after``, or later."""
        return KnownElements((await self.view(run_id))[0] if after else None)

    async def _stored(self, run_id: str, after: int, until: int) -> AsyncGenerator[Frame, None]:
        """Events of the journal, from after ``after`` to ``until``."""
        writer = FrameWriter(run_id, self.shown, after, await self._known(run_id, after))
        async with aclosing(self.reader.events(run_id, after)) as events:
            async for event in events:
                if event.seq > until:
                    break
                writer.add(event)
                if writer.is_full and (frame := writer.take()) is not None:
                    yield frame
        if (frame := writer.take()) is not None:
            yield frame
