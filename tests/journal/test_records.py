"""Records, chunks with a checksum, headers, and values as plain data."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from taskiq import InMemoryBroker
from taskiq.serializers import JSONSerializer, PickleSerializer

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    JournalError,
    Lease,
    MemoryJournal,
    SerializationError,
)
from taskiq_flow.journal.history import RestoredRun, initial_records, restore_run
from taskiq_flow.journal.records import (
    COMPLETED,
    ENDED,
    FORMAT,
    HEADER,
    INPUT,
    SENT,
    SESSION,
    Record,
    chunk,
    read_chunk,
    record,
)
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.stored import StoredValues, serializer_name
from tests.values.kinds import Box

LEASE = Lease("engine")

JSON = StoredValues(JSONSerializer(), Classes.imported())

RECORDS = [
    Record(SESSION, data=b"session"),
    Record(INPUT, "key", data=b"[1, 2]"),
    Record(SENT, "node", 1),
    Record(COMPLETED, "node", 2**32 - 1, bytes(range(256))),
    Record(COMPLETED, "ключ\n\0\ud800🏃", 3, b""),
    Record(ENDED, "", 0, b"completed"),
]

CHUNK = chunk(entry.encoded() for entry in RECORDS)


@pytest.mark.parametrize(
    "damaged", [CHUNK + b"\0", CHUNK + CHUNK, b"", b"\0" * len(CHUNK), chunk([b"s\0\0"])]
)
def test_a_chunk_that_is_none_is_an_error_that_names_the_run(damaged: bytes) -> None:
    assert read_chunk("a run", CHUNK) == RECORDS
    with pytest.raises(JournalError, match=r"the log of run 'a run' is damaged .* from a copy"):
        read_chunk("a run", damaged)


# What is read of a run


async def logged(*chunks: bytes) -> MemoryJournal:
    """A journal with one run, that nobody is at."""
    journal = MemoryJournal()
    await journal.create("a run", LEASE, chunks[0])
    for each in chunks[1:]:
        await journal.append("a run", LEASE, each)
    await journal.release("a run", LEASE)
    return journal


def beginning(**inputs: Any) -> bytes:
    return chunk(initial_records(JSON, {"node": "fingerprint"}, inputs, ["node"]))


async def test_a_run_is_recalled_from_its_beginning_on() -> None:
    journal = await logged(
        beginning(key={"a": 1}),
        chunk([record(SENT, "node", 1), record(SENT, "other", 1)]),
        chunk([record(COMPLETED, "node", 1, b"7")]),
    )
    restored = await restore_run(journal, "a run")
    assert restored.header.nodes == {"node": "fingerprint"}
    assert restored.header.outputs == ["node"]
    assert restored.inputs == {"key": b'{"a": 1}'}
    assert restored.results == {"node": Record(COMPLETED, "node", 1, b"7")}
    assert restored.in_flight == {"other": ""}


async def test_a_chunk_that_stands_twice_says_no_more_than_once() -> None:
    """Whoever keeps logs may have to repeat a chunk of which it is not known that it arrived."""
    chunks = [
        chunk([record(SENT, "a", 1), record(SENT, "b", 1), record(COMPLETED, "a", 1, b"1")]),
        chunk([record(SENT, "a", 2), record(COMPLETED, "a", 2, b"2"), record(SENT, "c", 1)]),
    ]

    async def told_by(*all_chunks: bytes) -> RestoredRun:
        return await restore_run(await logged(beginning(), *all_chunks), "a run")

    assert await told_by(*chunks) == await told_by(chunks[0], chunks[0], chunks[1], chunks[1])


async def test_a_log_of_another_format_is_an_error_that_names_both() -> None:
    content = {"format": FORMAT + 1, "whatever": "else there is in it"}
    journal = await logged(chunk([record(HEADER, "", 0, json.dumps(content).encode())]))
    message = (
        rf"'a run' was written in format {FORMAT + 1} .* reads format {FORMAT}; resume it with"
    )
    with pytest.raises(JournalError, match=message):
        await restore_run(journal, "a run")


@pytest.mark.parametrize(
    "first",
    [
        record(SESSION, "", 0, b"session"),
        record(HEADER, "", 0, b"{"),
        record(HEADER, "", 0, b"[]"),
        record(HEADER, "", 0, b"{}"),
        record(HEADER, "", 0, b"\xff"),
    ],
)
async def test_a_log_without_a_header_is_an_error_that_names_the_run(first: bytes) -> None:
    journal = await logged(chunk([first]))
    with pytest.raises(JournalError, match="the log of run 'a run' is damaged"):
        await restore_run(journal, "a run")


async def test_values_of_another_serializer_are_an_error_that_names_both() -> None:
    journal = await logged(beginning())
    journal.serializer = PickleSerializer()
    written, given = serializer_name(JSONSerializer()), serializer_name(PickleSerializer())
    assert written != given
    message = f"the values of run 'a run' were written by {written}+values1, and this journal"
    with pytest.raises(JournalError, match=f"{re.escape(message)} has {given};"):
        await restore_run(journal, "a run")


async def test_a_damaged_run_is_neither_resumed_nor_held_nor_changed(
    broker: InMemoryBroker,
) -> None:
    executed: list[int] = []
    journal = MemoryJournal()
    dag = DAGBuilder().node(lambda: executed.append(1), name="node").build()
    engine = ExecutionEngine(broker, dag, journal=journal)
    async for _ in engine.execute_async(run_id="a run"):
        pass
    log = journal._logs["a run"].chunks
    log[-1] = log[-1][:-1]
    before = list(log)
    for again in (engine.resume("a run"), engine.rerun("a run", ["node"])):
        with pytest.raises(JournalError, match="the log of run 'a run' is damaged"):
            await anext(again)
    assert executed == [1]
    assert log == before
    await journal.acquire("a run", LEASE)


# Values


class Colour(Enum):
    RED = "red"


class Model(BaseModel):
    at: datetime
    tags: set[str]


@dataclass
class Point:
    x: int
    labels: frozenset[str] = frozenset()


MOMENT = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, 2.5, None, True, "ä\ud800"]}, {"a": [1, 2.5, None, True, "ä\ud800"]}),
        ((1, (2,)), [1, [2]]),
        ({1}, [1]),
        (frozenset(["a"]), ["a"]),
        ({"deep": [{"set": {1}}]}, {"deep": [{"set": [1]}]}),
        (MOMENT, "2024-02-29T12:30:00Z"),
        (date(2024, 2, 29), "2024-02-29"),
        (timedelta(hours=1), "PT1H"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        (b"bytes", "bytes"),
        (Point(1, frozenset(["a"])), {"x": 1, "labels": ["a"]}),
        (Model(at=MOMENT, tags={"a"}), {"at": "2024-02-29T12:30:00Z", "tags": ["a"]}),
        ([Model(at=MOMENT, tags=set())], [{"at": "2024-02-29T12:30:00Z", "tags": []}]),
        ((number for number in range(3)), [0, 1, 2]),
    ],
)
def test_a_log_of_an_earlier_version_is_continued_as_it_was_written(
    value: object, expected: object
) -> None:
    earlier = JSON.like(serializer_name(JSONSerializer()))
    assert earlier.name == serializer_name(JSONSerializer())
    assert earlier.loads(earlier.dumps(value)) == expected


def test_a_serializer_that_takes_a_value_gets_it_as_it_is() -> None:
    stored = StoredValues(PickleSerializer(), Classes())
    value = [Point(1), {Colour.RED}, 1j]
    assert stored.loads(stored.dumps(value)) == value
    assert stored.name == serializer_name(PickleSerializer())


def test_what_a_serializer_refuses_is_written_as_the_codec_encodes_it() -> None:
    stored = StoredValues(PickleSerializer(), Classes.imported())
    model = Box[tuple[date | Decimal, ...]](content=(MOMENT.date(), Decimal(1)))
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(model)
    for value in (model, [model, (1, {2}), {"$tf": 1, "v": 2}]):
        read = stored.loads(stored.dumps(value))
        assert read == value
        assert type(read) is type(value)


class OwnJson(JSONSerializer):
    """A serializer of the user's, of plain data as well."""


class OwnJsonOfDataclasses(OwnJson):
    """Writes dataclasses as ``orjson`` does, and gives dictionaries back."""

    def __init__(self) -> None:
        default: Any = lambda value: {"tree": value.tree}  # noqa: E731 - the annotation is wrong
        super().__init__(default)


@pytest.mark.parametrize("serializer", [OwnJson(), OwnJsonOfDataclasses()])
def test_a_serializer_of_the_users_that_loses_classes_is_given_plain_data(
    serializer: JSONSerializer,
) -> None:
    stored = StoredValues(serializer, Classes.imported())
    assert stored.loads(stored.dumps({"at": date(2026, 1, 2)})) == {"at": "2026-01-02"}


def test_what_neither_a_serializer_nor_the_codec_takes_is_an_error() -> None:
    with pytest.raises(SerializationError):
        StoredValues(PickleSerializer(), Classes()).dumps([lambda: None])


def test_a_value_is_read_as_it_was_written() -> None:
    value = [Point(1, frozenset(["a"])), (1, {2}), MOMENT, Colour.RED, 1j, b"x"]
    assert JSON.loads(JSON.dumps(value)) == value
    assert JSON.loads(JSON.dumps({"$tf": 1, "v": 2})) == {"$tf": 1, "v": 2}


@pytest.mark.parametrize("value", [object(), {"a": [object()]}, lambda: None, {1: {2: object()}}])
def test_a_value_that_cannot_be_written_is_an_error(value: object) -> None:
    with pytest.raises(SerializationError):
        JSON.dumps(value)


@pytest.mark.parametrize("value", [[10**5000], {"a": [-(10**5000), True]}, [[2**70, "\ud800"]]])
def test_integers_of_any_size_are_written_also_within_plain_data(value: object) -> None:
    assert JSON.loads(JSON.dumps(value)) == value
