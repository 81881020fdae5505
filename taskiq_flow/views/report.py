"""Reports why a run took so long: the times of its nodes, its critical path, one sentence."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, TextIO

from taskiq_flow.drawing.texts import columns, cut
from taskiq_flow.previews import one_line
from taskiq_flow.views.critical_path import Stage, critical_path, stage_of
from taskiq_flow.views.node_times import NodeTimes, count_text, times_of
from taskiq_flow.views.node_view import NodeView
from taskiq_flow.views.run_view import RunView
from taskiq_flow.views.timeline import svg_of
from taskiq_flow.views.trace import trace_of

MOST_LISTED = 20
"""Nodes that are printed: those that took longest."""

_MOST_NAMED = 5
"""Nodes of a path that a sentence names."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """Where the time of a run went, as far as its view knows.

    ``critical_path``: the names along the path on which nodes ran longest, as of
    ``RunView.critical_path``. ``seconds``: how long the run took; ``ideal_seconds``: how long its
    critical path ran, which no number of workers can undercut. Of a mapped node on it, the element
    that ran longest counts, as far as it ran after the node before had ended. ``parallelism``: how
    many nodes ran at once, on average. ``nodes``: the times of each, by name; of a mapped node, the
    sums over its elements. ``sentence``: whether the run was held back by running the critical
    path, or by waiting. ``sessions``: how many engines have run it; all times are of the last one.
    ``on_error``: of the last one.

    >>> view = RunView()
    >>> view.apply(RunStarted("r1", 0.0, ("load", "save"), edges={"save": ("load",)}))
    >>> view.apply(NodeStarted("r1", 0.0, "load", "r1:load:1"))
    >>> view.apply(NodeBegan("r1", 0.5, "load", "r1:load:1", "host:7"))
    >>> view.apply(NodeCompleted("r1", 3.5, "load", "r1:load:1", None))
    >>> view.apply(NodeStarted("r1", 3.5, "save", "r1:save:1"))
    >>> view.apply(NodeBegan("r1", 3.5, "save", "r1:save:1", "host:7"))
    >>> view.apply(NodeCompleted("r1", 4.0, "save", "r1:save:1", None))
    >>> view.apply(RunFinished("r1", 4.0, "completed", None))
    >>> report = RunReport.of(view)
    >>> report.seconds, report.ideal_seconds, report.critical_path
    (4.0, 3.5, ('load', 'save'))
    >>> report.print()
    run r1: completed in 4.000 s
    3.500 s of 4.000 s went into running load -> save, of which load took 3.000 s.
    <BLANKLINE>
      node  state      attempts  waiting  queued  running
    * load  completed         1    0.000   0.500    3.000
    * save  completed         1    0.000   0.000    0.500
    <BLANKLINE>
    * on the critical path; times in seconds; 0.9 nodes ran at once on average
    """

    run_id: str
    status: str
    seconds: float
    ideal_seconds: float
    parallelism: float
    critical_path: tuple[str, ...]
    nodes: Mapping[str, NodeTimes]
    sentence: str
    sessions: int = 1
    on_error: str | None = None

    @property
    def details(self) -> str:
        """What follows ``seconds`` in texts: the session and ``on_error``, unless usual."""
        session = f" of session {self.sessions}" if self.sessions > 1 else ""
        is_usual = self.on_error in (None, "raise")
        return session if is_usual else f'{session}, with on_error="{self.on_error}"'

    @classmethod
    def of(cls, view: RunView) -> Self:
        """The report of a run, or of what has happened of it so far."""
        if not isinstance(view, RunView):
            raise TypeError(
                f"RunReport.of() was given a {type(view).__name__}; give it a RunView: one that "
                "has applied the events of a run, or await RunReader(journal).view(run_id)"
            )
        path, seconds = critical_path(view.nodes, view.edges), view.seconds
        times = {name: times_of(node, view) for name, node in view.nodes.items()}
        ran = sum(each.running for each in times.values())
        return cls(
            view.run_id,
            view.status,
            seconds,
            sum(stage.running for stage in path),
            ran / seconds if seconds else 0.0,
            tuple(stage.name for stage in path),
            times,
            _sentence(view, path),
            view.sessions,
            view.on_error,
        )

    def print(self, file: TextIO | None = None) -> None:
        """Write the report as text: to ``file``, otherwise to ``sys.stdout``."""
        for line in self.lines():
            print(line, file=sys.stdout if file is None else file)

    def to_svg(self) -> str:
        """A timeline as an SVG document: a row for each of the nodes that took longest, up to 200.

        It follows the reader's dark or light theme, and needs neither scripts nor fonts.
        """
        return svg_of(self)

    def to_trace(self) -> str:
        """The times of all nodes as JSON in Chrome's trace format, which ui.perfetto.dev opens."""
        return json.dumps(trace_of(self), ensure_ascii=True, separators=(",", ":"))

    def lines(self, longest_name: float = math.inf) -> Iterator[str]:
        """The report as lines of text. Names are cut to so many columns."""
        took = f"{self.seconds:.3f} s{self.details}"
        yield f"run {one_line(self.run_id)}: {self.status} in {took}"
        yield one_line(self.sentence)
        yield ""
        longest = sorted(self.nodes, key=self._took, reverse=True)[:MOST_LISTED]
        rows = [self._row(name, longest_name) for name in self.nodes if name in set(longest)]
        heads = ("", "node", "state", "attempts", "waiting", "queued", "running")
        yield from _table([heads, *rows])
        yield ""
        if left := len(self.nodes) - len(longest):
            yield f"{left} more {'node' if left == 1 else 'nodes'} took less time"
        yield (
            "* on the critical path; times in seconds; "
            f"{self.parallelism:.1f} nodes ran at once on average"
        )

    def _took(self, name: str) -> float:
        times = self.nodes[name]
        return times.waiting + times.queued + times.running

    def _row(self, name: str, longest_name: float) -> tuple[str, ...]:
        times = self.nodes[name]
        count = count_text(times)
        shown = cut(one_line(name), longest_name - len(count)) + count
        seconds = [f"{part:.3f}" for part in (times.waiting, times.queued, times.running)]
        mark = "*" if name in self.critical_path else ""
        return (mark, shown, times.state, str(times.attempts), *seconds)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns: the first three to the left, numbers to the right."""
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        texts = [
            cell + " " * (width - columns(cell))
            for cell, width in zip(row[:3], widths, strict=False)
        ]
        numbers = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        yield f"{texts[0]} {'  '.join([*texts[1:], *numbers])}".rstrip()


_WAITS: tuple[Literal["waiting", "queued"], ...] = ("waiting", "queued")
"""The parts of a time in which nothing runs."""


def _sentence(view: RunView, path: Sequence[Stage]) -> str:
    """In what most of the time passed: in running the critical path, or in waiting.

    A run takes longer than its critical path where nodes beside that have waited.
    """
    if not path:
        return "No node has ended yet."
    names, own = _path_text([stage.name for stage in path]), _sums(path)
    running = own["running"]
    left = max(0.0, view.seconds - running - sum(own[part] for part in _WAITS))
    others = _sums(_beside(path, view))
    cause = max(_WAITS, key=others.__getitem__)
    beside = {part: left if part == cause and others[part] else 0.0 for part in _WAITS}
    part = max(_WAITS, key=lambda part: own[part] + beside[part])
    waited, of_all = own[part] + beside[part], f"of {view.seconds:.3f} s"
    if waited > running:
        is_own = own[part] >= beside[part]
        who = names if is_own else f"{names} or nodes beside it"
        redelivered = (own if is_own else others)["redelivered"]
        if part == "queued" and redelivered > waited / 2:
            return (
                f"{redelivered:.3f} s {of_all} were lost in executions of {who} whose worker was "
                "killed or cut off, until another one began the task."
            )
        return f"{waited:.3f} s {of_all} {_wait_text(part, who, view, is_one=is_own)}"
    if left > running and not beside[cause]:
        if (found := _in_flight(view)) is not None:
            name, seconds = found
            return f"{seconds:.3f} s {of_all} have passed since {name} was sent; it goes on."
        return f"{left:.3f} s {of_all} passed before, between and after the times of {names}."
    longest = max(path, key=lambda stage: stage.running)
    node = view.nodes[longest.name]
    failed = _failed_element(node, longest.running)
    share = "" if len(path) == 1 else f", of which {longest.name} took {longest.running:.3f} s"
    if failed is not None and failed.error is not None:
        share = f", of which {failed.name} took {longest.running:.3f} s until it failed with "
        share += failed.error["type"]
    elif (found := _held_back_by(longest, view)) is not None:
        taker, queued = found
        share += f" while elements of {taker} were queued for {queued:.3f} s: tasks waited for "
        share += _place_text(view)
    return f"{running:.3f} s {of_all} went into running {names}{share}{_again_text(node)}."


def _failed_element(node: NodeView, seconds: float) -> NodeView | None:
    """The element that ran longest of a mapped node, if it failed."""
    records = () if node.elements is None else node.elements.records.values()
    failed = [each for each in records if each.state == "failed" and each.running >= seconds]
    return max(failed, key=lambda each: each.running, default=None)


def _held_back_by(stage: Stage, view: RunView) -> tuple[str, float] | None:
    """The map over the items of a generator that was queued for most of the generator's time.

    A generator waits where its items are not taken, and that is part of how long it ran. Returns
    the map's name, and for how many of these seconds one of its elements at least was queued.
    """
    generator = view.nodes[stage.name]
    if generator.elements is not None or generator.ended_at is None:
        return None
    takers = [
        (min(node.elements.queueing, stage.running), name)
        for name, node in view.nodes.items()
        if stage.name in view.edges.get(name, ())
        and node.elements is not None
        and node.began_at is not None
        and node.began_at < generator.ended_at
    ]
    queued, name = max(takers, default=(0.0, ""))
    return (name, queued) if queued > stage.running / 2 else None


def _in_flight(view: RunView) -> tuple[str, float] | None:
    """The node that is in flight for longest, and for how many seconds it is."""
    since = [
        (node.sent_at, node.name)
        for node in view.nodes.values()
        if node.state in ("queued", "running") and node.sent_at is not None
    ]
    if not since or view.at is None:
        return None
    sent_at, name = min(since)
    return name, view.at - sent_at


def _again_text(node: NodeView) -> str:
    """What a sentence says of a node that ran mostly in attempts that were repeated."""
    again = sum(end - (sent if began is None else began) for sent, began, end in node.earlier)
    if again <= node.running / 2 or node.error is None:
        return ""
    return f", {again:.3f} s of that in attempts that were repeated, after a {node.error['type']}"


def _wait_text(part: Literal["waiting", "queued"], who: str, view: RunView, *, is_one: bool) -> str:
    """How these nodes waited, and for what. ``is_one``: whether the text names one thing."""
    if part == "waiting":
        return (
            f"went into waiting before {who} could be sent: for a place under max_parallel=, in "
            "pauses between attempts, for a cached result, or for items of a source."
        )
    were = "was" if is_one else "were"
    return f"passed while {who} {were} queued: tasks waited for {_place_text(view)}."


def _place_text(view: RunView) -> str:
    """What queued tasks wait for."""
    if view.in_memory:
        return (
            "a thread of the InMemoryBroker, which has 4 unless it is made with "
            "sync_tasks_pool_size=, for a process under in_process(limit=), or, if they are async, "
            "for the event loop"
        )
    return "a worker; more workers, or fewer other tasks on them, would help"


def _sums(stages: Sequence[Stage]) -> dict[str, float]:
    """How long these have waited, were queued and ran, and which part a redelivery took."""
    parts = (*_WAITS, "running", "redelivered")
    return {part: sum(getattr(stage, part) for stage in stages) for part in parts}


def _beside(path: Sequence[Stage], view: RunView) -> list[Stage]:
    """The times of the nodes that are not on the path."""
    on_path = {stage.name for stage in path}
    return [
        stage_of(node)
        for name, node in view.nodes.items()
        if node.ended_at is not None and name not in on_path
    ]


def _path_text(names: Sequence[str]) -> str:
    if len(names) <= _MOST_NAMED:
        return " -> ".join(names)
    return f"{names[0]} -> {names[1]} -> … -> {names[-2]} -> {names[-1]}"
