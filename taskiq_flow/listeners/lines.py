"""Progress where the output is no terminal: a line for each change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import TextIO

from taskiq_flow.listeners.texts import counted, error_text, node_text, other_errors, run_text
from taskiq_flow.previews import duration, one_line
from taskiq_flow.views.node_view import NodeView
from taskiq_flow.views.run_view import RunView
from taskiq_flow.views.time_left import EarlierRun

MOST_LINES = 20
"""Nodes of which a line is written at one time. Failed ones go first; others are counted."""

_BETWEEN_COUNTS = 1.0
"""Seconds between two lines about a mapped node; later on, a twentieth of its time so far."""

_LONGEST_BETWEEN_COUNTS = 30.0


class Lines:
    """Writes what has changed of a run since it was last shown. Needs no package."""

    moves = False

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._shown: dict[str, _Shown] = {}
        self._names_runs = False  # from when several are in progress

    def show(self, runs: Sequence[tuple[RunView, EarlierRun]], now: float) -> None:
        """Write what has changed."""
        self._names_runs |= len(runs) > 1
        for view, _ in runs:
            self._write(view, self._changes(view, now))

    def end(self, view: RunView) -> None:
        """Write what has changed, and how the run has ended."""
        lines = self._changes(view, view.at or 0.0)
        reason = f": {error_text(view.error)}" if view.error else ""
        lines.append(f"run {one_line(view.run_id)}: {run_text(view)}{reason}")
        self._write(view, lines)
        self._shown.pop(view.run_id, None)

    def stop(self) -> None:
        """Nothing more is shown for now."""

    def _changes(self, view: RunView, now: float) -> list[str]:
        shown = self._shown.get(view.run_id)
        lines = []
        if shown is None or shown.sessions != view.sessions:
            shown = self._shown[view.run_id] = _Shown(view.sessions)
            lines.append(f"run {one_line(view.run_id)}: {counted(len(view.nodes), 'node')}")
        changed = shown.changes(view, now)
        if len(changed) > MOST_LINES:
            changed.sort(key=lambda node: node.state != "failed")
        for node in changed[:MOST_LINES]:
            lines.append(f"{one_line(node.name)}: {node_text(node)}")
            if node.is_ended:
                lines += other_errors(node)
        if left := changed[MOST_LINES:]:
            counts = Counter(node.state for node in left)
            text = ", ".join(f"{count} {state}" for state, count in counts.items())
            lines.append(f"and {counted(len(left), 'more node')}: {text}")
        return lines

    def _write(self, view: RunView, lines: Sequence[str]) -> None:
        if not lines:
            return
        head = f"{duration(view.seconds):>8}  "
        if self._names_runs:
            head += f"[{one_line(view.run_id)}] "
        text = "".join(f"{head}{line}\n" for line in lines)
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        self._file.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._file.flush()


class _Shown:
    """What was written of a run."""

    def __init__(self, sessions: int) -> None:
        self.sessions = sessions
        self._open: dict[str, None] = {}  # names of nodes that had not ended
        self._known = 0
        self._states: dict[str, tuple[object, ...]] = {}
        self._counted_at: dict[str, float] = {}

    def changes(self, view: RunView, now: float) -> list[NodeView]:
        """The nodes of which a line is to be written."""
        changed = []
        self._open |= dict.fromkeys(islice(view.nodes, self._known, None))
        self._known = len(view.nodes)
        for name in tuple(self._open):
            node = view.nodes[name]
            if node.state in ("pending", "queued"):
                continue
            if node.is_ended:
                del self._open[name]
            elif not self._is_news(node, now):
                continue
            changed.append(node)
        return changed

    def _is_news(self, node: NodeView, now: float) -> bool:
        """Whether a node that runs is not as it was when it was last written."""
        if (elements := node.elements) is None:
            state: tuple[object, ...] = (node.state, node.attempts)
        else:
            state = (elements.ended, elements.running, elements.known)
            since = 0.0 if node.ready_at is None else now - node.ready_at
            pause = min(max(_BETWEEN_COUNTS, since / 20), _LONGEST_BETWEEN_COUNTS)
            if now - self._counted_at.get(node.name, -pause) < pause:
                return False
        if self._states.get(node.name) == state:
            return False
        self._states[node.name] = state
        self._counted_at[node.name] = now
        return True
