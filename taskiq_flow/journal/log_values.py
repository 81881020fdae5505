"""Values in the log of a run, by the names of nodes, elements and inputs."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from taskiq_flow.dataflow.axes import Path, parted
from taskiq_flow.errors import JournalError, MissingNodeError, describe
from taskiq_flow.journal.history import RestoredRun
from taskiq_flow.journal.protocol import Journal
from taskiq_flow.journal.records import REFERRED, Header, Record, read_chunk
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.stored import StoredValues


async def value_in_log(journal: Journal, run_id: str, name: str) -> Any:
    """The value of a node, an element or an input; the list of a mapped node, as far as it goes.

    Raises ``RunNotFoundError``, ``MissingNodeError`` if there is none, and ``JournalError`` if it
    cannot be read.
    """
    restored = await _restored(journal, run_id, name)
    values = StoredValues(journal.serializer, Classes.imported()).like(restored.header.serializer)
    if name in restored.results:
        return _loaded(values, run_id, restored.results[name])
    if name in restored.inputs:
        return _loaded(values, run_id, Record(b"", name, data=restored.inputs[name]))
    elements = {
        parted(element)[1]: _loaded(values, run_id, entry)
        for element, entry in restored.results.items()
    }
    if elements:
        return _nested(elements)
    raise _missing(restored, name)


async def encoded_value(journal: Journal, run_id: str, name: str) -> tuple[bytes, bool]:
    """The bytes of a value as the log has them, and whether they are JSON. Nothing is decoded.

    Raises what ``value_in_log`` does, and ``MissingNodeError`` for the list of a mapped node, which
    the log has by its elements only.
    """
    restored = await _restored(journal, run_id, name)
    is_json = "JSONSerializer" in restored.header.serializer
    entry = restored.results.get(name)
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
                elif not entry.data or entry.name in ("", name) or parted(entry.name)[0] == name:
                    restored.apply(entry)
    if restored is None:
        raise MissingNodeError(
            f"run {run_id!r} has no values in the journal: it was recorded by a Recorder, with "
            "previews of them; an engine with journal= stores values",
            reference=name,
        )
    return restored


def _missing(restored: RestoredRun, name: str) -> MissingNodeError:
    return MissingNodeError(
        f"run {restored.run_id!r} has no value of {name!r} in the journal: {_why(restored, name)}",
        reference=name,
    )


def _why(restored: RestoredRun, name: str) -> str:
    """Why the log has no value of that name."""
    nodes, of_node = restored.header.nodes, parted(name)[0]
    if (entry := restored.results.get(name)) is not None:
        return f"it was passed by reference; task {entry.data.decode()!r} has it"
    if name in restored.failed:
        return f"the {'node' if name in nodes else 'element'} has failed"
    if name not in nodes:
        if of_node not in nodes:
            return "no node or input has that name"
        return f"node {of_node!r} has no such element, or the element has not completed"
    return _why_not_whole(restored, name)


def _why_not_whole(restored: RestoredRun, name: str) -> str:
    """Why the log has no value of a node that has not failed itself."""
    stored = [element for element in restored.results if parted(element)[0] == name]
    if stored:
        return (
            f"the elements of a mapped node are stored one by one, {len(stored)} of this one; ask "
            f"for one of them, such as {stored[0]!r}"
        )
    if any(parted(element)[0] == name for element in restored.attempts if element != name):
        return "no element of the mapped node has completed"
    return "the node has not completed, or is mapped over an empty list"


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


def _nested(elements: dict[Path, Any]) -> list[Any]:
    """The lists of elements, by their paths. Elements that are missing are left out."""
    first: dict[int, dict[Path, Any]] = {}
    for path, value in sorted(elements.items()):
        first.setdefault(path[0], {})[path[1:]] = value
    return [of[()] if () in of else _nested(of) for of in first.values()]
