"""Cache stores: one value for each key, bounded, and never in the way of a journal's runs."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from taskiq_flow import Journal, Lease, MemoryJournal, RedisJournal, SqliteJournal
from taskiq_flow.cache.store import (
    CacheStore,
    MemoryCacheStore,
    SqliteCacheStore,
    store_beside,
)
from taskiq_flow.journal.lease import new_owner
from tests.commands import ROOT, Scripts
from tests.waiting import until


async def check_values(store: CacheStore) -> None:
    """One value for each key, until it is replaced."""
    assert await store.get("a") is None
    await store.put("a", b"1", None)
    await store.put("b", b"2", 60.0)
    await store.put("a", b"3", None)
    assert [await store.get(key) for key in ("a", "b", "c")] == [b"3", b"2", None]


async def check_expiry(store: CacheStore) -> None:
    """A value whose time is over is not given any more, and may be kept anew."""
    await store.put("a", b"1", 0.001)
    await store.put("b", b"2", 60.0)
    while await store.get("a") is not None:
        pass
    assert await store.get("b") == b"2"
    await store.put("a", b"3", None)
    assert await store.get("a") == b"3"


async def check_claims(store: CacheStore) -> None:
    """One owner for each key, until it gives the claim back or the claim is over."""
    assert await store.claim("a", "me", 60.0)
    assert await store.claim("a", "me", 60.0)
    assert not await store.claim("a", "other", 60.0)
    await store.release("a", "other")
    assert not await store.claim("a", "other", 60.0)
    assert await store.claim("b", "other", 60.0)
    await store.release("a", "me")
    assert await store.claim("a", "other", 0.001)
    while not await store.claim("a", "me", 60.0):
        pass


CHECKS = (check_values, check_expiry, check_claims)
"""What every cache store keeps to, whatever it is made of."""


@pytest.mark.parametrize("check", CHECKS)
async def test_a_store_in_memory_keeps_to_the_contract(
    check: Callable[[CacheStore], Awaitable[None]],
) -> None:
    await check(MemoryCacheStore())


@pytest.mark.parametrize("check", CHECKS)
async def test_a_store_in_a_file_keeps_to_the_contract(
    check: Callable[[CacheStore], Awaitable[None]], tmp_path: Path
) -> None:
    journal = SqliteJournal(tmp_path / "runs.db")
    await check(SqliteCacheStore(journal))
    await journal.aclose()


async def test_a_store_in_memory_drops_the_least_recently_used() -> None:
    store = MemoryCacheStore(most_entries=2)
    for key in ("a", "b"):
        await store.put(key, b"", None)
    await store.get("a")
    await store.put("c", b"", None)
    assert [await store.get(key) for key in ("a", "b", "c")] == [b"", None, b""]


async def test_a_store_in_memory_is_bounded_in_bytes() -> None:
    store = MemoryCacheStore(most_bytes=10)
    await store.put("a", bytes(6), None)
    await store.put("a", bytes(7), None)
    await store.put("b", bytes(3), None)
    assert await store.get("a") is not None
    await store.put("c", bytes(3), None)
    assert [await store.get(key) is None for key in ("a", "b", "c")] == [False, True, False]
    await store.put("d", bytes(11), None)
    assert [await store.get(key) is None for key in ("a", "c", "d")] == [False, False, True]


async def test_a_store_in_a_file_is_bounded_and_removes_what_has_expired(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "runs.db")
    store = SqliteCacheStore(journal, most_entries=3)
    await store.put("expires", b"", 0.001)
    while await store.get("expires") is not None:
        pass
    for number in range(10):
        await store.put(str(number), b"", None)
    kept = await journal.file.read(
        lambda connection: connection.execute("SELECT key FROM cache ORDER BY key").fetchall()
    )
    assert kept == [("7",), ("8",), ("9",)]
    await journal.aclose()


async def test_runs_and_cached_results_in_one_file_know_nothing_of_each_other(
    tmp_path: Path,
) -> None:
    journal = SqliteJournal(tmp_path / "runs.db")
    await store_beside(journal).put("a", b"1", None)
    assert await journal.run_ids() == []
    await journal.create("run", Lease("engine"), b"chunk")
    assert await journal.run_ids() == ["run"]
    await journal.aclose()
    again = SqliteJournal(tmp_path / "runs.db")
    assert await store_beside(again).get("a") == b"1"
    await again.aclose()


def test_engines_with_one_journal_have_one_store() -> None:
    journal = MemoryJournal()
    assert store_beside(journal) is store_beside(journal)
    assert store_beside(None) is not store_beside(None)
    assert isinstance(store_beside(journal), MemoryCacheStore)


async def test_a_value_that_was_replaced_is_not_counted_any_more() -> None:
    store = MemoryCacheStore(most_bytes=100)
    for _ in range(50):
        await store.put("a", bytes(60), None)
    await store.put("b", bytes(40), None)
    assert await store.get("a") is not None


def test_a_journal_of_ones_own_may_be_unhashable() -> None:
    class Own:
        __slots__ = ()  # nor can it be referenced weakly

        __hash__ = None  # type: ignore[assignment]

    assert isinstance(store_beside(Own()), MemoryCacheStore)  # type: ignore[arg-type]


@pytest.fixture
def ended(scripts: Scripts) -> str:
    """An owner whose process has ended."""
    script = "from taskiq_flow.journal.lease import new_owner\nprint(new_owner(), end='')"
    return scripts.output(script, cwd=ROOT)


async def test_a_claim_of_a_process_that_has_ended_is_free(ended: str, tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "runs.db")
    store = SqliteCacheStore(journal)
    assert await store.claim("a", ended, 10.0)
    assert await store.claim("a", new_owner(), 10.0)
    assert not await store.claim("a", new_owner(), 10.0)
    await journal.aclose()


@pytest.fixture(params=["memory", "file"])
async def bounded_store(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[CacheStore]:
    """A store of at most three values."""
    journal = SqliteJournal(tmp_path / "runs.db")
    if request.param == "memory":
        yield MemoryCacheStore(most_entries=3)
    else:
        yield SqliteCacheStore(journal, most_entries=3)
    await journal.aclose()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the wall clock so many seconds ahead of the real one."""
    real_time = time.time

    def set_ahead(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real_time() + seconds)

    return set_ahead


async def test_a_claim_ends_in_time_although_the_clock_was_set_back(
    bounded_store: CacheStore, clock: Callable[[float], None]
) -> None:
    clock(3600.0)
    assert await bounded_store.claim("a", new_owner(), 0.1)
    clock(0.0)
    await until(lambda: bounded_store.claim("a", new_owner(), 0.1), "the claim has ended")


async def test_a_claim_made_while_another_process_waits_for_the_file_counts(
    tmp_path: Path, clock: Callable[[float], None]
) -> None:
    journal = SqliteJournal(tmp_path / "runs.db")
    store = SqliteCacheStore(journal)
    await store.release("a", "me")  # the tables are there
    other = sqlite3.connect(tmp_path / "runs.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    claiming = asyncio.ensure_future(store.claim("a", "me", 10.0))
    await asyncio.sleep(0)  # it has begun, and waits
    clock(5.0)
    other.execute("INSERT INTO claims VALUES ('a', ?, ?)", (new_owner(), time.time() + 10.0))
    other.execute("COMMIT")
    other.close()
    assert not await claiming
    await journal.aclose()


async def test_the_newest_values_stay_although_the_clock_was_set_back(
    bounded_store: CacheStore, clock: Callable[[float], None]
) -> None:
    clock(3600.0)
    for key in ("a", "b", "c"):
        await bounded_store.put(key, b"", None)
    clock(0.0)
    await bounded_store.put("d", b"", None)
    stored = [await bounded_store.get(key) is not None for key in ("a", "b", "c", "d")]
    assert stored == [False, True, True, True]


async def test_a_put_takes_as_many_steps_however_many_values_a_file_has(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "runs.db")
    store = SqliteCacheStore(journal)

    async def steps_of_a_put() -> int:
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        await store.put("measured", b"", 60.0)
        await journal.file.read(lambda connection: connection.set_progress_handler(count, 1))
        await store.put("measured", b"", 60.0)
        await journal.file.read(lambda connection: connection.set_progress_handler(None, 0))
        return steps

    few = await steps_of_a_put()
    for number in range(300):
        await store.put(str(number), b"", None)
    assert await steps_of_a_put() < few + 100
    await journal.aclose()


async def test_a_look_up_writes_nothing_to_the_file(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "runs.db")
    await journal.run_ids()  # the file is there
    other = sqlite3.connect(tmp_path / "runs.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # nobody else can write
    assert await asyncio.wait_for(SqliteCacheStore(journal).get("a"), 5) is None
    other.close()
    await journal.aclose()


def test_a_journal_is_collected_with_its_store() -> None:
    def used(journal: Journal) -> weakref.ref[Journal]:
        store_beside(journal)
        return weakref.ref(journal)

    for reference in (used(MemoryJournal()), used(RedisJournal("redis://127.0.0.1:1"))):
        gc.collect()
        assert reference() is None
