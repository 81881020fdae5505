"""A worker sends the items of a generator one by one, as far as the engine grants them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import pytest
from taskiq import TaskiqResult

from taskiq_flow import SerializationError
from taskiq_flow.generators.grant import ITEMS_LABEL, NO_ITEMS, Grant
from taskiq_flow.generators.messages import Batch, Receipt
from taskiq_flow.generators.receiving import Receiving
from taskiq_flow.testing import LocalBroker, LocalNotices
from taskiq_flow.transport.notice import KEEP_LABEL, LABEL, Kind, Notice, ReplyTo
from taskiq_flow.worker import absence
from taskiq_flow.worker.heartbeat import BEAT
from tests.local_flow import with_flow
from tests.virtual_clock import virtually

KEY = b"k" * 16
TASK_ID = "run:give:1"


class Site:
    """A worker in this process, and an engine by hand.

    ``window``: how many items the engine grants beyond those it was let ``read``. ``answers``:
    whether it does. ``safe``: how many items it has safe, ``None`` for all that it has taken.
    """

    def __init__(self, window: float = 4) -> None:
        self.board = LocalNotices()
        self.broker = LocalBroker()
        self.flow = with_flow(self.broker, self.board)
        self.reply_to = ReplyTo("engine", KEY, "run")
        self.receiving = Receiving(Grant(0, NO_ITEMS, window))
        self.window = window
        self.items: list[Any] = []
        self.read = 0
        self.safe: int | None = None
        self.answers = True
        self.batches: list[Batch] = []
        self.workers: set[str] = set()
        self.made: list[int] = []
        self.closed = threading.Event()

    def _hear(self, data: bytes) -> None:
        notice = Notice.opened(data, KEY)
        assert notice is not None
        if notice.kind is not Kind.ITEMS:
            return
        batch, channel, _ = Batch.unpacked(notice.body)
        self.workers.add(channel)
        self.batches.append(batch)
        if new := self.receiving.take(batch):
            self.items += json.loads(batch.content)[-new:]
        self.tell(asks=batch.asks)

    def begin_to_answer(self) -> None:
        self.answers = True

    def tell(self, *, asks: bool = False) -> None:
        """Send a receipt if one is due."""
        have = self.receiving.next if self.safe is None else self.safe
        digest = self.receiving.digest if have == self.receiving.next else b""
        self.receiving.allow(Grant(have, digest, self.read + self.window))
        if self.answers and (asks or self.receiving.is_due):
            self.send(Kind.RECEIPT, self.receiving.receipt(answers=asks).packed())

    def send(self, kind: Kind, body: bytes = b"", key: bytes = KEY) -> None:
        for channel in self.workers:
            self.board.tell(channel, Notice(kind, TASK_ID, body).sealed(key))

    def task(self, count: int, *, in_thread: bool, fails_after: int | None = None) -> Any:
        """A generator that notes what it makes, and when it is closed."""

        def note(number: int) -> int:
            if number == fails_after:
                raise LookupError(number)
            self.made.append(number)
            return number

        def give() -> Iterator[int]:
            try:
                for number in range(count):
                    yield note(number)
            finally:
                self.closed.set()

        async def give_async() -> AsyncIterator[int]:
            try:
                for number in range(count):
                    yield note(number)
                    await asyncio.sleep(0)
            finally:
                self.closed.set()

        function: Callable[[], Any] = give if in_thread else give_async
        return self.broker.register_task(function, task_name="give")

    async def send_task(self, task: Any, grant: Grant | None = None, **labels: str) -> None:
        own = {LABEL: self.reply_to.label(), **labels}
        own[ITEMS_LABEL] = (grant or self.receiving.grant).label()
        await task.kicker().with_task_id(TASK_ID).with_labels(**own).kiq()

    @contextlib.asynccontextmanager
    async def working(self, pool: Executor | None = None, slots: int = 100) -> AsyncIterator[None]:
        self.board.hearers["engine"].append(self._hear)
        async with self.broker.worker(slots, pool=pool):
            try:
                async with asyncio.timeout(2000):
                    yield
            finally:
                self.revoke()
        await self.flow.shutdown()

    def revoke(self) -> None:
        """The run is over."""
        for hear in self.board.hear_revoked:
            hear(self.reply_to.run)

    @property
    def has_result(self) -> bool:
        return TASK_ID in self.broker.results.stored

    async def result(self) -> TaskiqResult[Any]:
        while not self.has_result:
            await asyncio.sleep(0.01)
        return await self.broker.results.get_result(TASK_ID)

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await asyncio.sleep(0.01)


either = pytest.mark.parametrize("in_thread", [False, True])
"""An async generator, or one that runs in a thread."""


@either
async def test_items_arrive_as_they_were_made_and_the_result_is_their_number(
    in_thread: bool,
) -> None:
    site = Site(window=math.inf)
    async with site.working():
        await site.send_task(site.task(3000, in_thread=in_thread))
        assert (await site.result()).return_value == 3000
        assert site.items == list(range(3000))
        assert site.closed.is_set()


@either
async def test_no_more_items_are_made_than_the_engine_grants(in_thread: bool) -> None:
    site = Site(window=4)
    async with site.working():
        await site.send_task(site.task(30, in_thread=in_thread))
        while site.read < 26:
            await site.until(lambda: len(site.items) == site.read + 4)
            assert len(site.made) == site.read + 4
            site.read += 2
            site.tell()
        site.read = 30
        site.tell()
        assert (await site.result()).return_value == 30


@either
async def test_the_result_waits_until_the_engine_has_all_items_safe(in_thread: bool) -> None:
    site = Site(window=10)
    site.safe = 0
    async with site.working():
        await site.send_task(site.task(5, in_thread=in_thread))
        await site.until(lambda: len(site.items) == 5)
        await asyncio.sleep(2 * BEAT)  # however often it asks
        assert not site.has_result
        site.safe = None
        site.tell()
        assert (await site.result()).return_value == 5


@pytest.mark.parametrize("direction", ["items", "receipts"])
@virtually
async def test_what_is_lost_is_sent_again_with_a_heartbeat(direction: str) -> None:
    site = Site(window=4)
    async with site.working():
        lost: set[bytes] = set()

        def drops(data: bytes) -> bool:
            notice = Notice.opened(data, KEY)
            if notice is None or notice.kind is not Kind.ITEMS or len(lost) >= 3:
                return False
            lost.add(data)
            return True

        if direction == "items":
            site.board.drops = drops
        else:
            site.answers = False
            asyncio.get_running_loop().call_later(3.0, site.begin_to_answer)
        await site.send_task(site.task(12, in_thread=False))
        while not site.has_result:
            await asyncio.sleep(0.1)
            site.read = len(site.items)
            site.tell()
        assert site.items == list(range(12))
        assert asyncio.get_running_loop().time() < 10


@either
async def test_a_revoked_generator_is_closed_at_once_where_it_waits(in_thread: bool) -> None:
    site = Site(window=2)
    async with site.working():
        await site.send_task(site.task(30, in_thread=in_thread))
        await site.until(lambda: len(site.items) == 2)
        site.revoke()
        await site.until(site.closed.is_set)
        assert site.made == [0, 1]
    assert not site.has_result


@either
async def test_a_revoked_generator_is_closed_though_it_may_go_on_for_ever(in_thread: bool) -> None:
    site = Site(window=math.inf)
    async with site.working():
        await site.send_task(site.task(10**9, in_thread=in_thread))
        await site.until(lambda: len(site.items) > 100)
        site.revoke()
        await site.until(site.closed.is_set)
    assert not site.has_result


@either
async def test_a_generator_whose_items_nobody_wants_is_closed(in_thread: bool) -> None:
    site = Site(window=2)
    async with site.working():
        await site.send_task(site.task(30, in_thread=in_thread))
        await site.until(lambda: len(site.items) == 2)
        site.send(Kind.UNWANTED)
        await site.until(site.closed.is_set)
    assert not site.has_result


@pytest.mark.parametrize("is_journaled", [False, True])
@virtually
async def test_a_generator_is_closed_when_its_engine_does_not_answer_for_long(
    is_journaled: bool,
) -> None:
    site = Site(window=2)
    site.answers = False
    async with site.working():
        labels = {KEEP_LABEL: "1"} if is_journaled else {}
        await site.send_task(site.task(30, in_thread=False), None, **labels)
        await asyncio.sleep(absence.ENGINE_PATIENCE - 10)
        assert not site.closed.is_set()
        await asyncio.sleep(20)
        assert site.closed.is_set()
        assert site.made == [0, 1]
    assert not site.has_result


@virtually
async def test_a_generator_waits_as_long_as_its_engine_answers() -> None:
    site = Site(window=2)
    async with site.working():
        await site.send_task(site.task(3, in_thread=False))
        await asyncio.sleep(10 * absence.ENGINE_PATIENCE)
        assert site.made == [0, 1]
        # It asks less often the longer nothing changes.
        assert len(site.batches) <= 10 * absence.ENGINE_PATIENCE / (4 * BEAT) + 10
        site.read = 2
        site.tell()
        assert (await site.result()).return_value == 3


@either
async def test_what_came_before_a_failure_arrives_before_the_error(in_thread: bool) -> None:
    site = Site(window=10)
    site.answers = False
    async with site.working():
        await site.send_task(site.task(9, in_thread=in_thread, fails_after=3))
        await site.until(lambda: site.items == [0, 1, 2])
        await asyncio.sleep(2 * BEAT)
        assert not site.has_result
        site.answers = True
        result = await site.result()
        assert isinstance(result.error, LookupError)
        assert site.items == [0, 1, 2]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (print, "item 1 of node 'give' is not carried: .*functions and classes are not carried"),
        ("x" * 2_000_000, "item 1 of node 'give' has 2,000,002 bytes as JSON.*yield smaller items"),
    ],
    ids=["function", "too large"],
)
@virtually
async def test_an_item_that_cannot_be_sent_fails_the_task(item: Any, message: str) -> None:
    site = Site(window=10)

    async def give() -> AsyncIterator[Any]:
        yield 1
        yield item

    async with site.working():
        await site.send_task(site.broker.register_task(give, task_name="give"))
        result = await site.result()
        assert isinstance(result.error, SerializationError)
        with pytest.raises(SerializationError, match=message):
            raise result.error
        assert site.items == [1]
        assert asyncio.get_running_loop().time() < BEAT  # without a question


@virtually
async def test_a_timeout_of_the_task_does_not_count_for_a_generator_as_a_whole() -> None:
    site = Site(window=2)
    async with site.working():
        await site.send_task(site.task(3, in_thread=False), timeout="5")
        await asyncio.sleep(20)
        site.read = 2
        site.tell()
        assert (await site.result()).return_value == 3


@either
async def test_a_further_execution_passes_over_what_the_engine_has(in_thread: bool) -> None:
    site = Site(window=math.inf)
    async with site.working():
        task = site.task(10, in_thread=in_thread)
        await site.send_task(task)
        await site.result()
        site.broker.results.stored.clear()
        half = Site(window=math.inf)
        assert site.batches[0].first == 0
        digests = [digest for batch in site.batches for digest in batch.digests]
        half.receiving = Receiving(Grant(5, digests[4]))
        site.receiving, site.items = half.receiving, []
        await site.send_task(task)
        assert (await site.result()).return_value == 10
        assert site.items == [5, 6, 7, 8, 9]


async def test_generators_that_wait_in_threads_hold_none_of_the_pool() -> None:
    site = Site(window=1)
    with ThreadPoolExecutor(1) as pool:
        async with site.working(pool):
            for _ in range(3):
                await site.send_task(site.task(5, in_thread=True))
            await site.until(lambda: site.made.count(0) == 3)

            def plain() -> str:
                return "done"

            sent = await site.broker.register_task(plain, task_name="plain").kiq()
            assert (await sent.wait_result(timeout=5)).return_value == "done"


async def test_a_receipt_that_is_not_sealed_with_the_engines_key_is_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site(window=1)
    async with site.working():
        await site.send_task(site.task(5, in_thread=False))
        await site.until(lambda: len(site.items) == 1)
        with caplog.at_level(logging.WARNING, "taskiq_flow"):
            site.send(Kind.RECEIPT, Receipt(Grant(1, b"", 5), 1).packed(), b"other" * 4)
            site.send(Kind.UNWANTED, key=b"other" * 4)
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 2
        assert all("is not sealed with its key; ignored" in line for line in lines)
        await asyncio.sleep(0.05)
        assert site.made == [0]
        assert not site.closed.is_set()


@either
async def test_a_task_without_the_label_returns_the_list_of_its_items(in_thread: bool) -> None:
    site = Site()
    async with site.working():
        task = site.task(5, in_thread=in_thread)
        labels = {LABEL: site.reply_to.label()}
        await task.kicker().with_task_id(TASK_ID).with_labels(**labels).kiq()
        assert (await site.result()).return_value == [0, 1, 2, 3, 4]
        assert site.items == []


@either
async def test_a_generator_that_no_engine_has_sent_gives_its_list(in_thread: bool) -> None:
    site = Site()
    async with site.working():
        sent = await site.task(5, in_thread=in_thread).kiq()
        await site.until(lambda: sent.task_id in site.broker.results.stored)
        # ``sent.get_result`` would have pydantic read it as an iterator.
        result: TaskiqResult[Any] = await site.broker.result_backend.get_result(sent.task_id)
        assert (result.is_err, result.return_value) == (False, [0, 1, 2, 3, 4])
