"""A journal on a Redis server: the contract, outages, and engines that were killed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.asyncio import Redis
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    Journal,
    JournalError,
    Lease,
    RedisJournal,
    RunLockedError,
    RunNotFoundError,
    RunReader,
)
from taskiq_flow.cache.store import CacheStore, RedisCacheStore
from taskiq_flow.journal import redis as redis_journal
from taskiq_flow.journal.history import restore_run
from tests.cache.test_store import CHECKS
from tests.distributed.conftest import Farm
from tests.journal.events_contract import EventJournalContract
from tests.journal.processes import (
    GATED,
    Child,
    big,
    big_inputs,
    big_text,
    check_that_one_resumes,
    gated,
    noted,
    open_gate,
)
from tests.journal.test_protocol import JournalContract, Store, log_of
from tests.journal.test_reader_processes import (
    check_cancelling,
    check_killing,
    check_watching,
)
from tests.servers.process import free_port
from tests.servers.redis import RedisCluster, RedisServer, newest_program
from tests.waiting import until

LEASE = Lease("engine", 60.0)

LEASE_OVER = 25.0
"""Seconds for which the lease of an engine that was killed may be in force."""

_numbers = itertools.count()


class RedisStore(Store):
    """Keys of its own on the shared server."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.prefix = f"journal {next(_numbers)}"

    def another(self) -> Journal:
        return RedisJournal(self.url, prefix=self.prefix)

    async def pass_seconds(self, seconds: float) -> None:
        """As the server sees it."""
        async with Redis.from_url(self.url) as client:

            async def now() -> float:
                whole, micros = await client.time()
                return float(whole + micros / 1e6)

            end = await now() + seconds + 0.002  # it counts in whole milliseconds
            while await now() < end:
                await asyncio.sleep(0.005)

    async def keys(self) -> list[bytes]:
        async with Redis.from_url(self.url) as client:
            return [key async for key in client.scan_iter(match=f"{self.prefix}:*", count=1000)]


@pytest.fixture
async def store(farm: Farm) -> AsyncIterator[RedisStore]:
    store = RedisStore(farm.redis.url)
    yield store
    await store.aclose()


class TestRedisJournal(JournalContract, EventJournalContract):
    """As the others."""


class InACluster(RedisStore):
    def another(self) -> Journal:
        return RedisJournal(self.url.replace("redis://", "redis+cluster://"), prefix=self.prefix)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(
        tmp_path_factory.mktemp("node"), appendonly=False, program=newest_program()
    ) as node:
        yield node


class TestRedisJournalInACluster(JournalContract, EventJournalContract):
    @pytest.fixture
    async def store(self, node: RedisCluster) -> AsyncIterator[RedisStore]:
        store = InACluster(node.url)
        yield store
        await store.aclose()


async def test_nothing_is_left_of_a_run_that_was_removed(store: RedisStore) -> None:
    journal = store.open()
    await journal.create("run", LEASE, b"chunk")
    assert len(await store.keys()) == 5
    await journal.release("run", LEASE)
    await journal.delete("run")
    async with Redis.from_url(store.url) as client:
        lasting = {key for key in await store.keys() if await client.ttl(key) == -1}
    assert lasting == {f"{store.prefix}:count".encode()}


async def test_journals_with_other_prefixes_have_other_runs(farm: Farm) -> None:
    stores = [RedisStore(farm.redis.url) for _ in range(2)]
    for number, store in enumerate(stores):
        await store.open().create("run", LEASE, str(number).encode())
    for number, store in enumerate(stores):
        assert await log_of(store.open(), "run") == [str(number).encode()]
        await store.aclose()


async def lose_answers(
    journal: RedisJournal, count: int, monkeypatch: pytest.MonkeyPatch
) -> list[object]:
    """Have the connection break before so many answers of the server arrive; returns these."""
    client, lost = (await journal._of_loop()).client, list[object]()
    evaluate = client.eval

    async def lose_answer(*arguments: Any) -> Any:
        answer = await evaluate(*arguments)
        if len(lost) < count:
            lost.append(answer)
            raise redis.exceptions.ConnectionError("gone before it had answered")
        return answer

    monkeypatch.setattr(client, "eval", lose_answer)
    return lost


@pytest.mark.parametrize("call", ["create", "append"])
async def test_a_chunk_whose_answer_was_lost_is_not_written_twice(
    store: RedisStore, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = RedisJournal(store.url, prefix=store.prefix)
    store.journals.append(journal)
    if call == "append":
        await journal.create("run", LEASE, b"chunk")
    lost = await lose_answers(journal, 2, monkeypatch)
    if call == "create":
        await journal.create("run", LEASE, b"chunk")
    await journal.append("run", LEASE, b"chunk")
    await journal.append("run", LEASE, b"chunk")
    assert len(lost) == 2
    assert await log_of(journal, "run") == [b"chunk"] * 3


def test_a_journal_serves_one_event_loop_after_the_other(farm: Farm) -> None:
    store = RedisStore(farm.redis.url)
    journal = store.open()

    async def use(number: int) -> list[bytes]:
        if number == 0:
            await journal.create("run", LEASE, b"0")
        appends = [journal.append("run", LEASE, b"chunk") for _ in range(5)]
        await asyncio.gather(*appends)
        try:
            return await log_of(journal, "run")
        finally:
            await journal.aclose()

    assert [len(asyncio.run(use(number))) for number in range(3)] == [6, 11, 16]


# Servers that cannot be used


@pytest.fixture
async def no_redis() -> AsyncIterator[int]:
    """The port of a server that answers in another language."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer.transport):
            await reader.read(1000)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()

    port = free_port()
    async with await asyncio.start_server(answer, "127.0.0.1", port):
        yield port


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:{nobody}",
        "redis://127.0.0.1:{no_redis}",
        "redis://no-such-host.invalid:1",
        "redis://127.0.0.1:{port}/999",
        "redis://nobody:wrong@127.0.0.1:{port}",
    ],
)
async def test_a_server_that_cannot_be_used_is_an_error_before_anything_is_sent(
    farm: Farm, no_redis: int, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    sent: list[str] = []

    class Broker(InMemoryBroker):
        async def kick(self, message: Any) -> None:
            sent.append(message.task_name)

    monkeypatch.setattr(redis_journal, "CONNECT_TIMEOUT", 0.1)
    ports = {"nobody": free_port(), "no_redis": no_redis, "port": farm.redis.port}
    journal = RedisJournal(url.format(**ports))
    dag = DAGBuilder().node(lambda: 1, name="node").build()
    engine = ExecutionEngine(Broker(), dag, journal=journal)
    for attempt in (engine.execute_async(), engine.resume("run"), engine.rerun("run", ["node"])):
        message = r"the journal on Redis cannot be used: .*; check the server and its URL$"
        with pytest.raises(JournalError, match=message):
            await anext(attempt)
    assert not sent
    await journal.aclose()


def test_a_url_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="URL"):
        RedisJournal("http://127.0.0.1")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that may be stopped."""
    with RedisServer(tmp_path / "server") as server:
        yield server


def test_loops_of_several_threads_keep_their_connections(server: RedisServer) -> None:
    """They take turns, and none closes what another one uses."""
    journal, turn = RedisJournal(server.url), threading.Barrier(3, timeout=20.0)

    async def use(number: int) -> None:
        await journal.create(f"run {number}", LEASE, b"0")
        for _ in range(20):
            turn.wait()
            await journal.append(f"run {number}", LEASE, b"chunk")
        if number == 0:
            await journal.aclose()  # the others leave that to their loops
        turn.wait()
        assert len(await log_of(journal, f"run {number}")) == 21

    with server.client() as client:
        before = client.info("stats")["total_connections_received"]
        with ThreadPoolExecutor() as pool:
            list(pool.map(asyncio.run, map(use, range(3))))
        opened = client.info("stats")["total_connections_received"] - before
        server.process.wait_until(
            lambda: client.info("clients")["connected_clients"] == 1, "all are closed", 20.0
        )
    assert opened == 4  # the first has opened another one after it had closed its own
    assert not journal._of_loops


@pytest.fixture
async def journal(server: RedisServer) -> AsyncIterator[RedisJournal]:
    journal = RedisJournal(server.url)
    yield journal
    await journal.aclose()


@pytest.mark.parametrize("outage", ["killed", "hanging"])
async def test_an_outage_in_the_middle_of_a_run_is_ridden_out(
    server: RedisServer,
    journal: RedisJournal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    outage: str,
) -> None:
    monkeypatch.setattr(redis_journal, "CONNECT_TIMEOUT", 0.0)  # it is no longer opened by then
    notes = tmp_path / "notes"
    engine = ExecutionEngine(InMemoryBroker(), gated(), journal=journal)
    pairs = []
    async for pair in engine.execute_async({"notes": str(notes)}, run_id="run"):
        pairs.append(pair)
        if pair == GATED[1]:
            server.kill() if outage == "killed" else server.suspend()
            open_gate(notes)
            await until(lambda: "last" in noted(notes), "the run does not wait for its journal")
            await asyncio.sleep(1.0)  # the length of the outage
            server.restart(keep_data=True) if outage == "killed" else server.resume()
    assert pairs == GATED
    assert noted(notes) == ["first", "second", "gate", "last"]
    assert list((await restore_run(journal, "run")).results) == [name for name, _ in GATED]
    assert [pair async for pair in engine.resume("run")] == GATED


async def test_a_server_that_comes_back_without_its_data_ends_the_run(
    server: RedisServer, journal: RedisJournal, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    engine = ExecutionEngine(InMemoryBroker(), gated(), journal=journal)
    pairs = []
    with pytest.raises(JournalError, match=r"written to RedisJournal: .*no run 'run'") as e:
        async for pair in engine.execute_async({"notes": str(notes)}, run_id="run"):
            pairs.append(pair)
            if pair == GATED[1]:
                server.restart(keep_data=False)
                open_gate(notes)
    assert pairs == GATED[:2]
    assert dict(GATED[:2]).items() <= e.value.results.items()


async def test_a_server_that_is_short_of_memory_ends_the_run_with_what_it_has_reached(
    server: RedisServer, journal: RedisJournal, tmp_path: Path
) -> None:
    notes, read = tmp_path / "notes", set()
    engine = ExecutionEngine(InMemoryBroker(), big(30), journal=journal)
    with server.client() as client:
        await journal.run_ids()
        used: Any = client.info("memory")
        client.config_set("maxmemory", used["used_memory"] + 300_000)
        with pytest.raises(JournalError, match=r"cannot be used: .* used memory") as caught:
            async for name, _ in engine.execute_async(big_inputs(notes, 30), run_id="run"):
                read.add(name)
                open_gate(notes)
        assert read
        assert read <= set(caught.value.results)
        client.config_set("maxmemory", 0)
    kept = set((await restore_run(journal, "run")).results)
    assert read <= kept
    before = len(noted(notes))
    pairs = [pair async for pair in engine.resume("run")]
    assert pairs == [(f"n{number}", big_text(number)) for number in range(30)]
    assert kept.isdisjoint(noted(notes)[before:])


# Several engines


async def test_of_two_processes_that_resume_a_run_one_goes_on(farm: Farm, tmp_path: Path) -> None:
    notes, url, run_id = tmp_path / "notes", farm.redis.url, "one of two"
    journal = RedisJournal(url)
    engine = ExecutionEngine(InMemoryBroker(), gated(), journal=journal)
    begun = engine.execute_async({"notes": str(notes)}, run_id=run_id)
    assert [await anext(begun) for _ in GATED[:2]] == GATED[:2]
    with Child(url) as a, Child(url) as b:
        with pytest.raises(RunLockedError):
            await anext(engine.resume(run_id))
        await begun.aclose()
        await check_that_one_resumes(a, b, notes, run_id)
    assert [name for name in noted(notes) if name != "gate"] == ["first", "second", "last"]
    await journal.aclose()


async def test_the_lease_of_a_process_that_was_killed_is_over_after_a_while(
    server: RedisServer, journal: RedisJournal, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    engine = ExecutionEngine(InMemoryBroker(), gated(), journal=journal)
    with Child(server.url) as child:
        await child.begin(notes)
        child.kill()
        open_gate(notes)
        with pytest.raises(RunLockedError, match=f"process {child.pid} "):
            await anext(engine.resume("run"))
        pairs: list[tuple[str, Any]] = []
        async with asyncio.timeout(LEASE_OVER):
            while not pairs:
                with contextlib.suppress(RunLockedError):
                    pairs = [pair async for pair in engine.resume("run")]
                await asyncio.sleep(0.1)
    assert pairs == GATED
    assert noted(notes) == ["first", "second", "gate", "gate", "last"]


@pytest.mark.parametrize("check", CHECKS)
async def test_cached_results_keep_to_the_contract_of_stores(
    store: RedisStore, check: Callable[[CacheStore], Awaitable[None]]
) -> None:
    journal = RedisJournal(store.url, prefix=store.prefix)
    await check(RedisCacheStore(journal))
    assert await journal.run_ids() == []
    await journal.aclose()


async def test_a_key_of_another_type_counts_as_empty_and_is_overwritten(store: RedisStore) -> None:
    journal = RedisJournal(store.url, prefix=store.prefix)
    cache = RedisCacheStore(journal)
    async with Redis.from_url(store.url) as client:
        for kind in ("cache", "claim"):
            await client.rpush(f"{store.prefix}:{kind}:a", "an element")
    assert await cache.get("a") is None
    await cache.release("a", "me")
    assert await cache.claim("a", "me", 60.0)
    assert not await cache.claim("a", "other", 60.0)
    await cache.put("a", b"1", None)
    assert await cache.get("a") == b"1"
    await cache.release("a", "me")
    assert await cache.claim("a", "other", 60.0)
    await journal.aclose()


async def test_more_calls_than_connections_wait_their_turn(store: RedisStore) -> None:
    journal = RedisJournal(f"{store.url}?max_connections=2", prefix=store.prefix)
    runs = [f"run {number}" for number in range(100)]
    await asyncio.gather(*(journal.create(run_id, LEASE, b"chunk") for run_id in runs))
    assert sorted(await journal.run_ids()) == sorted(runs)
    await journal.aclose()


async def test_a_deletion_whose_answer_was_lost_is_done_all_the_same(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = RedisJournal(store.url, prefix=store.prefix)
    await journal.create("run", LEASE, b"chunk")
    await journal.release("run", LEASE)
    lost = await lose_answers(journal, 1, monkeypatch)
    await journal.delete("run")
    assert len(lost) == 1
    assert await journal.run_ids() == []
    with pytest.raises(RunNotFoundError):
        await journal.delete("run")
    await journal.aclose()


# Readers in another process


async def test_a_run_of_another_process_is_watched(server: RedisServer, tmp_path: Path) -> None:
    await check_watching(server.url, tmp_path / "notes")


async def test_a_run_of_another_process_is_cancelled(server: RedisServer, tmp_path: Path) -> None:
    await check_cancelling(server.url, tmp_path / "notes")


async def test_the_run_of_a_process_that_was_killed_is_interrupted_when_its_lease_is_over(
    server: RedisServer, tmp_path: Path
) -> None:
    await check_killing(server.url, tmp_path / "notes", LEASE_OVER)


async def test_runs_are_deleted_with_their_events(store: RedisStore) -> None:
    journal: Any = store.open()
    dag = DAGBuilder("graph").node(abs, inputs=["number"]).build()
    engine, reader = ExecutionEngine(InMemoryBroker(), dag, journal=journal), RunReader(journal)
    for number in range(3):
        await engine.execute({"number": number}, run_id=f"{number}")
    assert [run.run_id for run in await reader.runs(name="graph")] == ["2", "1", "0"]
    assert await reader.prune(keep=1) == ["1", "0"]
    assert await reader.prune(older_than=0.0) == ["2"]
    assert await journal.run_ids() == await reader.runs() == []
    async with Redis.from_url(store.url) as client:
        lasting = {key for key in await store.keys() if await client.ttl(key) == -1}
    assert lasting == {f"{store.prefix}:count".encode()}
