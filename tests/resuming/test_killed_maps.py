"""An engine's process is killed in the middle of a map, while its source is still being read."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import Lease, MapReduce, MapReduceResult, SqliteJournal
from taskiq_flow.journal.history import restore_run
from taskiq_flow.journal.protocol import EventBatch

ITEMS = 40


class Deadly(SqliteJournal):
    """Kills its process before or after a batch is written, by its number."""

    def __init__(self, path: Path, moment: str, number: int) -> None:
        super().__init__(path)
        self._moment, self._left = moment, number

    async def append(
        self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
    ) -> None:
        self._left -= 1
        if self._moment == "before" and not self._left:
            os.kill(os.getpid(), signal.SIGKILL)
        await super().append(run_id, lease, chunk, batch)
        if self._moment == "after" and not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


async def mapped(journal: SqliteJournal, notes: Path, *, resume: bool) -> MapReduceResult[Any]:
    """A map over a generator, whose items are noted when their task begins."""

    async def square(item: int) -> int:
        with notes.open("a", encoding="utf-8") as file:
            file.write(f"{item}\n")
        await asyncio.sleep(0.001)
        return item * item

    items = (number for number in range(ITEMS))
    return await MapReduce.map(
        InMemoryBroker(), square, items, max_parallel=4, journal=journal, run_id="m", resume=resume
    )


async def begin(folder: Path, moment: str, number: int) -> None:
    """Map, and die of it."""
    journal = Deadly(folder / "runs.db", moment, number)
    await (await mapped(journal, folder / "notes", resume=False)).wait_result()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 4])
async def test_a_map_whose_process_was_killed_goes_on(
    tmp_path: Path, moment: str, number: int
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "tests.resuming.test_killed_maps",
            str(tmp_path),
            moment,
            str(number),
        ),
        cwd=Path(__file__).parents[2],
    )
    assert await process.wait() == -signal.SIGKILL
    journal = SqliteJournal(tmp_path / "runs.db")
    kept = (await restore_run(journal, "m")).results
    assert len(kept) < ITEMS
    notes = tmp_path / "notes"
    notes.touch()
    before = len(notes.read_text("utf-8").splitlines())
    result = await (await mapped(journal, notes, resume=True)).wait_result()
    assert result.raise_for_error().return_value == [number**2 for number in range(ITEMS)]
    lines = notes.read_text("utf-8").splitlines()
    assert max(Counter(lines).values()) <= 2
    again = {f"mapped[{item}]" for item in lines[before:]}
    assert again == {f"mapped[{number}]" for number in range(ITEMS)} - set(kept)
    await journal.aclose()


if __name__ == "__main__":
    asyncio.run(begin(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
