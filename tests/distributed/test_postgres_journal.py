"""The journal that docs/writing_a_journal.md shows, as it stands there, on a real server."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import psycopg
import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    Journal,
    JournalError,
    RunLockedError,
)
from taskiq_flow.journal.history import restore_run
from tests.distributed.test_examples import ROOT, blocks, named, output_of
from tests.journal.events_contract import EventJournalContract
from tests.journal.processes import GATED, gated, noted, open_gate
from tests.journal.test_protocol import SHORT, A, B, JournalContract, Store, log_of
from tests.servers.postgres import PostgresServer
from tests.servers.process import free_port

pytestmark = pytest.mark.skipif(
    not PostgresServer.is_available(),
    reason="PostgreSQL is not installed; scripts/test does so where it may (apt-get)",
)

PAGE = ROOT / "docs/writing_a_journal.md"
SQL = re.compile(r"```sql\n(.*?)```", re.DOTALL)

MakeJournal = Callable[[str], Journal]

_numbers = itertools.count()


def tables() -> str:
    """What the page has one feed to psql."""
    (block,) = SQL.findall(PAGE.read_text("utf-8"))
    assert isinstance(block, str)
    return block


def code_of(file: str) -> str:
    (block,) = named(file, PAGE)
    return block.code


@pytest.fixture(scope="module")
def make_journal(tmp_path_factory: pytest.TempPathFactory) -> MakeJournal:
    """The page's class."""
    path = tmp_path_factory.mktemp("docs") / "postgres_journal.py"
    path.write_text(code_of(path.name), "utf-8")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    made: MakeJournal = module.PostgresJournal
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("postgres")) as server:
        yield server


class PostgresStore(Store):
    """Tables of its own on the module's server."""

    def __init__(self, server: PostgresServer, make_journal: MakeJournal) -> None:
        super().__init__()
        self.server = server
        self._make_journal = make_journal
        schema = f"store_{next(_numbers)}"
        self.url = f"{server.url}?options=-csearch_path%3D{schema}"
        self.ask(f"CREATE SCHEMA {schema}")
        for statement in tables().split(";\n"):
            self.ask(statement)

    def another(self) -> Journal:
        return self._make_journal(self.url)

    async def pass_seconds(self, seconds: float) -> None:
        """As the server sees it."""
        await asyncio.to_thread(self.ask, f"SELECT pg_sleep({seconds})")

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """What the server answers to somebody else."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    async def until_one_waits(self) -> None:
        """Until a statement waits for another's to be over."""
        while not self.ask("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            await asyncio.sleep(0.005)


@pytest.fixture
async def store(server: PostgresServer, make_journal: MakeJournal) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(server, make_journal)
    yield store
    await store.aclose()


class TestPostgresJournal(JournalContract, EventJournalContract):
    """As the others."""


async def test_what_a_run_was_is_gone_when_it_is_removed(store: PostgresStore) -> None:
    journal = store.open()
    await journal.create("run", A, b"0")
    await journal.append("run", A, b"1")
    assert store.ask("SELECT count(*) FROM flow_chunks") == [(2,)]
    await journal.release("run", A)
    await journal.delete("run")
    assert store.ask("SELECT 1 FROM flow_runs") == store.ask("SELECT 1 FROM flow_chunks") == []


# At the same time


async def test_a_chunk_that_had_to_wait_is_not_written_if_the_run_was_taken_over_meanwhile(
    store: PostgresStore,
) -> None:
    journal = store.open()
    await journal.create("run", A, b"0")
    async with await psycopg.AsyncConnection.connect(store.url) as rival:
        await rival.execute("UPDATE flow_runs SET owner = 'engine b'")
        writing = [
            asyncio.create_task(journal.append("run", A, b"1")),
            asyncio.create_task(journal.renew("run", A)),
        ]
        await store.until_one_waits()
        await rival.commit()
        for late in writing:
            with pytest.raises(RunLockedError, match="'run' was taken over by another engine"):
                await late
    assert await log_of(journal, "run") == [b"0"]


@pytest.mark.parametrize("call", ["acquire", "delete"])
async def test_a_lease_that_was_over_is_not_taken_if_its_owner_has_just_renewed_it(
    store: PostgresStore, call: str
) -> None:
    journal = store.open()
    await journal.create("run", SHORT, b"0")
    await store.pass_seconds(SHORT.seconds)
    async with await psycopg.AsyncConnection.connect(store.url) as owner:
        await owner.execute("UPDATE flow_runs SET expires = clock_timestamp() + interval '60 s'")
        late = journal.acquire("run", B) if call == "acquire" else journal.delete("run")
        taking = asyncio.create_task(late)
        await store.until_one_waits()
        await owner.commit()
        with pytest.raises(RunLockedError, match=r"locked by engine a, .* expires in [56]\d\."):
            await taking
    await journal.append("run", A, b"1")


async def test_a_run_that_two_begin_at_once_is_begun_once(store: PostgresStore) -> None:
    journals = [store.open() for _ in range(6)]
    calls = [journal.create("run", A, b"%d" % n) for n, journal in enumerate(journals)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    (winner,) = [number for number, outcome in enumerate(outcomes) if outcome is None]
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert all(isinstance(error, JournalError) and "already" in str(error) for error in refused)
    assert await log_of(journals[0], "run") == [b"%d" % winner]


async def test_a_call_that_is_cancelled_leaves_the_journal_in_order(store: PostgresStore) -> None:
    journal = store.open()
    await journal.create("run", A, b"0")
    async with await psycopg.AsyncConnection.connect(store.url) as rival:
        await rival.execute("UPDATE flow_runs SET expires = expires")
        writing = [asyncio.create_task(journal.append("run", A, b"never")) for _ in range(2)]
        await store.until_one_waits()
        for task in writing:
            task.cancel()
        outcomes = await asyncio.gather(*writing, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    await journal.append("run", A, b"1")
    for delay in range(40):  # wherever it happens to be then
        renewing = asyncio.create_task(journal.renew("run", A))
        await asyncio.sleep(delay / 20_000)
        renewing.cancel()
        await asyncio.wait([renewing])
    assert not store.ask("SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
    await journal.release("run", A)
    other = store.open()
    await other.acquire("run", B)
    assert await log_of(other, "run") == [b"0", b"1"]


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_journal_serves_one_event_loop_after_the_other(
    server: PostgresServer, make_journal: MakeJournal, is_closed: bool
) -> None:
    store = PostgresStore(server, make_journal)
    journal = store.open()

    async def use(number: int) -> list[bytes]:
        if number == 0:
            await journal.create("run", A, b"0")
        await asyncio.gather(*(journal.append("run", A, b"chunk") for _ in range(5)))
        log = await log_of(journal, "run")
        if is_closed or number == 2:
            await journal.aclose()
        return log

    assert [len(asyncio.run(use(number))) for number in range(3)] == [6, 11, 16]


async def test_a_journal_that_is_closed_in_the_middle_of_calls_does_them_all(
    store: PostgresStore,
) -> None:
    journal = store.open()
    await journal.create("run", A, b"0")
    calls = [journal.append("run", A, b"%d" % number) for number in range(1, 10)]
    await asyncio.gather(*calls[:4], journal.aclose(), *calls[4:])
    assert await log_of(journal, "run") == [b"%d" % number for number in range(10)]


# Servers that cannot be used


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://127.0.0.1:{nobody}/postgres",
        "postgresql://postgres@127.0.0.1:{port}/no_such_database",
        "postgresql://nobody@127.0.0.1:{port}/postgres",
        "postgresql://postgres@127.0.0.1:{port}/postgres",  # without the tables
        "http://127.0.0.1",
    ],
)
async def test_a_server_that_cannot_be_used_is_an_error_before_anything_is_sent(
    server: PostgresServer, make_journal: MakeJournal, url: str
) -> None:
    sent: list[str] = []

    class Broker(InMemoryBroker):
        async def kick(self, message: Any) -> None:
            sent.append(message.task_name)

    journal = make_journal(url.format(nobody=free_port(), port=server.port))
    dag = DAGBuilder().node(lambda: 1, name="node").build()
    engine = ExecutionEngine(Broker(), dag, journal=journal)
    for attempt in (engine.execute_async(), engine.resume("run"), engine.rerun("run", ["node"])):
        message = "the journal on PostgreSQL cannot be used: .*; check the server, its URL and"
        with pytest.raises(JournalError, match=re.compile(message, re.DOTALL)) as caught:
            await anext(attempt)
        assert isinstance(caught.value.__cause__, psycopg.Error)
    assert not sent
    await journal.aclose()


async def test_an_outage_ends_a_run_that_can_be_gone_on_with(
    store: PostgresStore, tmp_path: Path
) -> None:
    notes, pairs = tmp_path / "notes", []
    engine = ExecutionEngine(InMemoryBroker(), gated(), journal=store.open())
    with pytest.raises(JournalError, match="the journal on PostgreSQL cannot be used") as caught:
        async for pair in engine.execute_async({"notes": str(notes)}, run_id="run"):
            pairs.append(pair)
            if pair == GATED[1]:
                store.server.kill()
                open_gate(notes)
    assert pairs == GATED[:2]
    assert dict(pairs).items() <= caught.value.results.items()
    store.server.restart(keep_data=True)
    assert list((await restore_run(store.open(), "run")).results) == ["first", "second"]
    store.ask("UPDATE flow_runs SET owner = NULL")  # it could not be given back
    assert [pair async for pair in engine.resume("run")] == GATED
    assert [name for name in noted(notes) if name not in ("gate", "last")] == ["first", "second"]


# Engines


async def test_a_run_that_was_stopped_is_gone_on_with_by_another_engine(
    store: PostgresStore, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    engine = ExecutionEngine(InMemoryBroker(), gated(), journal=store.open())
    async with aclosing(engine.execute_async({"notes": str(notes)}, run_id="run")) as pairs:
        assert [await anext(pairs) for _ in GATED[:2]] == GATED[:2]
    open_gate(notes)
    other = ExecutionEngine(InMemoryBroker(), gated(), journal=store.open())
    assert [pair async for pair in other.resume("run")] == GATED
    assert [name for name in noted(notes) if name != "gate"] == ["first", "second", "last"]
    assert [pair async for pair in engine.resume("run")] == GATED
    assert noted(notes).count("last") == 1


async def test_of_two_engines_at_a_run_one_goes_on(store: PostgresStore, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    engines = [ExecutionEngine(InMemoryBroker(), gated(), journal=store.open()) for _ in range(3)]
    begun = engines[0].execute_async({"notes": str(notes)}, run_id="run")
    assert [await anext(begun) for _ in GATED[:2]] == GATED[:2]
    with pytest.raises(RunLockedError, match="is locked by this process, which has not closed it"):
        await anext(engines[1].resume("run"))
    await begun.aclose()
    resumed = [engine.resume("run") for engine in engines[1:]]
    outcomes = await asyncio.gather(*map(anext, resumed), return_exceptions=True)
    open_gate(notes)
    winner = resumed[outcomes.index(GATED[0])]
    assert [type(outcome) for outcome in outcomes if outcome != GATED[0]] == [RunLockedError]
    assert [pair async for pair in winner] == GATED[1:]
    assert noted(notes).count("last") == 1


# The page


def test_the_example_of_the_page_prints_what_stands_below_it(
    store: PostgresStore, tmp_path: Path
) -> None:
    for file in ("postgres_journal.py", "nightly.py"):
        place = "postgresql://localhost:5432/flows"
        (tmp_path / file).write_text(code_of(file).replace(place, store.url), "utf-8")
    assert "localhost" not in (tmp_path / "nightly.py").read_text("utf-8")
    (block,) = named("nightly.py", PAGE)
    assert output_of(["nightly.py"], cwd=tmp_path) == block.output


def test_no_block_of_the_page_is_left_out() -> None:
    text = PAGE.read_text("utf-8")
    assert {block.file for block in blocks(PAGE)} == {"postgres_journal.py", "nightly.py"}
    assert text.count("```python") == len(blocks(PAGE)) == 2
    assert text.count("```sql") == 1
