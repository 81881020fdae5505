"""RabbitMQ as workers and engines meet it: limits, lost connections, messages that return."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import aio_pika
import pytest
from aio_pika.exceptions import (
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionClosed,
    ProbableAuthenticationError,
)
from aiormq.exceptions import ChannelAccessRefused
from taskiq import BrokerMessage

from taskiq_flow import DAGBuilder, ExecutionEngine, NodeFailedError
from taskiq_flow.errors import ConfigurationError
from taskiq_flow.reconnect import text_of
from taskiq_flow.transport.rabbitmq_broker import (
    count_of,
    inventory_of,
    is_outage,
    kick_of,
    notifier_at,
)
from tests.distributed import app
from tests.distributed.app import Settings, started, task
from tests.distributed.conftest import AT_LENGTH, HOW_TO_INSTALL, Farm
from tests.distributed.watching import (
    Notes,
    blocked_generator,
    check_cancelling,
    inputs,
    left_over,
    many,
    until_empty,
    until_sent,
)
from tests.servers.rabbitmq import RabbitServer
from tests.waiting import LONGEST, until

pytestmark = pytest.mark.skipif(not RabbitServer.is_available(), reason=HOW_TO_INSTALL)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """A server that closes the channel of a message not acknowledged within seconds.

    It takes no message above a megabyte.
    """
    folder = tmp_path_factory.mktemp("impatient")
    server = RabbitServer(
        folder, consumer_timeout=4000, channel_tick_interval=500, max_message_size=1_000_000
    )
    server.start()
    yield server
    server.kill()


async def run_of(settings: Settings, notes: Notes, count: int, seconds: float) -> None:
    async with started(settings) as broker:
        engine = ExecutionEngine(broker, many(broker, app.noted, count), lost_after=30.0)
        await engine.execute(inputs(notes, count, seconds))


async def test_a_task_longer_than_the_servers_limit_is_executed_once(
    farm: Farm, impatient: RabbitServer, notes: Notes
) -> None:
    settings = farm.settings(
        "rabbitmq", queue="long", rabbitmq=impatient.url, park_after=0.5, qos=100
    )
    with farm.workers(settings, processes=2):
        async with started(settings) as broker, blocked_generator(broker, notes):
            await run_of(settings, notes, 3, 7.0)
        assert sorted(notes.of("begin")) == ["n0", "n1", "n2", "numbers"]
        assert len(notes.of("end")) == 3
        await until_empty(settings)
    log = (impatient.folder / "log").read_text(encoding="utf-8")
    assert "timed out" not in log


async def test_a_message_above_the_servers_limit_is_an_error_at_once(
    farm: Farm, impatient: RabbitServer
) -> None:
    """No worker is needed for that."""
    settings = farm.settings("rabbitmq", queue="large", rabbitmq=impatient.url)
    async with started(settings) as broker:
        dag = DAGBuilder().node(task(broker, app.measure)).build()
        engine = ExecutionEngine(broker, dag, run_timeout=LONGEST)
        with pytest.raises(NodeFailedError, match=r"pass_by=65536\), or raise the .*message_size"):
            await engine.execute({"blob": "x" * 2_000_000})


async def test_a_long_task_of_a_killed_worker_is_delivered_again(farm: Farm, notes: Notes) -> None:
    settings = farm.settings("rabbitmq", queue="parked", park_after=0.2)
    with farm.workers(settings) as workers:
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 1), lost_after=30.0)
            run = asyncio.ensure_future(engine.execute(inputs(notes, 1, 3.0)))
            await notes.until("begin", 1)
            await asyncio.sleep(1.0)  # the message was parked meanwhile, some times
            workers.kill_one()
            await run
    assert len(notes.of("begin")) == 2
    assert len(notes.of("end")) == 1


async def test_what_waits_beside_a_long_task_goes_to_an_idle_worker(
    farm: Farm, notes: Notes
) -> None:
    settings = farm.settings("rabbitmq", queue="fair", qos=50)
    async with started(settings) as broker:
        keys = {"path": "path", "name": "long"}
        dag = DAGBuilder().node(task(broker, app.held), name="held", inputs=keys)
        for number in range(7):
            own = {"path": "path", "name": f"name {number}"}
            dag.node(task(broker, app.noted), name=f"n{number}", inputs=own)
        with farm.workers(settings, max_async_tasks=1):
            engine = ExecutionEngine(broker, dag.build(), lost_after=30.0)
            names = {f"name {number}": f"n{number}" for number in range(7)}
            given = {"path": str(notes.path), "long": "held", **names}
            run = asyncio.ensure_future(engine.execute(given))
            await notes.until("begin", 1)
            await until_sent(engine)
            with farm.workers(settings, folder=farm.folder / "second", max_async_tasks=1):
                await notes.until("end", 7)
                notes.release()
                await run
    lines = notes.path.read_text(encoding="utf-8").splitlines()
    begun = {line.split()[1]: line.split()[2] for line in lines if line.startswith("begin")}
    assert begun.pop("held") not in begun.values()


async def test_a_queue_that_refuses_copies_takes_back_the_messages(
    farm: Farm, notes: Notes
) -> None:
    """A queue with a limit on its length takes no copy while it is full."""
    limit = json.dumps({"x-max-length": 5, "x-overflow": "reject-publish"})
    settings = farm.settings("rabbitmq", queue="limited", queue_arguments=limit)
    with farm.workers(settings, max_async_tasks=1):
        await run_of(settings, notes, 14, 0.4)
        assert len(notes.of("begin")) == 14
        await until_empty(settings)


@pytest.mark.parametrize("seconds", [2.0, 8.0], ids=["told", "executing"])
async def test_a_message_that_returns_to_its_worker_is_not_executed_again(
    farm: Farm, notes: Notes, seconds: float
) -> None:
    """The administrator closes the worker's connections, which are back within five seconds."""
    settings = farm.settings("rabbitmq", queue=f"returns-{seconds:g}")
    with farm.workers(settings):
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 2), lost_after=30.0)
            run = asyncio.ensure_future(engine.execute(inputs(notes, 2, seconds)))
            await notes.until("begin", 2)
            await asyncio.to_thread(farm.rabbitmq.control, "close_all_connections", "a test")
            await run
            await until_empty(settings)
    assert len(notes.of("begin")) == len(notes.of("end")) == 2


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (ChannelAccessRefused("ACCESS_REFUSED - access to exchange 'a' refused"), False),
        (ChannelNotFoundEntity("NOT_FOUND - no exchange 'a' in vhost '/'"), False),
        (ChannelPreconditionFailed("PRECONDITION_FAILED - message size 2 is larger than"), False),
        (ProbableAuthenticationError("ACCESS_REFUSED - Login was refused"), False),
        (ChannelPreconditionFailed("delivery acknowledgement on channel 1 timed out"), True),
        (ChannelNotFoundEntity("home node 'a' of durable queue is down or inaccessible"), True),
        (ConnectionClosed(320, "CONNECTION_FORCED - a test"), True),
        (ChannelClosed(541, "INTERNAL_ERROR"), True),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
    ],
    ids=text_of,
)
def test_refusals_for_good_are_no_outages(error: Exception, is_one: bool) -> None:
    assert is_outage(error) is is_one


async def test_a_wrong_password_is_an_error_at_once_and_not_shown(farm: Farm) -> None:
    url = farm.rabbitmq.url.replace("guest:guest", "guest:hush")
    with pytest.raises(ConfigurationError, match="Login was refused") as caught:
        await asyncio.wait_for(notifier_at(url, "taskiq_flow").open(), LONGEST)
    assert "hush" not in text_of(caught.value)


async def test_a_full_server_is_waited_for(farm: Farm, notes: Notes) -> None:
    settings = farm.settings("rabbitmq", queue="alarm")
    farm.serve(settings)
    server = farm.rabbitmq
    await asyncio.to_thread(server.control, "set_vm_memory_high_watermark", "0.00001")
    try:
        run = asyncio.ensure_future(run_of(settings, notes, 3, 0.0))
        done, _ = await asyncio.wait([run], timeout=2.0)
        assert not done
        assert not notes.of("begin")
    finally:
        await asyncio.to_thread(server.control, "set_vm_memory_high_watermark", "absolute", "512MB")
    await run
    assert len(notes.of("end")) == 3


async def test_an_exchange_and_a_queue_that_are_gone_are_declared_anew(farm: Farm) -> None:
    settings = farm.settings("rabbitmq", queue="gone")
    async with started(settings) as broker:
        kick = kick_of(broker)
        message = BrokerMessage(task_id="", task_name="", message=b"a", labels={})
        async with await aio_pika.connect(farm.rabbitmq.url) as connection:
            channel = await connection.channel()
            await channel.exchange_delete(settings.queue)
            await asyncio.wait_for(kick(message), LONGEST)
            await channel.queue_delete(settings.queue)
            await asyncio.wait_for(kick(message), LONGEST)
            assert await left_over(settings) == 1


async def test_who_publishes_to_nobody_is_told(farm: Farm) -> None:
    notifier, listener = (notifier_at(farm.rabbitmq.url, "unheard") for _ in range(2))
    unheard: list[str] = []
    heard: list[bytes] = []
    notifier.on_unheard = unheard.append
    await notifier.open()
    await listener.open()
    await listener.subscribe("here", heard.append)
    await notifier.publish("here", b"a")
    await notifier.publish("nowhere", b"b")
    await until(lambda: heard and unheard, "both were published")
    assert (heard, unheard) == ([b"a"], ["nowhere"])
    await listener.aclose()
    await notifier.aclose()


async def test_a_listener_whose_old_connection_is_not_missed_yet_listens_at_once(
    farm: Farm,
) -> None:
    """The server holds the old connection for alive; only the client has lost it."""
    other = notifier_at(farm.rabbitmq.url, "one_sided")
    listeners = [notifier_at(farm.rabbitmq.url, "one_sided") for _ in range(2)]
    heard: list[bytes] = []
    revoked: list[str] = []
    for notifier in (other, *listeners):
        await notifier.open()
    for listener in listeners:  # the first stands for what the server has not missed yet
        await asyncio.wait_for(listener.subscribe("channel", heard.append), LONGEST)
        await asyncio.wait_for(listener.subscribe_to_revocations(revoked.append), LONGEST)
    await other.publish("channel", b"a")
    await other.revoke("run")
    await until(lambda: len(heard) == len(revoked) == 2, "both have heard")
    await asyncio.gather(
        until(lambda: not listeners[1].is_listening, "the connection is lost"),
        asyncio.to_thread(farm.rabbitmq.control, "close_all_connections", "a test"),
    )
    await until(lambda: all(one.is_listening for one in (other, *listeners)), "all are back")
    await other.publish("channel", b"b")
    await until(lambda: heard.count(b"b") == 2, "both hear again")
    for notifier in (other, *listeners):
        await notifier.aclose()


async def test_many_workers_start_at_once_after_many_revocations(farm: Farm) -> None:
    """``scripts/production`` has 24 worker processes."""
    prefix, count = "many", 1000
    notifiers = [notifier_at(farm.rabbitmq.url, prefix) for _ in range(12)]
    await notifiers[0].open()
    await asyncio.gather(*(notifiers[0].revoke(f"run {number}") for number in range(count)))
    heard: list[set[str]] = [set() for _ in notifiers]

    async def start(number: int) -> None:
        await notifiers[number].open()
        await notifiers[number].subscribe_to_revocations(heard[number].add)

    async with asyncio.timeout(LONGEST):
        await asyncio.gather(*(start(number) for number in range(1, len(notifiers))))
    await until(lambda: all(len(of) == count for of in heard[1:]), "all have heard of all")
    for notifier in notifiers:
        await notifier.aclose()


@pytest.mark.timeout(300)
@pytest.mark.skipif(not AT_LENGTH, reason="starts 24 processes; scripts/production does")
async def test_many_worker_processes_start_at_once_after_many_revocations(
    farm: Farm, notes: Notes
) -> None:
    """While they read the revocations, one after another, they work already."""
    settings = farm.settings("rabbitmq", queue="crowd", prefix="crowd")
    notifier = notifier_at(farm.rabbitmq.url, settings.prefix)
    await notifier.open()
    for begin in range(0, 5000, 500):
        runs = [f"run {number}" for number in range(begin, begin + 500)]
        await asyncio.gather(*map(notifier.revoke, runs))
    await notifier.aclose()
    workers = farm.workers(settings, processes=24)
    workers.start_timeout = 120.0
    began = time.monotonic()
    await asyncio.to_thread(workers.start)
    print(f"24 workers are up after {time.monotonic() - began:.1f} s")  # noqa: T201
    pids = workers.pids
    try:
        await run_of(settings, notes, 100, 0.2)
        async with started(settings) as broker:
            rabbit: Any = broker
            engine = ExecutionEngine(broker, many(broker, app.noted, 50), lost_after=60.0)
            await check_cancelling(engine, notes, 50, begun=150)
            async with asyncio.timeout(120.0):  # what a worker reads at this moment is not counted
                while await count_of(rabbit.write_conn, f"{settings.prefix}_revocations") != 5001:
                    await asyncio.sleep(0.5)
        print(f"all have read the revocations after {time.monotonic() - began:.1f} s")  # noqa: T201
        assert workers.pids == pids
        assert "Traceback" not in workers.log()
    finally:
        workers.kill()


async def test_a_user_confined_to_names_of_a_prefix_can_do_all(farm: Farm, notes: Notes) -> None:
    server = farm.rabbitmq
    names = r"^(confined.*|taskiq\.dead_letter)$"
    written = r"^(confined.*|taskiq\.dead_letter|amq\.default)$"
    await asyncio.to_thread(server.control, "add_user", "small", "secret")
    await asyncio.to_thread(server.control, "set_permissions", "small", names, written, names)
    url = server.url.replace("guest:guest", "small:secret")
    settings = farm.settings(
        "rabbitmq", queue="confined", rabbitmq=url, prefix="confined_flow", park_after=0.2
    )
    with farm.workers(settings):
        await run_of(settings, notes, 2, 1.5)
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 1), lost_after=30.0)
            await check_cancelling(engine, notes, 1, begun=3)
            left = await inventory_of(broker, settings.prefix)
    assert [(one.name, one.kind) for one in left] == [
        (settings.queue, "queue"),
        ("confined_flow_revocations", "queue"),
        ("taskiq.dead_letter", "queue"),
    ]
    assert left[1].count == 1
