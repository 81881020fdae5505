"""What production brings to each system: full pools, deploys, reports that are long, C code."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

from taskiq_flow import (
    ConfigurationError,
    DAGBuilder,
    ExecutionEngine,
    FlowMiddleware,
    NodeFailedError,
    NodeRetried,
    Retry,
    RunCancelledError,
    TaskLostError,
)
from taskiq_flow.completion import queue_warnings
from tests.distributed import app
from tests.distributed.app import KINDS, started, task
from tests.distributed.conftest import HOW_TO_INSTALL, NEEDS_RABBITMQ, Farm
from tests.distributed.watching import Notes, inputs, many
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.workers import Workers
from tests.waiting import until

REMOTE = [kind for kind in KINDS[1:] if kind != "rabbitmq" or RabbitServer.is_available()]

UNTAKEN = 1.0
"""Seconds in place of ten, after which engines and workers warn of tasks that nobody takes."""


@contextlib.contextmanager
def all_working(workers: list[Workers]) -> Iterator[None]:
    """Workers that start at once, and run inside the block."""
    with contextlib.ExitStack() as stack:
        for one in workers:
            stack.callback(one.kill)
        with ThreadPoolExecutor() as pool:
            list(pool.map(Workers.start, workers))
        yield


async def test_tasks_that_wait_for_tasks_in_full_pools_are_warned_of_on_both_sides(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(queue_warnings, "UNTAKEN", UNTAKEN)
    sites = {
        kind: farm.settings(kind, queue="full", idle_timeout=60_000, untaken=UNTAKEN)
        for kind in REMOTE
    }
    workers = {kind: farm.workers(sites[kind], max_async_tasks=4) for kind in REMOTE}

    async def stand_still(kind: str) -> None:
        async with started(sites[kind]) as broker:
            builder = DAGBuilder()
            for number in range(4):
                inputs = ["number", "together"]
                builder.node(task(broker, app.runs_graph), name=f"{kind}{number}", inputs=inputs)
            engine = ExecutionEngine(broker, builder.build())
            run = asyncio.ensure_future(engine.execute({"number": 1, "together": 4}))
            for number in range(4):
                told = f":{kind}{number}:1' runs a graph, and no worker takes the tasks of that"
                await until(partial(is_in, told, lambda: caplog.text), "the engine warns")
            told = "waits for them and holds a place"
            await until(partial(is_in, told, workers[kind].log), "and so do the workers")
            engine.cancel()
            with pytest.raises(RunCancelledError):
                await run

    with all_working(list(workers.values())):
        await asyncio.gather(*(stand_still(kind) for kind in REMOTE))


def is_in(text: str, log: Callable[[], str]) -> bool:
    return text in log()


@pytest.mark.parametrize("kind", ["redis-streams", "redis-lists", "nats", NEEDS_RABBITMQ])
def test_a_middleware_is_of_one_broker(kind: str, farm: Farm) -> None:
    settings = replace(farm.settings(kind), flow=False)
    flow = FlowMiddleware()
    first = app.broker_of(settings).with_middlewares(flow)
    name = type(first).__name__
    with pytest.raises(ConfigurationError, match=f"belongs to a {name} already; give the {name}"):
        app.broker_of(settings).with_middlewares(flow)
    assert flow.broker is first


async def is_subscribed_to(client: Client, subject: str) -> bool:
    """Whether anybody listens. A worker says that it does before that, and skips this message."""
    try:
        await client.request(subject, timeout=0.2)
    except NoRespondersError:
        return False
    except NatsTimeoutError:  # nobody answers it
        return True
    raise AssertionError("a worker has answered")


async def test_alive_is_told_of_more_tasks_than_a_message_has_room_for(
    farm: Farm, notes: Notes
) -> None:
    """Core NATS hands a worker all tasks at once. One message takes a megabyte at the most."""
    settings = farm.settings("nats-core", queue="burst", nats=farm.nats.url, redis="")
    with farm.workers(settings, max_async_tasks=1):
        async with started(settings) as broker:
            client: Client = broker.client  # type: ignore[attr-defined]
            await until(lambda: is_subscribed_to(client, settings.queue), "the worker listens")
            builder = DAGBuilder().node(task(broker, app.held), name="first")
            for number in range(300):
                name = f"{number} " + "\u00fc" * 1000  # as JSON, 6,000 bytes
                builder.node(task(broker, app.double), name=name, inputs=["item"])
            engine = ExecutionEngine(broker, builder.build(), lost_after=2.0)
            given = {"path": str(notes.path), "name": "first", "item": 2}
            run = asyncio.ensure_future(engine.execute(given))
            await notes.until("begin", 1)
            done, _ = await asyncio.wait([run], timeout=3.0)  # longer than ``lost_after``
            assert not done
            notes.release()
            assert set((await run).values()) == {"first", 4}


async def test_a_task_that_old_workers_do_not_know_reaches_a_new_one(farm: Farm) -> None:
    """The new workers come while it is retried, as in a rolling deploy."""
    new = farm.settings("redis-streams", queue="rolling")
    old = replace(new, registers=False)
    replacing: list[asyncio.Future[None]] = []

    class Deploy:
        def on_event(self, event: Any) -> None:
            if isinstance(event, NodeRetried) and not replacing:
                assert isinstance(event.error, TaskLostError)
                assert "give the node a retry=" in str(event.error)
                replacing.append(asyncio.ensure_future(asyncio.to_thread(replace_workers)))

    def replace_workers() -> None:
        stack.enter_context(farm.workers(new))
        leaving.kill()

    with contextlib.ExitStack() as stack:
        leaving = stack.enter_context(farm.workers(old))
        async with started(new) as broker:
            dag = DAGBuilder().node(task(broker, app.double), retry=Retry(attempts=100, wait=0.1))
            engine = ExecutionEngine(broker, dag.build(), listeners=[Deploy()])
            assert await engine.execute({"item": 2}) == {"double": 4}
            await asyncio.gather(*replacing)


async def test_code_that_keeps_the_interpreter_lock_is_executed_once_in_another_process(
    farm: Farm, tmp_path: Path
) -> None:
    """Longer than ``idle_timeout`` and ``lost_after``, as docs/production.md advises."""
    ways: dict[str, tuple[Any, Sequence[str]]] = {
        "in-process": (app.keeps_gil_in_process, ()),
        "pool": (app.keeps_gil, ["--use-process-pool"]),
    }
    sites = {way: farm.settings("redis-streams", queue=way, idle_timeout=2000) for way in ways}

    async def run(way: str) -> None:
        (tmp_path / way).mkdir()
        notes = Notes(tmp_path / way)
        async with started(sites[way]) as broker:
            engine = ExecutionEngine(broker, many(broker, ways[way][0], 1), lost_after=2.0)
            assert await engine.execute(inputs(notes, 1, 3)) == {"n0": "n0"}
        assert notes.of("begin") == ["n0"]

    workers = [
        farm.workers(sites[way], processes=2, arguments=arguments)
        for way, (_, arguments) in ways.items()
    ]
    with all_working(workers):
        await asyncio.gather(*map(run, ways))


@pytest.mark.skipif(not RabbitServer.is_available(), reason=HOW_TO_INSTALL)
async def test_a_cancellation_is_told_though_the_server_has_not_missed_the_lost_connection(
    farm: Farm, notes: Notes
) -> None:
    """The engine's side alone has lost it: the proxy keeps the server's side open."""
    settings = farm.settings("rabbitmq", queue="one-sided")
    farm.serve(settings)
    async with Proxy(farm.rabbitmq.port) as proxy:
        cut_off = replace(settings, rabbitmq=f"amqp://guest:guest@127.0.0.1:{proxy.port}/")
        async with started(cut_off) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 2))
            run = asyncio.ensure_future(engine.execute(inputs(notes, 2, 60.0)))
            await notes.until("begin", 2)
            proxy.lose_clients()
            engine.cancel()
            with pytest.raises(RunCancelledError):
                await run
            await notes.until("cancel", 2)
            engine = ExecutionEngine(broker, many(broker, app.noted, 1))
            assert await engine.execute(inputs(notes, 1, 0.0)) == {"n0": "n0"}


async def test_an_error_of_the_client_is_told_with_its_text(farm: Farm) -> None:
    """redis-py 8 shows an error as its kind alone, ``server:ResponseError``."""
    settings = farm.settings("redis-streams", retries=True, broken=True)
    farm.serve(settings)
    async with started(settings) as broker:
        dag = DAGBuilder().node(task(broker, app.breaks_middleware)).build()
        with pytest.raises(NodeFailedError) as caught:
            await ExecutionEngine(broker, dag).execute({"breaks": "redis"})
    assert "ResponseError: unknown command" in str(caught.value.__cause__)
