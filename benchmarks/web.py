"""What those who watch runs cost, and what bad clients cost: a server in a process of its own.

The run is in the server's process and at a fixed pace, so that what holds the event loop up makes
it longer. Memory is that of the whole process.
"""

from __future__ import annotations

import asyncio
import re
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import CHECKED, Check, NotInstalledError, Options, print_table
from benchmarks.web_site import PARALLEL, PAUSE, Server, server
from taskiq_flow import NodeStarted, RunFinished, RunStarted, SqliteJournal
from tests.web.written import Written

CLIENTS = 200
MOST_SLOWDOWN, MOST_SHARE = 1.1, 0.1
MOST_MEGABYTES = 5.0
MOST_SECONDS = 15.0
"""After so long, a client that has not sent its headers is gone."""

EVENT_CHARACTERS = 4_000
"""Of the events that a client does not take, so that the kernel's buffers do not hold them all."""

SLOW, LARGE = 25, 10_000_000

_NUMBER = re.compile(rb'"seq":(\d+),"type"')


async def run(options: Options) -> list[Check]:
    """Measure 200 clients, one that takes nothing, slow headers and large bodies."""
    if sys.platform != "linux":
        raise NotInstalledError("it needs /proc, which tells the memory of a process")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checks = await many_clients(folder, 3 if options.quick else 10, 1 if options.quick else 3)
        checks += await stalled_client(folder, 4_000 if options.quick else 20_000)
        checks += await bad_requests(folder)
    print_table("Web", ("", *CHECKED), ([check.what, *check.cells()] for check in checks))
    return checks


# 200 clients


async def many_clients(folder: Path, seconds: int, rounds: int) -> list[Check]:
    """The same run with and without clients, in turns."""
    elements = int(seconds * PARALLEL / PAUSE)
    alone, watched, missed = [], [], 0
    async with server(folder / "load.db") as site:
        for number in range(rounds):
            await site.begin(f"alone{number}", elements)
            alone.append(await site.end())
            run_id = f"watched{number}"
            await site.begin(run_id, elements)
            received = [asyncio.create_task(watch(site, run_id, i)) for i in range(CLIENTS)]
            watched.append(await site.end())
            missed += sum(await asyncio.gather(*received))

    pairs = [*zip(watched, alone, strict=True)]
    ratio = statistics.median(with_["seconds"] / without["seconds"] for with_, without in pairs)
    share = statistics.median(
        (with_["cpu"] - without["cpu"]) / with_["seconds"] for with_, without in pairs
    )
    return [
        Check(f"web: a run that {CLIENTS} clients watch", ratio, MOST_SLOWDOWN, "x alone"),
        Check(f"web: {CLIENTS} clients of 200 events a second", share, MOST_SHARE, "of a core"),
        Check("web: events that clients missed without a gap", missed, 0, "events"),
    ]


async def watch(site: Server, run_id: str, number: int) -> int:
    """Read a run to its end. Returns how many events are missing, of which no gap tells."""
    reader = await site.ask(f"/api/v1/runs/{run_id}/events", number)
    last = missed = 0
    is_over, rest = False, b""
    while data := await reader.read(1 << 18):
        whole, newline, rest = (rest + data).rpartition(b"\n")
        numbers = [int(found) for found in _NUMBER.findall(whole + newline)]
        if numbers and b'"type":"gap"' not in whole:
            missed += numbers[-1] - last - len(numbers)
        last = numbers[-1] if numbers else last
        is_over = is_over or b'"type":"run.ended"' in whole
    return missed + (not is_over)


# A client that takes nothing


async def stalled_client(folder: Path, events: int) -> list[Check]:
    """The memory of two servers, of which one has such a client beside another one."""
    grown = [await _grown(folder / f"stalled{n}.db", events, is_stalled=bool(n)) for n in range(2)]
    return [Check("web: a client that takes nothing", grown[1] - grown[0], MOST_MEGABYTES, "MB")]


async def _grown(path: Path, events: int, *, is_stalled: bool) -> float:
    journal = SqliteJournal(path)
    written = Written(journal)
    await written.begin(RunStarted("r1", 0.0, ("load",)))
    async with server(path) as site:
        reading = asyncio.create_task(watch(site, "r1", 0))
        if is_stalled:
            _, writer = await site.connect(1)
            writer.write(b"GET /api/v1/runs/r1/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # a client that stalls
        await asyncio.sleep(0.5)
        before = site.megabytes()
        for _ in range(events // 200):
            task_id = "x" * EVENT_CHARACTERS
            await written.write(*(NodeStarted("r1", 0.0, "load", task_id) for _ in range(200)))
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        grown = site.megabytes() - before
        await written.write(RunFinished("r1", 1.0, "completed", None))
        await reading
    await journal.aclose()
    return grown


# Slow and large requests


async def bad_requests(folder: Path) -> list[Check]:
    """Headers that come a byte at a time, and bodies of 10 MB."""
    async with server(folder / "bad.db") as site:
        await site.ask("/api/v1/runs")
        before, start = site.megabytes(), time.perf_counter()
        slow = await asyncio.gather(*(_send_slowly(site, number) for number in range(SLOW)))
        large = await asyncio.gather(*(_send_much(site, number) for number in range(10)))
        grown, seconds = site.megabytes() - before, max(slow) - start
    refused = sum(b" 413 " in answer for answer in large)
    return [
        Check("web: slow headers end after", seconds, MOST_SECONDS, "s"),
        Check("web: bodies of 10 MB that were read", len(large) - refused, 0, "bodies"),
        Check("web: memory of these", grown, MOST_MEGABYTES, "MB"),
    ]


async def _send_slowly(site: Server, number: int) -> float:
    """Send headers a byte each half second. Returns when the server has closed the connection."""
    reader, writer = await site.connect(number)

    async def send() -> None:
        for byte in b"GET /api/v1/about HTTP/1.1\r\nhost: localhost\r\n" + 100 * b"x":
            writer.write(bytes([byte]))
            await asyncio.sleep(0.5)

    sending = asyncio.create_task(send())
    await reader.read()
    sending.cancel()
    return time.perf_counter()


async def _send_much(site: Server, number: int) -> bytes:
    """Send a body of 10 MB, of which no length is told. Returns the first line of the answer."""
    reader, writer = await site.connect(number)
    writer.write(
        b"POST /api/v1/session HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n"
        b"content-type: application/json\r\n\r\n"
    )
    try:
        for _ in range(LARGE // 50_000):
            writer.write(b"c350\r\n" + 50_000 * b" " + b"\r\n")
            await writer.drain()
    except ConnectionError:
        pass  # it reads no more
    try:
        return await reader.readline()
    except ConnectionError:
        return b" 413 "  # it was closed before its answer was read
