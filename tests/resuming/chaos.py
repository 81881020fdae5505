"""Random graphs, while their engines' processes are killed and their runs resumed to the end.

The graphs follow from a seed, and so does how each engine is killed; at which moment that hits it
does not.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from property_tests.model import GraphSpec, evaluate
from tests.distributed.app import Settings
from tests.distributed.chaos import random_graph
from tests.distributed.watching import left_over
from tests.resuming.app import PATH, SERVED, Death, Job, NodeOf, is_file
from tests.resuming.long_run import LongRun, integrity_of
from tests.resuming.nursery import LONGEST, Nursery
from tests.servers.redis import RedisServer
from tests.servers.workers import Workers

LEASES = 25
"""How many runs there are to one whose journal is on Redis: a killed engine's lease lasts 10 s."""

MOST_KILLS = 3
"""How many engines one run may lose."""

TIMES = {1: "once", 2: "twice"}

say = partial(print, flush=True)


@dataclass(frozen=True)
class Site:
    """Where runs are executed, and where they are kept."""

    settings: Settings
    journal: str


def job_of(graph: GraphSpec, run_id: str, site: Site) -> Job:
    """A run of a graph whose tasks note that they begin."""
    nodes = [
        NodeOf(
            task="in_thread" if node.index % 2 else "in_loop",
            name=node.name,
            inputs=[PATH, f"spec of {node.name}", *node.required],
            outputs=list(node.outputs),
            after=[f"n{index}" for index in node.after],
        )
        for node in graph
    ]
    specs = {f"spec of {node.name}": asdict(node) for node in graph}
    return Job(run_id, nodes, specs, site.journal, site.settings)


class Case:
    """One run, and how its engines are killed."""

    def __init__(self, folder: Path, seed: int, number: int, site: Site) -> None:
        self.name = f"seed {seed} run {number}"
        self.chance = chance = random.Random(self.name)
        nodes = random_graph(chance).nodes
        graph = GraphSpec(
            tuple(replace(n, seconds=chance.randint(0, 30), fails=False) for n in nodes)
        )
        job = job_of(graph, self.name, site)
        limit = chance.choice([None, None, 1, 2, 5])
        # A process that is gone has taken with it what it had in memory.
        may_refer = site.settings.kind != "in-memory"
        pass_by = chance.choice(["value", "value", "reference"]) if may_refer else "value"
        job = replace(job, max_parallel=limit, pass_by=pass_by)
        self.run = LongRun(job, folder / f"run {number}", evaluate(graph).results)
        self.error = ""

    async def outlive(self, nursery: Nursery) -> None:
        """Kill some engines, and have another end what they have begun."""
        try:
            async with asyncio.timeout(LONGEST):
                for _ in range(self.chance.randint(1, MOST_KILLS)):
                    if not await self._kill_one(nursery):
                        return
                await self.run.finish(nursery)
        except TimeoutError:
            self.error = "did not end"

    async def _kill_one(self, nursery: Nursery) -> bool:
        """Kill one more engine at some moment, if it does not end before; whether it was killed."""
        chance, count = self.chance, len(self.run.job.nodes)
        death = None
        how = chance.choice(["after some pairs", "after a time", "at a write"])
        if how == "at a write":
            when: Literal["before", "after"] = chance.choice(["before", "after"])
            death = Death(when, chance.choice(["append", "result"]), chance.randint(1, count))
        engine = await self.run.live(nursery, death)
        if how == "after some pairs":
            await engine.read(chance.randrange(count))
        elif how == "after a time":
            with suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0.0, 0.3)):
                    await engine.read()
        else:
            await engine.read()
        if not engine.has_ended:
            await engine.kill()
        if engine.was_killed:
            await self.run.killed(engine)
        return engine.was_killed

    def complaints(self) -> Iterator[str]:
        """What has become of the run that should not have."""
        if self.error:
            yield self.error
        yield from self.run.complaints()


@dataclass
class Chaos:
    """What has happened, and what of it was wrong."""

    folder: Path
    seed: int
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in sorted(self.seen.items()))

    async def outlive(self, sites: list[Site], concurrency: int) -> None:
        """Make a run at each site, some at once, and judge them when all is quiet."""
        cases = [Case(self.folder, self.seed, n, site) for n, site in enumerate(sites)]
        waiting = iter(cases)

        async def make_some(nursery: Nursery) -> None:
            for case in waiting:
                await case.outlive(nursery)
                self.seen += Counter(runs=1, kills=len(case.run.kept))
                if not self.seen["runs"] % 20:
                    say(self)

        with ExitStack() as stack:
            log = self.folder / "engines.log"
            nurseries = [stack.enter_context(Nursery(log)) for _ in range(concurrency)]
            await asyncio.gather(*map(make_some, nurseries))
        for settings in {site.settings for site in sites}:
            await self._wait_for_workers(settings)
        for case in cases:
            self._judge(case)
        for journal in {site.journal for site in sites if is_file(site.journal)}:
            if (said := integrity_of(journal)) != "ok":
                self._complain(f"{journal} is damaged: {said}")

    async def _wait_for_workers(self, settings: Settings) -> None:
        """Have them come to the end of what the engines have sent, those that are dead as well."""
        try:
            async with asyncio.timeout(LONGEST):
                while settings.kind != "in-memory" and await left_over(settings):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            self._complain(f"tasks are left in the queue {settings.queue}")

    def _complain(self, complaint: str) -> None:
        self.wrong.append(complaint)
        say(complaint)

    def _judge(self, case: Case) -> None:
        executions = case.run.executions
        self.seen["nodes"] += len(case.run.expected)
        for count in executions.values():
            self.seen[f"executed {TIMES.get(count, f'{count} times')}"] += 1
        for complaint in case.complaints():
            self._complain(f"{case.name}: {complaint}")


async def in_chaos(folder: Path, seed: int, runs: int, concurrency: int) -> Chaos:
    """All of it, from the start of the server on."""
    server = RedisServer(folder / "redis", appendonly=False)
    settings = Settings("redis-streams", redis=server.url, queue="engines", idle_timeout=60_000)
    served = Workers(
        SERVED,
        folder=folder,
        processes=2,
        env=settings.environment,
        on_uvloop=bool(seed % 2),
    )
    embedded = Site(Settings("in-memory"), str(folder / "embedded.db"))
    remote, leased = Site(settings, str(folder / "remote.db")), Site(settings, server.url)
    sites = [(embedded, remote)[n % 2] if n % LEASES else leased for n in range(runs)]
    chaos = Chaos(folder, seed)
    with ExitStack() as stack:
        for part in (server, served):
            stack.callback(part.kill)
            part.start()
        await chaos.outlive(sites, concurrency)
    return chaos


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/chaos engines", description=__doc__)
    defaults = {"runs": 100, "seed": random.randrange(10**6), "concurrency": 2}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options, begin = parser.parse_args(), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    say(f"seed {options.seed}; logs in {folder}")
    chaos = asyncio.run(in_chaos(folder, **vars(options)))
    verdict = "WRONG" if chaos.wrong else "each run was ended, and nothing kept was executed again"
    say(f"seed {options.seed}, {time.monotonic() - begin:.0f} s, {chaos}: {verdict}")
    if chaos.wrong:
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
