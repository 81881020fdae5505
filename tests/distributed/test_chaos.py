"""A little of what ``scripts/chaos`` does at length."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.chaos import in_chaos, say

SEED, GRAPHS = 20, 24


async def test_every_run_ends_and_gives_what_it_should(tmp_path: Path) -> None:
    say(f"seed {SEED}")
    agent = await in_chaos(tmp_path, SEED, GRAPHS, workers=2, concurrency=4)
    assert agent.wrong == []
    assert agent.seen["runs"] == GRAPHS
    assert agent.seen["restarts"] == 1
    assert agent.seen["kills"] > 0
    assert agent.seen["drops"] > 0
