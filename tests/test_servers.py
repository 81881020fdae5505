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

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.process import Process, ProcessError, descendants, free_port, processes
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer
from tests.servers.server import Server


def running(*roots: int) -> set[int]:
    """Those of the processes that run, with all they have started."""
    family = {pid for root in roots for pid in (root, *descendants(root))}
    return family & {process.pid for process in processes()}


def still_running(pids: set[int]) -> set[int]:
    return pids & {process.pid for process in processes()}


@contextlib.contextmanager
def started(server: Server) -> Iterator[None]:
    server.start()
    try:
        pids = running(server.process.pid)
        yield
    finally:
        server.stop()
    assert not still_running(pids)


def test_redis_hangs_while_it_is_suspended(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    never = Retry(NoBackoff(), 0)
    with started(server), redis.Redis(port=server.port, socket_timeout=1.0, retry=never) as client:
        server.suspend()
        with pytest.raises(redis.exceptions.TimeoutError):
            client.ping()
        server.resume()
        assert client.ping()
        server.suspend()  # which does not keep it from being stopped


def test_the_descendants_of_a_process_are_found_while_some_of_them_end() -> None:
    with subprocess.Popen(["/bin/sh", "-c", "while :; do /bin/true; done"]) as shell:
        try:
            for _ in range(200):
                descendants(os.getpid())
        finally:
            shell.kill()


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
    deadline = time.monotonic() + 20
    while any(process.group == group for process in processes()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    process = Process(["/bin/sh", "-c", "trap '' TERM; echo up; sleep 60"], log=tmp_path / "log")
    process.start()
    process.wait_until(lambda: "up" in process.log_since_start(), "it is up", 20)
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
        await proxy.has_dropped.wait()
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
