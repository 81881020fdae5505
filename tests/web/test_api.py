"""What the application answers, by a real server."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from taskiq import InMemoryBroker

from taskiq_flow import (
    ConfigurationError,
    DAGBuilder,
    ExecutionEngine,
    MemoryJournal,
    NodeBegan,
    NodeCompleted,
    NodeFailedError,
    NodeStarted,
    Recorder,
    RunFinished,
    RunStarted,
    SqliteJournal,
)
from taskiq_flow.web import runs_app
from tests.journal.nightly import graph, odd
from tests.web.site import INPUTS, Serve, connected, lines_of, log_of, run_example
from tests.web.written import Written


@pytest.fixture
async def journal() -> MemoryJournal:
    journal = MemoryJournal()
    await run_example(journal)
    return journal


async def test_runs_are_listed_and_filtered(serve: Serve, journal: MemoryJournal) -> None:
    await run_example(journal, "r2")
    site = await serve(runs_app(journal))
    listed = await site.json("/api/v1/runs")
    assert [run["run"] for run in listed["runs"]] == ["r2", "r1"]
    assert listed["runs"][0]["status"] == "completed"
    assert listed["before"] is None
    assert (await site.json("/api/v1/runs?status=failed"))["runs"] == []
    assert len((await site.json("/api/v1/runs?name=nightly&limit=1"))["runs"]) == 1


async def test_a_page_of_runs_leads_to_the_next(serve: Serve, journal: MemoryJournal) -> None:
    await run_example(journal, "r2")
    site = await serve(runs_app(journal))
    first = await site.json("/api/v1/runs?limit=1")
    second = await site.json(f"/api/v1/runs?limit=1&before={first['before']}")
    assert [run["run"] for page in (first, second) for run in page["runs"]] == ["r2", "r1"]


async def test_moments_are_numbers_dates_or_periods(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal))
    for query, count in (
        ("since=2h", 1),
        ("since=0", 1),
        ("since=2999-01-01", 0),
        ("since=4e9", 0),
        ("before=1w", 0),
        ("before=2999-01-01T00:00:00Z", 1),
    ):
        assert len((await site.json(f"/api/v1/runs?{query}"))["runs"]) == count, query


async def test_a_run_that_is_not_there_is_told_without_python(
    serve: Serve, journal: MemoryJournal
) -> None:
    site = await serve(runs_app(journal))
    text = "the journal has no run 'r2'; GET /api/v1/runs lists those that it has"
    assert (await site.get("/api/v1/runs/r2")).json()["error"]["message"] == text
    async with connected(site.base) as client:
        await client.ask(op="subscribe", run="r2")
        assert (await client.line())["message"] == text


async def test_wrong_parameters_are_refused(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal))
    wrong = (
        "status=odd",
        "limit=0",
        "limit=9999",
        "limit=x",
        "since=nan",
        "before=inf",
        "since=soon",
        f"since={'9' * 400}d",
        "tags=a",
        "name=a&name=b",
    )
    for query in (f"runs?{parameter}" for parameter in wrong):
        response = await site.get(f"/api/v1/{query}")
        assert response.status_code == 400
        assert response.json()["error"]["message"]


async def test_a_snapshot_has_the_state_of_each_node(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal))
    run = await site.json("/api/v1/runs/r1")
    states = {node["node"]: node["state"] for node in run["nodes"]}
    assert states == {"each": "failed", "one": "failed", "after": "skipped", "long": "completed"}
    assert run["seq"] == len(await log_of(journal, "r1"))
    assert run["edges"] == {"after": ["one"]}
    assert run["sentence"]
    elements = next(node["elements"] for node in run["nodes"] if node["node"] == "each")
    assert (elements["completed"], elements["failed"], elements["known"]) == (2, 1, 3)


async def test_a_node_has_its_error_attempts_inputs_and_value(
    serve: Serve, journal: MemoryJournal
) -> None:
    site = await serve(runs_app(journal))
    one = await site.json("/api/v1/runs/r1/nodes/one")
    assert one["error"]["message"] == "5 is odd"
    frames, whole = one["error"]["frames"], one["error"]["traceback"]
    assert frames.startswith("Traceback")
    assert "nightly.py" in frames.splitlines()[1]
    assert "receiver.py" in whole.splitlines()[1]
    assert (one["attempts"], len(one["earlier"])) == (2, 1)
    assert {span["part"] for span in one["spans"]} <= {"waiting", "queued", "running"}
    long = await site.json("/api/v1/runs/r1/nodes/long")
    assert long["value"]["text"] == "ebbebbebb"
    assert long["has_value"]
    after = await site.json("/api/v1/runs/r1/nodes/after")
    assert after["because_of"] == ["one"]
    assert after["inputs"] == [{"node": "one", "state": "failed", "value": None}]
    each = await site.json("/api/v1/runs/r1/nodes/each")
    assert [(e["node"], e["state"]) for e in each["listed"]] == [("each[1]", "failed")]
    element = await site.json("/api/v1/runs/r1/nodes/each%5B1%5D")
    assert element["error"]["message"] == "3 is odd"


async def test_each_error_has_the_frames_of_the_users_code(
    serve: Serve, journal: MemoryJournal
) -> None:
    engine = ExecutionEngine(InMemoryBroker(), graph().build(), journal=journal)
    with pytest.raises(NodeFailedError):
        await engine.execute(INPUTS, run_id="r2")
    site = await serve(runs_app(journal))
    of_run = (await site.json("/api/v1/runs/r2"))["error"]
    (listed,) = (await site.json("/api/v1/runs/r1/nodes/each"))["listed"]
    for error in (of_run, listed["error"]):
        assert "nightly.py" in error["frames"].splitlines()[1]
        assert "receiver.py" in error["traceback"].splitlines()[1]


async def test_an_element_that_has_completed_is_shown(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal))
    element = await site.json("/api/v1/runs/r1/nodes/each%5B2%5D")
    assert (element["node"], element["state"], element["attempts"]) == ("each[2]", "completed", 1)
    assert (element["value"]["text"], element["has_value"]) == ("4", True)
    assert element["ended"] >= element["began"] >= element["sent"] > 0
    assert (element["ready"], element["waiting"]) == (None, 0)
    assert await site.json("/api/v1/runs/r1/nodes/each%5B2%5D/value") == 4
    for name in ("each[3]", "each[x]", "one[0]", "none[0]"):
        response = await site.get(f"/api/v1/runs/r1/nodes/{quote(name)}")
        assert response.status_code == 404
        assert f"has no node or element {name!r} so far" in response.json()["error"]["message"]


NOWHERE = [
    *("runs/r9", "runs/r9/graph", "runs/r9/events", "runs/r9/report", "runs/r9/trace"),
    *("runs/r9/nodes/one", "runs/r1/nodes/two", "runs/r1/nodes/two/value", "runs/r1/nodes"),
]


async def test_what_is_not_there_is_not_found(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal))
    for path in NOWHERE:
        response = await site.get(f"/api/v1/{path}")
        assert response.status_code == 404
        assert response.json()["error"]["message"]


async def test_a_value_is_given_as_it_is_stored(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal))
    response = await site.get("/api/v1/runs/r1/nodes/long/value")
    assert response.json() == "ebbebbebb"
    assert response.headers["content-disposition"].startswith("attachment;")
    given = await site.json("/api/v1/runs/r1/nodes/text/value")
    assert given == "ebb"


async def test_why_there_is_no_value_is_told(serve: Serve, journal: MemoryJournal) -> None:
    dag = DAGBuilder().node(odd, name="every", inputs=["numbers"], map_over="numbers").build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal, on_error="collect")
    await engine.execute({"numbers": [1]}, run_id="r2")
    site = await serve(runs_app(journal))
    for run, name, why in (
        ("r1", "each", "are stored one by one, 2 of them; ask for one, such as 'each["),
        ("r1", "each[1]", "the element has failed"),
        ("r1", "one", "the node has failed"),
        ("r1", "after", "the node has not completed"),
        ("r1", "two", "no node or input has that name"),
        ("r2", "every", "no element of the mapped node has completed"),
    ):
        response = await site.get(f"/api/v1/runs/{run}/nodes/{quote(name)}/value")
        message = response.json()["error"]["message"]
        assert (response.status_code, why in message) == (404, True), message


async def test_a_run_that_was_only_recorded_offers_no_values(serve: Serve) -> None:
    journal = MemoryJournal()
    dag = DAGBuilder().node(abs, inputs=["number"]).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Recorder(journal)])
    await engine.execute({"number": -7}, run_id="r1")
    site = await serve(runs_app(journal, control=True))
    node = await site.json("/api/v1/runs/r1/nodes/abs")
    assert (node["value"]["text"], node["has_value"]) == ("7", False)
    assert (await site.get("/api/v1/runs/r1/nodes/abs/value")).status_code == 404
    assert (await site.post("/api/v1/runs/r1/cancel")).status_code == 409


async def test_names_of_any_kind_are_found(serve: Serve) -> None:
    names = ["a/b", "value", "per%cent", "<img src=x onerror=alert(1)>", "שלום", "q?u#h", "%2F"]
    names += ["..", ".", "...", "-", "\\", "a+b&c=d;e", "\x01\t", "line\nbreak", " ", "/", "%2e%2E"]
    builder = DAGBuilder("odd/names")
    for name in names:
        builder.node(abs, name=name, inputs=["number"])
    journal = MemoryJournal()
    engine = ExecutionEngine(InMemoryBroker(), builder.build(), journal=journal)
    await engine.execute({"number": -1}, run_id="a/b c")
    app = runs_app(journal)
    outer = Starlette(routes=[Mount("/flow", app)])
    outer.state = app.state
    site = await serve(outer)
    api = "/flow/api/v1/runs"
    for name in names:
        path = f"{api}/{quote('a/b c', safe='')}/nodes/{quote(name, safe='')}"
        # Clients take some for steps within the path, and Starlette mounts none with a line feed.
        if name not in (".", "..", "line\nbreak"):
            assert (await site.json(path))["node"] == name
            assert (await site.json(f"{path}/value")) == 1
        query = {"run": "a/b c", "node": name}
        assert (await site.json(f"{api}/-/nodes/-", params=query))["node"] == name
        assert (await site.json(f"{api}/-/nodes/-/value", params=query)) == 1
        assert (await site.json(f"{api}/-/report", params=query))["run"] == "a/b c"
    twice = await site.get(f"{api}/-?run=a&run=b")
    assert twice.status_code == 400
    assert "run is given 2 times" in twice.json()["error"]["message"]


async def test_a_graph_is_laid_out_and_sent_once(serve: Serve, journal: MemoryJournal) -> None:
    pytest.importorskip("pygraphviz")
    site = await serve(runs_app(journal))
    response = await site.get("/api/v1/runs/r1/graph?fold=0")
    layout = response.json()
    assert {name for box in layout["boxes"] for name in box["members"]} == {
        "each",
        "one",
        "after",
        "long",
    }
    assert all(box["width"] > 0 for box in layout["boxes"])
    tag = {"if-none-match": response.headers["etag"]}
    assert (await site.get("/api/v1/runs/r1/graph?fold=0", headers=tag)).status_code == 304
    assert (await site.get("/api/v1/runs/r1/graph?fold=1", headers=tag)).status_code == 200


async def test_the_time_left_is_estimated_by_an_earlier_run_of_the_graph(serve: Serve) -> None:
    journal, name = MemoryJournal(), "load"
    before = Written(journal, "r0", name="nightly")
    start = RunStarted("r0", 0.0, (name,), time.time())
    sent, began = NodeStarted("r0", 0.0, name, "t"), NodeBegan("r0", 0.0, name, "t", "w")
    await before.begin(start, sent, began, NodeCompleted("r0", 100.0, name, "t", 7))
    await before.write(RunFinished("r0", 100.0, "completed", None))
    run = Written(journal, "r1", name="nightly")
    await run.begin(RunStarted("r1", 5.0, (name,), time.time()))
    site = await serve(runs_app(journal))
    for path in ("runs/r1", "runs/r1/report"):
        assert 40 < (await site.json(f"/api/v1/{path}"))["left"] <= 100
        assert (await site.json(f"/api/v1/{path.replace('r1', 'r0')}"))["left"] is None


def first(*inputs: int) -> int:
    return 1


async def test_others_are_answered_while_a_large_graph_is_laid_out(serve: Serve) -> None:
    pytest.importorskip("pygraphviz")
    builder, wide = DAGBuilder("wide"), 30
    for n in range(300):
        layer = n // wide * wide - wide
        before = {f"n{layer + (n * step + step) % wide}" for step in (1, 5, 7)} if n >= wide else []
        builder.node(first, name=f"n{n}", inputs=[*before])
    journal = MemoryJournal()
    await ExecutionEngine(InMemoryBroker(), builder.build(), journal=journal).execute(run_id="r")
    site = await serve(runs_app(journal))
    path, answered = "/api/v1/runs/r/graph?fold=0", 0
    asking = [asyncio.create_task(site.json(path, timeout=30)) for _ in range(2)]
    while not any(one.done() for one in asking):
        await site.json("/api/v1/about")
        answered += 1
    one, other = await asyncio.gather(*asking)
    assert answered > 3
    assert one == other
    assert len(one["boxes"]) == 300


async def test_a_known_graph_is_drawn_with_its_inputs(serve: Serve, journal: MemoryJournal) -> None:
    pytest.importorskip("pygraphviz")
    site = await serve(runs_app(journal, dags=[graph().build()]))
    layout = await site.json("/api/v1/runs/r1/graph")
    inputs = [box["members"] for box in layout["boxes"] if box["kind"] == "input"]
    assert sorted(key for members in inputs for key in members) == sorted(INPUTS)
    (dag,) = (await site.json("/api/v1/dags"))["dags"]
    assert dag["name"] == "nightly"
    assert dag["edges"][0]["to"] == "after"


async def test_of_a_result_of_the_journal_the_run_and_the_report_say_the_same(serve: Serve) -> None:
    run = Written(MemoryJournal())
    nodes = ("load", "save")
    await run.begin(
        RunStarted("r1", 0.0, nodes, 1.7e9),
        *(NodeStarted("r1", 0.0, "load", ""), NodeCompleted("r1", 6.0, "load", "", 7, attempt=1)),
        RunFinished("r1", 6.0, "cancelled", None),
        RunStarted("r1", 90.0, nodes, 1.7e9 + 90),
        NodeCompleted("r1", 90.0, "load", "", 7, "journal"),
        *(NodeStarted("r1", 90.0, "save", ""), NodeCompleted("r1", 91.0, "save", "", 7, attempt=1)),
        RunFinished("r1", 91.0, "completed", None),
    )
    site = await serve(runs_app(run.journal))
    nodes_of_run = {node["node"]: node for node in (await site.json("/api/v1/runs/r1"))["nodes"]}
    report = (await site.json("/api/v1/runs/r1/report"))["nodes"]
    for name, times in (("load", (0, 0.0, 0.0, 0.0)), ("save", (1, 0.0, 0.0, 1.0))):
        for node in (nodes_of_run[name], report[name]):
            assert tuple(node[k] for k in ("attempts", "waiting", "queued", "running")) == times
    assert (await site.json("/api/v1/runs/r1/nodes/load"))["source"] == "journal"


async def test_the_report_says_what_held_the_run_back(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal))
    report = await site.json("/api/v1/runs/r1/report")
    assert report["sentence"]
    assert report["nodes"]["long"]["state"] == "completed"
    trace = await site.get("/api/v1/runs/r1/trace")
    assert trace.headers["content-disposition"].startswith("attachment;")
    assert trace.json()


async def test_events_come_as_lines(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal))
    log = json.loads(json.dumps(await log_of(journal, "r1")))
    assert await lines_of(site, "/api/v1/runs/r1/events") == log
    assert await lines_of(site, "/api/v1/runs/r1/events?after=3") == log[3:]


async def test_a_run_in_progress_is_followed_to_its_end(serve: Serve, tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def wait(number: int) -> int:
        await gate.wait()
        return number

    journal = SqliteJournal(tmp_path / "runs.db")
    dag = DAGBuilder().node(wait, inputs=["number"]).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
    site = await serve(runs_app(engine))
    handle = engine.start({"number": 1}, run_id="r1")
    await site.until_there("/api/v1/runs/r1")
    assert (await site.json("/api/v1/runs/r1"))["status"] == "running"
    reading = asyncio.create_task(lines_of(site, "/api/v1/runs/r1/events"))
    others = [asyncio.create_task(lines_of(site, "/api/v1/runs/r1/events")) for _ in range(3)]
    gate.set()
    await handle
    log = json.loads(json.dumps(await log_of(journal, "r1")))
    for task in [reading, *others]:
        assert await task == log
    await journal.aclose()


async def test_the_list_of_runs_tells_what_changes(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal))
    async with site.client.stream("GET", "/api/v1/events") as response:
        lines = response.aiter_lines()
        first = json.loads(await anext(lines))
        assert (first["type"], first["run"], first["status"]) == (
            "run.summary",
            "r1",
            "completed",
        )
        await run_example(journal, "r2")
        assert json.loads(await anext(lines))["run"] == "r2"
        await journal.delete("r1")
        gone = json.loads(await anext(lines))
        assert (gone["type"], gone["run"]) == ("run.deleted", "r1")


async def test_the_description_has_all_routes(serve: Serve, journal: MemoryJournal) -> None:
    app = runs_app(journal)
    site = await serve(app)
    described = (await site.json("/api/v1/openapi.json"))["paths"]
    routes = {
        (route.path, method.lower())
        for route in app.routes
        if isinstance(route, Route) and route.path.startswith("/api/")
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert routes == {(path, method) for path, of in described.items() for method in of}


async def test_an_engine_without_a_journal_is_refused() -> None:
    dag = DAGBuilder().node(abs, inputs=["number"]).build()
    with pytest.raises(ConfigurationError, match="journal"):
        runs_app(ExecutionEngine(InMemoryBroker(), dag))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"token": "short"}, ValueError),
        ({"allowed_hosts": "localhost"}, TypeError),
        ({"redact": "x"}, TypeError),
        ({"dags": [DAGBuilder().node(abs, inputs=["number"]).build()]}, ValueError),
    ],
)
async def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        runs_app(MemoryJournal(), **options)
