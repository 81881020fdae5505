"""Engines in processes of their own, as they are seen from where they are started and killed."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.resuming.app import Job
from tests.servers.process import TAIL, _watchdog
from tests.servers.workers import REPOSITORY

LONGEST = 60.0
"""Seconds after which an engine will not end any more."""


class Nursery:
    """The program that has engines, one after the other. It may be used on any event loop."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read = b""
        self._engine: Engine | None = None

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._program = subprocess.Popen(
                [sys.executable, "-m", "tests.resuming.engine"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=REPOSITORY,
                start_new_session=True,
            )
        self._watchdog = _watchdog(self._program.pid)
        assert self._program.stdout is not None
        os.set_blocking(self._program.stdout.fileno(), False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.killpg(self._program.pid, signal.SIGKILL)
        for process in (self._program, self._watchdog):
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    async def engine(self, job: Job) -> Engine:
        """An engine that has been given a job; one that was there before is killed."""
        if self._engine is not None and not self._engine.has_ended:
            await self._engine.kill()
        assert self._program.stdin is not None
        self._program.stdin.write(f"{job.dumped()}\n".encode())
        self._program.stdin.flush()
        self._engine = Engine(self)
        await self._engine.begin()
        return self._engine

    async def message(self) -> Any:
        """What comes next of the present engine, or about it."""
        assert self._program.stdout is not None
        pipe = self._program.stdout.fileno()
        while b"\n" not in self._read:
            await _until_readable(pipe)
            data = os.read(pipe, 65536)
            assert data, f"the program has ended:\n{self._log.read_text()[-TAIL:]}"
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)


class Engine:
    """One engine. ``pairs``: what it has yielded, as far as was read; ``error``: the kind of it."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self._pid = 0
        self._status: int | None = None
        self.pairs: list[tuple[str, Any]] = []
        self.error = ""

    @property
    def has_ended(self) -> bool:
        """Whether its process is no more."""
        return self._status is not None

    @property
    def was_killed(self) -> bool:
        """Whether that was by SIGKILL."""
        return self._status == -signal.SIGKILL

    async def begin(self) -> None:
        """Wait until it is there."""
        while not self._pid:
            self._take(await self._nursery.message())

    async def read(self, count: float = math.inf) -> None:
        """Read until it has yielded so many pairs, or has ended."""
        while not self.has_ended and len(self.pairs) < count:
            self._take(await self._nursery.message())

    async def kill(self) -> None:
        """End its process with no chance to clean up, and read all that it has yielded."""
        os.kill(self._pid, signal.SIGKILL)
        await self.read()

    def _take(self, message: Any) -> None:
        if isinstance(message, list):
            self.pairs.append((message[0], message[1]))
            return
        self._pid = message.get("pid", self._pid)
        self.error = message.get("error", self.error)
        self._status = message.get("status", self._status)


async def _until_readable(pipe: int) -> None:
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pipe, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(pipe)
