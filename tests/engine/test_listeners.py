"""Listeners: told everything in order, waited for within bounds, and never able to break a run."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, cast

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    DAGBuilder,
    ElementsKnown,
    Event,
    ExecutionEngine,
    Gap,
    Item,
    MemoryJournal,
    NodeBegan,
    NodeCompleted,
    NodeFellBack,
    NodeSkipped,
    NodeStarted,
    Progress,
    RunFailedError,
    RunFinished,
    RunReader,
    RunStarted,
)
from taskiq_flow.engine import listeners
from taskiq_flow.engine.listeners import CATCHING_UP, LISTENER_GRACE
from taskiq_flow.engine.node_run import NodeRun
from taskiq_flow.engine.run_events import RunEvents
from taskiq_flow.engine.run_spec import NO_SESSIONS, PLAIN_OPTIONS
from taskiq_flow.notes import WIDTH, Notes
from taskiq_flow.processes.name import process_name
from tests.recording import Recorder
from tests.virtual_clock import start_tasks_later, virtually

pytestmark = pytest.mark.usefixtures("plain_task_ids")


class SlowRecorder(Recorder):
    async def on_event(self, event: Any) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        self.events.append(event)


class Texts:
    """Has the texts of results at the moment at which they are told."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}

    def on_event(self, event: Event) -> None:
        if isinstance(event, NodeCompleted):
            self.of[event.task_name] = str(event.result)


class BatchOfTexts(Texts):
    def on_events(self, events: Sequence[Event]) -> None:
        for event in events:
            self.on_event(event)


def chain() -> DAG:
    return DAGBuilder().node(lambda: [1], name="a").node(lambda a: a, name="b").build()


async def test_every_event_comes_once_and_in_order_to_sync_and_async_listeners(
    broker: InMemoryBroker,
) -> None:
    recorders = [Recorder(), SlowRecorder()]
    await ExecutionEngine(broker, chain(), listeners=recorders).execute(run_id="r")
    for recorder in recorders:
        assert [(type(e), getattr(e, "task_name", None)) for e in recorder.events] == [
            (RunStarted, None),
            *((NodeStarted, "a"), (NodeBegan, "a"), (NodeCompleted, "a")),
            *((NodeStarted, "b"), (NodeBegan, "b"), (NodeCompleted, "b")),
            (RunFinished, None),
        ]
        started, sent, began, completed, *_, finished = recorder.events
        edges = {"b": ("a",)}
        tasks = {"a": "lambda", "b": "lambda"}
        assert started == RunStarted(
            "r",
            started.at,
            ("a", "b"),
            started.time,
            edges,
            tasks=tasks,
            seq=1,
            in_memory=True,
            on_error="raise",
        )
        assert sent == NodeStarted("r", sent.at, "a", "r:a:1", seq=2)
        assert began == NodeBegan("r", began.at, "a", "r:a:1", process_name(), seq=3)
        spans = {"queued": began.at - sent.at, "ran": completed.at - began.at}
        assert completed == NodeCompleted(
            "r", completed.at, "a", "r:a:1", [1], attempt=1, seq=4, **spans
        )
        assert finished == RunFinished("r", finished.at, "completed", None, seq=8)
        times = [event.at for event in recorder.events]
        assert times == sorted(times)


@pytest.mark.parametrize("is_listened_to", [False, True])
async def test_a_skip_in_the_stream_has_its_number_whoever_listens(
    broker: InMemoryBroker, *, is_listened_to: bool
) -> None:
    dag = DAGBuilder().node(lambda: 1, name="a", when=lambda: False).build()
    heard = [Recorder()] if is_listened_to else []
    engine = ExecutionEngine(broker, dag, on_error="collect", listeners=heard)
    assert (await engine.execute())["a"].seq == 2


async def test_events_are_numbered_without_a_gap_and_each_run_by_itself(
    broker: InMemoryBroker,
) -> None:
    recorder = Recorder()
    engine = ExecutionEngine(broker, chain(), listeners=[recorder])
    await asyncio.gather(engine.execute(run_id="one"), engine.execute(run_id="other"))
    for run_id in ("one", "other"):
        numbers = [event.seq for event in recorder.events if event.run_id == run_id]
        assert numbers == list(range(1, 9))


async def test_the_start_of_a_run_has_the_time_of_the_systems_clock(broker: InMemoryBroker) -> None:
    recorder = Recorder()
    before = time.time()
    await ExecutionEngine(broker, chain(), listeners=[recorder]).execute()
    assert before <= recorder.events[0].time <= time.time()


async def test_what_is_mapped_is_known_from_the_start(broker: InMemoryBroker) -> None:
    recorder = Recorder()
    builder = DAGBuilder().node(abs, inputs=["numbers"], map_over="numbers")
    dag = builder.node(sum, inputs=["abs"], name="total").build()
    await ExecutionEngine(broker, dag, listeners=[recorder]).execute({"numbers": [-1, 2]})
    started = recorder.events[0]
    assert (started.edges, started.mapped) == ({"total": ("abs",)}, {"abs": 1})
    begun = {e.task_name: e.index for e in recorder.of(NodeBegan)}
    assert begun == {"abs[0]": 0, "abs[1]": 1, "total": None}


async def test_failures_and_skips_are_told(broker: InMemoryBroker) -> None:
    dag = DAGBuilder().node(lambda: 1 // 0, name="bad").node(lambda bad: 1, name="behind").build()
    recorder = Recorder()
    engine = ExecutionEngine(broker, dag, on_error="continue", listeners=[recorder])
    with pytest.raises(RunFailedError) as caught:
        await engine.execute(run_id="r")
    failed, skipped, finished = recorder.events[3:]
    assert (failed.task_id, failed.attempts, failed.attempt) == ("r:bad:1", 1, 1)
    assert isinstance(failed.error, ZeroDivisionError)
    assert skipped == NodeSkipped("r", skipped.at, "behind", ("bad",), seq=5)
    assert finished == RunFinished("r", finished.at, "failed", caught.value, seq=6)


@pytest.mark.parametrize("how", ["cancel", "break"])
async def test_a_run_that_is_left_or_cancelled_is_told_as_cancelled(
    broker: InMemoryBroker, how: str
) -> None:
    recorder = Recorder()
    engine = ExecutionEngine(broker, chain(), listeners=[recorder])
    stream = engine.execute_async()
    await anext(stream)
    if how == "cancel":
        engine.cancel()
        with pytest.raises(Exception, match="was cancelled"):
            await anext(stream)
    await stream.aclose()
    assert [event.outcome for event in recorder.of(RunFinished)] == ["cancelled"]


@pytest.mark.parametrize("error", [RuntimeError("not today"), asyncio.CancelledError("nor ever")])
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_listener_that_raises_is_logged_and_dropped_for_that_run_only(
    broker: InMemoryBroker,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    *,
    is_async: bool,
) -> None:
    class Raising(Recorder):
        def on_event(self, event: Any) -> Any:
            super().on_event(event)
            if is_async:
                return self.later()
            raise error

        async def later(self) -> None:
            raise error

    raising, other = Raising(), Recorder()
    engine = ExecutionEngine(broker, chain(), listeners=[raising, other])
    for run in (1, 2):
        assert await engine.execute() == {"a": [1], "b": [1]}
        assert len(raising.events) == run
        assert len(other.events) == 8 * run
    assert "it is dropped for this run" in caplog.text


@pytest.mark.parametrize("how", ["on_step_complete", "all read"])
async def test_how_a_run_ended_is_told_as_it_was(broker: InMemoryBroker, how: str) -> None:
    problem = LookupError("mine")

    def on_step(task_name: str, result: Any) -> None:
        if how == "on_step_complete":
            raise problem

    recorder = Recorder()
    engine = ExecutionEngine(broker, chain(), on_step_complete=on_step, listeners=[recorder])
    stream = engine.execute_async()
    if how == "on_step_complete":
        with pytest.raises(LookupError):
            await anext(stream)
        expected: tuple[str, Any] = ("failed", problem)
    else:
        await anext(stream)
        await anext(stream)  # the last pair; the reader leaves without asking for more
        expected = ("completed", None)
    await stream.aclose()
    assert (recorder.events[-1].outcome, recorder.events[-1].error) == expected


@virtually
async def test_a_slow_listener_gets_every_event_in_the_end() -> None:
    class Slow(Recorder):
        async def on_event(self, event: Any) -> None:  # type: ignore[override]
            await asyncio.sleep(3)
            self.events.append(event)

    slow = Slow()

    engine = ExecutionEngine(InMemoryBroker(), chain_of_sleeps(), listeners=[slow])
    await engine.execute()
    assert len(slow.events) == 8


@virtually
async def test_a_listener_that_hangs_holds_up_neither_nodes_nor_the_end_for_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Hanging:
        async def on_event(self, event: Any) -> None:
            await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    stream = ExecutionEngine(
        InMemoryBroker(), chain_of_sleeps(), listeners=[Hanging()]
    ).execute_async()
    async for _ in stream:
        completed = loop.time()
    assert completed == pytest.approx(2.0)
    assert loop.time() == pytest.approx(7.0)
    assert "a listener took more than 5 s for an event; dropped" in caplog.text


def chain_of_sleeps() -> DAG:
    async def sleep(**_: Any) -> None:
        await asyncio.sleep(1)

    return DAGBuilder().node(sleep, name="a").node(sleep, name="b", inputs=["a"]).build()


@virtually
async def test_a_listener_that_lags_holds_up_the_end_for_a_bounded_time_in_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Slow(Recorder):
        async def on_event(self, event: Any) -> None:  # type: ignore[override]
            await asyncio.sleep(4)
            self.events.append(event)

    async def nothing(**_: Any) -> None: ...

    slow = Slow()
    builder = DAGBuilder()
    for number in range(200):
        builder.node(nothing, name=f"n{number}")
    await ExecutionEngine(InMemoryBroker(), builder.build(), listeners=[slow]).execute()
    assert 0 < len(slow.events) < 10
    assert asyncio.get_running_loop().time() <= CATCHING_UP + LISTENER_GRACE
    assert "a listener took more than 30 s for its events; dropped, with 59" in caplog.text


@virtually
async def test_what_a_lagging_listener_misses_is_bounded_and_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "MOST_EVENTS", 10)
    monkeypatch.setattr(listeners, "SHORTEST_PAUSE", 0.0)
    gate = asyncio.Event()

    class Held(Recorder):
        async def on_event(self, event: Any) -> None:  # type: ignore[override]
            await gate.wait()
            self.events.append(event)

    async def nothing(**_: Any) -> None: ...

    start_tasks_later()
    held, quick = Held(), Recorder()
    builder = DAGBuilder().node(nothing, name="n0")
    for number in range(1, 50):
        builder.node(nothing, name=f"n{number}", inputs=[f"n{number - 1}"])
    engine = ExecutionEngine(InMemoryBroker(), builder.build(), listeners=[held, quick])
    async for name, _ in engine.execute_async():
        if name == "n49":
            gate.set()
    assert len(quick.events) == 152
    first, gap, *rest = held.events
    assert first == quick.events[0]
    assert gap == Gap(first.run_id, rest[0].at, missed=141, seq=142)
    assert rest == quick.events[-10:]
    assert rest[0].seq == 143
    assert "lags by more than 10 events; 141 of them are left out" in caplog.text


async def test_a_listener_has_the_context_in_which_the_run_was_begun_and_keeps_its_own(
    broker: InMemoryBroker,
) -> None:
    seen: ContextVar[int] = ContextVar("seen", default=0)
    counts: list[int] = []

    class Counting:
        def on_event(self, event: Any) -> None:
            seen.set(seen.get() + 1)
            counts.append(seen.get())

    async def task() -> int:
        seen.set(100)
        return seen.get()

    seen.set(10)
    dag = DAGBuilder().node(task).build()
    engine = ExecutionEngine(broker, dag, listeners=[Counting()])
    assert await engine.execute() == {"task": 100}
    assert counts == [11, 12, 13, 14, 15]
    assert seen.get() == 10


@pytest.mark.parametrize("items", [False, True])
@pytest.mark.parametrize("recorder_type", [Texts, BatchOfTexts])
async def test_a_value_is_told_as_it_was_before_the_reader_changed_it(
    broker: InMemoryBroker, recorder_type: type[Texts], items: bool
) -> None:
    async def a() -> list[int]:
        return [1]

    async def b(a: list[int]) -> list[int]:
        return [*a, 2]

    async def each(b: int) -> list[int]:
        return [b]

    async def d(each: list[list[int]]) -> int:
        return len(each)

    builder = DAGBuilder().node(a).node(b).node(each, map_over="b").node(d)
    texts, journal = recorder_type(), MemoryJournal()
    engine = ExecutionEngine(broker, builder.build(), listeners=[texts], journal=journal)
    async for _, result in engine.execute_async(run_id="r", items=items):
        changed = result.value if isinstance(result, Item) else result
        if isinstance(changed, list):
            changed.clear()
    values = {"a": "[1]", "b": "[1, 2]", "d": "2"}
    values |= {"each[0]": "[1]", "each[1]": "[2]"}
    assert texts.of == values
    shown = {
        event.task_name: event.result["text"]
        async for event in RunReader(journal).events("r")
        if isinstance(event, NodeCompleted)
    }
    assert shown == values


async def test_no_event_is_held_for_nobody() -> None:
    class Raising:
        def on_event(self, event: Any) -> None:
            raise RuntimeError("not today")

    of_run = listeners.Listeners("r")
    of_run.add(Raising())
    for number in range(3):
        of_run.tell(ElementsKnown("r", 0.0, "n", number))
    assert len(of_run.notes) == WIDTH * 3
    await asyncio.sleep(0)
    assert not of_run.are_present
    of_run.tell(ElementsKnown("r", 0.0, "n", 3))
    assert (len(of_run.notes), of_run.seq) == (0, 4)


@virtually
async def test_an_event_is_let_go_when_all_have_taken_it() -> None:
    gate = asyncio.Event()

    class Held:
        async def on_event(self, event: Any) -> None:
            await gate.wait()

    of_run, recorder = listeners.Listeners("r"), Recorder()
    of_run.add(Held())
    of_run.add(recorder)
    reader = of_run.reader(None)
    for number in range(3):
        of_run.tell(ElementsKnown("r", 0.0, "n", number))
    await asyncio.sleep(0)
    assert len(of_run.notes) == WIDTH * 3
    gate.set()
    assert [(await anext(reader)).seq for _ in range(3)] == [1, 2, 3]
    await asyncio.sleep(0)
    of_run.tell(ElementsKnown("r", 0.0, "n", 3))
    await asyncio.sleep(listeners.SHORTEST_PAUSE)
    assert len(of_run.notes) == WIDTH  # for the reader
    assert len(recorder.events) == 4
    await of_run.aclose()


@virtually
async def test_a_listener_is_called_in_the_next_turn_and_then_once_a_millisecond() -> None:
    calls: list[tuple[int, float]] = []

    class Noting:
        def on_event(self, event: Any) -> None:
            calls.append((event.seq, asyncio.get_running_loop().time() - began))

    of_run, began = listeners.Listeners("r"), asyncio.get_running_loop().time()
    of_run.add(Noting())

    def tell_two() -> None:
        of_run.tell(ElementsKnown("r", 0.0, "n", 1))
        of_run.tell(ElementsKnown("r", 0.0, "n", 2))

    tell_two()
    await asyncio.sleep(0)
    assert calls == [(1, 0.0), (2, 0.0)]
    for _ in range(3):
        tell_two()
        await asyncio.sleep(0)
    assert len(calls) == 2
    await asyncio.sleep(0.5)
    assert [seq for seq, _ in calls] == list(range(1, 9))
    assert [at for _, at in calls[2:]] == pytest.approx([0.001] * 6)
    tell_two()
    await asyncio.sleep(0)
    assert len(calls) == 10
    await of_run.aclose()


class Batches:
    """Notes each batch that it is given."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []

    def on_event(self, event: Any) -> None:
        raise AssertionError("it takes batches")

    def on_events(self, events: Any) -> None:
        self.batches.append(list(events))


@virtually
async def test_a_batch_has_the_events_of_a_hundredth_of_a_second() -> None:
    batches, quick = Batches(), Recorder()
    engine = ExecutionEngine(InMemoryBroker(), chain_of_sleeps(), listeners=[batches, quick])
    handle = engine.start()
    await asyncio.sleep(listeners.BATCH_DELAY / 2)
    assert (len(batches.batches), len(quick.events)) == (0, 3)
    await asyncio.sleep(listeners.BATCH_DELAY)
    assert batches.batches == [quick.events]
    await handle
    assert [len(batch) for batch in batches.batches] == [3, 3, 2]
    assert [event for batch in batches.batches for event in batch] == quick.events


@virtually
async def test_a_batch_has_an_event_that_comes_while_another_listener_is_still_to_be_called() -> (
    None
):
    batches, of_run = Batches(), listeners.Listeners("r")
    of_run.add(batches)
    of_run.add(Recorder())
    began, delay = asyncio.get_running_loop().time(), listeners.BATCH_DELAY
    # The second and the third: the one listener is called at 10.5 ms, and the other at 10 ms.
    for at in (0.0, 0.95 * delay, 0.97 * delay, 1.02 * delay):
        await asyncio.sleep(began + at - asyncio.get_running_loop().time())
        of_run.tell(ElementsKnown("r", 0.0, "n", 1))
    await asyncio.sleep(delay + listeners.SHORTEST_PAUSE)
    assert [[event.seq for event in batch] for batch in batches.batches] == [[1, 2, 3], [4]]
    await of_run.aclose()


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_listener_that_raises_for_a_batch_is_dropped(
    broker: InMemoryBroker, caplog: pytest.LogCaptureFixture, *, is_async: bool
) -> None:
    class Raising(Batches):
        def on_events(self, events: Any) -> Any:
            super().on_events(events)
            if is_async:
                return self.later()
            raise RuntimeError("not today")

        async def later(self) -> None:
            raise RuntimeError("not today")

    raising = Raising()
    engine = ExecutionEngine(broker, chain(), listeners=[raising])
    for run in (1, 2):
        assert await engine.execute() == {"a": [1], "b": [1]}
        assert len(raising.batches) == run
    assert "it is dropped for this run" in caplog.text


@pytest.mark.parametrize("wraps", [False, True])
async def test_who_replaces_on_events_of_a_listener_that_takes_notes_is_given_events(
    broker: InMemoryBroker, *, wraps: bool
) -> None:
    seen: list[Any] = []

    class Counting(Progress):
        def on_events(self, events: Sequence[Event]) -> None:
            seen.extend(events)
            super().on_events(events)

    class Wrapping(Batches):
        def on_events(self, events: Sequence[Event]) -> None:
            seen.extend(events)
            progress.on_events(events)

        def __getattr__(self, name: str) -> Any:
            return getattr(progress, name)

    progress = Progress(io.StringIO())
    listener = Wrapping() if wraps else Counting(io.StringIO())
    await ExecutionEngine(broker, chain(), listeners=[listener]).execute()
    assert [event.seq for event in seen] == list(range(1, 9))


async def test_a_batch_that_lags_begins_with_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "MOST_EVENTS", 10)
    batches, of_run = Batches(), listeners.Listeners("r")
    of_run.add(batches)
    for number in range(25):
        of_run.tell(ElementsKnown("r", 0.0, "n", number))
    assert len(of_run.notes) <= WIDTH * 11
    await of_run.aclose()
    (gap,), events = batches.batches
    assert gap == Gap("r", 0.0, missed=15, seq=15)
    assert [event.seq for event in events] == list(range(16, 26))
    assert len(of_run.notes) == 0


async def test_a_store_misses_no_event_of_a_turn_that_has_more_than_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listeners, "MOST_EVENTS", 10)
    gate = asyncio.Event()

    class Held:
        async def on_event(self, event: Any) -> None:
            await gate.wait()

    class Store:
        def __init__(self) -> None:
            self.seqs: list[int] = []

        def take(self, notes: Notes, first: int) -> None:
            self.seqs += range(first, first + len(notes) // WIDTH)

    of_run, store = listeners.Listeners("r"), Store()
    of_run.add(Held())
    of_run.keep_for(store)
    for number in range(25):
        of_run.tell(ElementsKnown("r", 0.0, "n", number))
    await asyncio.sleep(0)
    assert len(of_run.notes) == WIDTH * 10
    gate.set()
    await of_run.aclose()
    assert store.seqs == list(range(1, 26))


@virtually
async def test_a_reader_that_comes_while_a_batch_waits_is_told_of_the_next_event() -> None:
    of_run = listeners.Listeners("r")
    of_run.add(Batches())
    of_run.tell(ElementsKnown("r", 0.0, "n", 1))
    reader = of_run.reader(None)
    reading = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    of_run.tell(ElementsKnown("r", 0.0, "n", 2))
    assert (await asyncio.wait_for(reading, 1)).seq == 2
    await of_run.aclose()


async def test_what_a_resumed_run_passes_over_is_counted_and_not_held_if_nobody_listens() -> None:
    of_run = listeners.Listeners("r")
    events: RunEvents = RunEvents("r", of_run, lambda _, value: value)
    events.kept(chain().get_node("a"))
    assert (of_run.seq, len(of_run.notes)) == (1, 0)


def a_node_run(run: Any = None) -> NodeRun:
    node_run = NodeRun(chain().get_node("a"), run, PLAIN_OPTIONS, {}, NO_SESSIONS)
    node_run.begin_attempt("r", "")
    return node_run


async def test_each_worker_that_begins_an_attempt_is_told_once_however_late() -> None:
    of_run, recorder = listeners.Listeners("r"), Recorder()
    of_run.add(recorder)
    events: RunEvents = RunEvents("r", of_run, lambda _, value: value)
    node_run = a_node_run()
    events.sent(node_run)
    for at, worker in enumerate(["one", "two", "one", "two", "three"]):
        events.began(node_run, float(at), worker)
    events.completed(node_run.node, 1, "task", node_run)
    await of_run.aclose()
    sent, *begun, completed = recorder.events
    assert [(event.at, event.worker) for event in begun] == [
        (0.0, "one"),
        (1.0, "two"),
        (4.0, "three"),
    ]
    assert completed.queued == 4.0 - sent.at
    assert [event.seq for event in recorder.events] == [1, 2, 3, 4, 5]


async def test_an_attempt_that_was_sent_before_anybody_listened_has_no_durations() -> None:
    of_run, recorder = listeners.Listeners("r"), Recorder()
    events: RunEvents = RunEvents("r", of_run, lambda _, value: value)
    node_run = a_node_run()
    of_run.add(recorder)
    events.began(node_run, 1.0, "one")
    events.completed(node_run.node, 1, "task", node_run)
    await of_run.aclose()
    began, completed = recorder.events
    assert (began.worker, began.task_id, began.attempt) == ("one", "r:a:1", 1)
    assert (completed.task_id, completed.attempt) == ("r:a:1", 1)
    assert (completed.queued, completed.ran) == (None, None)


async def test_listeners_are_given_the_same_event_however_fast_they_are() -> None:
    class Slow(Recorder):
        async def on_event(self, event: Any) -> None:  # type: ignore[override]
            await asyncio.sleep(0)
            self.events.append(event)

    first, second, slow = Recorder(), Recorder(), Slow()
    engine = ExecutionEngine(InMemoryBroker(), chain(), listeners=[first, slow, second])
    await engine.execute()
    assert len(first.events) == len(second.events) == len(slow.events) > 3
    for one, other, late in zip(first.events, second.events, slow.events, strict=True):
        assert one is other is late


async def test_a_fallback_that_is_the_first_attempt_is_not_told_as_sent() -> None:
    of_run, recorder = listeners.Listeners("r"), Recorder()
    of_run.add(recorder)
    events: RunEvents = RunEvents("r", of_run, lambda _, value: value)
    node_run = NodeRun(chain().get_node("a"), cast("Any", None), PLAIN_OPTIONS, {}, NO_SESSIONS)
    node_run.falls_back = True  # its condition has raised
    node_run.begin_attempt("r", "")
    events.fell_back(node_run, ValueError("odd"))
    events.sent(node_run)
    events.began(node_run, 1.0, "one")
    await of_run.aclose()
    assert [(type(event), event.attempt) for event in recorder.events] == [
        (NodeFellBack, 1),
        (NodeBegan, 1),
    ]
