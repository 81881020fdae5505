"""The pages in a real browser. Without one, these tests are left out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import time
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    DAGBuilder,
    ExecutionEngine,
    MemoryJournal,
    NodeBegan,
    NodeCompleted,
    NodeFailed,
    NodeFailedError,
    NodeStarted,
    RunFinished,
    RunReader,
    RunStarted,
    RunView,
)
from taskiq_flow.previews import LONGEST_TEXT, preview, printable
from taskiq_flow.web import runs_app
from taskiq_flow.web.shown import Shown
from taskiq_flow.web.snapshot import snapshot
from tests.journal.nightly import graph
from tests.waiting import until
from tests.web.site import INPUTS, Serve, lines_of, log_of, run_example
from tests.web.written import Written

pytest.importorskip("playwright")
pytest.importorskip("pygraphviz")

from tests.web.browser import CHROMIUM, Visit, browser, visit

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

HOSTILE = "<img src=x onerror='window.hit=1'>"
DRAWN = "document.querySelectorAll('svg.graph .box').length > 0"
DETAILED = "document.querySelector('aside h2') !== null"
COMPARABLE = f"{DETAILED} && document.querySelectorAll('main option').length > 1"
NOTICED = "document.querySelector('.notice') !== null"
LISTED = "document.querySelectorAll('table.runs tbody tr').length > 0"


def fail(text: str) -> str:
    raise ValueError(text)


@pytest.fixture
async def journal() -> MemoryJournal:
    journal = MemoryJournal()
    await run_example(journal)
    await run_example(journal, "r2")
    return journal


async def hostile_run(journal: MemoryJournal) -> DAG:
    """Markup in all names, of nodes and inputs for example, in values, items, errors and tags."""
    dag = (
        DAGBuilder(HOSTILE)
        .node(lambda text: text, name=HOSTILE, inputs={"text": f"{HOSTILE} input"})
        .node(fail, name=f"fail {HOSTILE}", inputs={"text": HOSTILE})
        .node(fail, name=f"after {HOSTILE}", inputs={"text": f"fail {HOSTILE}"})
        .node(fail, name=f"each {HOSTILE}", inputs={"text": "texts"}, map_over="texts")
        .build()
    )
    options: dict[str, Any] = {"journal": journal, "on_error": "collect", "tags": [HOSTILE]}
    engine = ExecutionEngine(InMemoryBroker(), dag, **options)
    await engine.execute({f"{HOSTILE} input": HOSTILE, "texts": [HOSTILE]}, run_id=HOSTILE)
    return dag


async def test_markup_in_names_values_and_errors_is_text(serve: Serve) -> None:
    journal = MemoryJournal()
    app = runs_app(journal, dags=[await hostile_run(journal)])
    outer = Starlette(routes=[Mount("/flow", app)])
    outer.state = app.state
    site = await serve(outer)
    async with browser() as chromium:
        seen = await visit(chromium)
        await seen.goto(f"{site.base}/flow")
        await seen.wait(LISTED)
        names = [f"{kind} {HOSTILE}" for kind in ("fail", "after", "each")]
        for node in (HOSTILE, *names, f"each {HOSTILE}[0]"):
            address = f"{site.base}/flow/?run={quote(HOSTILE)}&node={quote(node)}"
            await seen.goto(address)
            await seen.wait(DRAWN)
            await seen.wait(DETAILED)
            assert await seen.page.locator("aside h2").inner_text() == node
            inputs = await seen.page.locator("svg.graph text.line").all_text_contents()
            assert any(text.startswith("<img ") for text in inputs)
            assert await seen.count("img") == 0
        assert await seen.page.evaluate("window.hit") is None
        assert seen.complaints == []
        assert all(url.startswith((site.base, "data:")) for url in seen.requests)


STRANGE: dict[str, Any] = {
    "constructor": math.nan,
    "__proto__": {"__proto__": -math.inf},
    "with \"two\" and 'one'": b"\x00\xff<b>",
    " between spaces ": "<img src=x onerror='window.hit=1'>",
    "👩\u200d🚀 and \ud800": "\ud800",
    "חישוב": range(1_000_000),
    "a/b?c#d&e=f%2F": [*range(1_000_000)],
    "\u202eturned": "\u202eturned",
    "line\nbreak": 10**400,
}
"""Values by the names of nodes that make them."""


async def test_nodes_of_any_name_with_any_value_are_followed(serve: Serve) -> None:
    journal = MemoryJournal()
    run, texts = Written(journal), list[str | None]()
    names = [*STRANGE]
    await run.begin(RunStarted("r1", 0.0, tuple(names), edges={names[-1]: tuple(names[:-1])}))
    site = await serve(runs_app(journal))
    async with browser() as chromium:
        seen = await visit(chromium)
        await seen.goto(f"{site.base}/?run=r1")
        await seen.wait(
            f"document.querySelectorAll('svg.graph .box.pending').length == {len(names)}"
        )
        await seen.wait("document.querySelector('[role=status]').textContent == 'live'")
        for name, value in STRANGE.items():
            await run.write(
                NodeStarted("r1", 0.0, name, ""),
                NodeBegan("r1", 0.5, name, "", "w"),
                NodeCompleted("r1", 1.0, name, "", value),
            )
        await seen.wait(f"document.querySelectorAll('.box.completed').length == {len(names)}")
        assert await seen.count("#timeline .sign.completed") == len(names)
        shown = await seen.page.locator("#timeline .name").all_text_contents()
        assert shown == [printable(name) for name in names]
        for row, (name, value) in enumerate(STRANGE.items()):
            await seen.page.evaluate(f"document.querySelectorAll('#timeline li')[{row}].click()")
            wanted = json.dumps(printable(name))
            await seen.wait(f"document.querySelector('aside h2')?.textContent === {wanted}")
            texts.append(await seen.page.locator("aside div.values pre").text_content())
            assert texts[-1] == preview(value)["text"]
        assert await seen.page.evaluate("window.hit") is None
        assert seen.complaints == []
    await run.end()
    log = await log_of(journal, "r1")
    lines = await lines_of(site, "/api/v1/runs/r1/events")
    assert lines == json.loads(json.dumps(log, allow_nan=False))
    assert max(len(text or "") for text in texts) <= LONGEST_TEXT


async def test_runs_and_nodes_are_found_whose_names_browsers_change_in_addresses(
    serve: Serve,
) -> None:
    names = ["..", ".", "a/../b", "%2F", "?#", "\\", "line\nbreak"]
    dag = DAGBuilder("names")
    for name in names:
        dag.node(abs, name=name, inputs=["number"])
    engine = ExecutionEngine(InMemoryBroker(), dag.build(), journal=MemoryJournal())
    for run in ("..", "a/./b"):
        await engine.execute({"number": -7}, run_id=run)
    site = await serve(runs_app(engine, control=True))
    async with browser() as chromium:
        seen = await visit(chromium)
        await seen.goto(site.base)
        await seen.wait(LISTED)
        for run in ("..", "a/./b"):
            await seen.page.get_by_role("link", name=run, exact=True).click()
            await seen.wait(DRAWN)
            for name in names:
                row = f"#timeline li:nth-child({names.index(name) + 1})"
                await seen.page.evaluate(f"document.querySelector('{row}').click()")
                wanted = json.dumps(name)
                await seen.wait(f"document.querySelector('aside h2')?.textContent === {wanted}")
                whole = seen.page.get_by_role("link", name="whole value")
                address = f"{site.base}/{await whole.get_attribute('href')}"
                assert (await seen.page.request.get(address)).status == 200, name
            seen.page.once("dialog", lambda dialog: dialog.accept())
            await seen.page.get_by_role("button", name="Delete").click()
            await seen.wait(LISTED if run == ".." else "!document.querySelector('tbody tr')")
        assert seen.complaints == []
    assert await engine.journal.run_ids() == []


async def test_everything_is_done_by_keyboard(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal))
    async with browser() as chromium:
        seen = await visit(chromium)
        await seen.goto(site.base)
        await seen.wait(LISTED)
        await seen.press("j", "j", "k", "Enter")
        await seen.wait(DRAWN)
        assert "run=r2" in seen.page.url
        await seen.press("j", "j")
        await seen.wait(DETAILED)
        assert "node=" in seen.page.url
        await seen.press("Enter")
        assert await seen.page.evaluate("document.activeElement.tagName") == "ASIDE"
        await seen.press("f")
        failed = await seen.page.locator("li[role=option]:visible").all_inner_texts()
        assert {text.split()[1] for text in failed} == {"each", "one"}
        await seen.press("f", "/", *"long", "Escape")
        (found,) = await seen.page.locator("li[role=option]:visible").all_inner_texts()
        assert "long" in found
        await seen.press("?")
        assert await seen.page.locator("#help").is_visible()
        await seen.press("Escape")
        assert not await seen.page.locator("#help").is_visible()
        await seen.press("Escape")  # the search
        assert await seen.count("li[role=option]:visible") == 4
        await seen.press("t")
        assert not await seen.page.locator("#graph").is_visible()
        await seen.press("t", "t", "Escape", "Escape")  # the panel, the page
        await seen.wait(LISTED)
        assert seen.complaints == []


async def test_pages_fit_a_telephone(serve: Serve, journal: MemoryJournal) -> None:
    await hostile_run(journal)
    run, long = Written(journal, "long", name="g" * 300), "n" * 300
    await run.begin(RunStarted("long", 0.0, (long,), origin="o" * 300))
    await run.write(NodeStarted("long", 0.0, long, ""), NodeBegan("long", 0.0, long, "", "w" * 300))
    site = await serve(runs_app(journal, control=True))
    async with browser() as chromium:
        seen = await visit(chromium, width=360)
        await seen.page.set_viewport_size({"width": 360, "height": 400})
        for query in (
            "",
            "?run=r1",
            "?run=r1&node=one",
            f"?run={quote(HOSTILE)}&node={quote(HOSTILE)}",
            f"?run=long&node={long}",
        ):
            await seen.goto(f"{site.base}/{query}")
            await seen.wait(DRAWN if query else LISTED)
            width = await seen.page.evaluate("document.documentElement.scrollWidth")
            assert width <= 360, query
            if "node=" in query:
                await seen.wait(DETAILED)
                inner = "(({scrollWidth, clientWidth}) => scrollWidth - clientWidth)"
                assert await seen.page.evaluate(f"{inner}(document.querySelector('aside'))") == 0
                await seen.wait("document.querySelector('li[aria-selected=true]') !== null")
                assert await seen.page.evaluate("scrollY") == 0  # the panel is before the rows


async def violations(seen: Visit) -> list[Any]:
    """What axe finds on the page."""
    script = (resources.files("axe_playwright_python") / "axe.min.js").read_text("utf-8")
    found = await seen.page.evaluate(f"(() => {{ {script} }})() ?? axe.run()")
    return [
        (one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found["violations"]
    ]


async def test_axe_finds_nothing(serve: Serve, journal: MemoryJournal) -> None:
    pytest.importorskip("axe_playwright_python")
    engine = ExecutionEngine(InMemoryBroker(), graph().build(), journal=journal)
    site = await serve(runs_app(engine, control=True))
    async with browser() as chromium:
        for scheme in ("light", "dark"):
            seen = await visit(chromium, scheme=scheme)
            for query, shows in (
                ("", LISTED),
                ("?run=r2&node=one", COMPARABLE),
                ("?run=r2&node=each", DETAILED),
            ):
                await seen.goto(f"{site.base}/{query}")
                await seen.wait(shows)
                assert await violations(seen) == [], (scheme, query)
            for query, button in (("", "New run…"), ("?run=r1&node=one", "Rerun from one…")):
                await seen.goto(f"{site.base}/{query}")
                await seen.page.get_by_role("button", name=button).click()
                await seen.wait("document.querySelector('#form[open] textarea') !== null")
                assert await violations(seen) == [], (scheme, button)


async def test_a_run_is_followed_and_stopped(serve: Serve) -> None:
    gate, never = asyncio.Event(), asyncio.Event()
    journal = MemoryJournal()
    dag = (
        DAGBuilder("live")
        .node(lambda n: gate.wait(), name="first", inputs=["n"])
        .node(lambda first: never.wait(), name="second", inputs=["first"])
        .build()
    )
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
    app = runs_app(engine, control=True)
    site = await serve(app)
    handle = engine.start({"n": 1}, run_id="r1")
    await site.until_there("/api/v1/runs/r1")
    async with browser() as chromium:
        seen = await visit(chromium)
        await seen.goto(f"{site.base}/?run=r1")
        await seen.wait("document.querySelectorAll('svg.graph .box.running').length == 1")
        gate.set()
        await seen.wait("document.querySelectorAll('svg.graph .box.completed').length == 1")
        await seen.wait("document.querySelectorAll('li .sign.running').length == 1")
        await seen.page.evaluate(
            "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        await until(lambda: not app.state.hub._windows, "nobody watches")
        asked = len(seen.requests)
        await seen.page.evaluate("fetch('api/v1/about').then(() => fetch('api/v1/about'))")
        assert len(seen.requests) == asked + 2
        await seen.page.evaluate(
            "delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))"
        )
        await until(lambda: app.state.hub._windows, "the page watches again")
        assert await seen.page.get_by_role("button", name="Rerun…").count() == 0
        await seen.page.get_by_role("button", name="Stop").click()
        await seen.wait("document.querySelector('.top').textContent.includes('cancelled')")
        assert await seen.page.get_by_role("button", name="Rerun…").count() == 1
        assert await seen.count(".box.cancelled") == 1
        assert seen.complaints == []
    with contextlib.suppress(Exception):
        await handle


async def test_what_was_cancelled_is_not_done_as_in_the_list_of_runs(serve: Serve) -> None:
    is_done = asyncio.Event()

    async def each(n: int) -> None:
        if n == 0:
            is_done.set()
        elif n == 1:
            await is_done.wait()
            raise ValueError("1 is odd")
        else:
            await asyncio.Event().wait()

    dag = DAGBuilder("odd").node(each, inputs={"n": "ns"}, map_over="ns").build()
    journal = MemoryJournal()
    with pytest.raises(NodeFailedError):
        engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
        await engine.execute({"ns": range(4)}, run_id="r1")
    site = await serve(runs_app(journal))
    async with browser() as chromium:
        seen = await visit(chromium)
        await seen.goto(site.base)
        await seen.page.get_by_role("cell", name="2/4").wait_for()
        await seen.goto(f"{site.base}/?run=r1")
        await seen.wait(DRAWN)
        for place in (".top", "svg.graph .box", "#timeline li"):
            assert "2/4" in (await seen.page.locator(place).first.text_content() or ""), place


async def test_what_was_in_flight_when_the_engine_died_is_shown_as_interrupted(
    serve: Serve,
) -> None:
    journal = MemoryJournal()
    run = Written(journal)
    edges = {"next": ("load",)}
    await run.begin(RunStarted("r1", 0.0, ("load", "next"), edges=edges))
    await run.write(NodeStarted("r1", 0.0, "load", ""), NodeBegan("r1", 0.5, "load", "", "w"))
    site = await serve(runs_app(journal))
    async with browser() as chromium:
        seen = await visit(chromium)
        await seen.page.clock.install()
        await seen.goto(f"{site.base}/?run=r1&node=next")
        await seen.wait("document.querySelectorAll('#timeline .sign.running').length == 1")
        await run.leave()
        await seen.page.clock.run_for(6000)  # until it looks again
        await seen.wait("document.querySelectorAll('#timeline .sign.interrupted').length == 1")
        assert await seen.count(".box.interrupted") == 1
        (row,) = await seen.page.locator("#timeline li", has_text="load").all_inner_texts()
        assert row.split()[0] == "!"
        assert "interrupted" in await seen.page.locator(".top").inner_text()
        assert await seen.count(".sign.running, .box.running, svg.graph rect.queued") == 0
        await run.go_on()
        await run.write(NodeCompleted("r1", 2.0, "load", "", None))  # an engine has it after all
        await seen.wait("document.querySelectorAll('.box.completed').length == 1")
        assert seen.complaints == []


async def test_the_time_left_is_the_newest_estimate_of_the_server(serve: Serve) -> None:
    journal = MemoryJournal()
    run = Written(journal)
    names = tuple(f"n{number}" for number in range(10))
    edges = {name: (before,) for before, name in pairwise(names)}

    async def execute(name: str, began: float, ended: float) -> None:
        await run.write(
            NodeStarted("r1", began, name, ""),
            NodeBegan("r1", began, name, "", "w"),
            NodeCompleted("r1", ended, name, "", None),
        )

    site = await serve(runs_app(journal))
    top = "document.querySelector('.top').textContent"
    async with browser() as chromium:
        seen = await visit(chromium)
        await seen.page.clock.install()
        await run.begin(RunStarted("r1", 0.0, names, time.time(), edges=edges))  # time passes now
        await execute("n0", 0.0, 10.0)
        await seen.goto(f"{site.base}/?run=r1")
        await seen.wait(f"/1 m (30|[012]\\d) s left/.test({top})")
        await seen.page.clock.pause_at(await seen.page.evaluate("Date.now() / 1000 + 0.1"))
        await execute("n1", 10.0, 12.0)  # was faster
        await seen.page.clock.run_for(1200)
        await seen.wait(f"/4[0-8] s left/.test({top})")
        assert seen.complaints == []


async def test_how_long_a_run_takes_is_told_by_the_clock_of_the_server(serve: Serve) -> None:
    journal = MemoryJournal()
    await Written(journal).begin()
    site = await serve(runs_app(journal))
    async with browser() as chromium:
        seen = await visit(chromium)
        await seen.page.clock.install(time=time.time() + 3600)  # that of the browser is wrong
        await seen.goto(site.base)
        await seen.wait(LISTED)
        took = await seen.page.locator("tbody td.number").nth(1).inner_text()
        assert re.fullmatch(r"[\d.]+ m?s", took)
        assert seen.complaints == []


async def test_the_panel_of_a_map_tells_sums_and_that_it_runs_again_as_a_whole(
    serve: Serve,
) -> None:
    journal = MemoryJournal()
    engine = ExecutionEngine(InMemoryBroker(), graph().build(), journal=journal, on_error="collect")
    await engine.execute(INPUTS, run_id="r1")
    site = await serve(runs_app(engine, control=True))
    async with browser() as chromium:
        seen = await visit(chromium)
        panel = seen.page.locator("aside")
        for node, is_of_map, note in (("each", True, 0), ("each[1]", False, 1), ("one", False, 0)):
            await seen.goto(f"{site.base}/?run=r1&node={quote(node)}")
            await seen.wait(DETAILED)
            whole = node.partition("[")[0]
            await panel.get_by_role("button", name=f"Rerun from {whole}…").wait_for()
            facts = await panel.locator(".facts").first.inner_text()
            assert ("sums over its elements: " in facts) == is_of_map
            text = "Elements do not run again alone. Resume runs failed ones."
            assert await panel.get_by_text(text).count() == note
        assert seen.complaints == []


async def write_run(journal: MemoryJournal, run_id: str, seconds: float) -> None:
    """A run of a graph of one node, which failed after some seconds."""
    run = Written(journal, run_id, name="nightly")
    await run.begin(
        RunStarted(run_id, 0.0, ("load",), 1.7e9),
        NodeStarted(run_id, 0.0, "load", ""),
        NodeBegan(run_id, 1.0, "load", "", "w"),
        NodeFailed(run_id, seconds, "load", "", ValueError("no"), 1),
        RunFinished(run_id, seconds, "failed", None),
    )


ENDS = """[...document.querySelectorAll('rect.last, rect.failed')].map(
    ({x, width}) => x.baseVal.value + width.baseVal.value)"""


async def test_a_run_is_compared_with_one_of_those_before_it(serve: Serve) -> None:
    journal = MemoryJournal()
    for run_id, seconds in (("r1", 20.0), ("r2", 5.0), ("r3", 10.0), ("r4", 10.0)):
        await write_run(journal, run_id, seconds)
    site = await serve(runs_app(journal))
    async with browser() as chromium:
        seen = await visit(chromium)
        await seen.goto(f"{site.base}/?run=r3")
        choice = seen.page.get_by_label("Compare with")
        await seen.wait("document.querySelectorAll('option').length == 3")
        texts = [
            text.split(" · ")[0].strip()
            for text in await choice.locator("option").all_inner_texts()
        ]
        assert texts == ["compare with…", "✗ r2", "✗ r1"]
        await choice.select_option("r1")
        for _ in ("chosen", "read from the address"):
            await seen.wait("document.querySelectorAll('rect.last').length == 2")
            assert "with=r1" in seen.page.url
            assert "r1: begin and end, 20.0 s in all" in await seen.page.inner_text(".legend")
            failed, *ticks = await seen.page.evaluate(ENDS)
            assert ticks[0] < failed < ticks[1] <= 1000  # the axis has room for the longer run
            await seen.page.reload()
        await seen.wait("document.querySelectorAll('rect.last').length == 2")
        await choice.select_option("")
        await seen.wait("document.querySelectorAll('rect.last').length == 0")
        assert "with=" not in seen.page.url
        await seen.goto(f"{site.base}/?run=r1&with=r4")  # a later one, by its address
        await seen.wait("document.querySelectorAll('rect.last').length == 2")
        assert await choice.input_value() == "r4"
        assert seen.complaints == []


async def test_tags_filter_the_list_and_the_address_has_them(serve: Serve) -> None:
    journal = MemoryJournal()
    dag = DAGBuilder("one").node(abs, inputs=["x"]).build()
    odd = "a&b=c?d#e/f%20 <b>"
    runs = {"r1": [odd], "r2": ["plain"], "r3": [odd, "plain"], "is-plain": ["plainer"]}
    for run_id, tags in runs.items():
        engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal, tags=tags)
        await engine.execute({"x": 1}, run_id=run_id)
    site = await serve(runs_app(journal))
    found = await site.json("/api/v1/runs", params={"tag": odd})
    assert [run["run"] for run in found["runs"]] == ["r3", "r1"]
    found = await site.json("/api/v1/runs", params={"tag": [odd, "plain"]})
    assert [run["run"] for run in found["runs"]] == ["r3"]
    async with browser() as chromium:
        seen = await visit(chromium)
        await seen.goto(site.base)
        await seen.wait(LISTED)
        rows, page = seen.page.locator("tbody a"), seen.page
        tag = page.locator("tbody").get_by_role("button")

        async def lists(*expected: str) -> None:
            texts = "[...document.querySelectorAll('tbody a')].map((a) => a.text)"
            await seen.wait(f"{texts} == '{','.join(expected)}'")

        await tag.filter(has_text=re.compile("^plain$")).first.click()
        await lists("r3", "r2")
        assert parse_qs(urlsplit(page.url).query) == {"tag": ["plain"]}
        await tag.filter(has_text=odd).click()
        await lists("r3")
        assert parse_qs(urlsplit(page.url).query) == {"tag": ["plain", odd]}
        await page.reload()
        await lists("r3")
        for run_id, tags in {"other": ["plain"], "later": ["plain", odd]}.items():
            engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal, tags=tags)
            await engine.execute({"x": 1}, run_id=run_id)
        await lists("later", "r3")
        await page.get_by_role("button", name="Remove tag plain").click()
        await lists("later", "r3", "r1")
        await page.go_back()
        await lists("later", "r3")
        await rows.first.click()
        await page.get_by_role("link", name="runs").click()
        await lists("later", "r3")
        for one in ("plain", odd):
            await page.get_by_role("button", name=f"Remove tag {one}").click()
        await lists("later", "other", "is-plain", "r3", "r2", "r1")
        await page.get_by_label("Search runs").fill("plain")
        await page.get_by_label("State").select_option("completed")
        assert parse_qs(urlsplit(page.url).query) == {"search": ["plain"], "state": ["completed"]}
        await page.reload()
        await lists("later", "other", "is-plain", "r3", "r2")
        await page.get_by_label("Search runs").fill("")
        await page.get_by_role("link", name="r1").click()
        await page.locator(".top").get_by_role("button", name=odd).click()
        await lists("later", "r3", "r1")
        assert seen.complaints == []


def at_least(number: int, least: int = 5) -> int:
    if number < least:
        raise ValueError(f"{number} is less than {least}")
    return number


def first(one: int, unit: str = "m") -> int:
    return at_least(one)


async def test_a_run_is_begun_resumed_run_again_and_deleted(serve: Serve) -> None:
    dag = (
        DAGBuilder("checks")
        .node(first)
        .node(at_least, name="second", inputs={"number": "two", "least": "first"})
        .build()
    )
    journal = MemoryJournal()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
    site = await serve(runs_app(engine, control=True))
    async with browser() as chromium:
        seen = await visit(chromium)
        await seen.goto(site.base)
        form, button = seen.page.locator("#form"), seen.page.get_by_role
        await button("button", name="New run…").click()
        inputs = form.get_by_label("Inputs, as a JSON object")
        assert json.loads(await inputs.input_value()) == {"one": None, "two": None}
        assert "It also takes, with defaults: unit" in await form.inner_text()
        await form.get_by_role("button", name="Begin").click()
        await seen.wait("document.querySelector('#form').textContent.includes('read as int')")
        await inputs.fill("{")
        await form.get_by_role("button", name="Begin").click()
        await seen.wait("document.querySelector('#form').textContent.includes('are no JSON')")
        await inputs.fill('{"one": 6}')
        await form.get_by_role("button", name="Begin").click()
        await seen.wait("document.querySelector('#form').textContent.includes(\"needs 'two'\")")
        await inputs.fill('{"one": 6, "two": 4}')
        await form.get_by_label("Name of the run").fill("r1")
        await form.get_by_role("button", name="Begin").click()
        await seen.wait("location.search.includes('run=r1')")  # the list has these words, too
        await seen.wait("document.querySelector('.top').textContent.includes('failed')")
        await button("button", name="Resume").click()

        async def is_resumed() -> bool:
            return (await RunReader(journal).view("r1")).sessions == 2

        await until(is_resumed, "it was resumed")
        await seen.wait("document.querySelector('.top').textContent.includes('failed')")
        await seen.page.locator("li[role=option]", has_text="second").click()
        await button("button", name="Rerun from second…").click()
        assert await form.get_by_label("From").input_value() == "second"
        await form.get_by_label("Other inputs, as a JSON object").fill('{"two": 7}')
        await form.get_by_label("Tags, with commas between them").fill("trial, customer 7,")
        await form.get_by_label("Name of the run").fill("r2")
        await form.get_by_role("button", name="Run again").click()
        await seen.wait("location.search.includes('run=r2')")  # the list has these words, too
        await seen.wait("document.querySelector('.top').textContent.includes('completed')")
        tags = await seen.page.locator(".top .tag").all_inner_texts()
        assert tags == ["trial", "customer 7"]
        seen.page.on("dialog", lambda dialog: dialog.accept())
        await button("button", name="Delete").click()
        await seen.wait("document.querySelectorAll('table.runs tbody tr').length == 1")
        assert await journal.run_ids() == ["r1"]
        refused = [text for text in seen.complaints if "422" not in text]
        assert refused == []


async def test_the_token_of_the_address_opens_the_page(
    serve: Serve, journal: MemoryJournal
) -> None:
    site = await serve(runs_app(journal, token="a-token-that-nobody-guesses"))
    async with browser() as chromium:
        seen = await visit(chromium)
        await seen.goto(site.base)
        await seen.wait(NOTICED)
        await seen.goto("about:blank")
        await seen.goto(f"{site.base}/?run=r1#token=a-token-that-nobody-guesses")
        await seen.wait(DRAWN)
        assert "token" not in seen.page.url
        assert await seen.page.evaluate("document.cookie") == ""
        await seen.page.reload()
        await seen.wait(DRAWN)


async def test_folded_nodes_unfold_with_a_click(serve: Serve) -> None:
    builder = DAGBuilder("many")
    for number in range(50):
        builder.node(abs, name=f"compute_{number}", inputs=["number"])
    journal = MemoryJournal()
    engine = ExecutionEngine(InMemoryBroker(), builder.build(), journal=journal)
    await engine.execute({"number": -1}, run_id="r1")
    site = await serve(runs_app(journal))
    async with browser() as chromium:
        seen = await visit(chromium)
        await seen.goto(f"{site.base}/?run=r1")
        await seen.wait("document.querySelectorAll('svg.graph .box').length == 1")
        await seen.page.locator("svg.graph .box").click()
        await seen.wait("document.querySelectorAll('svg.graph .box').length == 50")
        assert "open=" in seen.page.url
        await seen.goto(f"{site.base}/?run=r1&fold=0")
        await seen.wait("document.querySelectorAll('svg.graph .box').length == 50")


COMPARE = """async ([snapshots, events]) => {
    const { Model } = await import("./static/model.js");
    const shown = (model) => JSON.stringify([...model.nodes.values()].map((node) => [
        node.node, node.state, node.attempts * !node.elements, node.ready, node.sent, node.began,
        node.ended, node.earlier, node.elements && ["known", "queued",
        "running", "completed", "failed", "skipped"].map((key) => node.elements[key])])
        .concat([model.progress, model.failures]));
    const wrong = [];
    snapshots.forEach((snapshot, first) => {
        const model = new Model(structuredClone(snapshot));
        for (const event of events) {
            if (model.apply(event)) wrong.push("a new snapshot was wanted");
            const expected = snapshots[Math.max(first, event.seq - 1)];
            const last = shown(new Model(structuredClone(expected)));
            if (shown(model) !== last) wrong.push([event, shown(model), last]);
        }
    });
    return wrong.slice(0, 1);
}"""


async def test_a_snapshot_and_the_events_after_it_are_the_later_snapshot(
    serve: Serve, tmp_path: Path
) -> None:
    journal = MemoryJournal()
    engine = ExecutionEngine(InMemoryBroker(), graph().build(), journal=journal, on_error="collect")
    await engine.execute({"numbers": [*range(20)], "number": 5, "text": "ebb"}, run_id="r1")
    reader, view = RunReader(journal), RunView()
    run = await reader.run("r1")
    events = [event async for event in reader.events("r1")][:-1]
    snapshots = []
    for event in events:
        view.apply(event)
        snapshots.append(json.loads(json.dumps(snapshot(view, run, Shown()))))
    site = await serve(runs_app(journal))
    async with browser() as chromium:
        seen = await visit(chromium)
        await seen.goto(site.base)
        lines = [json.loads(json.dumps(event.to_dict())) for event in events]
        assert await seen.page.evaluate(COMPARE, [snapshots, lines]) == []
