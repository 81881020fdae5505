"""What commands do with the runs of a journal: list, show, follow, cancel and delete them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, cast

from rich.text import Text

from taskiq_flow.cli.exits import Code, CommandError, code_of_run
from taskiq_flow.cli.flows import Flow
from taskiq_flow.cli.output import Row, say, show, show_json, show_table, sign, width
from taskiq_flow.cli.running import EngineOptions
from taskiq_flow.cli.signals import Signals
from taskiq_flow.cli.timeline import report_lines
from taskiq_flow.clock import clock_of
from taskiq_flow.engine.run_spec import OnError
from taskiq_flow.errors import ConfigurationError, RunNotFoundError
from taskiq_flow.events import WIRE_VERSION, Event, RunStarted
from taskiq_flow.journal import Journal, RunReader, RunSummary
from taskiq_flow.journal.history import begun_with, was_begun_otherwise
from taskiq_flow.journal.summary import RunState
from taskiq_flow.listeners.progress import Progress
from taskiq_flow.listeners.terminal import STYLES
from taskiq_flow.listeners.texts import (
    element_name,
    error_text,
    failed_elements,
    node_text,
    other_errors,
    run_text,
)
from taskiq_flow.previews import duration, of_the_users, one_line
from taskiq_flow.suggestions import did_you_mean
from taskiq_flow.views.node_view import NodeView
from taskiq_flow.views.report import RunReport
from taskiq_flow.views.run_view import RunView

MOST_COMPARED = 1_000
"""Runs, the newest, whose ids an unknown one is compared with."""

CANCEL_TIMEOUT = 15.0
"""Seconds for which ``cancel`` waits until a run has stopped."""

_ENDS = {
    "completed": "has completed",
    "failed": "has failed",
    "cancelled": "was cancelled",
    "interrupted": "is interrupted and no engine has it",
}
"""What is said of a run that has ended before it could be cancelled."""

_DAY = 86_400


@asynccontextmanager
async def reader_of(journal: Journal | str) -> AsyncIterator[RunReader]:
    """A reader of a journal. Raises ``JournalError`` if there is no such file.

    A run that is not there is told with the one whose id is most like it.
    """
    try:
        reader = RunReader(journal)
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from None
    try:
        yield reader
    except RunNotFoundError as error:
        known = [run.run_id for run in await reader.runs(limit=MOST_COMPARED)]
        if not (hint := did_you_mean(error.run_id, known)):
            raise
        raise CommandError(
            f"the journal has no run {error.run_id!r}{hint}", Code.NO_SUCH_RUN
        ) from None
    finally:
        await reader.aclose()


async def as_begun(run_id: str, flow: Flow, options: EngineOptions) -> EngineOptions:
    """The options with the ``on_error`` that a run was begun with, unless one is given."""
    journal = options.journal or flow.options.get("journal")
    if journal is None or options.on_error is not None:
        return options
    async with reader_of(journal) as reader:
        begun = await begun_with(reader.journal, run_id)
    if not was_begun_otherwise(begun, flow.options.get("on_error", "raise")):
        return options
    say(f"run {run_id!r} was begun with --on-error {begun}, which holds for this one too")
    return replace(options, on_error=cast("OnError", begun))


async def list_runs(
    journal: str,
    *,
    status: RunState | None,
    name: str | None,
    tags: Sequence[str],
    since: datetime | None,
    limit: int,
    json_lines: bool,
) -> Code:
    """Write a line for each run, the newest first."""
    async with reader_of(journal) as reader:
        runs = await reader.runs(status=status, name=name, tag=tags, since=since, limit=limit)
    if json_lines:
        for run in runs:
            show_json(run)
    elif runs:
        last = "tags" if any(run.tags for run in runs) else ""
        heads = ("", "run", "status", "started", "took", "done", "graph", last)
        rows: list[Row] = [[Text(head, style="dim") for head in heads]]
        show_table([*rows, *map(_row_of_run, runs)], most_important=(0, 1))
    else:
        say("no runs")
    return Code.COMPLETED


def _row_of_run(run: RunSummary) -> Row:
    until = time.time() if run.status == "running" else run.ended
    took = "" if until is None or not run.started else duration(max(0.0, until - run.started))
    done = f"{run.completed + run.failed + run.skipped}/{run.total}"
    done += f", {run.failed} failed" if run.failed else ""
    return [
        sign(run.status),
        one_line(run.run_id),
        Text(run.status, style=STYLES[run.status]),
        _when(run.started),
        took,
        done,
        one_line(run.name or ""),
        one_line(", ".join(run.tags)),
    ]


def _when(moment: float) -> str:
    """A moment as the local time, with the date if that is not today's."""
    if not moment:
        return ""
    is_recent = time.time() - moment < _DAY / 2
    return datetime.fromtimestamp(moment).strftime("%H:%M:%S" if is_recent else "%Y-%m-%d %H:%M")  # noqa: DTZ006 - local


async def show_run(
    journal: str,
    run_id: str,
    *,
    as_what: Literal["state", "report", "events"],
    trace: Path | None,
) -> Code:
    """Write what is known of a run."""
    async with reader_of(journal) as reader:
        if as_what == "events":
            async with aclosing(reader.events(run_id)) as events:
                async for event in events:
                    show_json(event.to_dict())
            return Code.COMPLETED
        summary, view = await reader.run(run_id), (await reader.view(run_id)).until(time.time())
    if trace is not None:
        _write_trace(trace, view)
    elif as_what == "report":
        for line in report_lines(RunReport.of(view), width()):
            show(line)
    else:
        _show_state(summary, view)
    return Code.COMPLETED


def _write_trace(file: Path, view: RunView) -> None:
    try:
        file.write_text(RunReport.of(view).to_trace(), "utf-8")
    except OSError as error:
        raise CommandError(f"the trace cannot be written: {error}") from None
    say(f"wrote {file}, which https://ui.perfetto.dev opens")


def _show_state(run: RunSummary, view: RunView) -> None:
    title, state = Text(one_line(run.run_id), style="bold"), run_text(view, _seconds_of(run, view))
    show(sign(view.status).append(" ").append_text(title).append(f"  {state}"), wraps=True)
    status_says_it = view.status != "failed" or "failed" in view.counts
    facts = {
        "graph": run.name and one_line(run.name),
        "found at": view.origin and view.origin != run.name and one_line(view.origin),
        "tags": one_line(", ".join(run.tags)),
        "on error": None if view.on_error == "raise" else view.on_error,
        "started": run.started and _when(run.started),
        "sessions": _sessions_text(view),
        "engine": run.host and f"{run.host}, process {run.pid}",
        "again from": run.parent and one_line(run.parent),
        "error": "" if status_says_it else error_text(view.error),
    }
    for fact, text in facts.items():
        if text:
            show(Text(f"  {fact:<11}", style="dim").append(text, style="not dim"), wraps=True)
    if view.nodes:
        show("")
        show_table([*map(_row_of_node, view.nodes.values())], most_important=(0, 1, 2), cut=1)
    for node in view.nodes.values():
        failed = next(iter(failed_elements(node)), node)
        if failed.state == "failed" and (error := failed.error):
            show("")
            show(Text(f"{element_name(failed)}:", style="bold"), wraps=True)
            show(of_the_users(error["traceback"]) or error_text(error), wraps=True)
        for text in other_errors(node):
            show(text, wraps=True)


def _seconds_of(run: RunSummary, view: RunView) -> float:
    """How long a run has taken since its first start, with pauses, as lists of runs say."""
    if view.sessions == 1 or not run.started or view.time is None:
        return view.seconds
    return max(0.0, view.time - run.started) + view.seconds


def _sessions_text(view: RunView) -> str:
    if view.sessions == 1:
        return ""
    return f"{view.sessions}; the last took {duration(view.seconds)}, and times of nodes are its"


def _row_of_node(node: NodeView) -> Row:
    shown, text = node.preview, node_text(node).partition("; ")[0]
    return [
        Text("  ").append_text(sign(node.state)),
        one_line(node.name),
        text.partition(": ")[0],
        one_line(shown["text"])[:60] if shown else "",
    ]


async def watch_run(journal: str, run_id: str, *, json_lines: bool, quiet: bool) -> Code:
    """Follow a run until it has ended, and return its exit code."""
    signals = Signals()
    try:
        with signals:
            async with reader_of(journal) as reader:
                view = await watched(reader, run_id, json_lines=json_lines, quiet=quiet)
                is_interrupted = view.status == "interrupted"
                is_resumable = is_interrupted and (await reader.run(run_id)).is_resumable
    except asyncio.CancelledError:
        if signals.code is None:
            raise
        say(f"run {run_id!r} goes on; watch it again, or stop it with taskiq-flow cancel")
        return signals.code
    if is_interrupted:
        remedy = "; continue it with resume" if is_resumable else ""
        say(f"run {run_id!r} is interrupted: its engine is gone{remedy}")
    return code_of_run(view)


async def watched(reader: RunReader, run_id: str, *, json_lines: bool, quiet: bool) -> RunView:
    """The view of a run that has ended, after it was followed; or of the run in its place."""
    while True:
        view = RunView(run_id)
        try:
            await _follow(reader, view, json_lines=json_lines, quiet=quiet)
        except RunNotFoundError:
            if not view.seq:
                raise
            await reader.run(run_id)  # raises if there is none in its place
            say(f"run {run_id!r} was deleted; another one has its id and is watched now")
            if json_lines:
                show_json({"v": WIRE_VERSION, "run": run_id, "seq": 0, "type": "reset"})
        else:
            return view


async def _follow(reader: RunReader, view: RunView, *, json_lines: bool, quiet: bool) -> None:
    """Show what happens in a run, and apply it to its view."""
    run_id = view.run_id
    with Progress(journal=reader.journal) as progress:
        seen = (await reader.run(run_id)).seq
        events = _as_here(reader.events(run_id, follow=True))
        async with aclosing(events):
            earlier: list[Event] = []
            async for event in events:
                view.apply(event)
                if json_lines:
                    show_json(event.to_dict())
                if quiet:
                    continue
                # Of sessions that are over, only what they have reached matters.
                if isinstance(event, RunStarted):
                    earlier.clear()
                earlier.append(event)
                if event.seq >= seen:
                    for held in earlier:
                        progress.on_event(held)
                    earlier.clear()
        if view.status in ("pending", "running"):
            view.note_status((await reader.run(run_id)).status)


async def _as_here(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """Events of another process with times of the clock of this one."""
    ahead = 0.0
    clock = clock_of(asyncio.get_running_loop())
    async with aclosing(events):
        async for event in events:
            if isinstance(event, RunStarted) and event.time:
                ahead = (event.at - event.time) - (clock() - time.time())
            yield replace(event, at=event.at - ahead)


async def cancel_runs(journal: str, run_ids: Sequence[str]) -> Code:
    """Ask the engines of runs to stop them, and wait until they have."""
    async with reader_of(journal) as reader:
        for run_id in run_ids:
            if not await _cancel(reader, run_id):
                return Code.UNREACHABLE
    return Code.COMPLETED


async def _cancel(reader: RunReader, run_id: str) -> bool:
    run = await reader.run(run_id)
    if run.status == "running" and not run.is_resumable:
        raise ConfigurationError(
            f"run {run_id!r} is only recorded, and takes no requests; cancel it in its own process"
        )
    if not await reader.request(run_id, "cancel"):
        how = _ENDS.get(run.status, f"is {run.status}")
        say(f"run {run_id!r} {how}, so there was nothing to cancel")
        return True
    try:
        async with (
            asyncio.timeout(CANCEL_TIMEOUT),
            aclosing(reader.events(run_id, run.seq, follow=True)) as events,
        ):
            async for _ in events:
                pass
    except TimeoutError:
        say(f"run {run_id!r} was asked to stop {CANCEL_TIMEOUT:g} s ago, and is still running")
        return False
    say(f"run {run_id!r} is {(await reader.run(run_id)).status}")
    return True


async def delete_runs(
    journal: str,
    run_ids: Sequence[str],
    *,
    older_than: timedelta | None,
    keep: int | None,
    name: str | None,
) -> Code:
    """Delete the named runs, or those that are old; write the ids of those that are gone."""
    if not run_ids and older_than is None and keep is None:
        raise CommandError("nothing says which runs to delete; name them, or give --older-than 30d")
    if run_ids and (older_than is not None or keep is not None or name is not None):
        raise CommandError("name runs, or give --older-than, --keep and --name; not both")
    async with reader_of(journal) as reader:
        for run_id in run_ids:
            await reader.run(run_id)  # which creates no file
            await reader.journal.delete(run_id)
            show(one_line(run_id))
        if not run_ids:
            for run_id in await reader.prune(older_than=older_than, keep=keep, name=name):
                show(one_line(run_id))
    return Code.COMPLETED
