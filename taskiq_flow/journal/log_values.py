"""Values in the log of a run, by the names of nodes, elements and inputs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from taskiq_flow.dataflow.axes import Path, element_name, parted
from taskiq_flow.errors import JournalError, MissingNodeError, describe
from taskiq_flow.events import (
    ElementsKnown,
    Event,
    NodeFailed,
    NodeFailure,
    NodeSkipped,
    RunStarted,
)
from taskiq_flow.journal.history import RestoredRun
from taskiq_flow.journal.protocol import Journal
from taskiq_flow.journal.records import REFERRED, Header, Record, read_chunk
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.stored import StoredValues


async def value_in_log(
    journal: Journal,
    run_id: str,
    name: str,
    events: Callable[[], AsyncGenerator[Event, None]],
    *,
    is_told: bool,
) -> Any:
    """The value of a node, an element or an input; the list of a mapped node.

    ``events``: gives those of the run, which tell why elements have no value. ``is_told``: whether
    they are all of its events. Without, only failed elements have a place in the list, and others
    that are missing are left out.

    Raises ``RunNotFoundError``, ``MissingNodeError`` if there is none, as for a mapped node or a
    generator that has failed or was skipped itself, and ``JournalError`` if it cannot be read.
    """
    restored = await _restored(journal, run_id, name)
    values = StoredValues(journal.serializer, Classes.imported()).like(restored.header.serializer)
    entry = restored.results.get(name)
    if entry is not None and len(restored.results) == 1:
        value = _loaded(values, run_id, entry)
        if type(value) is not int or not _may_be_count(restored, name):
            return value
    if name not in restored.results and name in restored.inputs:
        return _loaded(values, run_id, Record(b"", name, data=restored.inputs[name]))
    of_node, base = _place(restored, name)
    elements = {
        () if element == name else parted(element)[1][len(base) :]: _loaded(values, run_id, entry)
        for element, entry in restored.results.items()
    }
    levels = restored.header.generators.get(of_node)
    levels = None if levels is None else levels - len(base)
    ends = _Ends(run_id, name, of_node, base, elements, is_told, levels)
    async with aclosing(events()) as told:
        async for event in told:
            ends.apply(event)
    if not ends.lists or ends.itself is not None:
        raise _missing(restored, name, ends.itself)
    return ends.whole()


async def encoded_value(journal: Journal, run_id: str, name: str) -> tuple[bytes, bool]:
    """The bytes of a value as the log has them, and whether they are JSON. Nothing is decoded.

    The items of a generator that the log has one by one are put together if they are JSON. Raises
    what ``value_in_log`` does, and ``MissingNodeError`` for other lists that the log has by their
    elements only.
    """
    restored = await _restored(journal, run_id, name)
    is_json = "JSONSerializer" in restored.header.serializer
    entry = restored.results.get(name)
    values = StoredValues(journal.serializer, Classes.imported()).like(restored.header.serializer)
    items = _items(restored, name)
    if (
        entry is not None
        and _may_be_count(restored, name)
        and entry.data == values.dumps(len(items))
    ):
        if is_json and not any(item.kind == REFERRED for item in items):
            return b"[" + b", ".join(item.data for item in items) + b"]", True
        raise _missing(restored, name)
    if entry is not None and entry.kind != REFERRED:
        return entry.data, is_json
    if entry is None and name in restored.inputs:
        return restored.inputs[name], is_json
    raise _missing(restored, name)


async def _restored(journal: Journal, run_id: str, name: str) -> RestoredRun:
    """What the log says of this name, and of nobody else's values.

    Raises ``MissingNodeError`` for a run that was recorded without values.
    """
    restored: RestoredRun | None = None
    async with aclosing(journal.read(run_id)) as chunks:
        async for data in chunks:
            for entry in read_chunk(run_id, data):
                if restored is None:
                    restored = RestoredRun(run_id, Header.decoded(run_id, entry))
                elif not entry.data or entry.name in ("", name) or _is_part(entry, name, restored):
                    restored.apply(entry)
    if restored is None:
        raise MissingNodeError(
            f"run {run_id!r} has no values in the journal: it was recorded by a Recorder, with "
            "previews of them; an engine with journal= stores values",
            reference=name,
        )
    return restored


def _is_part(entry: Record, name: str, restored: RestoredRun) -> bool:
    """Whether a record is of an element within this node or element, and of no node called so."""
    if entry.name in restored.header.nodes:
        return False
    of_node, path = _place(restored, name)
    found, within = parted(entry.name)
    return found == of_node and len(within) > len(path) and within[: len(path)] == path


def _place(restored: RestoredRun, name: str) -> tuple[str, Path]:
    """The node and the path of an element; no path for the name of a node."""
    return (name, ()) if name in restored.header.nodes else parted(name)


def _may_be_count(restored: RestoredRun, name: str) -> bool:
    """Whether what the log has of a name may be how many items a generator has given.

    Earlier versions did not write which nodes are generators, but those that have given items.
    """
    of_node, path = _place(restored, name)
    levels = restored.header.generators.get(of_node)
    if levels is None:
        return element_name(of_node, (*path, 0)) in restored.results
    return len(path) == levels


def _items(restored: RestoredRun, name: str) -> list[Record]:
    """What the log has of the items of a generator, in their order."""
    of_node, path = _place(restored, name)
    items: list[Record] = []
    while (item := restored.results.get(element_name(of_node, (*path, len(items))))) is not None:
        items.append(item)
    return items


def _missing(
    restored: RestoredRun, name: str, itself: NodeFailed | NodeSkipped | None = None
) -> MissingNodeError:
    """``itself``: how a node has ended that has elements."""
    return MissingNodeError(
        f"run {restored.run_id!r} has no value of {name!r} in the journal: "
        f"{_why(restored, name, itself)}",
        reference=name,
    )


def _why(restored: RestoredRun, name: str, itself: NodeFailed | NodeSkipped | None) -> str:
    """Why the log has no value of that name."""
    nodes, of_node, stored = restored.header.nodes, parted(name)[0], _stored_text(restored, name)
    what = "node" if name in nodes else "element"
    if itself is not None:
        how = "has failed" if isinstance(itself, NodeFailed) else "was skipped"
        return f"the {what} {how}{stored and f'; {stored}'}"
    if (entry := restored.results.get(name)) is not None:
        return stored or f"it was passed by reference; task {entry.data.decode()!r} has it"
    if name in restored.failed:
        return f"the {what} has failed"
    if name in nodes:
        has_begun = any(parted(other)[0] == name for other in restored.attempts if other != name)
        return stored or (
            "no element of the mapped node has completed"
            if has_begun
            else "the node has not completed, or is mapped over an empty list"
        )
    if of_node in nodes:
        return f"node {of_node!r} has no such element, or the element has not completed"
    return "no node or input has that name"


def _stored_text(restored: RestoredRun, name: str) -> str:
    """Which elements of a node or an element the log has; those within these are not counted."""
    depths = {e: len(parted(e)[1]) for e in restored.results if e != name}
    first = min(depths.values(), default=0)
    stored = [element for element, depth in depths.items() if depth == first]
    if not stored:
        return ""
    return (
        f"its elements are stored one by one, {len(stored)} of them; ask for one, such as "
        f"{stored[0]!r}"
    )


def _loaded(values: StoredValues, run_id: str, entry: Record) -> Any:
    if entry.kind == REFERRED:
        raise JournalError(
            f"the result of node {entry.name!r} of run {run_id!r} was passed by reference; ask the "
            f"broker's result backend for that of task {entry.data.decode()!r}"
        )
    try:
        return values.loads(entry.data)
    except Exception as error:  # whatever a serializer raises
        raise JournalError(
            f"the value of {entry.name!r} of run {run_id!r} cannot be read: {describe(error)}; "
            "import the modules of its classes, and give the journal the serializer that wrote it"
        ) from error


@dataclass(slots=True)
class _Ends:
    """What stands at the places of a mapped node's list, or of one of those within it.

    ``of_node``, ``base``: the node, and the path of the list, from which on paths count here.
    ``values``: of the elements that have completed. ``is_told``: as of ``value_in_log``.
    ``levels``: of a generator, as of ``Header.generators``. ``lists``: by the path of each list,
    how many places it has, as far as that is known. ``itself``: how the node has ended as a whole,
    if it has failed or was skipped.
    """

    run_id: str
    name: str
    of_node: str
    base: Path
    values: dict[Path, Any]
    is_told: bool
    levels: int | None = None
    lists: dict[Path, int] = field(default_factory=dict)
    missing: dict[Path, NodeFailure | NodeSkipped] = field(default_factory=dict)
    itself: NodeFailed | NodeSkipped | None = None

    def __post_init__(self) -> None:
        deepest = max(map(len, self.values), default=0)
        for path, value in tuple(self.values.items()):
            self._add_place(path)
            is_count = len(path) == self.levels and type(value) is int
            if is_count or len(path) < deepest:  # of the items of a generator, which follow
                del self.values[path]
                self.lists.setdefault(path, 0)

    def apply(self, event: Event) -> None:
        """Note what an event tells of the node and its elements."""
        if isinstance(event, RunStarted):
            self.itself = None  # this session tells how it ends
        if not isinstance(event, (ElementsKnown, NodeFailed, NodeSkipped)):
            return
        is_whole = event.task_name == self.name
        node, path = (self.of_node, self.base) if is_whole else parted(event.task_name)
        if node != self.of_node or path[: len(self.base)] != self.base:
            return
        path = path[len(self.base) :]
        if isinstance(event, ElementsKnown):
            self.lists[path] = max(event.count, self.lists.get(path, 0))
            self.missing.pop(path, None)  # an engine that resumed the run has made the list
            self._add_place(path)
        elif path and event.index is not None:  # else a node is called so
            self._add_place(path)
            self.missing[path] = event if isinstance(event, NodeSkipped) else _failure(event)
        elif is_whole:
            self.itself = event

    def whole(self, path: Path = ()) -> Any:
        """The value at a path: of an element, or the list of those that begin with the path."""
        if path in self.values:
            return self.values[path]
        if (missing := self.missing.get(path)) is not None:
            return missing
        if path not in self.lists:
            return self._not_completed(path)
        places = ((*path, position) for position in range(self.lists[path]))
        return [self.whole(place) for place in places if self._stands(place)]

    def _stands(self, place: Path) -> bool:
        """Whether the list has this place: a condition leaves an element out of it."""
        if place in self.values:
            return True
        if (missing := self.missing.get(place)) is not None:
            return isinstance(missing, NodeFailure) or missing.reason == "failure"
        return self.is_told or place in self.lists

    def _not_completed(self, path: Path) -> NodeFailure:
        path = (*self.base, *path)
        name = element_name(self.of_node, path)
        index = path[0] if len(path) == 1 else path
        error = MissingNodeError(
            f"run {self.run_id!r} has no value of {name!r} in the journal: the element has not "
            "completed",
            reference=name,
        )
        return NodeFailure(name, "", error, 0, index)

    def _add_place(self, path: Path) -> None:
        while path:
            *within, position = path
            path = tuple(within)
            self.lists[path] = max(position + 1, self.lists.get(path, 0))


def _failure(event: NodeFailed) -> NodeFailure:
    name, task_id, error, after = event.task_name, event.task_id, event.error, event.after
    return NodeFailure(name, task_id, error, event.attempts, event.index, after)
