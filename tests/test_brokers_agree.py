"""The same graph on the embedded broker and on one with workers of its own: the same outcome."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from taskiq import AsyncBroker, InMemoryBroker

from taskiq_flow import DAG, DAGBuilder, ExecutionEngine, NodeFailure, NodeSkipped
from tests.local_broker import LocalBroker

pytestmark = pytest.mark.filterwarnings("ignore::taskiq_flow.PollingWarning")


@pytest.fixture(params=["embedded", "queued"])
async def any_broker(request: pytest.FixtureRequest) -> AsyncIterator[AsyncBroker]:
    if request.param == "embedded":
        broker = InMemoryBroker()
        yield broker
        await broker.shutdown()
    else:
        queued = LocalBroker()
        async with queued.worker():
            yield queued


def graph(broker: AsyncBroker) -> DAG:
    """load → (first, rest) → joined; load → bad → behind; empty gives None."""

    @broker.task
    async def load(text: str) -> list[str]:
        return text.split()

    @broker.task
    def cut(words: list[str]) -> tuple[str, list[str]]:
        return words[0], words[1:]

    @broker.task
    async def joined(first: str, rest: list[str], glue: str = "-") -> str:
        return glue.join([first, *rest])

    @broker.task
    async def bad(words: list[str]) -> None:
        raise LookupError(words[0])

    @broker.task
    async def behind(bad: None) -> None: ...

    @broker.task
    async def empty() -> None:
        return None

    builder = DAGBuilder().node(load, output="words").node(cut, outputs=["first", "rest"])
    return builder.node(joined).node(bad).node(behind).node(empty).build()


async def test_values_failures_and_skips_are_the_same(any_broker: AsyncBroker) -> None:
    engine = ExecutionEngine(any_broker, graph(any_broker), on_error="collect")
    results = await engine.execute({"text": "a b c"}, run_id="r")
    failure, skip = results.pop("bad"), results.pop("behind")
    assert results == {
        "words": ["a", "b", "c"],
        "first": "a",
        "rest": ["b", "c"],
        "joined": "a-b-c",
        "empty": None,
    }
    assert isinstance(failure, NodeFailure)
    assert (failure.task_id, repr(failure.error), failure.attempts) == (
        "r:bad:1",
        "LookupError('a')",
        1,
    )
    assert isinstance(skip, NodeSkipped)
    assert skip.because_of == ("bad",)


async def test_a_task_that_outlives_its_timeout_fails_once(any_broker: AsyncBroker) -> None:
    release = asyncio.Event()

    @any_broker.task(timeout=0.01)
    async def slow() -> str:
        await release.wait()
        return "late"

    @any_broker.task
    async def quick() -> int:
        return 1

    dag = DAGBuilder().node(slow).node(quick).build()
    engine = ExecutionEngine(any_broker, dag, on_error="collect")
    pairs = [pair async for pair in engine.execute_async()]
    assert [name for name, _ in pairs] == ["quick", "slow"]
    assert isinstance(pairs[1][1].error, TimeoutError)


async def test_a_sync_task_that_outlives_its_timeout_gives_no_second_result(
    broker: InMemoryBroker,
) -> None:
    release = threading.Event()

    @broker.task(timeout=0.01)
    def slow() -> str:
        release.wait(10)
        ended.append(1)
        return "late"

    ended: list[int] = []
    engine = ExecutionEngine(broker, DAGBuilder().node(slow).build(), on_error="collect")
    async for _, result in engine.execute_async():
        assert isinstance(result.error, TimeoutError)
        release.set()
        while not ended:
            await asyncio.sleep(0.001)
