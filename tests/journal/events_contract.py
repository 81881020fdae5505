"""What every journal does that stores events: all that a user's may do, and what readers need."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from taskiq_flow import Event, EventBatch, EventJournal, Journal, RunNotFoundError, RunSummary
from taskiq_flow.journal.packed import GraphText, PackedWriter
from taskiq_flow.journal.protocol import finds_tags
from taskiq_flow.notes import notes_of
from tests.journal.test_protocol import ODD_RUN_IDS, SHORT, A, B, Store, log_of

TAGS = ("customer 7", "ß")


def batch(run_id: str, last: int, *, status: str = "running", started: float = 5.0) -> EventBatch:
    """A batch whose only line is event ``last``."""
    return EventBatch(
        b"event %d\n" % last,
        RunSummary(
            *(run_id, cast("Any", status), "graph", started, None, last, 4, 3, 2, 1, "h", 7),
            tags=TAGS,
        ),
    )


def line_of(*events: Event) -> bytes:
    """These events of one run, as a journal has them."""
    return PackedWriter(events[0].run_id, GraphText()).line(notes_of(events), events[0].seq)


async def events_of(journal: EventJournal, run_id: str, after: int = 0) -> bytes:
    return b"".join([lines async for lines in journal.events(run_id, after)])


def of(journal: Journal) -> EventJournal:
    return cast("EventJournal", journal)


class EventJournalContract:
    """Whoever derives from it has a fixture ``store``."""

    async def test_events_are_what_was_written_in_their_order(self, store: Store) -> None:
        journal, other = of(store.open()), of(store.open())
        await journal.create("run", A, b"chunk", batch("run", 1))
        await journal.append("run", A, None, batch("run", 3))
        await journal.append("run", A, b"more")
        await journal.append("run", A, b"last", batch("run", 200))
        assert await events_of(other, "run") == b"event 1\nevent 3\nevent 200\n"
        assert await events_of(other, "run", 1) == b"event 3\nevent 200\n"
        assert await events_of(other, "run", 2) == b"event 3\nevent 200\n"
        assert await events_of(other, "run", 200) == b""
        assert await log_of(other, "run") == [b"chunk", b"more", b"last"]

    async def test_a_run_may_have_events_and_no_log(self, store: Store) -> None:
        journal = of(store.open())
        await journal.create("run", A, None, batch("run", 1))
        assert await events_of(journal, "run") == b"event 1\n"
        assert await log_of(journal, "run") == []

    async def test_many_events_are_read_to_their_end(self, store: Store) -> None:
        journal = of(store.open())
        await journal.create("run", A, b"", None)
        for number in range(1, 202):
            await journal.append("run", A, None, batch("run", number))
        read = (await events_of(journal, "run")).splitlines()
        assert read == [b"event %d" % number for number in range(1, 202)]

    async def test_a_summary_is_the_last_one_that_was_written(self, store: Store) -> None:
        journal, other = of(store.open()), of(store.open())
        await journal.create("run", A, b"", EventBatch(b"", batch("run", 0).summary))
        await journal.append("run", A, b"", batch("run", 9, status="failed"))
        await journal.append("run", A, b"without batch")
        summary = await other.summary("run")
        assert 0 < summary.lease_left <= A.seconds
        written = batch("run", 9, status="failed").summary
        assert (written.tags, (await other.summaries())[0].tags) == (TAGS, TAGS)
        assert summary == replace(written, owner=A.owner, lease_left=summary.lease_left)
        assert await events_of(journal, "run") == b"event 9\n"

    async def test_runs_are_found_by_all_of_their_tags(self, store: Store) -> None:
        journal: Any = of(store.open())
        if not finds_tags(journal):
            pytest.skip("its runs are searched one by one")
        for run_id, has in (("both", ("a", 'b "é"')), ("one", ("a",)), ("none", ())):
            summary = replace(batch(run_id, 1).summary, tags=has)
            await journal.create(run_id, A, b"", EventBatch(b"", summary))
        for tags, found in ((["a"], {"both", "one"}), (["a", 'b "é"'], {"both"}), (["b"], set())):
            assert {run.run_id for run in await journal.summaries(tags=tags)} == found
        (run,) = await journal.summaries(tags=['b "é"'], limit=1)
        assert run.run_id == "both"

    async def test_a_lease_that_is_over_or_given_back_shows(self, store: Store) -> None:
        journal, other = of(store.open()), of(store.open())
        for run_id in ("over", "given back"):
            await journal.create(run_id, SHORT, b"", batch(run_id, 1))
        await journal.renew("given back", A)
        assert (await other.summary("given back")).lease_left > 1
        await journal.release("given back", A)
        await store.pass_seconds(SHORT.seconds)
        for run_id in ("over", "given back"):
            assert (await other.summary(run_id)).lease_left == 0
        assert [run.lease_left for run in await other.summaries()] == [0, 0]

    async def test_whoever_has_lost_the_lease_writes_no_events(self, store: Store) -> None:
        journal, other = of(store.open()), of(store.open())
        await journal.create("run", SHORT, b"a", batch("run", 1))
        await store.pass_seconds(SHORT.seconds)
        await other.acquire("run", B)
        with pytest.raises(Exception, match="taken over"):
            await journal.append("run", A, b"too late", batch("run", 2, status="failed"))
        assert await events_of(other, "run") == b"event 1\n"
        assert (await other.summary("run")).status == "running"
        await other.append("run", B, b"b", batch("run", 2))
        assert await events_of(journal, "run") == b"event 1\nevent 2\n"

    async def test_runs_are_found_by_status_name_and_time(self, store: Store) -> None:
        journal = of(store.open())
        for number, status in enumerate(["running", "completed", "failed", "completed"], 1):
            run_id = f"run {number}"
            told = batch(run_id, 1, status=status, started=10.0 * number)
            await journal.create(run_id, A, b"", told)

        async def found(**asked: object) -> list[str]:
            runs = await of(store.open()).summaries(**cast("Any", asked))
            return [run.run_id.removeprefix("run ") for run in runs]

        assert await found() == ["4", "3", "2", "1"]
        assert await found(limit=2) == ["4", "3"]
        assert await found(status="completed") == ["4", "2"]
        assert await found(status="completed", limit=1) == ["4"]
        assert await found(status="running", name="graph") == ["1"]
        assert await found(name="other") == []
        assert await found(since=20.0, before=40.0) == ["3", "2"]
        assert await found(before=20.0) == ["1"]
        assert await found(since=40.5) == []

    async def test_runs_without_events_come_last_and_have_not_started(self, store: Store) -> None:
        journal = of(store.open())
        await journal.create("old", A, b"")
        await journal.create("new", A, b"", batch("new", 1))
        for runs in (await journal.summaries(), await journal.summaries(name="graph")):
            assert [(run.run_id, run.started) for run in runs] == [("new", 5.0), ("old", 0.0)]
        old = await journal.summary("old")
        assert (old.status, old.owner, old.seq) == ("running", A.owner, 0)
        assert old.lease_left > 0
        assert await events_of(journal, "old") == b""
        await journal.append("old", A, b"", batch("old", 1))
        assert (await journal.summary("old")).started == 5.0

    async def test_events_of_a_run_that_is_called_anything(self, store: Store) -> None:
        journal, other = of(store.open()), of(store.open())
        for number, run_id in enumerate(ODD_RUN_IDS):
            await journal.create(run_id, A, b"", batch(run_id, number + 1, started=100.0 - number))
        assert [run.run_id for run in await other.summaries()] == ODD_RUN_IDS
        for number, run_id in enumerate(ODD_RUN_IDS):
            assert await events_of(other, run_id) == b"event %d\n" % (number + 1)
            assert (await other.summary(run_id)).run_id == run_id

    async def test_what_is_asked_of_a_run_is_there_until_another_takes_it(
        self, store: Store
    ) -> None:
        journal, other = of(store.open()), of(store.open())
        await journal.create("run", A, b"", batch("run", 1))
        assert await journal.requested("run") is None
        await other.request("run", "cancel")
        await journal.append("run", A, b"", batch("run", 2))
        assert await journal.requested("run") == "cancel"
        await journal.release("run", A)
        await other.acquire("run", B)
        assert await journal.requested("run") is None

    @pytest.mark.parametrize("what", ["event", "request", "end"])
    async def test_a_change_is_told_to_others(self, store: Store, what: str) -> None:
        journal, other = of(store.open()), of(store.open())
        await journal.create("run", A, b"", batch("run", 1))
        mark = await other.changed("run", None, 20.0)
        waiting = asyncio.ensure_future(other.changed("run", mark, 20.0))
        await asyncio.sleep(0)
        if what == "event":
            await journal.append("run", A, None, batch("run", 2))
        elif what == "request":
            await journal.request("run", "cancel")
        else:
            await journal.release("run", A)
        async with asyncio.timeout(10.0):
            assert await waiting != mark

    async def test_a_change_before_the_call_is_not_missed(self, store: Store) -> None:
        journal, other = of(store.open()), of(store.open())
        await journal.create("run", A, b"", batch("run", 1))
        mark = await other.changed("run", None, 20.0)
        await journal.append("run", A, None, batch("run", 2))
        async with asyncio.timeout(10.0):
            assert await other.changed("run", mark, 20.0) != mark

    async def test_waiting_for_a_change_ends(self, store: Store) -> None:
        journal = of(store.open())
        await journal.create("run", A, b"", batch("run", 1))
        mark = await journal.changed("run", None, 0.2)
        async with asyncio.timeout(10.0):
            assert await journal.changed("run", mark, 0.05) == mark

    async def test_of_a_run_that_is_not_there_nothing_is_told(self, store: Store) -> None:
        journal = of(store.open())
        for attempt in (
            journal.summary("none"),
            journal.request("none", "cancel"),
            journal.requested("none"),
            events_of(journal, "none"),
        ):
            with pytest.raises(RunNotFoundError, match="no run 'none'"):
                await attempt
        assert await journal.summaries() == []

    async def test_nothing_is_left_of_the_events_of_a_run_that_was_removed(
        self, store: Store
    ) -> None:
        journal = of(store.open())
        await journal.create("run", A, b"old", batch("run", 7))
        await journal.request("run", "cancel")
        await journal.release("run", A)
        await journal.delete("run")
        assert await journal.summaries() == []
        await journal.create("run", A, b"new")
        assert (await journal.summary("run")).started == 0
        assert await journal.requested("run") is None
        assert await events_of(journal, "run") == b""
