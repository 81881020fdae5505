"""An engine's process is killed: whatever the moment, its run is resumed to the same end.

Each engine here is a process of its own, and dies by SIGKILL. ``scripts/chaos engines`` does this
at length, and tests/distributed/test_killed_engines.py with workers elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from property_tests.model import GraphSpec, NodeSpec, evaluate
from tests.distributed.app import Settings
from tests.resuming.app import Death
from tests.resuming.chaos import Chaos, Site, job_of
from tests.resuming.long_run import LongRun, integrity_of
from tests.resuming.nursery import Nursery

COUNT = 4
CHAIN = [f"n{number}" for number in range(COUNT)]


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("nursery") / "log") as nursery:
        yield nursery


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(Settings("in-memory"), str(tmp_path / "runs.db"))


@pytest.fixture
def chain(tmp_path: Path, site: Site) -> LongRun:
    """Each node waits for the one before it, so that the journal is written to in steps."""
    graph = GraphSpec(
        tuple(
            NodeSpec(number, name, name, (name,), tuple(CHAIN[:number][-1:]), seconds=5)
            for number, name in enumerate(CHAIN)
        )
    )
    return LongRun(job_of(graph, "chain", site), tmp_path / "chain", evaluate(graph).results)


async def killed(run: LongRun, nursery: Nursery, death: Death) -> int:
    """Have an engine die at that moment; how many pairs it has yielded."""
    engine = await run.live(nursery, death)
    await engine.read()
    assert engine.was_killed
    await run.killed(engine)
    assert integrity_of(run.job.journal) == "ok"
    return len(engine.pairs)


async def ended(run: LongRun, nursery: Nursery) -> None:
    """Have an engine end the run, which is as it should be and executes what was not kept."""
    begun = run.notes.of("begin")
    await run.finish(nursery)
    assert list(run.complaints()) == []
    assert run.notes.of("begin") == begun + CHAIN[len(run.kept[-1]) :]
    assert integrity_of(run.job.journal) == "ok"


@pytest.mark.parametrize("number", range(1, COUNT + 1))
async def test_a_result_that_was_not_written_is_computed_again(
    chain: LongRun, nursery: Nursery, number: int
) -> None:
    yielded = await killed(chain, nursery, Death("before", "result", number))
    assert yielded <= len(chain.kept[0]) < number
    await ended(chain, nursery)
    assert chain.executions[CHAIN[number - 1]] == 2


@pytest.mark.parametrize("number", range(1, COUNT + 1))
async def test_a_result_that_was_written_and_not_yielded_is_replayed(
    chain: LongRun, nursery: Nursery, number: int
) -> None:
    """With the last one, nothing is left to do but to say that the run has ended."""
    yielded = await killed(chain, nursery, Death("after", "result", number))
    assert yielded < number <= len(chain.kept[0])
    await ended(chain, nursery)
    assert chain.executions[CHAIN[number - 1]] == 1


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2])
async def test_a_kill_beside_any_write_loses_nothing_else(
    chain: LongRun, nursery: Nursery, when: Literal["before", "after"], number: int
) -> None:
    await killed(chain, nursery, Death(when, "append", number))
    await ended(chain, nursery)


@pytest.mark.parametrize(
    ("statement", "number"),
    [
        ("PRAGMA journal_mode", 1),
        ("CREATE TABLE chunks", 1),
        ("COMMIT", 1),  # the tables
        ("INSERT INTO runs", 1),
        ("INSERT INTO chunks", 1),
        ("COMMIT", 2),  # the run
    ],
)
async def test_a_run_that_was_about_to_be_noted_is_not_there_and_can_be_begun(
    chain: LongRun, nursery: Nursery, statement: str, number: int
) -> None:
    assert await killed(chain, nursery, Death("at", statement, number)) == 0
    assert await chain.restored() is None
    assert chain.executions == {}
    await ended(chain, nursery)


@pytest.mark.parametrize(
    ("statement", "number"),
    [
        ("UPDATE runs", 1),  # the lease
        ("INSERT INTO chunks", 2),
        ("COMMIT", 3),
        ("UPDATE runs", 2),
        ("INSERT INTO chunks", 3),
        ("COMMIT", 4),
    ],
)
async def test_what_was_being_written_is_there_whole_or_not_at_all(
    chain: LongRun, nursery: Nursery, statement: str, number: int
) -> None:
    assert await killed(chain, nursery, Death("at", statement, number)) <= len(chain.kept[0])
    await ended(chain, nursery)


async def test_what_no_journal_has_is_not_yielded_however_far_the_run_is(
    chain: LongRun, nursery: Nursery
) -> None:
    engine = await chain.live(nursery, Death("while", "append", 1))
    await chain.notes.until("begin", COUNT)
    await chain.killed(engine)
    assert engine.pairs == []
    assert chain.kept == [[]]
    await ended(chain, nursery)
    assert chain.executions == dict.fromkeys(CHAIN, 2)


async def test_engines_that_resume_are_killed_as_well(chain: LongRun, nursery: Nursery) -> None:
    await killed(chain, nursery, Death("after", "result", 1))
    await killed(chain, nursery, Death("before", "append", 1))
    await killed(chain, nursery, Death("after", "append", 1))
    await killed(chain, nursery, Death("before", "append", 2))
    await ended(chain, nursery)


async def test_engines_of_random_graphs_are_killed_at_random_moments(
    tmp_path: Path, site: Site
) -> None:
    chaos = Chaos(tmp_path, seed=20)
    await chaos.outlive([site] * 8, concurrency=2)
    assert chaos.wrong == []
    assert chaos.seen["runs"] == 8
    assert chaos.seen["kills"] > 0
