"""An engine is killed and its workers live on: what becomes of the tasks that it had sent.

``scripts/chaos engines`` kills many at random.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from tests.distributed.app import Settings, redis_client
from tests.distributed.conftest import Farm
from tests.resuming.app import PATH, SERVED, Death, Job, NodeOf
from tests.resuming.chaos import Chaos, Site
from tests.resuming.long_run import LongRun
from tests.resuming.nursery import Engine, Nursery
from tests.servers.workers import Workers
from tests.waiting import until

SLOTS = 2


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("nursery") / "log") as nursery:
        yield nursery


@pytest.fixture(scope="module")
def settings(farm: Farm) -> Iterator[Settings]:
    """A broker whose one worker has few slots, so that tasks wait in its queue."""
    settings = farm.settings("redis-streams", queue="killed-engines", idle_timeout=60_000)
    folder, env = farm.folder / "killed-engines", settings.environment
    with Workers(SERVED, folder=folder, max_async_tasks=SLOTS, env=env):
        yield settings


@pytest.fixture
def site(settings: Settings, tmp_path: Path) -> Site:
    return Site(settings, str(tmp_path / "runs.db"))


RunOf = Callable[[dict[str, list[str]]], LongRun]
"""Makes a run of tasks that wait until they are released; each node with those before it."""


@pytest.fixture
def run_of(site: Site, tmp_path: Path) -> Iterator[RunOf]:
    made: list[LongRun] = []

    def run_of(edges: dict[str, list[str]]) -> LongRun:
        nodes = [
            NodeOf("waits", name, [PATH, f"name of {name}", *before], [name])
            for name, before in edges.items()
        ]
        inputs = {f"name of {name}": name for name in edges}
        job = Job(tmp_path.name, nodes, inputs, site.journal, site.settings)
        made.append(LongRun(job, tmp_path / "run", {name: name for name in edges}))
        return made[-1]

    yield run_of
    for run in made:
        run.notes.release()  # whatever a test has left waiting


async def killed_in_flight(run: LongRun, nursery: Nursery, sent: Collection[str]) -> None:
    """Have an engine die when the journal says that these nodes were sent."""
    engine = await run.live(nursery)

    async def is_noted() -> bool:
        restored = await run.restored()
        return restored is not None and set(restored.in_flight) == set(sent)

    await until(is_noted, f"{sent} are in flight")
    await run.notes.until("begin", min(SLOTS, len(sent)))
    await run.killed(engine)


async def ended(run: LongRun, engine: Engine) -> None:
    """Read the run to its end, which is as it should be."""
    await engine.read()
    assert list(run.complaints()) == []


async def test_a_task_that_ends_while_no_engine_is_there_is_not_executed_again(
    run_of: RunOf, settings: Settings, nursery: Nursery
) -> None:
    run = run_of({"n0": [], "n1": ["n0"]})
    await killed_in_flight(run, nursery, ["n0"])
    run.notes.release()
    async with redis_client(settings) as client:
        await until(lambda: client.keys(f"{run.job.run_id}:n0:1.*"), "its result is there")
    assert run.notes.of("end") == ["n0"]
    await ended(run, await run.live(nursery))
    assert run.executions == {"n0": 1, "n1": 1}


async def test_a_task_that_still_runs_is_cancelled_and_executed_once_more(
    run_of: RunOf, nursery: Nursery
) -> None:
    run = run_of({"n0": [], "n1": ["n0"]})
    await killed_in_flight(run, nursery, ["n0"])
    engine = await run.live(nursery)
    await run.notes.until("cancel", 1)
    await run.notes.until("begin", 2)
    run.notes.release()
    await ended(run, engine)
    assert run.executions == {"n0": 2, "n1": 1}
    assert run.notes.of("end") == ["n0", "n1"]


async def test_what_a_dead_engine_has_left_in_the_queue_is_passed_over(
    run_of: RunOf, nursery: Nursery
) -> None:
    names = [f"n{number}" for number in range(3 * SLOTS)]
    run = run_of({name: [] for name in names})
    await killed_in_flight(run, nursery, names)
    begun = run.notes.of("begin")
    engine = await run.live(nursery)
    await run.notes.until("cancel", SLOTS)
    run.notes.release()
    await ended(run, engine)
    assert run.executions == {name: 1 + (name in begun) for name in names}
    assert sorted(run.notes.of("end")) == names


async def test_a_task_that_was_sent_and_not_noted_is_cancelled_as_well(
    run_of: RunOf, nursery: Nursery
) -> None:
    run = run_of({"n0": []})
    engine = await run.live(nursery, Death("while", "append", 1))
    await run.notes.until("begin", 1)
    await run.killed(engine)
    restored = await run.restored()
    assert restored is not None
    assert len(restored.sessions) == 1
    assert restored.in_flight == {}
    engine = await run.live(nursery)
    await run.notes.until("cancel", 1)
    await run.notes.until("begin", 2)
    run.notes.release()
    await ended(run, engine)
    assert run.notes.of("end") == ["n0"]


async def test_engines_of_random_graphs_are_killed_at_random_moments(
    site: Site, tmp_path: Path
) -> None:
    chaos = Chaos(tmp_path, seed=20)
    await chaos.outlive([site] * 4, concurrency=2)
    assert chaos.wrong == []
    assert chaos.seen["runs"] == 4
    assert chaos.seen["kills"] > 0
