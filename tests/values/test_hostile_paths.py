"""Hostile data on each way on which values arrive: a clear error, and nothing is executed."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from taskiq import BrokerMessage, InMemoryBroker, TaskiqResult
from taskiq.serializers import JSONSerializer

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    JournalError,
    MemoryJournal,
    NodeFailedError,
    SerializationError,
    SqliteJournal,
)
from taskiq_flow.journal.records import chunk, records
from taskiq_flow.testing import LocalBroker, LocalFlowMiddleware, LocalNotices
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import ValueCodec
from taskiq_flow.values.results import restored
from taskiq_flow.values.stored import StoredValues
from taskiq_flow.values.wire import VALUES, Wire
from tests.local_flow import with_flow
from tests.values.test_codec_hostile import HOSTILE, frame

OPEN = Classes.imported()
WIRE = Wire(ValueCodec(), OPEN)
OWN = LookupError("the task's own")


def of_a_message(payload: Any) -> Any:
    return WIRE.decode_call("t", {VALUES: payload})


def of_a_result(payload: Any) -> Any:
    """Of the result backend, or of a notice."""
    result = TaskiqResult(
        is_err=False, return_value=payload, execution_time=0.0, labels={VALUES: "1"}
    )
    return restored("t", result, None, WIRE).raise_for_error().return_value


def of_an_error(payload: Any) -> BaseException | None:
    result = TaskiqResult(
        is_err=True, return_value=payload, execution_time=0.0, error=OWN, labels={VALUES: "1"}
    )
    return restored("t", result, None, WIRE).error


def of_items(tree: Any) -> Any:
    return WIRE.decode_items("t", 0, json.dumps([tree]).encode(), "", 1)


def of_a_journal(tree: Any) -> Any:
    """Or of a cache."""
    return StoredValues(JSONSerializer(), OPEN).loads(json.dumps(tree).encode())


def of_a_store(tree: Any) -> Any:
    return ValueCodec().decode_frame(frame({"v": tree["v"], "sizes": []}), OPEN)


WAYS: dict[str, Callable[[Any], Any]] = {
    "message": lambda tree: of_a_message({"value": tree}),
    "result": lambda tree: of_a_result({"value": tree}),
    "items": of_items,
    "journal": of_a_journal,
    "store": of_a_store,
}


def has_json(parts: Any) -> bool:
    """Whether the module ``json`` can write it."""
    try:
        json.dumps(parts)
    except RecursionError:
        return False
    return True


SENT = {name: parts for name, parts in HOSTILE.items() if has_json(parts)}


@pytest.mark.parametrize("parts", SENT.values(), ids=SENT)
@pytest.mark.parametrize("way", WAYS)
def test_a_hostile_tag_is_an_error(way: str, parts: Any) -> None:
    with pytest.raises(SerializationError):
        WAYS[way]({"$tf": 1, "v": {"$tf": parts}})


@pytest.mark.parametrize("parts", HOSTILE.values(), ids=HOSTILE)
def test_an_error_that_cannot_be_restored_is_the_one_that_taskiq_has_made(parts: Any) -> None:
    assert of_an_error({"error": {"$tf": 1, "v": {"$tf": parts}}}) is OWN


@pytest.mark.parametrize(
    "payload",
    [None, "x", [], {}, {"object": 3}, {"other": 1}, {"value": {"$tf": 1}}, {"value": {"$tf": 9}}],
)  # fmt: skip
def test_a_payload_of_another_form_is_an_error(payload: Any) -> None:
    for way in (of_a_message, of_a_result):
        with pytest.raises(SerializationError):
            way(payload)
    assert of_an_error(payload) is OWN
    with pytest.raises(SerializationError):
        of_a_message({"value": {"$tf": 1, "v": [1, 2]}})
    assert of_an_error({"error": {"$tf": 1, "v": {"$tf": ["t", []]}}}) is OWN


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 90_000 + "]" * 90_000, "1" * 5000])
def test_items_that_cannot_be_parsed_are_damaged(text: str) -> None:
    content = f'[{{"$tf": 1, "v": {text}}}]'.encode()
    with pytest.raises(SerializationError, match="the items of task 't' are damaged"):
        WIRE.decode_items("t", 0, content, "", 1)


STRANGE: dict[str, Any] = {
    name: {"$tf": 1, "v": {"$tf": HOSTILE[name]}}
    for name in ("a function", "a huge exponent", "an array that lies")
}
STRANGE["deep lists"] = {"$tf": 1, "v": json.loads("[" * 210 + "]" * 210)}


class Altered(LocalBroker):
    """Puts something else in the place of what stands in a message, or in a result."""

    def __init__(self, tree: Any, what: str) -> None:
        super().__init__()
        self._tree, self._what = tree, what
        with_flow(self, LocalNotices(), inline_limit=0)
        if what == "result":
            given = self.results.set_result

            async def set_result(task_id: str, result: TaskiqResult[Any]) -> None:
                payload = {"value": tree}
                await given(task_id, result.model_copy(update={"return_value": payload}))

            self.results.set_result = set_result  # type: ignore[method-assign]

    async def kick(self, message: BrokerMessage) -> None:
        if self._what == "message":
            content = json.loads(message.message)
            content["kwargs"][VALUES]["value"] = self._tree
            message.message = json.dumps(content).encode()
        await super().kick(message)


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("what", ["message", "result"])
async def test_a_node_fails_whose_values_are_hostile(what: str, name: str) -> None:
    broker, executed = Altered(STRANGE[name], what), []

    @broker.task
    async def keep(value: Any) -> Any:
        executed.append(value)
        return value

    dag = DAGBuilder().node(keep).build()
    async with broker.worker():
        with pytest.raises(NodeFailedError) as caught:
            await ExecutionEngine(broker, dag).execute({"value": (1,)})
    assert isinstance(caught.value.__cause__, SerializationError)
    assert executed == ([] if what == "message" else [(1,)])
    for middleware in broker.middlewares:
        assert isinstance(middleware, LocalFlowMiddleware)
        await middleware.shutdown()


WRITTEN = b'{"$tf": 1, "v": {"$tf": ["t", [1]]}}'


def kept() -> Any:
    return (1,)


@pytest.mark.parametrize("name", STRANGE)
async def test_a_run_is_not_resumed_with_hostile_values(name: str) -> None:
    journal, dag = MemoryJournal(), DAGBuilder().node(kept).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
    await engine.execute(run_id="r")
    for place, data in enumerate(log := journal._logs["r"].chunks):
        entries = [
            entry._replace(data=json.dumps(STRANGE[name]).encode())
            if entry.data == WRITTEN
            else entry
            for entry in records(data)
        ]
        log[place] = chunk(entry.encoded() for entry in entries)
    with pytest.raises(JournalError, match="result of node 'kept' of run 'r' cannot be read"):
        [pair async for pair in engine.resume("r")]


@pytest.mark.parametrize("name", STRANGE)
async def test_a_hostile_entry_of_a_cache_is_computed_anew(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "runs.db"
    dag = DAGBuilder().node(kept, cache=True).build()
    for content in (json.dumps(STRANGE[name]).encode(), None):
        journal = SqliteJournal(place)
        engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
        assert await engine.execute() == {"kept": (1,)}
        await journal.aclose()
        if content is not None:
            with contextlib.closing(sqlite3.connect(place)) as database, database:
                database.execute(
                    "UPDATE cache SET value = CAST(substr(value, 1, 8) || ? AS BLOB)", (content,)
                )
    assert "a cached result cannot be read" in caplog.text
