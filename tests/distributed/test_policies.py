"""Retries, limits, fallbacks, rules and journals, whichever broker carries the tasks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from taskiq import AsyncBroker

from taskiq_flow import (
    Cache,
    DAGBuilder,
    ExecutionEngine,
    MemoryJournal,
    NodeCompleted,
    NodeFailedError,
    NodeFellBack,
    NodeRetried,
    NodeTimeoutError,
    Retry,
    SqliteJournal,
)
from tests.distributed import app
from tests.distributed.app import started, task
from tests.distributed.conftest import Farm
from tests.distributed.watching import Notes, inputs, many, until_empty
from tests.recording import Recorder


async def test_a_task_that_fails_is_sent_again_under_another_id(
    any_broker: AsyncBroker, tmp_path: Path
) -> None:
    notes, recorder = Notes(tmp_path), Recorder()
    dag = DAGBuilder().node(task(any_broker, app.fails_once), retry=Retry(wait=0.05)).build()
    engine = ExecutionEngine(any_broker, dag, listeners=[recorder])
    results = await engine.execute({"path": str(notes.path)}, run_id=f"again-{tmp_path.name}")
    assert results == {"fails_once": 2}
    (retried,) = recorder.of(NodeRetried)
    assert retried.task_id.startswith(f"again-{tmp_path.name}:fails_once:2.")
    assert repr(retried.error) == "LookupError(1)"


async def test_a_retry_middleware_on_the_workers_leaves_it_to_the_engine(
    any_broker: AsyncBroker, tmp_path: Path
) -> None:
    """The task says ``retry_on_error``, and its broker has taskiq's middleware for that."""
    path = tmp_path / "attempts"
    dag = DAGBuilder().node(task(any_broker, app.fails_at_first), retry=Retry(2, wait=0)).build()
    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(any_broker, dag).execute({"path": str(path), "times": 9})
    assert len(path.read_text(encoding="utf-8").split()) == caught.value.attempts == 2


async def test_the_error_of_a_fallback_that_fails_comes_with_that_of_its_node(
    any_broker: AsyncBroker, tmp_path: Path
) -> None:
    node, fallback = task(any_broker, app.fails_at_first), task(any_broker, app.fails_once)
    dag = DAGBuilder().node(node, fallback=fallback).build()
    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(any_broker, dag).execute({"path": str(tmp_path / "a"), "times": 9})
    error = caught.value.__cause__
    assert isinstance(error, LookupError)
    told = f"attempt {caught.value.attempts}: its fallback failed with LookupError: {error}, after "
    assert f"{told}LookupError: {error.__context__}" in str(caught.value)
    assert isinstance(error.__context__, LookupError)


async def test_an_attempt_that_takes_too_long_is_cancelled_where_it_runs(
    any_broker: AsyncBroker, tmp_path: Path
) -> None:
    notes, recorder = Notes(tmp_path), Recorder()
    given = {"path": str(notes.path), "name": "slow", "seconds": 60.0}
    dag = DAGBuilder().node(task(any_broker, app.noted), timeout=0.3, fallback="none").build()
    engine = ExecutionEngine(any_broker, dag, listeners=[recorder])
    assert await engine.execute(given) == {"noted": "none"}
    await notes.until("cancel", 1)
    (fell,) = recorder.of(NodeFellBack)
    assert isinstance(fell.error, NodeTimeoutError)
    assert (fell.error.task_name, fell.error.seconds, fell.error.waited) == ("noted", 0.3, False)
    assert recorder.of(NodeCompleted)[0].source == "fallback"


@pytest.mark.parametrize(
    ("function", "limit"),
    [(app.noted, "max_async_tasks"), (app.noted_in_thread, "max_threadpool_threads")],
)
async def test_time_in_the_queue_is_no_time_of_the_attempts(
    remote_kind: str, farm: Farm, tmp_path: Path, function: Any, limit: str
) -> None:
    """One worker process for one task at a time: of eight, the last waits beyond its timeout."""
    settings = farm.settings(remote_kind, f"one-{limit}")
    farm.serve(settings, **{limit: 1})
    notes = Notes(tmp_path)
    async with started(settings) as broker:
        engine = ExecutionEngine(broker, many(broker, function, 8), timeout=2.0)
        assert len(await engine.execute(inputs(notes, 8, 0.3))) == 8


async def test_a_task_that_waits_too_long_in_the_queue_is_not_executed(
    remote_kind: str, farm: Farm, tmp_path: Path
) -> None:
    """It is passed over, or cancelled if it begins before its worker has heard of that."""
    settings = farm.settings(remote_kind, "busy")
    farm.serve(settings, max_async_tasks=1)
    notes = Notes(tmp_path)
    async with started(settings) as broker:
        held = DAGBuilder().node(task(broker, app.held)).build()
        waiting = DAGBuilder().node(task(broker, app.noted), queue_timeout=1.0).build()
        given = {"path": str(notes.path), "name": "waiting", "seconds": 60.0}
        async with asyncio.TaskGroup() as group:
            group.create_task(
                ExecutionEngine(broker, held).execute({"path": str(notes.path), "name": "held"})
            )
            await notes.until("begin", 1)
            with pytest.raises(NodeFailedError) as caught:
                await ExecutionEngine(broker, waiting).execute(given)
            assert isinstance(caught.value.__cause__, NodeTimeoutError)
            assert caught.value.__cause__.waited
            notes.release()
    await until_empty(settings)
    assert notes.of("begin")[1:] == notes.of("cancel")
    assert notes.of("end") == []


async def test_rules_and_conditions_are_the_same(any_broker: AsyncBroker) -> None:
    builder = DAGBuilder().node(task(any_broker, app.load), output="words")
    builder.node(task(any_broker, app.point), when=lambda words: len(words) > 5)
    builder.node(task(any_broker, app.shifted))
    builder.node(task(any_broker, app.total), inputs=["count", "other"], join="none_failed")
    builder.node(task(any_broker, app.double), inputs=["words_twice"], output="count")
    builder.node(task(any_broker, app.echo), inputs=["x"], output="words_twice")
    builder.node(task(any_broker, app.double), name="other", inputs=["x"], when=lambda x: x > 5)
    engine = ExecutionEngine(any_broker, builder.build(), on_error="collect")
    results = await engine.execute({"text": "a b", "x": 2})
    skipped = {key for key in ("point", "shifted", "other") if results[key].reason == "condition"}
    assert skipped == {"point", "shifted", "other"}
    assert results["total"] == 4


async def test_a_run_that_has_failed_is_gone_on_with(
    any_broker: AsyncBroker, tmp_path: Path
) -> None:
    notes, run_id = Notes(tmp_path), f"resumed-{tmp_path.name}"
    builder = DAGBuilder().node(task(any_broker, app.load), output="words")
    builder.node(task(any_broker, app.point)).node(task(any_broker, app.shifted))
    builder.node(task(any_broker, app.cut), outputs=["first", "rest"])
    dag = builder.node(task(any_broker, app.fails_once)).build()
    journal = SqliteJournal(tmp_path / "runs.db")
    engine = ExecutionEngine(any_broker, dag, journal=journal, on_error="continue")
    with pytest.raises(Exception, match="'fails_once' with LookupError: 1"):
        await engine.execute({"text": "a b", "path": str(notes.path)}, run_id=run_id)
    pairs = [pair async for pair in engine.resume(run_id)]
    results = dict(pairs)
    assert results.pop("point").x == 2
    assert results == {"load": ["a", "b"], "shifted": 3, "cut": ("a", ["b"]), "fails_once": 2}
    assert pairs[-1][0] == "fails_once"
    await journal.aclose()


async def test_references_are_kept_and_taken_up_again(remote: AsyncBroker, tmp_path: Path) -> None:
    notes, run_id = Notes(tmp_path), f"references-{tmp_path.name}"
    builder = DAGBuilder().node(task(remote, app.blob))
    builder.node(task(remote, app.two_blobs), outputs=["left", "right"])
    builder.node(task(remote, app.fails_once))
    builder.node(task(remote, app.measure), inputs={"blob": "right", "number": "fails_once"})
    dag, journal = builder.build(), MemoryJournal()
    engine = ExecutionEngine(remote, dag, journal=journal, pass_by=10_000, on_error="continue")
    with pytest.raises(Exception, match="'fails_once' with LookupError: 1"):
        await engine.execute({"size": 50_000, "path": str(notes.path)}, run_id=run_id)
    assert sum(map(len, journal._logs[run_id].chunks)) < 5_000
    results = dict([pair async for pair in engine.resume(run_id)])
    assert await results["blob"].get() == "x" * 50_000
    assert results["measure"] == 50_000


async def test_a_cached_result_is_taken_by_another_run(
    any_broker: AsyncBroker, tmp_path: Path
) -> None:
    notes = Notes(tmp_path)
    dag = DAGBuilder().node(task(any_broker, app.noted), cache=Cache()).build()
    given = {"path": str(notes.path), "name": "n", "seconds": 0.1}
    journal = MemoryJournal()
    engines = [ExecutionEngine(any_broker, dag, journal=journal) for _ in range(2)]
    runs = [engine.execute(given) for engine in engines]
    assert await asyncio.gather(*runs) == [{"noted": "n"}] * 2
    assert notes.of("begin") == ["n"]
