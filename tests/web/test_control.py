"""Runs that are begun, continued, run again and deleted over HTTP."""

from __future__ import annotations

import asyncio
from datetime import date
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.exceptions import HTTPException
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    DAGBuilder,
    ExecutionEngine,
    MemoryJournal,
    Recorder,
    RunReader,
)
from taskiq_flow.web import runner, runs_app
from tests.waiting import LONGEST, until
from tests.web.site import Serve, Site, serving

executed: list[str] = []


def half(number: int) -> float:
    executed.append("half")
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number / 2


def add(half: float, more: int, days: list[date] = [], unit: str = "m") -> float:  # noqa: B006
    executed.append("add")
    return half + more + len(days)


def halves() -> DAG:
    return DAGBuilder("halves").node(half, inputs=["number"]).node(add, output="sum").build()


class Gate:
    """A graph whose run waits until it is let through."""

    def __init__(self) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()
        self.dag = DAGBuilder("gated").node(self._wait, name="gate", inputs=["number"]).build()

    async def _wait(self, number: int) -> int:
        self.reached.set()
        await self.opened.wait()
        return number


@pytest.fixture
def journal() -> MemoryJournal:
    executed.clear()
    return MemoryJournal()


def engine_of(dag: DAG, journal: MemoryJournal | None = None) -> ExecutionEngine:
    return ExecutionEngine(InMemoryBroker(), dag, journal=journal)


async def end_of(site: Site, run_id: str) -> Any:
    """A run once it has ended."""
    run: Any = None

    async def has_ended() -> bool:
        nonlocal run
        run = await site.json(f"/api/v1/runs/{run_id}")
        return bool(run["status"] != "running")

    await until(has_ended, f"run {run_id} has ended")
    return run


async def test_a_run_of_a_known_graph_is_begun(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal, control=True, engines=[engine_of(halves())]))
    assert (await site.json("/api/v1/about"))["graphs"] == ["halves"]
    (dag,) = (await site.json("/api/v1/dags"))["dags"]
    assert (dag["name"], dag["inputs"]) == ("halves", ["number", "more", "days", "unit"])
    assert dag["optional"] == ["days", "unit"]
    inputs = {"number": 4, "more": "2", "days": ["2026-11-26"]}  # read as the annotations say
    body = {"graph": "halves", "inputs": inputs, "run": "r1"}
    response = await site.post("/api/v1/runs", body)
    assert (response.status_code, response.json()) == (202, {"run": "r1"})
    run = await end_of(site, "r1")
    assert (run["status"], run["name"], run["graph"]) == ("completed", "halves", "halves")
    reader = RunReader(journal)
    assert await reader.value("r1", "add") == 5.0
    assert await reader.value("r1", "days") == [date(2026, 11, 26)]


async def test_a_run_has_the_tags_of_the_request_beside_those_of_its_engine(
    serve: Serve, journal: MemoryJournal
) -> None:
    dag = halves()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal, tags=["nightly"])
    site = await serve(runs_app(engine, control=True))
    begun = {"inputs": {"number": 3, "more": 1}, "run": "r1", "tags": ["trial", "nightly"]}
    await site.post("/api/v1/runs", begun)
    assert (await end_of(site, "r1"))["tags"] == ["nightly", "trial"]
    await site.post("/api/v1/runs/r1/resume", {"tags": ["again"]})
    assert (await end_of(site, "r1"))["tags"] == ["nightly", "trial", "again"]
    rerun = {"inputs": {"number": 8}, "run": "r2", "tags": ["by hand"]}
    await site.post("/api/v1/runs/r1/rerun", rerun)
    assert (await end_of(site, "r2"))["tags"] == ["nightly", "trial", "again", "by hand"]
    assert engine.options["tags"] == ("nightly",)


async def test_runs_are_begun_in_a_file_that_is_not_there_yet(serve: Serve, tmp_path: Path) -> None:
    path = str(tmp_path / "runs.db")
    engines = [engine_of(halves())]
    reading = await serve(runs_app(path, engines=engines))
    assert (await reading.get("/api/v1/runs")).status_code == 503
    site = await serve(runs_app(path, control=True, engines=engines))
    assert (await site.json("/api/v1/runs"))["runs"] == []
    body = {"inputs": {"number": 4, "more": 1}, "run": "r1"}
    assert (await site.post("/api/v1/runs", body)).status_code == 202
    assert (await end_of(site, "r1"))["status"] == "completed"


async def test_a_run_without_a_name_gets_one(serve: Serve, journal: MemoryJournal) -> None:
    nameless = DAGBuilder().node(half, inputs=["number"]).build()
    site = await serve(runs_app(engine_of(nameless, journal), control=True))
    run_id = (await site.post("/api/v1/runs", {"inputs": {"number": 4}})).json()["run"]
    assert (await end_of(site, run_id))["graph"] == "unnamed"


REFUSED: list[tuple[Any, int, str]] = [
    ({"graph": "halves", "inputs": {"number": 4}}, 422, "node 'add' needs 'more'"),
    ({"graph": "halves", "inputs": {"number": 4, "more": 1, "half": 2}}, 422, "its own nodes"),
    ({"graph": "halves", "inputs": {"number": 4, "more": 1}, "outputs": ["x"]}, 422, "'x'"),
    ({"inputs": {"number": "x", "more": 1}}, 422, "'number' is \"x\", which cannot be read as int"),
    ({"inputs": {"number": 4, "more": None}}, 422, "'more' is null, which cannot be read as int"),
    ({"inputs": {"number": 4, "more": 1, "days": [7.5]}}, 422, "cannot be read as list[datetime"),
    ({"inputs": {"number": 4, "moer": 1}}, 422, "no node takes; did you mean 'more'?"),
    ({"graph": "other"}, 422, "there is no graph 'other'; the application can run: 'halves'"),
    ({"inputs": []}, 400, "'inputs' in the body is no object"),
    ({"outputs": [1]}, 400, "'outputs' in the body is no list of texts"),
    ({"input": {}}, 400, "the body has 'input'; known keys: 'graph', 'inputs'"),
    ({"inputs": {"number": 4, "more": 1}, "tags": [" "]}, 422, "tags has ' '"),
    ({"tags": "trial"}, 400, "'tags' in the body is no list of texts"),
    ({"run": ""}, 400, "'run' in the body is no name"),
    ([1], 400, "the body is no JSON object"),
]


async def test_what_is_refused_sends_nothing(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal, control=True, engines={"halves": engine_of(halves())}))
    for body, status, text in REFUSED:
        response = await site.post("/api/v1/runs", body)
        assert response.status_code == status
        assert text in response.json()["error"]["message"]
    assert executed == []
    assert await journal.run_ids() == []


async def test_an_id_that_exists_is_refused(serve: Serve, journal: MemoryJournal) -> None:
    engine = engine_of(halves(), journal)
    await engine.execute({"number": 4, "more": 3}, run_id="r1")
    site = await serve(runs_app(engine, control=True))
    executed.clear()
    start = {"inputs": {"number": 4, "more": 3}, "run": "r1"}
    for path, body in (("runs", start), ("runs/r1/rerun", {"from": ["half"], "run": "r1"})):
        response = await site.post(f"/api/v1/{path}", body)
        assert response.status_code == 409
        assert "there is a run 'r1' already" in response.json()["error"]["message"]
    assert executed == []


async def test_a_failed_run_is_resumed_and_run_again_with_other_inputs(
    serve: Serve, journal: MemoryJournal
) -> None:
    site = await serve(runs_app(engine_of(halves(), journal), control=True))
    await site.post("/api/v1/runs", {"inputs": {"number": 3, "more": 1}, "run": "r1"})
    run = await end_of(site, "r1")
    assert (run["status"], "3 is odd" in run["error"]["message"]) == ("failed", True)
    assert (await site.post("/api/v1/runs/r1/resume")).status_code == 202
    assert (await end_of(site, "r1"))["sessions"] == 2
    executed.clear()
    again = await site.post("/api/v1/runs/r1/rerun", {"inputs": {"number": 8}, "run": "r2"})
    assert again.json() == {"run": "r2"}
    run = await end_of(site, "r2")
    assert (run["status"], run["parent"]) == ("completed", "r1")
    executed.clear()
    await site.post("/api/v1/runs/r2/rerun", {"from": ["add"], "run": "r3"})
    assert (await end_of(site, "r3"))["status"] == "completed"
    assert executed == ["add"]
    for body, text in (
        ({}, "nothing says"),
        ({"from": ["x"]}, "no node 'x'"),
        ({"inputs": {"more": []}}, "'more' is [], which cannot be read as int"),
        ({"from": ["add"], "inputs": {"moer": 1}}, "no node takes; did you mean 'more'?"),
        ({"inputs": {"half": 1.0}}, "its own nodes produce"),
    ):
        response = await site.post("/api/v1/runs/r2/rerun", body)
        assert (response.status_code, text in response.json()["error"]["message"]) == (422, True)
    assert executed == ["add"]


async def test_deleting_creates_no_file(serve: Serve, tmp_path: Path) -> None:
    dag = DAGBuilder("one").node(abs, inputs=["x"]).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=tmp_path / "runs.db")
    site = await serve(runs_app(engine, control=True))
    assert (await site.client.delete("/api/v1/runs/r1")).status_code == 404
    assert [*tmp_path.iterdir()] == []


async def test_a_run_goes_on_with_the_on_error_that_it_was_begun_with(
    serve: Serve, journal: MemoryJournal
) -> None:
    engine = ExecutionEngine(InMemoryBroker(), halves(), journal=journal, on_error="collect")
    await engine.execute({"number": 3, "more": 1}, run_id="r1")
    site = await serve(runs_app(engine_of(halves(), journal), control=True))
    await site.post("/api/v1/runs/r1/resume")
    run = await end_of(site, "r1")
    assert (run["status"], run["sessions"], run["failed"]) == ("completed", 2, 1)


async def test_a_run_that_an_engine_has_is_neither_resumed_nor_deleted(
    serve: Serve, journal: MemoryJournal
) -> None:
    gate = Gate()
    site = await serve(runs_app(engine_of(gate.dag, journal), control=True))
    await site.post("/api/v1/runs", {"inputs": {"number": 3}, "run": "r1"})
    await gate.reached.wait()
    response = await site.post("/api/v1/runs/r1/resume")
    assert (response.status_code, "is locked by" in response.text) == (409, True)
    response = await site.post("/api/v1/runs/r1/rerun", {"from": ["gate"]})
    assert (response.status_code, "would be done twice" in response.text) == (409, True)
    assert (await site.client.delete("/api/v1/runs/r1")).status_code == 409
    assert (await site.client.post("/api/v1/runs/r1/cancel")).status_code == 202  # without a body
    assert (await end_of(site, "r1"))["status"] == "cancelled"
    gate.opened.set()
    assert (await site.client.post("/api/v1/runs/r1/resume")).status_code == 202
    assert (await end_of(site, "r1"))["status"] == "completed"
    response = await site.client.delete("/api/v1/runs/r1")
    assert (response.status_code, response.json()) == (200, {"deleted": "r1"})
    for method, path in (("DELETE", "r1"), ("POST", "r1/resume"), ("POST", "r1/rerun")):
        body = {"from": ["gate"]} if path.endswith("rerun") else None
        response = await site.client.request(method, f"/api/v1/runs/{path}", json=body)
        assert response.status_code == 404


async def test_runs_of_no_known_graph_and_recorded_ones_are_refused(
    serve: Serve, journal: MemoryJournal
) -> None:
    dag = halves()
    recording = ExecutionEngine(InMemoryBroker(), dag, listeners=[Recorder(journal)])
    await recording.execute({"number": 4, "more": 3}, run_id="r1")
    other = DAGBuilder("other").node(abs, inputs=["number"]).build()
    await engine_of(other, journal).execute({"number": 4}, run_id="r2")
    changed = DAGBuilder("halves").node(half, name="other", inputs=["number"]).build()
    await engine_of(changed, journal).execute({"number": 4}, run_id="r3")
    site = await serve(runs_app(engine_of(dag, journal), control=True))
    for run_id, status, text in (
        ("r1", 409, "without its values"),
        ("r2", 422, "is of graph 'other'; the application can run: 'halves'"),
        ("r3", 422, "was started with another graph"),
    ):
        response = await site.post(f"/api/v1/runs/{run_id}/resume")
        assert (response.status_code, text in response.text) == (status, True)


async def test_a_run_that_is_begun_as_the_application_stops_ends_with_it(
    journal: MemoryJournal,
) -> None:
    gate = Gate()
    engine = engine_of(gate.dag, journal)
    runs = runner.Runner(RunReader(journal), {"gated": engine})
    begins = asyncio.create_task(
        runs.begin(engine, lambda one: one.execute_async({"number": 1}, run_id="g"))
    )
    await asyncio.sleep(0)
    async with asyncio.timeout(LONGEST):
        await runs.close()
    with pytest.raises(HTTPException, match="503: run 'g' was cancelled before it began"):
        await begins


async def test_runs_are_cancelled_when_the_application_stops(journal: MemoryJournal) -> None:
    gate = Gate()
    engine = engine_of(gate.dag)
    async with serving(runs_app(journal, control=True, engines=[engine])) as base:
        async with httpx2.AsyncClient(base_url=base) as client:
            body = {"graph": "gated", "inputs": {"number": 3}, "run": "r1"}
            assert (await client.post("/api/v1/runs", json=body)).status_code == 202
        await gate.reached.wait()
    assert (await RunReader(journal).run("r1")).status == "cancelled"


async def test_runs_in_progress_are_bounded(
    serve: Serve, journal: MemoryJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MOST_RUNS", 1)
    gate = Gate()
    site = await serve(runs_app(engine_of(gate.dag, journal), control=True))
    start = {"inputs": {"number": 3}}
    assert (await site.post("/api/v1/runs", start)).status_code == 202
    assert (await site.post("/api/v1/runs", start)).status_code == 429
    gate.opened.set()

    async def is_begun() -> bool:
        return (await site.post("/api/v1/runs", start)).status_code == 202

    await until(is_begun, "another run is begun")


async def test_an_engine_whose_graph_has_no_name_needs_one() -> None:
    engine = engine_of(DAGBuilder().node(abs, inputs=["number"]).build())
    with pytest.raises(ValueError, match="has no name; give engines="):
        runs_app(MemoryJournal(), engines=[engine])
