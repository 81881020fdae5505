"""What the events of a run say, event by event. It is the only interpretation of events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, ClassVar, Literal, get_args

from taskiq_flow.drawing.diagram import diagram_of_run
from taskiq_flow.drawing.layout import lay_out
from taskiq_flow.drawing.svg import svg_of
from taskiq_flow.errors import MissingNodeError
from taskiq_flow.events import (
    ElementsKnown,
    Event,
    Gap,
    GraphKind,
    NodeBegan,
    NodeCompleted,
    NodeFailed,
    NodeFellBack,
    NodeRetried,
    NodeSkipped,
    NodeStarted,
    RunFinished,
    RunStarted,
    Source,
)
from taskiq_flow.notes import BEGAN, OTHER, SENT, WIDTH, Notes, events_of
from taskiq_flow.previews import shown_error
from taskiq_flow.suggestions import did_you_mean
from taskiq_flow.views.critical_path import critical_path
from taskiq_flow.views.node_view import (
    MOST_FAILURES,
    ElementsView,
    NodeState,
    NodeView,
    depth_of,
    name_of_map,
)

RunStatus = Literal["pending", "running", "interrupted", "completed", "failed", "cancelled"]
"""``"interrupted"``: no engine has the run any more. No event tells so: see ``note_status``."""

_STATES: tuple[NodeState, ...] = get_args(NodeState)

_FREQUENT = frozenset({NodeStarted, NodeBegan, NodeCompleted})
"""What every node tells that is executed once: there are notes of it."""

_node_of, _index_of = attrgetter("node"), attrgetter("index")

_Ends = NodeCompleted | NodeFailed | NodeSkipped

_OfNode = NodeStarted | NodeBegan | NodeRetried | NodeFellBack | _Ends


@dataclass
class RunView:
    """The state of one run after the events that were applied.

    It reads no clock and waits for nothing: the same events make the same view. A copy of it, made
    by ``copy.deepcopy`` or pickled, goes on from there with the events after ``seq``.

    ``seq``: the number of the last event; an event that was applied before is ignored. ``missed``:
    how many events never came. ``sessions``: how many engines have run it, one after the other; one
    that resumed a completed run and ran nothing is not counted, and leaves the view as it was.
    ``time``: seconds since 1970 at which the last of these began, ``started_at`` and ``at`` the
    moments of that and of the last event by the clock of ``Event.at``. ``error``: what ended the
    run. ``nodes``: by name; ``edges``: by name, what each depends on. ``expected``: by name, how
    many seconds a node or one of its elements is expected to run, if not 1. ``kind``: how the graph
    was declared, ``"sequential"`` as a ``Pipeline``. ``in_memory``: whether its broker is an
    ``InMemoryBroker``. ``origin``: where the command line found the graph. ``on_error``: of the
    engine of the last session; ``None`` if that was not told.

    >>> view = RunView()
    >>> class Watching:
    ...     def on_event(self, event):
    ...         view.apply(event)
    >>> dag = DAGBuilder().node(abs, inputs=["numbers"], map_over="numbers").build()
    >>> engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Watching()])
    >>> engine.execute_sync({"numbers": [-1, 2, -3]})
    {'abs': [1, 2, 3]}
    >>> view.status, view.counts, view.nodes["abs"].elements.completed
    ('completed', {'completed': 1}, 3)
    """

    run_id: str = ""
    status: RunStatus = "pending"
    seq: int = 0
    missed: int = 0
    sessions: int = 0
    time: float | None = None
    started_at: float | None = None
    at: float | None = None
    ended_at: float | None = None
    error: dict[str, str] | None = None
    nodes: dict[str, NodeView] = field(default_factory=dict)
    edges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    expected: Mapping[str, float] = field(default_factory=dict)
    kind: GraphKind = "dataflow"
    in_memory: bool = False
    origin: str | None = None
    on_error: str | None = None
    _earlier: dict[str, NodeView] = field(default_factory=dict)
    _began: tuple[float, float] | None = None  # ``time`` and ``at`` of the last session's start
    _completed: RunView | None = None  # before the last session, if the run had completed

    @property
    def counts(self) -> dict[NodeState, int]:
        """How many nodes are in which state. A mapped node counts as one.

        They are counted each time, so that applying an event costs less.
        """
        counts = Counter([node.state for node in self.nodes.values()])
        return {state: counts[state] for state in _STATES if counts[state]}

    @property
    def seconds(self) -> float:
        """How long the run has taken, up to the last event."""
        if self.started_at is None or self.at is None:
            return 0.0
        return (self.at if self.ended_at is None else self.ended_at) - self.started_at

    def until(self, now: float) -> RunView:
        """The view at a later moment, in seconds since 1970: a run in progress has gone on.

        It shares its nodes with this one, and takes no events.
        """
        if self.status != "running" or self.time is None or self.started_at is None:
            return self
        at = self.started_at + now - self.time
        return self if self.at is not None and at <= self.at else replace(self, at=at)

    def node(self, name: str) -> NodeView:
        """A node by its name, or an element that is in flight or has failed.

        Raises ``MissingNodeError``, also for an element that has no record.
        """
        if (node := self.nodes.get(name)) is not None:
            return node
        mapped = self.nodes.get(name_of_map(name))
        elements = None if mapped is None else mapped.elements
        if elements is None:
            meant = did_you_mean(name, self.nodes)
            raise MissingNodeError(
                f"run {self.run_id!r} has no node {name!r}{meant or '; nodes has all of them'}",
                reference=name,
            )
        if (record := elements.records.get(name)) is not None:
            return record
        raise MissingNodeError(
            f"there is no record of element {name!r}: it is not in flight, and not among the first "
            f"{MOST_FAILURES:,} that failed; of {elements.known} elements, {elements.completed} "
            f"have completed, {elements.failed} failed and {elements.skipped} were skipped; "
            "its events are in the run's journal, as RunReader.events() gives them",
            reference=name,
        )

    @property
    def critical_path(self) -> list[str]:
        """The names along the path on which nodes ran longest, of those that have ended.

        A mapped node counts with the element that ran longest. What ran at the same time as the
        node before it on the path counts once. Of equal paths, it is the one that ended last.
        """
        return [stage.name for stage in critical_path(self.nodes, self.edges)]

    def to_svg(self, *, fold: bool | None = None) -> str:
        """The graph and the states of its nodes as an SVG document. Needs the extra ``draw``.

        It shows what events tell: names, edges, states. ``dag.to_svg(view)`` also shows inputs,
        conditions and so on. ``fold`` and what is raised: see there. Nodes are equal here if their
        names differ in numbers only.
        """
        return svg_of(lay_out(diagram_of_run(self), fold=fold, shows_states=True), self)

    def apply(self, event: Event) -> None:
        """Take in the next event. Raises ``ValueError`` for one of another run."""
        self.apply_all((event,))

    def apply_all(self, events: Iterable[Event]) -> None:
        """Take in the next events, as ``apply`` does. Many at once cost less."""
        event: Any
        for event in events:
            seq, at, before = event.seq, event.at, self.seq
            # Most events are the next ones, and tell of the attempts of plain nodes.
            if (not before or seq != before + 1 or event.run_id != self.run_id) and (
                not self._is_news(event)
            ):
                continue
            self.seq, self.at = seq or before, at
            if self.status != "running":
                self.note_status("running")
            kind = type(event)
            if kind not in _FREQUENT or event.index is not None:
                self._APPLY[kind](self, event)
                continue
            node = self.nodes.get(event.task_name) or self._add(event.task_name)
            if kind is NodeStarted:
                self._send(node, at, event.attempt)
            elif kind is NodeBegan:
                node.begin(at, event.worker, event.attempt)
            else:
                self._complete(node, at, event.attempt, event.source, event.result)

    def apply_notes(self, run_id: str, notes: Notes, first: int) -> None:
        """As ``apply_all``, of what an engine holds of a run's events: see ``notes.py``.

        ``first``: the number of the first one.
        """
        kinds = "".join(notes[::WIDTH])
        start = 0
        while start < len(kinds):
            found = kinds.find(OTHER, start)
            stop = len(kinds) if found < 0 else found
            if stop > start:
                part = notes[WIDTH * start : WIDTH * stop]
                self._apply_attempts(run_id, part, first + start)
            if found >= 0:
                self.apply(notes[WIDTH * (stop + 1) - 1])
            start = stop + 1

    def _apply_attempts(self, run_id: str, notes: Notes, first: int) -> None:
        """As ``apply_notes``, of notes about attempts alone."""
        attempts = notes[2::WIDTH]
        is_next = (run_id, first, self.status) == (self.run_id, self.seq + 1, "running")
        if not is_next or {*map(_index_of, map(_node_of, attempts))} != {None}:
            self.apply_all(events_of(notes, run_id, first))
            return
        nodes = self.nodes
        for about, at, attempt in zip(notes[::WIDTH], notes[1::WIDTH], attempts, strict=True):
            name = attempt.node.task_name
            node = nodes.get(name) or self._add(name)
            if about == SENT:
                self._send(node, at, attempt.number)
            elif about == BEGAN:
                node.begin(at, attempt.worker, attempt.number)
            else:
                self._complete(node, at, attempt.number, attempt.source, attempt.value)
        self.seq, self.at = first + len(attempts) - 1, notes[1 - WIDTH]

    def note_status(self, status: RunStatus) -> None:
        """Take in the status of the run's summary, as no event tells that its engine is gone.

        What is in flight is ``"interrupted"`` then, until the next event. Of a run that has ended,
        the events have told the status.
        """
        if self.ended_at is not None or status == self.status:
            return
        if "interrupted" in (self.status, status):
            for node in self.nodes.values():
                node.note_engine(is_gone=status == "interrupted")
        self.status = status

    # The run

    def _is_news(self, event: Event) -> bool:
        """Whether to apply an event that is not the next one, as it is new or has no number.

        It may be the first one, and there may be others before it that never came.
        """
        if self.run_id != event.run_id:
            if self.run_id:
                raise ValueError(
                    f"the view is of run {self.run_id!r}, and the event of run {event.run_id!r}; "
                    "give each run a view of its own"
                )
            self.run_id = event.run_id
        seq = event.seq
        if seq and seq != self.seq + 1 and not self._begins_session(event):
            if seq <= self.seq:
                return False
            if not isinstance(event, Gap):
                self.missed += seq - self.seq - 1
        return True

    def _begins_session(self, event: Event) -> bool:
        """Whether another engine goes on with the run. It may number its events from 1 on."""
        return isinstance(event, RunStarted) and (event.time, event.at) != self._began

    def _started(self, event: RunStarted) -> None:
        is_completed = self.status == "completed"
        self._completed = replace(self, _earlier={}, _completed=None) if is_completed else None
        self._began = (event.time, event.at)
        self._earlier = {
            name: node
            for name, node in self.nodes.items()
            if node.state == "completed" and node.elements is None
        }
        self.sessions += 1
        self.status, self.error, self.ended_at = "running", None, None
        self.time, self.started_at, self.edges = event.time, event.at, event.edges
        self.expected, self.kind = event.expected, event.kind
        self.in_memory, self.origin = event.in_memory, event.origin
        self.on_error = event.on_error
        self.nodes = {name: NodeView(name) for name in event.task_names}
        for name, levels in event.mapped.items():
            self.nodes[name].elements = ElementsView(levels)

    def _finished(self, event: RunFinished) -> None:
        self.status, self.ended_at = event.outcome, event.at
        self.error = shown_error(event.error)
        self._earlier = {}
        # All nodes of a completed run have ended: how, this view may have missed.
        left: NodeState = "completed" if event.outcome == "completed" else "cancelled"
        for node in self.nodes.values():
            if node.elements is not None:
                node.finish_elements(event.outcome, left, event.at)
            elif node.state in ("queued", "running"):
                node.end(left, event.at)
        before, self._completed = self._completed, None
        if before is not None and event.outcome == "completed" and self._is_as(before):
            self.sessions, self.time, self.nodes = before.sessions, before.time, before.nodes
            self.started_at, self.at, self.ended_at = before.started_at, before.at, before.ended_at

    def _is_as(self, before: RunView) -> bool:
        """Whether the last session has run nothing, and the nodes are in the states from before."""
        states = [{name: node.state for name, node in v.nodes.items()} for v in (self, before)]
        return states[0] == states[1] and not any(node.has_run for node in self.nodes.values())

    def _missed(self, event: Gap) -> None:
        self.missed += event.missed

    # Nodes and elements

    def _element_sent(self, event: NodeStarted) -> None:
        node, whole = self._find(event)
        before = node.state
        node.send(event.at, event.attempt)
        self._moved(node, whole, before, event.at)

    def _element_began(self, event: NodeBegan) -> None:
        node, whole = self._find(event)
        before = node.state
        node.begin(event.at, event.worker, event.attempt)
        self._moved(node, whole, before, event.at)

    def _sent_again(self, event: NodeRetried | NodeFellBack) -> None:
        node, whole = self._find(event)
        before, delay = node.state, event.delay if isinstance(event, NodeRetried) else 0.0
        if node.sent_at is not None:
            node.waiting += delay
        elif whole is None:
            self._wait_since_ready(node, event.at)
        node.error = shown_error(event.error)
        node.send_again(event.at, event.attempt, event.at - delay)
        self._moved(node, whole, before, event.at)

    def _element_completed(self, event: NodeCompleted) -> None:
        node, whole = self._find(event)
        if whole is not None and whole.elements is not None:
            whole.elements.kept += event.source == "journal"
        self._ended(node, whole, event, "completed")

    def _failed(self, event: NodeFailed) -> None:
        node, whole = self._find(event)
        elements = None if whole is None else whole.elements
        if elements is None or elements.failed < MOST_FAILURES:
            node.error, node.item = shown_error(event.error, event.after), event.item
        self._ended(node, whole, event, "failed")

    def _skipped(self, event: NodeSkipped) -> None:
        node, whole = self._find(event)
        node.because_of, node.reason = event.because_of, event.reason
        if whole is not None and whole.elements is not None and event.index is not None:
            depth = depth_of(event.task_name)
            if depth < whole.elements.levels:
                whole.elements.tell_missing(depth)
        self._ended(node, whole, event, "skipped")

    def _known(self, event: ElementsKnown) -> None:
        name = event.task_name
        node = self.nodes.get(name)
        is_outermost = node is not None and node.elements is not None
        whole = node if node is not None and is_outermost else self._map(name_of_map(name))
        if whole.elements is not None:
            whole.elements.tell(0 if is_outermost else depth_of(name), event.count)
            self._update_map(whole, event.at)

    def _find(self, event: _OfNode) -> tuple[NodeView, NodeView | None]:
        """The node, or the element and the node to which it belongs."""
        name = event.task_name
        if event.index is not None:
            whole = self._map(name_of_map(name))
            if whole.elements is not None:
                return whole.elements.record(name), whole
        return self.nodes.get(name) or self._add(name), None

    def _map(self, name: str) -> NodeView:
        """A mapped node."""
        node = self.nodes.get(name) or self._add(name)
        if node.elements is None:
            node.elements = ElementsView()
        return node

    def _add(self, name: str) -> NodeView:
        """A node of which the view was not told, as it came too late."""
        node = self.nodes[name] = NodeView(name)
        return node

    def _send(self, node: NodeView, at: float, attempt: int) -> None:
        """A plain node is sent."""
        self._wait_since_ready(node, at)
        node.send(at, attempt)

    def _complete(
        self, node: NodeView, at: float, attempt: int, source: Source, value: object
    ) -> None:
        """A plain node has completed."""
        if source == "journal":
            self._restore(node, attempt, value)
        else:
            self._end_attempt(node, attempt, "completed", at)
            node.keep(source, value)

    def _restore(self, node: NodeView, attempt: int, value: object) -> None:
        """An earlier session has completed the node, or the run of which this one is a rerun.

        It has no moments: the clock of that session is not that of this one.
        """
        if (earlier := self._earlier.pop(node.name, None)) is None:
            earlier = NodeView(node.name, "completed", attempt)
            earlier.keep("journal", value)
        self.nodes[node.name] = replace(
            earlier,
            source="journal",
            was_completed_before=True,
            ready_at=None,
            sent_at=None,
            began_at=None,
            ended_at=None,
        )

    # Times and counts

    def _ready_at(self, name: str) -> float | None:
        """When the last node ended on which this one depends."""
        at = self.started_at
        if at is not None and name in self.edges:
            nodes = self.nodes
            for other in self.edges[name]:
                end = nodes[other].ended_at
                if end is not None and end > at:
                    at = end
        return at

    def _wait_since_ready(self, node: NodeView, at: float) -> None:
        """A node has waited until now. When an element was ready is not known."""
        ready_at = node.ready_at = self._ready_at(node.name)
        if ready_at is not None:
            node.waiting += at - ready_at

    def _moved(self, node: NodeView, whole: NodeView | None, before: NodeState, at: float) -> None:
        if whole is not None:
            whole.move_element(node, before, at)
            self._update_map(whole, at)

    def _ended(
        self, node: NodeView, whole: NodeView | None, event: _Ends, state: NodeState
    ) -> None:
        """A node or an element has ended."""
        if whole is None:
            self._end_attempt(node, event.attempt, state, event.at)
        else:
            node.attempts = max(node.attempts, event.attempt)
            whole.end_element(node, state, event.at)
            self._update_map(whole, event.at)

    def _end_attempt(self, node: NodeView, attempt: int, state: NodeState, at: float) -> None:
        """A node has ended, with this attempt; it may have had none."""
        if node.sent_at is None:
            self._wait_since_ready(node, at)
        if attempt > node.attempts:  # noqa: PLR1730 - likewise
            node.attempts = attempt
        node.end(state, at)

    def _update_map(self, node: NodeView, at: float) -> None:
        """Find the state of a mapped node, after something of an element was told."""
        elements = node.elements
        if elements is None or node.is_ended:
            return
        if elements.are_all_known and elements.ended >= elements.known:
            node.ended_at = at
            node.state = "failed" if elements.failed else "completed"
        elif node.state == "pending" and elements.known:
            # Elements are known while others are still made of which they are.
            before = (self.nodes[other] for other in self.edges.get(node.name, ()))
            is_ready = all(other.is_ended for other in before)
            node.ready_at = self._ready_at(node.name) if is_ready else at
            node.state = "running"

    _APPLY: ClassVar[Mapping[type, Callable[[RunView, Any], None]]] = {
        RunStarted: _started,
        NodeStarted: _element_sent,
        NodeBegan: _element_began,
        NodeRetried: _sent_again,
        NodeFellBack: _sent_again,
        NodeCompleted: _element_completed,
        NodeFailed: _failed,
        NodeSkipped: _skipped,
        ElementsKnown: _known,
        RunFinished: _finished,
        Gap: _missed,
    }
