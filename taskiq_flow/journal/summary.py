"""What a journal tells of a run without reading its events: its summary."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from taskiq_flow.events import (
    ElementsKnown,
    Event,
    NodeBegan,
    NodeCompleted,
    NodeFailed,
    NodeSkipped,
    NodeStarted,
    Outcome,
    RunFinished,
    RunStarted,
)
from taskiq_flow.previews import printable
from taskiq_flow.views.node_view import ElementsView, depth_of, name_of_map

RunState = Literal["running", "interrupted", "completed", "failed", "cancelled"]
"""``"interrupted"``: the run has not ended, and no engine has it any more."""


_FREQUENT = frozenset({NodeStarted, NodeBegan, NodeCompleted})
"""Most events. Those of plain nodes change no more than one count."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run in a list of runs.

    ``name``: the graph's. ``started``, ``ended``: seconds since 1970 by the clock of the process
    that wrote them; ``ended`` is ``None`` while the run has not ended. ``seq``: the number of its
    last event. ``total``: how many nodes and elements are known, where a mapped node counts by its
    elements, or as one if it has failed or was skipped as a whole; ``completed``, ``failed`` and
    ``skipped`` of them have ended. ``host``, ``pid``: of the engine. ``parent``: the run of which
    it is a rerun. ``is_resumable``: whether its values are in the journal. ``owner``: whoever has
    its lease, which is valid for ``lease_left`` more seconds unless it is renewed.

    >>> journal = MemoryJournal()
    >>> dag = DAGBuilder("letters").node(str.upper, inputs=["text"]).build()
    >>> engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
    >>> _ = engine.execute_sync({"text": "ebb"}, run_id="r1")
    >>> (run,) = asyncio.run(RunReader(journal).runs())
    >>> run.name, run.status, run.completed, run.total
    ('letters', 'completed', 1, 1)
    """

    run_id: str
    status: RunState
    name: str | None = None
    started: float = 0.0
    ended: float | None = None
    seq: int = 0
    total: int = 0
    completed: int = 0
    failed: int = 0
    skipped: int = 0
    host: str = ""
    pid: int = 0
    parent: str | None = None
    is_resumable: bool = True
    owner: str | None = None
    lease_left: float = 0.0


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a run before its first event."""

    name: str | None = None
    parent: str | None = None
    is_resumable: bool = True


class SummaryWriter:
    """Keeps the summary of a run that is in progress. ``seq``: of its last event."""

    def __init__(self, run_id: str, head: Head) -> None:
        self._run_id = run_id
        self._head = head
        self._host, self._pid = socket.gethostname(), os.getpid()
        self.started = time.time()
        self.seq = 0
        self._outcome: Outcome | None = None
        self._ended: float | None = None
        self._levels: dict[str, int] = {}
        self._elements: dict[str, ElementsView] = {}
        self._is_continued = False
        self._is_plain = False  # it is known that no node is mapped
        self._offset: float | None = None  # between ``Event.at`` and ``started`` or ``ended``
        self._total = self._completed = self._failed = self._skipped = 0

    def go_on_after(self, earlier: RunSummary) -> None:
        """Continue a run of which this is the summary."""
        self._is_continued = True
        self.seq, self.started = earlier.seq, earlier.started or self.started
        name = earlier.name if self._head.name is None else self._head.name
        self._head = replace(self._head, name=name, parent=earlier.parent)
        self._total, self._completed = earlier.total, earlier.completed
        self._failed, self._skipped = earlier.failed, earlier.skipped

    def apply(self, events: Sequence[Event]) -> None:
        """Take in the next events, of which there is one at least."""
        kinds = list(map(type, events))
        if self._is_plain and _FREQUENT.issuperset(kinds):
            self._completed += kinds.count(NodeCompleted)
        else:
            for kind, event in zip(kinds, events, strict=True):
                if (apply := self._APPLY.get(kind)) is not None:
                    apply(self, event)
        self.seq = events[-1].seq

    def _complete(self, event: NodeCompleted) -> None:
        self._completed += 1
        if event.index is not None:
            self._elements_of(event.task_name).end("completed")

    def _finish(self, event: RunFinished) -> None:
        self._outcome = event.outcome
        self._ended = time.time() if self._offset is None else event.at + self._offset

    def _begin(self, event: RunStarted) -> None:
        """An engine begins, or goes on: it tells once more of what earlier ones have completed."""
        # A run has taken as long as its events say, whenever they are written.
        self._offset = (event.time if self._is_continued else self.started) - event.at
        self._levels = dict(event.mapped)
        self._elements = {name: ElementsView(levels) for name, levels in event.mapped.items()}
        self._is_plain = not event.mapped
        self._total = len(event.task_names) - len(event.mapped)
        self._completed = self._failed = self._skipped = 0

    def _elements_of(self, name: str) -> ElementsView:
        """The elements of a mapped node, given the name of one of them, or of a list of them."""
        return self._elements.setdefault(name_of_map(name), ElementsView())

    def _count_missing(self, event: NodeFailed | NodeSkipped) -> None:
        """A node or an element has no result. A list that will have no elements counts as one."""
        if isinstance(event, NodeFailed):
            self._failed += 1
        else:
            self._skipped += 1
        name = event.task_name
        if event.index is not None:
            elements, depth = self._elements_of(name), depth_of(name)
        elif name in self._elements:
            elements, depth = self._elements[name], 0
        else:
            return
        if depth < elements.levels:
            elements.tell_missing(depth)
        elements.end("failed" if isinstance(event, NodeFailed) else "skipped")

    def _known(self, event: ElementsKnown) -> None:
        """A list of elements, or one of lists, which are counted when they are known."""
        name = event.task_name
        if name in self._levels:
            self._elements[name].tell(0, event.count)
        else:
            self._elements_of(name).tell(depth_of(name), event.count)

    def summary(self) -> RunSummary:
        """The summary after the events so far."""
        total = self._total + sum(elements.known for elements in self._elements.values())
        return RunSummary(
            self._run_id,
            self._outcome or "running",
            None if self._head.name is None else printable(self._head.name),
            self.started,
            self._ended,
            self.seq,
            total,
            self._completed,
            self._failed,
            self._skipped,
            self._host,
            self._pid,
            None if self._head.parent is None else printable(self._head.parent),
            self._head.is_resumable,
        )

    _APPLY: ClassVar[Mapping[type, Callable[[SummaryWriter, Any], None]]] = {
        RunStarted: _begin,
        NodeCompleted: _complete,
        NodeFailed: _count_missing,
        NodeSkipped: _count_missing,
        ElementsKnown: _known,
        RunFinished: _finish,
    }
