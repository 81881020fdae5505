"""A run that its user holds: awaited, read, watched, cancelled and dropped by itself."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import random
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
import taskiq
from aiostream import pipe, stream
from aiostream.core import Stream
from taskiq import AsyncTaskiqTask, InMemoryBroker, TaskiqResultTimeoutError
from taskiq.exceptions import ResultGetError
from taskiq.result_backends.dummy import DummyResultBackend

from taskiq_flow import (
    ConfigurationError,
    DAGBuilder,
    DAGNode,
    Event,
    ExecutionEngine,
    Gap,
    InputConflictError,
    Item,
    JournalError,
    MapReduce,
    MemoryJournal,
    MissingInputError,
    MissingNodeError,
    NodeBegan,
    NodeCompleted,
    NodeFailedError,
    NodeFailure,
    NodeSkipped,
    NodeStarted,
    RunCancelledError,
    RunError,
    RunFinished,
    RunHandle,
    RunStarted,
    RunTimeoutError,
    UnusedInputWarning,
)
from taskiq_flow.completion.in_memory_hooks import InMemoryHooks
from taskiq_flow.engine import listeners, run_handle
from taskiq_flow.engine.run_handle import READ_AHEAD
from taskiq_flow.journal import writer
from taskiq_flow.notes import WIDTH
from taskiq_flow.testing import LocalBroker
from tests.recording import Recorder
from tests.virtual_clock import run_virtually, start_tasks_later, virtually

T = TypeVar("T")

CHAIN = (
    DAGBuilder().node(str.split, name="words", inputs=["text"]).node(len, inputs=["words"]).build()
)
TEXT = {"text": "ebb and flow"}
WHOLE = {"words": ["ebb", "and", "flow"], "len": 3}


class Gate:
    """A graph of a quick node and one that waits until it is let through."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.begun = asyncio.Event()
        self.cancelled: list[str] = []
        self.done: list[str] = []
        self.dag = DAGBuilder().node(self.quick).node(self.slow).build()

    async def quick(self) -> int:
        return 1

    async def slow(self, quick: int, name: str = "it") -> str:
        self.begun.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        self.done.append(name)
        return name

    def start(self, broker: InMemoryBroker, **options: Any) -> RunHandle:
        return ExecutionEngine(broker, self.dag).start(**options)


async def fails(number: int = 0) -> None:
    raise ValueError(number)


FAILING = DAGBuilder().node(lambda: 1, name="one").node(fails, inputs={"number": "one"}).build()

FANS = DAGBuilder().node(abs, inputs=["numbers"], map_over="numbers", output="sizes").build()


class Numbers:
    """An async source, without an end if none is given, that knows whether it was closed."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count
        self.read = 0
        self.closed = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[int]:
        try:
            for number in itertools.count() if self.count is None else range(self.count):
                self.read += 1
                yield number
        finally:
            self.closed.set()


def failing(
    error: BaseException,
    failed: asyncio.Event,
    *,
    is_async: bool,
    wrap: Callable[[int], Any] = int,
) -> Any:
    """A source of two values, which then fails."""

    def values() -> Iterator[Any]:
        yield from map(wrap, range(2))
        failed.set()
        raise error

    async def async_values() -> AsyncIterator[Any]:
        for value in map(wrap, range(2)):
            yield value
        failed.set()
        raise error

    return async_values() if is_async else values()


async def turns(condition: Callable[[], object]) -> None:
    """Give the loop turns until something holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def ended(run: RunHandle) -> None:
    await turns(lambda: run.status != "running")


def nothing_left(broker: InMemoryBroker) -> bool:
    hooks = InMemoryHooks.of(broker)
    tasks = [task for task in asyncio.all_tasks() if "taskiq_flow" in repr(task)]
    return not (hooks.executions or hooks.run_ids or tasks or run_handle._running)


class TestStarting:
    async def test_it_starts_at_once_though_nobody_asks_for_anything(
        self, broker: InMemoryBroker
    ) -> None:
        gate = Gate()
        run = gate.start(broker)
        before = run.status
        await gate.begun.wait()
        gate.open.set()
        await ended(run)
        assert gate.done == ["it"]
        assert (before, run.status) == ("running", "completed")

    def test_without_an_event_loop_it_says_so(self) -> None:
        engine = ExecutionEngine(InMemoryBroker(), CHAIN)
        with pytest.raises(RuntimeError, match=r"none is running"):
            engine.start(TEXT)

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({}, MissingInputError),
            ({"inputs": {**TEXT, "words": []}}, InputConflictError),
            ({"inputs": 5}, TypeError),
            ({"inputs": TEXT, "outputs": ["nothing"]}, MissingNodeError),
            ({"inputs": TEXT, "outputs": 5}, TypeError),
            ({"inputs": TEXT, "run_id": ""}, ValueError),
            ({"inputs": TEXT, "items": "some"}, ValueError),
        ],
    )
    async def test_what_is_wrong_is_raised_at_the_call_and_nothing_is_begun(
        self, broker: InMemoryBroker, arguments: dict[str, Any], error: type[Exception]
    ) -> None:
        engine = ExecutionEngine(broker, CHAIN)
        with pytest.raises(error):
            engine.start(**arguments)
        assert not engine._in_progress
        assert nothing_left(broker)

    async def test_an_input_that_no_node_takes_is_warned_of_at_the_line_of_the_call(
        self, broker: InMemoryBroker
    ) -> None:
        with pytest.warns(UnusedInputWarning) as caught:
            run = ExecutionEngine(broker, CHAIN).start({**TEXT, "more": 1})
        assert caught[0].filename == __file__
        await run

    async def test_a_broker_without_results_is_refused_at_the_call(self) -> None:
        broker = LocalBroker().with_result_backend(DummyResultBackend())
        with pytest.raises(ConfigurationError):
            ExecutionEngine(broker, CHAIN).start(TEXT)

    async def test_inputs_are_taken_as_they_are_at_the_call(self, broker: InMemoryBroker) -> None:
        numbers = [1, 2]
        dag = DAGBuilder().node(sum, name="total", inputs=["numbers"]).build()
        run = ExecutionEngine(broker, dag).start({"numbers": numbers})
        numbers.append(3)
        assert await run == {"total": 3}

    async def test_only_what_the_outputs_need_is_run(self, broker: InMemoryBroker) -> None:
        run = ExecutionEngine(broker, CHAIN).start(TEXT, outputs=iter(["words"]))
        assert await run == {"words": WHOLE["words"]}

    async def test_a_name_that_is_in_use_fails_the_run_and_the_other_goes_on(
        self, broker: InMemoryBroker
    ) -> None:
        gate = Gate()
        engine = ExecutionEngine(broker, gate.dag)
        run = engine.start(run_id="r")
        await gate.begun.wait()
        with pytest.raises(ConfigurationError, match="'r' is in use"):
            await engine.start(run_id="r")
        gate.open.set()
        assert await run == {"quick": 1, "slow": "it"}

    async def test_a_name_of_a_run_that_the_journal_has_fails_the_run(
        self, broker: InMemoryBroker
    ) -> None:
        engine = ExecutionEngine(broker, CHAIN, journal=MemoryJournal())
        assert await engine.start(TEXT, run_id="r") == WHOLE
        run = engine.start(TEXT, run_id="r")
        events = run.events()
        with pytest.raises(JournalError, match="'r'"):
            await run
        assert [event async for event in events] == []
        assert run.status == "failed"
        assert run.results == run.failures == {}


class TestWaiting:
    async def test_it_gives_what_execute_gives_and_again(self, broker: InMemoryBroker) -> None:
        run = ExecutionEngine(broker, CHAIN).start(TEXT)
        assert await run == WHOLE
        assert await run == WHOLE
        assert run.results == WHOLE

    async def test_it_behaves_as_a_task_of_taskiq(self, broker: InMemoryBroker) -> None:
        gate = Gate()
        run = gate.start(broker, run_id="mine")
        assert isinstance(run, AsyncTaskiqTask)
        assert run.run_id == run.task_id == "mine"
        assert not await run.is_ready()
        with pytest.raises(ResultGetError):
            await run.get_result()
        gate.open.set()
        (result,) = await taskiq.gather(run)
        assert result.return_value == {"quick": 1, "slow": "it"}
        assert not result.is_err
        assert (await run.wait_result()).return_value == result.return_value

    async def test_a_failure_is_raised_by_await_and_is_the_error_of_a_result(
        self, broker: InMemoryBroker
    ) -> None:
        run = ExecutionEngine(broker, FAILING).start()
        with pytest.raises(NodeFailedError) as caught:
            await run
        result = await run.wait_result()
        assert result.is_err
        assert result.error is caught.value
        assert run.status == "failed"
        assert run.results == {"one": 1}
        assert run.failures.keys() == {"fails"}

    async def test_what_a_failed_run_has_reached_is_what_its_error_has(
        self, broker: InMemoryBroker
    ) -> None:
        run = ExecutionEngine(broker, FANS, max_parallel=1).start({"numbers": [-1, "x"]})
        with pytest.raises(NodeFailedError) as caught:
            await run
        assert run.results == caught.value.results == {"abs[0]": 1}
        assert run.failures == caught.value.failures
        assert run.failures.keys() == {"abs[1]"}

    async def test_a_result_that_does_not_come_in_time_leaves_the_run_in_progress(
        self, broker: InMemoryBroker
    ) -> None:
        gate = Gate()
        run = gate.start(broker)
        with pytest.raises(TaskiqResultTimeoutError):
            await run.wait_result(timeout=0.01)
        assert run.status == "running"
        gate.open.set()
        assert (await run.wait_result(timeout=5)).return_value == {"quick": 1, "slow": "it"}

    @pytest.mark.parametrize("others", [0, 1])
    async def test_a_waiter_that_is_cancelled_leaves_the_run_to_others(
        self, broker: InMemoryBroker, others: int
    ) -> None:
        gate = Gate()
        run = gate.start(broker)
        impatient = asyncio.ensure_future(run.wait_result())
        patient = [asyncio.ensure_future(run.wait_result()) for _ in range(others)]
        await gate.begun.wait()
        impatient.cancel()
        await asyncio.wait([impatient])
        assert impatient.cancelled()
        assert run.status == "running"
        gate.open.set()
        for waiter in patient:
            assert (await waiter).return_value == {"quick": 1, "slow": "it"}
        assert await run == {"quick": 1, "slow": "it"}

    async def test_failures_that_are_collected_are_values(self, broker: InMemoryBroker) -> None:
        dag = DAGBuilder().node(fails).node(lambda fails: 1, name="after").build()
        run = ExecutionEngine(broker, dag, on_error="collect").start()
        results = await run
        assert isinstance(results["fails"], NodeFailure)
        assert isinstance(results["after"], NodeSkipped)
        assert run.status == "completed"
        assert run.failures.keys() == {"fails"}
        assert run.skipped == ["after"]

    async def test_a_run_that_takes_too_long_has_failed(self, broker: InMemoryBroker) -> None:
        gate = Gate()
        run = ExecutionEngine(broker, gate.dag, run_timeout=0.05).start()
        with pytest.raises(RunTimeoutError):
            await run
        assert run.status == "failed"
        assert run.results == {"quick": 1}

    async def test_it_says_what_it_is(self, broker: InMemoryBroker) -> None:
        gate = Gate()
        run = gate.start(broker, run_id="r1")
        assert repr(run) == "<RunHandle 'r1', running, 0 results>"
        await turns(lambda: run.results)
        assert repr(run) == "<RunHandle 'r1', running, 1 result>"
        gate.open.set()
        await run
        assert repr(run) == "<RunHandle 'r1', completed, 2 results>"

    async def test_runs_are_awaited_with_asyncios_own_functions(
        self, broker: InMemoryBroker
    ) -> None:
        engine = ExecutionEngine(broker, CHAIN)
        assert await asyncio.gather(*(engine.start(TEXT) for _ in range(5))) == [WHOLE] * 5
        gate = Gate()
        run = gate.start(broker)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run, 0.01)
        gate.open.set()
        assert await asyncio.ensure_future(run) == {"quick": 1, "slow": "it"}

    async def test_a_result_may_be_changed_without_changing_the_runs(
        self, broker: InMemoryBroker
    ) -> None:
        run = ExecutionEngine(broker, CHAIN).start(TEXT)
        (await run).clear()
        run.results.clear()
        assert await run == WHOLE


class TestReading:
    async def test_each_pair_comes_once_and_the_run_can_be_awaited_too(
        self, broker: InMemoryBroker
    ) -> None:
        run = ExecutionEngine(broker, CHAIN).start(TEXT)
        assert [pair async for pair in run] == list(WHOLE.items())
        assert await run == WHOLE
        assert [pair async for pair in run] == []

    async def test_one_reads_while_another_waits(self, broker: InMemoryBroker) -> None:
        run = ExecutionEngine(broker, CHAIN).start(TEXT)
        waiting = asyncio.ensure_future(run.wait_result())
        assert [pair async for pair in run] == list(WHOLE.items())
        assert (await waiting).return_value == WHOLE

    async def test_pairs_come_while_the_run_goes_on(self, broker: InMemoryBroker) -> None:
        gate = Gate()
        run = gate.start(broker)
        async for name, _ in run:
            assert run.status == ("running" if name == "quick" else run.status)
            gate.open.set()
        assert gate.done == ["it"]

    async def test_a_loop_goes_on_where_the_one_before_has_stopped(
        self, broker: InMemoryBroker
    ) -> None:
        run = ExecutionEngine(broker, CHAIN).start(TEXT)
        async for name, _ in run:
            assert name == "words"
            break
        assert [name async for name, _ in run] == ["len"]

    async def test_a_second_reader_at_the_same_time_is_refused(
        self, broker: InMemoryBroker
    ) -> None:
        run = ExecutionEngine(broker, CHAIN).start(TEXT)
        pairs: Any = aiter(run)
        assert (await anext(pairs))[0] == "words"
        with pytest.raises(RuntimeError, match="is being read already"):
            await anext(aiter(run))
        await pairs.aclose()
        assert (await anext(aiter(run)))[0] == "len"

    async def test_two_tasks_that_read_at_once_are_refused(self, broker: InMemoryBroker) -> None:
        gate = Gate()
        run = gate.start(broker)
        pairs = aiter(run)
        await anext(pairs)
        first = asyncio.ensure_future(anext(pairs))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="by two tasks at once"):
            await anext(pairs)
        gate.open.set()
        assert await first == ("slow", "it")

    async def test_a_reader_that_is_cancelled_loses_nothing(self, broker: InMemoryBroker) -> None:
        gate = Gate()
        run = gate.start(broker)
        pairs = aiter(run)
        await anext(pairs)
        reading = asyncio.ensure_future(anext(pairs))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        gate.open.set()
        assert await anext(pairs) == ("slow", "it")

    async def test_what_ended_the_run_is_raised_behind_the_last_pair(
        self, broker: InMemoryBroker
    ) -> None:
        run = ExecutionEngine(broker, FAILING).start()
        await ended(run)
        seen = []
        with pytest.raises(NodeFailedError):
            async for name, result in run:
                seen.append((name, result))
        assert seen == [("one", 1)]
        with pytest.raises(NodeFailedError):
            await anext(aiter(run))

    async def test_on_step_complete_is_called_once_per_pair_whoever_reads(
        self, broker: InMemoryBroker
    ) -> None:
        calls: list[str] = []
        engine = ExecutionEngine(
            broker, CHAIN, on_step_complete=lambda name, result: calls.append(name)
        )
        run = engine.start(TEXT)
        await run
        assert [name async for name, _ in run] == calls == ["words", "len"]

    async def test_what_on_step_complete_raises_ends_the_run(self, broker: InMemoryBroker) -> None:
        def refuse(name: str, result: object) -> None:
            raise LookupError(name)

        run = ExecutionEngine(broker, CHAIN, on_step_complete=refuse).start(TEXT)
        with pytest.raises(LookupError, match="words"):
            await run
        assert run.status == "failed"


class TestItems:
    async def test_elements_are_read_and_the_lists_are_the_results(
        self, broker: InMemoryBroker
    ) -> None:
        engine = ExecutionEngine(broker, FANS, max_parallel=1)
        run = engine.start({"numbers": [-1, 2]}, items=True)
        pairs = [pair async for pair in run]
        assert pairs == [("abs", Item(0, 1)), ("abs", Item(1, 2)), ("abs", [1, 2])]
        assert await run == {"sizes": [1, 2]}

    async def test_elements_in_place_of_lists_are_no_results(self, broker: InMemoryBroker) -> None:
        run = ExecutionEngine(broker, FANS).start({"numbers": [-1, 2]}, items="only")
        assert await run == {}
        assert sorted([item.value async for _, item in run]) == [1, 2]

    @pytest.mark.parametrize("is_stopped", [False, True])
    async def test_lists_that_a_node_takes_are_no_results_of_a_run_that_has_completed(
        self, broker: InMemoryBroker, *, is_stopped: bool
    ) -> None:
        gate = asyncio.Event()

        async def total(sizes: list[int]) -> int:
            await gate.wait()
            return sum(sizes)

        dag = DAGBuilder().node(abs, inputs=["numbers"], map_over="numbers", output="sizes")
        run = ExecutionEngine(broker, dag.node(total).build()).start(
            {"numbers": [-1, 2]}, items="only"
        )
        elements = {"abs[0]": 1, "abs[1]": 2}
        await turns(lambda: run.results == elements)
        if is_stopped:
            run.cancel()
            with pytest.raises(RunCancelledError):
                await run
            assert run.results == {"sizes": [1, 2]}
        else:
            gate.set()
            assert await run == run.results == {"total": 3}

    async def test_a_mapped_node_with_several_outputs_gives_a_list_for_each(
        self, broker: InMemoryBroker
    ) -> None:
        dag = DAGBuilder().node(
            lambda number: (number, -number),
            name="both",
            inputs=["numbers"],
            map_over="numbers",
            outputs=["plus", "minus"],
        )
        engine = ExecutionEngine(broker, dag.build())
        given = {"numbers": [1, 2]}
        assert await engine.start(given) == await engine.execute(given)
        assert await engine.start(given) == {"plus": [1, 2], "minus": [-1, -2]}

    async def test_an_endless_source_is_read_as_far_as_its_elements_are(
        self, broker: InMemoryBroker
    ) -> None:
        numbers = Numbers()
        engine = ExecutionEngine(broker, FANS, max_parallel=3)
        async with engine.start({"numbers": numbers}, items="only") as run:
            await turns(lambda: numbers.read == 3)
            for _ in range(100):
                await asyncio.sleep(0)
            assert numbers.read == 3
            pairs = aiter(run)
            for _ in range(100):
                await anext(pairs)
            assert 100 <= numbers.read <= 103
        assert numbers.closed.is_set()

    @pytest.mark.parametrize("items", [True, "only"])
    @pytest.mark.parametrize("is_mapped", [False, True])
    async def test_a_generator_waits_for_a_reader_that_lags(
        self, broker: InMemoryBroker, *, is_mapped: bool, items: Any
    ) -> None:
        made = 0

        async def frames() -> AsyncIterator[int]:
            nonlocal made
            for made in itertools.count(1):
                yield made

        async def size(frame: int) -> int:
            return frame

        builder = DAGBuilder().node(frames)
        if is_mapped:
            builder.node(size, inputs=["frames"], map_over="frames")
        engine = ExecutionEngine(broker, builder.build(), max_parallel=2)
        async with engine.start(items=items) as run:
            pairs = aiter(run)
            for _ in range(3):
                await anext(pairs)
            before = made
            for _ in range(500):
                await asyncio.sleep(0)
            assert made <= before + 2 * READ_AHEAD

    @pytest.mark.parametrize("leaves", ["closes", "drops", "awaits"])
    async def test_a_generator_does_not_wait_for_a_reader_that_has_left_or_awaits_the_run(
        self, broker: InMemoryBroker, leaves: str
    ) -> None:
        async def frames() -> AsyncIterator[int]:
            for number in range(200):
                yield number

        dag = DAGBuilder().node(frames).build()
        run = ExecutionEngine(broker, dag, max_parallel=2).start(items=True)
        pairs = aiter(run)
        found = [await anext(pairs)]
        await turns(lambda: (room := run._progress._room) and not room.done())  # it is not read on
        if leaves == "closes":
            await pairs.aclose()  # type: ignore[attr-defined]
        if leaves == "drops":
            del pairs
        if leaves == "awaits":
            await run
        await turns(lambda: run.status == "completed")
        found += [pair async for pair in (pairs if leaves == "awaits" else run)]
        assert [item.index for name, item in found[:-1]] == [*range(200)]
        assert found[-1] == ("frames", [*range(200)])

    @pytest.mark.parametrize("when", ["first", "behind a reader"])
    async def test_a_run_that_is_awaited_and_not_read_drops_its_elements(
        self, broker: InMemoryBroker, when: str
    ) -> None:
        engine = ExecutionEngine(broker, FANS, max_parallel=3)
        run = engine.start({"numbers": iter(range(500))}, items=True)
        waiting = asyncio.ensure_future(run.wait_result())
        if when != "first":
            async for _ in run:
                await asyncio.sleep(0)  # it waits beside the reader
                break
        assert (await waiting).return_value == {"sizes": [*range(500)]}
        if when == "first":
            assert [pair async for pair in run] == [("abs", [*range(500)])]

    async def test_a_run_that_waits_for_a_reader_goes_on_when_it_is_awaited(
        self, broker: InMemoryBroker
    ) -> None:
        numbers = Numbers(50)
        run = ExecutionEngine(broker, FANS, max_parallel=2).start(
            {"numbers": numbers}, items="only"
        )
        await turns(lambda: numbers.read >= 2)
        for _ in range(50):
            await asyncio.sleep(0)
        assert numbers.read == 2
        async with asyncio.timeout(10):
            await run
        assert numbers.read == 50

    async def test_a_run_that_fails_has_ended_though_its_reader_has_paused(
        self, broker: InMemoryBroker
    ) -> None:
        closed = asyncio.Event()

        async def broken() -> AsyncIterator[int]:
            try:
                for number in range(3):
                    yield number
                raise LookupError("source")
            finally:
                closed.set()

        run = ExecutionEngine(broker, FANS, max_parallel=3).start({"numbers": broken()}, items=True)
        pairs = aiter(run)
        await anext(pairs)
        await ended(run)
        assert run.status == "failed"
        assert closed.is_set()
        assert nothing_left(broker)
        with pytest.raises(LookupError, match="source"):
            async for _ in pairs:
                pass

    async def test_a_run_that_is_awaited_does_not_wait_for_a_reader_that_has_paused(
        self, broker: InMemoryBroker
    ) -> None:
        engine = ExecutionEngine(broker, FANS, max_parallel=3)
        run = engine.start({"numbers": iter(range(50))}, items="only")
        pairs = aiter(run)
        first = await anext(pairs)
        async with asyncio.timeout(10):
            await run
        assert sorted(item.index for _, item in [first, *[p async for p in pairs]]) == [*range(50)]

    async def test_a_reader_beside_a_waiter_misses_no_element(self, broker: InMemoryBroker) -> None:
        engine = ExecutionEngine(broker, FANS, max_parallel=3)
        run = engine.start({"numbers": iter(range(500))}, items="only")

        async def read() -> list[int]:
            seen = []
            async for _, item in run:
                seen.append(item.index)
                await asyncio.sleep(0)
            return seen

        reading = asyncio.ensure_future(read())
        await run
        assert sorted(await reading) == [*range(500)]

    @pytest.mark.parametrize("stays", [True, False])
    async def test_a_reader_beside_a_waiter_may_give_up_a_read_and_read_on_later(
        self, broker: InMemoryBroker, *, stays: bool
    ) -> None:
        gate = asyncio.Event()

        async def size(number: int) -> int:
            await gate.wait()
            return number

        dag = DAGBuilder().node(size, inputs=["numbers"], map_over="numbers").build()
        engine = ExecutionEngine(broker, dag, max_parallel=3)
        run = engine.start({"numbers": iter(range(100))}, items="only")
        pairs = aiter(run)
        waiting = asyncio.ensure_future(run.wait_result())
        reading = asyncio.ensure_future(anext(pairs))
        await turns(lambda: run._progress._news)
        reading.cancel()
        await asyncio.wait([reading])
        del reading
        if not stays:
            await pairs.aclose()  # type: ignore[attr-defined]
        gate.set()
        await waiting
        rest = [item.index for _, item in [pair async for pair in pairs]]
        assert sorted(rest) == ([*range(100)] if stays else [])

    @pytest.mark.parametrize("is_async", [True, False])
    async def test_what_was_reached_before_a_source_failed_is_in_the_results(
        self, broker: InMemoryBroker, *, is_async: bool
    ) -> None:
        numbers = failing(LookupError("source"), broken := asyncio.Event(), is_async=is_async)
        engine = ExecutionEngine(broker, FANS, max_parallel=1)
        run = engine.start({"numbers": numbers}, items=True)
        with pytest.raises(LookupError, match="source"):
            await run
        assert broken.is_set()
        assert run.status == "failed"
        assert run.results == {"abs[0]": 0, "abs[1]": 1}

    @pytest.mark.parametrize("is_async", [True, False])
    @pytest.mark.parametrize("how", ["awaits", "reads", "streams", "many", "map"])
    async def test_a_source_that_was_cancelled_itself_cancels_neither_the_run_nor_its_reader(
        self, broker: InMemoryBroker, how: str, *, is_async: bool
    ) -> None:
        numbers = failing(
            asyncio.CancelledError(),
            asyncio.Event(),
            is_async=is_async,
            wrap=(lambda number: {"number": number}) if how == "many" else int,
        )
        one = DAGBuilder().node(abs, inputs=["number"]).build()
        engine = ExecutionEngine(broker, one if how == "many" else FANS, max_parallel=1)
        stream: Any
        if how == "map":
            stream = await MapReduce.map(broker, abs, numbers)
        elif how == "many":
            stream = engine.execute_many(numbers)
        elif how == "streams":
            stream = engine.execute_async({"numbers": numbers})
        else:
            stream = engine.start({"numbers": numbers})
        with pytest.raises(RunError, match="raised CancelledError") as caught:
            if how == "awaits":
                await stream
            else:
                async for _ in stream:
                    pass
        assert not isinstance(caught.value, RunCancelledError)
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        if isinstance(stream, RunHandle):
            assert stream.status == "failed"
            assert stream.results == caught.value.results == {"abs[0]": 0, "abs[1]": 1}


class TestEvents:
    async def test_all_of_them_come_if_they_are_asked_for_before_the_loop_has_a_turn(
        self, broker: InMemoryBroker
    ) -> None:
        recorder = Recorder()
        run = ExecutionEngine(broker, CHAIN, listeners=[recorder]).start(TEXT, run_id="r")
        events = [event async for event in run.events()]
        assert events == recorder.events
        assert isinstance(events[0], RunStarted)
        assert isinstance(events[-1], RunFinished)
        assert [e.task_name for e in events if isinstance(e, NodeCompleted)] == ["words", "len"]

    @pytest.mark.parametrize("has_listener", [False, True])
    async def test_asked_for_later_they_come_from_then_on(
        self, broker: InMemoryBroker, *, has_listener: bool
    ) -> None:
        gate = Gate()

        class Late:
            async def on_event(self, event: Event) -> None:  # holds the run's first events
                await gate.open.wait()

        gate.dag.add_node(DAGNode(lambda slow: slow, name="after"))
        late = [Late()] if has_listener else []
        run = ExecutionEngine(broker, gate.dag, listeners=late).start()
        await gate.begun.wait()
        events = run.events()
        gate.open.set()
        told = [event async for event in events]
        kinds = [type(event) for event in told]
        assert kinds == [NodeCompleted, NodeStarted, NodeBegan, NodeCompleted, RunFinished]
        seq = told[0].seq  # of the events before, only the begins are not made for nobody
        assert seq == (7 if has_listener else 5)
        assert [event.seq for event in told] == [*range(seq, seq + 5)]

    async def test_several_readers_get_the_same(self, broker: InMemoryBroker) -> None:
        run = ExecutionEngine(broker, CHAIN).start(TEXT)
        first, second = run.events(), run.events()
        await run
        assert [e async for e in first] == [e async for e in second] != []

    async def test_they_are_seen_while_the_run_goes_on(self, broker: InMemoryBroker) -> None:
        gate = Gate()
        run = gate.start(broker)
        async for event in run.events():
            if isinstance(event, NodeStarted) and event.task_name == "slow":
                break
        assert run.status == "running"
        gate.open.set()
        await run

    async def test_they_are_of_this_run_alone(self, broker: InMemoryBroker) -> None:
        engine = ExecutionEngine(broker, CHAIN)
        one, other = engine.start(TEXT), engine.start(TEXT)
        events = one.events()
        await other
        assert {event.run_id async for event in events} == {one.run_id}

    async def test_of_a_run_that_has_ended_there_are_none(self, broker: InMemoryBroker) -> None:
        run = ExecutionEngine(broker, CHAIN).start(TEXT)
        await run
        assert [event async for event in run.events()] == []

    async def test_a_run_that_has_ended_holds_no_events_that_were_read(
        self, broker: InMemoryBroker
    ) -> None:
        run = ExecutionEngine(broker, CHAIN).start(TEXT)
        events = run.events()
        await run
        of_run = run._progress._in_progress.listeners
        assert len(of_run.notes) == WIDTH * 8
        assert len([event async for event in events]) == 8
        assert not of_run.notes

    @virtually
    async def test_a_reader_that_takes_none_does_not_hold_up_the_end(self) -> None:
        gate = Gate()
        gate.open.set()
        run = gate.start(InMemoryBroker())
        events = run.events()
        await run
        assert asyncio.get_running_loop().time() == 0.0
        assert isinstance(await anext(events), RunStarted)

    async def test_a_reader_that_lags_misses_the_oldest_and_the_log_says_so(
        self,
        broker: InMemoryBroker,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(listeners, "MOST_EVENTS", 2)
        run = ExecutionEngine(broker, CHAIN).start(TEXT, run_id="r")
        events = run.events()
        await run
        gap, *rest = [event async for event in events]
        assert [type(event) for event in rest] == [NodeCompleted, RunFinished]
        assert gap == Gap("r", rest[0].at, missed=6, seq=6)
        (line,) = [record.message for record in caplog.records]
        assert line == (
            "listener run.events() of run r lags by more than 2 events; 6 of them are left out"
        )

    async def test_they_are_read_on_the_runs_own_loop(self, broker: InMemoryBroker) -> None:
        gate = Gate()

        async def elsewhere() -> None:
            run.events()

        async with gate.start(broker) as run:
            with pytest.raises(RuntimeError, match="on another event loop"):
                await asyncio.to_thread(asyncio.run, elsewhere())

    async def test_whoever_reads_the_events_holds_the_run(self, broker: InMemoryBroker) -> None:
        engine = ExecutionEngine(broker, FANS, max_parallel=2)
        numbers = Numbers()
        async for event in engine.start({"numbers": numbers}).events():
            gc.collect()
            if isinstance(event, NodeCompleted) and event.index == 50:
                break
        await asyncio.wait_for(numbers.closed.wait(), 5)
        await turns(lambda: nothing_left(broker))


async def test_loops_that_a_timeout_interrupts_go_on_where_they_stopped(
    broker: InMemoryBroker,
) -> None:
    async def step(n: int) -> int:
        await asyncio.sleep(0.02)
        return n

    dag = DAGBuilder().node(step, inputs=["ns"], map_over="ns").build()
    engine = ExecutionEngine(broker, dag, max_parallel=1)
    async with engine.start({"ns": range(12)}, items="only") as run:
        found: list[Any] = []
        while len(found) < 12:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    async for _, item in run:
                        found.append(item.index)
    assert found == list(range(12))


class TestCancelling:
    async def test_it_stops_this_run_alone(self, broker: InMemoryBroker) -> None:
        gate = Gate()
        engine = ExecutionEngine(broker, gate.dag)
        one, other = (engine.start({"name": name}) for name in ("one", "other"))
        await turns(lambda: one.results and other.results)
        await gate.begun.wait()
        one.cancel()
        with pytest.raises(RunCancelledError) as caught:
            await one
        assert caught.value.results == one.results == {"quick": 1}
        assert (one.status, other.status) == ("cancelled", "running")
        assert gate.cancelled == ["one"]
        gate.open.set()
        assert await other == {"quick": 1, "slow": "other"}

    async def test_the_readers_next_read_raises_it(self, broker: InMemoryBroker) -> None:
        gate = Gate()
        run = gate.start(broker)
        await turns(lambda: run.results)  # a pair is unread
        run.cancel()
        with pytest.raises(RunCancelledError):
            await anext(aiter(run))

    async def test_a_reader_that_waits_gets_it(self, broker: InMemoryBroker) -> None:
        gate = Gate()
        run = gate.start(broker)
        with pytest.raises(RunCancelledError):
            async for _ in run:
                asyncio.get_running_loop().call_soon(run.cancel)

    @pytest.mark.parametrize("of_engine", [False, True])
    @pytest.mark.parametrize("number", range(12))
    async def test_it_works_in_any_turn_from_the_first_one_on(
        self, broker: InMemoryBroker, *, number: int, of_engine: bool
    ) -> None:
        gate = Gate()
        engine = ExecutionEngine(broker, gate.dag)
        run = engine.start()
        events = run.events()
        for _ in range(number):
            await asyncio.sleep(0)
        (engine if of_engine else run).cancel()
        with pytest.raises(RunCancelledError):
            await run
        assert run.status == "cancelled"
        assert gate.done == []
        told = [event async for event in events]
        if told:
            assert isinstance(told[-1], RunFinished)
            assert told[-1].outcome == "cancelled"
        assert nothing_left(broker)
        assert not engine._in_progress

    @pytest.mark.parametrize("of_engine", [False, True])
    async def test_before_the_first_turn_nothing_of_it_begins(
        self, broker: InMemoryBroker, *, of_engine: bool
    ) -> None:
        recorder = Recorder()
        engine = ExecutionEngine(broker, CHAIN, listeners=[recorder])
        run = engine.start(TEXT, run_id="r")
        (engine if of_engine else run).cancel()
        with pytest.raises(RunCancelledError, match="'r' was cancelled before it began"):
            await run
        assert recorder.events == []

    async def test_while_it_begins_it_ends_the_beginning(
        self, broker: InMemoryBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writer, "CLOSING_GRACE", 0.05)  # the journal does not answer

        class Slow(MemoryJournal):
            asked = asyncio.Event()

            async def create(self, *arguments: Any) -> None:
                self.asked.set()
                await asyncio.Event().wait()

        engine = ExecutionEngine(broker, CHAIN, journal=Slow())
        run = engine.start(TEXT, run_id="r")
        await Slow.asked.wait()
        run.cancel()
        with pytest.raises(RunCancelledError, match="'r' was cancelled before it began"):
            await run
        assert nothing_left(broker)

    async def test_it_works_from_a_thread(self, broker: InMemoryBroker) -> None:
        gate = Gate()
        run = gate.start(broker)
        await gate.begun.wait()
        await asyncio.to_thread(run.cancel)
        with pytest.raises(RunCancelledError):
            await run
        assert gate.cancelled == ["it"]

    async def test_twice_and_after_the_end_it_changes_nothing(self, broker: InMemoryBroker) -> None:
        gate = Gate()
        engine = ExecutionEngine(broker, gate.dag)
        run = engine.start()
        gate.open.set()
        await run
        run.cancel()
        run.cancel()
        assert run.status == "completed"
        assert [name async for name, _ in run] == ["quick", "slow"]

    async def test_the_engines_cancel_stops_it_too(self, broker: InMemoryBroker) -> None:
        gate = Gate()
        engine = ExecutionEngine(broker, gate.dag)
        runs = [engine.start() for _ in range(3)]
        await gate.begun.wait()
        assert repr(engine).endswith("3 runs in progress>")
        engine.cancel()
        for run in runs:
            assert isinstance((await run.wait_result()).error, RunCancelledError)
        assert nothing_left(broker)

    async def test_it_ends_a_run_that_waits_for_its_reader(self, broker: InMemoryBroker) -> None:
        numbers = Numbers()
        engine = ExecutionEngine(broker, FANS, max_parallel=2)
        run = engine.start({"numbers": numbers}, items="only")
        await turns(lambda: numbers.read >= 2)
        for _ in range(50):
            await asyncio.sleep(0)
        engine.cancel()
        await ended(run)
        assert run.status == "cancelled"
        assert numbers.closed.is_set()

    async def test_in_on_step_complete_it_ends_the_run(self, broker: InMemoryBroker) -> None:
        run: RunHandle
        engine = ExecutionEngine(broker, CHAIN, on_step_complete=lambda *pair: run.cancel())
        run = engine.start(TEXT)
        seen = []
        with pytest.raises(RunCancelledError) as caught:
            async for name, _ in run:
                seen.append(name)
        assert seen == []
        assert caught.value.results.keys() == run.results.keys() == {"words"}

    async def test_in_the_source_that_it_maps_over_it_ends_the_run(
        self, broker: InMemoryBroker
    ) -> None:
        run: RunHandle
        closed: list[bool] = []

        def numbers() -> Iterator[int]:
            try:
                yield 1
                run.cancel()
                yield 2
            finally:
                closed.append(True)

        run = ExecutionEngine(broker, FANS).start({"numbers": numbers()})
        with pytest.raises(RunCancelledError):
            await run
        assert closed
        assert nothing_left(broker)

    async def test_within_a_task_of_its_own_it_ends_the_run(self, broker: InMemoryBroker) -> None:
        async def suicidal() -> None:
            run.cancel()
            await asyncio.sleep(0)

        run = ExecutionEngine(broker, DAGBuilder().node(suicidal).build()).start()
        with pytest.raises(RunCancelledError):
            await run
        assert nothing_left(broker)


class TestBlock:
    async def test_leaving_it_cancels_and_waits_until_nothing_is_left(
        self, broker: InMemoryBroker
    ) -> None:
        gate = Gate()
        async with gate.start(broker) as run:
            await gate.begun.wait()
        assert run.status == "cancelled"
        assert gate.cancelled == ["it"]
        assert nothing_left(broker)

    async def test_an_exception_leaves_it_unchanged(self, broker: InMemoryBroker) -> None:
        gate, problem = Gate(), KeyError("mine")
        with pytest.raises(KeyError) as caught:
            async with gate.start(broker):
                await gate.begun.wait()
                raise problem
        assert caught.value is problem
        assert gate.cancelled == ["it"]
        assert nothing_left(broker)

    async def test_a_second_cancellation_does_not_cut_the_clean_up_short(
        self, broker: InMemoryBroker
    ) -> None:
        gate, cleaning, release = Gate(), asyncio.Event(), asyncio.Event()

        async def thorough() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cleaning.set()
                await release.wait()

        async def handle() -> None:
            async with ExecutionEngine(broker, DAGBuilder().node(thorough).build()).start():
                gate.begun.set()
                await asyncio.sleep(0)
                await asyncio.Event().wait()

        handling = asyncio.ensure_future(handle())
        await gate.begun.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        handling.cancel()
        await cleaning.wait()
        handling.cancel()
        await asyncio.sleep(0)
        assert not handling.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await handling
        assert nothing_left(broker)

    async def test_a_run_that_has_ended_stays_as_it_is(self, broker: InMemoryBroker) -> None:
        async with ExecutionEngine(broker, CHAIN).start(TEXT) as run:
            assert await run == WHOLE
        assert run.status == "completed"


class TestDropping:
    async def test_a_run_that_nobody_holds_goes_on_to_its_end(
        self, broker: InMemoryBroker, caplog: pytest.LogCaptureFixture
    ) -> None:
        gate = Gate()
        gate.start(broker)
        await gate.begun.wait()
        for _ in range(3):
            gc.collect()  # of the engine and the handle, and not of what runs
            await asyncio.sleep(0)
        gate.open.set()
        await turns(lambda: nothing_left(broker))
        assert gate.done == ["it"]
        assert not caplog.records

    async def test_a_run_to_which_nothing_else_refers_is_not_collected(
        self, broker: InMemoryBroker
    ) -> None:
        waited_for: list[weakref.ref[asyncio.Future[None]]] = []

        class Slow(MemoryJournal):
            async def create(self, *arguments: Any) -> None:
                future = asyncio.get_running_loop().create_future()
                waited_for.append(weakref.ref(future))
                await future
                await super().create(*arguments)

        called: list[str] = []
        dag = DAGBuilder().node(lambda: called.append("node"), name="node").build()
        ExecutionEngine(broker, dag, journal=Slow()).start(run_id="r")
        await turns(lambda: waited_for)
        gc.collect()
        future = waited_for[0]()
        assert future is not None
        future.set_result(None)
        await turns(lambda: nothing_left(broker))
        assert called == ["node"]

    async def test_what_is_unread_is_dropped_with_the_handle(self, broker: InMemoryBroker) -> None:
        gate = Gate()
        run = gate.start(broker)
        progress = run._progress
        await turns(lambda: progress._unread)
        del run
        await turns(lambda: not progress._unread)
        gate.open.set()
        await turns(progress.outcome.done)
        assert not progress._unread

    @pytest.mark.parametrize("dropped", ["before", "during", "after"])
    async def test_its_failure_is_one_line_in_the_log(
        self, broker: InMemoryBroker, caplog: pytest.LogCaptureFixture, dropped: str
    ) -> None:
        release = asyncio.Event()

        async def doomed() -> None:
            await release.wait()
            raise ValueError("doomed")

        dag = DAGBuilder().node(doomed).build()
        held = [ExecutionEngine(broker, dag).start(run_id="r7")]
        if dropped != "before":
            await turns(lambda: InMemoryHooks.of(broker).executions)
        if dropped == "after":
            release.set()
            await ended(held[0])
        held.clear()
        release.set()
        await turns(lambda: caplog.records)
        await turns(lambda: nothing_left(broker))
        gc.collect()
        (line,) = [record.message for record in caplog.records]
        assert line.startswith("run r7, which nobody held any more: node 'doomed' failed")

    async def test_a_failure_within_a_block_that_asks_nothing_is_in_the_log(
        self, broker: InMemoryBroker, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with ExecutionEngine(broker, FAILING).start(run_id="r8") as run:
            while run.status == "running":
                await asyncio.sleep(0)
        del run
        gc.collect()
        await turns(lambda: caplog.records)
        (line,) = [record.message for record in caplog.records]
        assert line.startswith("run r8, which nobody held any more")

    @pytest.mark.parametrize("how", ["await", "read", "result"])
    async def test_a_failure_that_somebody_has_seen_is_not_logged(
        self, broker: InMemoryBroker, caplog: pytest.LogCaptureFixture, how: str
    ) -> None:
        run = ExecutionEngine(broker, FAILING).start()
        with contextlib.suppress(NodeFailedError):
            if how == "await":
                await run
            elif how == "read":
                async for _ in run:
                    pass
            else:
                await run.wait_result()
        del run
        gc.collect()
        for _ in range(3):
            await asyncio.sleep(0)
        assert not caplog.records

    async def test_a_cancelled_run_is_no_failure(
        self, broker: InMemoryBroker, caplog: pytest.LogCaptureFixture
    ) -> None:
        gate = Gate()
        engine = ExecutionEngine(broker, gate.dag)
        engine.start()
        await gate.begun.wait()
        engine.cancel()
        await turns(lambda: nothing_left(broker))
        assert not caplog.records

    @pytest.mark.parametrize("items", [False, True, "only"])
    @pytest.mark.parametrize("reads", [0, 5])
    async def test_over_an_endless_source_it_is_cancelled(
        self, broker: InMemoryBroker, *, items: Any, reads: int
    ) -> None:
        numbers = Numbers()
        run = ExecutionEngine(broker, FANS, max_parallel=2).start({"numbers": numbers}, items=items)
        await turns(lambda: numbers.read >= 2)
        if items and reads:
            pairs = aiter(run)
            for _ in range(reads):
                await anext(pairs)
            del pairs
        gc.disable()
        try:
            del run  # collected at once: nothing of the run refers to the handle
            await asyncio.wait_for(numbers.closed.wait(), 5)
        finally:
            gc.enable()
        await turns(lambda: nothing_left(broker))

    async def test_over_an_endless_source_it_goes_on_for_as_long_as_somebody_waits(
        self, broker: InMemoryBroker
    ) -> None:
        stop = asyncio.Event()

        async def until_told() -> AsyncIterator[int]:
            for number in itertools.count():
                if stop.is_set():
                    return
                yield number
                await asyncio.sleep(0)

        engine = ExecutionEngine(broker, FANS)
        waiting = asyncio.ensure_future(engine.start({"numbers": until_told()}).wait_result())
        for _ in range(200):
            await asyncio.sleep(0)
        gc.collect()
        stop.set()
        sizes = (await waiting).return_value["sizes"]
        assert sizes == [*range(len(sizes))] != []

    async def test_over_an_endless_source_it_may_be_dropped_before_it_begins(
        self, broker: InMemoryBroker
    ) -> None:
        start_tasks_later()
        numbers = Numbers()
        engine = ExecutionEngine(broker, FANS)
        engine.start({"numbers": numbers})
        await turns(lambda: nothing_left(broker))
        assert numbers.read == 0
        assert not engine._in_progress

    async def test_it_may_be_dropped_in_another_thread(self, broker: InMemoryBroker) -> None:
        numbers = Numbers()
        held = [ExecutionEngine(broker, FANS, max_parallel=2).start({"numbers": numbers})]
        await turns(lambda: numbers.read >= 2)
        asyncio.get_running_loop().set_debug(True)  # which objects to calls from other threads
        await asyncio.to_thread(held.clear)
        await asyncio.wait_for(numbers.closed.wait(), 5)

    async def test_many_runs_leave_nothing(self, broker: InMemoryBroker) -> None:
        engine = ExecutionEngine(broker, CHAIN)
        for number in range(100):
            run = engine.start(TEXT)
            if number % 3 == 1:
                async for _ in run:
                    break
            if number % 3 == 2:
                run.cancel()
        del run
        await turns(lambda: nothing_left(broker))
        assert not engine._in_progress


async def _awaited_to_its_end(run: RunHandle, whole: dict[str, Any], _: random.Random) -> None:
    assert await run == whole


async def _read_to_its_end(run: RunHandle, whole: dict[str, Any], _: random.Random) -> None:
    seen = [name async for name, result in run if not isinstance(result, Item)]
    assert len(seen) == len(whole)
    assert await run == whole


async def _cancelled_some_time(run: RunHandle, _: object, chance: random.Random) -> None:
    for _ in range(chance.randrange(20)):
        await asyncio.sleep(0)
    run.cancel()
    error = (await run.wait_result()).error
    assert error is None or isinstance(error, RunCancelledError)


async def _left(run: RunHandle, _: object, chance: random.Random) -> None:
    async with run:
        async for _ in run:
            if not chance.randrange(5):
                break
    assert run.status in {"completed", "cancelled"}


async def _watched(run: RunHandle, whole: dict[str, Any], _: random.Random) -> None:
    waiting = asyncio.ensure_future(run.wait_result())
    kinds = [type(event) async for event in run.events()]
    assert (kinds[0], kinds[-1]) == (RunStarted, RunFinished)
    assert (await waiting).return_value == whole


async def _dropped(run: RunHandle, _: object, __: random.Random) -> None:
    pass


USES = [_awaited_to_its_end, _read_to_its_end, _cancelled_some_time, _left, _watched, _dropped]


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_is_done_to_runs_of_one_engine_the_others_give_what_they_should(
    broker: InMemoryBroker, seed: int
) -> None:
    chance = random.Random(seed)

    async def nap(number: int) -> int:
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        return number

    dag = (
        DAGBuilder()
        .node(nap, inputs=["numbers"], map_over="numbers", output="naps")
        .node(sum, name="total", inputs=["naps"])
        .build()
    )
    engine = ExecutionEngine(broker, dag, max_parallel=chance.choice([None, 1, 3]))

    def one(count: int) -> Coroutine[Any, Any, None]:
        numbers = [*range(count)]
        items = [False, True, "only"][chance.randrange(3)]
        whole: dict[str, Any] = {"total": sum(numbers)}
        if items != "only":
            whole["naps"] = numbers
        given = numbers if chance.randrange(2) else iter(numbers)
        run = engine.start({"numbers": given}, items=items)  # type: ignore[arg-type]
        return chance.choice(USES)(run, whole, chance)

    async with asyncio.TaskGroup() as group:
        for _ in range(40):
            group.create_task(one(chance.randrange(12)))
    await turns(lambda: nothing_left(broker))
    assert not engine._in_progress


class TestLoops:
    def test_a_run_that_is_held_as_its_loop_ends_is_cancelled(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        reported: list[Any] = []

        async def main() -> tuple[Gate, RunHandle]:
            asyncio.get_running_loop().set_exception_handler(lambda _, c: reported.append(c))
            gate = Gate()
            run = gate.start(InMemoryBroker())
            await gate.begun.wait()
            return gate, run

        gate, run = asyncio.run(main())
        assert gate.cancelled == ["it"]
        assert run.status == "cancelled"
        assert run.results == {"quick": 1}
        assert not reported
        assert not caplog.records
        with pytest.raises(RunCancelledError, match="with all tasks of its event loop"):
            asyncio.run(_awaited(run))

    def test_a_run_that_its_loop_ends_before_its_first_turn_is_cancelled(self) -> None:
        async def main() -> RunHandle:
            return ExecutionEngine(InMemoryBroker(), CHAIN).start(TEXT)

        run = asyncio.run(main())
        assert run.status == "cancelled"
        assert not run_handle._running

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_a_loop_that_was_closed_under_a_run_leaves_a_handle_that_harms_nothing(self) -> None:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # it reports the tasks that it has destroyed

        async def main() -> RunHandle:
            gate = Gate()
            run = gate.start(InMemoryBroker())
            await gate.begun.wait()
            return run

        run = loop.run_until_complete(main())
        loop.close()
        assert run.status == "cancelled"
        run.cancel()
        del run
        gc.collect()
        assert asyncio.run(_result_elsewhere()) == WHOLE
        gc.collect()
        assert not run_handle._running

    def test_a_run_in_progress_is_neither_read_nor_awaited_on_another_loop(self) -> None:
        ready, stop = threading.Event(), threading.Event()
        runs: list[RunHandle] = []

        async def elsewhere() -> None:
            gate = Gate()
            async with gate.start(InMemoryBroker()) as run:
                runs.append(run)
                await gate.begun.wait()
                ready.set()
                await asyncio.to_thread(stop.wait)

        async def read() -> None:
            async for _ in runs[0]:
                pass

        thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
        thread.start()
        ready.wait(10)
        try:
            with pytest.raises(RuntimeError, match="on another event loop"):
                asyncio.run(_awaited(runs[0]))
            with pytest.raises(RuntimeError, match="on another event loop"):
                asyncio.run(read())
        finally:
            stop.set()
            thread.join(10)
        assert runs[0].status == "cancelled"

    @virtually
    async def test_the_time_that_it_took_is_in_the_result(self) -> None:
        dag = DAGBuilder().node(functools.partial(asyncio.sleep, 2.5), name="nap").build()
        run = ExecutionEngine(InMemoryBroker(), dag).start()
        assert (await run.wait_result()).execution_time == 2.5


async def _awaited(run: RunHandle) -> dict[str, Any]:
    return await run


async def _result_elsewhere() -> dict[str, Any]:
    return await ExecutionEngine(InMemoryBroker(), CHAIN).start(TEXT)


async def listed(values: Stream[T]) -> list[T]:
    async with values.stream() as streamer:
        seen = [value async for value in streamer]
    return seen  # noqa: RET504 - outside of the block, which might keep an error back


def value_of(pair: tuple[str, Any], *_: object) -> int:
    value: int = pair[1].value
    return value


def is_even(number: int) -> bool:
    return number % 2 == 0


class TestStreams:
    async def test_the_engines_stream_takes_operators_and_is_left_early(
        self, broker: InMemoryBroker
    ) -> None:
        numbers = Numbers()
        engine = ExecutionEngine(broker, FANS, max_parallel=2)
        values: Stream[int] = engine.stream({"numbers": numbers}, items="only") | pipe.map(value_of)
        items = values | pipe.filter(is_even) | pipe.take(10)
        assert sorted(await listed(items)) == [*range(0, 20, 2)]
        assert numbers.closed.is_set()
        assert nothing_left(broker)

    async def test_nothing_is_begun_before_a_stream_is_read_and_each_reading_is_a_run(
        self, broker: InMemoryBroker
    ) -> None:
        engine = ExecutionEngine(broker, CHAIN)
        pairs = engine.stream(TEXT, outputs=iter(["words"]))
        await asyncio.sleep(0)
        assert not engine._in_progress
        for _ in range(2):
            assert await listed(pairs) == [("words", WHOLE["words"])]

    async def test_wrong_arguments_of_a_stream_are_raised_at_the_call(
        self, broker: InMemoryBroker
    ) -> None:
        with pytest.raises(TypeError):
            ExecutionEngine(broker, CHAIN).stream(5)  # type: ignore[arg-type]

    async def test_an_exception_within_a_stream_leaves_nothing(
        self, broker: InMemoryBroker
    ) -> None:
        gate = Gate()
        with pytest.raises(KeyError):
            async with ExecutionEngine(broker, gate.dag).stream().stream() as pairs:
                async for _ in pairs:
                    raise KeyError
        assert nothing_left(broker)

    async def test_a_run_takes_operators_and_goes_on_when_they_have_enough(
        self, broker: InMemoryBroker
    ) -> None:
        gate = Gate()
        run = gate.start(broker)
        first: Stream[tuple[str, Any]] = run | pipe.take(1)
        assert await listed(first) == [("quick", 1)]
        assert run.status == "running"
        gate.open.set()
        rest: Stream[tuple[str, Any]] = stream.iterate(run)
        assert await listed(rest) == [("slow", "it")]
        assert await run == {"quick": 1, "slow": "it"}

    async def test_a_run_of_a_pipeline_alone_is_cancelled_with_it_over_an_endless_source(
        self, broker: InMemoryBroker
    ) -> None:
        numbers = Numbers()
        engine = ExecutionEngine(broker, FANS, max_parallel=2)
        first = engine.start({"numbers": numbers}, items="only") | pipe.take(5)
        assert len(await listed(first)) == 5
        del first
        gc.collect()
        await asyncio.wait_for(numbers.closed.wait(), 5)


def test_it_is_started_late_enough_for_its_events_also_where_tasks_start_eagerly() -> None:
    async def main() -> list[Any]:
        factory = vars(asyncio).get("eager_task_factory")
        if factory is None:
            pytest.skip("since Python 3.12")
        asyncio.get_running_loop().set_task_factory(factory)
        run = ExecutionEngine(InMemoryBroker(), CHAIN).start(TEXT)
        return [event async for event in run.events()]

    events = run_virtually(main())
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunFinished)


class ErrorsError(Exception):
    """Counts what it is made of, and so is false."""

    def __len__(self) -> int:
        return 0


async def test_an_error_that_is_false_ends_a_run_as_any_other() -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1
        raise ErrorsError

    run = ExecutionEngine(InMemoryBroker(), FANS).start({"numbers": numbers()})
    with pytest.raises(ErrorsError):
        await run
    with pytest.raises(ErrorsError):
        async for _ in run:
            pass
    assert run.status == "failed"
    result = await run.wait_result()
    assert isinstance(result.error, ErrorsError)


async def test_an_error_that_is_false_is_that_of_its_node() -> None:
    async def check() -> None:
        raise ErrorsError

    dag = DAGBuilder().node(check).build()
    with pytest.raises(NodeFailedError) as raised:
        await ExecutionEngine(InMemoryBroker(), dag).execute()
    assert isinstance(raised.value.__cause__, ErrorsError)
