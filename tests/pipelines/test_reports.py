"""What users have reported of other pipelines on task queues; the docstrings name the reports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from taskiq import InMemoryBroker, TaskiqScheduler
from taskiq.middlewares import SmartRetryMiddleware

from taskiq_flow import DAGBuilder, ExecutionEngine, Pipeline, PipelineError, RunFailedError
from taskiq_flow.pipelines.jobs import MemorySchedules
from taskiq_flow.testing import LocalBroker, LocalFlowMiddleware


@pytest.fixture
async def broker() -> AsyncIterator[LocalBroker]:
    """A broker with a queue and a worker, so that each step is a message."""
    broker = LocalBroker().with_middlewares(LocalFlowMiddleware())
    await broker.startup()
    async with broker.worker():
        yield broker
    await broker.shutdown()


async def result(pipeline: Pipeline[Any], *args: Any, **kwargs: Any) -> Any:
    async with asyncio.timeout(10):
        return await (await pipeline.kiq(*args, **kwargs))


async def test_a_map_over_an_empty_list_ends(broker: LocalBroker) -> None:
    """taskiq-pipelines 18: it never did."""

    @broker.task
    async def none_of(count: int) -> list[int]:
        return []

    @broker.task
    async def double(number: int) -> int:
        return 2 * number

    assert await result(Pipeline(broker).call_next(none_of).map(double), 1) == []


async def test_what_follows_an_empty_header_runs_with_an_empty_list(broker: LocalBroker) -> None:
    """celery 3756, an exception, and celery 4333, waiting for ever."""

    @broker.task
    async def total(numbers: list[int], start: int) -> int:
        return sum(numbers) + start

    assert await result(Pipeline(broker).group([]).call_next(total, 3)) == 3


async def test_arguments_for_an_empty_group_at_the_start_are_refused(broker: LocalBroker) -> None:
    """celery 9772: they were dropped, and the step after it ran without them."""

    @broker.task
    async def add(a: Any, b: int) -> Any:
        return a, b

    with pytest.raises(PipelineError, match=r"kiq\(\) was given 1 values.*leave them out"):
        await result(Pipeline(broker).group([]).call_next(add, 10), 1)
    assert await result(Pipeline(broker).group([]).call_next(add, 10)) == ([], 10)


async def test_groups_in_chains_in_groups_end(broker: LocalBroker) -> None:
    """celery 2573, 3885, 4401, 4681 and 5612: what stood behind the outer group never ran."""

    @broker.task
    async def more(number: int) -> int:
        return number + 1

    @broker.task
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    alone = Pipeline(broker).group([more]).call_next(total).as_task("alone")
    inner = Pipeline(broker).call_next(more).group([more, alone]).call_next(total).as_task("inner")
    outer = Pipeline(broker).call_next(more).group([inner, alone, more]).call_next(total)
    # 0 → 1 → inner: 2 → 3 + 3; alone: 2; more: 2
    assert await result(outer, 0) == 10


async def test_the_receiving_step_says_whether_it_takes_the_result(broker: LocalBroker) -> None:
    """dramatiq 342 and remoulade 8: the sending step's option counted."""

    @broker.task
    async def bust_caches() -> str:
        return "busted"

    @broker.task
    async def prepare_codes(*codes: str) -> list[str]:
        return [*codes, "prepared"]

    @broker.task
    async def launch(codes: list[str]) -> str:
        return "+".join(codes)

    pipeline = Pipeline(broker).call_next(bust_caches).call_after(prepare_codes).call_next(launch)
    assert await result(pipeline) == "prepared"


async def test_a_group_may_follow_a_group(broker: LocalBroker) -> None:
    """dramatiq 103: groups could not be steps."""

    @broker.task
    async def more(number: int) -> int:
        return number + 1

    @broker.task
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    @broker.task
    async def largest(numbers: list[int]) -> int:
        return max(numbers)

    pipeline = Pipeline(broker).group([more, more]).group([total, largest]).call_next(total)
    assert await result(pipeline, 1) == 6


async def test_steps_go_on_beside_one_that_fails_where_that_is_asked_for(
    broker: LocalBroker,
) -> None:
    """dramatiq 679: the first failure always ended the pipeline."""
    done: list[int] = []

    @broker.task
    async def check(number: int) -> int:
        if number == 2:
            raise LookupError(number)
        return number

    @broker.task
    async def note(number: int) -> None:
        done.append(number)

    pipeline = Pipeline(broker).map(check).map(note).on_error("continue")
    with pytest.raises(RunFailedError) as caught:
        await result(pipeline, [1, 2, 3])
    assert sorted(done) == [1, 3]
    assert list(caught.value.failures) == ["check[1]"]


async def test_a_step_waits_until_the_one_before_it_was_tried_again(broker: LocalBroker) -> None:
    """rq 813: it began when the first attempt had failed."""
    order: list[str] = []

    @broker.task
    async def flaky(number: int) -> int:
        order.append("flaky")
        if len(order) == 1:
            raise ConnectionError
        return number

    @broker.task
    async def after(number: int) -> int:
        order.append("after")
        return number

    pipeline = Pipeline(broker).with_retry(delay=0.01).call_next(flaky).call_next(after)
    assert await result(pipeline, 7) == 7
    assert order == ["flaky", "flaky", "after"]


async def test_a_task_may_run_after_one_that_has_failed(broker: LocalBroker) -> None:
    """rq 1621: it could not."""

    @broker.task
    async def fail() -> None:
        raise LookupError("gone")

    @broker.task
    async def clean_up(failures: list[Any]) -> str:
        return f"after {failures[0].message}"

    builder = DAGBuilder().node(fail).node(clean_up, inputs=["fail.failures"], join="ended")
    engine = ExecutionEngine(broker, builder.build(), on_error="collect")
    assert (await engine.execute())["clean_up"] == "after gone"


async def test_a_retry_that_a_schedule_source_sends_is_waited_for() -> None:
    """taskiq 493: the result of a pipeline with such a step was waited for without an end."""
    source, calls = MemorySchedules(), list[int]()
    broker = InMemoryBroker()
    broker.add_middlewares(SmartRetryMiddleware(schedule_source=source))
    scheduler = TaskiqScheduler(broker, [source])

    @broker.task(retry_on_error=True)
    async def power(x: int) -> int:
        calls.append(x)
        if len(calls) == 1:
            raise ConnectionError
        return x * x

    run = asyncio.ensure_future(result(Pipeline(broker).call_next(power), 3))
    while not (due := await source.get_schedules()):
        await asyncio.sleep(0.001)
    assert not run.done()
    await scheduler.on_ready(source, due[0])
    assert await run == 9
    assert calls == [3, 3]
