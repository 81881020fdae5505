"""Runs that are gone on with: what is kept, what is run again, and who may."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from pydantic import BaseModel
from taskiq import InMemoryBroker
from taskiq.brokers.inmemory_broker import InmemoryResultBackend
from taskiq.serializers import PickleSerializer

from taskiq_flow import (
    DAG,
    Cache,
    ConfigurationError,
    DAGBuilder,
    ExecutionEngine,
    GraphChangedError,
    InputConflictError,
    JournalError,
    Lease,
    MapReduce,
    MemoryJournal,
    MissingNodeError,
    NodeCompleted,
    NodeFailedError,
    NodeRetried,
    Retry,
    RunCancelledError,
    RunLockedError,
    RunNotFoundError,
    RunSummary,
    RunTimeoutError,
    SerializationError,
)
from taskiq_flow.journal.history import restore_run
from taskiq_flow.journal.protocol import EventBatch
from taskiq_flow.testing import LocalBroker, LocalNotices
from tests.journal.test_reader import LogsOnly
from tests.local_flow import with_flow
from tests.recording import Recorder
from tests.virtual_clock import start_tasks_later, virtual_loop, virtually

pytestmark = pytest.mark.usefixtures("plain_task_ids")


class Site:
    """Three tasks in a row and one beside them, a journal, and what was executed."""

    def __init__(self, journal: Any = None, broker: Any = None) -> None:
        self.journal = journal or MemoryJournal()
        self.broker = broker or InMemoryBroker()
        self.executed: Counter[str] = Counter()
        self.fails: set[str] = set()
        self.waits: set[str] = set()

    def dag(self, *names: str, **options: Any) -> DAG:
        """``a`` takes ``x``, each further node the one before, ``beside`` takes ``a``."""
        builder = DAGBuilder()
        before = "x"
        for name in names or ("a", "b", "c"):
            builder.node(self.task(name), name=name, inputs=[before], **options)
            before = name
        builder.node(self.task("beside"), name="beside", inputs=["a"], **options)
        return builder.build()

    def task(self, name: str) -> Any:
        async def work(value: int) -> int:
            self.executed[name] += 1
            while name in self.waits:
                await asyncio.sleep(1)
            if name in self.fails:
                raise LookupError(name)
            return value + 1

        return work

    def engine(self, dag: DAG | None = None, **options: Any) -> ExecutionEngine:
        return ExecutionEngine(self.broker, dag or self.dag(), journal=self.journal, **options)


async def all_of(pairs: AsyncGenerator[tuple[str, Any], None]) -> list[tuple[str, Any]]:
    return [pair async for pair in pairs]


WHOLE = {"a": 2, "b": 3, "c": 4, "beside": 3}


async def test_a_run_goes_on_where_it_has_failed() -> None:
    site = Site()
    site.fails = {"b"}
    engine = site.engine()
    with pytest.raises(NodeFailedError):
        await engine.execute({"x": 1}, run_id="r")
    site.fails.clear()
    pairs = await all_of(engine.resume("r"))
    assert dict(pairs) == WHOLE
    assert pairs[0] == ("a", 2)
    assert site.executed["a"] == 1
    assert site.executed["b"] == 2


@pytest.mark.parametrize(
    ("begun", "other", "warns"),
    [("collect", "raise", True), ("collect", "collect", False), ("raise", "collect", False)],
)
async def test_who_resumes_with_the_default_in_place_of_another_on_error_is_warned(
    begun: Any, other: Any, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site()
    await all_of(site.engine(on_error=begun).execute_async({"x": 1}, run_id="r"))
    await all_of(site.engine(on_error=other).resume("r"))
    text = "run 'r' was begun with on_error='collect', and goes on with on_error='raise'"
    assert (text in caplog.text) == warns


async def test_a_run_that_is_done_is_told_again_and_nothing_is_run() -> None:
    site = Site()
    first = await all_of(site.engine().execute_async({"x": 1}, run_id="r"))
    recorder = Recorder()
    assert await all_of(site.engine(listeners=[recorder]).resume("r")) == first
    assert await all_of(site.engine().resume("r", replay=False)) == []
    assert set(site.executed.values()) == {1}
    assert [event.source for event in recorder.of(NodeCompleted)] == ["journal"] * 4


@pytest.mark.parametrize("end", ["break", "cancel", "timeout", "callback"])
@virtually
async def test_whatever_has_ended_a_run_it_goes_on(end: str) -> None:
    site = Site()
    site.waits = {"c"}
    engine = site.engine(run_timeout=5.0 if end == "timeout" else None)
    seen: list[tuple[str, Any]] = []
    reached: dict[str, Any] = {}

    async def read() -> None:
        async for pair in engine.execute_async({"x": 1}, run_id="r"):
            seen.append(pair)
            if len(seen) == 3 and end == "break":
                break
            if len(seen) == 3 and end == "cancel":
                engine.cancel()
            if len(seen) == 3 and end == "callback":
                raise ZeroDivisionError

    try:
        await read()
    except (RunCancelledError, ZeroDivisionError):
        pass
    except RunTimeoutError as timeout:
        reached.update(timeout.results)
    site.waits.clear()
    while engine._in_progress:  # the loop closes what a break has left
        await asyncio.sleep(1)
    assert end != "timeout" or reached == dict(seen)
    pairs = await all_of(site.engine().resume("r"))
    assert pairs[:3] == seen
    assert dict(pairs) == WHOLE
    assert all(count == 1 for name, count in site.executed.items() if name != "c")


async def test_a_pair_is_in_the_journal_before_it_is_yielded() -> None:
    site = Site()
    async for name, _ in site.engine().execute_async({"x": 1}, run_id="r"):
        assert name in (await restore_run(site.journal, "r")).results


async def test_what_is_made_ready_does_not_wait_for_the_journal() -> None:
    class Stuck(MemoryJournal):
        may_write = asyncio.Event()

        async def append(
            self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
        ) -> None:
            await self.may_write.wait()
            await super().append(run_id, lease, chunk, batch)

    site = Site(Stuck())
    reading = asyncio.ensure_future(all_of(site.engine().execute_async({"x": 1})))
    while len(site.executed) < 4:
        await asyncio.sleep(0)
    assert not reading.done()
    Stuck.may_write.set()
    assert dict(await reading) == WHOLE


async def test_a_journal_that_fails_ends_the_run_and_the_error_has_what_it_had_reached() -> None:
    start_tasks_later()

    class Failing(MemoryJournal):
        broken = False

        async def append(
            self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
        ) -> None:
            if self.broken:
                raise ConnectionError("gone")
            await super().append(run_id, lease, chunk, batch)

    journal = Failing()
    site = Site(journal)
    seen: list[str] = []
    with pytest.raises(JournalError, match="written to Failing: ConnectionError") as caught:
        async for name, _ in site.engine().execute_async({"x": 1}, run_id="r"):
            seen.append(name)
            journal.broken = True
    assert seen == ["a"]
    assert caught.value.results["a"] == 2
    journal.broken = False
    assert dict(await all_of(site.engine().resume("r"))) == WHOLE


@virtually
async def test_a_store_that_hangs_does_not_hold_up_the_end_of_a_run_for_long() -> None:
    class Hanging(MemoryJournal):
        async def append(
            self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
        ) -> None:
            await asyncio.sleep(10_000)

    site = Site(Hanging())
    engine = site.engine()
    running = asyncio.ensure_future(engine.execute({"x": 1}))
    while len(site.executed) < 4:
        await asyncio.sleep(0)
    engine.cancel()
    with pytest.raises(RunCancelledError):
        await running
    assert virtual_loop().time() < 15.0
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("where", ["input", "result"])
async def test_what_cannot_be_kept_is_an_error_that_names_it(where: str) -> None:
    async def odd(x: Any) -> object:
        return object()

    site = Site()
    dag = DAGBuilder().node(odd).build()
    engine = ExecutionEngine(site.broker, dag, journal=site.journal)
    if where == "input":
        with pytest.raises(SerializationError, match=r"a builtins.object as 'x'") as refused:
            await engine.execute({"x": object()})
        assert refused.value.key == "x"
        assert await site.journal.run_ids() == []
    else:
        with pytest.raises(NodeFailedError) as caught:
            await engine.execute({"x": 1})
        cause = caught.value.__cause__
        assert isinstance(cause, SerializationError)
        assert (cause.task_name, cause.value_type) == ("odd", object)


class Point(BaseModel):
    x: int


async def test_values_come_back_as_their_tasks_annotations_say() -> None:
    def point() -> Point:
        return Point(x=1)

    def pair(point: Point) -> tuple[int, int]:
        return point.x, 2

    dag = DAGBuilder().node(point).node(pair).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=MemoryJournal())
    first = await all_of(engine.execute_async(run_id="r"))
    assert await all_of(engine.resume("r")) == first == [("point", Point(x=1)), ("pair", (1, 2))]


async def test_another_serializer_keeps_what_json_does_not() -> None:
    journal = MemoryJournal(serializer=PickleSerializer())
    dag = DAGBuilder().node(lambda: {1: {2}}, name="n").build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
    await engine.execute(run_id="r")
    assert await all_of(engine.resume("r")) == [("n", {1: {2}})]


@pytest.mark.parametrize("outputs", [["b"], "b", iter(["b"])])
async def test_only_what_was_asked_for_is_asked_for_again(outputs: Any) -> None:
    site = Site()
    site.fails = {"b"}
    with pytest.raises(NodeFailedError):
        await site.engine().execute({"x": 1}, outputs=outputs, run_id="r")
    site.fails.clear()
    assert await all_of(site.engine().resume("r")) == [("a", 2), ("b", 3)]


async def test_several_outputs_are_kept_apart() -> None:
    dag = DAGBuilder().node(lambda: (1, 2), outputs=["a", "b"], name="two").build()
    grown = DAGBuilder().node(lambda: (1, 2), outputs=["a", "b"], name="two")
    grown.node(lambda a, b: a + b, name="sum")
    journal = MemoryJournal()
    await ExecutionEngine(InMemoryBroker(), dag, journal=journal).execute(run_id="r")
    engine = ExecutionEngine(InMemoryBroker(), grown.build(), journal=journal)
    pairs = await all_of(engine.resume("r", allow_changed=True))
    assert pairs == [("two", (1, 2)), ("sum", 3)]


async def test_references_are_kept_only_where_they_outlive_the_process() -> None:
    site = Site()
    with pytest.raises(ConfigurationError, match="end with this process"):
        await site.engine(pass_by="reference").execute({"x": 1})
    assert not site.executed


# Who may


async def test_a_run_that_somebody_is_at_is_not_gone_on_with() -> None:
    site = Site()
    site.waits = {"c"}
    engine = site.engine()
    running = asyncio.ensure_future(engine.execute({"x": 1}, run_id="r"))
    while "c" not in site.executed:
        await asyncio.sleep(0)
    with pytest.raises(RunLockedError, match="run 'r' is locked by this process, which has not"):
        await anext(site.engine().resume("r"))
    engine.cancel()
    with pytest.raises(RunCancelledError):
        await running
    site.waits.clear()
    assert dict(await all_of(site.engine().resume("r"))) == WHOLE


@pytest.mark.parametrize("how", ["execute", "start", "many", "map"])
@virtually
async def test_a_job_that_is_started_again_waits_for_the_lease_of_a_killed_engine(how: str) -> None:
    site = Site()

    async def job(engine: ExecutionEngine, *, resume: bool = True) -> Any:
        if how == "execute":
            return await engine.execute({"x": 1}, run_id="r", resume=resume)
        if how == "start":
            return await engine.start({"x": 1}, run_id="r", resume=resume)
        if how == "map":
            mapped = await MapReduce.map(
                site.broker, abs, [-1], journal=site.journal, run_id="r", resume=resume
            )
            return (await mapped.wait_result()).return_value
        many = engine.execute_many([{"x": 1}], run_id="r", resume=resume, whole=True)
        return [results async for _, results in many]

    whole = await job(site.engine(), resume=False)
    loop = asyncio.get_running_loop()
    await site.journal.acquire("r", Lease("killed engine"))
    before = loop.time()
    assert await job(site.engine()) == whole
    assert 9 < loop.time() - before < 11


@virtually
async def test_a_job_that_is_started_twice_is_refused_while_the_first_one_runs() -> None:
    site = Site()
    site.waits = {"c"}
    running = asyncio.ensure_future(site.engine().execute({"x": 1}, run_id="r", resume=True))
    while "c" not in site.executed:
        await asyncio.sleep(0)
    with pytest.raises(RunLockedError, match="run 'r' is locked by"):
        await site.engine().execute({"x": 1}, run_id="r", resume=True)
    site.waits.clear()
    assert await running == WHOLE


@virtually
async def test_an_engine_whose_lease_was_taken_over_stops() -> None:
    site = Site()
    site.waits = {"c"}
    running = asyncio.ensure_future(site.engine().execute({"x": 1}, run_id="r"))
    while "c" not in site.executed:
        await asyncio.sleep(0)
    site.journal._logs["r"].owner = "somebody else"
    with pytest.raises(RunLockedError, match="taken over by another engine") as caught:
        await running
    assert caught.value.results == {"a": 2, "b": 3, "beside": 3}


async def test_a_run_id_is_used_once() -> None:
    site = Site()
    await site.engine().execute({"x": 1}, run_id="r")
    executed = site.executed.copy()
    with pytest.raises(JournalError, match=r"continue it with engine.resume\('r'\)"):
        await site.engine().execute({"x": 1}, run_id="r")
    assert site.executed == executed


async def test_a_run_that_is_not_there_and_an_engine_without_a_journal() -> None:
    site = Site()
    with pytest.raises(RunNotFoundError, match="has no run 'r'") as caught:
        await anext(site.engine().resume("r"))
    assert caught.value.run_id == "r"
    engine = ExecutionEngine(site.broker, site.dag())
    for stream in (engine.resume("r"), engine.rerun("r", ["a"])):
        with pytest.raises(ConfigurationError, match="this engine has no journal"):
            await anext(stream)


async def test_a_resumption_that_fails_early_gives_the_run_back() -> None:
    site = Site()
    await site.engine().execute({"x": 1}, run_id="r")
    with pytest.raises(GraphChangedError):
        await anext(site.engine(site.dag("a", "z")).resume("r"))
    assert len(await all_of(site.engine().resume("r"))) == 4


# Changed graphs


async def test_a_changed_graph_is_an_error_that_shows_what_has_changed() -> None:
    site = Site()
    await site.engine().execute({"x": 1}, run_id="r")
    changed = DAGBuilder().node(site.task("a"), name="a", inputs=["x"])
    changed.node(site.task("b"), name="b", inputs=["x"]).node(
        site.task("d"), name="d", inputs=["a"]
    )
    engine = site.engine(changed.node(site.task("beside"), name="beside", inputs=["a"]).build())
    with pytest.raises(GraphChangedError, match="added: d; removed: c; changed: b") as caught:
        await anext(engine.resume("r"))
    assert (caught.value.added, caught.value.removed, caught.value.changed) == (["d"], ["c"], ["b"])
    site.executed.clear()
    pairs = await all_of(engine.resume("r", allow_changed=True))
    assert dict(pairs) == {"a": 2, "beside": 3, "b": 2, "d": 3}
    assert [name for name, _ in pairs[:2]] == ["a", "beside"]
    assert site.executed == {"b": 1, "d": 1}


async def test_a_run_that_was_gone_on_with_in_another_graph_is_that_graphs_from_then_on() -> None:
    site = Site()
    old, new = site.engine(), site.engine(site.dag("a", "c", "b"))
    await old.execute({"x": 1}, run_id="r")
    changed = await all_of(new.resume("r", allow_changed=True))
    assert dict(changed) == {"a": 2, "c": 3, "b": 4, "beside": 3}
    site.executed.clear()
    assert dict(await all_of(new.resume("r"))) == dict(changed)
    assert not site.executed
    with pytest.raises(GraphChangedError, match="changed: b, c"):
        await anext(old.resume("r"))
    assert dict(await all_of(old.resume("r", allow_changed=True))) == WHOLE
    assert site.executed == {"b": 1, "c": 1}


@pytest.mark.parametrize("letters", ["abc", "ab"])
async def test_a_changed_node_may_be_given_other_items_of_iterators(letters: str) -> None:
    def engine(*keys: str) -> ExecutionEngine:
        async def of_page(page: int, letter: str = "") -> str:
            return f"{page}{letter}"

        async def text(n: Any = ()) -> str:
            return "".join(n)

        graph = DAGBuilder().node(of_page, name="n", inputs=[*keys], map_over=[*keys])
        graph.node(text, inputs=["n"], join="ended")
        options: Any = {"on_error": "collect", "journal": journal}
        return ExecutionEngine(InMemoryBroker(), graph.build(), **options)

    journal = MemoryJournal()
    await engine("pages").execute({"pages": iter([1, 2, 3])}, run_id="r")
    for _ in range(2):  # the journal knows it from then on
        given = {"pages": iter([1, 2, 3]), "letters": iter(letters)}
        again = engine("pages", "letters").resume("r", inputs=given, allow_changed=True)
        assert dict(await all_of(again))["text"] == "1a2b3c"[: 2 * len(letters)]
    given = {"pages": iter([1, 5, 3]), "letters": iter(letters)}
    with pytest.raises(GraphChangedError, match="item 1 of node 'n' is not the one"):
        await all_of(engine("pages", "letters").resume("r", inputs=given))


async def test_a_failed_attempt_that_is_taken_up_counts_once() -> None:
    site = Site()
    site.fails = {"b"}
    engine = site.engine(site.dag(retry=Retry(2, wait=0.2, jitter=0)))
    async with aclosing(engine.execute_async({"x": 1}, run_id="r")) as pairs:
        assert {(await anext(pairs))[0] for _ in range(2)} == {"a", "beside"}
        assert site.executed["b"] == 1
    site.fails.clear()
    assert dict(await all_of(site.engine(retry=Retry(2, wait=0)).resume("r"))) == WHOLE
    assert site.executed["b"] == 2


async def test_more_than_a_store_takes_at_once_is_written_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("taskiq_flow.journal.writer.MAX_CHUNK_BYTES", 1000)
    site = Site()
    dag = DAGBuilder()
    for number in range(20):
        dag.node(lambda size: "x" * size, name=f"n{number}", inputs=["size"])
    engine = site.engine(dag.build())
    first = await all_of(engine.execute_async({"size": 600}, run_id="r"))
    sizes = [len(chunk) for chunk in site.journal._logs["r"].chunks[1:]]
    assert max(sizes) < 1100
    assert await all_of(engine.resume("r")) == first


async def test_a_tasks_code_may_be_mended() -> None:
    site = Site()
    site.fails = {"b"}
    with pytest.raises(NodeFailedError):
        await site.engine().execute({"x": 1}, run_id="r")
    mended = Site(site.journal)
    assert dict(await all_of(mended.engine().resume("r"))) == WHOLE
    assert "a" not in mended.executed


# Running again


async def test_nodes_are_run_again_with_all_that_depends_on_them_as_another_run() -> None:
    site = Site()
    await site.engine().execute({"x": 1}, run_id="r")
    site.executed.clear()
    pairs = await all_of(site.engine().rerun("r", ["b"], new_run_id="s"))
    assert dict(pairs) == WHOLE
    assert {name for name, _ in pairs[:2]} == {"a", "beside"}
    assert site.executed == {"b": 1, "c": 1}
    assert await site.journal.run_ids() == ["r", "s"]
    site.executed.clear()
    for run_id in ("r", "s"):
        assert dict(await all_of(site.engine().resume(run_id))) == WHOLE
    assert not site.executed
    assert await all_of(site.engine().rerun("r", "c", replay=False)) == [("c", 4)]


async def test_nodes_that_take_other_inputs_run_again() -> None:
    executed: list[str] = []

    def add(left: int, right: int) -> int:
        executed.append("add")
        return left + right

    def double(number: int) -> int:
        executed.append("double")
        return number * 2

    dag = (
        DAGBuilder()
        .node(double, name="left", inputs={"number": "x"})
        .node(double, name="right", inputs={"number": "y"})
        .node(add, inputs=["left", "right"])
        .node(double, name="each", inputs={"number": "many"}, map_over="many")
        .build()
    )
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=MemoryJournal())
    await engine.execute({"x": 1, "y": 2, "many": [1, 2]}, run_id="r")
    executed.clear()
    again = engine.rerun("r", [], inputs={"y": 5}, new_run_id="s")
    assert dict(await all_of(again)) == {"left": 2, "right": 10, "add": 12, "each": [2, 4]}
    assert executed == ["double", "add"]
    again = engine.rerun("s", ["left"], inputs={"many": [7]}, new_run_id="t")
    assert dict(await all_of(again)) == {"left": 2, "right": 10, "add": 12, "each": [14]}
    executed.clear()
    assert dict(await all_of(engine.resume("t")))["each"] == [14]
    assert executed == []
    with pytest.raises(InputConflictError, match="its own nodes produce"):
        await anext(engine.rerun("r", [], inputs={"left": 1}))


@pytest.mark.parametrize("make", [MemoryJournal, lambda: LogsOnly(MemoryJournal())])
@virtually
async def test_a_run_that_an_engine_has_is_not_run_again_until_it_is_interrupted(make: Any) -> None:
    site = Site(make())
    site.waits = {"c"}
    running = asyncio.ensure_future(site.engine().execute({"x": 1}, run_id="r"))
    while "c" not in site.executed:
        await asyncio.sleep(0)
    with pytest.raises(RunLockedError, match="run 'r' is in progress, and what it has yet to do"):
        await anext(site.engine().rerun("r", ["b"], new_run_id="s"))
    assert await site.journal.run_ids() == ["r"]
    running.cancel()
    await asyncio.wait([running])
    site.waits.clear()
    site.executed.clear()
    both = [site.engine().start_rerun("r", ["b"], new_run_id=name) for name in "st"]
    assert await asyncio.gather(*both) == [WHOLE, WHOLE]
    assert site.executed == {"b": 2, "c": 2}


async def test_a_list_of_a_completed_run_comes_before_what_was_made_of_it() -> None:
    dag = (
        DAGBuilder()
        .node(abs, name="each", inputs=["many"], map_over="many")
        .node(sum, name="total", inputs=["each"])
        .node(abs, name="last", inputs=["total"])
        .build()
    )
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=MemoryJournal())
    await engine.execute({"many": [-1, -2]}, run_id="r")
    again = await all_of(engine.resume("r"))
    assert again == [("each", [1, 2]), ("total", 3), ("last", 3)]


async def test_a_node_that_the_graph_does_not_have_cannot_be_run_again() -> None:
    site = Site()
    await site.engine().execute({"x": 1}, run_id="r")
    with pytest.raises(MissingNodeError, match="no node 'z'"):
        await anext(site.engine().rerun("r", ["z"]))
    assert await site.journal.run_ids() == ["r"]


# What was in flight


class Remote:
    """A broker with a queue, whose worker outlives engines."""

    def __init__(self) -> None:
        self.board = LocalNotices()
        self.broker = LocalBroker()
        self.flow = with_flow(self.broker, self.board)
        self.journal = MemoryJournal()
        self.executed: list[str] = []
        self.may_end = asyncio.Event()

        @self.broker.task(task_name="held")
        async def held() -> str:
            self.executed.append("held")
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                self.executed.append("cancelled")
                raise
            return "done"

        self.held = held
        self.dag = DAGBuilder().node(held).build()

    def engine(self, **options: Any) -> ExecutionEngine:
        return ExecutionEngine(self.broker, self.dag, journal=self.journal, **options)

    async def crash(self, engine: ExecutionEngine) -> None:
        """Let a run come to nothing as a killed process does: nobody hears of it any more."""
        running = asyncio.ensure_future(engine.execute(run_id="r"))
        while "held" not in self.executed:
            await asyncio.sleep(0)
        while not (await restore_run(self.journal, "r")).in_flight:
            await asyncio.sleep(0)
        (in_progress,) = engine._in_progress
        run = in_progress._run
        assert run is not None
        run._completions.revoke = lambda: None  # type: ignore[method-assign]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@virtually
async def test_a_task_that_has_ended_meanwhile_is_not_sent_again() -> None:
    remote = Remote()
    async with remote.broker.worker():
        await remote.crash(remote.engine())
        remote.may_end.set()
        while not remote.broker.results.stored:
            await asyncio.sleep(0)
        assert await all_of(remote.engine().resume("r")) == [("held", "done")]
        assert remote.executed == ["held"]
    await remote.flow.shutdown()


@virtually
async def test_a_result_that_is_looked_into_is_picked_up_by_value() -> None:
    remote = Remote()
    builder = DAGBuilder().node(remote.held)
    builder.node(remote.held, name="later", inputs=[], when=lambda held: held == "done")
    remote.dag = builder.build()
    async with remote.broker.worker():
        await remote.crash(remote.engine(pass_by="reference"))
        remote.may_end.set()
        while not remote.broker.results.stored:
            await asyncio.sleep(0)
        results = dict(await all_of(remote.engine(pass_by="reference").resume("r")))
        assert results["held"] == "done"
        assert await results["later"].get() == "done"
        assert remote.executed == ["held", "held"]
    await remote.flow.shutdown()


@virtually
async def test_a_task_that_still_runs_is_cancelled_and_sent_as_another_attempt() -> None:
    remote = Remote()

    class Releasing(Recorder):
        def on_event(self, event: Any) -> None:
            super().on_event(event)
            if isinstance(event, NodeRetried):
                remote.may_end.set()

    recorder = Releasing()

    async with remote.broker.worker():
        await remote.crash(remote.engine())
        resumed = remote.engine(listeners=[recorder], retry=Retry(1))
        assert await all_of(resumed.resume("r")) == [("held", "done")]
        assert sorted(remote.executed) == ["cancelled", "held", "held"]
        (retried,) = recorder.of(NodeRetried)
        assert (retried.task_id, retried.error) == ("r:held:2", None)
    await remote.flow.shutdown()


@virtually
async def test_what_a_reader_changes_does_not_reach_a_task_that_is_picked_up() -> None:
    class Asked(InmemoryResultBackend[Any]):
        async def is_result_ready(self, task_id: str) -> bool:
            await asyncio.sleep(1)
            return False

    given: list[list[int]] = []

    async def items() -> list[int]:
        return [1]

    async def take(items: list[int]) -> int:
        given.append(list(items))
        if len(given) == 1:
            engine.cancel()
            await asyncio.sleep(60)
        return len(items)

    dag, journal = DAGBuilder().node(items).node(take).build(), MemoryJournal()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)

    with pytest.raises(RunCancelledError):
        await engine.execute(run_id="r")
    broker = InMemoryBroker().with_result_backend(Asked())
    async for _, value in ExecutionEngine(broker, dag, journal=journal).resume("r"):
        if isinstance(value, list):
            value.append(2)
    assert given == [[1], [1]]


@pytest.mark.parametrize("call", [1, 2, 3])
async def test_a_cancellation_that_a_journal_raises_is_an_error_of_the_journal(call: int) -> None:
    class Closed(MemoryJournal):
        calls = 0

        async def append(
            self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
        ) -> None:
            Closed.calls += 1
            if Closed.calls == call:
                raise asyncio.CancelledError("connection closed")
            await super().append(run_id, lease, chunk, batch)

    site, read = Site(Closed()), list[tuple[str, Any]]()
    with pytest.raises(JournalError, match="connection closed"):
        async for pair in site.engine().execute_async({"x": 1}, run_id="r"):
            read.append(pair)
    assert sorted([*await all_of(site.engine().resume("r"))]) == [
        ("a", 2),
        ("b", 3),
        ("beside", 3),
        ("c", 4),
    ]


async def test_a_cancellation_that_a_journal_raises_at_first_is_an_error_of_the_journal() -> None:
    class Closed(MemoryJournal):
        async def create(
            self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
        ) -> None:
            raise asyncio.CancelledError("connection closed")

    with pytest.raises(JournalError, match="CancelledError"):
        await Site(Closed()).engine().execute({"x": 1})


@virtually
async def test_a_journal_that_hangs_does_not_keep_a_run_from_timing_out() -> None:
    class Hanging(MemoryJournal):
        async def append(
            self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
        ) -> None:
            await asyncio.Event().wait()

    for waits in (set(), {"c"}):
        site, since = Site(Hanging()), virtual_loop().time()
        site.waits = waits
        with pytest.raises(RunTimeoutError):
            await site.engine(run_timeout=1.0).execute({"x": 1})
        assert virtual_loop().time() - since < 15.0


@pytest.mark.parametrize("how", ["a scope", "twice"])
@virtually
async def test_a_beginning_that_is_cancelled_gives_the_lease_back(how: str) -> None:
    class Far(MemoryJournal):
        async def create(
            self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
        ) -> None:
            await asyncio.sleep(1)
            await super().create(run_id, lease, chunk, batch)
            await asyncio.sleep(1)

        async def release(self, run_id: str, lease: Lease) -> None:
            await asyncio.sleep(1)
            await super().release(run_id, lease)

    site = Site(Far())
    if how == "a scope":
        with anyio.move_on_after(1.5):
            await site.engine().execute({"x": 1}, run_id="r")
    else:
        running = asyncio.ensure_future(site.engine().execute({"x": 1}, run_id="r"))
        for seconds in (1.5, 0.2):
            await asyncio.sleep(seconds)
            running.cancel()
        await asyncio.wait([running])
    assert len(await all_of(site.engine().resume("r"))) == 4


@pytest.mark.parametrize("seconds", [0.5, 1.5, 2.5, 3.5])
@virtually
async def test_a_resumption_that_is_cancelled_early_gives_the_lease_back(seconds: float) -> None:
    class Far(MemoryJournal):
        async def acquire(self, run_id: str, lease: Lease) -> None:
            await asyncio.sleep(1)
            await super().acquire(run_id, lease)
            await asyncio.sleep(1)

        async def summary(self, run_id: str) -> RunSummary:
            await asyncio.sleep(1)
            return await super().summary(run_id)

    site = Site(Far())
    site.fails.add("c")
    with pytest.raises(NodeFailedError):
        await site.engine().execute({"x": 1}, run_id="r")
    site.fails.clear()
    resuming = asyncio.ensure_future(all_of(site.engine().resume("r")))
    await asyncio.sleep(seconds)
    resuming.cancel()
    await asyncio.wait([resuming])
    assert len(await all_of(site.engine().resume("r"))) == 4


@pytest.mark.filterwarnings("ignore::taskiq_flow.PollingWarning")
@virtually
async def test_a_fallback_that_failed_runs_again_with_the_next_session() -> None:
    broker, journal, calls = LocalBroker(), MemoryJournal(), list[str]()

    @broker.task
    async def failing() -> int:
        raise LookupError

    @broker.task
    async def instead() -> str:
        calls.append("instead")
        if len(calls) == 1:
            raise OSError
        await asyncio.sleep(10)  # the result backend is asked meanwhile
        return "fallback"

    dag = DAGBuilder().node(failing, name="n", fallback=instead).build()
    async with broker.worker():
        with pytest.raises(NodeFailedError):
            await ExecutionEngine(broker, dag, journal=journal).execute(run_id="r")
        resumed = ExecutionEngine(broker, dag, journal=journal)
        assert await all_of(resumed.resume("r")) == [("n", "fallback")]


FACTOR = [1]


async def test_rerun_computes_cached_nodes_anew() -> None:
    async def work(x: int) -> int:
        return x * FACTOR[0]

    def engine() -> ExecutionEngine:
        dag = DAGBuilder().node(lambda x: x, name="x2").node(work, inputs=["x2"], cache=Cache())
        return ExecutionEngine(InMemoryBroker(), dag.build(), journal=journal)

    journal = MemoryJournal()
    await engine().execute({"x": 3}, run_id="r")
    FACTOR[0] = 10  # which no key contains, as it is global
    assert (await engine().execute({"x": 3}))["work"] == 3
    assert dict(await all_of(engine().rerun("r", ["work"]))) == {"x2": 3, "work": 30}
    assert (await engine().execute({"x": 3}))["work"] == 30
