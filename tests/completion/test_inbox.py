"""Notices are hints: whatever becomes of them, a run ends, once, with the right values."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from taskiq import TaskiqResult

from taskiq_flow import (
    ConfigurationError,
    DAGBuilder,
    ExecutionEngine,
    NodeFailedError,
    NodeFailure,
    ResultUnavailableError,
    TaskLostError,
)
from taskiq_flow.completion import safety_net
from taskiq_flow.completion.inbox import Inbox
from taskiq_flow.completion.safety_net import (
    ASKED_PER_CHECK,
    CHECK_INTERVAL,
    QUEUED_SILENCE,
    SILENCE,
    SUSPENDED_AFTER,
)
from taskiq_flow.testing import LocalBroker, LocalFlowMiddleware, LocalNotices, LocalNotifier
from taskiq_flow.transport.notice import Kind, Notice
from taskiq_flow.transport.protocol import REVOCATION_LIFE
from taskiq_flow.worker.heartbeat import BEAT
from tests.local_flow import with_flow
from tests.virtual_clock import virtual_loop, virtually

pytestmark = pytest.mark.usefixtures("plain_task_ids")


class Site:
    """A broker with the middleware, and a worker of it in this process."""

    def __init__(self, *, inline_limit: int = 65536) -> None:
        self.board = LocalNotices()
        self.broker = LocalBroker()
        self.flow: LocalFlowMiddleware = with_flow(self.broker, self.board, inline_limit)
        self.executed: list[str] = []

        @self.broker.task(task_name="number")
        async def number(value: int = 1) -> int:
            self.executed.append("number")
            return value

        @self.broker.task(task_name="nap")
        async def nap(seconds: float) -> float:
            self.executed.append("nap")
            await asyncio.sleep(seconds)
            return seconds

        self.number, self.nap = number, nap

    @contextlib.asynccontextmanager
    async def working(self, slots: int = 100) -> AsyncIterator[None]:
        async with self.broker.worker(slots):
            yield
        await self.flow.shutdown()

    def engine(self, task: Any, **options: Any) -> ExecutionEngine:
        return ExecutionEngine(self.broker, DAGBuilder().node(task).build(), **options)

    async def inbox(self) -> Inbox:
        return await self.flow.inbox()


def now() -> float:
    return asyncio.get_running_loop().time()


def notice_of(result: Any, task_id: str = "r:number:1") -> Notice:
    body = TaskiqResult(is_err=False, return_value=result, execution_time=0.0).model_dump_json()
    return Notice(Kind.RESULT, task_id, body.encode())


@pytest.mark.parametrize("inline_limit", [65536, 0])
@virtually
async def test_a_result_is_there_as_soon_as_its_task_has_ended(inline_limit: int) -> None:
    site = Site(inline_limit=inline_limit)
    async with site.working():
        assert await site.engine(site.nap).execute({"seconds": 3.0}) == {"nap": 3.0}
        assert now() == 3.0


@virtually
async def test_small_results_travel_with_their_notices_and_large_ones_do_not() -> None:
    site = Site(inline_limit=200)
    async with site.working():
        for value in (1, 10**300):
            await site.engine(site.number).execute({"value": value})
        inbox = await site.inbox()
        opened = [Notice.opened(data, inbox.key) for _, data in site.board.published]
        assert [notice.kind for notice in opened if notice] == [Kind.RESULT, Kind.SAVED]


@virtually
async def test_a_result_whose_notice_is_dropped_is_found() -> None:
    site = Site()
    site.board.drops = lambda _: True
    async with site.working():
        assert await site.engine(site.number).execute() == {"number": 1}
        assert now() <= SILENCE + 2 * CHECK_INTERVAL


@virtually
async def test_without_any_notices_a_chain_does_not_wait_for_each_of_them() -> None:
    """As with workers that have no middleware: what was found by asking is asked for sooner."""

    site = Site()
    site.board.drops = lambda _: True
    builder = DAGBuilder()
    for index in range(50):
        before = {"value": f"n{index - 1}"} if index else {}
        builder.node(site.number, name=f"n{index}", inputs=before)
    async with site.working():
        await ExecutionEngine(site.broker, builder.build()).execute()
        assert now() <= SILENCE + 2 * CHECK_INTERVAL + 50 * 0.05


def forged(inbox: Inbox) -> list[bytes]:
    """Notices with a wrong value that no worker has sent."""
    good = notice_of(666).sealed(inbox.key)
    return [
        notice_of(666).sealed(b"0" * 16),
        notice_of(666).sealed(b""),
        good[:16] + bytes([good[16] ^ 1]) + good[17:],
        good[:-1],
        good[16:],
        b"",
        b"\xff" * 40,
        Notice(Kind.HERE, body=b"not json").sealed(inbox.key),
        Notice(Kind.RESULT, "r:number:1", b"not json").sealed(inbox.key),
        Notice(Kind.SAVED, "of another run").sealed(inbox.key),
        notice_of(666, "r:other:1").sealed(inbox.key),
    ]


@pytest.mark.parametrize("index", range(11))
@virtually
async def test_a_forged_or_spoilt_notice_is_ignored(
    index: int, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site()
    engine = site.engine(site.number)
    inbox = await site.inbox()
    run = asyncio.ensure_future(engine.execute(run_id="r"))
    while not site.broker.queue.qsize():
        await asyncio.sleep(0)
    site.board.tell(inbox.channel, forged(inbox)[index])
    async with site.working():
        assert await run == {"number": 1}
        assert now() < SILENCE


@pytest.mark.parametrize("kind", list(Kind))
@virtually
async def test_a_notice_that_comes_early_late_or_twice_changes_nothing(kind: Kind) -> None:
    """A notice that a result is saved, before it is; each notice again when the run is over."""

    site = Site()
    inbox = await site.inbox()
    notice = (
        Notice.of_tasks(Kind.HERE, ["r:number:1"])
        if kind is Kind.HERE
        else Notice(kind, "r:number:1", notice_of(1).body)
    )
    pairs = []
    async with site.working():
        async for pair in site.engine(site.number).execute_async(run_id="r"):
            pairs.append(pair)
            for _ in range(2):
                site.board.tell(inbox.channel, notice.sealed(inbox.key))
        site.board.tell(inbox.channel, notice.sealed(inbox.key))
        await asyncio.sleep(10)
    assert pairs == [("number", 1)]


@virtually
async def test_a_notice_of_a_result_that_is_not_saved_yet_is_early() -> None:
    site = Site()
    inbox = await site.inbox()
    run = asyncio.ensure_future(site.engine(site.nap).execute({"seconds": 1.5}, run_id="r"))
    async with site.working():
        await asyncio.sleep(0.5)
        site.board.tell(inbox.channel, Notice(Kind.SAVED, "r:nap:1").sealed(inbox.key))
        assert await run == {"nap": 1.5}
        assert now() == 1.5


@virtually
async def test_a_saved_result_that_is_gone_is_a_named_error() -> None:
    site = Site(inline_limit=0)

    async def forget(task_id: str, result: Any) -> None:
        """As a backend does whose results expire at once."""

    site.broker.results.set_result = forget  # type: ignore[method-assign]
    async with site.working():
        with pytest.raises(NodeFailedError) as caught:
            await site.engine(site.number).execute()
    assert isinstance(caught.value.__cause__, ResultUnavailableError)
    assert now() < 10


# Who is lost, and who is not


@contextlib.asynccontextmanager
async def lost(site: Site, after: float, by: float) -> AsyncIterator[None]:
    """A block in which a run ends because a task is lost, between these moments."""
    with pytest.raises(NodeFailedError) as caught:
        yield
    assert isinstance(caught.value.__cause__, TaskLostError)
    assert after < now() <= by
    await site.flow.shutdown()


@virtually
async def test_a_task_of_which_nothing_is_heard_is_lost_by_the_deadline() -> None:
    site = Site()
    async with lost(site, 20.0, 20.0 + 2 * CHECK_INTERVAL):
        await site.engine(site.number, lost_after=20.0).execute()  # nobody is working


@virtually
async def test_a_task_that_is_reported_is_not_lost_however_long_it_takes() -> None:
    site = Site()
    async with site.working():
        engine = site.engine(site.nap, lost_after=1.0)
        assert await engine.execute({"seconds": 5000.0}) == {"nap": 5000.0}


@virtually
async def test_a_task_whose_reports_cease_is_lost() -> None:
    site = Site()
    site.board.drops = lambda _: now() > 30.0
    async with site.working(), lost(site, 40.0 - 1.01 * BEAT, 40.0 + 2 * CHECK_INTERVAL):
        await site.engine(site.nap, lost_after=10.0).execute({"seconds": 5000.0})


@virtually
async def test_a_task_that_waits_behind_one_that_is_reported_is_not_lost() -> None:
    site = Site()
    builder = DAGBuilder()
    for index in range(4):
        builder.node(site.nap, name=f"n{index}", inputs=["seconds"])
    async with site.working(slots=1):
        engine = ExecutionEngine(site.broker, builder.build(), lost_after=2.0)
        assert len(await engine.execute({"seconds": 30.0})) == 4
        assert now() == 120.0


@virtually
async def test_a_lost_task_is_noticed_although_later_ones_are_heard_of() -> None:
    site = Site()

    @site.broker.task(task_name="strange")
    async def strange() -> None: ...

    dag = DAGBuilder().node(strange).node(site.nap).build()
    del site.broker.local_task_registry["strange"]
    async with site.working(), lost(site, 5.0, 5.0 + 2 * CHECK_INTERVAL):
        await ExecutionEngine(site.broker, dag, lost_after=5.0).execute({"seconds": 500.0})


@virtually
async def test_nobody_is_lost_while_the_engine_cannot_hear() -> None:
    site = Site()
    async with site.working():
        engine = site.engine(site.nap, lost_after=5.0)
        run = asyncio.ensure_future(engine.execute({"seconds": 50.0}))
        await asyncio.sleep(10)
        site.board.is_up = False
        await asyncio.sleep(30)
        site.board.is_up = True
        assert await run == {"nap": 50.0}


@virtually
async def test_nobody_is_lost_because_this_process_was_away() -> None:
    site = Site()
    loop: Any = asyncio.get_running_loop()
    async with site.working():
        engine = site.engine(site.nap, lost_after=20.0)
        run = asyncio.ensure_future(engine.execute({"seconds": 100.0}))
        await asyncio.sleep(10)
        loop._clock.now += 60.0  # as when it is suspended, or its loop is blocked
        assert await run == {"nap": 100.0}


class Queue:
    """A backlog as a test wants it."""

    def __init__(self) -> None:
        self.newest, self.taken = 5, 0
        self.is_away = False

    async def position(self, queue: str | None) -> tuple[int, int]:
        if self.is_away:
            raise ConnectionError
        return self.newest, self.taken


@pytest.mark.parametrize("taken_at", [0.0, 3.0, 300.0])
@virtually
async def test_a_task_that_stands_in_the_queue_is_not_lost_until_it_was_taken(
    taken_at: float,
) -> None:
    site, queue, loop = Site(), Queue(), asyncio.get_running_loop()
    (await site.inbox()).safety_net.backlog = queue
    loop.call_later(taken_at, setattr, queue, "taken", 5)
    loop.call_later(taken_at + 11.0, setattr, queue, "newest", 50)  # sent by others
    expected = max(20.0, taken_at + 10.0)
    async with lost(site, expected, expected + 3 * CHECK_INTERVAL):
        await site.engine(site.number, lost_after=20.0).execute()


@pytest.mark.parametrize("others", [0, 3])
@virtually
async def test_a_task_of_a_queue_that_was_begun_anew_is_lost(others: int) -> None:
    """Where the server has lost its data, it numbers from the beginning."""
    site, queue, loop = Site(), Queue(), asyncio.get_running_loop()
    (await site.inbox()).safety_net.backlog = queue
    loop.call_later(100.0, setattr, queue, "newest", others)
    loop.call_later(200.0, setattr, queue, "taken", others)
    expected = (200.0 if others else 100.0) + 10.0
    async with lost(site, expected, expected + 3 * CHECK_INTERVAL):
        await site.engine(site.number, lost_after=20.0).execute()


@virtually
async def test_a_run_whose_broker_is_shut_down_ends() -> None:
    site = Site()
    async with site.broker.worker():
        run = asyncio.ensure_future(site.engine(site.nap).execute({"seconds": 100.0}))
        await asyncio.sleep(1.0)
        await site.flow.shutdown()
        with pytest.raises(NodeFailedError, match="was shut down while it was in flight"):
            await run
        assert now() == 1.0


@virtually
async def test_a_run_goes_on_after_its_broker_was_shut_down_and_started() -> None:
    site = Site()
    for _ in range(2):
        async with site.working():
            assert await site.engine(site.number).execute() == {"number": 1}


@virtually
async def test_a_slow_store_does_not_pass_for_a_process_that_was_away() -> None:
    site = Site()
    ready = site.broker.results.is_result_ready

    async def slow(task_id: str) -> bool:
        await asyncio.sleep(SUSPENDED_AFTER + 1.0)
        return await ready(task_id)

    site.broker.results.is_result_ready = slow  # type: ignore[method-assign]
    async with lost(site, 20.0, 20.0 + 2 * (SUSPENDED_AFTER + 1.0)):
        await site.engine(site.number, lost_after=20.0).execute()  # nobody is working


async def test_a_reader_that_leaves_while_the_inbox_opens_leaves_it_to_be_closed() -> None:
    site = Site()
    reading = asyncio.ensure_future(site.engine(site.number).execute())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    await site.flow.shutdown()
    assert not any(site.board.hearers.values())


def test_a_broker_is_used_on_one_event_loop_at_a_time() -> None:
    site = LocalBroker(), LocalNotices()
    flow = with_flow(*site)

    async def use() -> None:
        assert await flow.inbox()

    async def main() -> None:
        await use()
        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, use())
        await flow.shutdown()

    for _ in range(2):  # one loop after the other is well
        asyncio.run(main())


@virtually
async def test_a_queue_that_cannot_be_seen_does_not_keep_a_run_for_ever() -> None:
    site, queue = Site(), Queue()
    queue.is_away = True
    (await site.inbox()).safety_net.backlog = queue
    async with lost(site, 60.0, 100.0):
        await site.engine(site.number, lost_after=20.0).execute()


# Life


@virtually
async def test_a_worker_forgets_runs_that_were_revoked_long_ago() -> None:
    site = Site()
    async with site.working():
        await site.engine(site.number).execute()
        notifier = LocalNotifier(site.board)
        for number in range(100):
            await notifier.revoke(f"channel {number}")
        clock = virtual_loop()._clock
        clock.now, clock.hangs_at = REVOCATION_LIFE + 10.0, math.inf
        for number in range(100):
            await notifier.revoke(f"channel later {number}")
        worker = site.flow._worker.opened
        assert worker is not None
        assert list(worker._revoked) == [f"channel later {number}" for number in range(100)]


async def test_nothing_of_a_run_is_left_in_the_inbox() -> None:
    site = Site()
    async with site.working():
        await site.engine(site.number).execute()
        inbox = await site.inbox()
        assert not inbox._watched
        assert not inbox.run_ids
        assert not inbox._readings
        engine = site.engine(site.nap)
        run = asyncio.ensure_future(engine.execute({"seconds": 10.0}, run_id="gone"))
        while "nap" not in site.executed:
            await asyncio.sleep(0)
        engine.cancel()
        await asyncio.gather(run, return_exceptions=True)
        (revoked,) = site.board.revoked
        assert revoked.startswith(f"{inbox.channel} ")
        assert revoked.endswith(" gone")
        assert not inbox._watched
        assert not inbox.run_ids


async def test_a_run_that_is_complete_revokes_nothing() -> None:
    site = Site()
    async with site.working():
        await site.engine(site.number).execute()
        assert site.board.revoked == []


async def test_two_runs_of_one_id_at_once_are_refused() -> None:
    site = Site()
    async with site.working():
        engine = site.engine(site.nap)
        first = asyncio.ensure_future(engine.execute({"seconds": 0.1}, run_id="r"))
        while "nap" not in site.executed:
            await asyncio.sleep(0)
        with pytest.raises(ConfigurationError, match="run id 'r' is in use"):
            await engine.execute({"seconds": 0.1}, run_id="r")
        assert await first == {"nap": 0.1}


@virtually
async def test_a_run_ends_although_nobody_can_be_told_that_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    async with site.working():
        engine = site.engine(site.nap)
        run = asyncio.ensure_future(engine.execute({"seconds": 50.0}))
        await asyncio.sleep(1)
        site.board.is_up = False
        engine.cancel()
        await asyncio.gather(run, return_exceptions=True)
        assert now() < 10
        site.board.is_up = True
    assert "workers were not told" in caplog.text


def test_one_inbox_serves_all_runs_and_each_event_loop_has_its_own() -> None:
    site = Site()

    async def main() -> Inbox:
        site.broker.queue = asyncio.Queue()  # which knows one event loop only
        async with site.working():
            first = await site.inbox()
            await asyncio.gather(*(site.engine(site.number).execute() for _ in range(3)))
            assert await site.inbox() is first
            return first

    assert asyncio.run(main()) is not asyncio.run(main())


@virtually
async def test_silent_tasks_are_asked_for_in_turn() -> None:
    """However many older ones have no result: the younger ones may have one."""

    site = Site()
    site.board.drops = lambda _: True
    builder = DAGBuilder()
    for index in range(3 * ASKED_PER_CHECK):
        builder.node(site.nap, name=f"old{index}")
    for index in range(100):
        builder.node(site.number, name=f"young{index}", inputs=[])
    async with site.working(1000):
        engine = ExecutionEngine(site.broker, builder.build(), lost_after=5.0, on_error="collect")
        results = await engine.execute({"seconds": 1000.0})
        lost = {name for name, value in results.items() if isinstance(value, NodeFailure)}
        assert lost == {f"old{index}" for index in range(3 * ASKED_PER_CHECK)}


@virtually
async def test_tasks_in_the_queue_are_not_asked_for_while_notices_come() -> None:
    site = Site()
    asked: list[str] = []
    backend = site.broker.result_backend
    is_result_ready = backend.is_result_ready

    async def ask(task_id: str) -> bool:
        asked.append(task_id)
        return bool(await is_result_ready(task_id))

    backend.is_result_ready = ask  # type: ignore[method-assign]
    builder = DAGBuilder()
    for index in range(5):
        builder.node(site.nap, name=f"nap{index}")
    async with site.working(1):
        await ExecutionEngine(site.broker, builder.build()).execute({"seconds": 0.9})
        assert now() >= 4.5
        assert asked == []


@virtually
async def test_a_dropped_notice_is_made_up_for_while_others_come() -> None:
    """Also if the task was sent after all of those: it might stand in the queue."""
    site = Site()
    site.board.drops = lambda data: b"r:number:1" in data
    async with site.working():
        other = asyncio.ensure_future(site.engine(site.nap).execute({"seconds": 60.0}))
        await asyncio.sleep(2.0)
        began = now()
        assert await site.engine(site.number).execute(run_id="r") == {"number": 1}
        assert now() - began <= QUEUED_SILENCE + 2 * CHECK_INTERVAL
        assert await other == {"nap": 60.0}


@virtually
async def test_a_dropped_notice_is_made_up_for_at_once_if_a_later_task_is_heard_of() -> None:
    """A worker has begun a task that was sent later: it does not stand in the queue."""
    site = Site()
    site.board.drops = lambda data: b"r:number:1" in data
    async with site.working():
        first = asyncio.ensure_future(site.engine(site.number).execute(run_id="r"))
        await asyncio.sleep(0.1)
        later = asyncio.ensure_future(site.engine(site.nap).execute({"seconds": 10.0}))
        assert await first == {"number": 1}
        assert now() <= SILENCE + 2 * CHECK_INTERVAL < QUEUED_SILENCE
        assert await later == {"nap": 10.0}


@virtually
async def test_a_task_is_asked_for_once_more_before_it_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(safety_net, "SILENCE", 1000.0)  # it is not asked for before
    site = Site()
    site.board.drops = lambda _: True
    async with site.working():
        assert await site.engine(site.number, lost_after=5.0).execute() == {"number": 1}
