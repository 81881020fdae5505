"""Generators that may make no more for now: their places, their time, and who goes on instead."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from taskiq import AsyncBroker, BrokerMessage, InMemoryBroker

from taskiq_flow import (
    DAGBuilder,
    Event,
    ExecutionEngine,
    Failure,
    NodeFailed,
    NodeFailure,
    NodeRetried,
    NodeTimeoutError,
    Retry,
    RunHandle,
)
from taskiq_flow.testing import LocalBroker, LocalFlowMiddleware, LocalNotices
from tests.local_flow import with_flow
from tests.recording import AtOnce
from tests.virtual_clock import virtually


class Site:
    """A broker with two tasks.

    ``made``: how many items each generator has made, by its argument. ``running``: whatever takes
    time, of generators too. ``pace``: the seconds of an item; ``seconds``: those of ``double``.
    """

    def __init__(self, broker: AsyncBroker, notices: LocalNotices | None = None) -> None:
        self.broker = broker
        self.notices = notices or LocalNotices()
        self.running = running = AtOnce()
        self.made: dict[int, int] = {}
        self.executions = 0
        self.execution: asyncio.Task[Any] | None = None
        self.flow: LocalFlowMiddleware | None = None
        self.pace = self.seconds = 1.0

        async def items(size: int) -> AsyncIterator[int]:
            """Items that are numbered from 1."""
            self.executions += 1
            self.execution = asyncio.current_task()
            self.made[size] = 0
            for number in range(1, size + 1):
                with running:
                    await asyncio.sleep(self.pace)
                self.made[size] = number
                yield number

        async def double(item: int) -> int:
            with running:
                await asyncio.sleep(self.seconds)
            return 2 * item

        self.items = broker.register_task(items, task_name="items")
        self.double = broker.register_task(double, task_name="double")


@contextlib.asynccontextmanager
async def with_workers(slots: int = 100) -> AsyncIterator[Site]:
    """A site whose tasks are executed by a worker, which is told of grants by notices."""
    broker = LocalBroker()
    site = Site(broker)
    site.flow = with_flow(broker, site.notices)
    async with broker.worker(slots=slots):
        yield site
    await site.flow.shutdown()


@contextlib.asynccontextmanager
async def embedded() -> AsyncIterator[Site]:
    yield Site(InMemoryBroker())


class Told:
    """A listener that is a function."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self.on_event = on_event


SITES = pytest.mark.parametrize("at", [embedded, with_workers])


# Places under max_parallel


@virtually
@SITES
@pytest.mark.parametrize("window", [1, 3])
async def test_a_generator_has_a_place_whenever_it_makes_items(
    at: Callable[[], contextlib.AbstractAsyncContextManager[Site]], window: int
) -> None:
    async with at() as site:
        builder = DAGBuilder().node(site.items, window=window)
        builder.node(site.double, inputs=["items"], map_over="items")
        engine = ExecutionEngine(site.broker, builder.build(), max_parallel=1)
        results = await engine.execute({"size": 12})
    assert results["double"] == [2 * number for number in range(1, 13)]
    assert site.running.most == 1


@virtually
@SITES
async def test_generators_that_give_up_places_again_and_again_never_exceed_the_limit(
    at: Callable[[], contextlib.AbstractAsyncContextManager[Site]],
) -> None:
    async with at() as site:
        builder = DAGBuilder().node(site.items, inputs=["sizes"], map_over="sizes", window=2)
        builder.node(site.double, inputs=["items"], map_over={"items": 2}, max_parallel=1)
        engine = ExecutionEngine(site.broker, builder.build(), max_parallel=2)
        results = await engine.execute({"sizes": [7, 5, 0, 6]})
    assert results["double"] == [[2 * n for n in range(1, size + 1)] for size in (7, 5, 0, 6)]
    assert site.running.most == 2


# Attempts that end while the generator waits


@virtually
@SITES
@pytest.mark.parametrize("is_queued", [False, True])
@pytest.mark.parametrize("retries", [False, True])
async def test_a_generator_whose_execution_ends_while_it_waits(
    at: Callable[[], contextlib.AbstractAsyncContextManager[Site]],
    is_queued: bool,
    retries: bool,
) -> None:
    """``is_queued``: it may make more, and waits for a place of the run until ``double`` ends."""
    failed_at: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, NodeFailed | NodeRetried):
            failed_at.append(event.at)

    async with at() as site:
        site.seconds = 10
        retry = Retry(2, on=(asyncio.CancelledError,)) if retries else None
        builder = DAGBuilder().node(site.items, window=1, retry=retry)
        builder.node(site.double, inputs=["items"], map_over="items", max_parallel=1)
        limit = 1 if is_queued else 2
        engine = ExecutionEngine(
            site.broker, builder.build(), limit, on_error="collect", listeners=[Told(note)]
        )
        run = engine.start({"size": 4})
        await asyncio.sleep(5)
        assert site.execution is not None
        site.execution.cancel()
        results = await run
    assert failed_at == [pytest.approx(11 if is_queued else 5, abs=0.1)]
    if retries:
        assert results == {"items": [1, 2, 3, 4], "double": [2, 4, 6, 8]}
        assert site.executions == 2
    else:
        assert isinstance(results["items"], NodeFailure)
        assert isinstance(results["items"].error, asyncio.CancelledError)


def sent_by(broker: AsyncBroker, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The messages that a broker sends from now on."""
    sent: list[bytes] = []
    kick = broker.kick

    async def noting(message: BrokerMessage) -> None:
        sent.append(message.message)
        await kick(message)

    monkeypatch.setattr(broker, "kick", noting)
    return sent


async def give_to_another(site: Site, message: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliver a message once more, to a worker of another name."""
    assert site.flow is not None
    worker = site.flow._worker.opened
    assert worker is not None
    monkeypatch.setattr(worker, "_name", "another:1")
    await site.broker.kick(BrokerMessage(task_id="", task_name="", message=message, labels={}))


@virtually
@pytest.mark.parametrize("is_blocked", [False, True])
async def test_a_worker_that_is_given_the_task_again_has_time_for_what_it_passes_over(
    monkeypatch: pytest.MonkeyPatch, is_blocked: bool
) -> None:
    """And it has any time while there is no room."""
    async with with_workers() as site:
        sent = sent_by(site.broker, monkeypatch)
        builder = DAGBuilder().node(site.items, timeout=3, window=1)
        if is_blocked:
            site.seconds = 60
            builder.node(site.double, inputs=["items"], map_over="items", max_parallel=1)
        run = ExecutionEngine(site.broker, builder.build()).start({"size": 9})
        await asyncio.sleep(5.5)
        site.pace = 1000  # the first worker makes no more
        await asyncio.sleep(1)
        site.pace = 1
        await give_to_another(site, sent[0], monkeypatch)
        assert (await run)["items"] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert site.executions == 2


# Places of workers


@virtually
async def test_the_oldest_of_the_generators_that_hold_all_places_is_given_a_window_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with with_workers(slots=2) as site:
        builder = DAGBuilder().node(site.items, inputs=["sizes"], map_over="sizes", window=2)
        builder.node(site.double, inputs=["items"], map_over={"items": 2}, max_parallel=1)
        run = ExecutionEngine(site.broker, builder.build()).start({"sizes": [7, 8, 9]})
        made = []
        for _ in range(3):
            await asyncio.sleep(10)  # in 5 s nothing has moved, and 2 s are for two more items
            made.append(dict(site.made))
        results = await run
    assert [each[7] for each in made] == [2, 4, 6]
    assert [each[8] for each in made] == [3, 3, 3]
    assert results["double"] == [[2 * n for n in range(1, size + 1)] for size in (7, 8, 9)]
    said = [record.message for record in caplog.records if "waited for room" in record.message]
    assert len(said) == 1
    assert "2 generators" in said[0]


@virtually
async def test_a_generator_waits_on_while_all_tasks_that_were_sent_have_begun(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with with_workers(slots=2) as site:
        site.seconds = 60
        builder = DAGBuilder().node(site.items, window=2)
        builder.node(site.double, inputs=["items"], map_over="items", max_parallel=1)
        run = ExecutionEngine(site.broker, builder.build()).start({"size": 9})
        await asyncio.sleep(55)
        assert site.made == {9: 3}
        site.seconds = 1
        await run
    assert "waited for room" not in caplog.text


@virtually
async def test_a_task_that_nobody_waits_for_any_more_does_not_count_as_not_begun(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """``late`` finds no place of the worker in time. After that, all that was sent has begun."""

    async def is_wanted(number: int) -> bool:
        await asyncio.sleep(2)
        return number > 0

    async with with_workers(slots=2) as site:
        site.seconds = 60
        builder = DAGBuilder().node(site.items, window=2)
        builder.node(site.double, inputs=["items"], map_over="items", max_parallel=1)
        builder.node(site.double, name="late", inputs=["number"], when=is_wanted, queue_timeout=2)
        engine = ExecutionEngine(site.broker, builder.build(), on_error="collect")
        run = engine.start({"size": 9, "number": 1})
        await asyncio.sleep(55)
        assert site.made == {9: 3}
        site.seconds = 1
        results = await run
    assert isinstance(results["late"], NodeFailure)
    assert isinstance(results["late"].error, NodeTimeoutError)
    assert "waited for room" not in caplog.text


@virtually
async def test_the_time_for_an_item_does_not_count_while_a_generator_waits_in_a_standstill() -> (
    None
):
    async with with_workers(slots=2) as site:
        builder = DAGBuilder().node(
            site.items, inputs=["sizes"], map_over="sizes", window=2, timeout=3
        )
        builder.node(site.double, inputs=["items"], map_over={"items": 2}, max_parallel=1)
        results = await ExecutionEngine(site.broker, builder.build()).execute({"sizes": [7, 8, 9]})
    assert results["double"] == [[2 * n for n in range(1, size + 1)] for size in (7, 8, 9)]


@virtually
async def test_the_time_for_an_item_does_not_count_while_a_generator_waits_for_a_place() -> None:
    """It may make more, and another has the run's only place. In a standstill it makes some."""
    async with with_workers(slots=2) as site:
        run = await standstill(site, 1, seconds=40, timeout=3)
        await asyncio.sleep(30)
        assert 1 < site.made[9] < 9
        results = await run
    assert results["double"] == [2 * n for n in range(1, 10)]


@virtually
@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("retry", [None, 2])
async def test_an_item_that_is_made_in_a_standstill_has_a_time_limit(
    limit: int | None, retry: int | None
) -> None:
    async with with_workers(slots=2) as site:
        run = await standstill(site, limit, seconds=500, timeout=3, retry=retry)
        await asyncio.sleep(5)
        site.pace = 1000  # of the next item, which is made in the standstill
        await asyncio.sleep(3)
        site.pace = 1
        results = await run
        assert asyncio.get_running_loop().time() < 500  # the worker's place was given back
    if retry is None:
        assert isinstance(results["items"].error, NodeTimeoutError)
    else:
        assert results["double"] == [2 * n for n in range(1, 10)]
    assert site.executions == (retry or 1)


async def standstill(site: Site, limit: int | None, *, seconds: float, **options: Any) -> RunHandle:
    """A generator has a place of the worker, which an element needs, and another run the other one.

    ``seconds``: that the other run takes. ``limit``: if it is 1, the element has the only place of
    the run.
    """
    site.seconds = seconds
    await site.double.kiq(0)
    await asyncio.sleep(0.5)
    site.seconds = 1
    builder = DAGBuilder().node(site.items, window=1, **options)
    builder.node(site.double, inputs=["items"], map_over="items", max_parallel=1)
    engine = ExecutionEngine(site.broker, builder.build(), limit, on_error="collect")
    return engine.start({"size": 9})


@virtually
async def test_another_goes_on_in_a_standstill_after_one_that_keeps_its_place_has_timed_out() -> (
    None
):
    async def stubborn(size: int) -> AsyncIterator[int]:
        for number in range(1, size + 1):
            try:
                await asyncio.sleep(1000 if (size, number) == (9, 3) else 1)
            except asyncio.CancelledError:
                await asyncio.sleep(1000)
            yield number

    async with with_workers(slots=3) as site:
        items = site.broker.register_task(stubborn, task_name="stubborn")
        site.seconds = 500
        await site.double.kiq(0)
        await asyncio.sleep(0.5)
        site.seconds = 1
        builder = DAGBuilder().node(
            items, name="items", inputs=["size"], map_over="size", window=1, timeout=3
        )
        builder.node(site.double, inputs=["items"], map_over={"items": 2}, max_parallel=1)
        engine = ExecutionEngine(site.broker, builder.build(), 1, on_error="collect")
        results = await engine.execute({"size": [9, 4]})
        assert asyncio.get_running_loop().time() < 500
    assert isinstance(results["items"][0].error, NodeTimeoutError)
    assert results["double"][1] == [2, 4, 6, 8]


@virtually
async def test_a_worker_that_is_given_the_task_again_before_there_is_room_has_that_time_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executions = 0

    async def numbers(size: int) -> AsyncIterator[int]:
        nonlocal executions
        executions += 1
        is_first = executions == 1
        for number in range(1, size + 1):
            await asyncio.sleep(1000 if is_first and number == 8 else 1)
            yield number

    async with with_workers() as site:
        sent = sent_by(site.broker, monkeypatch)
        site.seconds = 11
        numbers_task = site.broker.register_task(numbers, task_name="numbers")
        builder = DAGBuilder().node(numbers_task, timeout=3, window=6)
        builder.node(site.double, inputs={"item": "numbers"}, map_over="numbers", max_parallel=1)
        run = ExecutionEngine(site.broker, builder.build()).start({"size": 12})
        await asyncio.sleep(11.5)  # there are 7 items, and the first of them is taken at 12
        await give_to_another(site, sent[0], monkeypatch)
        site.seconds = 1
        assert (await run)["numbers"] == [*range(1, 13)]
    assert executions == 2


@virtually
async def test_a_generator_does_not_wait_for_those_around_whom_others_wait_for_its_end() -> None:
    """Positions of the outer lists end behind ``tag``, which waits for all of ``items``."""

    async def items(row: list[str]) -> AsyncIterator[str]:
        for text in row:
            yield text

    async def pair(text: str, number: int) -> tuple[str, int]:
        return text, number

    async def count(failures: list[Failure]) -> int:
        return len(failures)

    async def tag(text: str, failed: int = 0, failures: Any = None) -> str:
        return f"{text} {failed}"

    dag = (
        DAGBuilder()
        .node(items, name="items", inputs={"row": "rows"}, map_over={"rows": 2}, window=1)
        .node(
            pair,
            inputs={"text": "items", "number": "numbers"},
            map_over={"items": 3, "numbers": 1},
        )
        .node(count, inputs={"failures": "items.failures"}, join="ended")
        .node(
            tag,
            inputs={"text": "rows", "failures": "pair.failures", "failed": "count"},
            map_over={"rows": 3, "pair.failures": 3},
            join="ended",
        )
        .build()
    )
    engine = ExecutionEngine(InMemoryBroker(), dag, 2, type_check="off")
    rows = [["a"]] * 9
    results = await engine.execute({"rows": [rows], "numbers": [1]})
    assert results["pair"] == [[[("a", 1)]] * 9]
    assert results["tag"] == [[["a 0"]] * 9]
