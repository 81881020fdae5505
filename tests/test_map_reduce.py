"""MapReduce: lists and endless sources, streamed or gathered, over the engine's own stream."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import taskiq
from taskiq import AsyncTaskiqTask, InMemoryBroker, TaskiqResultTimeoutError

from taskiq_flow import (
    BindingError,
    CycleError,
    DAGBuilder,
    ExecutionEngine,
    MapReduce,
    NodeFailed,
    NodeFailedError,
    NodeFailure,
    RunCancelledError,
    RunError,
)
from taskiq_flow.completion.in_memory_hooks import InMemoryHooks
from taskiq_flow.dataflow.rows import MOST_IN_FLIGHT
from tests.memory import growth
from tests.recording import AtOnce, Recorder
from tests.virtual_clock import virtually


async def square(number: int) -> int:
    return number * number


async def fail_at_seven(number: int) -> int:
    if number == 7:
        raise ValueError("seven")
    return number


def total(numbers: list[int]) -> int:
    return sum(numbers)


class Source:
    """Numbers without end, counting how many were read."""

    def __init__(self) -> None:
        self.read = 0
        self.closed = False

    def __iter__(self) -> Iterator[int]:
        while True:
            self.read += 1
            yield self.read - 1

    async def __aiter__(self) -> AsyncIterator[int]:
        try:
            for number in iter(self):
                yield number
        finally:
            self.closed = True


async def other_tasks_end() -> None:
    gc.collect()
    await asyncio.sleep(0)
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others, timeout=5)


async def test_results_come_in_the_order_of_items(broker: InMemoryBroker) -> None:
    async def slow_first(number: int) -> int:
        await asyncio.sleep(0.01 if number == 0 else 0)
        return number

    mapped = await MapReduce.map(broker, slow_first, range(5))
    assert (await mapped.wait_result()).return_value == [0, 1, 2, 3, 4]


async def test_streamed_results_come_in_order_of_completion(broker: InMemoryBroker) -> None:
    async def slow_first(number: int) -> int:
        await asyncio.sleep(0.01 if number == 0 else 0)
        return number * 10

    mapped = await MapReduce.map(broker, slow_first, range(3))
    assert [pair async for pair in mapped] == [(1, 10), (2, 20), (0, 0)]


@pytest.mark.parametrize("items", [[], (), iter([]), {}])
async def test_nothing_maps_to_nothing(broker: InMemoryBroker, items: Any) -> None:
    mapped = await MapReduce.map(broker, square, items)
    assert (await mapped.wait_result()).return_value == []


async def test_it_behaves_as_a_taskiq_task(broker: InMemoryBroker) -> None:
    release = asyncio.Event()

    async def wait(number: int) -> int:
        await release.wait()
        return number

    mapped = await MapReduce.map(broker, wait, [1, 2])
    assert isinstance(mapped, AsyncTaskiqTask)
    assert mapped.task_id
    assert not await mapped.is_ready()
    with pytest.raises(TaskiqResultTimeoutError):
        await mapped.wait_result(check_interval=0.001, timeout=0.01)
    release.set()
    (gathered,) = await taskiq.gather(mapped)
    assert gathered.return_value == [1, 2]
    assert await mapped.is_ready()
    assert (await mapped.get_result()).return_value == [1, 2]
    first, second = await asyncio.gather(mapped.wait_result(), mapped.wait_result())
    assert first.return_value == second.return_value == [1, 2]


async def test_it_starts_at_once_and_runs_to_its_end_unread(broker: InMemoryBroker) -> None:
    done: list[int] = []

    async def note(number: int) -> None:
        done.append(number)

    await MapReduce.map(broker, note, range(300), max_parallel=5)
    await other_tasks_end()
    assert sorted(done) == list(range(300))


class TestFailures:
    async def test_a_failing_item_makes_the_result_an_error(self, broker: InMemoryBroker) -> None:
        mapped = await MapReduce.map(broker, fail_at_seven, range(20))
        result = await mapped.wait_result()
        assert result.is_err
        assert isinstance(result.error, NodeFailedError)
        assert result.error.task_name == "mapped[7]"
        assert repr(result.error.__cause__) == "ValueError('seven')"
        assert result.error.results["mapped[3]"] == 3
        with pytest.raises(NodeFailedError):
            result.raise_for_error()

    async def test_a_stream_raises_it_after_what_had_arrived(self, broker: InMemoryBroker) -> None:
        seen = []
        with pytest.raises(NodeFailedError, match=r"'mapped\[7\]' failed"):
            async for index, _ in await MapReduce.map(
                broker, fail_at_seven, range(20), max_parallel=1
            ):
                seen.append(index)
        assert seen == [0, 1, 2, 3, 4, 5, 6]

    async def test_a_reduction_of_a_failed_map_has_failed_with_its_error(
        self, broker: InMemoryBroker
    ) -> None:
        called: list[Any] = []
        mapped = await MapReduce.map(broker, fail_at_seven, range(20))
        reduced = await MapReduce.reduce(broker, called.append, mapped, "mapped")
        result = await reduced.wait_result()
        assert result.error is (await mapped.wait_result()).error
        assert called == []

    async def test_a_source_that_raises_ends_the_map_with_the_results_so_far(
        self, broker: InMemoryBroker
    ) -> None:
        def source() -> Iterator[int]:
            yield from range(5)
            raise LookupError("source is broken")

        # With room for one item, the source is read on once its last item has a result.
        mapped = await MapReduce.map(broker, square, source(), max_parallel=1)
        error = (await mapped.wait_result()).error
        assert isinstance(error, RunError)
        assert repr(error.__cause__) == "LookupError('source is broken')"
        assert error.results == {f"mapped[{n}]": n * n for n in range(5)}
        assert "5 results" in str(error)

    async def test_a_stream_raises_what_its_source_raised(self, broker: InMemoryBroker) -> None:
        def source() -> Iterator[int]:
            yield 1
            raise LookupError("source is broken")

        mapped = await MapReduce.map(broker, square, source())
        with pytest.raises(LookupError, match="source is broken"):
            async for _ in mapped:
                pass

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"items": 5}, TypeError, "items is 5"),
            ({"max_parallel": 0}, ValueError, "max_parallel is 0"),
            ({"map_func": lambda a, b: a}, BindingError, "no other for 'b'"),
            ({"map_func": lambda: 1}, BindingError, "no parameter left"),
        ],
    )
    async def test_bad_arguments_are_refused_before_anything_is_sent(
        self,
        broker: InMemoryBroker,
        arguments: dict[str, Any],
        error: type[Exception],
        message: str,
    ) -> None:
        with pytest.raises(error, match=message):
            await MapReduce.map(broker, **{"map_func": square, "items": [1], **arguments})

    async def test_a_reducer_that_cannot_be_called_is_refused_before_the_map_is_sent(
        self, broker: InMemoryBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(broker, "kick", pytest.fail)
        with pytest.raises(BindingError, match="no other for 'b'"):
            await MapReduce.map_reduce(broker, square, [1], lambda a, b: a)
        with pytest.raises(CycleError):
            await MapReduce.map_reduce(broker, square, [1], total, "same", "same")


class TestReduce:
    async def test_the_whole_list_is_reduced_in_one_call(self, broker: InMemoryBroker) -> None:
        calls: list[list[int]] = []

        def note(mapped: list[int]) -> int:
            calls.append(mapped)
            return sum(mapped)

        final = await MapReduce.map_reduce(broker, square, range(10), note)
        assert (await final.wait_result()).return_value == 285
        assert calls == [[number * number for number in range(10)]]

    async def test_the_options_of_a_map_hold_before_a_reduction(
        self, broker: InMemoryBroker
    ) -> None:
        final = await MapReduce.map_reduce(broker, fail_at_seven, range(10), total, fallback=70)
        assert (await final.wait_result()).return_value == 108
        with pytest.raises(TypeError, match="did you mean 'retry'"):
            await MapReduce.map_reduce(broker, square, [1], total, retries=3)  # type: ignore[call-overload]

    async def test_the_list_is_bound_to_input_name(self, broker: InMemoryBroker) -> None:
        def scaled(factor: int = 2, squares: list[int] | None = None) -> int:
            return factor * sum(squares or [])

        mapped = await MapReduce.map(broker, square, [1, 2, 3], output="squares")
        reduced = await MapReduce.reduce(broker, scaled, mapped, "squares", output="scaled")
        assert (await reduced.wait_result()).return_value == 28

    async def test_any_task_of_taskiq_can_be_reduced(self, broker: InMemoryBroker) -> None:
        @broker.task
        async def numbers() -> list[int]:
            return [1, 2, 3]

        reduced = await MapReduce.reduce(broker, total, await numbers.kiq(), "numbers")
        assert (await reduced.wait_result()).return_value == 6

    async def test_a_reducer_that_fails_is_an_error(self, broker: InMemoryBroker) -> None:
        final = await MapReduce.map_reduce(broker, square, [1], lambda mapped: mapped[5])
        result = await final.wait_result()
        assert isinstance(result.error, NodeFailedError)
        assert isinstance(result.error.__cause__, IndexError)


class TestEndlessSources:
    @pytest.mark.parametrize("limit", [3, None])
    async def test_reading_stops_while_nobody_takes(
        self, broker: InMemoryBroker, limit: int | None
    ) -> None:
        source = Source()
        mapped = await MapReduce.map(broker, square, iter(source), max_parallel=limit)
        for _ in range(3000):
            await asyncio.sleep(0)
        window = limit or MOST_IN_FLIGHT
        assert window <= source.read <= window + 2
        pairs = aiter(mapped)
        taken = [await anext(pairs) for _ in range(1000)]
        assert sorted(taken) == [(number, number * number) for number in range(1000)]
        assert source.read <= 1000 + window + 2
        await pairs.aclose()

    async def test_an_async_source_is_closed_when_the_loop_is_left(
        self, broker: InMemoryBroker
    ) -> None:
        source = Source()
        async for index, value in await MapReduce.map(broker, square, aiter(source)):
            assert value == index * index
            if index > 10:
                break
        await other_tasks_end()
        assert source.closed

    async def test_a_generator_is_closed_when_the_loop_is_left(
        self, broker: InMemoryBroker
    ) -> None:
        closed = asyncio.Event()

        def numbers() -> Iterator[int]:
            try:
                yield from itertools.count()
            finally:
                closed.set()

        mapped = await MapReduce.map(broker, square, numbers())
        async for index, value in mapped:
            assert value == index * index
            break
        await asyncio.wait_for(closed.wait(), 5)

    async def test_a_map_that_is_dropped_unread_is_cancelled(self, broker: InMemoryBroker) -> None:
        source = Source()
        mapped = await MapReduce.map(broker, square, aiter(source))
        for _ in range(1000):
            await asyncio.sleep(0)
        gc.disable()
        try:
            del mapped  # goes at once: nothing of the map holds it
            while not source.closed:
                await asyncio.sleep(0)
        finally:
            gc.enable()

    async def test_memory_does_not_grow_with_the_number_of_items(
        self, broker: InMemoryBroker
    ) -> None:
        mapped = await MapReduce.map(broker, square, itertools.count(), max_parallel=8)
        assert await growth(mapped, every=170) < 33


@virtually
async def test_max_parallel_holds_for_items_too() -> None:
    running = AtOnce()

    async def work(number: int) -> None:
        with running:
            await asyncio.sleep(1)

    mapped = await MapReduce.map(InMemoryBroker(), work, range(12), max_parallel=4)
    await mapped.wait_result()
    assert running.most == 4
    assert asyncio.get_running_loop().time() == pytest.approx(3.0)


class TestCancelling:
    @pytest.mark.parametrize("kind", ["map", "reduce"])
    async def test_cancel_works_from_the_first_moment(
        self, broker: InMemoryBroker, kind: str
    ) -> None:
        mapped = await MapReduce.map(broker, asyncio.sleep, itertools.repeat(60))
        if kind == "map":
            mapped.cancel()
            assert isinstance((await mapped.wait_result()).error, RunCancelledError)
        else:
            reduced = await MapReduce.reduce(broker, total, mapped, "mapped")
            reduced.cancel()
            assert isinstance((await reduced.wait_result()).error, asyncio.CancelledError)

    async def test_cancelling_a_run_stops_the_map_that_a_node_waits_for(
        self, broker: InMemoryBroker
    ) -> None:
        done: list[int] = []

        async def item(number: int) -> None:
            await asyncio.sleep(0.001)
            done.append(number)
            if len(done) == 3:
                engine.cancel()

        async def fan_out() -> None:
            mapped = await MapReduce.map(broker, item, range(100), max_parallel=1)
            await mapped.wait_result()

        engine = ExecutionEngine(broker, DAGBuilder().node(fan_out).build())
        with pytest.raises(RunCancelledError):
            await engine.execute()
        await other_tasks_end()
        assert len(done) <= 4

    async def test_one_waiter_that_gives_up_leaves_the_map_to_the_other(
        self, broker: InMemoryBroker
    ) -> None:
        release = asyncio.Event()

        async def wait(number: int) -> int:
            await release.wait()
            return number

        mapped = await MapReduce.map(broker, wait, [1, 2])
        impatient = asyncio.ensure_future(mapped.wait_result())
        patient = asyncio.ensure_future(mapped.wait_result())
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.sleep(0)
        release.set()
        assert (await patient).return_value == [1, 2]
        assert impatient.cancelled()

    async def test_asking_whether_it_is_ready_takes_nothing_away(
        self, broker: InMemoryBroker
    ) -> None:
        mapped = await MapReduce.map(broker, square, range(3))
        while not await mapped.is_ready():
            await asyncio.sleep(0)
        assert [value async for _, value in mapped] == [0, 1, 4]

    async def test_a_source_of_unknown_length_is_ready_some_time(
        self, broker: InMemoryBroker
    ) -> None:
        mapped = await MapReduce.map(broker, square, iter(range(1000)), max_parallel=3)
        (gathered,) = await taskiq.gather(mapped)
        assert len(gathered.return_value) == 1000

    async def test_an_endless_map_that_was_asked_and_dropped_is_cancelled(
        self, broker: InMemoryBroker
    ) -> None:
        source = Source()
        mapped = await MapReduce.map(broker, square, aiter(source))
        assert not await mapped.is_ready()
        while source.read < 1000:
            await asyncio.sleep(0)
        del mapped
        await other_tasks_end()
        assert source.closed

    async def test_a_map_may_be_dropped_in_another_thread(self, broker: InMemoryBroker) -> None:
        source = Source()
        held = [await MapReduce.map(broker, square, aiter(source), max_parallel=2)]
        for _ in range(1000):  # until it waits for a reader
            await asyncio.sleep(0)
        asyncio.get_running_loop().set_debug(True)  # which objects to calls from other threads
        await asyncio.to_thread(held.clear)
        await other_tasks_end()
        assert source.closed

    async def test_leaving_a_map_that_has_failed_unread_logs_nothing(
        self, broker: InMemoryBroker, caplog: pytest.LogCaptureFixture
    ) -> None:
        async for _ in await MapReduce.map(broker, fail_at_seven, range(20)):
            while InMemoryHooks.of(broker).run_ids:
                await asyncio.sleep(0)
            break
        await other_tasks_end()
        gc.collect()
        assert not caplog.records

    async def test_a_failed_map_that_nobody_holds_is_logged(
        self, broker: InMemoryBroker, caplog: pytest.LogCaptureFixture
    ) -> None:
        mapped = await MapReduce.map(broker, fail_at_seven, range(20))
        del mapped
        await other_tasks_end()
        await asyncio.sleep(0)
        assert "which nobody held any more: node 'mapped[7]' failed" in caplog.text

    async def test_a_map_is_read_once(self, broker: InMemoryBroker) -> None:
        mapped = await MapReduce.map(broker, square, range(3))
        assert [index async for index, _ in mapped] == [0, 1, 2]
        with pytest.raises(RuntimeError, match="streamed once or waited for"):
            await anext(aiter(mapped))

    async def test_a_map_that_is_waited_for_after_its_stream_says_so(
        self, broker: InMemoryBroker
    ) -> None:
        mapped = await MapReduce.map(broker, square, range(3))
        assert [index async for index, _ in mapped] == [0, 1, 2]
        reduced = await MapReduce.reduce(broker, total, mapped, "numbers", "total")
        for task in (mapped, reduced):
            error = (await task.wait_result()).error
            assert isinstance(error, RuntimeError)
            assert "has been read" in str(error)

    async def test_a_stream_that_is_closed_before_it_begins_takes_nothing_away(
        self, broker: InMemoryBroker
    ) -> None:
        mapped = await MapReduce.map(broker, square, iter(range(3)))
        await aiter(mapped).aclose()
        assert (await mapped.wait_result()).return_value == [0, 1, 4]


class TestOptions:
    async def test_each_item_is_tried_again_and_falls_back(self, broker: InMemoryBroker) -> None:
        calls: list[int] = []

        def flaky(number: int) -> int:
            calls.append(number)
            if number == 2:
                raise ValueError
            return number

        mapped = await MapReduce.map(broker, flaky, [1, 2], retry=2, fallback=-1)
        assert (await mapped.wait_result()).return_value == [1, -1]
        assert sorted(calls) == [1, 2, 2]

    async def test_a_failing_item_is_collected_in_its_place(self, broker: InMemoryBroker) -> None:
        recorder = Recorder()
        mapped = await MapReduce.map(
            broker, abs, [-1, "x", -3], on_error="collect", listeners=[recorder]
        )
        values: list[Any] = (await mapped.wait_result()).return_value
        assert values[::2] == [1, 3]
        assert isinstance(values[1], NodeFailure)
        assert [event.index for event in recorder.of(NodeFailed)] == [1]

    async def test_a_wrong_keyword_is_told_before_anything_is_started(
        self, broker: InMemoryBroker
    ) -> None:
        with pytest.raises(TypeError, match="no argument 'retries'; did you mean 'retry'"):
            await MapReduce.map(broker, abs, [1], retries=3)  # type: ignore[call-overload]
