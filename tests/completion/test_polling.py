"""Completions by polling: any broker with a result backend keeps the contract, only slower."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from pydantic import BaseModel
from taskiq import BrokerMessage

from taskiq_flow import (
    ConfigurationError,
    DAGBuilder,
    ExecutionEngine,
    MapReduce,
    NodeFailedError,
    RunCancelledError,
    RunTimeoutError,
    ServerUnreachableError,
)
from taskiq_flow.completion import polling, reading
from taskiq_flow.reconnect import OUTAGE_TIMEOUT
from taskiq_flow.testing import LocalBroker, LocalResults
from tests.virtual_clock import virtual_loop, virtually

pytestmark = pytest.mark.filterwarnings("ignore::taskiq_flow.PollingWarning")


class Point(BaseModel):
    x: int


class Tasks:
    """The tasks of a broker; they are registered by name, as workers know them."""

    def __init__(self, broker: LocalBroker) -> None:
        self.ran: list[str] = []

        @broker.task
        async def load(source: str) -> list[str]:
            self.ran.append("load")
            return source.split()

        @broker.task
        async def count(raw: list[str]) -> int:
            self.ran.append("count")
            return len(raw)

        @broker.task
        async def fail(raw: list[str]) -> None:
            raise ValueError("spoilt")

        @broker.task
        async def point(raw: list[str]) -> Point:
            return Point(x=len(raw))

        self.load, self.count, self.fail, self.point = load, count, fail, point


@pytest.fixture
async def remote() -> AsyncIterator[LocalBroker]:
    broker = LocalBroker()
    async with broker.worker():
        yield broker


async def test_a_failure_is_the_tasks_own_exception(remote: LocalBroker) -> None:
    tasks = Tasks(remote)
    dag = DAGBuilder().node(tasks.load, output="raw").node(tasks.fail).build()
    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(remote, dag).execute({"source": "a"})
    assert repr(caught.value.__cause__) == "ValueError('spoilt')"
    assert caught.value.results == {"raw": ["a"]}


async def test_a_result_is_read_as_its_annotation_says(remote: LocalBroker) -> None:
    tasks = Tasks(remote)
    dag = DAGBuilder().node(tasks.load, output="raw").node(tasks.point).build()
    assert (await ExecutionEngine(remote, dag).execute({"source": "a b"}))["point"] == Point(x=2)


async def test_a_map_of_five_hundred(remote: LocalBroker) -> None:
    @remote.task
    async def double(item: int) -> int:
        return 2 * item

    mapped = await MapReduce.map(remote, double, range(500))
    assert (await mapped.wait_result()).return_value == [2 * index for index in range(500)]


async def test_a_result_that_can_be_read_only_once_reaches_all_consumers() -> None:
    broker = LocalBroker(LocalResults(keep_results=False))
    tasks = Tasks(broker)
    builder = DAGBuilder().node(tasks.load, output="raw")
    builder.node(tasks.count, output="one").node(tasks.count, output="two")
    async with broker.worker():
        results = await ExecutionEngine(broker, builder.build()).execute({"source": "a b"})
    assert (results["one"], results["two"]) == (2, 2)


async def test_a_result_backend_that_fails_for_a_while_is_ridden_out(
    remote: LocalBroker, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = Tasks(remote)
    remote.results.failures_to_come = 10
    dag = DAGBuilder().node(tasks.load, output="raw").node(tasks.count).build()
    assert (await ExecutionEngine(remote, dag).execute({"source": "a"}))["count"] == 1
    assert sum("cannot be read yet" in record.message for record in caplog.records) == 1


@virtually
async def test_a_result_backend_that_is_away_is_one_line_however_many_tasks_are_in_flight(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = LocalBroker()
    tasks = Tasks(broker)
    broker.results.failures_to_come, away = 100, "the result backend is away"
    builder = DAGBuilder()
    for number in range(20):
        builder.node(tasks.load, output=f"load {number}")
    async with broker.worker():
        assert len(await ExecutionEngine(broker, builder.build()).execute({"source": "a"})) == 20
    assert [record.getMessage() for record in caplog.records] == [
        f"results cannot be read yet: ConnectionError: {away}; trying again for 60 s"
    ]


@virtually
async def test_a_result_backend_that_never_answers_ends_the_node() -> None:
    broker = LocalBroker()
    broker.results.failures_to_come = 10**9
    dag = DAGBuilder().node(Tasks(broker).load).build()
    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(broker, dag).execute({"source": "a"})
    error = caught.value.__cause__
    assert isinstance(error, ServerUnreachableError)
    assert isinstance(error.__cause__, ConnectionError)
    assert asyncio.get_running_loop().time() == pytest.approx(reading.BACKEND_PATIENCE, abs=1.0)


class AwayBroker(LocalBroker):
    error: Exception = ConnectionError("the broker is away")

    async def kick(self, message: BrokerMessage) -> None:
        raise self.error


@virtually
async def test_a_broker_whose_address_is_wrong_is_not_waited_for() -> None:
    broker = AwayBroker()
    broker.error = FileNotFoundError("no such socket")
    dag = DAGBuilder().node(Tasks(broker).load).build()
    with pytest.raises(NodeFailedError, match="with FileNotFoundError") as caught:
        await ExecutionEngine(broker, dag).execute({"source": "a"})
    assert caught.value.__cause__ is broker.error
    assert asyncio.get_running_loop().time() < 1


@virtually
async def test_a_broker_that_never_takes_a_task_ends_the_node() -> None:
    broker = AwayBroker()
    dag = DAGBuilder().node(Tasks(broker).load).build()
    with pytest.raises(NodeFailedError, match="AwayBroker was away for 60 s: Conn") as caught:
        await ExecutionEngine(broker, dag).execute({"source": "a"})
    error = caught.value.__cause__
    assert isinstance(error, ServerUnreachableError)
    assert isinstance(error.__cause__, ConnectionError)
    assert asyncio.get_running_loop().time() == pytest.approx(OUTAGE_TIMEOUT, abs=2.5)


class Unknown:
    """A type that pydantic knows nothing of."""


@pytest.mark.parametrize("keep_results", [True, False])
async def test_a_value_of_a_type_that_cannot_be_parsed_arrives_as_it_is(
    keep_results: bool,
) -> None:
    broker = LocalBroker(LocalResults(keep_results=keep_results))

    @broker.task
    async def give() -> Unknown:
        return Unknown()

    async with broker.worker():
        results = await ExecutionEngine(broker, DAGBuilder().node(give).build()).execute()
    assert isinstance(results["give"], Unknown)


@virtually
async def test_a_question_that_is_never_answered_holds_no_other_back_for_long() -> None:
    broker = LocalBroker()
    ask = broker.results.is_result_ready

    async def deaf(task_id: str) -> bool:
        if "slow" in task_id:
            await asyncio.Event().wait()
        return await ask(task_id)

    broker.results.is_result_ready = deaf  # type: ignore[method-assign]
    tasks = Tasks(broker)
    builder = DAGBuilder().node(tasks.load, name="slow", inputs=["source"])
    builder.node(tasks.load, output="raw").node(tasks.count)
    engine = ExecutionEngine(broker, builder.build(), on_error="collect")
    async with broker.worker(), aclosing(engine.execute_async({"source": "a"})) as pairs:
        assert [(await anext(pairs))[0] for _ in range(2)] == ["load", "count"]
    assert asyncio.get_running_loop().time() <= 3 * reading.LONGEST_ANSWER


async def test_a_backend_that_raises_a_cancellation_is_asked_again(remote: LocalBroker) -> None:
    ask, asked = remote.results.is_result_ready, 0

    async def confused(task_id: str) -> bool:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise asyncio.CancelledError
        return await ask(task_id)

    remote.results.is_result_ready = confused  # type: ignore[method-assign]
    dag = DAGBuilder().node(Tasks(remote).load).build()
    assert await ExecutionEngine(remote, dag).execute({"source": "a"}) == {"load": ["a"]}


@virtually
async def test_polling_slows_down_while_nothing_comes_and_asks_for_all_in_one_round() -> None:
    broker = LocalBroker()
    builder, load = DAGBuilder(), Tasks(broker).load
    for index in range(10):
        builder.node(load, name=f"n{index}")
    engine = ExecutionEngine(broker, builder.build())
    run = asyncio.ensure_future(engine.execute({"source": "a"}))
    await asyncio.sleep(10)
    engine.cancel()
    await asyncio.gather(run, return_exceptions=True)
    rounds = broker.results.questions / 10
    assert 10 / polling.LONGEST_INTERVAL <= rounds <= 10 / polling.LONGEST_INTERVAL + 15


@virtually
async def test_cancel_stops_asking_and_sends_nothing_more() -> None:
    broker = LocalBroker()
    tasks = Tasks(broker)

    @broker.task
    async def wait() -> str:
        begun.set()
        await asyncio.sleep(1)
        return "late"

    begun = asyncio.Event()
    dag = DAGBuilder().node(wait).node(tasks.load, output="raw", inputs=["wait"]).build()
    engine = ExecutionEngine(broker, dag)
    async with broker.worker():
        run = asyncio.ensure_future(engine.execute())
        await begun.wait()
        engine.cancel()
        with pytest.raises(RunCancelledError):
            await run
        questions = broker.results.questions
        await asyncio.sleep(10)
        assert len(broker.results.stored) == 1  # the task ran on, and nobody asked for it
        assert broker.results.questions == questions
        assert tasks.ran == []


async def test_a_plain_callable_is_refused_with_the_remedy(remote: LocalBroker) -> None:
    def plain(number: int = 1) -> int:
        return number

    dag = DAGBuilder().node(plain).build()
    with pytest.raises(ConfigurationError, match=r"decorate it with @broker\.task"):
        await ExecutionEngine(remote, dag).execute()
    with pytest.raises(ConfigurationError, match=r"decorate it with @broker\.task"):
        await MapReduce.map(remote, plain, [1])


async def test_whoever_is_cancelled_while_asking_for_a_result_is_cancelled() -> None:
    class Hanging(LocalResults):
        async def is_result_ready(self, task_id: str) -> bool:
            asked.set()
            await asyncio.Event().wait()
            return False

    asked = asyncio.Event()
    asking = asyncio.ensure_future(reading.ResultReader(Hanging()).ask("task"))
    await asked.wait()
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()


async def test_a_backend_that_raises_a_cancellation_of_its_own_counts_as_failing() -> None:
    class Cancelling(LocalResults):
        async def is_result_ready(self, task_id: str) -> bool:
            raise asyncio.CancelledError

    assert await reading.ResultReader(Cancelling()).ask("task") == ("task", None)


async def test_a_task_that_outlives_its_label_timeout_fails_once(remote: LocalBroker) -> None:
    release = asyncio.Event()

    @remote.task(timeout=0.01)
    async def slow() -> str:
        await release.wait()
        return "late"

    @remote.task
    async def quick() -> int:
        return 1

    dag = DAGBuilder().node(slow).node(quick).build()
    engine = ExecutionEngine(remote, dag, on_error="collect")
    pairs = [pair async for pair in engine.execute_async()]
    assert sorted(name for name, _ in pairs) == ["quick", "slow"]
    assert isinstance(dict(pairs)["slow"].error, TimeoutError)


@virtually
async def test_a_backend_that_swallows_a_cancellation_does_not_hold_up_the_end() -> None:
    class Deaf(LocalResults):
        async def is_result_ready(self, task_id: str) -> bool:
            while not reconnected.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await reconnected.wait()
            return False

    reconnected = asyncio.Event()
    broker = LocalBroker().with_result_backend(Deaf())

    @broker.task
    async def work() -> int:
        return 1

    engine = ExecutionEngine(broker, DAGBuilder().node(work).build(), run_timeout=0.3)
    with pytest.raises(RunTimeoutError):
        await engine.execute()
    assert virtual_loop().time() < 10.0
    reconnected.set()
    await asyncio.sleep(1)
