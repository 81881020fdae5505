"""A run's log: the records that it begins with, and restoring the run from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from taskiq_flow.dataflow.axes import node_name, parted
from taskiq_flow.dataflow.fingerprint import Fingerprints
from taskiq_flow.errors import InputConflictError, JournalError, SerializationError, describe
from taskiq_flow.journal import errors, records
from taskiq_flow.journal.finished import Finished, PassedOver, Positions
from taskiq_flow.journal.protocol import Journal, stores_events
from taskiq_flow.journal.records import Header, Record, read_chunk, record
from taskiq_flow.values.results import as_annotated
from taskiq_flow.values.stored import StoredValues, is_written_by, serializer_name


@dataclass(slots=True)
class RestoredRun:
    """The state of a run after the records of its log.

    ``inputs``: serialized. ``results``: COMPLETED and REFERRED records by node, in order of
    completion. ``attempts``: by node, how often it was sent. ``in_flight``: nodes that were sent
    and have no outcome, with what ends the ids of their tasks. ``digests``: of elements
    that were made of a source; ``lengths``: by node, how many of these there were in all.
    ``failed``: nodes that have failed for good. ``finished``: by the first node there, positions of
    lists at which all has ended. ``passed_over``: which of these have left nothing in the other
    attributes, as nobody asks for that. ``sessions``: the ids under which engines have sent the
    run's tasks.
    """

    run_id: str
    header: Header
    inputs: dict[str, bytes] = field(default_factory=dict)
    results: dict[str, Record] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    in_flight: dict[str, str] = field(default_factory=dict)
    digests: dict[str, bytes] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    finished: dict[str, Positions] = field(default_factory=dict)
    passed_over: PassedOver | None = None
    sessions: list[str] = field(default_factory=list)
    _task_suffix: str = ""

    def apply(self, entry: Record) -> None:
        """Apply the next record of the log."""
        kind, name = entry.kind, entry.name
        if kind == records.SENT:
            self.attempts[name] = max(entry.attempt, self.attempts.get(name, 0))
            self.in_flight[name] = self._task_suffix
            self.failed.discard(name)
            self._note_digest(entry)
        elif kind in (records.COMPLETED, records.REFERRED):
            self.results[name] = entry
            self.in_flight.pop(name, None)
            self.failed.discard(name)
        elif kind == records.FAILED:
            self.in_flight.pop(name, None)
            self.failed.add(name)
        elif kind == records.DROPPED:
            if entry.data == records.SOURCES:
                self._forget_sources({name})
            else:
                self._drop(name)
        elif kind in (records.KNOWN, records.GIVEN, records.FINISHED):
            self._note_elements(entry)
        elif kind == records.HEADER:
            self.header = Header.decoded(self.run_id, entry)
            self._reopen()
        elif kind == records.INPUT:
            self.inputs[name] = entry.data
        elif kind == records.SESSION:
            self.sessions.append(entry.data.decode())
            self._task_suffix = name

    def _note_elements(self, entry: Record) -> None:
        if entry.kind == records.KNOWN:
            self.lengths[entry.name] = int(entry.data)
        elif entry.kind == records.FINISHED:
            self._finish(Finished.decoded(entry))
        else:
            self._note_digest(entry)

    def _finish(self, finished: Finished) -> None:
        known = self.finished.setdefault(finished.name, Positions())
        for position in finished.positions:
            known.add(position)
        if self.passed_over is not None:
            for name in self.passed_over.finish(finished):
                self.results.pop(name, None)
                self.attempts.pop(name, None)

    def _reopen(self, name: str = "") -> None:
        """An element is to run again, or all nodes are: what was finished is so no more."""
        path = parted(name)[1]
        for finished in self.finished.values() if path else ():
            finished.discard(path[0])
        if not path:
            self.finished.clear()
        if self.passed_over is not None and self.passed_over.positions:
            self.passed_over.lacks_values = True

    def _note_digest(self, entry: Record) -> None:
        if entry.data:
            self.digests[entry.name] = entry.data

    def replace_graph(
        self, nodes: Fingerprints, generators: Mapping[str, int], outdated: Collection[str]
    ) -> list[bytes]:
        """Continue the run with another graph. Returns the records that say so in the log.

        ``nodes``: the graph's fingerprints; ``generators``: as of ``Header``; ``outdated``: nodes
        whose results become invalid.
        """
        self.header = replace(self.header, nodes=nodes, generators=generators)
        self._reopen()
        names = {*outdated}
        of_sources = names.intersection(map(node_name, (*self.digests, *self.lengths)))
        self._forget_sources(of_sources)
        return [
            self.header.encoded(),
            *self.drop(outdated),
            *(record(records.DROPPED, n, 0, records.SOURCES) for n in sorted(of_sources)),
        ]

    def _forget_sources(self, names: Collection[str]) -> None:
        """What these nodes are given of sources may be other items now, or more, or fewer."""
        for known in (self.digests, self.lengths):
            for name in [name for name in known if node_name(name) in names]:
                del known[name]

    def drop(self, outdated: Iterable[str]) -> list[bytes]:
        """Run nodes again whose results are not valid any more. Returns the records of that."""
        dropped = [name for name in outdated if name in self.results or name in self.attempts]
        for name in dropped:
            self._drop(name)
        return [record(records.DROPPED, name, 0) for name in dropped]

    def reopen(self, names: Iterable[str]) -> list[bytes]:
        """Ask again what conditions have said where all has ended. Returns the record of that.

        ``names``: of the nodes under which the positions are known. The record has no name, as a
        generator has that of its items and is not to run again.
        """
        if not any(self.finished.get(name) for name in names):
            return []
        self._reopen()
        return [record(records.DROPPED, "", 0)]

    def _drop(self, name: str) -> None:
        self._reopen(name)
        if not name:
            return
        self.results.pop(name, None)
        self.in_flight.pop(name, None)
        self.lengths.pop(name, None)
        self.failed.discard(name)
        # The log may lack the record of one more attempt, whose number must not be used again.
        self.attempts[name] = self.attempts.get(name, 0) + 1


async def begun_with(journal: Journal, run_id: str) -> str:
    """The ``on_error`` of the engine that began a run. Raises ``RunNotFoundError``.

    It is ``"raise"`` of a run that was recorded without values, as nobody can continue that.
    """
    async with aclosing(journal.read(run_id)) as chunks:
        async for data in chunks:
            for entry in read_chunk(run_id, data):
                return Header.decoded(run_id, entry).on_error
    return "raise"


def was_begun_otherwise(begun: str, on_error: str) -> bool:
    """Whether failures meant something else to the engine that began a run, by its ``on_error``.

    ``"raise"`` is the default: who has another one now has chosen it.
    """
    return begun not in ("raise", on_error)


async def restore_run(
    journal: Journal,
    run_id: str,
    passing_over: Callable[[Header], PassedOver | None] = lambda _: None,
) -> RestoredRun:
    """Restore a run from its log.

    ``passing_over``: by how the run was begun, gives what is told what is finished; no values are
    kept of that then. Raises ``RunNotFoundError``, or ``JournalError`` for a log that cannot be
    read or whose values were written by another serializer.
    """
    restored: RestoredRun | None = None
    passed_over: PassedOver | None = None
    async with aclosing(journal.read(run_id)) as chunks:
        async for data in chunks:
            for entry in read_chunk(run_id, data):
                if restored is None:
                    header = Header.decoded(run_id, entry)
                    passed_over = passing_over(header)
                    restored = RestoredRun(run_id, header, passed_over=passed_over)
                else:
                    if passed_over is not None:
                        passed_over.note(entry)
                    restored.apply(entry)
    if restored is None:
        if stores_events(journal) and not (await journal.summary(run_id)).is_resumable:
            raise JournalError(
                f"run {run_id!r} was recorded by a Recorder, without its values, and cannot be "
                "continued; begin it again under another run_id, on an engine with journal="
            )
        raise errors.damaged(run_id, "it is empty")
    if not is_written_by(journal.serializer, restored.header.serializer):
        raise JournalError(
            f"the values of run {run_id!r} were written by {restored.header.serializer}, and this "
            f"journal has {serializer_name(journal.serializer)}; give it the same serializer, or "
            "the version of taskiq_flow that wrote it"
        )
    return restored


def initial_records(
    values: StoredValues,
    nodes: Fingerprints,
    inputs: Mapping[str, Any],
    outputs: Sequence[str] | None,
    results: Iterable[Record] = (),
    *,
    is_of_many: bool = False,
    on_error: str = "raise",
    generators: Mapping[str, int] = MappingProxyType({}),
) -> list[bytes]:
    """The records that a log begins with. ``results``: of nodes that are not to be run.

    What is given by name is as of ``Header``. Raises ``SerializationError`` for an input that
    cannot be serialized.
    """
    header = Header(nodes, outputs, values.name, is_of_many, on_error, generators)
    given = [record(records.INPUT, k, 0, _written_input(values, k, v)) for k, v in inputs.items()]
    return [header.encoded(), *given, *(entry.encoded() for entry in results)]


def _written_input(values: StoredValues, key: str, value: Any) -> bytes:
    try:
        return values.dumps(value)
    except Exception as error:  # whatever a value or a serializer raises
        kind = type(value)
        raise SerializationError(
            f"the run was given a {kind.__module__}.{kind.__qualname__} as {key!r}, which the "
            f"journal's {type(values.serializer).__name__} cannot write ({error}); give it plain "
            "data, or give the journal a serializer that can",
            key=key,
            value_type=kind,
        ) from error


def load_results(
    restored: RestoredRun,
    values: StoredValues,
    owners: Mapping[str, str],
    return_types: Mapping[str, Any],
    handle: Callable[[str, str], Any],
) -> dict[str, Any]:
    """The results of nodes and elements, in order of completion.

    ``owners``: the names of both, with the nodes that they belong to. ``return_types``: what the
    values of a node are converted to. ``handle``: makes a handle for a node's result that was
    passed by reference, from the id of its task. Raises ``JournalError`` for a value that cannot be
    read.
    """
    results: dict[str, Any] = {}
    for name, entry in restored.results.items():
        owner = owners.get(name)
        if owner is None:
            continue
        try:
            if entry.kind == records.REFERRED:
                results[name] = handle(owner, entry.data.decode())
            else:
                results[name] = as_annotated(values.loads(entry.data), return_types[owner])
        except Exception as error:  # whatever a serializer raises
            raise JournalError(
                f"the result of node {name!r} of run {restored.run_id!r} cannot be read: "
                f"{describe(error)}; compute it again with "
                f"engine.rerun({restored.run_id!r}, [{name!r}])"
            ) from error
    return results


def check_same_inputs(
    restored: RestoredRun,
    values: StoredValues,
    inputs: Mapping[str, Any],
    outputs: Sequence[str] | None,
) -> None:
    """Raise ``InputConflictError`` unless a run was begun with these inputs and outputs."""
    given = {key: values.dumps(value) for key, value in inputs.items()}
    begun = restored.inputs
    other = [key for key in {**given, **begun} if given.get(key) != begun.get(key)]
    if (
        other
        or (outputs is None) != (restored.header.outputs is None)
        or (outputs is not None and set(outputs) != set(restored.header.outputs or ()))
    ):
        what = f"other inputs ({', '.join(map(repr, other))})" if other else "other outputs="
        raise InputConflictError(
            f"run {restored.run_id!r} was begun with {what}; resume it with those that it was "
            "begun with, or give the new run a run_id of its own",
            keys=other,
        )


def load_inputs(restored: RestoredRun, values: StoredValues) -> dict[str, Any]:
    """The run's inputs. Raises ``JournalError`` for one that cannot be read."""
    try:
        return {key: values.loads(data) for key, data in restored.inputs.items()}
    except Exception as error:  # whatever a serializer raises
        raise JournalError(
            f"the inputs of run {restored.run_id!r} cannot be read: {describe(error)}"
        ) from error
