"""Left, cancelled or closed at any moment: nothing stays behind, and the broker works on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from property_tests.model import GraphSpec, evaluate
from property_tests.stage import Stage
from property_tests.strategies import DELAYS, LONGEST_CLEANING, graphs
from taskiq_flow import ExecutionEngine, RunCancelledError
from tests.virtual_clock import virtual_loop, virtually

Leaving = Literal["closed", "dropped", "raised", "closed by another task"]

GRAPHS = graphs(cleaning=True)
MOMENTS = st.integers(0, 16).map(lambda halves: halves / 2)
"""Seconds; those between whole ones are moments in which no node begins or ends."""

MUCH_LATER = 100


class ReaderError(Exception):
    """Comes from the body of a reader's loop."""


async def _check_aftermath(
    engine: ExecutionEngine, stage: Stage, graph: GraphSpec, started: set[str]
) -> None:
    """Nothing is left, nothing starts any more, and the same engine runs the graph once more."""
    stage.check_nothing_is_left()
    await asyncio.sleep(MUCH_LATER)
    assert set(stage.started) == started
    assert set(stage.executions.values()) <= {1}
    stage.forget()
    assert await engine.execute() == evaluate(graph).values
    stage.check_nothing_is_left()


async def _take(pairs: AsyncGenerator[tuple[str, Any], None], number: int) -> None:
    """Read some pairs, and hold on to nothing."""
    while number:
        if await anext(pairs, None) is None:
            return
        number -= 1


async def _leave(pairs: AsyncGenerator[tuple[str, Any], None], number: int, how: Leaving) -> float:
    """Returns when it was left."""
    await _take(pairs, number)
    left_at = virtual_loop().time()
    if how == "closed":
        await pairs.aclose()
    elif how == "closed by another task":
        await asyncio.create_task(pairs.aclose())
    elif how == "raised":
        with pytest.raises(ReaderError):
            async with aclosing(pairs):
                raise ReaderError
    return left_at


@given(
    GRAPHS,
    st.integers(0, 12),
    st.sampled_from(["closed", "dropped", "raised", "closed by another task"]),
    st.none() | st.integers(1, 3),
)
@virtually
async def test_a_stream_left_after_any_pair_leaves_nothing_behind(
    graph: GraphSpec, number: int, how: Leaving, limit: int | None
) -> None:
    stage = Stage(graph)
    engine = ExecutionEngine(stage.broker, stage.dag, limit)
    left_at = await _leave(engine.execute_async(), number, how)
    if how == "dropped":
        await asyncio.sleep(0.5)  # closed by then, and no node begins at half seconds
    started = set(stage.started)
    if how == "dropped":
        await asyncio.sleep(LONGEST_CLEANING)
    stage.check_stopped(left_at)
    await _check_aftermath(engine, stage, graph, started)


async def _gather(
    engine: ExecutionEngine, pairs: list[tuple[str, Any]], reading: int | None
) -> None:
    """Read a run to its end; ``None``: with ``execute``, which reads at once."""
    if reading is None:
        await engine.execute()
        return
    async with aclosing(engine.execute_async()) as stream:
        async for pair in stream:
            pairs.append(pair)
            await asyncio.sleep(reading)


@given(GRAPHS, MOMENTS, st.none() | DELAYS)
@virtually
async def test_cancel_stops_at_once_and_hands_over_the_results_so_far(
    graph: GraphSpec, moment: float, reading: int | None
) -> None:
    stage = Stage(graph)
    engine = ExecutionEngine(stage.broker, stage.dag)
    pairs: list[tuple[str, Any]] = []
    at_cancel: list[tuple[set[str], int]] = []

    def cancel() -> None:
        engine.cancel()
        at_cancel.append((set(stage.started), len(pairs)))

    timer = virtual_loop().call_at(moment, cancel)
    error: RunCancelledError | None = None
    try:
        await _gather(engine, pairs, reading)
    except RunCancelledError as raised:
        error = raised
    timer.cancel()
    _check_cancelled(graph, error, pairs, moment)
    if error is not None:
        assert (set(stage.started), len(pairs)) == at_cancel[0]
        stage.check_stopped(moment)
    await _check_aftermath(engine, stage, graph, set(stage.started))


def _check_cancelled(
    graph: GraphSpec,
    error: RunCancelledError | None,
    pairs: list[tuple[str, Any]],
    moment: float,
) -> None:
    expected = evaluate(graph)
    last_end = max(expected.ends.values(), default=0)
    assert all(expected.results[name] == result for name, result in pairs)
    if error is None:
        assert last_end <= moment
        return
    keys = {node.name: node.outputs for node in graph}
    before = {key for name, end in expected.ends.items() if end < moment for key in keys[name]}
    until = {key for name, end in expected.ends.items() if end <= moment for key in keys[name]}
    assert before <= set(error.results) <= until
    assert error.results == {key: expected.values[key] for key in error.results}
    assert not error.failures
    assert not error.skipped


@given(GRAPHS, st.lists(MOMENTS, min_size=1, max_size=3), st.none() | DELAYS)
@virtually
async def test_a_consumer_cancelled_at_any_moments_leaves_nothing_behind(
    graph: GraphSpec, moments: list[float], reading: int | None
) -> None:
    stage = Stage(graph)
    engine = ExecutionEngine(stage.broker, stage.dag)
    loop = virtual_loop()
    consumer = loop.create_task(_gather(engine, [], reading))
    timers = [loop.call_at(moment, consumer.cancel) for moment in moments]
    await asyncio.wait([consumer])
    for timer in timers:
        timer.cancel()
    if not consumer.cancelled():
        consumer.result()
        assert max(evaluate(graph).ends.values(), default=0) <= min(moments)
    stage.check_stopped(min(moments))
    await _check_aftermath(engine, stage, graph, set(stage.started))
