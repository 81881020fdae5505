"""When a worker reports that a task has begun."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import pytest

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    NodeFailedError,
    NodeTimeoutError,
)
from taskiq_flow.transport.notice import Kind, Notice
from tests.local_broker import LocalBroker
from tests.local_notifier import LocalFlow, Switchboard, with_flow


class Site:
    """A worker in this process with one thread, and the notices that it publishes."""

    def __init__(self) -> None:
        self.board = Switchboard()
        self.broker = LocalBroker()
        self.flow: LocalFlow = with_flow(self.broker, self.board)
        self.release = threading.Event()
        self.begun: list[str] = []

        @self.broker.task(task_name="hold")
        def hold(name: str) -> str:
            self.begun.append(name)
            if name == "first":
                self.release.wait(10)
            return name

        self.hold = hold

    def engine(self, name: str, **options: Any) -> ExecutionEngine:
        dag = DAGBuilder().node(self.hold, name=name, inputs={"name": "name"}, **options).build()
        return ExecutionEngine(self.broker, dag)

    def run(self, name: str, **options: Any) -> asyncio.Task[dict[str, Any]]:
        engine = self.engine(name, **options)
        return asyncio.ensure_future(engine.execute({"name": name}, run_id=name))

    @contextlib.asynccontextmanager
    async def working(self, pool: Executor | None = None) -> AsyncIterator[None]:
        async with self.broker.worker(pool=pool):
            try:
                async with asyncio.timeout(10):
                    yield
            finally:
                self.release.set()
                await self.flow.shutdown()

    async def named_in(self, kind: Kind) -> set[str]:
        """The tasks that the notices of a kind have named so far."""
        inbox = await self.flow.inbox()
        notices = [Notice.opened(data, inbox.key) for _, data in self.board.published]
        of_kind = [notice for notice in notices if notice is not None and notice.kind is kind]
        return {task_id for notice in of_kind for task_id in notice.task_ids()}

    async def until_named_in(self, kind: Kind, task_id: str) -> None:
        while task_id not in await self.named_in(kind):
            await asyncio.sleep(0.01)


@pytest.fixture
def one_thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


async def test_a_sync_task_that_waits_for_a_thread_is_reported_and_has_not_begun(
    one_thread: ThreadPoolExecutor,
) -> None:
    site = Site()
    async with site.working(one_thread):
        first = site.run("first", timeout=60.0)
        await site.until_named_in(Kind.BEGUN, "first:first:1")
        second = site.run("second", timeout=60.0)
        await site.until_named_in(Kind.HERE, "second:second:1")
        assert await site.named_in(Kind.BEGUN) == {"first:first:1"}
        site.release.set()
        assert await first == {"first": "first"}
        assert await second == {"second": "second"}
        assert await site.named_in(Kind.BEGUN) == {"first:first:1", "second:second:1"}


async def test_a_queue_timeout_covers_the_wait_for_a_thread(
    one_thread: ThreadPoolExecutor,
) -> None:
    site = Site()
    async with site.working(one_thread):
        first = site.run("first")
        while not site.begun:
            await asyncio.sleep(0.01)
        with pytest.raises(NodeFailedError) as caught:
            await site.run("second", queue_timeout=0.2)
        error = caught.value.__cause__
        assert isinstance(error, NodeTimeoutError)
        assert error.waited
        site.release.set()
        assert await first == {"first": "first"}
    assert site.begun == ["first"]
