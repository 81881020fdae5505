"""Sending is I/O: a slow send holds back no other, and a quick one needs no task of its own."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from taskiq import BrokerMessage, InMemoryBroker, TaskiqMessage, TaskiqMiddleware

from taskiq_flow import DAG, DAGNode, ExecutionEngine, RunCancelledError, RunTimeoutError
from taskiq_flow.engine.start_loop import FIRST_SLICE, MOST_WAITING, StartLoop, UnderWay
from tests.virtual_clock import run_virtually, virtually


class SlowSends(TaskiqMiddleware):
    """Each send takes a second."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self.most_waiting = 0

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        try:
            await asyncio.sleep(1)
        finally:
            self.waiting -= 1
        return message


def fan(width: int) -> DAG:
    async def nothing() -> None: ...

    dag = DAG()
    for index in range(width):
        dag.add_node(DAGNode(nothing, name=f"n{index}"))
    return dag


def run_with_slow_sends(dag: DAG, **kwargs: Any) -> tuple[float, SlowSends]:
    async def main() -> tuple[float, SlowSends]:
        broker, sends = InMemoryBroker(), SlowSends()
        broker.add_middlewares(sends)
        await ExecutionEngine(broker, dag, **kwargs).execute()
        return asyncio.get_running_loop().time(), sends

    return run_virtually(main())


def test_slow_sends_go_on_side_by_side() -> None:
    took, sends = run_with_slow_sends(fan(100))
    assert (took, sends.most_waiting) == (1.0, 100)


def test_the_sends_that_wait_at_once_are_bounded() -> None:
    took, sends = run_with_slow_sends(fan(3 * MOST_WAITING))
    assert (took, sends.most_waiting) == (3.0, MOST_WAITING)


def test_a_slow_send_counts_as_in_flight() -> None:
    took, sends = run_with_slow_sends(fan(10), max_parallel=2)
    assert (took, sends.most_waiting) == (5.0, 2)


@virtually
async def test_what_becomes_ready_during_a_slow_send_is_sent_beside_it() -> None:
    class SlowFirst(TaskiqMiddleware):
        async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            await asyncio.sleep(10 if "slow" in message.task_id else 1)
            return message

    broker = InMemoryBroker()
    broker.add_middlewares(SlowFirst())
    ended: dict[str, float] = {}

    def noting(name: str) -> Any:
        async def task(**_: Any) -> None:
            ended[name] = asyncio.get_running_loop().time()

        return task

    dag = DAG()
    for name, inputs in (("a", []), ("slow", []), ("b", ["a"]), ("c", ["b"])):
        dag.add_node(DAGNode(noting(name), name=name, inputs=inputs))
    await ExecutionEngine(broker, dag).execute()
    assert ended == {"a": 1.0, "b": 2.0, "c": 3.0, "slow": 10.0}
    assert asyncio.get_running_loop().time() == 10.0


@virtually
async def test_sends_that_wait_are_cancelled_with_the_run() -> None:
    broker, sends = InMemoryBroker(), SlowSends()
    broker.add_middlewares(sends)
    engine = ExecutionEngine(broker, fan(10))
    run = asyncio.ensure_future(engine.execute())
    while sends.waiting < 10:
        await asyncio.sleep(0)
    engine.cancel()
    with pytest.raises(RunCancelledError):
        await run
    assert sends.waiting == 0
    assert asyncio.get_running_loop().time() < 1.0


@virtually
async def test_what_a_cancelled_send_raises_is_not_how_the_run_has_ended() -> None:
    class Breaks(TaskiqMiddleware):
        async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            if "n1" in message.task_id:
                try:
                    await asyncio.sleep(10)
                except asyncio.CancelledError:
                    raise ConnectionError("the connection is closed") from None
            return message

    broker = InMemoryBroker()
    broker.add_middlewares(Breaks())
    engine = ExecutionEngine(broker, fan(2), run_timeout=2)
    with pytest.raises(RunTimeoutError):
        async for _ in engine.execute_async():
            await asyncio.sleep(5)  # the run ends while its reader is busy


@virtually
async def test_what_a_task_leaves_in_its_context_does_not_reach_its_successors() -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    async def leave(**_: Any) -> str:
        seen = variable.get()
        variable.set("left behind")
        return seen

    class OneSlowSend(TaskiqMiddleware):
        async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            if "slow" in message.task_id:
                await asyncio.sleep(10)
            return message

    broker = InMemoryBroker()
    broker.add_middlewares(OneSlowSend())
    dag = DAG()
    # The sender is stuck when n0 ends, so that the end of n0 makes the next one.
    for name, inputs in (("n0", []), ("slow", []), ("n1", ["n0"]), ("n2", ["n1"])):
        dag.add_node(DAGNode(leave, name=name, inputs=inputs))
    assert set((await ExecutionEngine(broker, dag).execute()).values()) == {"unset"}


@virtually
async def test_a_send_that_does_not_wait_needs_no_task() -> None:
    tasks: set[str] = set()

    def look(**_: Any) -> None:
        tasks.update(repr(task) for task in asyncio.all_tasks(loop))

    loop = asyncio.get_running_loop()
    dag = fan(300)
    dag.add_node(DAGNode(look, name="look"))
    await ExecutionEngine(InMemoryBroker(), dag).execute()
    assert {task for task in tasks if "_finish_sending" in task} == set()


def start_loop(
    nodes: Iterator[int], start: Callable[[Any], UnderWay], failed: list[BaseException]
) -> StartLoop:
    def advance() -> None:
        starts.wake()

    starts = StartLoop(lambda: next(nodes, None), start, failed.append, advance)
    return starts


@virtually
async def test_sends_that_go_on_by_themselves_are_bounded_and_need_no_task() -> None:
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[None]] = []
    ended: list[asyncio.Future[Any]] = []
    failed: list[BaseException] = []

    def start(_: int) -> UnderWay:
        waiting.append(loop.create_future())
        return UnderWay(waiting[-1], ended.append)

    nodes = iter(range(3 * MOST_WAITING))
    starts = start_loop(nodes, start, failed)
    starts.wake()
    for _ in range(3):
        await asyncio.sleep(1)
        assert len(waiting) == MOST_WAITING
        assert len(asyncio.all_tasks(loop)) == 1
        taken = waiting.copy()
        waiting.clear()
        for future in taken:
            future.set_result(None)
    await asyncio.sleep(1)
    assert len(ended) == 3 * MOST_WAITING
    assert not starts.tasks
    assert not failed


@virtually
async def test_what_is_left_of_a_send_that_has_failed_is_awaited() -> None:
    loop = asyncio.get_running_loop()
    first, repeated = loop.create_future(), asyncio.Event()

    async def repeat() -> None:
        repeated.set()
        raise LookupError

    failed: list[BaseException] = []
    nodes = iter([0])
    starts = start_loop(nodes, lambda _: UnderWay(first, end), failed)

    def end(future: asyncio.Future[Any]) -> Any:
        return None if future.exception() is None else repeat()

    starts.wake()
    first.set_exception(OSError())
    async with asyncio.timeout(1):
        await repeated.wait()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [type(error) for error in failed] == [LookupError]


@virtually
async def test_sends_that_go_on_by_themselves_are_cancelled_with_the_run() -> None:
    future, ended = asyncio.get_running_loop().create_future(), list[bool]()
    failed: list[BaseException] = []
    nodes = iter([0, 1])

    def end(future: asyncio.Future[Any]) -> None:
        ended.append(future.cancelled())

    starts = start_loop(nodes, lambda _: UnderWay(future, end), failed)
    starts.wake()
    starts.stop()
    await asyncio.sleep(1)
    assert ended == [True, True]
    assert not starts.tasks
    assert not failed


async def test_the_first_nodes_begin_before_all_others_are_sent() -> None:
    broker, sent, sent_before = InMemoryBroker(), 0, []
    kick = broker.kick

    async def kick_and_count(message: BrokerMessage) -> None:
        nonlocal sent
        sent += 1
        await kick(message)

    async def note() -> None:
        sent_before.append(sent)

    broker.kick = kick_and_count  # type: ignore[method-assign]
    dag = DAG()
    for index in range(40):
        dag.add_node(DAGNode(note, name=f"n{index}"))
    await ExecutionEngine(broker, dag).execute()
    assert sent_before[0] <= FIRST_SLICE  # at once, where tasks start eagerly
    assert sent_before[-1] == 40
