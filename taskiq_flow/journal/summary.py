"""What a journal tells of a run without reading its events: its summary."""

from __future__ import annotations

import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from taskiq_flow.events import (
    ElementsKnown,
    NodeFailed,
    NodeFellBack,
    NodeRetried,
    NodeSkipped,
    Outcome,
    RunFinished,
    RunStarted,
)
from taskiq_flow.notes import COMPLETED, OTHER, SENT, WIDTH, Notes
from taskiq_flow.previews import printable
from taskiq_flow.views.node_view import ElementsView, NodeState, depth_of, name_of_map

RunState = Literal["running", "interrupted", "completed", "failed", "cancelled"]
"""``"interrupted"``: the run has not ended, and no engine has it any more."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run in a list of runs.

    ``name``: the graph's. ``started``, ``ended``: seconds since 1970 by the clock of the process
    that wrote them; ``ended`` is ``None`` while the run has not ended. ``seq``: the number of its
    last event. ``total``: how many nodes and elements are known, where a mapped node counts by its
    elements, and as one if it has failed or was skipped itself; ``completed``, ``failed`` and
    ``skipped`` of them have ended. ``host``, ``pid``: of the engine. ``parent``: the run of which
    it is a rerun. ``is_resumable``: whether its values are in the journal. ``owner``: whoever has
    its lease, which is valid for ``lease_left`` more seconds unless it is renewed. ``tags``: of the
    engines that have run it.

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
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", tuple(self.tags))  # a journal may have read a list


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a run before its first event."""

    name: str | None = None
    parent: str | None = None
    is_resumable: bool = True
    tags: tuple[str, ...] = ()


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
        self._elements = defaultdict[str, ElementsView](ElementsView)  # by mapped node
        self._open: set[str] = set()  # mapped nodes of which not all elements are known
        self._in_flight: set[str] = set()  # elements of these
        self._is_continued = False
        self._completed_at: float | None = None  # in an earlier session; nothing has run since
        self._is_plain = False  # it is known that no node is mapped
        self._tags = head.tags
        self._offset: float | None = None  # between ``Event.at`` and ``started`` or ``ended``
        self._total = self._completed = self._failed = self._skipped = 0

    def go_on_after(self, earlier: RunSummary) -> None:
        """Continue a run of which this is the summary."""
        self._is_continued = True
        if earlier.status == "completed":
            self._completed_at = earlier.ended
        self.seq, self.started = earlier.seq, earlier.started or self.started
        name = earlier.name if self._head.name is None else self._head.name
        self._head = replace(self._head, name=name, parent=earlier.parent)
        self._tags = earlier.tags
        self._total, self._completed = earlier.total, earlier.completed
        self._failed, self._skipped = earlier.failed, earlier.skipped

    def apply(self, notes: Notes, seq: int) -> None:
        """Take in the next events, of which there is one at least. ``seq``: of the last one."""
        self.seq = seq
        kinds = notes[::WIDTH]
        if self._completed_at is not None and _tell_of_work(notes):
            self._completed_at = None
        if self._is_plain and OTHER not in kinds:
            self._completed += kinds.count(COMPLETED)
            return
        for kind, attempt, event in zip(kinds, notes[2::WIDTH], notes[3::WIDTH], strict=True):
            if kind == OTHER:
                if (apply := self._APPLY.get(type(event))) is not None:
                    apply(self, event)
            elif kind == COMPLETED:
                self._complete(attempt.node)
            elif kind == SENT:
                self._send(attempt.node)

    def _send(self, node: Any) -> None:
        """An element is seen with its first attempt; in a resumed run, it may have had others."""
        if node.index is None or not self._open:
            return
        name, whole = node.task_name, name_of_map(node.task_name)
        if whole in self._open and name not in self._in_flight:
            self._in_flight.add(name)
            self._elements[whole].see()

    def _complete(self, node: Any) -> None:
        self._completed += 1
        if node.index is not None:
            elements = self._elements[name_of_map(node.task_name)]
            elements.end("completed", is_seen=self._was_seen(node.task_name))

    def _was_seen(self, name: str) -> bool:
        """Whether an element that has ended was counted when it was sent."""
        if not self._in_flight or name not in self._in_flight:
            return False
        self._in_flight.remove(name)
        return True

    def _finish(self, event: RunFinished) -> None:
        self._outcome = event.outcome
        if self._completed_at is not None and event.outcome == "completed":
            self._ended = self._completed_at  # a resume that ran nothing takes no time
            return
        ended = time.time() if self._offset is None else event.at + self._offset
        self._ended = max(self.started, ended)  # an engine's clock may be behind an earlier one's

    def _begin(self, event: RunStarted) -> None:
        """An engine begins, or goes on: it tells once more of what earlier ones have completed."""
        if self._head.name is None:
            self._head = replace(self._head, name=event.name)
        self._tags = tuple(dict.fromkeys((*self._tags, *event.tags)))
        # A run has taken as long as its events say, whenever they are written.
        self._offset = (event.time if self._is_continued else self.started) - event.at
        self._levels = dict(event.mapped)
        self._open = set(event.mapped)
        self._in_flight.clear()
        self._elements.clear()
        self._elements |= {name: ElementsView(levels) for name, levels in event.mapped.items()}
        self._is_plain = not event.mapped
        self._total = len(event.task_names) - len(event.mapped)
        self._completed = self._failed = self._skipped = 0

    def _count_missing(self, event: NodeFailed | NodeSkipped) -> None:
        """A node or an element has no result. A list that will have no elements counts as one."""
        if isinstance(event, NodeFailed):
            self._failed += 1
        else:
            self._skipped += 1
        name = event.task_name
        if event.index is not None:
            elements, depth = self._elements[name_of_map(name)], depth_of(name)
        elif name in self._elements:
            elements, depth = self._elements[name], 0
        else:
            return
        if depth < elements.levels:
            elements.tell_missing(depth)
        state: NodeState = "failed" if isinstance(event, NodeFailed) else "skipped"
        elements.end(state, is_seen=self._was_seen(name))

    def _known(self, event: ElementsKnown) -> None:
        """A list of elements, or one of lists, which are counted when they are known."""
        name = event.task_name
        whole = name if name in self._levels else name_of_map(name)
        elements = self._elements[whole]
        elements.tell(0 if whole == name else depth_of(name), event.count)
        if elements.are_all_known:
            self._open.discard(whole)

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
            tags=tuple(map(printable, self._tags)),
        )

    _APPLY: ClassVar[Mapping[type, Callable[[SummaryWriter, Any], None]]] = {
        RunStarted: _begin,
        NodeRetried: _send,
        NodeFellBack: _send,
        NodeFailed: _count_missing,
        NodeSkipped: _count_missing,
        ElementsKnown: _known,
        RunFinished: _finish,
    }


def _tell_of_work(notes: Notes) -> bool:
    """Whether something was sent, or has a result that the journal did not have."""
    return any(
        kind == SENT
        or (kind == COMPLETED and attempt.source != "journal")
        or isinstance(event, NodeRetried | NodeFellBack)
        for kind, attempt, event in zip(
            notes[::WIDTH], notes[2::WIDTH], notes[3::WIDTH], strict=True
        )
    )
