"""What clients receive that come and go, are slow, or ask for events that are not there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAGBuilder,
    ElementsKnown,
    ExecutionEngine,
    Lease,
    MemoryJournal,
    RunStarted,
    SqliteJournal,
)
from taskiq_flow.web import runs_app, server, streams, window
from taskiq_flow.web.server import serve_async
from tests.waiting import LONGEST, until
from tests.web.site import Content, Serve, Site, lines_of, log_of, run_example
from tests.web.written import Written

SSE = {"accept": "text/event-stream"}


async def read_sse(
    site: Site,
    path: str,
    last: str | bytes | None,
    received: list[tuple[int, Content]],
    stop_after: int | None = None,
) -> bool:
    """Read server-sent events, as an EventSource does. Returns whether there will be more."""
    headers: dict[str, Any] = dict(SSE) if last is None else {**SSE, "last-event-id": last}
    async with site.client.stream("GET", path, headers=headers) as response:
        if response.status_code == 204:
            return False
        assert response.headers["content-type"].startswith("text/event-stream")
        number = 0
        async for line in response.aiter_lines():
            if line.startswith("id: "):
                number = int(line[4:])
            elif line.startswith("data: "):
                received.append((number, json.loads(line[6:])))
                if stop_after is not None and len(received) >= stop_after:
                    return True
    return True


async def test_what_is_received_over_100_disconnects_is_the_log(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "FRAME_SECONDS", 0.01)
    journal = SqliteJournal(tmp_path / "runs.db")
    run, chance = Written(journal), random.Random(7)
    await run.begin()
    site = await serve(runs_app(journal))

    async def write() -> None:
        for _ in range(150):
            await run.send(chance.randint(1, 20))
            await asyncio.sleep(0)
        await run.end()

    path = "/api/v1/runs/r1/events"
    steady: list[tuple[int, Content]] = []  # of one who stays, so that all share a window
    staying = asyncio.create_task(read_sse(site, path, None, steady))
    writing = asyncio.create_task(write())
    received: list[tuple[int, Content]] = []
    disconnects = 0
    while True:
        last = str(received[-1][0]) if received else None
        few = len(received) + chance.randint(1, 12) if disconnects < 100 else None
        if not await read_sse(site, path, last, received, few):
            break
        disconnects += few is not None
    await writing
    await staying
    assert disconnects >= 100
    assert steady == received
    assert [content for _, content in received] == await log_of(journal, "r1")
    assert all(number == content["seq"] for number, content in received)
    await journal.aclose()


async def test_an_id_that_the_run_does_not_have_resets_the_client(serve: Serve) -> None:
    journal = MemoryJournal()
    await run_example(journal)
    site = await serve(runs_app(journal))
    log = await log_of(journal, "r1")
    for given in (str(len(log) + 1), "99999", "-1", "abc", "1.5", "9" * 500, "", "٣"):
        received: list[tuple[int, Content]] = []
        await read_sse(site, "/api/v1/runs/r1/events", given.encode(), received)
        assert (received[0][0], received[0][1]["type"]) == (0, "reset")
        assert [number for number, _ in received[1:]] == [*range(1, len(received))]
        assert len(received) == 1 + len(log)


async def test_an_old_id_is_replayed_from_there(serve: Serve) -> None:
    journal = MemoryJournal()
    await run_example(journal)
    site = await serve(runs_app(journal))
    received: list[tuple[int, Content]] = []
    await read_sse(site, "/api/v1/runs/r1/events", "2", received)
    assert [number for number, _ in received] == [*range(3, len(await log_of(journal, "r1")) + 1)]


async def test_who_is_behind_the_window_reads_the_journal(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "MOST_EVENTS", 50)
    monkeypatch.setattr(window, "FRAME_SECONDS", 0.01)
    journal = MemoryJournal()
    run = Written(journal)
    await run.begin()
    app = runs_app(journal)
    site = await serve(app)
    path = "/api/v1/runs/r1/events"
    watching = [asyncio.create_task(lines_of(site, path))]
    windows = app.state.hub._windows
    async with asyncio.timeout(LONGEST):
        while "r1" not in windows or windows["r1"].floor < 100:
            await run.send(20)
            await asyncio.sleep(0.02)
        within = windows["r1"].floor + 3  # within a frame of the window
        for after in (5, within):
            watching.append(asyncio.create_task(lines_of(site, f"{path}?after={after}")))
        await until(lambda: windows["r1"].watchers == len(watching), "all watch")
    await run.send(5)
    await run.end()
    log = await log_of(journal, "r1")
    assert await asyncio.gather(*watching) == [log, log[5:], log[within:]]


async def test_a_run_in_the_place_of_another_ends_the_stream_of_that_one(serve: Serve) -> None:
    journal = MemoryJournal()
    run, other = Written(journal), Written(journal)
    await run.begin(RunStarted("r1", 0.0, ("load",), time=1.0))
    await run.leave()
    app = runs_app(journal)
    site = await serve(app)
    watching = asyncio.create_task(lines_of(site, "/api/v1/runs/r1/events"))
    await until(lambda: "r1" in app.state.hub._windows, "it is watched")
    await until(lambda: app.state.hub._windows["r1"]._frames, "its first event is sent")
    await journal.delete("r1")
    await other.begin(RunStarted("r1", 0.0, ("save",), time=2.0))
    await other.send(3)
    async with asyncio.timeout(LONGEST):
        assert [event["time"] for event in await watching] == [1.0]


async def test_a_run_is_looked_at_a_few_times_a_second_however_often_it_changes(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "FRAME_SECONDS", 0.2)
    journal, looks = MemoryJournal(), 0
    stored = journal.events

    def counted(run_id: str, after: int = 0) -> Any:
        nonlocal looks
        looks += 1
        return stored(run_id, after)

    monkeypatch.setattr(journal, "events", counted)
    run = Written(journal)
    await run.begin()
    site = await serve(runs_app(journal))
    begun = time.monotonic()
    watching = asyncio.create_task(lines_of(site, "/api/v1/runs/r1/events"))
    for _ in range(50):
        await run.send(1)
        await asyncio.sleep(0.01)
    await run.end()
    assert len(await watching) == 52
    assert looks <= (time.monotonic() - begun) / 0.2 + 2


async def test_events_that_were_never_written_show_as_a_gap(serve: Serve) -> None:
    journal = MemoryJournal()
    run = Written(journal)
    await run.begin()
    run.skip(7)
    await run.end()
    site = await serve(runs_app(journal))
    types = [
        (e["type"], e["seq"], e.get("missed"))
        for e in await lines_of(site, "/api/v1/runs/r1/events")
    ]
    assert types == [("run.started", 1, None), ("gap", 8, 7), ("run.ended", 9, None)]


async def check_that_one_that_takes_nothing_is_disconnected(serve: Serve) -> None:
    journal = MemoryJournal()
    run = Written(journal)
    await run.begin()
    app = runs_app(journal)
    site = await serve(app)
    with socket.create_connection(site.address) as stalled:
        stalled.sendall(b"GET /api/v1/runs/r1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: app.state.hub._windows, "it watches")
        for _ in range(12):  # more than the buffers of the kernel take
            await run.send(2_000, "x" * 400)
        await until(lambda: not app.state.hub._windows, "nobody watches any more")


async def test_a_client_that_takes_nothing_is_disconnected(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STUCK_SECONDS", 0.3)
    await check_that_one_that_takes_nothing_is_disconnected(serve)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="TCP cannot be told so here")
async def test_a_client_that_acknowledges_nothing_is_disconnected(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that has vanished; here its buffer is full, of which TCP knows as little more."""
    monkeypatch.setattr(server, "GONE_SECONDS", 0.3)
    monkeypatch.setattr(streams, "STUCK_SECONDS", 1_000.0)
    await check_that_one_that_takes_nothing_is_disconnected(serve)


async def test_open_streams_end_when_the_server_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_GRACEFUL_SECONDS", 60)  # after which they would be ended
    journal = MemoryJournal()
    run = Written(journal)
    await run.begin()
    ready = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve_async(runs_app(journal), port=0, on_ready=ready.set_result))
    address = await ready
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /api/v1/runs/r1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"run.started")
    others, other_writer = await asyncio.open_connection(host, int(port))
    other_writer.write(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await others.readuntil(b"run.summary")
    serving.cancel()
    async with asyncio.timeout(LONGEST):
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        await reader.read()
        await others.read()
    writer.close()
    other_writer.close()


SERVER = """
import signal
from taskiq_flow import MemoryJournal
from taskiq_flow.web import runs_app, serve, server
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
server._GRACEFUL_SECONDS = 60
serve(runs_app(MemoryJournal()), port=0, on_ready=lambda address: print(address, flush=True))
print("stopped")
"""


@pytest.mark.parametrize(
    ("number", "code", "output"),
    [(signal.SIGINT, 0, b"stopped\n"), (signal.SIGHUP, -signal.SIGHUP, b"")],
)
async def test_a_signal_stops_the_server_though_a_stream_is_open(
    number: signal.Signals, code: int, output: bytes
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    address = (await process.stdout.readline()).decode().strip()
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readline()
    process.send_signal(number)
    async with asyncio.timeout(LONGEST):
        assert (await reader.read()).endswith(b"0\r\n\r\n")  # the stream has ended
        assert await process.stdout.read() == output
        assert await process.wait() == code
    writer.close()


async def test_a_run_whose_engine_is_gone_is_interrupted_and_may_go_on(serve: Serve) -> None:
    journal = MemoryJournal()
    run = Written(journal, lease_seconds=0.0)
    await run.begin()
    app = runs_app(journal)
    site = await serve(app)
    assert (await site.json("/api/v1/runs/r1"))["status"] == "interrupted"
    watching = asyncio.create_task(lines_of(site, "/api/v1/runs/r1/events"))
    await until(lambda: app.state.hub._windows, "it is watched")
    await run.end()  # another engine went on with it
    assert [event["type"] for event in await watching] == ["run.started", "run.ended"]


async def test_a_list_that_cannot_be_read_any_more_ends(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = runs_app(MemoryJournal())
    monkeypatch.setattr(app.state.hub.reader, "runs", lambda **options: 1 / 0)
    site = await serve(app)
    assert await lines_of(site, "/api/v1/events") == []


async def test_the_head_of_a_stream_ends(serve: Serve) -> None:
    app = runs_app(MemoryJournal())
    site = await serve(app)
    assert (await site.client.head("/api/v1/events")).status_code == 200
    await site.get("/api/v1/about")
    assert not app.state.hub.recent._watchers


async def test_a_run_of_a_journal_without_events_is_read_to_its_end(serve: Serve) -> None:
    class Plain:
        """The nine methods that a journal has at least."""

        def __init__(self) -> None:
            inner = MemoryJournal()
            self.serializer = inner.serializer
            for name in ["acquire", "renew", "release", "read", "run_ids", "delete", "aclose"]:
                setattr(self, name, getattr(inner, name))
            self._inner = inner

        async def create(self, run_id: str, lease: Lease, chunk: bytes) -> None:
            await self._inner.create(run_id, lease, chunk)

        async def append(self, run_id: str, lease: Lease, chunk: bytes) -> None:
            await self._inner.append(run_id, lease, chunk)

    journal: Any = Plain()
    dag = DAGBuilder().node(abs, inputs=["number"]).build()
    await ExecutionEngine(InMemoryBroker(), dag, journal=journal).execute({"number": 1}, run_id="r")
    site = await serve(runs_app(journal))
    types = [event["type"] for event in await lines_of(site, "/api/v1/runs/r/events")]
    assert types[0] == "run.started"
    assert types[-1] == "run.ended"
    assert (await site.json("/api/v1/runs"))["runs"][0]["run"] == "r"


async def test_a_request_is_told_to_who_watches_and_to_who_comes_later(
    serve: Serve, tmp_path: Path
) -> None:
    journal = SqliteJournal(tmp_path / "runs.db")
    run = Written(journal)
    await run.begin()
    site, path = await serve(runs_app(journal, control=True)), "/api/v1/runs/r1/events"
    received: list[tuple[int, Content]] = []
    watching = asyncio.create_task(read_sse(site, path, None, received, stop_after=2))
    assert (await site.client.post("/api/v1/runs/r1/cancel")).status_code == 202
    await watching
    assert [content["type"] for _, content in received] == ["run.started", "run.requested"]
    await read_sse(site, path, "1", received, stop_after=3)
    number, told = received[-1]
    assert (number, told["seq"], told["request"]) == (1, 1, "cancel")
    await run.end()
    types = [event["type"] for event in await lines_of(site, path)]
    assert types == ["run.started", "run.ended"]
    await journal.aclose()


async def test_elements_of_lists_within_lists_are_told_once_for_each_frame(serve: Serve) -> None:
    journal = MemoryJournal()
    run = Written(journal)
    await run.begin()
    mapped = RunStarted("r1", 0.0, ("read", "flat"), mapped={"read": 2, "flat": 1}, time=1.0)
    await run.write(mapped, ElementsKnown("r1", 0.0, "flat", 7))
    await run.write(ElementsKnown("r1", 0.0, "read", 400))
    lists = [ElementsKnown("r1", 0.0, f"read[{number}]", 3) for number in range(400)]
    await run.write(*lists[:100])
    site = await serve(runs_app(journal))
    alone: list[tuple[int, Content]] = []
    await read_sse(site, "/api/v1/runs/r1/events", "4", alone, stop_after=1)
    assert (alone[0][1]["node"], alone[0][1]["known"]) == ("read", 300)
    watching = asyncio.create_task(lines_of(site, "/api/v1/runs/r1/events"))
    seq = (await site.json("/api/v1/runs/r1"))["seq"]
    later = asyncio.create_task(lines_of(site, f"/api/v1/runs/r1/events?after={seq}"))
    for start in range(100, 400, 50):
        await run.write(*lists[start : start + 50])
        await asyncio.sleep(0.02)
    await run.end()
    for lines in (await watching, await later):
        told = [event["known"] for event in lines if event.get("node") == "read"]
        assert told == sorted(told)
        assert told[-1] == 1200
        assert len(told) < 12
        assert [event["seq"] for event in lines] == sorted(event["seq"] for event in lines)
    assert {e["known"] for e in await watching if e.get("node") == "flat"} == {7}
