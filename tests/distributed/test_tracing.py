"""Traces that go on in worker processes, also where one of them is killed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from taskiq_flow import DAGBuilder, ExecutionEngine, NodeBegan, Tracing
from tests.distributed import app
from tests.distributed.app import started, task
from tests.distributed.conftest import Farm
from tests.distributed.watching import Notes
from tests.servers.workers import Workers
from tests.waiting import until

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.instrumentation")

from taskiq.instrumentation import TaskiqInstrumentor

from tests.distributed.traced import SPANS
from tests.listeners.spans import SpanRecorder
from tests.recording import Recorder


def on_workers(path: Path) -> list[dict[str, Any]]:
    """The spans that have ended on workers."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


async def test_the_span_of_a_worker_is_below_that_of_the_node_also_after_another_was_killed(
    farm: Farm, notes: Notes, tmp_path: Path
) -> None:
    settings = farm.settings("redis-streams", queue="traced")
    path, spans, recorder = tmp_path / "spans", SpanRecorder(), Recorder()
    path.touch()
    env = {**settings.environment, SPANS: str(path)}
    folder, given = tmp_path / "workers", {"path": str(notes.path), "name": "one"}
    workers = Workers("tests.distributed.traced:from_environment", folder=folder, env=env)
    await asyncio.to_thread(workers.start)
    try:
        async with started(settings) as broker:
            dag = DAGBuilder().node(task(broker, app.held), inputs=["path", "name"]).build()
            engine = ExecutionEngine(broker, dag, listeners=[Tracing(spans.provider), recorder])
            running = asyncio.ensure_future(engine.execute(given))
            # The worker tells this beside the function: one that is killed may not have told it.
            await until(lambda: recorder.of(NodeBegan), "the engine heard that the task began")
            await notes.until("begin", 1)
            workers.kill_one()
            await until(lambda: len(recorder.of(NodeBegan)) == 2, "and in the worker's place")
            await notes.until("begin", 2)
            notes.release()
            await running
            node, run = spans.of("held"), spans.of("taskiq_flow.run")
            assert spans.open == []
            await until(lambda: len(on_workers(path)) == 1, "the span on the worker has ended")
            assert is_below(on_workers(path)[0], node)
            assert spans.parent(node) is run
            began = [event.attributes for event in node.events if event.name == "began"]
            assert len({about["taskiq_flow.worker"] for about in began}) == 2

            spans.ended.clear()
            TaskiqInstrumentor().instrument_broker(broker, spans.provider)
            await engine.execute(given)
            assert spans.open == []
            await until(lambda: len(on_workers(path)) == 2, "the span on the worker has ended")
            assert is_below(on_workers(path)[1], spans.of("send/held"))
            assert spans.parent(spans.of("send/held")) is spans.of("held")
    finally:
        workers.kill()


def is_below(on_worker: dict[str, Any], span: Any) -> bool:
    """Whether a span of a worker is a child of one that has ended here."""
    above = f"0x{span.context.span_id:016x}", f"0x{span.context.trace_id:032x}"
    return (on_worker["parent_id"], on_worker["context"]["trace_id"]) == above
