"""The life of a stream: however its reader leaves it, nothing of the run is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import threading
import tracemalloc
import weakref
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from aiostream import pipe, stream
from aiostream.core import Stream
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    DAGBuilder,
    DAGNode,
    ExecutionEngine,
    Lease,
    MemoryJournal,
    NodeCompleted,
    NodeFailedError,
    Retry,
    RunCancelledError,
    RunFinished,
    RunTimeoutError,
)
from taskiq_flow.completion.in_memory_hooks import InMemoryHooks
from taskiq_flow.engine.start_loop import FIRST_SLICE
from taskiq_flow.journal import writer
from taskiq_flow.journal.protocol import EventBatch
from tests.virtual_clock import run_virtually, start_tasks_later, virtually


async def quick() -> int:
    return 0


class Slow:
    """A fan of tasks that wait until they are cancelled, beside one that ends at once."""

    def __init__(self, width: int = 5) -> None:
        self.started: list[int] = []
        self.cancelled: list[int] = []
        self.all_started = asyncio.Event()
        self.width = width
        builder = DAGBuilder().node(quick)
        for number in range(width):
            builder.node(self._waiting_task(number), name=f"slow{number}")
        self.dag = builder.build()

    def _waiting_task(self, number: int) -> Any:
        async def wait() -> None:
            self.started.append(number)
            if len(self.started) == self.width:
                self.all_started.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.append(number)

        return wait


def nothing_left(broker: InMemoryBroker) -> bool:
    """Neither tasks nor registrations; asked once the streams are closed."""
    tasks = [repr(task) for task in asyncio.all_tasks()]
    hooks = InMemoryHooks.of(broker)
    return not (hooks.executions or hooks.run_ids) and not any(
        "Receiver" in task or "taskiq_flow" in task for task in tasks
    )


async def dropped_streams_are_closed() -> None:
    """The loop closes a generator that was dropped in a task of its own: wait for it."""
    gc.collect()
    await asyncio.sleep(0)
    if closing := [task for task in asyncio.all_tasks() if "athrow" in repr(task)]:
        await asyncio.wait(closing)


async def still_works(broker: InMemoryBroker) -> bool:
    dag = DAGBuilder().node(lambda: 42, name="answer").build()
    return await ExecutionEngine(broker, dag).execute() == {"answer": 42}


async def test_a_break_without_closing_leaves_nothing_after_collection(
    broker: InMemoryBroker,
) -> None:
    slow = Slow()
    async for _ in ExecutionEngine(broker, slow.dag).execute_async():
        await slow.all_started.wait()
        break
    await dropped_streams_are_closed()
    assert sorted(slow.cancelled) == slow.started == [0, 1, 2, 3, 4]
    assert nothing_left(broker)
    assert await still_works(broker)


async def test_an_exception_in_the_loop_body_arrives_unchanged_and_cancels_the_rest(
    broker: InMemoryBroker,
) -> None:
    slow, problem = Slow(), KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with contextlib.aclosing(ExecutionEngine(broker, slow.dag).execute_async()) as pairs:
            async for _ in pairs:
                await slow.all_started.wait()
                raise problem
    assert caught.value is problem
    assert len(slow.cancelled) == slow.width
    assert nothing_left(broker)


@pytest.mark.parametrize("turns", range(12))
async def test_cancelling_the_consumer_at_any_await_point_leaves_nothing(
    broker: InMemoryBroker, turns: int
) -> None:
    slow = Slow()

    async def consume() -> None:
        async for _ in ExecutionEngine(broker, slow.dag).execute_async():
            await asyncio.sleep(0)

    consumer = asyncio.ensure_future(consume())
    for _ in range(turns):
        await asyncio.sleep(0)
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    await dropped_streams_are_closed()
    assert len(slow.cancelled) == len(slow.started)
    assert nothing_left(broker)
    assert await still_works(broker)


async def test_a_second_cancellation_does_not_cut_the_clean_up_short(
    broker: InMemoryBroker,
) -> None:
    cleaned: list[str] = []
    started = asyncio.Event()

    async def careful() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(20):
                await asyncio.sleep(0)
            cleaned.append("yes")

    dag = DAGBuilder().node(careful).build()

    async def consume() -> None:
        async for _ in ExecutionEngine(broker, dag).execute_async():
            pass

    consumer = asyncio.ensure_future(consume())
    await started.wait()
    for _ in range(8):
        consumer.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await consumer
    assert cleaned == ["yes"]
    assert nothing_left(broker)


async def test_a_stream_may_be_started_in_one_task_and_closed_in_another_inside_a_timeout(
    broker: InMemoryBroker,
) -> None:
    slow = Slow()
    pairs = ExecutionEngine(broker, slow.dag).execute_async()

    async def start() -> tuple[str, Any]:
        async with asyncio.timeout(5):
            return await anext(pairs)

    assert await asyncio.ensure_future(start()) == ("quick", 0)
    await slow.all_started.wait()

    async def close() -> None:
        async with asyncio.timeout(5):
            await pairs.aclose()

    await asyncio.ensure_future(close())
    assert len(slow.cancelled) == slow.width
    assert nothing_left(broker)


async def test_closing_under_a_pending_read_is_refused_and_cancel_ends_both(
    broker: InMemoryBroker,
) -> None:
    slow = Slow()
    engine = ExecutionEngine(broker, slow.dag)
    pairs: AsyncGenerator[Any, None] = engine.execute_async()
    await anext(pairs)
    read = asyncio.ensure_future(anext(pairs))
    await asyncio.sleep(0)
    await slow.all_started.wait()
    with pytest.raises(RuntimeError, match="already running"):
        await pairs.aclose()
    assert not read.done()
    engine.cancel()
    with pytest.raises(RunCancelledError):
        await read
    assert nothing_left(broker)


async def test_a_stream_is_at_home_in_an_aiostream_pipeline(broker: InMemoryBroker) -> None:
    slow = Slow()
    pairs: Stream[tuple[str, Any]] = stream.iterate(
        ExecutionEngine(broker, slow.dag).execute_async()
    )
    async with (pairs | pipe.take(1)).stream() as first:
        assert [pair async for pair in first] == [("quick", 0)]
    assert nothing_left(broker)


class TestCancel:
    async def test_both_consumers_get_the_error_with_the_results_so_far(
        self, broker: InMemoryBroker
    ) -> None:
        slow = Slow()
        engine = ExecutionEngine(broker, slow.dag)
        seen: list[str] = []

        async def read() -> None:
            async for name, _ in engine.execute_async():
                seen.append(name)

        readers = [asyncio.ensure_future(read()), asyncio.ensure_future(engine.execute())]
        while len(slow.started) < 2 * slow.width or not seen:
            await asyncio.sleep(0)
        engine.cancel()
        errors = await asyncio.gather(*readers, return_exceptions=True)
        for error in errors:
            assert isinstance(error, RunCancelledError)
            assert error.results == {"quick": 0}
        assert seen == ["quick"]
        assert len(slow.cancelled) == 2 * slow.width
        assert nothing_left(broker)

    async def test_without_a_run_it_does_nothing(self, broker: InMemoryBroker) -> None:
        engine = ExecutionEngine(broker, DAGBuilder().node(lambda: 1, name="one").build())
        engine.cancel()
        assert await engine.execute() == {"one": 1}
        engine.cancel()

    async def test_from_the_loop_body_it_stops_the_stream_even_if_all_has_arrived(
        self, broker: InMemoryBroker
    ) -> None:
        dag = DAGBuilder().node(lambda: 1, name="a").node(lambda: 2, name="b").build()
        engine = ExecutionEngine(broker, dag)
        seen = []
        with pytest.raises(RunCancelledError) as caught:
            async for name, _ in engine.execute_async():
                seen.append(name)
                while len(InMemoryHooks.of(broker).executions):
                    await asyncio.sleep(0)
                engine.cancel()
        assert len(seen) == 1
        assert caught.value.results == {"a": 1, "b": 2}

    async def test_from_within_a_task_it_ends_the_run(self, broker: InMemoryBroker) -> None:
        async def suicidal() -> None:
            engine.cancel()
            await asyncio.sleep(0)

        engine = ExecutionEngine(broker, DAGBuilder().node(suicidal).build())
        with pytest.raises(RunCancelledError):
            await engine.execute()
        assert nothing_left(broker)

    async def test_what_was_sent_and_has_not_begun_never_runs(self, broker: InMemoryBroker) -> None:
        start_tasks_later()
        ran: list[int] = []
        builder = DAGBuilder()
        for number in range(50):
            builder.node(lambda number=number: ran.append(number), name=f"n{number}")
        engine = ExecutionEngine(broker, builder.build())
        kick = broker.kick

        kicked = itertools.count(1)

        async def kick_and_cancel(message: Any) -> None:
            await kick(message)
            if next(kicked) == FIRST_SLICE:
                engine.cancel()

        broker.kick = kick_and_cancel  # type: ignore[method-assign]
        with pytest.raises(RunCancelledError):
            await engine.execute()
        assert ran == []
        assert nothing_left(broker)

    async def test_a_task_that_shields_itself_holds_nothing_up_for_ever(
        self, broker: InMemoryBroker, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> float:
            release = asyncio.Event()
            started = asyncio.Event()

            async def stubborn() -> None:
                started.set()
                while not release.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await release.wait()

            broker = InMemoryBroker()
            engine = ExecutionEngine(broker, DAGBuilder().node(stubborn).build())
            run = asyncio.ensure_future(engine.execute())
            await started.wait()
            engine.cancel()
            with pytest.raises(RunCancelledError):
                await run
            took = asyncio.get_running_loop().time()
            release.set()
            return took

        assert await asyncio.to_thread(run_virtually, main()) == pytest.approx(5.0)
        assert "has not ended 5 s after it was cancelled" in caplog.text


@virtually
async def test_a_slow_reader_does_not_delay_successors() -> None:
    ended: list[float] = []
    loop = asyncio.get_running_loop()

    def after(seconds: float) -> Any:
        async def task(**_: Any) -> None:
            await asyncio.sleep(seconds)
            ended.append(loop.time())

        return task

    builder = DAGBuilder()
    builder.node(after(0.1), name="a").node(after(0.1), name="b", inputs=["a"])
    builder.node(after(0.1), name="c", inputs=["b"]).node(after(0.1), name="d", inputs=["c"])
    async for _ in ExecutionEngine(InMemoryBroker(), builder.build()).execute_async():
        await asyncio.sleep(0.5)
    assert ended[-1] == pytest.approx(0.4)


async def test_hundreds_of_runs_leave_memory_and_tasks_flat(broker: InMemoryBroker) -> None:
    builder = DAGBuilder().node(lambda: [1], name="a").node(lambda a: a, name="b")
    engine = ExecutionEngine(broker, builder.build())

    async def runs(count: int) -> int:
        for number in range(count):
            if number % 2:
                await engine.execute()
            else:
                async for _ in engine.execute_async():
                    break
        await dropped_streams_are_closed()
        gc.collect()  # what they dropped as they were closed is no leak
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        sizes = [await runs(60) for _ in range(5)]
    finally:
        tracemalloc.stop()
    # What is made once, such as a thread or a cache, may come at any time; a leak grows each time.
    assert min(after - before for before, after in itertools.pairwise(sizes)) < 6_000
    assert nothing_left(broker)


async def test_results_are_collectable_once_the_reader_lets_them_go(
    broker: InMemoryBroker,
) -> None:
    class Value:
        pass

    broker.result_backend.max_stored_results = 0
    broker.result_backend.set_result = _store_nothing  # type: ignore[method-assign]
    dag = DAGBuilder().node(Value, name="value").build()
    results = await ExecutionEngine(broker, dag).execute()
    reference = weakref.ref(results["value"])
    del results
    await asyncio.sleep(0)  # the event loop lets go of what it has just called
    gc.collect()
    assert reference() is None


async def _store_nothing(task_id: str, result: Any) -> None:
    pass


async def test_two_runs_of_one_engine_do_not_mix(broker: InMemoryBroker) -> None:
    async def echo(word: str) -> str:
        await asyncio.sleep(0)
        return word

    dag = DAGBuilder().node(echo).node(lambda echo: echo * 2, name="twice").build()
    engine = ExecutionEngine(broker, dag)
    inner: list[dict[str, Any]] = []
    outer: dict[str, Any] = {}
    async for name, result in engine.execute_async({"word": "a"}):
        inner.append(await engine.execute({"word": "b"}))
        outer[name] = result
    assert outer == {"echo": "a", "twice": "aa"}
    assert inner == [{"echo": "b", "twice": "bb"}] * 2
    many = await asyncio.gather(*(engine.execute({"word": str(i)}) for i in range(20)))
    assert [results["twice"] for results in many] == [str(i) * 2 for i in range(20)]


async def test_a_run_id_in_use_is_refused_and_the_run_that_has_it_goes_on(
    broker: InMemoryBroker,
) -> None:
    slow = Slow()
    engine = ExecutionEngine(broker, slow.dag)
    pairs = engine.execute_async(run_id="mine")
    await anext(pairs)
    await slow.all_started.wait()
    with pytest.raises(Exception, match="run id 'mine' is in use"):
        await engine.execute(run_id="mine")
    assert len(InMemoryHooks.of(broker).executions) == slow.width
    await pairs.aclose()


async def test_a_failure_cancels_what_is_in_flight(broker: InMemoryBroker) -> None:
    slow = Slow()

    async def bad(quick: int) -> None:
        await slow.all_started.wait()
        raise ValueError

    dag = DAG()
    for node in slow.dag.nodes:
        dag.add_node(node)
    for node in DAGBuilder().node(bad).build().nodes:
        dag.add_node(node)
    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(broker, dag).execute()
    assert caught.value.results == {"quick": 0}
    assert len(slow.cancelled) == slow.width
    assert nothing_left(broker)


@pytest.mark.parametrize("how", ["execute_async", "resume", "rerun"])
@pytest.mark.parametrize("is_held", [True, False])
def test_a_stream_that_is_left_as_its_loop_ends_ends_with_it(*, how: str, is_held: bool) -> None:
    """The loop closes all generators at once, also those that others are made of."""
    reported: list[dict[str, Any]] = []
    began: list[str] = []
    ended: list[str] = []
    held: list[Any] = []

    async def nap(seconds: float) -> None:
        began.append("nap")
        try:
            await asyncio.sleep(seconds)
        finally:
            ended.append("nap")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context))
        dag = DAGBuilder().node(lambda: 1, name="fast").node(nap).build()
        engine = ExecutionEngine(InMemoryBroker(), dag, journal=MemoryJournal(), run_timeout=0.01)
        if how != "execute_async":
            with pytest.raises(RunTimeoutError):
                await engine.execute({"seconds": 100.0}, run_id="r")
        engine = ExecutionEngine(InMemoryBroker(), dag, journal=engine.journal)
        streams = {
            "execute_async": lambda: engine.execute_async({"seconds": 100.0}, run_id="s"),
            "resume": lambda: engine.resume("r"),
            "rerun": lambda: engine.rerun("r", ["fast"]),
        }
        stream = streams[how]()
        await anext(stream)
        if is_held:
            held.append(stream)

    asyncio.run(main())
    assert not reported
    assert began == ended


class TestOrdersToStop:
    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
    @pytest.mark.parametrize("on_error", ["raise", "continue", "collect"])
    @pytest.mark.parametrize("node", [{}, {"retry": Retry(on=(BaseException,))}, {"fallback": 0}])
    def test_what_stops_the_process_ends_the_run(
        self, kind: type[BaseException], on_error: Any, node: dict[str, Any]
    ) -> None:
        ran: list[str] = []

        async def stop() -> None:
            ran.append("stop")
            raise kind

        async def later() -> None:
            ran.append("later")
            await asyncio.sleep(60)

        async def main() -> None:
            broker = InMemoryBroker()
            dag = DAGBuilder().node(stop, **node).node(later).build()
            try:
                await ExecutionEngine(broker, dag, on_error=on_error).execute()
            finally:
                assert nothing_left(broker)

        with pytest.raises(kind):
            asyncio.run(main())
        assert ran.count("stop") == 1


class TestCancellingFromElsewhere:
    @pytest.mark.parametrize("where", ["another thread", "a sync node"])
    async def test_a_run_is_cancelled_from_any_thread(
        self, broker: InMemoryBroker, where: str
    ) -> None:
        slow = Slow(3)
        dag = slow.dag

        def cancel() -> None:
            engine.cancel()

        if where == "a sync node":
            dag.add_node(DAGNode(cancel, name="cancel"))
        engine = ExecutionEngine(broker, dag)
        running = asyncio.ensure_future(engine.execute())
        await slow.all_started.wait()
        if where == "another thread":
            threading.Thread(target=cancel).start()
        with pytest.raises(RunCancelledError):
            await asyncio.wait_for(running, 5)
        assert sorted(slow.cancelled) == [0, 1, 2]
        assert nothing_left(broker)

    @pytest.mark.parametrize("where", ["the loop", "a thread"])
    async def test_a_run_that_is_about_to_begin_is_cancelled(
        self, broker: InMemoryBroker, where: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = asyncio.Event()

        class NeverOpen(MemoryJournal):
            async def create(
                self,
                run_id: str,
                lease: Lease,
                chunk: bytes | None,
                batch: EventBatch | None = None,
            ) -> None:
                opened.set()
                await asyncio.Event().wait()

        monkeypatch.setattr(writer, "CLOSING_GRACE", 0.01)
        sent: list[int] = []
        dag = DAGBuilder().node(lambda: sent.append(1), name="n").build()
        engine = ExecutionEngine(broker, dag, journal=NeverOpen())
        running = asyncio.ensure_future(engine.execute())
        await opened.wait()
        if where == "the loop":
            engine.cancel()
        else:
            await asyncio.to_thread(engine.cancel)
        with pytest.raises(RunCancelledError, match="before it began"):
            await asyncio.wait_for(running, 5)
        assert sent == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    @pytest.mark.parametrize("event", [NodeCompleted, RunFinished])
    async def test_a_run_ends_in_one_way_for_listeners_journal_and_reader(
        self, broker: InMemoryBroker, event: type[Any]
    ) -> None:
        ends: list[str] = []

        class Cancelling:
            def on_event(self, happened: Any) -> None:
                if isinstance(happened, RunFinished):
                    ends.append(happened.outcome)
                if isinstance(happened, event):
                    engine.cancel()

        dag, journal = DAGBuilder().node(lambda: 1, name="n").build(), MemoryJournal()
        engine = ExecutionEngine(broker, dag, journal=journal, listeners=[Cancelling()])
        try:
            await engine.execute(run_id="r")
            ends.append("completed")
        except RunCancelledError:
            ends.append("cancelled")
        assert ends in (["completed"] * 2, ["cancelled"] * 2)
        assert ends[0].encode() in [chunk async for chunk in journal.read("r")][-1]
