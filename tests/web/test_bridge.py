"""What hooks are told, over a WebSocket, by a real client."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from taskiq import InMemoryBroker
from websockets.exceptions import ConnectionClosed, InvalidStatus

from taskiq_flow import (
    ConfigurationError,
    EventFilter,
    HookManager,
    Pipeline,
    PipelineTrackingManager,
    StepStartEvent,
    TrackingEventBroadcaster,
)
from taskiq_flow.web import bridge as bridge_module
from taskiq_flow.web import create_visualization_api, server, setup_websocket_bridge
from taskiq_flow.web import serve as serve_forever
from taskiq_flow.web import socket as socket_module
from tests.journal.nightly import odd
from tests.waiting import LONGEST
from tests.web.site import Client, Content, Serve, connected, serving

TOKEN = "a-token-that-nobody-guesses"
ENDS = ("pipeline_complete", "pipeline_error")


async def run(listener: Any, number: int, pipeline_id: str) -> None:
    pipeline = Pipeline(InMemoryBroker(), pipeline_id=pipeline_id).with_hooks(listener)
    task = await pipeline.call_next(odd).call_next(hex).kiq(number)
    await task.wait_result(timeout=LONGEST)


def step(pipeline_id: str, task_id: str) -> StepStartEvent:
    return StepStartEvent(
        pipeline_id=pipeline_id,
        timestamp=datetime.now(UTC),
        step_name="odd",
        step_index=0,
        task_id=task_id,
    )


async def until_ended(client: Client) -> list[Content]:
    lines = [await client.line()]
    while lines[-1]["type"] not in ENDS:
        lines.append(await client.line())
    return lines


async def subscribed(client: Client, pipeline_id: str, **more: object) -> None:
    await client.ask(type="subscribe", pipeline_id=pipeline_id, **more)


async def test_the_six_events_reach_whoever_subscribed(serve: Serve) -> None:
    hooks = HookManager()
    site = await serve(setup_websocket_bridge(hooks))
    async with connected(site.base) as client:
        await subscribed(client, "good")
        await run(hooks, 4, "other")
        await run(hooks, 4, "good")
        start, step, done, *_, end = await until_ended(client)
        assert (start["type"], start["pipeline_type"]) == ("pipeline_start", "sequential")
        assert (step["type"], step["step_name"], step["step_index"]) == ("step_start", "odd", 0)
        assert done["result"]["text"] == "4"
        assert (end["status"], end["result"]["text"]) == ("COMPLETED", "0x4")
        assert datetime.fromisoformat(end["timestamp"]).tzinfo is not None
        assert {line["pipeline_id"] for line in (start, step, done, end)} == {"good"}

        await subscribed(client, "bad")
        await run(hooks, 5, "bad")
        *_, failed, error = await until_ended(client)
        assert (failed["type"], failed["error"]["message"]) == ("step_error", "5 is odd")
        assert error["type"] == "pipeline_error"


async def test_the_star_stands_for_all_pipelines_until_it_is_unsubscribed(serve: Serve) -> None:
    hooks = HookManager().add_filter(EventFilter(event_types=["pipeline_start", *ENDS]))
    site = await serve(setup_websocket_bridge(hooks))
    async with connected(site.base) as client:
        await subscribed(client, "*")
        await run(hooks, 4, "a")
        await run(hooks, 4, "b")
        told = [await client.line() for _ in range(4)]
        assert [one["pipeline_id"] for one in told] == ["a", "a", "b", "b"]
        await client.ask(type="unsubscribe", pipeline_id="*")
        await client.ask(type="cancel", pipeline_id="a")
        assert "nothing is cancelled here" in (await client.line())["message"]
        await run(hooks, 4, "c")
        await subscribed(client, "c")
        assert [one["pipeline_id"] for one in await until_ended(client)] == ["c", "c"]


async def test_a_client_goes_on_after_the_event_that_it_has_seen(serve: Serve) -> None:
    hooks = HookManager()
    site = await serve(setup_websocket_bridge(hooks))
    async with connected(site.base) as client:
        await run(hooks, 4, "a")
        await subscribed(client, "a")
        seen = await until_ended(client)
    await run(hooks, 4, "b")
    for number, event in enumerate(seen[:-1]):
        async with connected(site.base) as client:
            await subscribed(client, "a", after=event["id"])
            assert await until_ended(client) == seen[number + 1 :]


async def test_an_unknown_id_resets(serve: Serve) -> None:
    hooks = HookManager()
    site = await serve(setup_websocket_bridge(hooks))
    await run(hooks, 4, "a")
    async with connected(site.base) as client:
        await subscribed(client, "a")
        events = await until_ended(client)
        name = events[0]["id"].partition("-")[0]
        unknown: list[object] = [f"{name}-{rest}" for rest in ("9", "99", "", "x", "9" * 5_000)]
        for after in (*unknown, "other-1", 7, []):
            await client.ask(type="unsubscribe", pipeline_id="a")
            await subscribed(client, "a", after=after)
            assert (await client.line())["type"] == "reset"
            assert await until_ended(client) == events


async def test_who_comes_too_late_is_told_a_gap(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge_module, "MOST_EVENTS", 10)
    hooks = HookManager()
    site = await serve(setup_websocket_bridge(hooks))
    await run(hooks, 4, "a")  # six events
    async with connected(site.base) as client:
        await subscribed(client, "a")
        first = (await client.line())["id"]
    await run(hooks, 4, "b")  # the two oldest are not held any more
    async with connected(site.base) as client:
        await subscribed(client, "*", after=first)
        gap = await client.line()
        assert (gap["type"], gap["missed"]) == ("gap", 1)
        rest = [await client.line() for _ in range(10)]
        await client.ask(type="unsubscribe", pipeline_id="*")
        await subscribed(client, "*", after=gap["id"])
        assert [await client.line() for _ in range(10)] == rest
        await subscribed(client, "a")  # who has seen nothing has missed nothing
        assert (await client.line())["type"] == "step_complete"


async def test_frames_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_module, "MOST_CHARACTERS", 500)
    hooks, bridge = HookManager(), bridge_module.Bridge()
    hooks.add_hook(bridge)
    for number in range(5):
        await run(hooks, 4, f"run-{number}")
    frames = bridge.frames("*", None)
    seen = 0
    while seen < 30:
        frame = await anext(frames)
        assert frame is not None
        assert len(frame.encoded("lines")) < 1_200
        seen += len(frame)
    await frames.aclose()


async def test_a_client_that_takes_nothing_is_disconnected_and_others_are_not(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_left = asyncio.Event()

    class Watched(socket_module.Socket):
        async def serve(self) -> None:
            await super().serve()
            is_left.set()

    monkeypatch.setattr(bridge_module, "Socket", Watched)
    monkeypatch.setattr(socket_module, "STUCK_SECONDS", 0.3)
    app = setup_websocket_bridge(HookManager())
    site = await serve(app)
    async with connected(site.base) as stalled, connected(site.base) as other:
        for client in (stalled, other):
            await subscribed(client, "a")
            app.state.bridge.on_step_start(step("a", "x"))
            await client.line()
        stalled.connection.transport.pause_reading()
        for number in range(20):  # more than the buffers of the kernel take
            app.state.bridge.on_step_start(step("a", f"{number} " + "x" * 1_000_000))
        async with asyncio.timeout(LONGEST):
            await other.line()
            assert [(await other.line())["task_id"].split()[0] for _ in range(20)] == [
                str(number) for number in range(20)
            ]
            await is_left.wait()
            stalled.connection.transport.resume_reading()
            with pytest.raises(ConnectionClosed):
                while True:
                    await stalled.line()
        app.state.bridge.on_step_start(step("a", "after"))
        assert (await other.line())["task_id"] == "after"


async def test_the_server_stops_while_clients_are_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_GRACEFUL_SECONDS", 60)  # after which they would be cut off
    app = setup_websocket_bridge(HookManager())
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(LONGEST), serving(app) as address:
            client = await stack.enter_async_context(connected(address))
            await subscribed(client, "*")
            app.state.bridge.on_step_start(step("a", "x"))
            await client.line()
        with pytest.raises(ConnectionClosed):
            while True:
                await client.line()


async def test_hooks_may_be_called_in_another_thread(serve: Serve) -> None:
    hooks = HookManager()
    site = await serve(setup_websocket_bridge(hooks))
    async with connected(site.base) as client:
        await subscribed(client, "a")
        await run(hooks, 4, "a")
        await until_ended(client)
        asyncio.get_running_loop().set_debug(True)  # refuses what is not safe there
        thread = threading.Thread(target=lambda: asyncio.run(run(hooks, 4, "a")))
        thread.start()
        assert len(await until_ended(client)) == 6
        thread.join()


async def test_only_those_who_may_are_connected(serve: Serve) -> None:
    site = await serve(setup_websocket_bridge(HookManager(), token=TOKEN))
    right = {"authorization": f"Bearer {TOKEN}"}
    async with connected(site.base, **right) as client:
        await client.ask(type="cancel", pipeline_id="a")
        await client.line()
    refused: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer wrong"},
        {**right, "origin": "http://evil.example"},
    ]
    for headers in refused:
        with pytest.raises(InvalidStatus):
            async with connected(site.base, **headers):
                pass
    elsewhere = await serve(setup_websocket_bridge(HookManager(), allowed_hosts=["flows.example"]))
    with pytest.raises(InvalidStatus):
        async with connected(elsewhere.base):
            pass


async def test_messages_and_connections_are_bounded(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskiq_flow.web.guard.MOST_OF_ADDRESS", 1)
    site = await serve(setup_websocket_bridge(HookManager()))
    async with connected(site.base) as client:
        with pytest.raises(InvalidStatus):
            async with connected(site.base):
                pass
        assert await client.close_code_after("x" * 70_000) == 1009


async def test_it_is_mounted_and_serves_pipelines_as_well(serve: Serve) -> None:
    hooks, broker = HookManager(), InMemoryBroker()
    api = create_visualization_api(broker, setup_websocket_bridge(hooks), control=True)
    pipeline = Pipeline(broker).with_hooks(hooks)
    api.add_pipeline("odd", pipeline.call_next(odd))
    for app, path in ((api.app, ""), (Starlette(routes=[Mount("/flow", api.app)]), "/flow")):
        site = await serve(app)
        begun = (await site.post(f"{path}/pipelines/odd", {"args": [4]})).json()
        async with connected(site.base, f"{path}/ws") as client:
            await subscribed(client, begun["pipeline_id"])
            assert (await until_ended(client))[0]["type"] == "pipeline_start"


async def test_what_is_tracked_reaches_clients(serve: Serve) -> None:
    tracking, hooks = PipelineTrackingManager(), HookManager()
    TrackingEventBroadcaster(tracking, hooks)
    site = await serve(setup_websocket_bridge(hooks))
    async with connected(site.base) as client:
        await subscribed(client, "*")
        await run(tracking, 4, "a")
        assert [line["type"] for line in await until_ended(client)] == [
            *("pipeline_start", "step_start", "step_complete", "step_start", "step_complete"),
            "pipeline_complete",
        ]


def test_other_machines_reach_it_with_tokens_for_all_routes_only() -> None:
    broker = InMemoryBroker()
    for bridge, rest in ((None, None), (TOKEN, None), (None, TOKEN)):
        app = setup_websocket_bridge(HookManager(), token=bridge)
        create_visualization_api(broker, app, token=rest)
        with pytest.raises(ConfigurationError, match="has no token"):
            serve_forever(app, host="192.0.2.1")


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="give a HookManager"):
        setup_websocket_bridge(PipelineTrackingManager())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="give a list of names"):
        setup_websocket_bridge(HookManager(), allowed_hosts="flows.example")
    with pytest.raises(ValueError, match="give at least 16"):
        setup_websocket_bridge(HookManager(), token="short")
