"""Random graphs on Redis streams, while workers are killed, notices dropped, the server restarted.

The graphs follow from a seed; what hits them, and at which moment, does not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from taskiq import AsyncBroker

from property_tests.model import GraphSpec, NodeSpec, evaluate
from taskiq_flow import DAG, DAGNode, ExecutionEngine, NodeCompleted, NodeFailure, NodeSkipped
from tests.distributed import app
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer
from tests.servers.workers import Workers

LOST_AFTER, TIME_LIMIT = 30.0, 90.0
"""Seconds: for a task, far more than others need to take it over; for a run that does not end."""

SERVED = "tests.distributed.chaos:from_environment"
say = partial(print, flush=True)


async def in_loop(node: NodeSpec, *values: int) -> Any:
    await asyncio.sleep(node.seconds / 1000)
    return outcome(node, *values)


def in_thread(node: NodeSpec, *values: int) -> Any:
    time.sleep(node.seconds / 1000)
    return outcome(node, *values)


def outcome(node: NodeSpec, *values: int) -> Any:
    if node.fails:
        raise LookupError(node.name)
    return node.result({f"p{place}": value for place, value in enumerate(values)})


def with_tasks(broker: AsyncBroker) -> AsyncBroker:
    for function in (in_loop, in_thread):
        broker.register_task(function, task_name=function.__name__)
    return broker


def from_environment() -> AsyncBroker:
    return with_tasks(app.from_environment())


def random_graph(chance: random.Random) -> GraphSpec:
    """Up to 25 nodes in chains, fans, joins and mixtures of them; ``seconds`` are milliseconds."""
    leaning = [0.05 + chance.random() ** 3 for _ in range(4)]
    failing = chance.choice([0.0, 0.0, 0.1])
    nodes: list[NodeSpec] = []
    for index in range(chance.randint(1, 25)):
        chain, fan = nodes[-1:], nodes[index // 6 : index // 6 + 1]
        join = chance.sample(nodes, min(index, chance.randint(2, 6)))
        (before,) = chance.choices([[], chain, fan, join], leaning)
        name, count = f"n{index}", chance.choice([1, 1, 1, 2, 3])
        keys = (name,) if count == 1 else tuple(f"{name}.{part}" for part in range(count))
        node = NodeSpec(
            *(index, name, name, keys),
            required=tuple(chance.choice(other.outputs) for other in before),
            after=(chance.randrange(index),) if index and chance.random() < 0.1 else (),
            returns="number" if count == 1 else chance.choice(["list", "mapping"]),
            seconds=chance.choice([0, chance.randint(0, 150)]),
            fails=chance.random() < failing,
        )
        nodes.append(node)
    return GraphSpec(tuple(chance.sample(nodes, len(nodes))))


class Case:
    """One run: how it is made, and what has become of it so far. ``seen``: of all runs."""

    def __init__(self, seed: int, number: int, seen: Counter[str]) -> None:
        self.seen = seen
        self.name = f"seed {seed} graph {number}"
        chance = random.Random(self.name)
        self.graph = random_graph(chance)
        self.limit = chance.choice([None, None, None, 1, 2, 5])
        self.collects = chance.random() < 0.7
        self.pairs: list[tuple[str, Any]] = []
        self.error: BaseException | None = None
        self.last_events: dict[str, str] = {}

    async def run(self, broker: AsyncBroker) -> None:
        dag, on_error = DAG(), "collect" if self.collects else "raise"
        for node in self.graph:
            task: Any = broker.find_task("in_thread" if node.index % 2 else "in_loop")
            inputs = [f"spec of {node.name}", *node.required]
            dag.add_node(DAGNode(task, name=node.name, inputs=inputs, outputs=node.outputs))
            for index in node.after:
                dag.add_edge(f"n{index}", node.name)
        options: Any = {"on_error": on_error, "listeners": [self], "lost_after": LOST_AFTER}
        engine = ExecutionEngine(broker, dag, self.limit, **options)
        specs = {f"spec of {node.name}": node for node in self.graph}
        try:
            async with asyncio.timeout(TIME_LIMIT):
                async for pair in engine.execute_async(specs, run_id=self.name):
                    self.pairs.append(pair)
        except Exception as error:  # judged like all else that comes of the run
            self.error = error

    def on_event(self, event: Any) -> None:
        self.seen["completions"] += isinstance(event, NodeCompleted)
        if hasattr(event, "task_name"):
            self.last_events[event.task_name] = f"{type(event).__name__} at {event.at:.1f}"

    def complaints(self) -> Iterator[str]:
        expected, names = evaluate(self.graph), [name for name, _ in self.pairs]
        failures = {name: f"failed: {LookupError(name)!r}" for name in expected.failures}
        skips = {name: f"skipped: {sorted(why)}" for name, why in expected.skipped.items()}
        due = expected.results | failures | skips
        told = {name: f"failed: {e!r}" for name, e in getattr(self.error, "failures", {}).items()}
        stops = bool(failures) and not self.collects
        if not (told and told.items() <= failures.items() if stops else self.error is None):
            yield f"ended with {self.error!r} at {time.monotonic():.1f}"
        if not stops and (missing := due.keys() - names):
            states = {name: self.last_events.get(name, "not started") for name in missing}
            yield f"without some nodes, whose last events were {states}"
        for place, (name, value) in enumerate(self.pairs):
            if name in names[:place]:
                yield f"{name} came twice"
            if late := {b.name for b in self.graph.waits_for[name]}.difference(names[:place]):
                yield f"{name} came before {sorted(late)}"
            if (said := comparable(value)) != due[name]:
                yield f"{name} is {said!r} and should be {due[name]!r}"


def comparable(value: Any) -> Any:
    if isinstance(value, NodeFailure):
        return f"failed: {value.error!r}"
    return f"skipped: {sorted(value.because_of)}" if isinstance(value, NodeSkipped) else value


@dataclass
class Chaos:
    """Hits the workers, the server and the way on which the engine hears, until it is stopped."""

    workers: Workers
    server: RedisServer
    proxy: Proxy
    graphs: int
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in sorted(self.seen.items()))

    async def _kill(self) -> None:
        completions = -1
        while self.seen["kills"] < self.graphs / 2:
            await asyncio.sleep(0.1 + random.expovariate(1 / 0.7))
            if self.seen["completions"] == completions:
                continue  # on a slow machine, a new worker would be killed before it has come up
            completions = self.seen["completions"]
            with contextlib.suppress(IndexError, ProcessLookupError):  # none is there just now
                os.kill(random.choice(self.workers.pids), signal.SIGKILL)
                self.seen["kills"] += 1

    async def _drop(self) -> None:
        """Swallow whatever is on its way, be it half of a message; at times, break off as well."""
        while True:
            await asyncio.sleep(random.expovariate(1))
            self.proxy.drop()
            await asyncio.sleep(random.uniform(0.05, 1.0))
            await self.proxy.heal()
            self.seen["drops"] += 1
            if random.random() < 0.3:
                await self.proxy.cut()
                self.seen["cuts"] += 1

    async def _restart(self) -> None:
        while self.seen["runs"] < self.graphs / 2:
            await asyncio.sleep(0.05)
        self.server.kill()
        await asyncio.sleep(random.uniform(0.1, 2.0))
        await asyncio.to_thread(self.server.start)
        self.seen["restarts"] += 1

    async def outlive(self, broker: AsyncBroker, seed: int, concurrency: int) -> None:
        cases = (Case(seed, number, self.seen) for number in range(self.graphs))

        async def make_some() -> None:
            for case in cases:
                await case.run(broker)
                for complaint in case.complaints():
                    self.wrong.append(f"{case.name}: {complaint}")
                    say(self.wrong[-1])
                self.seen += Counter(runs=1, nodes=len(case.graph.nodes))
                if not self.seen["runs"] % 20:
                    say(self)

        async with asyncio.TaskGroup() as group:
            ways = [group.create_task(way()) for way in (self._kill, self._drop, self._restart)]
            await asyncio.gather(*(make_some() for _ in range(concurrency)))
            for way in ways:
                way.cancel()


async def in_chaos(folder: Path, seed: int, graphs: int, workers: int, concurrency: int) -> Chaos:
    """All of it, from the start of the server on: what befell the runs, and what was wrong."""
    server = RedisServer(folder / "redis")
    settings = app.Settings("redis-streams", redis=server.url, queue="chaos", max_deliveries=1_000)
    served = Workers(
        SERVED,
        folder=folder,
        processes=workers,
        max_async_tasks=2 if seed % 4 < 2 else 100,  # with few, messages wait in the workers
        env=settings.environment,
        on_uvloop=bool(seed % 2),
    )
    with contextlib.ExitStack() as stack:
        for part in (server, served):
            stack.callback(part.kill)
            part.start()
        async with Proxy(server.port) as proxy:
            heard = replace(settings, notifier=f"redis://127.0.0.1:{proxy.port}")
            agent = Chaos(served, server, proxy, graphs)
            async with app.started(heard) as broker:
                await agent.outlive(with_tasks(broker), seed, concurrency)
    return agent


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/chaos workers", description=__doc__)
    defaults = {"graphs": 200, "seed": random.randrange(10**6), "workers": 2, "concurrency": 4}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options, begin = parser.parse_args(), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    logging.basicConfig(filename=folder / "engine.log", format="[%(asctime)s] %(message)s")
    say(f"seed {options.seed}; logs in {folder}")
    agent = asyncio.run(in_chaos(folder, **vars(options)))
    verdict = "WRONG" if agent.wrong else "each run ended, each value came once and was right"
    say(f"seed {options.seed}, {time.monotonic() - begin:.0f} s, {agent}: {verdict}")
    if agent.wrong:
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
