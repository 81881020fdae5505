"""What a worker does with a message that was delivered before, or whose engine is gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from taskiq import (
    AckableMessage,
    SimpleRetryMiddleware,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)

from taskiq_flow import DAGBuilder, ExecutionEngine, NodeFailedError, TaskLostError
from taskiq_flow.journal.memory import MemoryJournal
from taskiq_flow.testing import LocalBroker, LocalNotices
from taskiq_flow.transport.deliveries import Deliveries
from taskiq_flow.transport.notice import Kind, Notice
from taskiq_flow.worker.absence import ENGINE_PATIENCE
from taskiq_flow.worker.heartbeat import BEAT
from tests.local_flow import with_flow
from tests.virtual_clock import virtually


class Redelivering(LocalBroker):
    """Delivers each message as if it had been delivered some times before."""

    def __init__(self) -> None:
        super().__init__()
        self.board = LocalNotices()
        self.flow = with_flow(self, self.board)
        self.flow._deliveries = self.deliveries = Deliveries(self)
        self.number = 1
        self.messages: list[bytes] = []
        self.acknowledged = 0
        self.errors: list[Exception] = []  # of the acknowledgements to come
        self.executed: list[int] = []
        self.may_end = asyncio.Event()

        @self.task(task_name="work")
        async def work(value: int) -> int:
            self.executed.append(value)
            await self.may_end.wait()
            return value

        self.work = work

    async def listen(self) -> AsyncGenerator[Any, None]:
        async for data in super().listen():
            self.messages.append(data)
            yield self.delivery(data)

    def delivery(self, data: bytes) -> AckableMessage:
        return self.deliveries.hold(data, self._acknowledge, number=self.number)

    def _acknowledge(self) -> None:
        if self.errors:
            raise self.errors.pop()
        self.acknowledged += 1

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        async with self.worker():
            try:
                yield
            finally:
                self.may_end.set()  # else a test that fails would hang
        await self.flow.shutdown()

    def engine(self, **options: Any) -> ExecutionEngine:
        return ExecutionEngine(self, DAGBuilder().node(self.work).build(), **options)


class Broken(TaskiqMiddleware):
    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        raise RuntimeError("broken")


@virtually
async def test_a_message_of_no_engine_is_held_until_its_task_has_ended() -> None:
    """If a middleware has raised, taskiq does not acknowledge it, and it is to come again."""
    broker = Redelivering().with_middlewares(Broken())
    broker.number = 2
    async with broker.working():
        await broker.work.kiq(1)
        await asyncio.sleep(2 * BEAT)
        assert len(tuple(broker.deliveries.redelivered)) == 1
        broker.may_end.set()
        await asyncio.sleep(BEAT)
        assert not tuple(broker.deliveries.redelivered)
    assert broker.executed == [1]
    assert broker.acknowledged == 0


@pytest.mark.parametrize("sender", ["an engine", "nobody we know", "an engine, an unknown task"])
@virtually
async def test_an_acknowledgement_that_meets_an_outage_is_repeated_and_one_line_says_so(
    sender: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    broker = Redelivering()
    broker.may_end.set()
    broker.errors = [ConnectionResetError("gone") for _ in range(5)]
    async with broker.working():
        if sender == "an engine":
            assert await broker.engine().execute({"value": 1}) == {"work": 1}
        elif sender == "nobody we know":
            await broker.work.kiq(1)
        else:
            await broker.flow._worker.get()  # as at the startup of a worker process
            engine = broker.engine()
            broker.local_task_registry.clear()
            with pytest.raises(NodeFailedError, match="knows no task named 'work'"):
                await engine.execute({"value": 1})
        await asyncio.sleep(5.0)
        assert broker.acknowledged == 1
        assert not broker.deliveries.keys()
    gc.collect()
    own = [record for record in caplog.records if record.name != "taskiq.receiver.receiver"]
    assert [record.getMessage() for record in own] == [
        (
            "tasks cannot be acknowledged yet: ConnectionResetError: gone; trying again until it "
            "succeeds"
        )
    ]


@pytest.mark.usefixtures("plain_task_ids")
@virtually
async def test_an_acknowledgement_that_is_refused_is_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Redelivering()
    broker.may_end.set()
    broker.errors = [LookupError("no such message"), LookupError("no such message")]
    async with broker.working():
        await broker.engine().execute({"value": 1}, run_id="r")
        await asyncio.sleep(5.0)
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == [
        "r:work:1 was not acknowledged: LookupError: no such message"
    ]


@virtually
async def test_a_message_on_its_last_delivery_is_executed() -> None:
    broker = Redelivering()
    broker.number = 3
    broker.may_end.set()
    async with broker.working():
        assert await broker.engine().execute({"value": 1}) == {"work": 1}


@virtually
async def test_a_message_that_was_delivered_too_often_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Redelivering()
    broker.number = 4
    async with broker.working():
        with pytest.raises(NodeFailedError) as caught:
            await broker.engine().execute({"value": 1}, run_id="run")
    assert isinstance(caught.value.__cause__, TaskLostError)
    assert "was delivered 3 times and the task never ended" in str(caught.value.__cause__)
    assert broker.executed == []
    assert broker.acknowledged == 1
    assert "is given up: its message was delivered 3 times without an end" in caplog.text


@pytest.mark.parametrize("retries", [[], [SimpleRetryMiddleware(default_retry_label=True)]])
@virtually
async def test_a_message_of_no_engine_that_was_delivered_too_often_is_lost_too(
    retries: list[TaskiqMiddleware], caplog: pytest.LogCaptureFixture
) -> None:
    """And is not sent once more."""
    broker = Redelivering().with_middlewares(*retries)
    broker.number = 4
    async with broker.working():
        await broker.flow._worker.get()  # as at the startup of a worker process
        sent = await broker.work.kiq(1)
        result = await sent.wait_result(timeout=10)
    assert isinstance(result.error, TaskLostError)
    assert f"the message of task {sent.task_id!r} (work) was delivered 3" in str(result.error)
    assert broker.executed == []
    assert len(broker.messages) == broker.acknowledged == 1
    assert f"task {sent.task_id} is given up: its message was delivered 3 times" in caplog.text


@virtually
async def test_a_task_whose_result_is_stored_is_not_executed_again() -> None:
    """Its worker was killed, or cut off, before it could acknowledge the message."""
    broker = Redelivering()
    broker.may_end.set()
    async with broker.working():
        await broker.engine().execute({"value": 1})
        inbox = await broker.flow.inbox()
        broker.number, before = 2, len(broker.board.published)
        broker.queue.put_nowait(broker.messages[0])
        while broker.acknowledged < 2:
            await asyncio.sleep(0.01)
        told = [Notice.opened(data, inbox.key) for _, data in broker.board.published[before:]]
        assert [notice.kind for notice in told if notice] == [Kind.SAVED]
    assert broker.executed == [1]


async def drop_engines(broker: Redelivering) -> None:
    """Have the engine's process be gone, as if it had been killed."""
    broker.board.hearers.clear()


@pytest.mark.parametrize("is_journaled", [False, True])
@virtually
async def test_tasks_of_an_engine_that_is_gone_are_dropped_unless_its_run_can_be_resumed(
    caplog: pytest.LogCaptureFixture,
    is_journaled: bool,
) -> None:
    broker = Redelivering()
    journal = MemoryJournal() if is_journaled else None
    run = asyncio.ensure_future(
        broker.engine(journal=journal, lost_after=1e4).execute({"value": 1})
    )
    async with broker.working():
        while not broker.executed:
            await asyncio.sleep(0.1)
        hearers = {channel: list(heard) for channel, heard in broker.board.hearers.items()}
        await drop_engines(broker)
        await asyncio.sleep(ENGINE_PATIENCE + 2)
        broker.queue.put_nowait(broker.messages[0])
        broker.may_end.set()
        await asyncio.sleep(1)
        assert broker.executed == ([1, 1] if is_journaled else [1])
        assert "its tasks are dropped" in caplog.text
        assert bool(broker.results.stored) is is_journaled
        broker.board.hearers.update(hearers)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


@virtually
async def test_an_engine_that_is_away_for_less_than_the_limit_keeps_its_tasks() -> None:
    broker = Redelivering()
    run = asyncio.ensure_future(broker.engine(lost_after=1e4).execute({"value": 1}))
    async with broker.working():
        while not broker.executed:
            await asyncio.sleep(0.1)
        for _ in range(3):
            hearers = {channel: list(heard) for channel, heard in broker.board.hearers.items()}
            await drop_engines(broker)
            await asyncio.sleep(ENGINE_PATIENCE * 0.9)
            broker.board.hearers.update(hearers)
            await asyncio.sleep(5)
        broker.may_end.set()
        assert await run == {"work": 1}


@pytest.mark.parametrize("name", ["plain", "\u00fc" * 500])
@virtually
async def test_heartbeats_of_many_tasks_come_in_pieces_that_a_server_takes(name: str) -> None:
    broker = Redelivering()
    builder = DAGBuilder()
    for number in range(1_000):
        builder.node(broker.work, name=f"{name} {number}", inputs=["value"])
    run = asyncio.ensure_future(ExecutionEngine(broker, builder.build()).execute({"value": 1}))
    async with broker.working():
        while len(broker.executed) < 100:
            await asyncio.sleep(0.1)
        (first,) = [message for message in broker.messages if b" 0:1" in message]
        for number in range(1_000):
            broker.delivery(first.replace(b" 0:1", b" %d:1" % number))
        before = len(broker.board.published)
        await asyncio.sleep(2 * BEAT)
        inbox = await broker.flow.inbox()
        beats = [data for _, data in broker.board.published[before:]]
        opened = [notice for data in beats if (notice := Notice.opened(data, inbox.key))]
        assert max(map(len, beats)) < 40_000
        assert len(set().union(*(n.task_ids() for n in opened if n.kind is Kind.HERE))) >= 1_000
        broker.may_end.set()
        await run


@virtually
async def test_an_engine_that_was_only_cut_off_has_its_tasks_executed_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Redelivering()
    engine = broker.engine(lost_after=1e4)
    run = asyncio.ensure_future(engine.execute({"value": 1}))
    async with broker.working():
        while not broker.executed:
            await asyncio.sleep(0.1)
        hearers = {channel: list(heard) for channel, heard in broker.board.hearers.items()}
        await drop_engines(broker)
        await asyncio.sleep(ENGINE_PATIENCE + 2)
        assert "its tasks are dropped" in caplog.text
        broker.board.hearers.update(hearers)
        broker.may_end.set()
        both = await asyncio.gather(*(engine.execute({"value": value}) for value in (2, 3)))
        assert both == [{"work": 2}, {"work": 3}]
        assert "listens on" in caplog.text
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
    assert sorted(broker.executed) == [1, 2, 3]
