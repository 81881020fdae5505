"""A run whose event loop ends under it, as after Ctrl-C."""

from __future__ import annotations

import asyncio

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    MemoryJournal,
    NodeBegan,
    NodeFailed,
    NodeFailedError,
    RunFinished,
    RunReader,
)
from taskiq_flow.engine.run_spec import OnError
from tests.recording import Recorder
from tests.waiting import until

COUNT = 20


async def wait_for_ever(number: int) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.parametrize("on_error", ["raise", "continue", "collect"])
def test_nodes_that_are_cancelled_with_all_tasks_of_their_loop_have_not_failed(
    on_error: OnError, *, is_held: bool
) -> None:
    """``asyncio.run`` cancels all asyncio tasks at its end: those of nodes, too, in any order."""
    recorder, journal = Recorder(), MemoryJournal()
    dag = DAGBuilder().node(wait_for_ever, inputs=["number"], map_over="number").build()
    engine = ExecutionEngine(
        InMemoryBroker(), dag, listeners=[recorder], journal=journal, on_error=on_error
    )
    inputs = {"number": range(COUNT)}

    async def main() -> None:
        if is_held:
            run: object = engine.start(inputs, run_id="r")
        else:
            run = asyncio.ensure_future(engine.execute(inputs, run_id="r"))
        await until(lambda: len(recorder.of(NodeBegan)) == COUNT, f"{run} has begun all nodes")

    asyncio.run(main())
    assert not recorder.of(NodeFailed)
    (finished,) = recorder.of(RunFinished)
    assert finished.outcome == "cancelled"
    assert asyncio.run(RunReader(journal).run("r")).status == "cancelled"


def test_a_node_that_cancels_itself_fails_in_a_task_that_was_cancelled_before() -> None:
    """Whoever swallows a cancellation may still run a graph."""

    async def cancel_itself() -> None:
        raise asyncio.CancelledError

    engine = ExecutionEngine(InMemoryBroker(), DAGBuilder().node(cancel_itself).build())

    async def run_when_cancelled() -> bool:
        try:
            return await asyncio.Event().wait()
        except asyncio.CancelledError:
            with pytest.raises(NodeFailedError, match="CancelledError"):
                await engine.execute({})
        return True

    async def main() -> bool:
        task = asyncio.ensure_future(run_when_cancelled())
        await asyncio.sleep(0)
        task.cancel()
        return await task

    assert asyncio.run(main())
