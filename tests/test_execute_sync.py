"""Runs from code without ``async``, and runs that begin or continue, as the journal says."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from taskiq import InMemoryBroker, TaskiqEvents, TaskiqState

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    InputConflictError,
    NodeFailedError,
    RunCancelledError,
    RunLockedError,
    SqliteJournal,
)
from taskiq_flow.journal.protocol import Lease
from tests.commands import Scripts


def watched() -> tuple[InMemoryBroker, list[str]]:
    broker, seen = InMemoryBroker(), list[str]()

    @broker.on_event(TaskiqEvents.WORKER_STARTUP)
    async def up(_: TaskiqState) -> None:
        seen.append("up")

    @broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
    async def down(_: TaskiqState) -> None:
        seen.append("down")

    return broker, seen


def double(n: int) -> int:
    return 2 * n


DAG = DAGBuilder().node(double).build()


class TestExecuteSync:
    def test_it_starts_the_broker_and_shuts_it_down_each_time(self) -> None:
        broker, seen = watched()
        engine = ExecutionEngine(broker, DAG)
        for number in range(3):
            assert engine.execute_sync({"n": number}) == {"double": 2 * number}
        assert seen == ["up", "down"] * 3

    async def test_within_a_running_loop_it_has_a_thread_of_its_own(self) -> None:
        broker, _ = watched()
        names = []

        async def where() -> None:
            names.append(threading.current_thread().name)

        dag = DAGBuilder().node(where).build()
        ExecutionEngine(broker, dag).execute_sync()
        assert names != [threading.current_thread().name]

    async def test_a_broker_that_is_started_is_left_as_it_is(self) -> None:
        broker, seen = watched()
        engine = ExecutionEngine(broker, DAG)
        await broker.startup()
        assert engine.execute_sync({"n": 1}) == {"double": 2}
        assert seen == ["up"]
        await broker.shutdown()
        assert seen == ["up", "down"]

    def test_an_error_is_raised_and_the_broker_shut_down(self) -> None:
        broker, seen = watched()

        def fail() -> None:
            raise ValueError("broken")

        with pytest.raises(NodeFailedError, match="broken"):
            ExecutionEngine(broker, DAGBuilder().node(fail).build()).execute_sync()
        assert seen == ["up", "down"]

    def test_it_is_cancelled_from_another_thread(self) -> None:
        broker, _ = watched()
        began = threading.Event()

        async def wait() -> None:
            began.set()
            await asyncio.Event().wait()

        engine = ExecutionEngine(broker, DAGBuilder().node(wait).build())

        def cancel() -> None:
            began.wait(10)
            engine.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(RunCancelledError):
            engine.execute_sync()
        thread.join(10)


class TestResumeOrBegin:
    async def test_a_run_begins_or_continues(self, broker: InMemoryBroker, tmp_path: Path) -> None:
        calls: list[str] = []

        def first(n: int) -> int:
            calls.append("first")
            return n

        def second(first: int) -> int:
            calls.append("second")
            if len(calls) < 3:
                raise OSError
            return first

        dag = DAGBuilder().node(first).node(second).build()
        engine = ExecutionEngine(broker, dag, journal=SqliteJournal(tmp_path / "runs.db"))
        with pytest.raises(NodeFailedError):
            await engine.execute({"n": 1}, run_id="r", resume=True)
        for inputs in ({"n": 1}, None):
            results = await engine.execute(inputs, run_id="r", resume=True)
            assert results == {"first": 1, "second": 1}
        assert calls == ["first", "second", "second"]
        await engine.journal.aclose()

    async def test_other_inputs_or_outputs_are_an_error(
        self, broker: InMemoryBroker, tmp_path: Path
    ) -> None:
        engine = ExecutionEngine(broker, DAG, journal=SqliteJournal(tmp_path / "runs.db"))
        await engine.execute({"n": 1}, run_id="r", resume=True)
        with pytest.raises(InputConflictError, match="begun with other inputs") as caught:
            await engine.execute({"n": 2}, run_id="r", resume=True)
        assert caught.value.keys == ["n"]
        with pytest.raises(InputConflictError, match="other outputs="):
            await engine.execute({"n": 1}, run_id="r", resume=True, outputs=["double"])
        await engine.execute({"n": 1}, run_id="r", resume=True)  # nothing holds its lease
        await engine.journal.aclose()

    def test_without_a_run_id_it_is_refused_at_once(self, broker: InMemoryBroker) -> None:
        with pytest.raises(ValueError, match="resume=True continues a run by its run_id"):
            ExecutionEngine(broker, DAG).execute_async({"n": 1}, resume=True)


SCRIPT = """
import dataclasses, sys
from taskiq import InMemoryBroker
from taskiq_flow import DAGBuilder, ExecutionEngine

@dataclasses.dataclass
class Page:
    text: str

def load(n: int) -> Page:
    return Page("x" * n)

def size(load: Page) -> int:
    if sys.argv[1] == "fail":
        raise OSError
    return len(load.text)

dag = DAGBuilder().node(load).node(size).build()
engine = ExecutionEngine(InMemoryBroker(), dag, journal="runs.db")
print(engine.execute_sync({"n": 3}, run_id="r", resume=True))
"""


def test_a_script_resumes_what_it_has_begun_with_classes_of_its_own(
    tmp_path: Path, scripts: Scripts
) -> None:
    assert "OSError" in scripts.run(SCRIPT, "fail", cwd=tmp_path).errors
    resumed = scripts.output(SCRIPT, "go on", cwd=tmp_path)
    assert resumed == "{'load': Page(text='xxx'), 'size': 3}\n"


class TestWaitingForALease:
    async def begun(self, broker: InMemoryBroker, path: Path) -> tuple[ExecutionEngine, Lease]:
        journal = SqliteJournal(path / "runs.db")
        engine = ExecutionEngine(broker, DAG, journal=journal)
        await engine.execute({"n": 1}, run_id="r")
        lease = Lease("another engine")
        await journal.acquire("r", lease)
        return engine, lease

    async def test_a_run_continues_when_its_lease_is_free(
        self, broker: InMemoryBroker, tmp_path: Path
    ) -> None:
        engine, lease = await self.begun(broker, tmp_path)
        async with aclosing(engine.resume("r", wait=60.0)) as pairs:
            waiting = asyncio.ensure_future(anext(pairs))
            done, _ = await asyncio.wait([waiting], timeout=0.5)
            assert not done
            await engine.journal.release("r", lease)
            assert await waiting == ("double", 2)
        await engine.journal.aclose()

    async def test_it_waits_no_longer_than_it_was_told(
        self, broker: InMemoryBroker, tmp_path: Path
    ) -> None:
        engine, _ = await self.begun(broker, tmp_path)
        for wait in (0.0, 0.3):
            began = asyncio.get_running_loop().time()
            with pytest.raises(RunLockedError):
                await anext(engine.resume("r", wait=wait))
            assert asyncio.get_running_loop().time() - began >= wait
        await engine.journal.aclose()


async def test_a_wrong_wait_is_refused_at_once(broker: InMemoryBroker) -> None:
    wrong: Any = "3s"
    with pytest.raises(TypeError, match="wait is '3s'"):
        ExecutionEngine(broker, DAG).resume("r", wait=wrong)
