"""The WebSocket, by a real client."""

from __future__ import annotations

import asyncio
import json

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, MemoryJournal, RunCancelledError
from taskiq_flow.web import runs_app
from taskiq_flow.web import socket as socket_module
from tests.web.site import Content, Serve, connected, log_of, run_example


@pytest.fixture
async def journal() -> MemoryJournal:
    journal = MemoryJournal()
    await run_example(journal)
    return journal


@pytest.mark.parametrize(
    ("message", "after"),
    [
        ({"op": "subscribe", "run": "r1"}, 0),
        ({"op": "subscribe", "run": "r1", "after": 4}, 4),
        ({"type": "subscribe", "pipeline_id": "r1"}, 0),
    ],
)
async def test_a_run_is_watched_to_its_end(
    serve: Serve, journal: MemoryJournal, message: Content, after: int
) -> None:
    site = await serve(runs_app(journal))
    async with connected(site.base) as client:
        await client.ask(**message)
        log = json.loads(json.dumps(await log_of(journal, "r1")))
        assert await client.until_ended() == log[after:]


async def test_one_connection_watches_several_runs_and_the_list(
    serve: Serve, journal: MemoryJournal
) -> None:
    await run_example(journal, "r2")
    site = await serve(runs_app(journal))
    async with connected(site.base) as client:
        await client.ask(op="subscribe", run="r1")
        first = await client.until_ended()
        await client.ask(op="subscribe", run="r2")
        second = await client.until_ended()
        assert ({e["run"] for e in first}, {e["run"] for e in second}) == ({"r1"}, {"r2"})
        await client.ask(op="subscribe", run="*")
        assert {(await client.line())["run"] for _ in range(2)} == {"r1", "r2"}
        await client.ask(op="unsubscribe", run="*")


async def test_an_unknown_number_resets(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal))
    async with connected(site.base) as client:
        await client.ask(op="subscribe", run="r1", after="rubbish")
        assert (await client.until_ended())[0]["type"] == "reset"


WRONG = ["", "[]", "{", '{"op": "dance", "run": "r1"}', '{"op": "subscribe"}', "[" * 9000, "1"]
WRONG.append('{"op": "subscribe", "run": "\\ud800"}')


async def test_a_wrong_message_is_answered_and_the_connection_stays(
    serve: Serve, journal: MemoryJournal
) -> None:
    site = await serve(runs_app(journal))
    async with connected(site.base) as client:
        for message in WRONG:
            await client.connection.send(message)
            assert (await client.line())["op"] == "error"
        await client.ask(op="subscribe", run="r9")
        assert "r9" in (await client.line())["message"]
        await client.ask(op="subscribe", run="r1")
        assert await client.until_ended()


async def test_a_connection_watches_a_bounded_number_of_runs(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_module, "MOST_WATCHED", 1)
    journal = MemoryJournal()
    site = await serve(runs_app(journal))
    async with connected(site.base) as client:
        await client.ask(op="subscribe", run="*")
        await client.ask(op="subscribe", run="r2")
        assert "unsubscribe" in (await client.line())["message"]


async def test_a_large_message_closes_the_connection(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal))
    async with connected(site.base) as client:
        assert await client.close_code_after("x" * 70_000) == 1009


async def test_a_run_is_cancelled_only_with_control(serve: Serve) -> None:
    journal = MemoryJournal()
    never = asyncio.Event()
    dag = DAGBuilder().node(lambda n: never.wait(), name="wait", inputs=["n"]).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
    handle = engine.start({"n": 1}, run_id="r1")
    reading = await serve(runs_app(engine))
    await reading.until_there("/api/v1/runs/r1")
    async with connected(reading.base) as client:
        await client.ask(op="cancel", run="r1")
        assert "read-only" in (await client.line())["message"]
    driving = await serve(runs_app(engine, control=True))
    async with connected(driving.base) as client:
        await client.ask(op="cancel", run="r1")
        assert await client.line() == {"op": "cancel", "run": "r1", "requested": True}
        with pytest.raises(RunCancelledError):
            await handle
