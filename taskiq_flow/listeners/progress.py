"""A listener that shows how far runs are."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Protocol, Self, TextIO

from taskiq_flow.cleanup import to_the_end
from taskiq_flow.clock import clock_of
from taskiq_flow.errors import ConfigurationError, describe
from taskiq_flow.events import Event, RunStarted
from taskiq_flow.journal.earlier import earlier_run
from taskiq_flow.journal.protocol import Journal
from taskiq_flow.journal.reader import RunReader
from taskiq_flow.listeners.lines import Lines
from taskiq_flow.notes import WIDTH, Notes, notes_of
from taskiq_flow.suggestions import suggests_keywords
from taskiq_flow.views.run_view import RunView
from taskiq_flow.views.time_left import EarlierRun

logger = logging.getLogger("taskiq_flow")

P = ParamSpec("P")

SHORTEST_PAUSE = 0.1
"""Seconds between two times at which something is shown."""

_SHARE = 20
"""A pause is at least so many times as long as showing took."""


@suggests_keywords()
class Progress:
    """Shows the runs of the engines that it is a listener of: to ``file``, or ``sys.stderr``.

    On a terminal and in notebooks it shows a bar for each run with the estimated time that is left,
    what runs now and for how long, and the counts of mapped nodes. This needs the extra
    ``progress``; ``ConfigurationError`` is raised if rich is not installed. Elsewhere it writes a
    line for each node that ended or has run for a while; mapped nodes have a line at most once a
    second.

    ``journal``: where the newest completed run of the same graph is looked up, by the graph's name.
    Runs that a ``Recorder`` gave another name are found among the 20 newest of the journal. The
    earlier run's times are the estimate until nodes of this run have ended. Without it, or if the
    graph has no name, the nodes' ``expected_seconds`` are.

    The display ends with the last run that is in progress. As a context manager it also ends when
    the block is left, and shows nothing of runs that go on.

    >>> import io
    >>> file = io.StringIO()
    >>> dag = DAGBuilder().node(abs, inputs=["number"]).build()
    >>> engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Progress(file)])
    >>> engine.execute_sync({"number": -7})
    {'abs': 7}
    >>> [line.split()[2:5] for line in file.getvalue().splitlines()][1]
    ['abs:', 'completed', 'in']
    """

    def __init__(
        self,
        file: TextIO | None = None,
        *,
        journal: Journal | str | os.PathLike[str] | None = None,
    ) -> None:
        self._display = _display_on(file)
        self._journal = journal if self._display.moves else None  # lines tell no time that is left
        self._runs: dict[str, _Run] = {}
        self._pause = SHORTEST_PAUSE
        self._is_closed = False
        self._lock = threading.Lock()  # runs may be on the event loops of several threads

    def __enter__(self) -> Self:
        self._is_closed = False
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._close()

    def on_event(self, event: Event) -> None:
        """Apply an event to the view of its run, which is shown a little later."""
        self.on_events([event])

    def on_events(self, events: Sequence[Event]) -> None:
        """Apply events of one run to its view."""
        self.on_notes(events[0].run_id, notes_of(events), events[0].seq)

    def on_notes(self, run_id: str, notes: Notes, first: int) -> None:
        """Apply events of one run, as an engine has them. ``first``: the number of the first."""
        with self._lock:
            if self._is_closed:
                return
            run = self._runs.get(run_id)
            if run is None:
                run = self._runs[run_id] = _Run(RunView(), asyncio.get_running_loop())
            run.view.apply_notes(run_id, notes, first)
            started = notes[WIDTH - 1]
            if self._journal is not None and isinstance(started, RunStarted):
                run.read_earlier(self._journal, started.name)
            if run.view.ended_at is not None:
                self._end(run)
            elif run.timer is None:
                run.timer = run.loop.call_later(self._pause, self._show, run)

    def _show(self, run: _Run) -> None:
        """Show all runs, when the timer of one of them is due."""
        with self._lock:
            run.timer = None
            if self._is_closed:
                return
            began = time.perf_counter()
            shown = [(other.view, other.earlier) for other in self._runs.values()]
            self._draw(self._display.show, shown, clock_of(run.loop)())
            self._pause = max(SHORTEST_PAUSE, (time.perf_counter() - began) * _SHARE)
            if self._display.moves and not self._is_closed:
                run.timer = run.loop.call_later(self._pause, self._show, run)

    def _end(self, run: _Run) -> None:
        """A run has ended: show how."""
        run.stop()
        del self._runs[run.view.run_id]
        if not self._runs:
            self._draw(self._display.stop)
        self._draw(self._display.end, run.view)

    def _close(self) -> None:
        """Show nothing of any run from now on."""
        self._is_closed = True
        for run in self._runs.values():
            run.stop()
        self._runs.clear()
        self._draw(self._display.stop)

    def _draw(self, draw: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have the display do something. A terminal that is gone ends the display, not the run."""
        try:
            draw(*args, **kwargs)
        except Exception as error:
            if not self._is_closed:
                logger.warning("progress is not shown any more: %s", describe(error))
                self._close()


@dataclass(slots=True, eq=False)
class _Run:
    """A run that is in progress. ``timer``: when it is shown next; of the run's own ``loop``.

    ``earlier``: how long an earlier run of its graph took; ``reading``: finds that out.
    """

    view: RunView
    loop: asyncio.AbstractEventLoop
    timer: asyncio.TimerHandle | None = None
    earlier: EarlierRun = field(default_factory=EarlierRun)
    reading: asyncio.Task[None] | None = None

    def read_earlier(self, journal: Journal | str | os.PathLike[str], name: str | None) -> None:
        """Look up an earlier run of the graph of this name."""
        if self.reading is None:
            self.reading = self.loop.create_task(self._read_earlier(journal, name))

    async def _read_earlier(
        self, journal: Journal | str | os.PathLike[str], name: str | None
    ) -> None:
        reader = RunReader(journal)
        try:
            self.earlier = await earlier_run(reader, name, self.view.run_id) or self.earlier
        except Exception as error:  # of a journal that a user wrote: the run goes on
            logger.warning("no earlier run is looked up for progress: %s", describe(error))
        finally:
            if reader.journal is not journal:
                await to_the_end(reader.aclose())

    def stop(self) -> None:
        """Do not show it again."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.reading is not None:
            self.reading.cancel()


class _Display(Protocol):
    """Shows views. ``moves``: whether that changes with the time, as no event comes."""

    @property
    def moves(self) -> bool: ...

    def show(self, runs: Sequence[tuple[RunView, EarlierRun]], now: float) -> None:
        """Show runs that are in progress, each with an earlier one of its graph.

        ``now``: by the clock of ``Event.at``.
        """

    def end(self, view: RunView) -> None:
        """Show how a run has ended."""

    def stop(self) -> None:
        """Free the terminal: no run is in progress."""


class _Nothing:
    """A display where there is no standard error."""

    moves = False

    def show(self, *_: object) -> None: ...

    end = stop = show


def _display_on(file: TextIO | None) -> _Display:
    """What suits the output. Imports rich for a terminal and for a notebook."""
    is_notebook = file is None and "ipykernel" in sys.modules
    file = sys.stderr if file is None else file
    if file is None:  # as under pythonw
        return _Nothing()
    if not (is_notebook or file.isatty()):
        return Lines(file)
    try:
        module: Any = importlib.import_module("taskiq_flow.listeners.terminal")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "rich":
            raise
        raise ConfigurationError(
            "Progress() on a terminal needs rich, which is not installed; install the extra "
            "progress: pip install 'taskiq-flow[progress]'"
        ) from error
    display: _Display | None = module.display_on(file)
    return Lines(file) if display is None else display
