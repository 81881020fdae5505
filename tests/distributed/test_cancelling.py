"""Cancellation reaches the workers: what runs is stopped, what is queued is passed over."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from redis.exceptions import OutOfMemoryError
from taskiq import AsyncBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, NodeFailedError, RunCancelledError
from taskiq_flow.transport.rabbitmq_broker import notifier_of
from tests.distributed import app
from tests.distributed.app import Settings, started, task
from tests.distributed.conftest import NEEDS_RABBITMQ, Farm
from tests.distributed.watching import Notes, inputs, many, until_empty, until_sent
from tests.servers.redis import RedisServer
from tests.waiting import until

SLOTS = 4
THREADS = 2
LONG = 60.0


@pytest.fixture
def narrow(remote_kind: str, farm: Farm) -> Settings:
    """A broker whose one worker has few slots, so that tasks wait in its queue."""
    settings = farm.settings(remote_kind, queue="narrow")
    farm.serve(settings, max_async_tasks=SLOTS, max_threadpool_threads=THREADS)
    return settings


@pytest.fixture
async def broker(narrow: Settings) -> AsyncIterator[AsyncBroker]:
    async with started(narrow) as broker:
        yield broker


async def passed_by(broker: AsyncBroker) -> None:
    """Return when the workers have come to what is sent now, behind all that was sent before."""
    dag = DAGBuilder().node(task(broker, app.double)).build()
    assert await ExecutionEngine(broker, dag).execute({"item": 1}) == {"double": 2}


async def check_all_are_cancelled(broker: AsyncBroker, notes: Notes) -> None:
    """Each that had begun is cancelled, and no other ever begins."""
    seconds = await notes.until("cancel", SLOTS)
    assert seconds < 5.0  # and not its minute; it takes milliseconds where nothing else runs
    await passed_by(broker)
    assert len(notes.of("begin")) == SLOTS
    assert not notes.of("end")


async def test_cancel_stops_what_runs_and_passes_over_what_is_queued(
    broker: AsyncBroker, narrow: Settings, notes: Notes
) -> None:
    engine = ExecutionEngine(broker, many(broker, app.noted, 3 * SLOTS))
    run = asyncio.ensure_future(engine.execute(inputs(notes, 3 * SLOTS, LONG)))
    await notes.until("begin", SLOTS)
    engine.cancel()
    with pytest.raises(RunCancelledError):
        await run
    await check_all_are_cancelled(broker, notes)
    await until_empty(narrow)


async def test_leaving_the_loop_cancels(broker: AsyncBroker, notes: Notes) -> None:
    engine = ExecutionEngine(broker, many(broker, app.noted, 3 * SLOTS))
    async with aclosing(engine.execute_async(inputs(notes, 3 * SLOTS, 0.0))) as pairs:
        async for _ in pairs:
            break
    await passed_by(broker)
    begun = len(notes.of("begin"))
    await passed_by(broker)
    assert len(notes.of("begin")) == begun


async def test_a_cancelled_consumer_cancels(broker: AsyncBroker, notes: Notes) -> None:
    engine = ExecutionEngine(broker, many(broker, app.noted, 3 * SLOTS))
    run = asyncio.ensure_future(engine.execute(inputs(notes, 3 * SLOTS, LONG)))
    await notes.until("begin", SLOTS)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await check_all_are_cancelled(broker, notes)


async def test_a_failure_cancels_the_others(broker: AsyncBroker, notes: Notes) -> None:
    builder = DAGBuilder().node(task(broker, app.fail), inputs=["words"])
    dag = builder.build()
    for node in many(broker, app.noted, SLOTS - 1).nodes:
        dag.add_node(node)
    engine = ExecutionEngine(broker, dag)
    with pytest.raises(NodeFailedError):
        await engine.execute({"words": ["a"], **inputs(notes, SLOTS - 1, LONG)})
    await passed_by(broker)
    await until(
        lambda: sorted(notes.of("cancel")) == sorted(notes.of("begin")), "all begun are cancelled"
    )


async def test_a_task_in_a_thread_runs_on_and_those_behind_it_never_begin(
    broker: AsyncBroker, notes: Notes
) -> None:
    count = SLOTS - 1  # one place is left for what shows that the worker knows of the end
    engine = ExecutionEngine(broker, many(broker, app.held_in_thread, count))
    run = asyncio.ensure_future(engine.execute(inputs(notes, count, 0.0)))
    await notes.until("begin", THREADS)
    engine.cancel()
    with pytest.raises(RunCancelledError) as caught:
        await run
    assert caught.value.results == {}
    await passed_by(broker)
    notes.release()
    await notes.until("end", THREADS)
    await passed_by(broker)
    assert len(notes.of("begin")) == THREADS


async def test_another_run_is_left_alone(broker: AsyncBroker, notes: Notes) -> None:
    one, other = (ExecutionEngine(broker, many(broker, app.noted, 1)) for _ in range(2))
    running = asyncio.ensure_future(other.execute(inputs(notes, 1, 0.5)))
    cancelled = asyncio.ensure_future(one.execute(inputs(notes, 1, LONG)))
    await notes.until("begin", 2)
    one.cancel()
    assert await running == {"n0": "n0"}
    with pytest.raises(RunCancelledError):
        await cancelled
    await notes.until("cancel", 1)


async def test_a_run_of_the_same_id_elsewhere_is_left_alone(
    broker: AsyncBroker, narrow: Settings, notes: Notes
) -> None:
    """Another application on the same server may give its runs the same names."""
    async with started(narrow) as elsewhere:
        other = ExecutionEngine(elsewhere, many(elsewhere, app.noted, 1))
        one = ExecutionEngine(broker, many(broker, app.noted, 1))
        run_id = f"nightly {narrow.kind}"
        running = asyncio.ensure_future(other.execute(inputs(notes, 1, 0.5), run_id=run_id))
        await notes.until("begin", 1)
        cancelled = asyncio.ensure_future(one.execute(inputs(notes, 1, LONG), run_id=run_id))
        await notes.until("begin", 2)
        one.cancel()
        assert await running == {"n0": "n0"}
        with pytest.raises(RunCancelledError):
            await cancelled


async def test_a_server_without_room_carries_a_cancellation(farm: Farm, notes: Notes) -> None:
    with RedisServer(notes.path.parent / "full", appendonly=False, maxmemory="8mb") as server:
        settings = farm.settings("redis-streams", queue="no-room", redis=server.url)
        with farm.workers(settings):
            async with started(settings) as broker:
                engine = ExecutionEngine(broker, many(broker, app.noted, 1))
                run = asyncio.ensure_future(engine.execute(inputs(notes, 1, LONG)))
                await notes.until("begin", 1)
                with server.client() as client:
                    for size in (100_000, 100):  # up to the last byte
                        with pytest.raises(OutOfMemoryError):
                            for number in itertools.count():
                                client.set(f"filling {size} {number}", "x" * size)
                    engine.cancel()
                    await notes.until("cancel", 1)
                with pytest.raises(RunCancelledError):
                    await run


@pytest.mark.parametrize("remote_kind", [NEEDS_RABBITMQ])
async def test_a_worker_hears_of_all_that_was_revoked_before_it_begins(
    remote_kind: str, farm: Farm, notes: Notes
) -> None:
    settings = farm.settings(remote_kind, queue="behind")
    async with started(settings) as broker:
        engine = ExecutionEngine(broker, many(broker, app.noted_in_thread, 5))
        run = asyncio.ensure_future(engine.execute(inputs(notes, 5, 0.0)))
        await until_sent(engine)
        notifier = notifier_of(broker, "taskiq_flow")
        await notifier.open()
        await asyncio.gather(*(notifier.revoke(f"other {number}") for number in range(3000)))
        await notifier.aclose()
        engine.cancel()
        with pytest.raises(RunCancelledError):
            await run
        farm.serve(settings)
        await passed_by(broker)
    assert notes.of("begin") == []


async def test_workers_that_were_away_do_not_execute_what_was_cancelled(
    remote_kind: str, farm: Farm, notes: Notes
) -> None:
    settings = farm.settings(remote_kind, queue="away")
    async with started(settings) as broker:
        engine = ExecutionEngine(broker, many(broker, app.noted, 5))
        run = asyncio.ensure_future(engine.execute(inputs(notes, 5, 0.0)))
        await until_sent(engine)
        engine.cancel()
        with pytest.raises(RunCancelledError):
            await run
        farm.serve(settings)
        await passed_by(broker)
    assert notes.of("begin") == []


async def test_the_last_runs_cancellation_is_told_before_the_engine_is_gone(
    broker: AsyncBroker, notes: Notes
) -> None:
    """A cancelled run ends when its workers have been told, however soon the process ends then."""
    engine = ExecutionEngine(broker, many(broker, app.noted, SLOTS))
    run = asyncio.ensure_future(engine.execute(inputs(notes, SLOTS, LONG)))
    await notes.until("begin", SLOTS)
    engine.cancel()
    await asyncio.gather(run, return_exceptions=True)
    await broker.shutdown()
    await notes.until("cancel", SLOTS)
    await broker.startup()
