"""Mixed runs for hours, while workers are replaced and the server fails over, fills up, restarts.

What has to hold: each run ends with the right values; a task is executed twice only where a worker
was killed or the server was restarted; no worker process ends that was not told to; nothing grows.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nats
from nats.js.api import ObjectStoreConfig
from redis.exceptions import OutOfMemoryError
from taskiq import AsyncBroker

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    MapReduce,
    Retry,
    RunCancelledError,
    SqliteJournal,
    TaskLostError,
    inventory,
)
from tests.distributed import app
from tests.distributed.app import Settings, started, task
from tests.distributed.watching import Notes, inputs, many
from tests.servers.nats import NatsServer
from tests.servers.process import children
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer, newest_program
from tests.servers.workers import Workers

KINDS = ("redis-streams", "redis-lists", "nats", "rabbitmq")

TIME_LIMIT = 180.0
"""Seconds after which a run counts as hanging.

An engine gives a task up of which it has heard nothing for a minute, and waits for half a minute
more behind an outage.
"""

NOT_NOW = 2.0
"""Seconds for which a server is in trouble."""

ENGINES = 4
"""Runs at once."""

say = partial(print, flush=True)

Trouble = Callable[[], Awaitable[None]]


@dataclass
class Counts:
    """What has happened so far."""

    happened: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # megabytes of this process, by report
    consumers: list[int] = field(default_factory=list)  # of streams, likewise
    killed: set[str] = field(default_factory=set)  # pids

    def complain(self, what: str) -> None:
        say(f"WRONG: {what}")
        self.complaints.append(what)


class Site:
    """The servers, and the workers that come and go."""

    def __init__(
        self, kind: str, folder: Path, counts: Counts, *, result_ex_time: int = 60
    ) -> None:
        self.kind, self.folder, self.counts = kind, folder, counts
        self.redis = RedisServer(folder / "redis", program=newest_program())
        self.nats = NatsServer(folder / "nats") if kind == "nats" else None
        self.rabbitmq = RabbitServer(folder / "rabbitmq") if kind == "rabbitmq" else None
        self.servers = [s for s in (self.redis, self.nats, self.rabbitmq) if s is not None]
        for server in self.servers:
            server.start()
        self.settings = Settings(
            kind,
            redis=self.redis.url,
            nats=self.nats.url if self.nats else "",
            rabbitmq=self.rabbitmq.url if self.rabbitmq else "",
            queue="soak",
            idle_timeout=4_000,
            result_ex_time=result_ex_time,
        )
        self.workers: list[Workers] = []
        self.expected: dict[Workers, set[int]] = {}
        self._numbers = itertools.count()

    async def open(self) -> None:
        """Prepare the servers, and start the first workers."""
        if self.nats is not None:  # taskiq-nats would make a bucket whose objects never expire
            async with await nats.connect(self.nats.url) as client:
                config = ObjectStoreConfig(ttl=self.settings.result_ex_time)
                await client.jetstream().create_object_store("taskiq_results", config)
        self.hire()

    async def holds(self) -> dict[str, int]:
        """What the servers hold by their own account, also what ``inventory`` does not know."""
        with self.redis.client() as client:
            counts = {"keys": len(client.keys())}  # without those that have expired
            for group in client.xinfo_groups("soak") if client.exists("soak") else ():
                counts["consumers"] = group["consumers"]
        if self.nats is not None:
            async with await nats.connect(self.nats.url) as client:
                for stream in await client.jetstream().streams_info():
                    counts[f"messages in {stream.config.name}"] = stream.state.messages
                    counts[f"consumers of {stream.config.name}"] = stream.state.consumer_count
        if self.rabbitmq is not None:
            for kind in ("queues", "exchanges", "bindings", "connections", "channels"):
                listed = await asyncio.to_thread(self.rabbitmq.control, f"list_{kind}")
                counts[kind] = len(listed.splitlines())
            waiting = await asyncio.to_thread(self.rabbitmq.control, "list_queues", "messages")
            counts["messages"] = sum(int(line) for line in waiting.split() if line.isdigit())
        return counts

    def hire(self) -> None:
        """Start another manager with two worker processes."""
        workers = Workers(
            "tests.distributed.app:from_environment",
            folder=self.folder / f"workers-{next(self._numbers)}",
            env=self.settings.environment,
            processes=2,
            max_async_tasks=10,
            on_uvloop=self.settings.on_uvloop,
        )
        workers.start_timeout = 300.0  # the machine may have other work, for two hours
        workers.start()
        self.workers.append(workers)
        self.expected[workers] = set(workers.pids)
        self.counts.happened["managers"] += 1

    def replace(self) -> None:
        """Start new workers, and have the oldest end in good order."""
        self.hire()
        oldest = self.workers.pop(0)
        del self.expected[oldest]
        oldest.stop()

    def kill_one(self) -> None:
        """Kill a worker process, which its manager replaces."""
        workers = self.workers[0]
        pid = workers.kill_one()
        self.expected[workers].discard(pid)
        self.counts.killed.add(str(pid))
        self.counts.happened["kills"] += 1

    def look(self) -> None:
        """See whether a worker process has ended that nobody has told to."""
        for workers, expected in self.expected.items():
            pids = set(children(workers.process.pid))
            for pid in expected - pids:
                self.counts.complain(f"worker process {pid} has ended by itself")
            self.expected[workers] = pids

    def troubles(self) -> list[Trouble]:
        """What may befall the server, without any loss of data."""
        if self.nats is not None:
            return [self.restart]
        if self.rabbitmq is not None:
            return [self.restart, self.close_connections, self.raise_alarm]
        return [self.become_replica, self.miss_replicas, self.fill, self.restart]

    async def become_replica(self) -> None:
        with self.redis.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", "1")
            await asyncio.sleep(NOT_NOW)
            client.execute_command("REPLICAOF", "NO", "ONE")

    async def miss_replicas(self) -> None:
        with self.redis.client() as client:
            client.config_set("min-replicas-to-write", 1)
            await asyncio.sleep(NOT_NOW)
            client.config_set("min-replicas-to-write", 0)

    async def fill(self) -> None:
        with self.redis.client() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 2_000_000)
            with contextlib.suppress(OutOfMemoryError):
                for number in itertools.count():
                    client.set(f"filling {number}", "x" * 100_000)
            await asyncio.sleep(NOT_NOW)
            client.delete(*client.keys("filling *"))
            client.config_set("maxmemory", 0)

    async def restart(self) -> None:
        server = self.servers[-1]
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(NOT_NOW / 2)
        await asyncio.to_thread(partial(server.restart, keep_data=True))

    async def close_connections(self) -> None:
        assert self.rabbitmq is not None
        await asyncio.to_thread(self.rabbitmq.control, "close_all_connections", "soak")

    async def raise_alarm(self) -> None:
        assert self.rabbitmq is not None
        control, limit = self.rabbitmq.control, "set_vm_memory_high_watermark"
        await asyncio.to_thread(control, limit, "0.00001")
        await asyncio.sleep(NOT_NOW)
        await asyncio.to_thread(control, limit, "absolute", "512MB")

    def close(self) -> None:
        for workers in self.workers:
            workers.kill()
        for server in self.servers:
            server.kill()


class Load:
    """Runs of every kind, each checked. ``pause``: seconds between two runs."""

    def __init__(
        self,
        broker: AsyncBroker,
        folder: Path,
        counts: Counts,
        seed: int,
        *,
        may_lose: bool,
        pause: float,
    ) -> None:
        """``may_lose``: whether the broker may lose a task when a worker stops, as lists do."""
        self.broker, self.counts = broker, counts
        self.folder = folder
        self.journal = SqliteJournal(folder / "runs.db")
        self.chance = random.Random(seed)
        self.notes = Notes(folder)
        self._numbers = itertools.count()
        self.is_over = False
        self.may_lose = may_lose
        self.pause = pause

    async def work(self) -> None:
        """One run after the other, until the time is over."""
        kinds = (self.chain, self.fan, self.references, self.journaled, self.cancelled, self.map)
        while not self.is_over:
            run = self.chance.choice(kinds)
            try:
                async with asyncio.timeout(TIME_LIMIT):
                    await run()
            except Exception as error:  # each is a finding
                if self.may_lose and isinstance(error.__cause__, TaskLostError):
                    self.counts.happened["lost"] += 1
                else:
                    self.counts.complain(f"{run.__name__}: {type(error).__name__}: {error}")
            self.counts.happened["runs"] += 1
            await asyncio.sleep(self.pause)

    def _doubling(self, length: int) -> DAGBuilder:
        builder = DAGBuilder()
        for number in range(length):
            before = f"n{number - 1}" if number else "item"
            builder.node(task(self.broker, app.double), name=f"n{number}", inputs={"item": before})
        return builder

    async def chain(self) -> None:
        engine = ExecutionEngine(self.broker, self._doubling(10).build())
        results = await engine.execute({"item": 1})
        self._expect(results["n9"] == 2**10, "a chain")

    async def fan(self) -> None:
        run = next(self._numbers)
        engine = ExecutionEngine(self.broker, many(self.broker, app.noted, 20))
        given = inputs(self.notes, 20, 0.05)
        named = {
            key: f"{run}-{value}" if key.startswith("name") else value
            for key, value in given.items()
        }
        results = await engine.execute(named)
        self._expect(set(results.values()) == {f"{run}-n{n}" for n in range(20)}, "a fan")

    async def references(self) -> None:
        builder = DAGBuilder().node(task(self.broker, app.blob))
        builder.node(task(self.broker, app.measure), inputs={"blob": "blob"}, output="length")
        engine = ExecutionEngine(self.broker, builder.build(), pass_by=10_000)
        results = await engine.execute({"size": 200_000})
        self._expect(results["length"] == 200_000, "a value by reference")

    async def journaled(self) -> None:
        engine = ExecutionEngine(
            self.broker, self._doubling(5).build(), journal=self.journal, retry=Retry(wait=0.1)
        )
        name = f"run-{next(self._numbers)}"
        results = await engine.execute({"item": 3}, run_id=name)
        self._expect(results["n4"] == 3 * 2**5, "a run with a journal")
        again = [pair async for pair in engine.resume(name)]
        self._expect(dict(again)["n4"] == 3 * 2**5, "a resumed run")
        await self.journal.delete(name)

    async def cancelled(self) -> None:
        builder = DAGBuilder()
        for number in range(10):
            builder.node(task(self.broker, app.nap), name=f"n{number}", inputs=["seconds"])
        engine = ExecutionEngine(self.broker, builder.build())
        run = asyncio.ensure_future(engine.execute({"seconds": 60.0}))
        await asyncio.wait([run], timeout=self.chance.random())
        engine.cancel()
        outcomes = await asyncio.gather(run, return_exceptions=True)
        self._expect(isinstance(outcomes[0], RunCancelledError), "a cancelled run")

    async def map(self) -> None:
        mapped = await MapReduce.map(self.broker, task(self.broker, app.double), range(50))
        result = await mapped.wait_result(timeout=TIME_LIMIT)
        if self.may_lose and result.is_err:
            self.counts.happened["lost"] += 1
            return
        self._expect(result.return_value == [2 * n for n in range(50)], "a map")

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.counts.complain(f"{what} has wrong values")

    def doubled(self) -> dict[str, list[str]]:
        """The tasks that were begun more than once, with the pids of all times but the last."""
        pids: dict[str, list[str]] = {}
        for line in self.notes.path.read_text("utf-8").splitlines():
            word, name, pid = line.split()
            if word == "begin":
                pids.setdefault(name, []).append(pid)
        return {name: others[:-1] for name, others in pids.items() if len(others) > 1}


def resident() -> float:
    """Megabytes of this process."""
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * 4096 / 1e6


async def soak(
    kind: str, seconds: float, seed: int, folder: Path, every: float, pause: float = 0.0
) -> Counts:
    """Run one system for a while. ``every``: seconds between two troubles, or replacements.

    ``pause``: seconds between two runs of each of the engines.
    """
    counts = Counts()
    chance = random.Random(seed)
    site = Site(kind, folder, counts)
    try:
        await site.open()
        site.hire()
        async with started(site.settings) as broker:
            may_lose = kind == "redis-lists"
            load = Load(broker, folder, counts, seed, may_lose=may_lose, pause=pause)
            runs = [asyncio.create_task(load.work()) for _ in range(ENGINES)]
            began = time.monotonic()
            troubles = itertools.cycle(site.troubles())
            for number in itertools.count(1):
                await asyncio.sleep(every / 3)
                trouble = next(troubles)
                counts.happened[trouble.__name__] += 1
                await trouble()
                await asyncio.sleep(every / 3)
                site.look()
                await asyncio.to_thread(site.replace)
                await asyncio.sleep(every / 3)
                site.look()
                if kind != "redis-lists" and chance.random() < 0.3:  # a list forgets
                    site.kill_one()
                counts.memory.append(resident())
                there = await inventory(broker)
                left = {item.name: item.count for item in there}
                counts.consumers.append(sum(i.count for i in there if i.kind == "consumer group"))
                passed = time.monotonic() - began
                say(f"{passed:.0f} s: {dict(counts.happened)}, {counts.memory[-1]:.0f} MB, {left}")
                if passed > seconds or number > 10_000:
                    break
            load.is_over = True
            await asyncio.gather(*runs)
            await check_the_end(broker, site, load, counts)
    finally:
        site.close()
    return counts


async def come_and_go(kind: str, rounds: int, folder: Path) -> Counts:
    """Run 200 tasks in each round, and replace two worker processes after it.

    What is left on the server after the last round is what was left after five: 1,000 tasks.
    """
    counts = Counts()
    site = Site(kind, folder, counts, result_ex_time=10)
    try:
        await site.open()
        async with started(site.settings) as broker:
            builder = DAGBuilder()
            for number in range(200):
                builder.node(task(broker, app.double), name=f"n{number}", inputs=["item"])
            engine = ExecutionEngine(broker, builder.build())
            left: list[dict[str, int]] = []
            for number in range(1, rounds + 1):
                results = await engine.execute({"item": number})
                if set(results.values()) != {2 * number}:
                    counts.complain(f"round {number} has wrong values")
                await asyncio.to_thread(site.replace)
                if number in (5, rounds):
                    left.append(await settled(site, broker, left))
                    say(f"after {200 * number} tasks and {2 * number} workers: {left[-1]}")
            if left[0] != left[-1]:
                counts.complain(f"left after 1,000 tasks: {left[0]}; at the end: {left[-1]}")
    finally:
        site.close()
    return counts


async def settled(
    site: Site, broker: AsyncBroker, before: Sequence[dict[str, int]]
) -> dict[str, int]:
    """What is left on the server. Waits for results to expire, and for workers to tidy up."""
    deadline = time.monotonic() + (60.0 if before else 20.0)
    while True:
        left = {item.name: item.count for item in await inventory(broker)} | await site.holds()
        if left in before or time.monotonic() > deadline:
            return left
        await asyncio.sleep(1.0)


async def check_the_end(broker: AsyncBroker, site: Site, load: Load, counts: Counts) -> None:
    """What holds when all runs have ended."""
    deadline = time.monotonic() + 30.0
    queue = site.settings.queue
    while (left := {i.name: i.count for i in await inventory(broker)}).get(queue):
        if time.monotonic() > deadline:
            counts.complain(f"left on the server: {left}")
            break
        await asyncio.sleep(0.2)
    doubled = load.doubled()
    counts.happened["executed twice"] = len(doubled)
    unexplained = [name for name, pids in doubled.items() if not counts.killed.issuperset(pids)]
    # A send is repeated if its connection breaks before the server has answered.
    if len(unexplained) > ENGINES * counts.happened["restart"]:
        counts.complain(f"executed twice though no worker of it was killed: {unexplained[:5]}")
    first, last = thirds(counts.memory)
    if last > first * 1.3 + 20:
        counts.complain(f"this process has grown from {first:.0f} to {last:.0f} MB")
    few, more = thirds(counts.consumers)
    if more > few + 8:  # that of a killed worker is removed a minute later
        counts.complain(f"there were {few:.0f} consumers, and are {more:.0f}")
    say(f"the end: {dict(counts.happened)}; left: {left}; memory {first:.0f} -> {last:.0f} MB")


def thirds(figures: Sequence[float]) -> tuple[float, float]:
    """The largest of the first and of the last third."""
    third = max(1, len(figures) // 3)
    return max(figures[:third]), max(figures[-third:])


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="soak"))
    yield folder
    shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two troubles")
    parser.add_argument("--rounds", type=int, help="200 tasks and two new workers in each, no more")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two runs")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    say(f"{options.kind}, seed {options.seed}")
    with temporary_folder() as folder:
        counts: Any = asyncio.run(
            come_and_go(options.kind, options.rounds, folder)
            if options.rounds
            else soak(
                options.kind,
                options.minutes * 60,
                options.seed,
                folder,
                options.every,
                options.pause,
            )
        )
    sys.exit(1 if counts.complaints else 0)


if __name__ == "__main__":
    main()
