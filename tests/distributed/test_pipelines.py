"""Pipelines whose steps are executed by workers in other processes."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from taskiq_flow import (
    ConfigurationError,
    ExecutionEngine,
    NodeFailedError,
    Pipeline,
    PollingWarning,
    RunFailedError,
)
from tests.distributed.conftest import Farm
from tests.servers.workers import Workers
from tests.waiting import until

pytest.importorskip("taskiq_redis")


@pytest.fixture(scope="module")
def app(farm: Farm, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The module that builds the pipelines, with workers that have imported it."""
    from tests.distributed import pipelined  # noqa: PLC0415 - it reads the address

    patch = pytest.MonkeyPatch()
    patch.setenv(pipelined.REDIS, farm.redis.url)
    module = importlib.reload(pipelined)
    env = {pipelined.REDIS: farm.redis.url}
    folder: Path = tmp_path_factory.mktemp("workers")
    with Workers("tests.distributed.pipelined:broker", folder=folder, env=env):
        yield module
    patch.undo()


@pytest.fixture
async def started(app: Any) -> AsyncIterator[Any]:
    await app.broker.startup()
    yield app
    await app.broker.shutdown()


async def test_the_steps_are_executed_by_workers(started: Any) -> None:
    task = await started.loud.kiq("ebb at flow")
    assert [word for word, _ in await task] == ["EBB?", "FLOW?"]
    assert isinstance((await task)[0], tuple)
    first, second = await started.loud.kiq("one"), await started.loud.kiq("to two")
    assert [len(await each) for each in (first, second)] == [1, 1]
    stream = started.loud.stream("at")
    assert [pair async for pair in stream] == [("split", ["at"]), ("is_long", []), ("shout", [])]
    assert await started.sizes.kiq_dataflow(text="a b") == {"words": ["a", "b"], "size": 2}


async def test_a_step_that_fails_on_a_worker_ends_the_run(started: Any) -> None:
    task = await started.loud.kiq("good bad")
    done = await task.wait_result(timeout=30)
    assert isinstance(done.error, NodeFailedError)
    assert isinstance(done.error.__cause__, LookupError)


async def test_steps_give_none_a_generator_or_a_tuple_and_lists_may_be_empty(started: Any) -> None:
    def pipeline() -> Pipeline[Any]:
        return Pipeline(started.broker)

    runs = {
        pipeline().call_next(started.forget).call_next(started.named): ("a", "NoneType"),
        pipeline().call_next(started.letters).map(started.named): ("ab", ["str", "str"]),
        pipeline().call_next(started.letters).call_next(started.named): ("ab", "list"),
        pipeline().call_next(started.shout).call_next(started.named): ("a", "tuple"),
        pipeline().call_next(started.split).map(started.named): ("", []),
        pipeline().map(started.is_long).call_next(started.named): ([], "list"),
    }
    tasks = [(await each.kiq(given), expected) for each, (given, expected) in runs.items()]
    for task, expected in tasks:
        assert await task == expected


async def test_a_failing_step_in_each_mode(started: Any) -> None:
    def pipeline(mode: Any) -> Pipeline[Any]:
        pipeline = Pipeline(started.broker).call_next(started.split).map(started.shout)
        return pipeline.on_error(mode).with_retry(max_attempts=2, delay=0.01)

    error = (await (await pipeline("retry").kiq("bad")).wait_result(timeout=30)).error
    assert isinstance(error, NodeFailedError)
    assert error.attempts == 2
    task = await pipeline("continue").kiq("bad ok")
    error = (await task.wait_result(timeout=30)).error
    assert isinstance(error, RunFailedError)
    assert list(error.failures) == ["shout[0]"]


async def test_a_pipeline_id_of_the_user_is_that_of_the_run_and_of_its_steps(started: Any) -> None:
    pipeline = Pipeline(started.broker, pipeline_id="mine").with_context()
    task = await pipeline.call_next(started.seen).kiq("a")
    assert task.pipeline_id == pipeline.pipeline_id == "mine"
    assert await task == "sequential mine 0"


async def test_results_of_workers_without_the_middleware_are_late_or_an_error(
    started: Any, farm: Farm, tmp_path: Path
) -> None:
    env = {started.REDIS: farm.redis.url}
    app = "tests.distributed.pipelined:of_bare_workers"
    with Workers(app, folder=tmp_path, env=env):
        broker = started.of_engines
        await broker.startup()
        pipeline = Pipeline(broker).call_next(broker.find_task("nap"))
        engine = ExecutionEngine(**pipeline.engine.options | {"lost_after": 4.0})
        assert await engine.execute({"input": 0.1}) == {"nap": 0.1}
        with pytest.raises(NodeFailedError, match="the workers have no FlowMiddleware"):
            await engine.execute({"input": 60.0})
        await broker.shutdown()


async def test_a_pipeline_is_a_task_that_a_worker_executes(started: Any) -> None:
    task = await started.told.task.kiq("a b")
    done = await task.wait_result(timeout=30)
    assert done.error is None
    mode, pipeline_id, step = done.return_value.split()
    assert (mode, step) == ("sequential", "4")
    assert pipeline_id != task.task_id


async def test_jobs_are_in_the_source_of_the_user_and_run_on_workers(started: Any) -> None:
    scheduler = started.scheduler
    await scheduler.schedule(started.nightly, "0 3 * * *", args=("a",), job_id="cron")
    await scheduler.schedule_interval(started.nightly, hours=1, args=("a",), job_id="every")
    await scheduler.pause_job("every")
    past = datetime.now(UTC) - timedelta(seconds=1)
    await scheduler.schedule_at(started.nightly, past, args=("b",), pipeline_id="at", job_id="at")
    again = started.Source(started.url, prefix="pipelined")
    other = type(scheduler)(started.broker, store=again)
    jobs = {job.id: job for job in await other.list_jobs()}
    assert jobs.keys() == {"cron", "every", "at"}
    assert jobs["every"].is_paused
    assert jobs["every"].interval == timedelta(hours=1)
    assert jobs["at"].run_at == past
    async with scheduler:
        await until(started.noted, "a job was executed")
    assert await started.noted() == ["sequential at 0"]
    await other.remove_job("cron")
    await other.remove_job("every")
    assert await other.list_jobs() == []
    await again.shutdown()


async def test_a_pipeline_that_workers_do_not_know_is_not_scheduled(started: Any) -> None:
    pipeline = Pipeline(started.broker).call_next(started.split)
    with pytest.raises(ConfigurationError, match=r"call pipeline.as_task\('name'\) in a module"):
        await started.scheduler.schedule(pipeline, "0 3 * * *")


async def test_a_step_that_is_a_plain_function_says_that_workers_need_a_task(
    started: Any,
) -> None:
    task = await Pipeline(started.broker).call_next(len).kiq("abc")
    with pytest.raises(ConfigurationError, match=r"@broker\.task"):
        await task


async def test_without_the_middleware_here_a_warning_says_so(app: Any) -> None:
    await app.bare.startup()
    pipeline = Pipeline(app.bare).call_next(app.split)
    task = await pipeline.kiq("a b")
    with pytest.warns(PollingWarning, match="has no FlowMiddleware"):
        await task.wait_result()
    assert await task == ["a", "b"]
    await app.bare.shutdown()
