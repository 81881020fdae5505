"""What every journal does: logs of chunks that only grow, each under a lease."""

from __future__ import annotations

import asyncio
import pickle
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from taskiq.serializers import PickleSerializer

from taskiq_flow import (
    Journal,
    JournalError,
    Lease,
    MemoryJournal,
    RunLockedError,
    RunNotFoundError,
    SqliteJournal,
)
from taskiq_flow.journal import memory, sqlite

A, B = Lease("engine a", 60.0), Lease("engine b", 60.0)
SHORT = Lease(A.owner, 0.05)
"""One that a test can see the end of."""

ODD_RUN_IDS = [
    *("", " ", "a ", "A", "a", "a\nb", "a\r\nb", "a\tb", "\0", "a\0b", "'; DROP TABLE runs; --"),
    *(
        "%s",
        "{0}",
        "log:a",
        "runs",
        "../a",
        "ä",
        "a\u0308",
        "\u202eabc",
        "運行",
        "🏃",
        "\U0010ffff",
    ),
    *("\ud800", "a\udfffb", "\ud83c\udfc3", "x" * 10_000, "運" * 5_000),
]


class Store(ABC):
    """A store of one kind, with as many journals on it as a test opens."""

    def __init__(self) -> None:
        self.journals: list[Journal] = []

    def open(self) -> Journal:
        """Give a journal, as another engine would have it."""
        self.journals.append(journal := self.another())
        return journal

    @abstractmethod
    def another(self) -> Journal: ...

    @abstractmethod
    async def pass_seconds(self, seconds: float) -> None:
        """Let some time pass, as leases are measured."""

    async def aclose(self) -> None:
        for journal in self.journals:
            await journal.aclose()


class Clock:
    """Stands in for the modules that tell journals the time."""

    sleep = staticmethod(asyncio.sleep)

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def get_running_loop(self) -> Clock:
        return self


class MemoryStore(Store):
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.clock = Clock()
        self.journal = MemoryJournal()
        monkeypatch.setattr(memory, "asyncio", self.clock)

    def another(self) -> Journal:
        return self.journal

    async def pass_seconds(self, seconds: float) -> None:
        self.clock.now += seconds


class SqliteStore(Store):
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.clock = Clock()
        self.path = folder / "runs.db"
        monkeypatch.setattr(sqlite, "time", self.clock)

    def another(self) -> Journal:
        return SqliteJournal(self.path)

    async def pass_seconds(self, seconds: float) -> None:
        self.clock.now += seconds


async def log_of(journal: Journal, run_id: str) -> list[bytes]:
    return [chunk async for chunk in journal.read(run_id)]


class JournalContract:
    """Whoever derives from it has a fixture ``store``."""

    # Logs

    async def test_a_log_is_what_was_written_in_its_order(self, store: Store) -> None:
        journal, other = store.open(), store.open()
        chunks = [b"first", b"", bytes(range(256)), b"\0", b"first", b"last"]
        await journal.create("run", A, chunks[0])
        for chunk in chunks[1:]:
            await journal.append("run", A, chunk)
        assert await log_of(journal, "run") == await log_of(other, "run") == chunks

    @pytest.mark.parametrize("count", [64, 65, 200])
    async def test_a_log_of_many_chunks_is_read_to_its_end(self, store: Store, count: int) -> None:
        journal = store.open()
        await journal.create("run", A, b"0")
        for number in range(1, count):
            await journal.append("run", A, str(number).encode())
        assert await log_of(journal, "run") == [str(number).encode() for number in range(count)]

    async def test_chunks_may_be_big(self, store: Store) -> None:
        journal = store.open()
        big = [bytes([number]) * (3 << 20) for number in range(3)]
        await journal.create("run", A, big[0])
        for chunk in big[1:]:
            await journal.append("run", A, chunk)
        assert await log_of(journal, "run") == big

    async def test_appends_at_once_are_written_in_the_order_of_their_calls(
        self, store: Store
    ) -> None:
        journal = store.open()
        chunks = [str(number).encode() for number in range(60)]
        await journal.create("run", A, chunks[0])
        await asyncio.gather(*(journal.append("run", A, chunk) for chunk in chunks[1:]))
        assert await log_of(journal, "run") == chunks

    async def test_runs_at_once_do_not_mix(self, store: Store) -> None:
        journals = [store.open(), store.open()]

        async def write(number: int) -> None:
            journal, lease = journals[number % 2], Lease(f"engine {number}", 60.0)
            await journal.create(f"run {number}", lease, b"%d:0" % number)
            for place in range(1, 20):
                await journal.append(f"run {number}", lease, b"%d:%d" % (number, place))
                await journal.renew(f"run {number}", lease)

        await asyncio.gather(*map(write, range(12)))
        for number in range(12):
            expected = [b"%d:%d" % (number, place) for place in range(20)]
            assert await log_of(journals[0], f"run {number}") == expected
            with pytest.raises(RunLockedError, match=f"engine {number},"):
                await journals[1].acquire(f"run {number}", B)

    async def test_a_log_may_grow_while_it_is_read_and_be_left_half_read(
        self, store: Store
    ) -> None:
        journal, other = store.open(), store.open()
        chunks = [str(number).encode() for number in range(70)]
        await journal.create("run", A, chunks[0])
        for chunk in chunks[1:]:
            await journal.append("run", A, chunk)
        seen: list[bytes] = []
        async with aclosing(other.read("run")) as reading:
            async for chunk in reading:
                if not seen:
                    await journal.append("run", A, b"new")
                seen.append(chunk)
        assert seen[:70] == chunks
        async with aclosing(other.read("run")) as reading:
            assert await anext(reading) == b"0"
        assert await log_of(other, "run") == [*chunks, b"new"]

    async def test_a_run_is_begun_once(self, store: Store) -> None:
        journal, other = store.open(), store.open()
        await journal.create("run", A, b"its own")
        for beginner, lease in [(journal, A), (journal, B), (other, B)]:
            with pytest.raises(JournalError, match=r"resume\('run'\), .* another run_id"):
                await beginner.create("run", lease, b"another's")
        await journal.append("run", A, b"too")
        assert await log_of(journal, "run") == [b"its own", b"too"]
        assert await journal.run_ids() == ["run"]

    async def test_a_run_that_is_not_there_is_not_found(self, store: Store) -> None:
        journal = store.open()
        await journal.create("a run", A, b"")
        for attempt in (
            journal.acquire("none", A),
            journal.renew("none", A),
            journal.append("none", A, b""),
            journal.delete("none"),
            log_of(journal, "none"),
        ):
            with pytest.raises(RunNotFoundError, match=r"no run 'none'; .* run_ids\(\)") as caught:
                await attempt
            assert caught.value.run_id == "none"
        await journal.release("none", A)
        assert await journal.run_ids() == ["a run"]

    async def test_an_empty_journal_has_no_runs(self, store: Store) -> None:
        assert await store.open().run_ids() == []

    async def test_runs_are_listed_from_the_oldest_on(self, store: Store) -> None:
        journal = store.open()
        for run_id in ["c", "a", "b"]:
            await journal.create(run_id, A, b"")
        await journal.release("b", A)
        await journal.delete("b")
        await journal.release("c", A)
        await journal.delete("c")
        await journal.create("c", A, b"")
        await journal.create("b", A, b"")
        await journal.append("a", A, b"")
        assert await journal.run_ids() == ["a", "c", "b"]

    async def test_a_run_may_be_called_anything(self, store: Store) -> None:
        journal, other = store.open(), store.open()
        for number, run_id in enumerate(ODD_RUN_IDS):
            await journal.create(run_id, A, b"begin")
            await journal.append(run_id, A, str(number).encode())
        assert await other.run_ids() == ODD_RUN_IDS
        for number, run_id in enumerate(ODD_RUN_IDS):
            assert await log_of(other, run_id) == [b"begin", str(number).encode()]
            with pytest.raises(RunLockedError):
                await other.acquire(run_id, B)
            await journal.release(run_id, A)
            await other.acquire(run_id, B)
            await other.release(run_id, B)
            await other.delete(run_id)
        assert await journal.run_ids() == []

    # Leases

    async def test_whoever_comes_second_is_told_who_is_first_and_what_to_do(
        self, store: Store
    ) -> None:
        journal, other = store.open(), store.open()
        await journal.create("run", A, b"")
        message = r"run 'run' is locked by engine a, whose lease expires in \d+\.\d s.*wait=15"
        for second in (other, journal):
            with pytest.raises(RunLockedError, match=message):
                await second.acquire("run", B)

    async def test_a_lease_may_be_taken_again_by_its_owner(self, store: Store) -> None:
        journal = store.open()
        await journal.create("run", A, b"")
        await journal.acquire("run", A)
        await journal.append("run", A, b"")

    async def test_a_lease_that_was_given_back_is_anyones(self, store: Store) -> None:
        journal, other = store.open(), store.open()
        await journal.create("run", A, b"a")
        await journal.release("run", A)
        await journal.release("run", A)
        with pytest.raises(RunLockedError):
            await journal.renew("run", A)
        with pytest.raises(RunLockedError):
            await journal.append("run", A, b"a")
        await other.acquire("run", B)
        await other.append("run", B, b"b")
        assert await log_of(other, "run") == [b"a", b"b"]

    async def test_only_its_owner_gives_a_lease_back(self, store: Store) -> None:
        journal, other = store.open(), store.open()
        await journal.create("run", A, b"")
        await other.release("run", B)
        with pytest.raises(RunLockedError, match="engine a"):
            await other.acquire("run", B)
        await journal.append("run", A, b"")

    async def test_a_lease_that_is_renewed_goes_on(self, store: Store) -> None:
        journal, other = store.open(), store.open()
        await journal.create("run", SHORT, b"")
        await journal.renew("run", A)
        await store.pass_seconds(SHORT.seconds)
        with pytest.raises(RunLockedError, match="engine a"):
            await other.acquire("run", B)

    async def test_a_lease_that_was_over_is_still_its_owners_until_another_takes_it(
        self, store: Store
    ) -> None:
        journal, other = store.open(), store.open()
        await journal.create("run", SHORT, b"0")
        await store.pass_seconds(SHORT.seconds)
        await journal.append("run", SHORT, b"1")
        await store.pass_seconds(SHORT.seconds)
        await journal.renew("run", A)
        with pytest.raises(RunLockedError, match="engine a"):
            await other.acquire("run", B)
        assert await log_of(journal, "run") == [b"0", b"1"]

    async def test_whoever_has_lost_the_lease_writes_nothing_more(self, store: Store) -> None:
        journal, other = store.open(), store.open()
        await journal.create("run", SHORT, b"a")
        await store.pass_seconds(SHORT.seconds)
        await other.acquire("run", B)
        taken_over = "run 'run' was taken over by another engine"
        with pytest.raises(RunLockedError, match=taken_over):
            await journal.append("run", A, b"too late")
        with pytest.raises(RunLockedError, match=taken_over):
            await journal.renew("run", A)
        await journal.release("run", A)
        with pytest.raises(RunLockedError, match="engine b"):
            await journal.acquire("run", A)
        await other.append("run", B, b"b")
        assert await log_of(journal, "run") == [b"a", b"b"]

    async def test_of_many_who_come_at_once_one_gets_the_lease(self, store: Store) -> None:
        journals = [store.open() for _ in range(8)]
        await journals[0].create("run", A, b"")
        await journals[0].release("run", A)
        leases = [Lease(f"engine {number}", 60.0) for number in range(8)]
        calls = [
            journal.acquire("run", lease) for journal, lease in zip(journals, leases, strict=True)
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        (winner,) = [lease for lease, outcome in zip(leases, outcomes, strict=True) if not outcome]
        errors = [outcome for outcome in outcomes if outcome]
        assert all(isinstance(error, RunLockedError) for error in errors)
        assert all(f"locked by {winner.owner}," in str(error) for error in errors)

    async def test_reading_needs_no_lease(self, store: Store) -> None:
        journal, other = store.open(), store.open()
        await journal.create("run", A, b"chunk")
        assert await log_of(other, "run") == [b"chunk"]
        await journal.release("run", A)
        assert await log_of(other, "run") == [b"chunk"]

    # Removal

    async def test_a_run_that_somebody_is_at_is_not_removed(self, store: Store) -> None:
        journal, other = store.open(), store.open()
        await journal.create("run", A, b"chunk")
        for remover in (journal, other):
            with pytest.raises(RunLockedError, match="locked by engine a"):
                await remover.delete("run")
        await journal.append("run", A, b"more")
        assert await log_of(journal, "run") == [b"chunk", b"more"]

    async def test_a_run_that_was_removed_is_gone_and_may_be_begun_anew(self, store: Store) -> None:
        journal, other = store.open(), store.open()
        await journal.create("run", SHORT, b"old")
        await journal.create("another", A, b"another")
        await store.pass_seconds(SHORT.seconds)
        await other.delete("run")
        with pytest.raises(RunNotFoundError):
            await log_of(journal, "run")
        with pytest.raises(RunNotFoundError):
            await journal.append("run", A, b"too late")
        assert await journal.run_ids() == ["another"]
        await other.create("run", B, b"new")
        with pytest.raises(RunLockedError):
            await journal.append("run", A, b"too late")
        assert await log_of(journal, "run") == [b"new"]
        assert await log_of(journal, "another") == [b"another"]

    # The end

    async def test_a_journal_may_be_closed_at_any_time_and_used_again(self, store: Store) -> None:
        journal = store.open()
        await journal.aclose()
        await journal.create("run", A, b"before")
        await journal.aclose()
        await journal.aclose()
        await journal.append("run", A, b"after")
        assert await log_of(journal, "run") == [b"before", b"after"]

    async def test_values_are_written_as_json_unless_it_is_given_another_way(
        self, store: Store
    ) -> None:
        assert store.open().serializer.dumpb({"a": 1}) == b'{"a": 1}'


class TestJournals(JournalContract):
    """Those in this process; the one on Redis is with the tests that need servers."""

    @pytest.fixture(params=[MemoryStore, SqliteStore], ids=["memory", "sqlite"])
    async def store(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[Store]:
        store: Store = request.param(tmp_path, monkeypatch)
        yield store
        await store.aclose()


@pytest.mark.parametrize("on", ["memory", "sqlite"])
def test_a_serializer_of_ones_own_is_kept(on: str, tmp_path: Path) -> None:
    given = PickleSerializer()
    journal: Journal
    if on == "memory":
        journal = MemoryJournal(serializer=given)
    else:
        journal = SqliteJournal(tmp_path / "runs.db", serializer=given)
    assert journal.serializer is given
    assert pickle.loads(journal.serializer.dumpb({1})) == {1}  # noqa: S301 - written here
