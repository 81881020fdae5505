"""What the benchmarks of the web have: a server in a process of its own, and clients.

``python -m benchmarks.web_site runs.db`` serves the runs of a journal. For each line of its input,
an id and a number, it runs a graph of so many elements at a fixed pace, and tells what that took.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from taskiq import InMemoryBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, SqliteJournal
from taskiq_flow.web import runs_app
from taskiq_flow.web.server import serve_async

PARALLEL, PAUSE = 4, 0.06
"""So many tasks at once, of so many seconds: 67 a second, of three events each."""

BY_ADDRESS = 30
"""Connections of one address, of which the application takes 32."""


@dataclass
class Server:
    """A server in a process of its own."""

    pid: int
    input: asyncio.StreamWriter
    output: asyncio.StreamReader
    host: str
    port: int
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where it is asked."""
        return f"http://{self.host}:{self.port}"

    async def begin(self, run_id: str, elements: int) -> None:
        """Begin a run at a fixed pace."""
        self.input.write(f"{run_id} {elements}\n".encode())
        await self._line()

    async def end(self) -> dict[str, float]:
        """What the run took, once it has ended."""
        found: dict[str, float] = json.loads(await self._line())
        return found

    async def _line(self) -> str:
        return (await self.output.readline()).decode().strip()

    def megabytes(self) -> float:
        """The memory of its process that is in use."""
        status = Path(f"/proc/{self.pid}/status").read_text("utf-8")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1] if found else 0) / 1024

    async def connect(self, number: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection; the further ones come from other addresses of this machine."""
        local = (f"127.0.0.{2 + number // BY_ADDRESS}", 0)
        reader, writer = await asyncio.open_connection(self.host, self.port, local_addr=local)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        """Close all connections."""
        for writer in self._writers:
            writer.close()
        for writer in self._writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def ask(self, path: str, number: int = 0) -> asyncio.StreamReader:
        """What follows the headers of an answer, once there is one."""
        while True:
            reader, writer = await self.connect(number)
            writer.write(f"GET {path} HTTP/1.0\r\nhost: {self.host}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 404 " not in head:  # the run has not begun
                return reader


@asynccontextmanager
async def server(journal: Path) -> AsyncIterator[Server]:
    """Serve the runs of a journal, and stop."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.web_site", str(journal)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the server has no input and output")
    try:
        address = (await process.stdout.readline()).decode().strip()
        host, port = address.removeprefix("http://").split(":")
        found = Server(process.pid, process.stdin, process.stdout, host, int(port))
        try:
            yield found
        finally:
            await found.close()
    finally:
        process.stdin.close()  # it stops then
        await process.wait()


async def pause(number: int) -> int:
    """What a paced run does."""
    await asyncio.sleep(PAUSE)
    return number


async def serve(journal: SqliteJournal) -> None:
    """Serve, and run what the input says."""
    dag = DAGBuilder("paced").node(pause, inputs={"number": "numbers"}, map_over="numbers").build()
    engine = ExecutionEngine(InMemoryBroker(), dag, PARALLEL, journal=journal)
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve_async(runs_app(engine), port=0, on_ready=ready.set_result))
    print(await ready, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        run_id, elements = line.split()
        start, computed = time.perf_counter(), time.process_time()
        handle = engine.start({"numbers": [*range(int(elements))]}, run_id=run_id)
        print(run_id, flush=True)
        await handle
        seconds, cpu = time.perf_counter() - start, time.process_time() - computed
        print(json.dumps({"seconds": seconds, "cpu": cpu}), flush=True)
    serving.cancel()
    await asyncio.wait([serving])


if __name__ == "__main__":
    asyncio.run(serve(SqliteJournal(sys.argv[1])))
