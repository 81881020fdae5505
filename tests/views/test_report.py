"""Reports: where the time of a run went, checked on runs whose times are known."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    DAGBuilder,
    ElementsKnown,
    Event,
    ExecutionEngine,
    NodeBegan,
    NodeCompleted,
    NodeFailed,
    NodeRetried,
    NodeStarted,
    RunFinished,
    RunReport,
    RunStarted,
    RunView,
    TaskLostError,
)
from taskiq_flow.listeners.texts import node_text
from taskiq_flow.views.report import MOST_LISTED
from tests.views.test_run_view import ODD, began, completed, retried, sent, started, view_of
from tests.virtual_clock import virtually


class Viewing:
    def __init__(self) -> None:
        self.view = RunView()

    def on_event(self, event: object) -> None:
        self.view.apply(event)  # type: ignore[arg-type]


def diamond() -> DAG:
    """load → (slow, tiny) → save, of 1, 3, 1 and 2 seconds."""

    async def load() -> int:
        await asyncio.sleep(1)
        return 1

    async def slow(load: int) -> int:
        await asyncio.sleep(3)
        return load

    async def tiny(load: int) -> int:
        await asyncio.sleep(1)
        return load

    async def save(slow: int, tiny: int) -> int:
        await asyncio.sleep(2)
        return slow + tiny

    return DAGBuilder().node(load).node(slow).node(tiny).node(save).build()


@virtually
async def test_a_real_run_whose_times_are_known() -> None:
    listener = Viewing()
    await ExecutionEngine(InMemoryBroker(), diamond(), listeners=[listener]).execute(run_id="r")
    report = RunReport.of(listener.view)
    assert report.critical_path == ("load", "slow", "save")
    assert report.seconds == pytest.approx(6)
    assert report.ideal_seconds == pytest.approx(6)
    assert report.parallelism == pytest.approx(7 / 6)
    assert {name: times.running for name, times in report.nodes.items()} == {
        "load": 1,
        "slow": 3,
        "tiny": 1,
        "save": 2,
    }
    assert report.sentence == (
        "6.000 s of 6.000 s went into running load -> slow -> save, of which slow took 3.000 s."
    )


@virtually
async def test_a_limit_shows_as_waiting() -> None:
    async def step(**_: int) -> int:
        await asyncio.sleep(1)
        return 1

    builder = DAGBuilder()
    for number in range(4):
        builder.node(step, name=f"n{number}")
    listener = Viewing()
    await ExecutionEngine(InMemoryBroker(), builder.build(), 1, listeners=[listener]).execute()
    report = RunReport.of(listener.view)
    assert report.nodes["n3"].waiting == pytest.approx(3)
    assert report.seconds == pytest.approx(4)
    assert report.ideal_seconds == pytest.approx(1)
    assert report.sentence.startswith(
        "3.000 s of 4.000 s went into waiting before n3 could be sent: for a place under max_p"
    )


def test_times_add_up_to_what_the_run_took() -> None:
    view = view_of(
        started("a", "b", edges={"b": ("a",)}),
        *(sent("a", 0.25), began("a", 1.0), retried("a", 4.0, 2, delay=0.5), began("a", 4.5, 2)),
        *(completed("a", 6.0, attempt=2), sent("b", 6.0), began("b", 6.5), completed("b", 7.0)),
        RunFinished("r", 7.0, "completed", None),
    )
    report = RunReport.of(view)
    total = sum(n.waiting + n.queued + n.running for n in report.nodes.values())
    assert total == pytest.approx(report.seconds, abs=0.001)
    assert report.nodes["a"].attempts == 2


def test_too_few_workers_show_as_queued() -> None:
    view = view_of(
        *(started("a"), sent("a", 0.0), began("a", 9.0), completed("a", 10.0)),
        RunFinished("r", 10.0, "completed", None),
    )
    assert RunReport.of(view).sentence == (
        "9.000 s of 10.000 s passed while a was queued: tasks waited for a worker; more workers, "
        "or fewer other tasks on them, would help."
    )


def test_a_killed_worker_is_what_held_the_run_back() -> None:
    view = view_of(
        *(started("a"), sent("a", 0.0), began("a", 1.0)),
        NodeBegan("r", 8.0, "a", "", "host:8"),
        *(completed("a", 10.0), RunFinished("r", 10.0, "completed", None)),
    )
    assert RunReport.of(view).sentence == (
        "7.000 s of 10.000 s were lost in executions of a whose worker was killed or cut off, "
        "until another one began the task."
    )


def test_a_killed_worker_of_an_element_is_what_held_the_run_back() -> None:
    view = view_of(started("m", mapped={"m": 1}), ElementsKnown("r", 0.0, "m", 2))
    for index in (0, 1):
        view.apply(NodeStarted("r", 0.0, f"m[{index}]", "", index))
        view.apply(NodeBegan("r", 0.0, f"m[{index}]", "", "host:7", index))
    view.apply(NodeCompleted("r", 1.0, "m[0]", "", 7, index=0, attempt=1))
    view.apply(NodeBegan("r", 8.0, "m[1]", "", "host:8", 1))
    view.apply(NodeCompleted("r", 10.0, "m[1]", "", 7, index=1, attempt=1))
    view.apply(RunFinished("r", 10.0, "completed", None))
    assert RunReport.of(view).sentence.startswith(
        "8.000 s of 10.000 s were lost in executions of m "
    )


def test_attempts_that_were_repeated_are_what_held_the_run_back() -> None:
    error = TaskLostError("no worker has answered", task_name="a")
    view = view_of(
        *(started("a"), sent("a", 0.0), began("a", 1.0)),
        NodeRetried("r", 9.0, "a", "", 2, error),
        *(began("a", 9.0, 2), completed("a", 10.0, attempt=2)),
        RunFinished("r", 10.0, "completed", None),
    )
    assert RunReport.of(view).sentence == (
        "9.000 s of 10.000 s went into running a, 8.000 s of that in attempts that were repeated, "
        "after a TaskLostError."
    )


def test_a_report_says_how_the_run_took_errors_unless_the_first_one_ended_it() -> None:
    for on_error, heading in (("collect", ', with on_error="collect"'), ("raise", "")):
        view = view_of(
            RunStarted("r", 0.0, ("a",), on_error=on_error),
            *(sent("a", 0.0), completed("a", 1.0), RunFinished("r", 1.0, "completed", None)),
        )
        assert next(RunReport.of(view).lines()) == f"run r: completed in 1.000 s{heading}"


def test_a_mapped_node_counts_with_its_longest_element() -> None:
    view = view_of(started("m", mapped={"m": 1}), ElementsKnown("r", 0.0, "m", 2))
    for index, seconds in enumerate([1.0, 3.0]):
        name = f"m[{index}]"
        view.apply(NodeStarted("r", 0.0, name, "", index))
        view.apply(NodeBegan("r", 0.0, name, "", "host:7", index))
        view.apply(NodeCompleted("r", seconds, name, "", 7, index=index, attempt=1))
    view.apply(RunFinished("r", 3.0, "completed", None))
    report = RunReport.of(view)
    assert (report.ideal_seconds, report.nodes["m"].running) == (3.0, 4.0)
    assert (report.nodes["m"].elements, report.nodes["m"].attempts) == (2, 2)
    assert report.sentence == "3.000 s of 3.000 s went into running m."


def test_a_run_of_which_nothing_is_known_has_a_report() -> None:
    report = RunReport.of(RunView())
    assert (report.seconds, report.parallelism, report.critical_path) == (0.0, 0.0, ())
    report.print(io.StringIO())
    assert report.sentence == "No node has ended yet."


def test_the_report_of_a_run_that_goes_on_has_what_has_happened() -> None:
    view = view_of(started("a", "b"), sent("a", 0.0), began("a", 1.0), completed("a", 2.0))
    report = RunReport.of(view)
    assert (report.status, report.seconds) == ("running", 2.0)
    assert [node.state for node in report.nodes.values()] == ["completed", "pending"]


def test_of_a_run_that_goes_on_the_node_that_is_in_flight_for_longest_is_named() -> None:
    view = view_of(
        started("a", "b", "c", edges={"b": ("a",), "c": ("a",)}),
        *(sent("a", 0.0), began("a", 0.0), completed("a", 1.0)),
        *(sent("b", 1.0), began("b", 1.0), sent("c", 2.0), began("c", 9.0)),
    )
    assert RunReport.of(view).sentence == (
        "8.000 s of 9.000 s have passed since b was sent; it goes on."
    )
    view.note_status("interrupted")
    assert RunReport.of(view).sentence == (
        "8.000 s of 9.000 s passed before, between and after the times of a."
    )


def test_of_many_nodes_those_that_took_longest_are_printed() -> None:
    names = [f"n{number}" for number in range(MOST_LISTED + 2)]
    view = view_of(RunStarted("r", 0.0, tuple(names)))
    for number, name in enumerate(names):
        view.apply(sent(name, 0.0))
        view.apply(NodeRetried("r", 0.0, name, "", 2, ODD))
        view.apply(completed(name, float(number), attempt=2))
    text = io.StringIO()
    RunReport.of(view).print(text)
    printed = text.getvalue()
    assert "\n  n0 " not in printed
    assert "2 more nodes took less time" in printed
    last = next(line for line in printed.splitlines() if "n21  " in line)
    assert last.split() == ["*", "n21", "completed", "2", "0.000", "0.000", "21.000"]
    assert not any(line != line.rstrip() for line in printed.splitlines())


def test_maps_that_run_beside_each_other_do_not_count_twice() -> None:
    view = view_of(started("m", "n", mapped={"m": 1, "n": 1}, edges={"n": ("m",)}))
    for at, name, until in ((0.0, "m", 6.0), (1.0, "n", 8.0)):
        view.apply(ElementsKnown("r", at, name, 1))
        view.apply(NodeStarted("r", at, f"{name}[0]", "", 0))
        view.apply(NodeBegan("r", at, f"{name}[0]", "", "host:7", 0))
        view.apply(NodeCompleted("r", until, f"{name}[0]", "", 7, index=0, attempt=1))
    view.apply(RunFinished("r", 8.0, "completed", None))
    assert RunReport.of(view).sentence == (
        "8.000 s of 8.000 s went into running m -> n, of which m took 6.000 s."
    )


@virtually
async def test_what_runs_at_once_is_not_ideally_longer_than_the_run() -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(20)
            yield number

    async def slow(number: int) -> int:
        await asyncio.sleep(20)
        return number

    view = RunView()
    dag = DAGBuilder().node(numbers).node(slow, inputs=["numbers"], map_over="numbers").build()
    run = ExecutionEngine(InMemoryBroker(), dag).start()
    async for event in run.events():
        view.apply(event)
    report = RunReport.of(view)
    assert report.critical_path == ("numbers", "slow")
    assert report.ideal_seconds <= report.seconds


def test_one_path_is_in_the_sentence_the_table_and_the_ideal_time() -> None:
    view = view_of(started("long", "one", "two"))
    for name, at, until in (("long", 0.0, 2.0), ("one", 2.0, 3.5), ("two", 3.5, 5.0)):
        for event in (sent(name, at), began(name, at), completed(name, until)):
            view.apply(event)
    view.apply(RunFinished("r", 5.0, "completed", None))
    report = RunReport.of(view)  # "two" has ended last, and "long" is the critical path
    assert (report.critical_path, report.ideal_seconds) == (("long",), 2.0)
    assert report.sentence.startswith(
        "3.000 s of 5.000 s went into waiting before long or nodes beside it could be sent: for a "
    )


def test_what_a_map_ran_beside_the_node_before_it_counts_once() -> None:
    early, late = (NodeStarted("r", 10.0, "m[0]", "", 0), NodeStarted("r", 60.0, "m[1]", "", 1))
    view = view_of(
        started("items", "m", mapped={"m": 1}, edges={"m": ("items",)}),
        *(sent("items", 0.0), began("items", 0.0), early),
        NodeCompleted("r", 55.0, "m[0]", "", 7, index=0, attempt=1),
        *(completed("items", 60.0), late, ElementsKnown("r", 60.0, "m", 2)),
        NodeCompleted("r", 70.0, "m[1]", "", 7, index=1, attempt=1),
        RunFinished("r", 70.0, "completed", None),
    )
    report = RunReport.of(view)
    assert report.critical_path == ("items", "m")
    assert report.ideal_seconds == 70.0
    assert report.sentence == (
        "70.000 s of 70.000 s went into running items -> m, of which items took 60.000 s."
    )


def test_elements_that_wait_for_workers_show_as_queued() -> None:
    view = view_of(started("m", mapped={"m": 1}), ElementsKnown("r", 0.0, "m", 3))
    for index in range(3):
        view.apply(NodeStarted("r", 0.0, f"m[{index}]", "", index))
    for index in range(3):
        view.apply(NodeBegan("r", 2.0 * index, f"m[{index}]", "", "host:7", index))
        view.apply(
            NodeCompleted("r", 2.0 * index + 2, f"m[{index}]", "", 7, index=index, attempt=1)
        )
    view.apply(RunFinished("r", 6.0, "completed", None))
    assert RunReport.of(view).sentence.startswith(
        "4.000 s of 6.000 s passed while m was queued: tasks waited for a worker; more workers"
    )


def test_a_run_that_went_on_without_its_nodes_says_so() -> None:
    view = view_of(started("a"), sent("a", 0.0), completed("a", 1.0))
    view.apply(RunFinished("r", 9.0, "completed", None))
    assert RunReport.of(view).sentence == (
        "8.000 s of 9.000 s passed before, between and after the times of a."
    )


def elements_of(name: str, *times: tuple[float, float, float]) -> list[Event]:
    """The events of the elements of a mapped node, by when each was sent, began and ended."""
    events: list[Event] = [ElementsKnown("r", 0.0, name, len(times))]
    for index, (at, begun, until) in enumerate(times):
        one = f"{name}[{index}]"
        events.append(NodeStarted("r", at, one, "", index))
        events.append(NodeBegan("r", begun, one, "", "host:7", index))
        events.append(NodeCompleted("r", until, one, "", 7, index=index, attempt=1))
    return sorted(events, key=lambda event: event.at)


def test_elements_that_wait_for_threads_show_as_queued_in_the_table_and_in_the_sentence() -> None:
    """Eight may run at once, and the broker has four threads."""
    begun = [n // 4 for n in range(32)]
    sent = [max(0, begun[n] - 1) if n >= 4 else 0 for n in range(32)]
    times = [(at, float(start), start + 1.0) for at, start in zip(sent, begun, strict=True)]
    view = view_of(
        RunStarted("r", 0.0, ("slow",), mapped={"slow": 1}, in_memory=True),
        *elements_of("slow", *times),
        RunFinished("r", 8.0, "completed", None),
    )
    report = RunReport.of(view)
    assert (report.nodes["slow"].waiting, report.nodes["slow"].queued) == (0.0, 28.0)
    assert report.sentence == (
        "7.000 s of 8.000 s passed while slow was queued: tasks waited for a thread of the "
        "InMemoryBroker, which has 4 unless it is made with sync_tasks_pool_size=, for a process "
        "under in_process(limit=), or, if they are async, for the event loop."
    )


def sentence_of_a_generator(times: list[tuple[float, float, float]]) -> str:
    """What held up a run that maps over the items of ``paths``. ``times``: of ``hashed``."""
    view = view_of(
        started("paths", "hashed", mapped={"hashed": 1}, edges={"hashed": ("paths",)}),
        *(sent("paths", 0.0), began("paths", 0.0)),
        *elements_of("hashed", *times)[:-1],
        completed("paths", 7.0),
        NodeCompleted("r", 8.0, "hashed[7]", "", 7, index=7, attempt=1),
        RunFinished("r", 8.0, "completed", None),
    )
    return RunReport.of(view).sentence


def test_a_generator_that_waited_for_its_items_to_be_taken_does_not_take_the_blame() -> None:
    """Its items were there at once; one element of ``hashed`` runs at a time."""
    sentence = sentence_of_a_generator([(0.0, n, n + 1.0) for n in map(float, range(8))])
    assert sentence == (
        "8.000 s of 8.000 s went into running paths -> hashed, of which paths took 7.000 s while "
        "elements of hashed were queued for 7.000 s: tasks waited for a worker; more workers, or "
        "fewer other tasks on them, would help."
    )


def test_a_generator_whose_items_are_taken_at_once_took_the_time_itself() -> None:
    sentence = sentence_of_a_generator([(n, n + 0.125, n + 1.0) for n in map(float, range(8))])
    assert sentence.endswith("-> hashed, of which paths took 7.000 s.")


def test_a_map_is_not_held_back_by_the_map_behind_it() -> None:
    mapped, edges = {"read": 1, "hashed": 1}, {"hashed": ("read",)}
    elements = elements_of("read", (0.0, 0.0, 1.0), (0.0, 0.0, 8.0))
    behind = elements_of("hashed", (1.0, 7.0, 7.5), (8.0, 8.0, 8.5))
    view = view_of(
        started("read", "hashed", mapped=mapped, edges=edges),
        *sorted([*elements, *behind], key=lambda event: event.at),
        RunFinished("r", 8.5, "completed", None),
    )
    assert RunReport.of(view).sentence.endswith("-> hashed, of which read took 8.000 s.")


def test_an_element_that_failed_after_it_had_run_longest_is_named() -> None:
    error = TaskLostError("it kills its worker", task_name="facts[1]")
    view = view_of(
        started("facts", "total", mapped={"facts": 1}, edges={"total": ("facts",)}),
        *elements_of("facts", (0.0, 0.0, 1.0), (0.0, 0.0, 9.0))[:-1],
        NodeFailed("r", 9.0, "facts[1]", "", error, 1, index=1),
        *(sent("total", 9.0), began("total", 9.0), completed("total", 10.0)),
        RunFinished("r", 10.0, "completed", None),
    )
    assert RunReport.of(view).sentence == (
        "10.000 s of 10.000 s went into running facts -> total, of which facts[1] took 9.000 s "
        "until it failed with TaskLostError."
    )


def test_elements_that_begin_as_soon_as_they_are_sent_wait_for_a_place() -> None:
    view = view_of(
        started("slow", mapped={"slow": 1}),
        *elements_of("slow", *[(n, n + 0.125, n + 1.0) for n in map(float, range(8))]),
        RunFinished("r", 8.0, "completed", None),
    )
    report = RunReport.of(view)
    assert report.sentence.startswith("6.125 s of 8.000 s went into waiting before")
    assert report.nodes["slow"].waiting == 6.125


def test_a_run_on_an_in_memory_broker_says_so() -> None:
    listener = Viewing()
    dag = DAGBuilder().node(abs, inputs=["number"]).build()
    ExecutionEngine(InMemoryBroker(), dag, listeners=[listener]).execute_sync({"number": 7})
    assert listener.view.in_memory


def test_a_result_of_the_journal_took_no_time_and_is_on_no_path() -> None:
    """In a rerun of "write", "read" ran again beside it, and "total" is from the journal."""
    view = view_of(
        started("read", "total", "write", edges={"total": ("read",), "write": ("total",)}),
        NodeCompleted("r", 0.25, "total", "", 30, "journal"),
        *(sent("read", 0.25), began("read", 0.25), sent("write", 0.25), began("write", 0.25)),
        *(completed("write", 0.75), completed("read", 1.0)),
        RunFinished("r", 1.0, "completed", None),
    )
    report = RunReport.of(view)
    assert (report.critical_path, report.ideal_seconds) == (("read",), 0.75)
    total = report.nodes["total"]
    assert (total.state, total.waiting, total.queued, total.running) == ("completed", 0, 0, 0)
    assert report.sentence == "0.750 s of 1.000 s went into running read."


def test_a_map_of_which_the_journal_had_all_elements_is_on_no_path() -> None:
    view = view_of(
        started("read", "total", mapped={"read": 1}, edges={"total": ("read",)}),
        ElementsKnown("r", 0.0, "read", 1),
        NodeCompleted("r", 0.0, "read[0]", "", 7, "journal", 0),
        *(sent("total", 0.0), began("total", 0.0), completed("total", 1.0)),
    )
    assert RunReport.of(view).critical_path == ("total",)


def test_a_node_that_did_not_wait_for_another_is_not_behind_it_on_a_path() -> None:
    """With join="any", "first" runs behind the quick one of two nodes."""
    view = view_of(
        started("slow", "first", "save", edges={"first": ("slow",), "save": ("first",)}),
        *(sent("slow", 0.0), began("slow", 0.0), sent("first", 1.0), began("first", 1.0)),
        *(completed("first", 2.0), sent("save", 2.0), began("save", 2.0), completed("slow", 3.0)),
        *(completed("save", 4.0), RunFinished("r", 4.0, "completed", None)),
    )
    report = RunReport.of(view)
    assert (report.critical_path, report.ideal_seconds) == (("first", "save"), 3.0)


def test_a_run_that_goes_on_has_no_times_of_the_session_before() -> None:
    view = view_of(
        *(started("a", "b"), sent("a", 0.0), began("a", 0.0), completed("a", 9.0)),
        RunFinished("r", 9.0, "cancelled", None),
        RunStarted("r", 20.0, ("a", "b"), 1.0),
        NodeCompleted("r", 20.0, "a", "", 7, "journal"),
        *(sent("b", 20.0), began("b", 20.0), completed("b", 21.0)),
        RunFinished("r", 21.0, "completed", None),
    )
    report = RunReport.of(view)
    assert (report.seconds, report.parallelism) == (1.0, 1.0)
    assert (report.nodes["a"].running, report.nodes["a"].attempts) == (0, 0)
    assert node_text(view.nodes["a"]) == "completed, from the journal"
    assert view.nodes["a"].running == 9  # which a view keeps


def test_an_element_may_run_longer_than_all_of_what_is_before_its_node() -> None:
    events = [
        *elements_of("m", (0.0, 0.0, 1.0), (1.0, 1.0, 2.0), (2.0, 2.0, 3.0)),
        *elements_of("n", (1.0, 1.0, 5.0), (2.0, 2.0, 3.0), (3.0, 3.0, 4.0)),
    ]
    view = view_of(
        started("m", "n", mapped={"m": 1, "n": 1}, edges={"n": ("m",)}),
        *sorted(events, key=lambda event: event.at),
        RunFinished("r", 5.0, "completed", None),
    )
    report = RunReport.of(view)
    assert (report.critical_path, report.ideal_seconds) == (("n",), 4.0)


@virtually
async def test_a_map_that_is_skipped_as_its_generator_has_failed_is_on_the_path() -> None:
    """Elements of it have run, and the run has ended with the last of them."""
    listener = Viewing()

    async def pages() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(2)
        raise ConnectionError

    async def words(page: int) -> int:
        await asyncio.sleep(5)
        return page

    dag = DAGBuilder().node(pages).node(words, inputs={"page": "pages"}, map_over="pages").build()
    engine = ExecutionEngine(InMemoryBroker(), dag, on_error="collect", listeners=[listener])
    await engine.execute({})
    assert listener.view.nodes["words"].state == "skipped"
    report = RunReport.of(listener.view)
    assert (report.critical_path, report.ideal_seconds) == (("pages", "words"), 5.0)


def test_a_report_of_what_is_no_view_says_what_to_give() -> None:
    status: Any = {"nodes": {}}
    with pytest.raises(TypeError, match=r"was given a dict; give it a RunView: .*RunReader"):
        RunReport.of(status)
