"""One contract, whichever broker carries it: embedded, or with worker processes of its own."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from taskiq import AsyncBroker, NoResultError

from taskiq_flow import (
    DAG,
    DAGBuilder,
    ExecutionEngine,
    MapReduce,
    NodeBegan,
    NodeCompleted,
    NodeFailedError,
    NodeFailure,
    NodeRetried,
    NodeSkipped,
    NodeStarted,
    RunFailedError,
    RunFinished,
    RunStarted,
    SerializationError,
    TaskLostError,
)
from taskiq_flow.processes.name import process_name
from tests.distributed import app
from tests.distributed.app import started, task
from tests.distributed.conftest import Farm
from tests.distributed.watching import Notes, inputs, many
from tests.recording import Recorder


def graph(broker: AsyncBroker) -> DAG:
    """load → (first, rest) → joined; load → fail → behind; load → point → shifted; empty."""
    builder = DAGBuilder().node(task(broker, app.load), output="words")
    builder.node(task(broker, app.cut), outputs=["first", "rest"])
    builder.node(task(broker, app.joined)).node(task(broker, app.fail))
    builder.node(task(broker, app.behind)).node(task(broker, app.empty))
    return builder.node(task(broker, app.point)).node(task(broker, app.shifted)).build()


async def test_values_failures_and_skips_are_the_same(any_broker: AsyncBroker) -> None:
    engine = ExecutionEngine(any_broker, graph(any_broker), on_error="collect")
    results = await engine.execute({"text": "a b c"}, run_id="all the same")
    failure, skip = results.pop("fail"), results.pop("behind")
    assert results == {
        "words": ["a", "b", "c"],
        "first": "a",
        "rest": ["b", "c"],
        "joined": "a-b-c",
        "empty": None,
        "point": app.Point(x=3),
        "shifted": 4,
    }
    assert isinstance(failure, NodeFailure)
    assert failure.task_id.startswith("all the same:fail:1.")
    assert repr(failure.error) == "LookupError('a')"
    assert failure.attempts == 1
    assert isinstance(skip, NodeSkipped)
    assert skip.because_of == ("fail",)


async def test_each_pair_comes_once_and_behind_those_it_depends_on(
    any_broker: AsyncBroker,
) -> None:
    dag = graph(any_broker)
    engine = ExecutionEngine(any_broker, dag, on_error="collect")
    names = [name async for name, _ in engine.execute_async({"text": "a b"})]
    assert sorted(names) == sorted(node.task_name for node in dag.nodes)
    for before, after in dag.edges:
        assert names.index(before.task_name) < names.index(after.task_name)


async def test_workers_run_on_the_event_loop_that_they_are_given(
    remote: AsyncBroker, remote_kind: str
) -> None:
    dag = DAGBuilder().node(task(remote, app.event_loop)).build()
    (loop,) = (await ExecutionEngine(remote, dag).execute({})).values()
    assert (loop == "uvloop") == app.Settings(remote_kind).on_uvloop


async def test_an_error_says_where_on_its_worker_it_was_raised(remote: AsyncBroker) -> None:
    dag = DAGBuilder().node(task(remote, app.fail)).build()
    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(remote, dag).execute({"words": ["a"]})
    (note,) = getattr(caught.value.__cause__, "__notes__", [""])
    first, *frames = note.splitlines()
    assert re.fullmatch(r"Traceback on worker \S+:\d+ \(most recent call last\):", first)
    assert process_name() not in first
    assert re.fullmatch(rf'  File "{re.escape(app.__file__)}", line \d+, in fail', frames[0])
    assert frames[1:] == ["    raise LookupError(words[0])"]


async def test_the_first_failure_ends_a_run(any_broker: AsyncBroker) -> None:
    builder = DAGBuilder().node(task(any_broker, app.load), output="words")
    dag = builder.node(task(any_broker, app.fail)).node(task(any_broker, app.behind)).build()
    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(any_broker, dag).execute({"text": "a"})
    assert isinstance(caught.value.__cause__, LookupError)
    assert caught.value.results == {"words": ["a"]}
    assert caught.value.skipped == ["behind"]


async def test_what_does_not_depend_on_a_failure_goes_on(any_broker: AsyncBroker) -> None:
    engine = ExecutionEngine(any_broker, graph(any_broker), on_error="continue")
    with pytest.raises(RunFailedError) as caught:
        await engine.execute({"text": "a b"})
    assert caught.value.results["joined"] == "a-b"
    assert list(caught.value.failures) == ["fail"]


async def test_listeners_are_told_the_same(any_broker: AsyncBroker, kind: str) -> None:
    recorder = Recorder()
    builder = DAGBuilder().node(task(any_broker, app.load), output="words")
    dag = builder.node(task(any_broker, app.point)).build()
    engine = ExecutionEngine(any_broker, dag, listeners=[recorder])
    await engine.execute({"text": "a b"})
    kinds = [type(event) for event in recorder.events]
    assert kinds == [
        RunStarted,
        *(NodeStarted, NodeBegan, NodeCompleted) * 2,
        RunFinished,
    ]
    assert [event.seq for event in recorder.events] == [*range(1, len(kinds) + 1)]
    assert recorder.events[-1].outcome == "completed"
    workers = {event.worker for event in recorder.of(NodeBegan)}
    assert (process_name() in workers) == (kind == "in-memory")
    machine = process_name().rpartition(":")[0]
    assert all(worker.startswith(f"{machine}:") for worker in workers)


async def test_a_wide_graph_loses_nothing(any_broker: AsyncBroker) -> None:
    builder = DAGBuilder().node(task(any_broker, app.double), name="n0", inputs=["start"])
    for number in range(1, 301):
        builder.node(task(any_broker, app.double), name=f"n{number}", inputs=["n0"])
    builder.node(task(any_broker, app.total), inputs=[f"n{number}" for number in range(1, 301)])
    results = await ExecutionEngine(any_broker, builder.build()).execute({"start": 1})
    assert results["total"] == 4 * 300


@pytest.mark.parametrize("limit", [1, 7])
async def test_a_limit_is_reached_and_kept_and_nothing_is_dropped(
    any_broker: AsyncBroker, tmp_path: Path, limit: int
) -> None:
    recorder, notes = Recorder(), Notes(tmp_path)
    dag = many(any_broker, app.held, 20)
    engine = ExecutionEngine(any_broker, dag, limit, listeners=[recorder])
    async with asyncio.TaskGroup() as group:
        running = group.create_task(engine.execute(inputs(notes, 20, 0.0)))
        await notes.until("begin", limit)  # none of them ends before all of these are there
        notes.release()
    assert len(running.result()) == 20
    in_flight = most = 0
    for event in recorder.events:
        in_flight += isinstance(event, NodeStarted) - isinstance(event, NodeCompleted)
        most = max(most, in_flight)
    assert most == limit


async def test_map_and_reduce(any_broker: AsyncBroker) -> None:
    mapped = await MapReduce.map(any_broker, task(any_broker, app.double), range(250))
    reduced = await MapReduce.reduce(any_broker, task(any_broker, app.echo), mapped, "value")
    expected = [2 * number for number in range(250)]
    assert (await reduced.wait_result()).raise_for_error().return_value == expected


async def test_no_transport_changes_a_set(any_broker: AsyncBroker) -> None:
    builder = DAGBuilder().node(task(any_broker, app.set_of), inputs=["words"], output="found")
    dag = builder.node(task(any_broker, app.echo), inputs=["found"], output="sent").build()
    results = await ExecutionEngine(any_broker, dag).execute({"words": ["a"]})
    assert results == {"found": {"a"}, "sent": {"a"}}


@pytest.mark.parametrize("times", [1, 2])
async def test_a_retry_middleware_has_one_outcome(
    any_broker: AsyncBroker, tmp_path: Path, times: int
) -> None:
    recorder = Recorder()
    dag = DAGBuilder().node(task(any_broker, app.fails_at_first)).build()
    engine = ExecutionEngine(any_broker, dag, listeners=[recorder])
    given = {"path": str(tmp_path / "attempts"), "times": times}
    assert await engine.execute(given) == {"fails_at_first": times + 1}
    assert [event.attempt for event in recorder.of(NodeRetried)] == list(range(2, times + 2))


async def test_an_attempt_that_taskiq_would_save_is_no_outcome(
    remote_kind: str, farm: Farm, tmp_path: Path
) -> None:
    settings = farm.settings(remote_kind, "saved", retries=True, no_result_on_retry=False)
    farm.serve(settings)
    async with started(settings) as broker:
        dag = DAGBuilder().node(task(broker, app.fails_at_first)).build()
        given = {"path": str(tmp_path / "attempts"), "times": 2}
        assert await ExecutionEngine(broker, dag).execute(given) == {"fails_at_first": 3}


async def test_a_retry_middleware_that_gives_up_is_one_failure(
    any_broker: AsyncBroker, tmp_path: Path
) -> None:
    dag = DAGBuilder().node(task(any_broker, app.fails_at_first)).build()
    path = tmp_path / "attempts"
    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(any_broker, dag).execute({"path": str(path), "times": 9})
    assert repr(caught.value.__cause__) == "LookupError(3)"
    assert caught.value.attempts == len(path.read_text(encoding="utf-8").split()) == 3


async def test_a_task_without_a_result_has_failed(any_broker: AsyncBroker) -> None:
    dag = DAGBuilder().node(task(any_broker, app.refuses_result)).build()
    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(any_broker, dag).execute()
    assert isinstance(caught.value.__cause__, NoResultError)


async def test_a_task_that_requeues_itself_is_waited_for(
    any_broker: AsyncBroker, tmp_path: Path
) -> None:
    dag = DAGBuilder().node(task(any_broker, app.requeues_once)).build()
    results = await ExecutionEngine(any_broker, dag).execute({"path": str(tmp_path / "attempts")})
    assert results == {"requeues_once": "done"}


@pytest.mark.parametrize("where", ["pre_execute", "post_execute"])
async def test_a_middleware_of_the_worker_that_raises(any_broker: AsyncBroker, where: str) -> None:
    dag = DAGBuilder().node(task(any_broker, app.breaks_middleware)).build()
    engine = ExecutionEngine(any_broker, dag)
    with pytest.raises(NodeFailedError) as caught:
        await engine.execute({"breaks": where})
    cause = caught.value.__cause__
    assert isinstance(cause, (TaskLostError, RuntimeError))
    assert f"broken {'before' if where == 'pre_execute' else 'after'} it was executed" in str(cause)


async def test_a_result_that_cannot_be_stored_names_node_and_type(remote: AsyncBroker) -> None:
    dag = DAGBuilder().node(task(remote, app.unstorable), name="odd").build()
    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(remote, dag).execute()
    cause = caught.value.__cause__
    assert isinstance(cause, SerializationError)
    assert cause.task_name == "odd"
    assert "the result of node 'odd' is not carried: a builtins.object cannot be" in str(cause)


async def test_several_outputs_of_the_wrong_shape_fail_their_node(any_broker: AsyncBroker) -> None:
    dag = DAGBuilder().node(task(any_broker, app.load), outputs=["a", "b", "c"]).build()
    with pytest.raises(NodeFailedError, match="returned a list of 2"):
        await ExecutionEngine(any_broker, dag).execute({"text": "x y"})
