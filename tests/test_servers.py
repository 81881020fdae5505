"""The servers the other tests run against, and the worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aio_pika
import nats
import pytest
import redis
from nats.js.errors import NotFoundError
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.nats import NatsServer
from tests.servers.process import Process, ProcessError, descendants, free_port, processes
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisCluster, RedisSentinel, RedisServer
from tests.servers.sample_app import make_broker
from tests.servers.server import Server
from tests.servers.workers import Workers

pytestmark = pytest.mark.timeout(60)

needs_rabbitmq = pytest.mark.skipif(
    not RabbitServer.is_available(),
    reason="RabbitMQ is not installed: apt-get install rabbitmq-server",
)


def running(*roots: int) -> set[int]:
    """Those of the processes that run, with all they have started."""
    family = {pid for root in roots for pid in (root, *descendants(root))}
    return family & {process.pid for process in processes()}


def still_running(pids: set[int]) -> set[int]:
    return pids & {process.pid for process in processes()}


def set_key(server: RedisServer) -> None:
    with server.client() as client:
        client.set("key", "value")


def get_key(server: RedisServer) -> object:
    with server.client() as client:
        return client.get("key")


@contextlib.contextmanager
def started(server: Server) -> Iterator[None]:
    server.start()
    try:
        pids = running(server.process.pid)
        yield
    finally:
        server.stop()
    assert not still_running(pids)


def test_redis_keeps_its_data_when_killed(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    with started(server):
        set_key(server)
        server.kill()
        assert not server.is_running
        server.restart(keep_data=True)
        assert get_key(server) == "value"
        server.restart(keep_data=False)
        assert get_key(server) is None


def test_redis_can_be_short_of_memory(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, appendonly=False, maxmemory="2mb")
    with started(server), server.client() as client:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.set("key", "value" * 1_000_000)
        with pytest.raises(ValueError, match="keeps no data"):
            server.restart(keep_data=True)


def test_redis_hangs_while_it_is_suspended(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    never = Retry(NoBackoff(), 0)
    with started(server), redis.Redis(port=server.port, socket_timeout=0.2, retry=never) as client:
        server.suspend()
        with pytest.raises(redis.exceptions.TimeoutError):
            client.ping()
        server.resume()
        assert client.ping()
        server.suspend()  # which does not keep it from being stopped


def test_redis_cluster(tmp_path: Path) -> None:
    server = RedisCluster(tmp_path)
    with started(server):
        with redis.RedisCluster(host="127.0.0.1", port=server.port) as client:
            client.set("key", "value")
        server.restart(keep_data=True)
        assert get_key(server) == "value"


def test_redis_sentinel(tmp_path: Path) -> None:
    master = RedisServer(tmp_path / "master")
    sentinel = RedisSentinel(tmp_path / "sentinel", master)
    with started(master), started(sentinel), redis.Redis(port=sentinel.port) as client:
        address = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", sentinel.master_name)
        assert address == (b"127.0.0.1", master.port)


async def test_nats_keeps_its_streams(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    with started(server):
        async with await nats.connect(server.url) as client:
            await client.jetstream().add_stream(name="stream", subjects=["subject"])
            await client.jetstream().publish("subject", b"message")
        server.kill()
        server.restart(keep_data=True)
        async with await nats.connect(server.url) as client:
            assert (await client.jetstream().stream_info("stream")).state.messages == 1
        server.restart(keep_data=False)
        async with await nats.connect(server.url) as client:
            with pytest.raises(NotFoundError):
                await client.jetstream().stream_info("stream")


@needs_rabbitmq
async def test_rabbitmq_keeps_its_queues(tmp_path: Path) -> None:
    server = RabbitServer(tmp_path)
    server.start()
    try:
        pids = running(server.process.pid, server.epmd.pid)
        async with await aio_pika.connect(server.url) as connection:
            channel = await connection.channel()
            await channel.declare_queue("queue", durable=True)
            message = aio_pika.Message(b"message", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, "queue")
        server.kill()
        assert not still_running(pids)
        server.restart(keep_data=True)
        pids = running(server.process.pid, server.epmd.pid)
        async with await aio_pika.connect(server.url) as connection:
            queue = await (await connection.channel()).declare_queue("queue", durable=True)
            assert queue.declaration_result.message_count == 1
    finally:
        server.stop()
    assert not still_running(pids)


def test_a_server_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, arguments=("--no-such-option", "1"))
    with pytest.raises(ProcessError, match="no-such-option"):
        server.start()
    assert not server.is_running


def test_processes_die_with_who_started_them(tmp_path: Path) -> None:
    script = f"""if True:
        import pathlib, time
        from tests.servers.process import Process
        command = ["/bin/sh", "-c", "sleep 60 & sleep 60"]
        process = Process(command, log=pathlib.Path({str(tmp_path / "log")!r}))
        process.start()
        print(process.pid, flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as starter:  # noqa: S603 - made above
        assert starter.stdout is not None
        group = int(starter.stdout.readline())
        assert any(process.group == group for process in processes())
        starter.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while any(process.group == group for process in processes()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    process = Process(["/bin/sh", "-c", "trap '' TERM; echo up; sleep 60"], log=tmp_path / "log")
    process.start()
    process.wait_until(lambda: "up" in process.log_since_start(), "it is up", 5)
    pids = running(process.pid)
    process.stop(timeout=0.1)
    assert not still_running(pids)
    assert not process.is_running


@pytest.fixture
async def echo_port() -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer.transport):
            while chunk := await reader.read(1000):
                writer.write(chunk)

    port = free_port()
    async with await asyncio.start_server(echo, "127.0.0.1", port):
        yield port


async def test_proxy(echo_port: int) -> None:
    async with Proxy(echo_port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"one")
        assert await reader.read(10) == b"one"

        proxy.drop()
        writer.write(b"two")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(10), 0.1)
        await proxy.heal()
        writer.write(b"three")
        assert await reader.read(10) == b"three"

        proxy.delay(0.1)
        before = asyncio.get_running_loop().time()
        writer.write(b"four")
        assert await reader.read(10) == b"four"
        assert asyncio.get_running_loop().time() - before >= 0.2

        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        await proxy.cut()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read(10) == b""
        writer.transport.abort()

        await proxy.heal()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"five")
        assert await reader.read(10) == b"five"
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read(10) == b""
    writer.transport.abort()


async def test_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = RedisServer(tmp_path / "redis")
    workers = Workers(
        "tests.servers.sample_app:make_broker",
        folder=tmp_path / "workers",
        processes=2,
        env={"REDIS_URL": server.url},
    )
    monkeypatch.setenv("REDIS_URL", server.url)
    with started(server):
        workers.start()
        try:
            broker = make_broker()
            add = broker.find_task("add")
            assert add is not None
            first_pids = workers.pids
            assert len(first_pids) == 2
            result = await (await add.kiq(1, 2)).wait_result(timeout=10)
            assert result.return_value[0] == 3
            assert result.return_value[1] in first_pids

            killed = workers.kill_one()
            await asyncio.to_thread(workers.wait_for_processes, 1)
            await asyncio.to_thread(workers.wait_for_processes, 2)
            assert killed not in workers.pids
            assert len(set(workers.pids) & set(first_pids)) == 1

            workers.suspend()
            task = await add.kiq(3, 4)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(task.wait_result(), 0.3)
            workers.resume()
            assert (await task.wait_result(timeout=10)).return_value[0] == 7
            await broker.shutdown()
            pids = running(workers.process.pid)
        finally:
            workers.stop()
        assert not still_running(pids)

        workers.start()
        pids = running(workers.process.pid)
        assert len(pids) == 3
        workers.kill()
        assert not still_running(pids)
    assert os.getpid() not in pids
