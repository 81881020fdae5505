"""The state of one node, or of one element of a mapped node, as events tell it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from taskiq_flow.events import Outcome, Source
from taskiq_flow.previews import LONGEST_TEXT, preview

NodeState = Literal[
    "pending", "queued", "running", "completed", "failed", "skipped", "cancelled", "interrupted"
]
"""``"pending"``: it was not sent; ``"queued"``: its task was sent, and nobody has begun it or told
so; ``"cancelled"``: the run ended while it was in flight; ``"interrupted"``: its engine is gone."""

MOST_FAILURES = 1_000
"""Failed elements of a mapped node of which a record is held. Further ones are only counted."""

MOST_ATTEMPTS = 100
"""Earlier attempts of a node of which the moments are held, the last ones."""

Moments = tuple[float, float | None, float]
"""When an attempt was sent, begun (``None``: nobody told) and when it ended."""

_SMALL = {int, float, bool, type(None)}
"""Types of values that take no room."""


@dataclass(slots=True)
class NodeView:
    """One node, or one element of a mapped node, by the events so far.

    ``attempts``: how often its task was sent, with its fallback. ``worker``: the process that
    executes it or did, as ``host:pid``. ``error``: the last one, of a failure or of an attempt that
    was repeated: its ``type``, ``message`` and ``traceback``. ``source``: where its result came
    from. ``because_of``, ``reason``: of a node that was skipped. ``item``: a short text of what an
    element that failed takes of the lists that its node maps over.

    Times that have passed, in seconds: ``waiting`` since the last node that it depends on ended,
    in pauses between attempts included; ``queued`` from the sending of an attempt until a worker
    began it; ``running`` from then until it ended. Where nobody tells when a task begins, the time
    from its sending counts as ``running``. Moments, by the clock of ``Event.at``: ``ready_at``,
    ``sent_at`` and ``began_at`` of the last attempt, and ``ended_at``; ``earlier`` has the moments
    of the attempts before. An element has no ``ready_at``, and no time of waiting before its first
    attempt. ``redelivered``: the part of ``queued`` in which a worker had begun an attempt that
    another one then began, as the first was killed or cut off; of a mapped node, that of the
    element that lost most.

    ``was_completed_before``: the journal had its result. It has no moments then; its times are
    those of the earlier session, or zero in a rerun, which is another run.

    ``elements``: those of a mapped node. Its ``waiting``, ``queued`` and ``running`` are sums over
    those that have ended, ``sent_at`` and ``began_at`` are when the first one was sent and began,
    and ``ended_at`` is when the last one so far ended.

    >>> view = RunView()
    >>> view.apply(RunStarted("r1", 0.0, ("load",)))
    >>> view.apply(NodeStarted("r1", 0.5, "load", "r1:load:1"))
    >>> view.apply(NodeBegan("r1", 2.0, "load", "r1:load:1", worker="host:7"))
    >>> node = view.nodes["load"]
    >>> node.state, node.worker, node.waiting, node.queued
    ('running', 'host:7', 0.5, 1.5)
    """

    name: str
    state: NodeState = "pending"
    attempts: int = 0
    worker: str | None = None
    error: dict[str, str] | None = None
    source: Source | None = None
    because_of: tuple[str, ...] = ()
    reason: Literal["failure", "condition"] | None = None
    waiting: float = 0.0
    queued: float = 0.0
    running: float = 0.0
    redelivered: float = 0.0
    ready_at: float | None = None
    sent_at: float | None = None
    began_at: float | None = None
    ended_at: float | None = None
    earlier: tuple[Moments, ...] = ()
    elements: ElementsView | None = None
    was_completed_before: bool = False
    item: str | None = None
    _value: Any = None

    @property
    def is_kept(self) -> bool:
        """Whether its result was in the journal, that of each element: it took no time here."""
        if self.elements is None:
            return self.was_completed_before
        return 0 < self.elements.kept == self.elements.ended

    @property
    def has_run(self) -> bool:
        """Whether it was sent in this session, or has a result that the journal did not have."""
        if self.elements is None:
            is_new = self.state == "completed" and not self.was_completed_before
        else:
            is_new = self.elements.completed > self.elements.kept
        return is_new or self.sent_at is not None

    @property
    def preview(self) -> dict[str, Any] | None:
        """What is shown of its result: ``kind``, ``size``, ``text``, ``cut``; see ``to_dict``."""
        if self.state != "completed" or self.elements is not None:
            return None
        return self._value if isinstance(self._value, dict) else preview(self._value)

    @property
    def ended_itself(self) -> bool:
        """Whether a mapped node has failed or was skipped itself, whatever its elements did."""
        return self.elements is not None and (self.error is not None or self.reason is not None)

    @property
    def longest(self) -> float:
        """For how long it ran; of a mapped node, the element that ran longest."""
        return self.running if self.elements is None else self.elements.longest

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will become of it."""
        return self.state not in ("pending", "queued", "running", "interrupted")

    def note_engine(self, *, is_gone: bool) -> None:
        """Its engine is gone, or has it again: it is interrupted if it is in flight, or was so.

        So are the elements of a mapped node.
        """
        if self.elements is not None:
            for record in self.elements.records.values():
                before = record.state
                record.note_engine(is_gone=is_gone)
                self.elements.recount(before, record.state)
        if is_gone and self.state in ("queued", "running"):
            self.state = "interrupted"
        elif not is_gone and self.state == "interrupted":
            is_sent = self.elements is None and self.began_at is None
            self.state = "queued" if is_sent else "running"

    def send(self, at: float, attempt: int) -> None:
        """An attempt is sent."""
        self.state = "queued"
        self.attempts = attempt
        self.sent_at, self.began_at = at, None

    def send_again(self, at: float, attempt: int, ended_at: float) -> None:
        """Another attempt is sent. ``ended_at``: when the one before ended."""
        if self.sent_at is not None:
            self.close(ended_at)
            moments = (self.sent_at, self.began_at, ended_at)
            self.earlier = (*self.earlier[1 - MOST_ATTEMPTS :], moments)
        self.send(at, attempt)

    def begin(self, at: float, worker: str, attempt: int) -> None:
        """A worker has begun the attempt: another one than before, if one had begun it."""
        if attempt > self.attempts:  # noqa: PLR1730 - no call, as each node does it
            self.attempts = attempt
        since = self.sent_at
        if self.began_at is not None:
            since = self.began_at
            self.redelivered += at - since
        if since is not None:
            self.queued += at - since
        self.state, self.worker, self.began_at = "running", worker, at

    def close(self, at: float) -> None:
        """The attempt has ended, if there is one in flight."""
        since = self.sent_at if self.began_at is None else self.began_at
        if since is not None and self.state in ("queued", "running"):
            self.running += at - since

    def end(self, state: NodeState, at: float) -> None:
        """It has ended, with the attempt in flight if there is one."""
        self.close(at)
        self.state, self.ended_at = state, at

    def move_element(self, record: NodeView, before: NodeState, at: float) -> None:
        """An element of this mapped node is in flight now, in another state than before perhaps."""
        if self.elements is None:
            return
        if self.sent_at is None:
            self.sent_at = at
        if self.began_at is None:
            self.began_at = record.began_at
        self.elements.records[record.name] = record
        self.elements.recount(before, record.state)
        self.elements.note_queue(at)

    def end_element(self, record: NodeView, state: NodeState, at: float) -> None:
        """An element of this mapped node has ended."""
        if (elements := self.elements) is None:
            return
        elements.recount(record.state, state)
        record.end(state, at)
        elements.note_queue(at)
        elements.records.pop(record.name, None)
        if state == "failed" and elements.failed <= MOST_FAILURES:
            elements.records[record.name] = record
        self.waiting += record.waiting
        self.queued += record.queued
        self.running += record.running
        self.redelivered = max(self.redelivered, record.redelivered)
        elements.attempts += record.attempts
        if record.attempts > 1:
            elements.repeated += record.attempts - 1
        elements.longest = max(elements.longest, record.running)
        self.ended_at = at

    def finish_elements(self, outcome: Outcome, left: NodeState, at: float) -> None:
        """The run has ended, and so has each element of this mapped node.

        ``left``: the state of those whose end no event told.
        """
        if (elements := self.elements) is None:
            return
        for record in tuple(elements.records.values()):
            if not record.is_ended:
                self.end_element(record, left, at)
        if self.is_ended:
            return
        # If the levels were not told, nothing tells whether more elements would have come.
        are_known = elements.are_all_known or not elements.levels
        is_left = not are_known or elements.cancelled or elements.ended < elements.known
        if elements.failed and (outcome != "cancelled" or not is_left):
            self.state = "failed"
        elif outcome == "completed" or (elements.known and not is_left):
            self.state = "completed"
        elif elements.known:
            self.state = "cancelled"

    def keep(self, source: Source, result: object) -> None:
        """It has completed. What is shown of its result is kept, and not the result."""
        self.source, self._value = source, result
        if type(result) not in _SMALL and not (
            isinstance(result, str) and len(result) <= LONGEST_TEXT
        ):
            self._value = preview(result)


@dataclass(slots=True)
class ElementsView:
    """How many elements of a mapped node are in which state.

    ``are_all_known``: whether no more will come. ``records``: by name, the elements that are in
    flight, and the first 1,000 that failed; of others there is none. A list within lists that never
    came to be counts as one element. ``_lists``: by how many others they lie within, how many lists
    there are of which the length is not known.

    ``levels``: how many positions an ``index`` has; ``0`` if that was not told. ``longest``: the
    longest time in seconds for which an element ran. ``attempts``: of those that have ended, and
    ``repeated``: how many of these came after an element's first one. ``kept``: how many of the
    completed ones the journal had. ``queueing``: the seconds in which one at least was sent and not
    begun.
    """

    levels: int = 0
    longest: float = 0.0
    attempts: int = 0
    repeated: int = 0
    kept: int = 0
    queueing: float = 0.0
    are_all_known: bool = False
    queued: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    skipped: int = 0
    cancelled: int = 0
    interrupted: int = 0
    records: dict[str, NodeView] = field(default_factory=dict)
    _told: int = 0
    _seen: int = 0
    _queue_since: float | None = None
    _lists: Counter[int] = field(default_factory=lambda: Counter({0: 1}))

    @property
    def known(self) -> int:
        """How many there are, as far as is known."""
        return max(self._told, self._seen)

    @property
    def ended(self) -> int:
        """How many have ended, in any way."""
        return self.completed + self.failed + self.skipped + self.cancelled

    def record(self, name: str) -> NodeView:
        """The record of an element: the present one, or that of an element that is new."""
        if (record := self.records.get(name)) is None:
            self._seen += 1
            return NodeView(name)
        return record

    def see(self) -> None:
        """Count an element that is new, and of which there is no record."""
        self._seen += 1

    def end(self, state: NodeState, *, is_seen: bool = False) -> None:
        """Count an element that has ended, and of which there was no record."""
        self._seen += not is_seen
        self.count(state, 1)

    def tell(self, depth: int, count: int) -> None:
        """A list that lies within so many others is known to have so many elements, or lists."""
        if depth >= self.levels - 1:
            self._told += count
        else:
            self._lists[depth + 1] += count
        self._close(depth)

    def tell_missing(self, depth: int) -> None:
        """A list that lies within so many others will never be there."""
        self._told += 1
        self._close(depth)

    def _close(self, depth: int) -> None:
        # An inner list may be known before the one is in which it lies, which makes less than 0.
        self._lists[depth] -= 1
        self.are_all_known = self.levels > 0 and not any(self._lists.values())

    def count(self, state: NodeState, by: int) -> None:
        """Count the elements in a state. ``pending`` ones are not counted."""
        if state != "pending":
            setattr(self, state, getattr(self, state) + by)

    def recount(self, before: NodeState, now: NodeState) -> None:
        """Count an element in another state."""
        self.count(before, -1)
        self.count(now, 1)

    def note_queue(self, at: float) -> None:
        """Elements may have been sent, have begun or have ended at this moment."""
        if self._queue_since is None:
            self._queue_since = at if self.queued else None
        elif not self.queued:
            self.queueing += at - self._queue_since
            self._queue_since = None


def name_of_map(name: str) -> str:
    """The mapped node of an element, or of a list within its lists."""
    return name.rpartition("[")[0] or name


def depth_of(name: str) -> int:
    """How many positions the name of an element, or of a list within lists, has."""
    return name.rpartition("[")[2].count(",") + 1
