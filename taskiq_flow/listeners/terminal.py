"""Progress on a terminal or in a notebook: a picture that changes in place. Imports rich."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from rich.console import Console, ConsoleDimensions, Group
from rich.live import Live
from rich.text import Text

from taskiq_flow.drawing.theme import SIGNS
from taskiq_flow.listeners.texts import (
    counted,
    elements_text,
    error_text,
    failed_elements,
    first_error_text,
    left_text,
    other_errors,
    run_text,
    share_done,
)
from taskiq_flow.previews import duration, one_line
from taskiq_flow.views.node_view import NodeView
from taskiq_flow.views.run_view import RunView
from taskiq_flow.views.time_left import EarlierRun, seconds_left

MOST_NODES = 8
"""Nodes of a run that are shown while it runs, and failed ones that are shown at its end."""

_MOST_RUNS = 4
_SHORTEST_BAR = 5
_SHORTEST_NAME = 6
_LONGEST_BAR = 40
_NAME_SHARE = 3
"""Names take up to this part of the width."""

STYLES = {
    "completed": "green",
    "failed": "bold red",
    "interrupted": "bold red",
    "cancelled": "yellow",
    "running": "cyan",
    "queued": "dim",
    "skipped": "dim",
}
"""The style of each state."""

_IN_ASCII = str.maketrans({"✓": "+", "✗": "x", "⊘": "-", "●": "*", "○": "o", "━": "=", "…": "."})


def display_on(file: TextIO) -> Terminal | None:
    """A display on a terminal or in a notebook; ``None`` where nothing can change in place."""
    console = Console(file=file)
    if console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal):
        return Terminal(console)
    return None


class Terminal:
    """Shows runs in place, and leaves a few lines of each that has ended."""

    moves = True

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None

    def show(self, runs: Sequence[tuple[RunView, EarlierRun]], now: float) -> None:
        """Show the runs that are in progress in place of those that were shown before."""
        self._take_size()
        room = max(1, min(MOST_NODES, self._console.height // min(len(runs), _MOST_RUNS) - 4))
        lines = [line for run in runs[:_MOST_RUNS] for line in self._lines_of(*run, now, room)]
        if left := runs[_MOST_RUNS:]:
            lines.append(Text(f"and {counted(len(left), 'more run')}", style="dim"))
        self._begun().update(self._fitting(lines), refresh=True)

    def end(self, view: RunView) -> None:
        """Leave how a run has ended above those that are in progress."""
        self._take_size()
        for line in self._last_lines(view):
            self._console.print(self._writable(line))

    def stop(self) -> None:
        """Remove the picture. The cursor is visible again."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _take_size(self) -> None:
        """Be as large as this terminal is now. rich would ask for the size of a standard stream."""
        if "COLUMNS" in os.environ or "LINES" in os.environ:
            return
        with contextlib.suppress(OSError, ValueError):  # of a notebook
            columns, lines = os.get_terminal_size(self._console.file.fileno())
            if columns and lines:
                self._console.size = ConsoleDimensions(columns, lines)

    def _begun(self) -> Live:
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                # Prints to a pipe stay prints to a pipe; those to this terminal go above.
                redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            )
            self._live.start()
            weakref.finalize(self, self._live.stop)  # also where a process ends within a run
        return self._live

    def _fitting(self, lines: Iterable[Text]) -> Group:
        """The lines, each cut to one line of the terminal."""
        fitting = []
        for line in lines:
            line.truncate(self._console.width, overflow="ellipsis")
            fitting.append(self._writable(line))
        return Group(*fitting)

    def _writable(self, line: Text) -> Text:
        """The line in signs that the terminal's encoding has."""
        if not self._console.encoding.lower().startswith("utf"):
            shown = line.plain.translate(_IN_ASCII).encode("ascii", "backslashreplace").decode()
            return Text(shown)
        return line

    def _lines_of(
        self, view: RunView, earlier: EarlierRun, now: float, room: int
    ) -> Iterator[Text]:
        ended = sum(node.is_ended for node in view.nodes.values())
        facts = [f"{ended}/{len(view.nodes)}"]
        if failed := view.counts.get("failed"):
            facts.append(f"{failed} failed")
        if view.started_at is not None:
            facts.append(duration(max(0.0, now - view.started_at)))
        left = seconds_left(view, now, earlier)
        facts += [] if left is None else [left_text(left)]
        if len("  ".join(facts)) > self._console.width - _SHORTEST_NAME - 4 and left is not None:
            del facts[-2]  # the time that has passed
        yield self._bar_line("running", view.run_id, share_done(view), facts, 0)
        nodes = [node for node in view.nodes.values() if node.state in ("running", "queued")]
        nodes.sort(key=_is_shown_first)
        for node in nodes[:room]:
            yield self._line_of(node, now)
        if hidden := nodes[room:]:
            running = sum(node.state == "running" for node in hidden)
            counts = ((running, "running"), (len(hidden) - running, "queued"))
            text = ", ".join(f"{count} {state}" for count, state in counts if count)
            yield Text(f"  … and {text}", style="dim")

    def _line_of(self, node: NodeView, now: float) -> Text:
        elements = node.elements
        if elements is not None:
            share = elements.ended / elements.known if elements.are_all_known else None
            facts = [elements_text(elements)]
            facts += [f"{elements.running} running"] if elements.running else []
            return self._bar_line(node.state, node.name, share, facts, 2)
        since = node.sent_at if node.began_at is None else node.began_at
        facts = [node.state, duration(max(0.0, now - (now if since is None else since)))]
        facts += [f"attempt {node.attempts}"] if node.attempts > 1 else []
        facts += [error_text(node.error)] if node.error else []
        line = self._name_of(node.state, node.name, 2)
        return line.append(f"  {'  '.join(facts)}", style="dim" if node.state == "queued" else "")

    def _bar_line(
        self, state: str, name: str, share: float | None, facts: Sequence[str], indent: int
    ) -> Text:
        tail = "  ".join(facts)
        line = self._name_of(state, name, indent, len(tail))
        room = min(_LONGEST_BAR, self._console.width - line.cell_len - len(tail) - 4)
        if share is not None and room >= _SHORTEST_BAR:
            done = int(room * share)
            line.append("  ").append("━" * done, style="green")
            rest = " " if self._console.no_color else "━"
            line.append(rest * (room - done), style="bright_black")
        return line.append(f"  {tail}")

    def _name_of(self, state: str, name: str, indent: int, beside: int = 0) -> Text:
        """A sign and a name, which is cut to leave room for so many columns beside it."""
        shown = Text(one_line(name), style="" if indent else "bold")
        width = self._console.width
        room = min(width // _NAME_SHARE, width - beside - 4) - indent
        shown.truncate(max(room, _SHORTEST_NAME), overflow="ellipsis")
        return (
            Text(" " * indent)
            .append(SIGNS[state], style=STYLES[state])
            .append(" ")
            .append_text(shown)
        )

    def _last_lines(self, view: RunView) -> Iterator[Text]:
        line = self._name_of(view.status, view.run_id, 0)
        yield line.append(f"  {run_text(view)}")
        nodes = view.nodes.values()
        failed = [node for node in nodes if node.state == "failed" or failed_elements(node)]
        for node in failed[:MOST_NODES]:
            line = self._name_of(node.state, node.name, 2)
            counts = f"{elements_text(node.elements)}; " if node.elements is not None else ""
            yield line.append(f"  {counts}{first_error_text(node)}")
            yield from (Text(f"    {text}") for text in other_errors(node))
        if hidden := failed[MOST_NODES:]:
            yield Text(f"  … and {len(hidden)} more failed", style="dim")
        if view.error and not failed and view.status != "cancelled":
            yield Text(f"  {error_text(view.error)}")


def _is_shown_first(node: NodeView) -> tuple[bool, bool, float]:
    """Mapped nodes first, then nodes in execution, those that began first at the top."""
    at = node.sent_at if node.began_at is None else node.began_at
    return node.elements is None, node.state != "running", math.inf if at is None else at
