"""Results that are saved while the next tasks have the places already."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

import pytest
from taskiq import AckableMessage, TaskiqMessage, TaskiqMiddleware, TaskiqResult

from taskiq_flow import DAGBuilder, ExecutionEngine, NodeFailedError
from taskiq_flow.testing import LocalBroker, LocalNotices, LocalResults
from taskiq_flow.transport import deliveries
from taskiq_flow.transport.deliveries import Deliveries, holding_ahead
from taskiq_flow.worker import saving
from taskiq_flow.worker.execution import Execution
from taskiq_flow.worker.reports import Reports
from tests.local_flow import with_flow
from tests.waiting import LONGEST, until

pytestmark = pytest.mark.usefixtures("plain_task_ids")

NAMES = ("a", "b", "c")


class HeldResults(LocalResults):
    """A result backend whose server takes each result when the test lets it."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events
        self.may_save: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        name = task_id.split(":")[1]
        self.events.append(f"save {name}")
        await self.may_save[name].wait()
        await super().set_result(task_id, result)

    def release(self, *names: str) -> None:
        for name in names:
            self.may_save[name].set()


class FetchingAhead(LocalBroker):
    """A broker whose worker fetches all messages, as those of NATS and RabbitMQ do."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.held = HeldResults(self.events)
        super().__init__(self.held)
        self.flow = with_flow(self, LocalNotices())
        self.flow._deliveries = self.deliveries = Deliveries(self)
        self.returns: Any = None
        self.delivery = 1
        self.blocks = 0.0
        self.may_acknowledge = asyncio.Event()
        self.may_acknowledge.set()

        @self.task(task_name="work")
        async def work(name: str) -> Any:
            self.events.append(f"begin {name}")
            if isinstance(self.returns, dict):
                self.returns["names"][:] = [name]
            time.sleep(self.blocks)  # noqa: ASYNC251 - as a task that computes
            for _ in range(20):  # in which the result of the one before is saved, if it may be
                await asyncio.sleep(0)
            if isinstance(self.returns, Exception):
                raise self.returns
            if isinstance(self.returns, TaskiqResult):
                await self.result_backend.set_result(f"run:{name}:1", self.returns)
                return self.returns.return_value
            return self.returns

        self.work = work

    async def listen(self) -> AsyncGenerator[Any, None]:
        ahead = holding_ahead(self._fetched, self.deliveries, number_of=lambda _: self.delivery)
        async with aclosing(ahead()) as messages:
            async for message in messages:
                yield message

    async def _fetched(self) -> AsyncGenerator[AckableMessage, None]:
        async for data in super().listen():
            name = self.formatter.loads(data).task_id.split(":")[1]
            yield AckableMessage(data=data, ack=partial(self._acknowledge, name))

    async def _acknowledge(self, name: str) -> None:
        await self.may_acknowledge.wait()
        self.events.append(f"acknowledge {name}")

    @asynccontextmanager
    async def running(
        self, names: Sequence[str] = NAMES
    ) -> AsyncIterator[asyncio.Task[dict[str, Any]]]:
        """A run of a task for each name, all of which are sent."""
        builder = DAGBuilder()
        for name in names:
            builder.node(self.work, name=name, output=name, given={"name": name})
        await self.flow._worker.get()  # as at the start of a worker process
        run = asyncio.ensure_future(ExecutionEngine(self, builder.build()).execute(run_id="run"))
        try:
            async with asyncio.timeout(LONGEST):
                await until(lambda: self.queue.qsize() == len(names), "all is sent")
                yield run
        finally:
            run.cancel()
            await asyncio.wait([run])
            await self.flow.shutdown()

    async def after(self, event: str) -> list[str]:
        """What has happened some time after an event."""
        await until(lambda: event in self.events, event)
        for _ in range(3 * saving.MOST_TURNS):
            await asyncio.sleep(0)
        return self.events


@pytest.fixture(autouse=True)
def _all_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "WORTH", 0.0)


async def test_the_next_task_begins_before_a_result_is_saved_and_acknowledged() -> None:
    broker = FetchingAhead()
    broker.held.release(*NAMES)
    async with broker.running() as run, broker.worker(slots=1):
        assert await run == dict.fromkeys(NAMES)
        await until(lambda: "acknowledge c" in broker.events, "all is acknowledged")
    events = broker.events
    assert events[:3] == ["begin a", "begin b", "save a"]
    for name in NAMES:
        assert events.index(f"save {name}") < events.index(f"acknowledge {name}")


async def test_no_more_results_wait_than_tasks_run() -> None:
    broker = FetchingAhead()
    async with broker.running() as run, broker.worker(slots=1):
        assert await broker.after("save b") == ["begin a", "begin b", "save a", "save b"]
        broker.held.release(*NAMES)
        assert await run == dict.fromkeys(NAMES)


class SeesSaved(TaskiqMiddleware):
    """Is told when a result is saved."""

    async def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """It could read the result now."""


async def test_a_result_is_saved_as_it_was_when_its_task_returned() -> None:
    broker = FetchingAhead()
    broker.returns = {"names": []}  # which the next task changes
    broker.held.release(*NAMES)
    async with broker.running() as run, broker.worker(slots=1):
        assert await run == {name: {"names": [name]} for name in NAMES}
    assert broker.events[:3] == ["begin a", "begin b", "save a"]


@pytest.mark.parametrize(
    "why", ["short", "large", "no plain data", "redelivered", "seen", "seen by itself"]
)
async def test_other_results_are_saved_before_the_next_task_begins(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of short tasks and of messages that were delivered before; large ones, and others than
    plain data; and all of them where a middleware is told that one is saved.
    """
    broker = FetchingAhead()
    if why == "short":
        monkeypatch.setattr(saving, "WORTH", 3600.0)
    elif why == "large":
        broker.returns = [0] * 100_000
    elif why == "no plain data":
        broker.returns = ([1], {2})
    elif why == "redelivered":
        broker.delivery = 2
    elif why == "seen":
        broker.add_middlewares(SeesSaved())
    else:
        monkeypatch.setattr(type(broker.flow), "post_save", SeesSaved.post_save)
    async with broker.running() as run, broker.worker(slots=1):
        assert await broker.after("save a") == ["begin a", "save a"]
        broker.held.release(*NAMES)
        assert await run == dict.fromkeys(NAMES, broker.returns)


async def test_an_error_is_saved_before_the_next_task_begins() -> None:
    broker = FetchingAhead()
    broker.returns = LookupError("nothing")
    async with broker.running() as run, broker.worker(slots=1):
        assert await broker.after("save a") == ["begin a", "save a"]
        broker.held.release(*NAMES)
        with pytest.raises(NodeFailedError, match="nothing"):
            await run


async def test_a_result_that_a_task_saves_itself_is_saved_at_once() -> None:
    broker = FetchingAhead()
    broker.returns = TaskiqResult(is_err=False, return_value=1, execution_time=0.0)
    async with broker.running() as run, broker.worker(slots=1):
        assert await broker.after("save a") == ["begin a", "save a"]
        broker.held.release(*NAMES)
        assert await run == dict.fromkeys(NAMES, 1)


class SavesAsWell(TaskiqMiddleware):
    """Saves each result before taskiq does."""

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        await self.broker.result_backend.set_result(message.task_id, result)


async def test_a_result_that_is_saved_twice_is_saved_later_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = FetchingAhead()
    broker.add_middlewares(SavesAsWell())
    broker.held.release(*"abcd")
    async with broker.running("abcd") as run, broker.worker(slots=3):
        assert await run == dict.fromkeys("abcd")
    assert "Exception in callback" not in caplog.text
    assert not broker.deliveries.saving


async def test_results_of_tasks_that_hold_the_event_loop_are_rarely_late() -> None:
    broker = FetchingAhead()
    broker.blocks = 2 * saving.BLOCKED
    async with broker.running() as run, broker.worker(slots=1):
        broker.held.release("a")
        events = await broker.after("save b")
        assert events.index("begin b") < events.index("save a")
        assert "begin c" not in events
        broker.held.release(*NAMES)
        assert await run == dict.fromkeys(NAMES)


async def test_the_last_result_is_saved_at_once() -> None:
    broker = FetchingAhead()
    broker.held.release("a", "b")
    async with broker.running() as run, broker.worker(slots=1):
        await until(lambda: "save c" in broker.events, "the last one has ended")
        assert not broker.deliveries.saving
        broker.held.release("c")
        assert await run == dict.fromkeys(NAMES)


async def test_a_worker_that_stops_waits_until_results_are_saved_and_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long that takes: the tasks would be executed once more."""
    monkeypatch.setattr(deliveries, "GIVING_BACK", 0.0)
    broker = FetchingAhead()
    async with broker.running("ab"):

        async def work_until_stopped() -> None:
            async with broker.worker(slots=1):
                await broker.after("save b")

        working = asyncio.ensure_future(work_until_stopped())
        await broker.after("save b")
        broker.held.release("b")
        await broker.after("acknowledge b")
        assert not working.done()
        broker.may_acknowledge.clear()
        broker.held.release("a")
        await until(lambda: "run:a:1" in broker.held.stored, "it is saved")
        assert not working.done()
        broker.may_acknowledge.set()
        await working
        assert "acknowledge a" in broker.events
        assert {"run:a:1", "run:b:1"} == broker.held.stored.keys()


async def test_a_task_that_is_revoked_before_its_result_is_saved_is_acknowledged_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    takes = saving.LaterSaves.takes

    def revoked_if_taken(
        self: saving.LaterSaves, execution: Execution, result: TaskiqResult[Any]
    ) -> bool:
        if takes(self, execution, result):
            execution.revoke()
            return True
        return False

    monkeypatch.setattr(saving.LaterSaves, "takes", revoked_if_taken)
    broker = FetchingAhead()
    broker.held.release(*NAMES)
    async with broker.running(), broker.worker(slots=1):
        assert await broker.after("acknowledge a")
        assert "begin b" in broker.events
        assert "save a" not in broker.events


async def test_a_result_that_cannot_be_reported_is_logged_and_its_message_acknowledged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broker = FetchingAhead()
    broker.held.release(*NAMES)
    report = Reports.report

    async def fails_first(self: Reports, execution: Execution, result: TaskiqResult[Any]) -> None:
        if execution.task_id == "run:a:1":
            raise ValueError("a bug")
        await report(self, execution, result)

    monkeypatch.setattr(Reports, "report", fails_first)
    async with broker.running(), broker.worker(slots=1):
        await broker.after("acknowledge a")
    assert "the result of run:a:1 was not saved" in caplog.text
