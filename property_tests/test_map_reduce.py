"""A map over any source: results in the order of items, or an error; never too much at once."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import Any, Literal

from hypothesis import given
from hypothesis import strategies as st
from taskiq import TaskiqResult

from property_tests.mapping import Mapping, MapSpec
from property_tests.model import BrokenError
from property_tests.stage import check_nothing_is_left
from property_tests.strategies import DELAYS, maps
from taskiq_flow import MapReduce, MapReduceResult, NodeFailedError, RunCancelledError
from tests.virtual_clock import run_virtually, virtual_loop, virtually

Leaving = Literal["closed", "dropped", "cancelled"]

MUCH_LATER = 200


async def _map(mapping: Mapping) -> MapReduceResult[Any]:
    return await MapReduce.map(
        mapping.broker, mapping.task(), mapping.items(), max_parallel=mapping.spec.limit
    )


def _check_aftermath(mapping: Mapping) -> None:
    check_nothing_is_left(mapping.broker)
    assert len(mapping.started) == len(mapping.ended)
    assert not mapping.source_is_open
    assert mapping.traffic.most_in_flight <= mapping.spec.window


def _result(mapping: Mapping) -> TaskiqResult[list[object]]:
    """Wait for a map to its end."""

    async def main() -> TaskiqResult[list[object]]:
        result = await (await _map(mapping)).wait_result()
        _check_aftermath(mapping)
        return result

    return run_virtually(main())


@given(maps(failing=True))
def test_the_result_is_the_list_in_the_order_of_items_or_an_error_that_carries_the_others(
    spec: MapSpec,
) -> None:
    mapping = Mapping(spec)
    result = _result(mapping)
    spans = spec.spans()
    failing = [end for (_, end), item in zip(spans, spec.items, strict=True) if item.fails]
    assert result.is_err == bool(failing)
    assert mapping.most_ahead_of_tasks <= spec.window
    if not failing:
        assert result.return_value == [spec.value(index) for index in range(len(spec.items))]
        assert {i: (mapping.started[i], mapping.ended[i]) for i in mapping.started} == dict(
            enumerate(spans)
        )
        return
    error, over = result.error, min(failing)
    assert isinstance(error, NodeFailedError)
    assert isinstance(error.__cause__, BrokenError)
    (index,) = error.__cause__.args
    assert error.task_name == f"mapped[{index}]"
    assert spans[index][1] == over
    before = {i for i, (_, end) in enumerate(spans) if end < over}
    until = {i for i, (_, end) in enumerate(spans) if end <= over and not spec.items[i].fails}
    names = {f"mapped[{i}]": spec.value(i) for i in until}
    assert {f"mapped[{i}]" for i in before} <= set(error.results) <= set(names)
    assert error.results == {name: names[name] for name in error.results}
    assert all(start <= over for start in mapping.started.values())


@given(maps(kinds=("generator", "async generator")))
def test_a_source_that_raises_ends_the_map_with_its_own_error(spec: MapSpec) -> None:
    mapping = Mapping(spec)
    mapping.source_error = OSError("the source broke off")
    error = _result(mapping).error
    assert error is not None
    assert error.__cause__ is mapping.source_error


@given(maps(failing=True), DELAYS)
def test_a_stream_gives_each_value_once_and_reads_no_further_ahead_than_allowed(
    spec: MapSpec, reading: int
) -> None:
    mapping = Mapping(spec)

    async def main() -> tuple[list[int], BaseException | None]:
        taken = []
        try:
            async for index, value in await _map(mapping):
                assert value == spec.value(index)
                mapping.taken += 1
                taken.append(index)
                await asyncio.sleep(reading)
        except NodeFailedError as error:
            return taken, error.__cause__
        else:
            return taken, None
        finally:
            _check_aftermath(mapping)

    taken, cause = run_virtually(main())
    _check_taken(mapping, taken, cause)


def _check_taken(mapping: Mapping, taken: list[int], cause: BaseException | None) -> None:
    spec, ended = mapping.spec, mapping.ended
    ends = [ended[index] for index in taken]
    assert ends == sorted(ends)
    assert len(taken) == len(set(taken))
    # Beyond the window: a pair on its way to the reader, and the next, waiting to follow it.
    assert mapping.most_ahead_of_reader <= spec.window + 2
    if cause is None:
        assert len(taken) == len(spec.items)
        assert not any(item.fails for item in spec.items)
    else:
        (index,) = cause.args
        assert spec.items[index].fails
        assert {other for other in ended if ended[other] < ended[index]} <= set(taken)


@given(maps(), st.integers(1, 8), st.sampled_from(["closed", "dropped", "cancelled"]))
@virtually
async def test_a_stream_left_after_any_pair_leaves_nothing_behind(
    spec: MapSpec, number: int, how: Leaving
) -> None:
    mapping = Mapping(spec)

    if how == "dropped":
        await _map(mapping)
        await asyncio.sleep(MUCH_LATER)
        assert spec.kind != "list" or len(mapping.ended) == len(spec.items)
    else:
        await _leave(await _map(mapping), number, how)
        started = len(mapping.started)
        _check_aftermath(mapping)
        await asyncio.sleep(MUCH_LATER)
        assert len(mapping.started) == started
    _check_aftermath(mapping)


async def _leave(mapped: MapReduceResult[Any], number: int, how: Leaving) -> None:
    """Close the stream after some pairs, or cancel the map after as many seconds and a half."""
    loop = virtual_loop()
    if how == "cancelled":
        timer = loop.call_at(number + 0.5, mapped.cancel)
        with suppress(RunCancelledError):
            async for _ in mapped:
                pass
        timer.cancel()
        assert loop.time() <= number + 0.5
    else:
        async with aclosing(aiter(mapped)) as pairs:
            while number and await anext(pairs, None) is not None:
                number -= 1
            left_at = loop.time()
        assert loop.time() == left_at
