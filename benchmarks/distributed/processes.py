"""A Redis server and workers for one benchmark, stopped at its end with all they have started."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from redis import Redis

from benchmarks.distributed.streams import QUEUE, URL, ready_key
from benchmarks.report import NotInstalledError
from tests.servers.process import Process
from tests.servers.redis import RedisServer
from tests.servers.workers import Workers


class QuietWorkers(Workers):
    """Workers that log no task, and are found to listen by what they write to Redis."""

    def __init__(
        self,
        factory: str,
        folder: Path,
        url: str,
        queue: str,
        *,
        processes: int,
        slots: int,
        on_uvloop: bool,
    ) -> None:
        super().__init__(
            factory,
            folder=folder,
            processes=processes,
            max_async_tasks=slots,
            env={URL: url, QUEUE: queue},
            arguments=("--log-level", "WARNING"),
            on_uvloop=on_uvloop,
        )
        self.url = url
        self.queue = queue

    def wait_for_processes(self, count: int, timeout: float = Workers.start_timeout) -> None:
        """Wait until as many have started."""
        with Redis.from_url(self.url) as client:
            self.process.wait_until(
                lambda: client.llen(ready_key(self.queue)) >= count,
                f"{count} worker processes have started",
                timeout,
            )


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """Run a server that writes nothing to disk; gives its URL."""
    if not RedisServer.is_available():
        raise NotInstalledError("redis-server is neither beside this Python nor on the path")
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder), appendonly=False)
        server.start()
        try:
            yield server.url
        finally:
            server.stop()


@contextlib.contextmanager
def taskiq_workers(
    factory: str,
    url: str,
    queue: str,
    *,
    processes: int = 1,
    slots: int = 100,
    on_uvloop: bool = False,
) -> Iterator[None]:
    """Run ``taskiq worker`` with a broker factory; gives way when all processes have started."""
    if on_uvloop and find_spec("uvloop") is None:
        raise NotInstalledError("uvloop is not beside this Python")
    with tempfile.TemporaryDirectory() as folder:
        workers = QuietWorkers(
            factory,
            Path(folder),
            url,
            queue,
            processes=processes,
            slots=slots,
            on_uvloop=on_uvloop,
        )
        workers.start()
        try:
            yield
        finally:
            workers.stop()


@contextlib.contextmanager
def running(module: Sequence[str], url: str, queue: str) -> Iterator[None]:
    """Run ``python -m`` with a module and its arguments."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, URL: url, QUEUE: queue}
        process = Process([sys.executable, "-m", *module], log=Path(folder, "log"), env=env)
        process.start()
        try:
            yield
        finally:
            process.stop()
