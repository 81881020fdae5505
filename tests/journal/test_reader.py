"""What a reader tells of runs, in the engine's process and of journals of earlier versions."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
from taskiq import InMemoryBroker

import taskiq_flow as flow
from taskiq_flow import (
    ConfigurationError,
    DAGBuilder,
    Event,
    EventBatch,
    ExecutionEngine,
    Journal,
    JournalError,
    Lease,
    MemoryJournal,
    MissingNodeError,
    NodeBegan,
    NodeCompleted,
    NodeFailed,
    NodeFailure,
    NodeSkipped,
    NodeStarted,
    RunFinished,
    RunNotFoundError,
    RunReader,
    RunStarted,
    RunSummary,
    RunView,
    SqliteJournal,
)
from taskiq_flow.engine import listeners
from taskiq_flow.journal.log_values import encoded_value
from taskiq_flow.journal.writer import LogWriter
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.stored import StoredValues
from tests.journal.events_contract import line_of
from tests.journal.nightly import graph, odd
from tests.journal.processes import GATED, gated, open_gate
from tests.recording import Recorder
from tests.waiting import until


@pytest.fixture(params=["memory", "sqlite"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Journal]:
    journal = MemoryJournal() if request.param == "memory" else SqliteJournal(tmp_path / "runs.db")
    yield journal
    await journal.aclose()


INPUTS = {"numbers": [2, 3, 4], "number": 5, "text": "x" * 50_000}


def engine_of(journal: Journal, **options: Any) -> ExecutionEngine:
    dag = graph().build()
    return ExecutionEngine(InMemoryBroker(), dag, journal=journal, on_error="collect", **options)


def said(events: list[Event]) -> list[dict[str, Any]]:
    return [event.to_dict() for event in events]


def places(value: Any) -> Any:
    """What stands in a list: the names of errors in the places of failures."""
    if isinstance(value, list):
        return [places(part) for part in value]
    if isinstance(value, NodeFailure):
        return getattr(value.error, "type", type(value.error).__name__)
    return value.because_of if isinstance(value, NodeSkipped) else value


async def read(reader: RunReader, run_id: str, after: int = 0) -> list[Event]:
    return [event async for event in reader.events(run_id, after)]


async def test_reading_creates_no_file(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    reader, shared = RunReader(path), RunReader(SqliteJournal(path))
    calls: list[Callable[[RunReader], Awaitable[object]]] = [
        lambda reader: reader.runs(),
        lambda reader: reader.prune(keep=0),
        lambda reader: reader.run("r"),
        lambda reader: reader.view("r"),
        lambda reader: reader.value("r", "a"),
        lambda reader: reader.request("r", "cancel"),
        lambda reader: anext(reader.events("r", follow=True)),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(JournalError, match=r"no journal at '.*none\.db'; give the file to"):
            await call(reader)
        if number < 2:  # an engine that shares the journal has not begun a run yet
            assert await call(shared) == []
        else:
            with pytest.raises(RunNotFoundError):
                await call(shared)
    assert not path.exists()


async def test_a_reader_has_the_events_that_listeners_had(journal: Journal) -> None:
    recorder = Recorder()
    await engine_of(journal, listeners=[recorder]).execute(INPUTS, run_id="r")
    reader = RunReader(journal)
    events = await read(reader, "r")
    assert said(events) == said(recorder.events)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert said(await read(reader, "r", 5)) == said(events[5:])


class Slow(MemoryJournal):
    """A journal that takes its time for each batch."""

    async def append(
        self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
    ) -> None:
        await asyncio.sleep(0.05)
        await super().append(run_id, lease, chunk, batch)


async def test_a_slow_journal_misses_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "MOST_EVENTS", 10)
    journal, seen = Slow(), Recorder()
    dag = DAGBuilder().node(odd, inputs=["numbers"], map_over="numbers").build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal, listeners=[seen])
    await engine.execute({"numbers": [0] * 200}, run_id="r")
    events = await read(RunReader(journal), "r")
    assert len(events) > 600
    assert [e.seq for e in events] == list(range(1, len(events) + 1))


async def test_a_view_is_that_of_the_events(journal: Journal) -> None:
    recorder = Recorder()
    await engine_of(journal, listeners=[recorder]).execute(INPUTS, run_id="r")
    view, of_listener = await RunReader(journal).view("r"), RunView()
    for event in recorder.events:
        of_listener.apply(event)
    assert view.status == "completed"
    assert view.counts == of_listener.counts == {"completed": 1, "failed": 2, "skipped": 1}
    for name, node in of_listener.nodes.items():
        assert view.nodes[name].preview == node.preview
        assert view.nodes[name].error == node.error
        assert view.nodes[name].running == node.running
    assert view.nodes["long"].preview == {
        "kind": "str",
        "size": 150_000,
        "text": "x" * 399 + "…",
        "cut": True,
    }


async def test_a_run_goes_on_where_its_numbers_ended(journal: Journal) -> None:
    engine = engine_of(journal)
    async with aclosing(engine.execute_async(INPUTS, run_id="r")) as pairs:
        await anext(pairs)
    reader, recorder = RunReader(journal), Recorder()
    before = await read(reader, "r")
    assert (await reader.run("r")).status == "cancelled"
    again = engine_of(journal, listeners=[recorder])
    assert [pair async for pair in again.resume("r")]
    events = await read(reader, "r")
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert said(events) == said([*before, *recorder.events])
    assert [type(e) for e in events if isinstance(e, RunStarted | RunFinished)] == [
        *(RunStarted, RunFinished, RunStarted, RunFinished)
    ]
    assert (await reader.view("r")).sessions == 2


async def test_a_summary_says_how_far_a_run_is(journal: Journal) -> None:
    reader = RunReader(journal)
    before = datetime.now(UTC)
    await engine_of(journal).execute(INPUTS, run_id="r")
    (run,) = await reader.runs(name="nightly", status="completed", since=before)
    assert (run.total, run.completed, run.failed, run.skipped) == (6, 3, 2, 1)
    assert run.started >= before.timestamp()
    assert run.ended is not None
    took = (await reader.view("r")).seconds
    assert run.ended - run.started == pytest.approx(took, abs=1e-5)
    assert (run.owner, run.lease_left, run.is_resumable) == (None, 0, True)
    assert run.pid
    assert run.host
    assert run == await reader.run("r")
    assert await reader.runs(status="failed") == await reader.runs(before=before) == []
    again = [pair async for pair in engine_of(journal).rerun("r", ["one"], new_run_id="again")]
    assert again
    assert [r.run_id for r in await reader.runs()] == ["again", "r"]
    assert [r.run_id for r in await reader.runs(before=(await reader.run("again")).started)] == [
        "r"
    ]
    assert (await reader.run("again")).parent == "r"


async def has_run(journal: Journal, run_id: str) -> bool:
    return run_id in await journal.run_ids()


async def test_a_run_is_followed_to_its_end(journal: Journal, tmp_path: Path) -> None:
    notes, reader = tmp_path / "notes", RunReader(journal)
    engine = ExecutionEngine(InMemoryBroker(), gated(), journal=journal)
    seen: list[Event] = []
    async with engine.start({"notes": str(notes)}, run_id="r") as run:
        await until(partial(has_run, journal, "r"), "it has begun")
        async for event in reader.events("r", follow=True):
            seen.append(event)
            if isinstance(event, NodeCompleted) and event.task_name == "second":
                assert (await reader.run("r")).status == "running"
                assert (await reader.view("r")).status == "running"
                assert [r.run_id for r in await reader.runs(status="running")] == ["r"]
                assert await reader.runs(status="interrupted") == []
                open_gate(notes)
        assert await run == dict(GATED)
    assert seen == await read(reader, "r")
    assert isinstance(seen[-1], RunFinished)


async def test_a_run_in_the_place_of_another_is_not_taken_for_it(journal: Any) -> None:
    async def begin(time: float, last: int) -> None:
        events: list[Event] = [RunStarted("r", 0.5, ("a",), time, seq=1)]
        events += [NodeBegan("r", 0.5, "a", "", f"h:{seq}", seq=seq) for seq in range(2, last + 1)]
        summary = RunSummary("r", "running", "nightly", time, seq=last)
        await journal.create("r", lease, b"", EventBatch(line_of(*events), summary))

    lease = Lease("engine", 60.0)
    await begin(1.7e9, 3)
    seen: list[Event] = []
    async with aclosing(RunReader(journal).events("r", follow=True)) as events:
        with pytest.raises(RunNotFoundError, match="another run has its id now"):
            async for event in events:
                seen.append(event)
                if event.seq == 3:
                    await journal.release("r", lease)
                    await journal.delete("r")
                    await begin(1.8e9, 5)
    assert [(event.seq, getattr(event, "time", 0)) for event in seen] == [
        *((1, 1.7e9), (2, 0), (3, 0))
    ]


async def test_a_journal_that_finds_tags_is_asked_for_them_once() -> None:
    class Asked(MemoryJournal):
        limits: ClassVar[list[int]] = []

        async def summaries(self, **asked: Any) -> list[RunSummary]:
            self.limits.append(asked["limit"])
            return await super().summaries(**asked)

    class Passed(Asked):
        limits: ClassVar[list[int]] = []

        async def summaries(self, *, tags: Any = (), **asked: Any) -> list[RunSummary]:
            return await super().summaries(tags=tags, **asked)

    dag = DAGBuilder().node(abs, inputs=["x"]).build()
    for journal, limits in ((Asked(), [1, 2, 4]), (Passed(), [1])):
        for tags in (["rare"], [], []):
            engine = ExecutionEngine(InMemoryBroker(), dag, tags=tags, journal=journal)
            await engine.execute({"x": -1})
        (run,) = await RunReader(journal).runs(tag="rare", limit=1)
        assert (run.tags, journal.limits) == (("rare",), limits)


@pytest.mark.parametrize("is_recorded", [True, False], ids=["recorded", "journaled"])
async def test_runs_have_the_tags_of_their_engines_and_the_name_of_the_graph(
    journal: Any, *, is_recorded: bool
) -> None:
    dag = DAGBuilder("nightly").node(abs, inputs=["x"]).build()
    store: dict[str, Any] = (
        {"listeners": [flow.Recorder(journal)]} if is_recorded else {"journal": journal}
    )
    for run_id, tags in (("r1", ["a", "a", "b"]), ("r2", ["b"]), ("r3", [])):
        engine = ExecutionEngine(InMemoryBroker(), dag, tags=tags, **store)
        await engine.execute({"x": -1}, run_id=run_id)
    reader = RunReader(journal)
    found = await reader.runs()
    assert [(run.run_id, run.name, run.tags) for run in found] == [
        *(("r3", "nightly", ()), ("r2", "nightly", ("b",)), ("r1", "nightly", ("a", "b")))
    ]
    assert [run.run_id for run in await reader.runs(tag="b")] == ["r2", "r1"]
    assert [run.run_id for run in await reader.runs(tag="b", limit=1)] == ["r2"]
    assert await reader.runs(tag="") == []
    if not is_recorded:
        again = ExecutionEngine(InMemoryBroker(), dag, tags=["again"], **store)
        async with aclosing(again.resume("r1")) as pairs:
            assert [pair async for pair in pairs] == [("abs", 1)]
        assert (await reader.run("r1")).tags == ("a", "b", "again")
        async with aclosing(again.rerun("r2", ["abs"], new_run_id="r4")) as pairs:
            assert [pair async for pair in pairs] == [("abs", 1)]
        assert (await reader.run("r4")).tags == ("b", "again")
        assert (await reader.run("r2")).tags == ("b",)
    assert [run.run_id for run in await reader.runs(tag=iter(["b", "a"]))] == ["r1"]
    assert len(await reader.runs(tag=[])) == len(await reader.runs())
    with pytest.raises(TypeError, match="tag is 7; give a text, or a list of texts"):
        await reader.runs(tag=7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tag has 7; give texts"):
        await reader.runs(tag=["a", 7])  # type: ignore[list-item]


@pytest.mark.parametrize("text", ["caf\udce9", "a=b&c", "50%_x", "it's", "naïve"])
async def test_runs_are_found_by_any_name_and_tag_that_they_were_given(
    journal: Any, text: str
) -> None:
    dag = DAGBuilder(text).node(abs, inputs=["x"]).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal, tags=[text])
    await engine.execute({"x": -1}, run_id="r")
    reader = RunReader(journal)
    ways: list[dict[str, Any]] = [{"tag": text}, {"name": text}, {"tag": text, "name": text}]
    for wanted in ways:
        assert [run.run_id for run in await reader.runs(**wanted)] == ["r"]
    assert await reader.runs(name=text, tag="another") == []
    assert await reader.prune(keep=0, name=text) == ["r"]


@pytest.mark.parametrize(
    ("tags", "error"),
    [
        ("a", "tags is 'a'; give a list of texts"),
        ({"team": "a"}, "tags is {'team': 'a'}; give a list of texts"),
        ([7], "tags has 7; give texts"),
        (["a", " "], "tags has ' '; give texts that can be seen"),
    ],
)
def test_tags_are_texts(tags: Any, error: str) -> None:
    dag = DAGBuilder().node(abs, inputs=["x"]).build()
    with pytest.raises((TypeError, ValueError), match=re.escape(error)):
        ExecutionEngine(InMemoryBroker(), dag, tags=tags)


async def test_a_file_from_before_tags_gets_them(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "runs.db")
    dag = DAGBuilder().node(abs, inputs=["x"]).build()
    await ExecutionEngine(InMemoryBroker(), dag, journal=journal).execute({"x": 1}, run_id="r1")
    await journal.aclose()
    with sqlite3.connect(tmp_path / "runs.db") as connection:
        connection.execute("ALTER TABLE runs DROP COLUMN tags")
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal, tags=["a"])
    await engine.execute({"x": 1}, run_id="r2")
    assert [run.tags for run in await RunReader(journal).runs()] == [("a",), ()]
    await journal.aclose()


async def test_a_run_that_nobody_has_any_more_is_interrupted(journal: Any) -> None:
    lease = Lease("engine", 60.0)
    started = RunStarted("r", 0.5, ("a",), 1.7e9, seq=1)
    sent = NodeStarted("r", 0.5, "a", "r:a:1", seq=2)
    batch = EventBatch(line_of(started, sent), RunSummary("r", "running", "nightly", 1.7e9, seq=2))
    await journal.create("r", lease, b"", batch)
    reader = RunReader(journal)
    assert (await reader.view("r")).nodes["a"].state == "queued"
    assert [r.status for r in await reader.runs(status="running")] == ["running"]
    await journal.release("r", lease)
    assert [r.status for r in await reader.runs(status="interrupted")] == ["interrupted"]
    assert await reader.runs(status="running") == []
    view = await reader.view("r")
    assert (view.status, view.nodes["a"].state) == ("interrupted", "interrupted")
    async with asyncio.timeout(5.0):
        assert [e async for e in reader.events("r", follow=True)] == [started, sent]
    assert not await reader.request("r", "cancel")
    assert await journal.requested("r") is None


async def test_values_are_read_by_the_names_of_nodes_elements_and_inputs(journal: Journal) -> None:
    await engine_of(journal).execute(INPUTS, run_id="r")
    reader = RunReader(journal)
    assert await reader.value("r", "long") == "x" * 150_000
    assert await reader.value("r", "each[2]") == 4
    assert places(await reader.value("r", "each")) == [2, "ValueError", 4]
    assert await reader.value("r", "number") == 5
    for name, why in (
        ("one", "the node has failed"),
        ("each[1]", "the element has failed"),
        ("each[9]", "node 'each' has no such element, or the element has not completed"),
        ("after", "the node was skipped"),
        ("none", "no node or input has that name"),
        ("none[0]", "no node or input has that name"),
    ):
        with pytest.raises(MissingNodeError) as caught:
            await reader.value("r", name)
        assert str(caught.value) == f"run 'r' has no value of {name!r} in the journal: {why}"


async def test_a_list_has_the_places_that_the_reader_of_its_run_was_given(journal: Journal) -> None:
    def up_to(number: int) -> list[int]:
        return list(range(number + odd(number)))

    dag = (
        DAGBuilder()
        .node(odd, name="each", inputs=["numbers"], map_over="numbers")
        .node(odd, name="behind", inputs={"number": "each"}, map_over="each")
        .node(
            odd,
            name="large",
            inputs=["numbers"],
            map_over="numbers",
            when=lambda numbers: numbers > 1,
        )
        .node(up_to, inputs={"number": "numbers"}, map_over="numbers")
        .node(odd, name="inner", inputs={"number": "up_to"}, map_over={"up_to": 2})
        .build()
    )
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal, on_error="collect")
    given = await engine.execute({"numbers": [0, 1, 2, 3]}, run_id="r")
    assert places(given["each"]) == [0, "ValueError", 2, "ValueError"]
    assert places(given["large"]) == [2, "ValueError"]
    reader = RunReader(journal)
    for name, value in given.items():
        assert places(await reader.value("r", name)) == places(value), name


async def test_the_value_of_a_generator_is_the_list_of_its_items(journal: Journal) -> None:
    def items(count: int) -> Iterator[int]:
        yield from range(count)

    dag = (
        DAGBuilder()
        .node(items, inputs=["count"])
        .node(items, name="each", inputs={"count": "counts"}, map_over="counts")
        .node(abs, name="behind", inputs={"x": "each"}, map_over={"each": 2})
        .node(abs, name="after", inputs={"x": "items"}, map_over="items")
        .node(len, name="zero", inputs=["text"])
        .build()
    )
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
    reader = RunReader(journal)
    for number, counts in ((3, [2, 0, 1]), (0, [0])):
        run_id = f"r{number}"
        inputs = {"count": number, "counts": counts, "text": ""}
        given = await engine.execute(inputs, run_id=run_id)
        assert given["each"] == [[*range(n)] for n in counts]
        for name in ("items", "each", "behind", "after", "zero"):
            assert await reader.value(run_id, name) == given[name], name
        assert await reader.value(run_id, "each[0]") == given["each"][0]
        for name in ("items", "zero"):
            data, is_json = await encoded_value(journal, run_id, name)
            assert (json.loads(data), is_json) == (given[name], True)
        data, _ = await encoded_value(journal, run_id, "each[0]")
        assert json.loads(data) == given["each"][0]
    with pytest.raises(MissingNodeError, match="stored one by one, 3 of them; ask for one, such"):
        await encoded_value(journal, "r3", "each")


async def test_a_generator_that_has_failed_has_no_value_but_items(journal: Journal) -> None:
    def items(fails: bool) -> Iterator[int]:
        yield 7
        if fails:
            raise ValueError("no more")

    dag = (
        DAGBuilder()
        .node(items, inputs=["fails"], retry=1)
        .node(abs, name="after", inputs={"x": "items"}, map_over="items")
        .build()
    )
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal, on_error="collect")
    await engine.execute({"fails": True}, run_id="r")
    reader = RunReader(journal)
    with pytest.raises(MissingNodeError, match=r"the node has failed; .* such as 'items\[0\]'"):
        await reader.value("r", "items")
    assert await reader.value("r", "items[0]") == 7


async def test_a_node_that_is_called_like_an_element_is_none(journal: Journal) -> None:
    dag = DAGBuilder().node(abs, name="a", inputs=["x"]).node(abs, name="a[0]", inputs=["x"])
    engine = ExecutionEngine(InMemoryBroker(), dag.build(), journal=journal)
    await engine.execute({"x": -7}, run_id="r")
    reader = RunReader(journal)
    assert [await reader.value("r", name) for name in ("a", "a[0]")] == [7, 7]


async def test_a_list_has_places_for_elements_that_have_not_completed(journal: Journal) -> None:
    dag = DAGBuilder().node(odd, name="each", inputs=["numbers"], map_over="numbers").build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal, max_parallel=1)
    with pytest.raises(flow.NodeFailedError):
        await engine.execute({"numbers": [2, 3, 4]}, run_id="r")
    value = await RunReader(journal).value("r", "each")
    assert places(value) == [2, "ValueError", "MissingNodeError"]
    assert (value[2].index, value[2].attempts) == (2, 0)
    assert "no value of 'each[2]'" in str(value[2].error)


async def test_what_is_not_there_is_not_found(journal: Journal) -> None:
    reader = RunReader(journal)
    for attempt in (
        reader.run("none"),
        reader.view("none"),
        reader.value("none", "a"),
        reader.request("none", "cancel"),
        read(reader, "none"),
    ):
        with pytest.raises(RunNotFoundError):
            await attempt
    assert await reader.runs() == []


async def test_wrong_arguments_are_refused(journal: Journal) -> None:
    reader: Any = RunReader(journal)
    with pytest.raises(ValueError, match="status is 'done'; give one of running, interrupted"):
        await reader.runs(status="done")
    with pytest.raises(ValueError, match="request is 'stop'; give 'cancel'"):
        await reader.request("r", "stop")
    with pytest.raises(TypeError, match="journal is None"):
        RunReader(None)  # type: ignore[arg-type]


async def test_runs_are_deleted_by_age_and_number_unless_an_engine_has_them(
    journal: Journal, tmp_path: Path
) -> None:
    reader, engine = RunReader(journal), engine_of(journal)
    held = ExecutionEngine(InMemoryBroker(), gated(), journal=journal)
    async with held.start({"notes": str(tmp_path / "notes")}, run_id="held") as run:
        await until(partial(has_run, journal, "held"), "it has begun")
        for number in range(5):
            await engine.execute(INPUTS, run_id=f"{number}")
        assert await reader.prune(older_than=timedelta(days=1)) == []
        assert await reader.prune(older_than=0, keep=4) == ["0"]
        assert await reader.prune(keep=3, name="other") == []
        assert await reader.prune(keep=3) == ["1"]
        assert [r.run_id for r in await reader.runs()] == ["4", "3", "2", "held"]
        assert await reader.prune(older_than=0, name="nightly") == ["4", "3", "2"]
        assert await reader.prune(keep=0) == []
        run.cancel()
    assert await reader.prune(keep=0) == ["held"]
    assert await journal.run_ids() == []
    wrongs: list[dict[str, Any]] = [{}, {"keep": -1}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="keep"):
            await reader.prune(**wrong)


# Logs alone, as earlier versions wrote them


class LogsOnly:
    """A journal with the methods of ``Journal`` and no others, on one that has more."""

    def __init__(self, inner: Journal) -> None:
        self.serializer = inner.serializer
        for name in ("create", "acquire", "renew", "release", "append", "read", "run_ids"):
            setattr(self, name, getattr(inner, name))
        self.delete, self.aclose = inner.delete, inner.aclose


async def test_a_journal_without_events_is_read_from_its_logs() -> None:
    journal: Any = LogsOnly(MemoryJournal())
    engine = engine_of(journal)
    await engine.execute(INPUTS, run_id="r")
    assert [pair async for pair in engine.resume("r")]
    reader = RunReader(journal)
    (run,) = await reader.runs(status="completed")
    assert (run.run_id, run.completed, run.failed, run.started) == ("r", 3, 2, 0)
    view = await reader.view("r")
    assert (view.status, view.sessions) == ("completed", 2)
    assert view.nodes["long"].state == "completed"
    assert view.nodes["one"].error == {"type": "ValueError", "message": "5 is odd", "traceback": ""}
    failed = [e.task_name for e in await read(reader, "r") if isinstance(e, NodeFailed)]
    assert set(failed) == {"each[1]", "one"}
    assert places(await reader.value("r", "each")) == [2, "ValueError", 4]
    with pytest.raises(ConfigurationError, match="LogsOnly stores no events"):
        await anext(reader.events("r", follow=True))
    with pytest.raises(ConfigurationError, match="LogsOnly takes no requests"):
        await reader.request("r", "cancel")


class Around:
    """A journal that writes by itself, as of ``Journal``, and passes all other calls on."""

    def __init__(self, inner: Journal) -> None:
        self.inner = inner

    async def create(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        await self.inner.create(run_id, lease, chunk)

    async def append(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        await self.inner.append(run_id, lease, chunk)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


async def test_a_journal_around_one_that_stores_events_works_and_stores_none(
    journal: Journal,
) -> None:
    around: Any = Around(journal)
    assert await engine_of(around).execute(INPUTS, run_id="r")
    for reader in (RunReader(around), RunReader(journal)):
        run = await reader.run("r")
        assert (run.status, run.completed, run.started) == ("completed", 3, 0)


async def test_runs_of_an_earlier_version_are_found_by_status_and_have_no_name(
    journal: Journal,
) -> None:
    plain: Any = LogsOnly(journal)
    for number in range(4):
        status = "cancelled" if number == 0 else "completed"
        async with aclosing(engine_of(plain).execute_async(INPUTS, run_id=f"{number}")) as pairs:
            async for _ in pairs:
                if number == 0:
                    break
        for reader in (RunReader(journal), RunReader(plain)):
            assert (await reader.run(f"{number}")).status == status
    for reader in (RunReader(journal), RunReader(plain)):
        assert [r.run_id for r in await reader.runs(status="cancelled", limit=1)] == ["0"]
        assert [r.run_id for r in await reader.runs(limit=3)] == ["3", "2", "1"]
    await engine_of(journal).execute(INPUTS, run_id="named")
    reader = RunReader(journal)
    assert await reader.prune(keep=1, name="nightly") == []
    assert await reader.prune(older_than=0, name="nightly") == ["named"]
    assert await reader.prune(keep=3) == ["0"]


async def test_the_figures_of_a_summary_add_up_whatever_fails(journal: Journal) -> None:
    """Lists that will have no elements count as one: a whole one, and one within lists."""
    dag = (
        DAGBuilder()
        .node(odd, inputs=["number"])
        .node(odd, name="of_none", inputs={"number": "odd"}, map_over="odd")
        .node(lambda n: [2] * (n // (n != 3)), name="lists", inputs={"n": "ns"}, map_over="ns")
        .node(odd, name="within", inputs={"number": "lists"}, map_over={"lists": 2})
        .build()
    )
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal, on_error="collect")
    await engine.execute({"number": 1, "ns": [1, 3, 2]}, run_id="r")
    run = await RunReader(journal).run("r")
    assert (run.total, run.completed, run.failed, run.skipped) == (9, 5, 2, 2)


async def test_elements_that_end_before_their_generator_are_in_the_total(journal: Journal) -> None:
    def numbers() -> Iterator[int]:
        yield from count(0, 2)

    dag = DAGBuilder().node(numbers).node(odd, inputs=["numbers"], map_over="numbers").build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
    async with aclosing(engine.execute_async(run_id="r", items="only")) as items:
        ended = [(await anext(items))[0] for _ in range(20)]
    run = await RunReader(journal).run("r")
    assert ended.count("odd") <= run.completed <= run.total


async def test_an_engine_that_only_began_to_resume_leaves_the_figures(journal: Journal) -> None:
    await engine_of(journal).execute(INPUTS, run_id="r")
    before = await RunReader(journal).run("r")
    values = StoredValues(journal.serializer, Classes.imported())
    log: LogWriter[Any] = LogWriter(journal, "r", values)
    await log.acquire()
    await log.begin("session", "suffix")
    await log.release()
    after = await RunReader(journal).run("r")
    assert after.status == "interrupted"
    assert after == replace(before, status="interrupted", ended=None)


FORMAT_1 = """
CREATE TABLE runs (
    number INTEGER PRIMARY KEY, run_id BLOB NOT NULL UNIQUE, owner TEXT, expires REAL NOT NULL
);
CREATE TABLE chunks (number INTEGER PRIMARY KEY, run INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX chunks_of_run ON chunks (run, number);
PRAGMA application_id = 1952869487;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""


async def test_a_file_of_format_1_is_read_continued_and_gets_events(tmp_path: Path) -> None:
    path, inner = tmp_path / "runs.db", MemoryJournal()
    async with aclosing(engine_of(inner).execute_async(INPUTS, run_id="old")) as pairs:
        await anext(pairs)
    with closing(sqlite3.connect(path)) as file:
        file.executescript(FORMAT_1)
        file.execute("INSERT INTO runs (run_id, owner, expires) VALUES (?, NULL, 0)", (b"old",))
        async for data in inner.read("old"):
            file.execute("INSERT INTO chunks (run, data) VALUES (1, ?)", (data,))
        file.commit()
    journal = SqliteJournal(path)
    reader = RunReader(journal)
    (run,) = await reader.runs()
    assert (run.status, run.started) == ("cancelled", 0)
    assert (await reader.view("old")).status == "cancelled"
    assert [pair async for pair in engine_of(journal).resume("old")]
    events = await read(reader, "old")
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert (await reader.run("old")).status == "completed"
    assert places(await reader.value("old", "each")) == [2, "ValueError", 4]
    await journal.aclose()


async def test_a_file_of_format_2_is_read_and_continued_with_columns(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "runs.db")
    async with aclosing(engine_of(journal).execute_async(INPUTS, run_id="old")) as pairs:
        await anext(pairs)
    written = await read(RunReader(journal), "old")
    with closing(sqlite3.connect(tmp_path / "runs.db")) as file:
        lines = [json.dumps(event.to_dict(), separators=(",", ":")) for event in written]
        file.execute("DELETE FROM events")
        for line, event in zip(lines, written, strict=True):
            file.execute("INSERT INTO events VALUES (1, ?, ?)", (event.seq, line.encode() + b"\n"))
        file.execute("PRAGMA user_version = 2")
        file.commit()
    await journal.aclose()
    reader = RunReader(journal)
    said = [event.to_dict() for event in written]
    assert [event.to_dict() for event in await read(reader, "old")] == said
    assert [pair async for pair in engine_of(journal).resume("old")]
    events = await read(reader, "old")
    assert [event.to_dict() for event in events[: len(said)]] == said
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert (await reader.view("old")).status == "completed"
    await journal.aclose()
    with closing(sqlite3.connect(tmp_path / "runs.db")) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (3,)


async def test_events_of_a_run_that_an_earlier_version_deleted_are_not_those_of_the_next(
    tmp_path: Path,
) -> None:
    journal = SqliteJournal(tmp_path / "runs.db")
    await engine_of(journal).execute(INPUTS, run_id="gone")
    with closing(sqlite3.connect(tmp_path / "runs.db")) as file:  # opened before the upgrade
        file.executescript("DELETE FROM chunks; DELETE FROM runs;")
    async with aclosing(engine_of(journal).execute_async(INPUTS, run_id="next")) as pairs:
        await anext(pairs)
    assert (await RunReader(journal).view("next")).status == "cancelled"
    await journal.aclose()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"since": timedelta(hours=2)}, "since is"),
        ({"before": "2026-01-01"}, "before is"),
        ({"name": ["nightly"]}, "name is"),
        ({"limit": "5"}, "limit is"),
        ({"limit": -1}, "limit is -1; give the number of runs to list"),
    ],
)
async def test_what_is_no_moment_name_or_number_is_refused(
    given: dict[str, Any], named: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=named):
        await RunReader(MemoryJournal()).runs(**given)
