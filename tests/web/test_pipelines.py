"""Pipelines over HTTP, behind the same checks as runs."""

from __future__ import annotations

import asyncio

import pytest
from starlette.applications import Starlette
from taskiq import InMemoryBroker

from taskiq_flow import ConfigurationError, DataflowPipeline, Pipeline
from taskiq_flow.events import Event, RunFinished
from taskiq_flow.web import create_visualization_api
from taskiq_flow.web.pipelines import PipelinesApi
from tests.journal.nightly import odd
from tests.web.site import Serve

TOKEN = "a-token-that-nobody-guesses"
broker = InMemoryBroker()


class Ended:
    """A listener that tells when a run has ended."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def on_event(self, event: Event) -> None:
        if isinstance(event, RunFinished):
            self.event.set()


def with_pipelines(api: PipelinesApi) -> Ended:
    ended = Ended()
    pipeline = Pipeline(broker).call_next(odd).call_next(hex)
    api.add_pipeline("steps", pipeline)
    pipeline.with_hooks(ended)
    api.add_pipeline("keys", DataflowPipeline(broker, [odd]))
    return ended


@pytest.mark.parametrize("app", [None, Starlette()], ids=["its own", "another"])
async def test_pipelines_are_shown_and_run(serve: Serve, app: Starlette | None) -> None:
    api = create_visualization_api(broker, app, control=True)
    ended = with_pipelines(api)
    api.app.state.has_token = False
    site = await serve(api.app)
    assert await site.json("/health") == {"status": "ok"}
    assert [one["id"] for one in (await site.json("/pipelines"))["pipelines"]] == ["steps", "keys"]
    assert (await site.json("/pipelines/steps/status"))["status"] == "PENDING"
    assert "odd" in (await site.get("/pipelines/steps/dag/dot")).text
    assert len((await site.json("/pipelines/steps/dag"))["nodes"]) == 2
    shown = await site.json("/pipelines/steps/visualize")
    assert shown["edges"] == [{"from": "odd", "to": "hex"}]

    response = await site.post("/pipelines/steps", {"args": [4]})
    assert response.status_code == 202
    await ended.event.wait()
    status = await site.json("/pipelines/steps/status")
    assert (status["pipeline_id"], status["status"]) == (
        response.json()["pipeline_id"],
        "COMPLETED",
    )
    assert [step["step_name"] for step in status["steps"]] == ["odd", "hex"]

    ended.event.clear()
    await site.post("/pipelines/steps", {"kwargs": {"number": 5}})
    await ended.event.wait()
    status = await site.json("/pipelines/steps/status")
    assert status["status"] == "FAILED"
    assert "5 is odd" in status["steps"][0]["error"]


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/pipelines/none", {}, 404),
        ("/pipelines/steps", {"number": 4}, 400),
        ("/pipelines/steps", {"args": 4}, 400),
        ("/pipelines/steps", {"kwargs": {"size": 4}}, 422),
        ("/pipelines/keys", {"args": [4]}, 422),
        ("/pipelines/keys", {}, 422),
        ("/pipelines/steps", {"args": ["x" * 70_000]}, 413),
    ],
)
async def test_wrong_calls_are_refused(serve: Serve, path: str, body: object, code: int) -> None:
    api = create_visualization_api(broker, control=True)
    with_pipelines(api)
    site = await serve(api.app)
    assert (await site.post(path, body)).status_code == code


async def test_a_pipeline_without_a_graph_is_told_apart(serve: Serve) -> None:
    api = create_visualization_api(broker)
    api.add_pipeline("empty", Pipeline(broker))
    site = await serve(api.app)
    for path in ("dag", "dag/dot", "visualize"):
        response = await site.get(f"/pipelines/empty/{path}")
        assert response.status_code == 422
        assert "the pipeline has no steps" in response.text


async def test_it_is_safe_by_default(serve: Serve) -> None:
    api = create_visualization_api(broker)
    with_pipelines(api)
    site = await serve(api.app)
    assert (await site.post("/pipelines/steps", {"args": [4]})).status_code == 403
    headers = {"host": "evil.example"}
    assert (await site.get("/pipelines", headers=headers)).status_code == 403


async def test_a_token_is_needed_for_all_but_health(serve: Serve) -> None:
    api = create_visualization_api(broker, token=TOKEN, control=True)
    with_pipelines(api)
    site = await serve(api.app)
    right = {"authorization": f"Bearer {TOKEN}"}
    for path in ("", "/steps/status", "/steps/dag", "/steps/dag/dot", "/steps/visualize"):
        assert (await site.get(f"/pipelines{path}")).status_code == 401
        assert (await site.get(f"/pipelines{path}", headers=right)).status_code == 200
    assert (await site.post("/pipelines/steps", {"args": [4]})).status_code == 401
    assert (await site.get("/health")).status_code == 200
    evil = {**right, "origin": "http://evil.example"}
    assert (await site.post("/pipelines/steps", {"args": [4]}, **evil)).status_code == 403


def test_what_is_no_pipeline_of_the_broker_is_refused() -> None:
    api = create_visualization_api(broker)
    with_pipelines(api)
    with pytest.raises(ConfigurationError, match="there is a pipeline 'steps' already"):
        with_pipelines(api)
    with pytest.raises(ConfigurationError, match="has another broker"):
        api.add_pipeline("other", Pipeline(InMemoryBroker()))
    with pytest.raises(ValueError, match="without '/'"):
        api.add_pipeline("a/b", Pipeline(broker))
    with pytest.raises(TypeError, match="is no pipeline"):
        api.add_pipeline("other", 7)  # type: ignore[arg-type]
