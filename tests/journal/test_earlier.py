"""The run by which the time of the next one is estimated."""

from __future__ import annotations

from pathlib import Path

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, MemoryJournal, Recorder, RunReader
from taskiq_flow.journal import earlier
from taskiq_flow.journal.earlier import earlier_run
from taskiq_flow.views.time_left import EarlierRun


async def test_it_is_the_newest_run_of_the_graph_that_has_completed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = MemoryJournal()

    def work(numbers: list[int]) -> int:
        return 1 // len(numbers)

    def engine(name: str) -> ExecutionEngine:
        dag = DAGBuilder(name).node(abs, inputs={"x": "numbers"}, map_over="numbers")
        return ExecutionEngine(
            InMemoryBroker(), dag.node(work).build(), journal=journal, on_error="continue"
        )

    await engine("nightly").execute({"numbers": [1]}, run_id="r1")
    await engine("nightly").execute({"numbers": [1, 2]}, run_id="r2")
    await engine("other").execute({"numbers": [1, 2, 3]}, run_id="r3")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        await engine("nightly").execute({"numbers": []}, run_id="r4")
    reader = RunReader(journal)
    for run_id, elements in (("r4", 2), ("r2", 1)):
        found = await earlier_run(reader, "nightly", run_id)
        assert found is not None
        assert found.executions["abs"][1] == elements
        assert found.parallelism > 0
    assert await earlier_run(reader, "unknown", "r4") is None
    assert await earlier_run(reader, None, "r4") is None
    monkeypatch.setattr(earlier, "MOST_EVENTS", 3)
    assert await earlier_run(reader, "nightly", "r4") is None


async def test_a_recorded_run_is_found_by_the_name_of_its_graph() -> None:
    journal = MemoryJournal()
    for graph in ("nightly", "other"):
        dag = DAGBuilder(graph).node(abs, inputs={"x": "number"}).build()
        recorder = Recorder(journal, name="x")
        engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[recorder])
        await engine.execute({"number": 1}, run_id=graph)
    reader = RunReader(journal)
    assert [run.name for run in await reader.runs()] == ["x", "x"]
    found = await earlier_run(reader, "nightly", "r")
    assert found == EarlierRun.of(await reader.view("nightly"))
    assert await earlier_run(reader, "nightly", "nightly") is None
    assert await earlier_run(reader, "unknown", "r") is None


async def test_without_a_journal_there_is_none(tmp_path: Path) -> None:
    reader = RunReader(tmp_path / "runs.db")
    assert await earlier_run(reader, "nightly", "r1") is None
    assert list(tmp_path.iterdir()) == []
