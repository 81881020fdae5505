"""Reads the runs of a journal, in the process of their engine and in any other."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncGenerator, Collection, Iterable
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from typing import Any, get_args

from taskiq_flow.dataflow.options import Seconds, in_seconds
from taskiq_flow.errors import (
    ConfigurationError,
    JournalError,
    MissingNodeError,
    RunLockedError,
    RunNotFoundError,
)
from taskiq_flow.events import Event, NodeCompleted
from taskiq_flow.journal import errors
from taskiq_flow.journal.given import as_journal
from taskiq_flow.journal.log_events import events_of_log
from taskiq_flow.journal.log_values import value_in_log
from taskiq_flow.journal.protocol import (
    EventJournal,
    Journal,
    Request,
    finds_tags,
    is_run,
    stores_events,
)
from taskiq_flow.journal.sqlite import SqliteJournal
from taskiq_flow.journal.summary import Head, RunState, RunSummary, SummaryWriter
from taskiq_flow.journal.wire import read_lines
from taskiq_flow.notes import notes_of
from taskiq_flow.previews import preview, printable
from taskiq_flow.suggestions import suggests_keywords
from taskiq_flow.views.run_view import RunView

_ALL = 1 << 31
"""More runs than a journal has."""

_AT_ONCE = 64
"""Writes of events that are read before it is checked that they are still of the same run."""

LOOK_AGAIN = 1.0
"""Seconds after which a follower looks whether the engine is still there."""


@suggests_keywords()
class RunReader:
    """Reads the runs of a journal, which may be in progress in any process.

    ``journal``: an object, a path or an address, as the engine takes it. Reading creates no file,
    and reading a status reads no values. A run that was written by an earlier version, or to a
    journal without the methods of ``EventJournal``, is read from its log: without times, and with
    its values.

    All methods but ``runs`` raise ``RunNotFoundError``, and all of them ``JournalError``, also for
    a path where there is no journal.

    >>> dag = DAGBuilder("letters").node(str.upper, inputs=["text"]).build()
    >>> async def main():
    ...     journal = MemoryJournal()
    ...     await ExecutionEngine(InMemoryBroker(), dag, journal=journal).execute(
    ...         {"text": "ebb"}, run_id="r1"
    ...     )
    ...     reader = RunReader(journal)
    ...     for run in await reader.runs(name="letters"):
    ...         print(run.run_id, run.status, f"{run.completed}/{run.total}")
    ...     print([event.type async for event in reader.events("r1")])
    ...     print(await reader.value("r1", "upper"))
    >>> asyncio.run(main())
    r1 completed 1/1
    ['run.started', 'node.sent', 'node.began', 'node.completed', 'run.ended']
    EBB
    """

    def __init__(self, journal: Journal | str | os.PathLike[str]) -> None:
        given = as_journal(journal)
        if given is None:
            raise TypeError("journal is None; give the journal whose runs are to be read")
        self.journal = given
        self._is_path = given is not journal
        self._store: EventJournal | None = given if stores_events(given) else None

    async def runs(
        self,
        *,
        status: RunState | None = None,
        name: str | None = None,
        tag: str | Iterable[str] | None = None,
        since: float | datetime | None = None,
        before: float | datetime | None = None,
        limit: int = 100,
    ) -> list[RunSummary]:
        """The newest runs first, ``limit`` of them at the most.

        ``name``: of their graph. ``tag``: one of theirs, or several that each of them has.
        ``since``, ``before``: when they were started, in seconds since 1970 or as a ``datetime``.
        The next page begins ``before`` the last run's ``started``.
        """
        _check_wanted(status, name, limit)
        tags = _wanted_tags(tag)
        if self._lacks_file():
            return []
        name = _as_written(name)
        found: list[RunSummary] = []
        since, before = _moment("since", since), _moment("before", before)
        looked_at, size = set[str](), limit
        while len(found) < limit:
            # From the newest on each time: runs may have started at once, or at no known time.
            page = await self._page(status, name, since, before, tags, size)
            for run in filter(_is_run, page):
                if run.run_id in looked_at:
                    continue
                looked_at.add(run.run_id)
                current = await self._current(run)
                is_wanted = status in (None, current.status) and name in (None, current.name)
                if is_wanted and tags.issubset(current.tags):
                    found.append(current)
            if len(page) < size:
                break
            size *= 2
        return found[:limit]

    async def run(self, run_id: str) -> RunSummary:
        """The summary of one run."""
        self._check_has_file(run_id)
        if self._store is None:
            return await self._summary_of_log(RunSummary(run_id, "running"))
        return await self._current(await self._store.summary(run_id))

    async def view(self, run_id: str) -> RunView:
        """The state of a run, with its nodes. Its ``status`` may be ``"interrupted"``."""
        view = RunView(run_id)
        async with aclosing(self.events(run_id)) as events:
            async for event in events:
                view.apply(event)
        if view.status in ("pending", "running"):
            view.note_status((await self.run(run_id)).status)
        return view

    async def events(
        self, run_id: str, after: int = 0, *, follow: bool = False
    ) -> AsyncGenerator[Event, None]:
        """The events of a run that come after event ``after``, in their order.

        In place of values, they have a ``Preview``, and in place of errors a ``ReportedError``.
        ``follow``: go on with those that are written from now on, until the run has ended or is
        interrupted. Raises ``ConfigurationError`` for a journal that cannot be followed, and
        ``RunNotFoundError`` if the run is deleted meanwhile, also if another has its id then.
        """
        mark, is_over, started = None, False, 0.0
        lack = "stores no events, so its runs cannot be followed; read them again later"
        store = self._event_journal(lack) if follow else None
        while True:
            started = started or await self._started(run_id)
            async with aclosing(self._stored(run_id, after, started)) as events:
                async for event in events:
                    if event.seq > after:
                        after = event.seq
                        yield event
            if store is None:
                return
            run = await self.run(run_id)
            if started and run.started != started:
                raise errors.replaced(run_id)
            if run.status != "running" and (run.seq <= after or is_over):
                return
            is_over = run.status != "running"  # what was written before is read once more
            mark = await store.changed(run_id, mark, LOOK_AGAIN)

    async def value(self, run_id: str, node: str) -> Any:
        """What a node or an element has given, or what the run was given as this input.

        Reads the run's log. Classes are restored if this process has imported them. The list of a
        mapped node has a ``NodeFailure`` or ``NodeSkipped`` in the place of an element that failed
        or was skipped because of a failure. It has a ``NodeFailure`` with a ``MissingNodeError``
        where an element has not completed.

        Raises ``MissingNodeError`` if there is no such value; of a run that was recorded by a
        ``Recorder`` it has the preview.
        """
        self._check_has_file(run_id)
        try:
            is_told = self._store is not None and await self._started(run_id) > 0
            return await value_in_log(
                self.journal, run_id, node, lambda: self.events(run_id), is_told=is_told
            )
        except MissingNodeError as error:
            if (await self.run(run_id)).is_resumable:
                raise
            shown = await self._preview(run_id, node)
            raise MissingNodeError(f"{error}{shown}", reference=node) from None

    async def request(self, run_id: str, request: Request) -> bool:
        """Ask the engine that has a run to ``"cancel"`` it, which takes some two seconds.

        Returns whether there is one; else nothing is asked. A run that is only recorded takes no
        requests.
        """
        if request not in get_args(Request):
            raise ValueError(f"request is {request!r}; give 'cancel'")
        lack = "takes no requests; cancel the run in the process of its engine"
        store = self._event_journal(lack)
        run = await self.run(run_id)
        if run.status != "running" or not run.is_resumable:
            return False
        await store.request(run_id, request)
        return True

    async def prune(
        self, *, older_than: Seconds | None = None, keep: int | None = None, name: str | None = None
    ) -> list[str]:
        """Delete runs, and return their run ids, the newest first. None that an engine has.

        ``older_than``: those that ended before that time, or that were started before it and have
        not ended. ``keep``: all but the newest so many. With both, those to which both apply.
        ``name``: only those of the graph of this name. Runs of an earlier version are the oldest,
        and have no name.
        """
        if older_than is None and keep is None:
            raise ValueError("nothing says which runs to delete; give older_than= or keep=")
        if keep is not None and keep < 0:
            raise ValueError(f"keep is {keep!r}; give the number of runs to keep, from 0 on")
        store = self._event_journal("does not tell the age of runs; delete them one by one")
        if self._lacks_file():
            return []
        until = None if older_than is None else time.time() - in_seconds("older_than", older_than)
        name = _as_written(name)
        listed = filter(_is_run, await store.summaries(name=name, limit=_ALL))
        runs = [run for run in listed if name in (None, run.name)]
        deleted = []
        for run in runs[keep or 0 :]:
            if run.lease_left > 0 or (until is not None and (run.ended or run.started) > until):
                continue
            with contextlib.suppress(RunLockedError, RunNotFoundError):  # since a moment ago
                await store.delete(run.run_id)
                deleted.append(run.run_id)
        return deleted

    async def aclose(self) -> None:
        """Close the journal. Using the reader again opens it again."""
        await self.journal.aclose()

    def __repr__(self) -> str:
        return f"<RunReader of {self.journal!r}>"

    def _event_journal(self, lack: str) -> EventJournal:
        """The journal. Raises ``ConfigurationError``, with ``lack``, if it stores no events."""
        if self._store is None:
            raise ConfigurationError(
                f"{type(self.journal).__name__} {lack}, or give the journal the methods of "
                "EventJournal"
            )
        return self._store

    def _lacks_file(self) -> bool:
        """Whether nothing was written to the journal's file yet. Opening it would create it.

        Raises ``JournalError`` if the reader was given its path, which is wrong perhaps.
        """
        if not isinstance(self.journal, SqliteJournal) or self.journal.file.is_written():
            return False
        if self._is_path:
            path = str(self.journal.file.path)
            raise JournalError(
                f"there is no journal at {path!r}; give the file to which an engine writes its runs"
            )
        return True

    def _check_has_file(self, run_id: str) -> None:
        if self._lacks_file():
            raise errors.not_found(run_id)

    async def _preview(self, run_id: str, name: str) -> str:
        """The preview of what a node or an element has given, for the end of a message."""
        async with aclosing(self.events(run_id)) as events:
            async for event in events:
                if isinstance(event, NodeCompleted) and event.task_name == name:
                    shown = preview(event.result)
                    part = "the beginning" if shown["cut"] else "the whole"
                    return f"; {part} of {name!r} ({shown['kind']}) is {shown['text']}"
        return ""

    async def _page(
        self,
        status: RunState | None,
        name: str | None,
        since: float | None,
        before: float | None,
        tags: Collection[str],
        limit: int,
    ) -> list[RunSummary]:
        if self._store is None:
            if since is not None or before is not None:
                return []  # when they were started is not known
            ids = await self.journal.run_ids()
            return [RunSummary(run_id, "running") for run_id in reversed(ids)][:limit]
        written = "running" if status == "interrupted" else status
        more: dict[str, Any] = {"tags": tags} if tags and finds_tags(self._store) else {}
        return await self._store.summaries(
            status=written, name=name, since=since, before=before, limit=limit, **more
        )

    async def _current(self, run: RunSummary) -> RunSummary:
        """The summary of a run as it is now, from what was written."""
        if not run.started:
            run = await self._summary_of_log(run)
        if run.status == "running" and self._store is not None and run.lease_left <= 0:
            return replace(run, status="interrupted")
        return run

    async def _summary_of_log(self, run: RunSummary) -> RunSummary:
        writer = SummaryWriter(run.run_id, Head())
        async for event in events_of_log(self.journal, run.run_id):
            writer.apply(notes_of([event]), event.seq)
        return replace(
            writer.summary(),
            started=0.0,
            ended=None,
            host="",
            pid=0,
            owner=run.owner,
            lease_left=run.lease_left,
        )

    async def _started(self, run_id: str) -> float:
        """When a run was started, which tells it from another of its id; 0 without events."""
        self._check_has_file(run_id)
        return 0.0 if self._store is None else (await self._store.summary(run_id)).started

    async def _stored(self, run_id: str, after: int, started: float) -> AsyncGenerator[Event, None]:
        if self._store is None or not started:
            async for event in events_of_log(self.journal, run_id):
                yield event
            return
        async with aclosing(_in_parts(self._store.events(run_id, after))) as parts:
            async for part in parts:
                if await self._started(run_id) != started:
                    raise errors.replaced(run_id)
                for lines in part:
                    try:
                        events = list(read_lines(run_id, lines))
                    except (ValueError, LookupError, TypeError, RecursionError) as error:
                        raise errors.damaged(run_id, error) from error
                    for event in events:
                        yield event


async def _in_parts(found: AsyncGenerator[bytes, None]) -> AsyncGenerator[list[bytes], None]:
    """Many lines of events at once."""
    part: list[bytes] = []
    async with aclosing(found):
        async for lines in found:
            part.append(lines)
            if len(part) == _AT_ONCE:
                yield part
                part = []
    if part:
        yield part


def _is_run(run: RunSummary) -> bool:
    return is_run(run.run_id)


def _as_written(wanted: str | None) -> str | None:
    """A name as summaries have it."""
    return None if wanted is None else printable(wanted)


def _wanted_tags(tag: str | Iterable[str] | None) -> set[str]:
    """The tags that runs are to have, as summaries have them."""
    if tag is None:
        return set()
    if not isinstance(tag, Iterable):
        raise TypeError(f"tag is {tag!r}; give a text, or a list of texts")
    tags = [tag] if isinstance(tag, str) else list(tag)
    for one in tags:
        if not isinstance(one, str):
            raise TypeError(f"tag has {one!r}; give texts")
    return set(map(printable, tags))


def _check_wanted(status: object, name: object, limit: object) -> None:
    if status is not None and status not in get_args(RunState):
        raise ValueError(f"status is {status!r}; give one of {', '.join(get_args(RunState))}")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name is {name!r}; give the name of a graph")
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit is {limit!r}; give a whole number")
    if limit < 0:
        raise ValueError(f"limit is {limit}; give the number of runs to list, from 0 on")


def _moment(argument: str, given: float | datetime | None) -> float | None:
    if isinstance(given, datetime):
        return given.timestamp()
    if given is not None and (isinstance(given, bool) or not isinstance(given, (int, float))):
        raise TypeError(
            f"{argument} is {given!r}; give a datetime, or a number of seconds since 1970, as "
            "time.time() does"
        )
    return given
