"""A short soak; `scripts/soak` has long ones, and those of the other systems."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.soak import soak


async def test_nothing_is_lost_while_workers_are_replaced_and_the_server_is_in_trouble(
    tmp_path: Path,
) -> None:
    counts = await soak("redis-streams", 10.0, 1, tmp_path, every=3.0)
    assert counts.complaints == []
    assert counts.happened["runs"] > 0
