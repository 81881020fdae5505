"""Large arrays over Redis with a store in a directory.

An array of 50 MB goes from one task to another, beside a raw SET and GET of its bytes; what a run
of the same graph takes with an array of 8 bytes is taken off. Then it goes to 20 tasks by
reference. At last 1 GB goes from task to task and to the engine: the memory is the highest resident
size of each process beyond what it had before, and beyond the value.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import redis
from redis.asyncio import Redis

from benchmarks.distributed.processes import redis_server, taskiq_workers
from benchmarks.distributed.streams import ready_key
from benchmarks.measure import interleaved
from benchmarks.report import Check, NotInstalledError, Options, print_checks
from taskiq_flow import ExecutionEngine, ResultHandle
from taskiq_flow.engine.arguments import PassBy

MB = 1_000_000
MANY = 20
QUEUES = ("stored", "in Redis")


async def run(options: Options) -> list[Check]:
    """Run all three."""
    for name in ("numpy", "fsspec"):
        if importlib.util.find_spec(name) is None:
            raise NotInstalledError(f"{name} is not installed")
    size, largest, rounds = (10 * MB, 200 * MB, 3) if options.quick else (50 * MB, 1000 * MB, 9)
    checks = []
    with redis_server() as url, tempfile.TemporaryDirectory() as folder:
        async with Redis.from_url(url) as client:
            with _workers(url, "stored", f"file://{folder}"), _workers(url, "in Redis", None):
                checks += await _one_consumer(url, folder, size, rounds)
            with _workers(url, "many", f"file://{folder}"):
                checks += await _many_consumers(url, folder, size)
            with _workers(url, "largest", f"file://{folder}"):
                checks += await _memory(url, client, folder, largest)
    print_checks("Redis with a store in a directory", checks)
    return checks


@contextlib.contextmanager
def _workers(url: str, queue: str, store: str | None) -> Iterator[None]:
    from benchmarks.distributed.arrays import STORE, WORKER  # noqa: PLC0415 - needs numpy

    if store is None:
        os.environ.pop(STORE, None)
    else:
        os.environ[STORE] = store
    with taskiq_workers(WORKER, url, queue, slots=4):
        yield


@contextlib.asynccontextmanager
async def _engine(
    url: str, queue: str, store: str | None, consumers: int, pass_by: PassBy
) -> AsyncIterator[ExecutionEngine]:
    from benchmarks.distributed.arrays import array_dag, store_broker  # noqa: PLC0415 - needs numpy

    broker = store_broker(url, queue, store)
    dag = array_dag(broker, consumers)
    await broker.startup()
    try:
        yield ExecutionEngine(broker, dag, pass_by=pass_by)
    finally:
        await broker.shutdown()


async def _one_consumer(url: str, folder: str, size: int, rounds: int) -> list[Check]:
    content = bytes(size)

    def set_and_get() -> None:
        with redis.Redis.from_url(url) as client:  # the faster of its two clients
            client.set("raw", content)
            if client.get("raw") != content:
                raise AssertionError("Redis gave other bytes")

    async def raw() -> None:
        await asyncio.to_thread(set_and_get)

    async def whole(engine: ExecutionEngine, size: int) -> None:
        async for _ in engine.execute_async({"size": size}):
            pass

    async with contextlib.AsyncExitStack() as stack:
        ways: dict[str, Callable[[], Awaitable[object]]] = {"raw": raw}
        for queue, store in zip(QUEUES, (f"file://{folder}", None), strict=True):
            engine = await stack.enter_async_context(_engine(url, queue, store, 1, "reference"))
            ways[queue] = partial(whole, engine, size)
            ways[f"{queue}, 8 bytes"] = partial(whole, engine, 8)
        taken = await interleaved(ways, rounds)

    def ratio(queue: str) -> float:
        rows = zip(taken[queue], taken[f"{queue}, 8 bytes"], taken["raw"], strict=True)
        return statistics.median((own - none) / beside for own, none, beside in rows)

    raw_ms = statistics.median(taken["raw"]) * 1000
    what = f"{size // MB} MB to one consumer"
    print(f"{what}: raw {raw_ms:.0f} ms; without store {ratio('in Redis'):.2f} x")
    return [Check(what, ratio("stored"), 3.0, "x raw SET and GET")]


async def _many_consumers(url: str, folder: str, size: int) -> list[Check]:
    for path in _objects(folder):
        path.unlink()
    async with _engine(url, "many", f"file://{folder}", MANY, "reference") as engine:
        await engine.execute({"size": 8})
        before = _grown_from(os.getpid())
        start = time.perf_counter()
        results = await engine.execute({"size": size})
        taken = time.perf_counter() - start
        grown = before()
        seen = [await results[f"look_{number}"].get() for number in range(MANY)]
    if seen != [size] * MANY:
        raise AssertionError("a consumer was given another value")
    stored = sum(path.stat().st_size for path in _objects(folder))
    what = f"{size // MB} MB to {MANY}"
    print(f"{what} consumers by reference in {taken:.2f} s")
    return [
        Check(f"{what}, stored", stored / size, 1.01, "x the value"),
        Check(f"{what}, engine's memory", grown / MB, 5.0, "MB more"),
    ]


async def _memory(url: str, client: Redis, folder: str, size: int) -> list[Check]:
    async with _engine(url, "largest", f"file://{folder}", 1, "reference") as engine:
        await engine.execute({"size": MB})
        await (await engine.execute({"size": MB}))["array"].get()
        (pid,) = await client.lrange(ready_key("largest"), 0, -1)
        of_worker, of_engine = _grown_from(int(pid)), _grown_from(os.getpid())
        start = time.perf_counter()
        results = await engine.execute({"size": size})
        executed = time.perf_counter() - start
        worker, flat = of_worker(), of_engine()
        handle = results["array"]
        if not isinstance(handle, ResultHandle) or await results["look_0"].get() != size:
            raise AssertionError("the consumer was given another value")
        of_engine = _grown_from(os.getpid())
        start = time.perf_counter()
        array = await handle.get()
        read = time.perf_counter() - start
        reader = of_engine()
        if len(array) != size:
            raise AssertionError("the engine was given another value")
    what = f"{size // MB} MB"
    print(f"{what}: two tasks in {executed:.1f} s, read by the engine in {read:.1f} s")
    return [
        Check(f"{what}, worker", (worker - size) / MB, 100.0, "MB beyond the value"),
        Check(f"{what}, reader", (reader - size) / MB, 100.0, "MB beyond the value"),
        Check(f"{what}, engine", flat / MB, 5.0, "MB more"),
    ]


def _objects(folder: str) -> list[Path]:
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def _grown_from(pid: int) -> Callable[[], int]:
    """Tells by how many bytes the highest resident size of a process is above what it is now."""
    gc.collect()
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
    before = _status(pid, "VmRSS")
    return lambda: _status(pid, "VmHWM") - before


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
