"""An engine takes the items of generators on workers, whatever becomes of notices and workers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from taskiq import BrokerMessage, TaskiqResult

from taskiq_flow import (
    DAG,
    DAGBuilder,
    ExecutionEngine,
    Item,
    ItemsChangedError,
    NodeFailedError,
    SerializationError,
    TaskLostError,
    ValueCodec,
)
from taskiq_flow.completion.items import ReceivedItems
from taskiq_flow.generators.grant import NO_ITEMS, Grant
from taskiq_flow.generators.messages import Batch, Receipt
from taskiq_flow.generators.receiving import TOLD_ITEMS
from taskiq_flow.testing import LocalBroker, LocalNotices, LocalNotifier
from taskiq_flow.transport.notice import Kind, Notice
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.wire import Wire
from tests.local_flow import with_flow
from tests.virtual_clock import virtually

pytestmark = pytest.mark.usefixtures("plain_task_ids")


class Site:
    """A worker in this process with a generator.

    ``rows``: what each execution of it gives, the last one as often as it is executed. ``...``
    stands for waiting for ever.
    """

    def __init__(self, *rows: Sequence[Any]) -> None:
        self.board = LocalNotices()
        self.broker = LocalBroker()
        self.flow = with_flow(self.broker, self.board)
        self.begun = 0
        self.closed = 0
        self.made: list[Any] = []
        self.sent: list[bytes] = []

        async def give() -> AsyncIterator[Any]:
            row = rows[min(self.begun, len(rows) - 1)]
            self.begun += 1
            try:
                for item in row:
                    await (asyncio.Event().wait() if item is ... else asyncio.sleep(0.01))
                    self.made.append(item)
                    yield item
            finally:
                self.closed += 1

        async def double(item: int) -> int:
            return 2 * item

        self.give = self.broker.register_task(give, task_name="give")
        self.double = self.broker.register_task(double, task_name="double")

    def builder(self, **options: Any) -> DAGBuilder:
        builder = DAGBuilder().node(self.give, name="give", **options)
        return builder.node(self.double, name="double", inputs={"item": "give"}, map_over="give")

    def dag(self, **options: Any) -> DAG:
        return self.builder(**options).build()

    def deliver_again(self) -> None:
        """The broker takes the worker for dead, and delivers the generator's message once more."""
        self.broker.queue.put_nowait(self.sent[0])

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        kick = self.broker.kick

        async def noting(message: BrokerMessage) -> None:
            self.sent.append(message.message)
            await kick(message)

        self.broker.kick = noting  # type: ignore[method-assign]
        async with self.broker.worker():
            yield
        assert not (await self.flow.inbox()).items._generators
        await self.flow.shutdown()

    async def drop(self, kind: Kind, which: Callable[[int], bool]) -> None:
        """Lose some of the notices of a kind."""
        key, numbers = (await self.flow.inbox()).key, itertools.count()

        def drops(data: bytes) -> bool:
            notice = Notice.opened(data, key)
            return notice is not None and notice.kind is kind and which(next(numbers))

        self.board.drops = drops

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", [Kind.ITEMS, Kind.RECEIPT])
@virtually
async def test_notices_that_are_lost_cost_time_only(kind: Kind) -> None:
    site = Site(range(40))
    async with site.working():
        await site.drop(kind, lambda number: number % 3 != 2)
        results = await ExecutionEngine(site.broker, site.dag()).execute()
        assert results == {"give": list(range(40)), "double": [2 * n for n in range(40)]}
        assert site.made == list(range(40))
        assert asyncio.get_running_loop().time() < 60


@virtually
async def test_items_are_read_as_they_are_made() -> None:
    site = Site(range(5))
    async with site.working():
        read = []
        async for name, value in ExecutionEngine(site.broker, site.dag()).execute_async(items=True):
            if isinstance(value, Item) and name == "give":
                read.append((value.index, value.value, asyncio.get_running_loop().time()))
        assert [(index, value) for index, value, _ in read] == [(n, n) for n in range(5)]
        assert [round(at, 2) for _, _, at in read] == [0.01, 0.02, 0.03, 0.04, 0.05]


@virtually
async def test_a_reader_that_is_slow_holds_the_generator_back() -> None:
    site = Site(range(60))
    async with site.working():
        engine = ExecutionEngine(site.broker, site.dag(window=4), 8)
        async for _, value in engine.execute_async(items="only"):
            await asyncio.sleep(0.2)
            if isinstance(value, Item):
                read = value.index
                assert isinstance(read, int)
                assert len(site.made) <= read + 60
        assert site.made == list(range(60))


@virtually
async def test_two_executions_at_once_give_one_row() -> None:
    site = Site(range(20))
    async with site.working():
        run = ExecutionEngine(site.broker, site.dag()).start()
        await site.until(lambda: len(site.made) == 5)
        site.deliver_again()
        assert (await run)["give"] == list(range(20))
        assert site.begun == 2
        await site.until(lambda: site.closed == 2)


@pytest.mark.parametrize("row", [[*range(4), 7, *range(5, 20)], range(2), []])
@virtually
async def test_an_execution_with_other_items_is_an_error_and_all_are_closed(
    row: Sequence[int],
) -> None:
    site = Site([*range(12), ...], row)
    async with site.working():
        run = ExecutionEngine(site.broker, site.dag()).start()
        await site.until(lambda: len(site.made) == 12)
        site.deliver_again()
        with pytest.raises(NodeFailedError) as caught:
            await run
        assert isinstance(caught.value.__cause__, ItemsChangedError)
        await site.until(lambda: site.closed == 2)


@virtually
async def test_an_execution_that_runs_on_is_closed_though_its_run_goes_on() -> None:
    site = Site(range(10_000), [7])

    async def nap() -> None:
        await asyncio.sleep(100)

    napping = site.broker.register_task(nap, task_name="nap")
    async with site.working():
        dag = site.builder().node(napping).build()
        run = ExecutionEngine(site.broker, dag, on_error="collect").start()
        await site.until(lambda: len(site.made) == 12)
        site.deliver_again()
        await site.until(lambda: site.closed == 2)
        assert asyncio.get_running_loop().time() < 10
        results = await run
        assert isinstance(results["give"].error, ItemsChangedError)


@virtually
async def test_a_run_that_is_cancelled_closes_its_generator() -> None:
    site = Site(range(10_000))
    async with site.working():
        run = ExecutionEngine(site.broker, site.dag()).start()
        await site.until(lambda: len(site.made) == 30)
        run.cancel()
        await site.until(lambda: site.closed == 1)
        assert len(site.made) < 100


@virtually
async def test_items_that_cannot_be_decoded_fail_the_node() -> None:
    site = Site([*range(3), ...])
    async with site.working():
        dag = DAGBuilder().node(site.give, name="give").build()
        run = ExecutionEngine(site.broker, dag).start(items="only")
        await site.until(lambda: len(site.made) == 3)
        await asyncio.sleep(5)  # from now on its worker has nothing to ask
        inbox = await site.flow.inbox()
        (task_id,) = inbox._watched
        receiving = inbox.items._generators[task_id].receiving
        batch = Batch(receiving.next, receiving.digest, (b"x" * 8,), b'[{"$tf": 99, "v": 1}]')
        notice = Notice(Kind.ITEMS, task_id, batch.packed("nobody", ""))
        site.board.tell(inbox.channel, notice.sealed(inbox.key))
        with pytest.raises(NodeFailedError) as caught:
            async for _ in run:
                pass
        assert isinstance(caught.value.__cause__, SerializationError)
        await site.until(lambda: site.closed == 1)


@pytest.mark.parametrize(
    ("value", "kind"), [(1, ItemsChangedError), ([0, 1, 2], TaskLostError)], ids=["1", "list"]
)
@virtually
async def test_a_result_that_is_not_the_number_of_items_is_an_error(
    value: Any, kind: type[Exception]
) -> None:
    site = Site(range(10_000))
    async with site.working():
        run = ExecutionEngine(site.broker, site.dag()).start()
        await site.until(lambda: len(site.made) == 3)
        inbox = await site.flow.inbox()
        (task_id,) = (t for t in inbox._watched if ":give:" in t)
        result: TaskiqResult[Any] = TaskiqResult(
            is_err=False, return_value=value, execution_time=0.0
        )
        notice = Notice(Kind.RESULT, task_id, result.model_dump_json().encode())
        site.board.tell(inbox.channel, notice.sealed(inbox.key))
        with pytest.raises(NodeFailedError) as caught:
            await run
        assert isinstance(caught.value.__cause__, kind)


class Taker:
    """A node in flight that takes items, and grants nothing more."""

    is_being_sent = False

    def __init__(self) -> None:
        self.taken: list[Any] = []

    def items(self, task_id: str, first: int, items: Sequence[Any], digest: bytes) -> None:
        assert first == len(self.taken)
        self.taken += items


async def test_a_worker_is_told_what_was_taken_though_nothing_more_is_granted() -> None:
    board, heard = LocalNotices(), asyncio.Queue[bytes]()
    await LocalNotifier(board).subscribe("worker", heard.put_nowait)
    taker: Any = Taker()
    items = ReceivedItems(LocalNotifier(board), b"key", Wire(ValueCodec(), Classes.imported()))
    items.expect("r:give:1", taker, Grant(0, NO_ITEMS))
    digests = tuple(number.to_bytes(8) for number in range(1, TOLD_ITEMS + 1))
    for batch in (
        Batch(0, NO_ITEMS, digests[:-1], json.dumps([0] * (TOLD_ITEMS - 1)).encode()),
        Batch(TOLD_ITEMS - 1, digests[-2], digests[-1:], b"[0]"),
    ):
        assert heard.empty()
        items.take(Notice(Kind.ITEMS, "r:give:1", batch.packed("worker", "")))
    notice = Notice.opened(await heard.get(), b"key")
    assert notice is not None
    assert Receipt.unpacked(notice.body).next == TOLD_ITEMS == len(taker.taken)
    await items.aclose()
