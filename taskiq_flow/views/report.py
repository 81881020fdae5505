"""Reports why a run took so long: the times of its nodes, its critical path, one sentence."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TextIO

from taskiq_flow.previews import one_line
from taskiq_flow.views.node_times import NodeTimes, times_of
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

    ``seconds``: how long it took; ``ideal_seconds``: how long its critical path ran, which no
    number of workers can undercut. Nodes that run at once along it, as a generator and what maps
    over its items, count at most as long as the run took. ``parallelism``: how many nodes ran at
    once, on average. ``critical_path``: the names along the path that ran longest. ``nodes``: the
    times of each, by name; of a mapped node, the sums over its elements. ``sentence``: what held
    the run back.

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
      node  state      attempts  waiting  sending  running
    * load  completed         1    0.000    0.500    3.000
    * save  completed         1    0.000    0.000    0.500
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

    @classmethod
    def of(cls, view: RunView) -> Self:
        """The report of a run, or of what has happened of it so far."""
        path, seconds = view.critical_path, view.seconds
        ran = sum(node.running for node in view.nodes.values())
        return cls(
            view.run_id,
            view.status,
            seconds,
            min(seconds, sum(view.nodes[name].longest for name in path)),
            ran / seconds if seconds else 0.0,
            tuple(path),
            {name: times_of(node, view) for name, node in view.nodes.items()},
            _sentence(view),
        )

    def print(self, file: TextIO | None = None) -> None:
        """Write the report as text: to ``file``, otherwise to ``sys.stdout``."""
        for line in self._lines():
            print(line.rstrip(), file=sys.stdout if file is None else file)

    def to_svg(self) -> str:
        """A timeline as an SVG document: a row for each of the nodes that took longest, up to 200.

        It follows the reader's dark or light theme, and needs neither scripts nor fonts.
        """
        return svg_of(self)

    def to_trace(self) -> str:
        """The times of all nodes as JSON in Chrome's trace format, which ui.perfetto.dev opens."""
        return json.dumps(trace_of(self), ensure_ascii=True, separators=(",", ":"))

    def _lines(self) -> Iterator[str]:
        yield f"run {one_line(self.run_id)}: {self.status} in {self.seconds:.3f} s"
        yield one_line(self.sentence)
        yield ""
        longest = sorted(self.nodes, key=self._took, reverse=True)[:MOST_LISTED]
        rows = [self._row(name) for name in self.nodes if name in set(longest)]
        heads = ("", "node", "state", "attempts", "waiting", "sending", "running")
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
        return times.waiting + times.sending + times.running

    def _row(self, name: str) -> tuple[str, ...]:
        times = self.nodes[name]
        shown = one_line(name)
        shown += "" if times.elements is None else f" ×{times.elements}"
        seconds = [f"{part:.3f}" for part in (times.waiting, times.sending, times.running)]
        mark = "*" if name in self.critical_path else ""
        return (mark, shown, times.state, str(times.attempts), *seconds)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns: the first three to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        yield f"{texts[0]} {'  '.join([*texts[1:], *numbers])}"


def _sentence(view: RunView) -> str:
    """What took most of the time along the chain of nodes that ended last."""
    chain = _last_chain(view)
    if not chain:
        return "No node has ended yet."
    parts = {"waiting": 0.0, "sending": 0.0, "running": 0.0}
    along, since = {}, -math.inf
    for name in chain:
        along[name] = _parts_of(view.nodes[name], since)
        since = view.nodes[name].ended_at or since
        for part, seconds in along[name].items():
            parts[part] += seconds
    most = max(parts, key=parts.__getitem__)
    names, taken = _path_text(chain), f"{parts[most]:.3f} s of {view.seconds:.3f} s"
    if most == "waiting":
        return (
            f"{taken} passed while {names} waited to be sent: for a place under max_parallel=, in "
            "pauses between attempts, or for a cached result."
        )
    if most == "sending":
        return (
            f"{taken} passed while {names} waited for a worker; more workers, or fewer other "
            "tasks on them, would help."
        )
    longest = max(chain, key=lambda name: along[name]["running"])
    share = (
        "" if len(chain) == 1 else (f", of which {longest} took {along[longest]['running']:.3f} s")
    )
    return f"{taken} went into running {names}{share}."


def _last_chain(view: RunView) -> list[str]:
    """The node that ended last, before it the one for which it waited last, and so on."""
    ended = {name: n.ended_at for name, n in view.nodes.items() if n.ended_at is not None}
    if not ended:
        return []
    chain = [max(ended, key=ended.__getitem__)]
    while before := [name for name in view.edges.get(chain[-1], ()) if name in ended]:
        chain.append(max(before, key=ended.__getitem__))
    return chain[::-1]


def _parts_of(node: NodeView, since: float) -> dict[str, float]:
    """How long a node waited, was sent and ran, from when the node before it had ended.

    Of a mapped node: the element that ran longest. What is left of its time, its elements waited
    for others of them. Some of these may have ended before the node before it had.
    """
    if node.elements is None:
        return {"waiting": node.waiting, "sending": node.sending, "running": node.running}
    if node.ready_at is None or node.ended_at is None:
        return {"waiting": 0.0, "sending": 0.0, "running": node.longest}
    taken = max(0.0, node.ended_at - max(node.ready_at, since))
    ran = min(node.longest, taken)
    return {"waiting": taken - ran, "sending": 0.0, "running": ran}


def _path_text(names: Sequence[str]) -> str:
    if len(names) <= _MOST_NAMED:
        return " -> ".join(names)
    return f"{names[0]} -> {names[1]} -> … -> {names[-2]} -> {names[-1]}"
