"""Results that are taken again instead of being computed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import struct
import time
import warnings
import weakref
from collections import ChainMap
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    Cache,
    DAGBuilder,
    ExecutionEngine,
    MemoryJournal,
    NodeCompleted,
    NodeFailedError,
    NotCachedWarning,
    Retry,
    RunCancelledError,
    RunError,
    RunTimeoutError,
)
from taskiq_flow.cache.key import cache_key
from taskiq_flow.cache.results import Claim, ResultCache
from taskiq_flow.cache.store import CacheStore, MemoryCacheStore
from taskiq_flow.values.size import is_large
from tests.recording import Recorder
from tests.virtual_clock import run_virtually, virtual_loop, virtually


class Work:
    """A task that takes its time, and counts what it does; one test at a time."""

    executed: ClassVar[list[int]] = []
    fails = 0

    def __init__(self) -> None:
        Work.executed, Work.fails = [], 0
        self.task = work


async def work(x: int) -> int:
    Work.executed.append(x)
    await asyncio.sleep(5)
    if Work.fails:
        Work.fails -= 1
        raise LookupError(x)
    return 10 * x


def engine_of(work: Any, journal: Any = None, **options: Any) -> ExecutionEngine:
    node = {"cache": Cache(), **options.pop("node", {})}
    dag = DAGBuilder().node(work, name="n", **node).build()
    return ExecutionEngine(InMemoryBroker(), dag, journal=journal, **options)


@virtually
async def test_a_result_is_taken_again_for_the_same_inputs_only() -> None:
    work, recorder = Work(), Recorder()
    engine = engine_of(work.task, listeners=[recorder])
    for x in (1, 1, 2, 1):
        assert await engine.execute({"x": x}) == {"n": 10 * x}
    assert work.executed == [1, 2]
    assert [event.source for event in recorder.of(NodeCompleted)] == [
        "task",
        "cache",
        "task",
        "cache",
    ]
    assert virtual_loop().time() == 10.0


@virtually
async def test_nothing_is_cached_unless_it_is_asked_for() -> None:
    work = Work()
    engine = engine_of(work.task, node={"cache": None})
    await engine.execute({"x": 1})
    await engine.execute({"x": 1})
    assert work.executed == [1, 1]


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("shared", [True, False])
@virtually
async def test_what_several_want_at_once_is_computed_once(
    *, shared: bool, limit: int | None
) -> None:
    work = Work()
    dag = DAGBuilder().node(work.task, name="n", cache=Cache())
    dag.node(work.task, name="m", cache=Cache())
    journal = MemoryJournal()
    engines = [
        ExecutionEngine(InMemoryBroker(), dag.build(), limit, journal=journal)
        for _ in range(1 if shared else 3)
    ]
    runs = [engine.execute({"x": 1}) for engine in engines * (3 if shared else 1)]
    assert await asyncio.gather(*runs) == [{"n": 10, "m": 10}] * 3
    assert work.executed == [1]


@virtually
async def test_engines_without_a_journal_keep_results_to_themselves() -> None:
    work = Work()
    for _ in range(2):
        await engine_of(work.task).execute({"x": 1})
    assert work.executed == [1, 1]


@virtually
async def test_a_result_is_kept_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", virtual_loop().time)
    work = Work()
    engine = engine_of(work.task, node={"cache": Cache(ttl=60.0)})
    await engine.execute({"x": 1})
    await asyncio.sleep(59)
    await engine.execute({"x": 1})
    assert work.executed == [1]
    await asyncio.sleep(2)
    await engine.execute({"x": 1})
    await engine.execute({"x": 1})
    assert work.executed == [1, 1]


@virtually
async def test_a_failure_is_not_kept_and_the_next_one_tries() -> None:
    work = Work()
    Work.fails = 1
    engine = engine_of(work.task)
    failing, waiting = (asyncio.ensure_future(engine.execute({"x": 1})) for _ in range(2))
    with pytest.raises(NodeFailedError):
        await failing
    assert await waiting == {"n": 10}


@pytest.mark.parametrize("limit", [None, 1])
@virtually
async def test_who_waits_for_another_leaves_it_the_place_for_its_next_attempt(
    limit: int | None,
) -> None:
    work = Work()
    Work.fails = 1
    dag = DAGBuilder().node(work.task, name="n", cache=Cache(), retry=Retry(wait=7.0))
    dag.node(work.task, name="m", cache=Cache(), retry=Retry(wait=7.0))
    engine = ExecutionEngine(InMemoryBroker(), dag.build(), limit)
    assert await engine.execute({"x": 1}) == {"n": 10, "m": 10}
    assert work.executed == [1, 1]


@virtually
async def test_a_fallback_is_not_kept() -> None:
    work = Work()
    Work.fails = 1
    engine = engine_of(work.task, node={"fallback": 0})
    assert await engine.execute({"x": 1}) == {"n": 0}
    assert await engine.execute({"x": 1}) == {"n": 10}


@virtually
async def test_a_run_that_is_cancelled_leaves_no_claim() -> None:
    work = Work()
    engine = engine_of(work.task, journal=MemoryJournal())
    running = asyncio.ensure_future(engine.execute({"x": 1}))
    while not work.executed:
        await asyncio.sleep(0)
    engine.cancel()
    with pytest.raises(RunCancelledError):
        await running
    assert await engine.execute({"x": 1}) == {"n": 10}
    assert virtual_loop().time() == 5.0
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("end", ["fails", "is cancelled", "runs out of time"])
@virtually
async def test_a_run_that_has_ended_keeps_nobody_waiting_until_it_is_read_to_its_end(
    end: str,
) -> None:
    async def early() -> int:
        return 0

    async def later(early: int) -> int:
        await asyncio.sleep(2)
        raise LookupError

    work, journal = Work(), MemoryJournal()
    dag = DAGBuilder().node(work.task, name="n", cache=Cache()).node(early)
    if end == "fails":
        dag.node(later)
    ending = ExecutionEngine(
        InMemoryBroker(),
        dag.build(),
        journal=journal,
        run_timeout=2.0 if end == "runs out of time" else None,
    )
    async with contextlib.aclosing(ending.execute_async({"x": 1})) as pairs:
        assert await anext(pairs) == ("early", 0)
        waiting = asyncio.ensure_future(engine_of(work.task, journal).execute({"x": 1}))
        await asyncio.sleep(2)
        if end == "is cancelled":
            ending.cancel()
        assert await asyncio.wait_for(waiting, 60) == {"n": 10}
        assert work.executed == [1, 1]
        with pytest.raises(RunError):
            await anext(pairs)


async def long(x: int) -> int:
    Work.executed.append(x)
    await asyncio.sleep(300)
    return x


@virtually
async def test_a_claim_is_kept_for_as_long_as_the_task_runs() -> None:
    work, engine = Work(), engine_of(long)
    assert await asyncio.gather(*(engine.execute({"x": 1}) for _ in range(2))) == [{"n": 1}] * 2
    assert work.executed == [1]


async def take(odd: Any) -> int:
    Work.executed.append(0)
    if len(Work.executed) % 2:
        raise LookupError
    return len(Work.executed)


@virtually
async def test_an_input_that_cannot_be_hashed_means_no_caching_and_one_warning() -> None:
    Work()
    engine = engine_of(take, node={"retry": Retry(wait=0)})
    for expected in (2, 4):
        with pytest.warns(NotCachedWarning) as warned:
            results = await engine.execute({"odd": ChainMap()})
        assert results == {"n": expected}
        assert len(warned) == 1
        assert "node 'n' is not cached: argument 'odd': it is a collections.ChainMap" in str(
            warned[0].message
        )


@virtually
async def test_a_result_that_cannot_be_kept_is_given_all_the_same() -> None:
    async def odd() -> object:
        return len

    engine = engine_of(odd)
    for _ in range(2):
        with pytest.warns(NotCachedWarning, match="node 'n' is not cached"):
            assert await engine.execute() == {"n": len}


class Point(BaseModel):
    x: int


@virtually
async def test_a_cached_value_is_as_the_tasks_annotation_says() -> None:
    async def point() -> Point:
        return Point(x=1)

    engine = engine_of(point)
    assert [await engine.execute() for _ in range(2)] == [{"n": Point(x=1)}] * 2


def test_a_store_that_does_not_take_a_result_costs_nothing_but_the_next_time() -> None:
    class Full(MemoryCacheStore):
        async def put(self, key: str, value: bytes, seconds: float | None) -> None:
            raise OSError("full")

    async def main() -> None:
        work = Work()
        engine = engine_of(work.task)
        engine._starter._cache_store = Full()
        for _ in range(2):
            assert await engine.execute({"x": 1}) == {"n": 10}
        assert work.executed == [1, 1]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_virtually(main())


# The store


class Counting(MemoryCacheStore):
    """Counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.questions = 0

    async def get(self, key: str) -> bytes | None:
        self.questions += 1
        return await super().get(key)

    async def claim(self, key: str, owner: str, seconds: float) -> bool:
        self.questions += 1
        return await super().claim(key, owner, seconds)


async def minute(x: int) -> int:
    Work.executed.append(x)
    await asyncio.sleep(60)
    return x


def wide(task: Any, width: int, **node: Any) -> DAG:
    builder = DAGBuilder()
    for number in range(width):
        builder.node(task, name=f"n{number}", **{"cache": Cache(), **node})
    return builder.build()


def with_store(store: CacheStore, dag: DAG, **options: Any) -> ExecutionEngine:
    engine = ExecutionEngine(InMemoryBroker(), dag, **options)
    engine._starter._cache_store = store
    return engine


@virtually
async def test_those_who_wait_in_one_process_ask_the_store_nothing() -> None:
    work, store = Work(), Counting()
    results = await with_store(store, wide(minute, 50)).execute({"x": 1})
    assert results == {f"n{number}": 1 for number in range(50)}
    assert work.executed == [1]
    assert store.questions < 50  # the first, and its claim while it is kept


@virtually
async def test_those_who_wait_for_another_process_ask_as_one() -> None:
    work, store = Work(), Counting()
    key = cache_key(minute, [], {"x": 1})
    await store.claim(key, "another process", 60.0)
    running = asyncio.ensure_future(with_store(store, wide(minute, 50)).execute({"x": 1}))
    await asyncio.sleep(30)
    assert store.questions < 250  # two each half a second
    await store.put(key, struct.pack(">d", time.time()) + b"7", None)
    await store.release(key, "another process")
    assert await running == {f"n{number}": 7 for number in range(50)}
    assert work.executed == []


@pytest.mark.parametrize("how", ["raises", "hangs"])
@virtually
async def test_a_store_that_is_away_costs_time_and_one_warning(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Away(MemoryCacheStore):
        async def get(self, key: str) -> bytes | None:
            if how == "raises":
                raise ConnectionError("away")
            await asyncio.Event().wait()
            return None

    work, store = Work(), Away()
    engine = with_store(store, wide(work.task, 20))
    for _ in range(2):
        assert await engine.execute({"x": 1}) == {f"n{number}": 10 for number in range(20)}
    assert virtual_loop().time() < 25.0
    assert caplog.text.count("the cache cannot be used") == 1


@virtually
async def test_a_store_that_begins_to_hang_keeps_nobody_waiting_once_for_each_key() -> None:
    class Hanging(MemoryCacheStore):
        hangs = False

        async def claim(self, key: str, owner: str, seconds: float) -> bool:
            if self.hangs:
                await asyncio.Event().wait()
            return await super().claim(key, owner, seconds)

    work, store = Work(), Hanging()
    for x in range(20):
        await store.claim(cache_key(work.task, [], {"x": x}), "another process", 60.0)
    engine = with_store(store, wide(work.task, 1))
    running = [asyncio.ensure_future(engine.execute({"x": x})) for x in range(20)]
    await asyncio.sleep(1)
    store.hangs = True
    await asyncio.gather(*running)
    assert virtual_loop().time() < 20.0


@pytest.mark.parametrize("ttl", [1e-9, None])
@virtually
async def test_while_a_result_is_being_written_nobody_asks_for_it_again_and_again(
    ttl: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(MemoryCacheStore):
        async def put(self, key: str, value: bytes, seconds: float | None) -> None:
            await asyncio.sleep(4)

    looked_up: list[str] = []
    look_up = ResultCache.look_up

    async def counted(cache: ResultCache, key: str, *terms: Any) -> Any:
        looked_up.append(key)
        return await look_up(cache, key, *terms)

    monkeypatch.setattr(ResultCache, "look_up", counted)

    work, store = Work(), Slow()
    dag = wide(work.task, 2, cache=Cache(ttl=ttl))
    assert await with_store(store, dag).execute({"x": 1}) == {"n0": 10, "n1": 10}
    assert len(looked_up) < 5


@virtually
async def test_a_damaged_entry_is_computed_and_written_anew_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work, store = Work(), MemoryCacheStore()
    await store.put(cache_key(work.task, [], {"x": 1}), b"damaged", None)
    engine = with_store(store, wide(work.task, 1))
    for _ in range(2):
        assert await engine.execute({"x": 1}) == {"n0": 10}
    assert work.executed == [1]
    assert caplog.text.count("cannot be read") == 1


@virtually
async def test_what_one_taker_changes_is_not_what_the_next_one_gets() -> None:
    async def listed(x: int) -> list[int]:
        await asyncio.sleep(1)
        return [x]

    engine = with_store(MemoryCacheStore(), wide(listed, 3))
    async for _, value in engine.execute_async({"x": 1}):
        assert value == [1]
        value.append(2)


def test_a_key_of_many_values_is_made_without_blocking_the_loop() -> None:
    assert is_large([[1] * 2_000])
    assert is_large({"a": "x" * 2_000_000})
    assert not is_large([1, "a", {"b": (2, 3)}])


@virtually
async def test_a_run_that_is_left_while_it_waits_for_another_leaves_no_callback() -> None:
    Work()
    store = MemoryCacheStore()
    computing = asyncio.ensure_future(with_store(store, wide(minute, 1)).execute({"x": 1}))
    while not Work.executed:
        await asyncio.sleep(0)
    engine = with_store(store, wide(minute, 3))
    leaving = asyncio.ensure_future(engine.execute({"x": 1}))
    await asyncio.sleep(1)
    (in_progress,) = engine._in_progress
    run = weakref.ref(in_progress._run)
    del in_progress
    leaving.cancel()
    await asyncio.wait([leaving])
    del leaving
    gc.collect()
    assert run() is None
    assert await computing == {"n0": 1}


@virtually
async def test_a_result_from_the_future_is_not_taken_for_a_fresh_one() -> None:
    work, store = Work(), MemoryCacheStore()
    key = cache_key(work.task, [], {"x": 1})
    await store.put(key, struct.pack(">d", time.time() + 1_000_000) + b"7", None)
    engine = with_store(store, wide(work.task, 1, cache=Cache(ttl=60)))
    assert await engine.execute({"x": 1}) == {"n0": 10}


class Old(BaseModel):
    name: str


class New(BaseModel):
    title: str


@virtually
async def test_a_result_that_does_not_fit_its_type_any_more_is_computed_anew() -> None:
    async def read(x: int) -> New:
        Work.executed.append(x)
        return New(title="t")

    work, store = Work(), MemoryCacheStore()
    key = cache_key(read, [], {"x": 1})
    old = Old(name="n").model_dump_json().encode()
    await store.put(key, struct.pack(">d", time.time()) + old, None)
    for _ in range(2):
        assert await with_store(store, wide(read, 1)).execute({"x": 1}) == {"n0": New(title="t")}
    assert work.executed == [1]


@virtually
async def test_nobody_asks_the_store_for_a_run_that_has_ended() -> None:
    work, store = Work(), Counting()
    await store.claim(cache_key(work.task, [], {"x": 1}), "another process", 1e6)
    with pytest.raises(RunTimeoutError):
        await with_store(store, wide(work.task, 2), run_timeout=3.0).execute({"x": 1})
    assert asyncio.all_tasks() == {asyncio.current_task()}
    asked = store.questions
    await asyncio.sleep(10)
    assert store.questions == asked


@virtually
async def test_a_cancellation_that_a_store_raises_counts_as_a_failure() -> None:
    class Closed(MemoryCacheStore):
        async def get(self, key: str) -> bytes | None:
            raise asyncio.CancelledError

    work = Work()
    assert await with_store(Closed(), wide(work.task, 2)).execute({"x": 1}) == {"n0": 10, "n1": 10}


@virtually
async def test_a_run_may_begin_to_wait_while_another_that_waited_is_closed() -> None:
    class Slow(MemoryCacheStore):
        asked = asyncio.Event()

        async def claim(self, key: str, owner: str, seconds: float) -> bool:
            if key == keys[0] and owner != "another process":
                self.asked.set()
                await asyncio.sleep(1)
            return await super().claim(key, owner, seconds)

    work, store = Work(), Slow()
    keys = [cache_key(work.task, [], {"x": x}) for x in (1, 2)]
    for key in keys:
        await store.claim(key, "another process", 1e6)
    engine = with_store(store, wide(work.task, 1))
    closed = asyncio.ensure_future(engine.execute({"x": 1}))
    await asyncio.sleep(1.01)  # its node waits
    store.asked.clear()
    await store.asked.wait()  # the cache asks again for it
    closed.cancel()
    await asyncio.sleep(0.5)  # it waits until the cache has its answer
    waiting = asyncio.ensure_future(engine.execute({"x": 2}))
    await asyncio.wait([closed])
    assert virtual_loop().time() < 3.0
    await asyncio.sleep(10)
    await store.put(keys[1], struct.pack(">d", time.time()) + b"7", None)
    await store.release(keys[1], "another process")
    assert await waiting == {"n0": 7}
    assert work.executed == []


@virtually
async def test_a_claim_that_is_given_back_while_claims_are_renewed_does_not_come_back() -> None:
    class Slow(MemoryCacheStore):
        is_slow = False

        async def claim(self, key: str, owner: str, seconds: float) -> bool:
            if self.is_slow:
                renewing.set()
                await asyncio.sleep(1)
            return await super().claim(key, owner, seconds)

    store, renewing = Slow(), asyncio.Event()
    cache = ResultCache.of(store)
    claims = [await cache.look_up(key, None, bytes) for key in ("first", "second", "kept")]
    store.is_slow = True
    await renewing.wait()  # whichever comes first
    for claim in claims[:2]:
        assert isinstance(claim, Claim)
        cache.release(claim)
    await asyncio.sleep(3)
    for key, is_free in (("first", True), ("second", True), ("kept", False)):
        assert await store.claim(key, "another process", 1.0) == is_free
    assert isinstance(claims[2], Claim)
    cache.release(claims[2])
    await cache.aclose()
