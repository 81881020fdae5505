"""The pages in the system's Chromium: first paint, 500 nodes in motion, and a day of events.

The server is a process of its own. Memory of the page is that of its JavaScript after garbage was
collected, memory of the server that of the whole process.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from playwright.async_api import Browser

from benchmarks.report import CHECKED, Check, NotInstalledError, Options, print_table
from benchmarks.web_site import Server, server
from taskiq_flow import (
    ElementsKnown,
    Event,
    NodeBegan,
    NodeCompleted,
    NodeStarted,
    RunFinished,
    RunStarted,
    SqliteJournal,
)
from tests.web.browser import CHROMIUM, Visit, browser, visit
from tests.web.written import Written

DAY_SECONDS = 86_400
ELEMENTS_AT_ONCE, RUNS_A_DAY = 200, 1_440
MOST_HEAP, MOST_SERVER = 2.0, 8.0
CATCH_UP_SECONDS = 300.0
"""How long a page may take to show a quarter of the day at once."""

NODES, EVENTS_A_SECOND = 500, 200
MOST_FRAME, MOST_PAINT, MOST_DRAWN = 33.4, 1_000.0, 1_500.0

_DRAWN = """new Promise((done) => {
    const look = () => document.querySelector("svg.graph .box")
        ? done(performance.now()) : requestAnimationFrame(look);
    look();
})"""
_PAINTED = """new Promise((done) => {
    const tell = (list) => done(list.getEntries()[0].startTime);
    new PerformanceObserver(tell).observe({ type: "paint", buffered: true });
})"""
_WATCH_FRAMES = """{
    window.frames_ = [];
    let last = performance.now();
    const note = (now) => { frames_.push(now - last); last = now; requestAnimationFrame(note); };
    requestAnimationFrame(note);
}"""


async def run(options: Options) -> list[Check]:
    """Measure the pages."""
    if CHROMIUM is None:
        raise NotInstalledError("no Chromium is installed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checks = await first_paint(folder, 3 if options.quick else 9)
        checks += await frames(folder, NODES // 4 if options.quick else NODES)
        checks += await a_day(folder, DAY_SECONDS // 12 if options.quick else DAY_SECONDS)
    print_table("Pages", ("", *CHECKED), ([check.what, *check.cells()] for check in checks))
    return checks


async def first_paint(folder: Path, times: int) -> list[Check]:
    """How soon there is something, and the graph, for who has no file of the page."""
    path = folder / "paint.db"
    written = await _many_nodes(path, NODES)
    await written.write(RunFinished("r1", 1.0, "completed", None))
    painted, drawn = [], []
    async with server(path) as site, browser() as chromium:
        for _ in range(times):
            seen = await visit(chromium)
            await seen.goto(f"{site.address}/?run=r1")
            drawn.append(await seen.page.evaluate(_DRAWN))
            painted.append(await seen.page.evaluate(_PAINTED))
            await seen.page.context.close()
    return [
        Check("pages: first paint", statistics.median(painted), MOST_PAINT, "ms"),
        Check(f"pages: {NODES} nodes are drawn", statistics.median(drawn), MOST_DRAWN, "ms"),
    ]


async def frames(folder: Path, nodes: int) -> list[Check]:
    """The time between two frames, while many nodes change."""
    path = folder / "frames.db"
    written = await _many_nodes(path, NODES)
    async with server(path) as site, browser() as chromium:
        seen = await visit(chromium)
        await seen.goto(f"{site.address}/?run=r1")
        await seen.page.evaluate(_DRAWN)
        await seen.page.evaluate(_WATCH_FRAMES)
        for number in range(nodes):
            for event in _life(f"compute_{number}", None):
                await written.write(event)
                await asyncio.sleep(1 / EVENTS_A_SECOND)
        reached = f"document.querySelector('.facts').textContent.includes('{nodes}/{NODES}')"
        await seen.wait(reached, CATCH_UP_SECONDS)
        taken = sorted(await seen.page.evaluate("frames_"))
    return [Check("pages: frames, 95 of 100", taken[len(taken) * 95 // 100], MOST_FRAME, "ms")]


async def a_day(folder: Path, seconds: int) -> list[Check]:
    """Both pages are open, while an element runs each second, and a run each minute."""
    path = folder / "day.db"
    journal = SqliteJournal(path)
    written = Written(journal)
    started = RunStarted("r1", 0.0, ("load",), time=1.0, mapped={"load": 1})
    await written.begin(started, ElementsKnown("r1", 0.0, "load", seconds))
    async with server(path) as site, browser() as chromium:
        pages = [await _opened(chromium, f"{site.address}/{query}") for query in ("?run=r1", "")]
        memory = []
        for start in range(0, seconds, ELEMENTS_AT_ONCE):
            numbers = range(start, min(start + ELEMENTS_AT_ONCE, seconds))
            await written.write(*(e for n in numbers for e in _life(f"load[{n}]", n)))
            if (
                start * RUNS_A_DAY // DAY_SECONDS
                != (start + len(numbers)) * RUNS_A_DAY // DAY_SECONDS
            ):
                other = Written(journal, f"other{start}")
                await other.begin()
                await other.write(RunFinished(other.run_id, 1.0, "completed", None))
            await asyncio.sleep(0)
            if start <= seconds // 4 < start + ELEMENTS_AT_ONCE or numbers[-1] == seconds - 1:
                shown = f" {numbers[-1] + 1}/"
                reached = f"document.querySelector('.facts').textContent.includes('{shown}')"
                await pages[0].wait(reached, CATCH_UP_SECONDS)
                memory.append(await _memory(site, pages))
    await journal.aclose()
    first, last = memory[0], memory[-1]
    return [
        Check("pages: a run that is open all day", last[0] - first[0], MOST_HEAP, "MB"),
        Check("pages: the list that is open all day", last[1] - first[1], MOST_HEAP, "MB"),
        Check("pages: the server meanwhile", last[2] - first[2], MOST_SERVER, "MB"),
    ]


async def _opened(chromium: Browser, address: str) -> Visit:
    seen = await visit(chromium)
    await seen.goto(address)
    await seen.wait("document.querySelector('[role=status]').textContent.includes('live')")
    return seen


async def _memory(site: Server, pages: list[Visit]) -> list[float]:
    """Megabytes of each page, and of the server."""
    found = []
    for seen in pages:
        session = await seen.page.context.new_cdp_session(seen.page)
        await session.send("HeapProfiler.collectGarbage")
        found.append((await session.send("Runtime.getHeapUsage"))["usedSize"] / 1e6)
        await session.detach()
    return [*found, site.megabytes()]


async def _many_nodes(path: Path, count: int) -> Written:
    """A run of many nodes, each of which depends on one of the ten before it."""
    written = Written(SqliteJournal(path))
    names = tuple(f"compute_{number}" for number in range(count))
    edges = {names[n]: (names[n - 1 - n * 7 % 10],) for n in range(10, count)}
    await written.begin(RunStarted("r1", 0.0, names, time=1.0, edges=edges))
    return written


def _life(name: str, index: int | None) -> Iterator[Event]:
    """What happens to a node, or to an element."""
    yield NodeStarted("r1", 0.0, name, f"r1:{name}:1", index)
    yield NodeBegan("r1", 0.0, name, f"r1:{name}:1", "host:7", index)
    yield NodeCompleted("r1", 0.0, name, f"r1:{name}:1", 1, "task", index, 1)
