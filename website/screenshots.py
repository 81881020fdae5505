"""Makes the pictures of ``docs/images``: ``python -m website.screenshots [JOURNAL]``.

Runs are real. Pages are those of the real server in the system's Chromium, terminals are drawn by
rich. The runs are recorded anew, unless a journal is given that has the census already: their times
differ from one to the next, all else is the same.
"""

from __future__ import annotations

import asyncio
import copy
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

from playwright.async_api import Browser, Page, async_playwright
from rich.console import Console
from rich.text import Text
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    DAGBuilder,
    ExecutionEngine,
    Recorder,
    RunFailedError,
    RunReader,
    RunReport,
    RunView,
)
from taskiq_flow.listeners.terminal import Terminal
from taskiq_flow.views.node_view import NodeState
from taskiq_flow.views.time_left import EarlierRun
from taskiq_flow.web import runs_app
from taskiq_flow.web.server import serve_async

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
MOST_BYTES = 150_000
"""How large a picture may be."""

_CENSUS = "census"
_COLUMNS = 88
_IN_FLIGHT: tuple[NodeState, ...] = ("running", "queued")

_TERMINAL = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" width="{width}" height="{height}" \
style="max-width:100%;height:auto" role="img" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; \
font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font: 15px system-ui, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""rich's own format loads a font from another host."""


def load(path: str) -> str:
    """Stands for the reading of an image."""
    return path


def crop(load: str, tile: int) -> int:
    """Stands for work on a tile, of which one is empty."""
    if tile == 5:  # noqa: PLR2004 - the empty one
        raise ValueError("tile 5 is empty")
    return len(load) + tile


def mosaic(crop: list[int]) -> int:
    """Stands for what puts tiles together."""
    return sum(crop)


def caption(load: str) -> str:
    """Stands for a service that is asked about the image."""
    return load.title()


def is_large(mosaic: int) -> bool:
    """Whether there is anything to shrink."""
    return mosaic > 1_000  # noqa: PLR2004 - as it never is


def shrink(mosaic: int) -> int:
    """Stands for work that is not always needed."""
    return mosaic // 2


def publish(mosaic: int, caption: str) -> str:
    """Stands for the end of it."""
    return f"{caption}: {mosaic}"


def tiles() -> DAG:
    """A graph with a map, a fallback and a condition."""
    builder = DAGBuilder("tiles").node(load)
    builder.node(crop, inputs={"load": "load", "tile": "tiles"}, map_over="tiles")
    builder.node(mosaic).node(caption, fallback="").node(shrink, when=is_large)
    return builder.node(publish).build()


def record(journal: Path) -> None:
    """Record the census, as ``scripts/demo`` does, unless the journal has it."""
    if not journal.exists():
        command = [sys.executable, "examples/source_census.py", "--history", str(journal)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - ours


async def record_tiles(journal: Path) -> None:
    """Record runs of a small graph, two of which complete."""
    engine = ExecutionEngine(
        *(InMemoryBroker(), tiles()),
        listeners=[Recorder(journal)],
        on_error="continue",
        tags=["nightly"],
    )
    for day, count in (("mon", 4), ("tue", 5), ("wed", 8)):
        with suppress(RunFailedError):
            inputs = {"path": "tides.tif", "tiles": [*range(count)]}
            await engine.execute(inputs, run_id=f"tiles-{day}")


def terminal(
    name: str, title: str, show: Callable[[Console], object], columns: int = _COLUMNS
) -> None:
    """A picture of what is shown on a terminal."""
    console = Console(
        file=io.StringIO(),
        record=True,
        width=columns,
        height=30,
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
        _environ={},
    )
    kept = show(console)  # a display ends when it is gone
    svg = console.export_svg(title=title, code_format=_TERMINAL, unique_id=name)
    del kept
    write(f"{name}.svg", re.sub(r"[ \t]+\n", "\n", svg))


def write(name: str, picture: str | bytes) -> None:
    """Write a picture into ``docs/images``."""
    data = picture.encode() if isinstance(picture, str) else picture
    if len(data) > MOST_BYTES:
        raise ValueError(f"{name} has {len(data):,} bytes, and may have {MOST_BYTES:,}")
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / name).write_bytes(data)
    print(f"{name}: {len(data):,} bytes")  # noqa: T201


async def draw(reader: RunReader) -> None:
    """The pictures that need no browser: of graphs, times and terminals."""
    write("graph.svg", tiles().to_svg())
    write("graph-of-a-run.svg", tiles().to_svg(await reader.view("tiles-wed")))
    view = await reader.view(_CENSUS)
    write("timeline.svg", RunReport.of(view).to_svg())
    terminal("progress", _CENSUS, await progress(reader))


async def progress(reader: RunReader) -> Callable[[Console], object]:
    """The bar of the census when most of its nodes are in flight."""
    view, busiest, most = RunView(), RunView(), 0
    async with aclosing(reader.events(_CENSUS)) as events:
        async for event in events:
            view.apply(event)
            if (busy := sum(view.counts.get(state, 0) for state in _IN_FLIGHT)) > most:
                most, busiest = busy, copy.deepcopy(view)

    def show(console: Console) -> Terminal:
        shown = Terminal(console)
        shown.show([(busiest, EarlierRun())], busiest.at or 0.0)
        return shown

    return show


def command(name: str, journal: Path, *arguments: str, columns: int = _COLUMNS) -> None:
    """What a command writes to a terminal."""
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(columns), "TZ": "UTC"}
    environment.pop("NO_COLOR", None)
    whole = [sys.executable, "-m", "taskiq_flow", *arguments, "--journal", str(journal)]
    done = subprocess.run(  # noqa: S603 - ours
        whole, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    text = Text.from_ansi(done.stdout.rstrip())
    title = " ".join(["taskiq-flow", *arguments])
    terminal(name, title, lambda console: console.print(text), columns)


@asynccontextmanager
async def served(journal: Path) -> AsyncIterator[str]:
    """The address of the real server, on a free port."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve_async(runs_app(journal), port=0, on_ready=ready.set_result))
    try:
        yield await ready
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def photograph(address: str, browser: Browser) -> None:
    """The pages, light and dark, and as on a telephone."""
    for scheme in ("light", "dark"):
        await page_of(browser, f"{address}/", f"runs-{scheme}", "table.runs tbody tr", height=270)
        run = f"{address}/?run={_CENSUS}&node=parse_library_files"
        await page_of(browser, run, f"run-{scheme}", "aside h2", height=780)
    await page_of(browser, f"{address}/?run=tiles-wed&node=crop", "telephone", "aside h2", 360, 780)


async def page_of(
    browser: Browser, address: str, name: str, selector: str, width: int = 1200, height: int = 800
) -> None:
    """A picture of a page, after ``selector`` has found something."""
    context = await browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if name.endswith("dark") else "light",
        timezone_id="UTC",
        locale="en-GB",
    )
    page: Page = await context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(address)
    await page.wait_for_selector(selector)
    await page.wait_for_load_state("load")
    if any(not url.startswith(address[: address.index("/", 8)]) for url in asked if ":/" in url):
        raise ValueError(f"{name}: the page asked another host: {asked}")
    write(f"{name}.png", await page.screenshot(animations="disabled"))
    await context.close()


async def photographs(journal: Path) -> None:
    """The pictures that need a browser."""
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    async with served(journal) as address, async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=next(found), args=["--no-sandbox"]
        )
        await photograph(address, browser)
        await browser.close()


async def main(journal: Path) -> None:
    """Make all pictures."""
    record(journal)
    await record_tiles(journal)
    reader = RunReader(journal)
    try:
        await draw(reader)
    finally:
        await reader.aclose()
    command("report", journal, "show", _CENSUS, "--report", columns=70)
    command("runs", journal, "runs")
    await photographs(journal)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else None
        copied = Path(folder, "runs.db")
        if given is not None:
            shutil.copy(given, copied)
        asyncio.run(main(copied))
