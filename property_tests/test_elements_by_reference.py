"""Any graph of mapped nodes whose values stay with the workers ends as one evaluated in sequence.

The engine and the worker are real, and share a process and a virtual clock. Runs are left at random
and resumed by an engine that passes other values by reference.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator

from hypothesis import given, settings
from hypothesis import strategies as st

from property_tests.elements import Graph, Sequential, graphs
from property_tests.strategies import LIMITS
from property_tests.test_elements import (
    PASS_BY,
    Seen,
    check_items,
    check_limits,
    check_values,
    with_values_read,
)
from taskiq_flow import ExecutionEngine, MemoryJournal
from taskiq_flow.engine.arguments import PassBy
from taskiq_flow.testing import LocalBroker, LocalNotices
from tests.local_flow import with_flow
from tests.virtual_clock import run_virtually


@settings(max_examples=settings().max_examples // 4)  # each is two engines and a worker
@given(graphs(), LIMITS, PASS_BY, PASS_BY, st.none() | st.integers(0, 12))
def test_a_run_gives_the_outcomes_of_a_sequential_evaluation(
    graph: Graph, limit: int | None, pass_by: PassBy, pass_by_later: PassBy, stop_after: int | None
) -> None:
    expected = Sequential(graph).evaluate()

    async def main() -> None:
        broker = LocalBroker()
        flow = with_flow(broker, LocalNotices())
        seen, journal = Seen(graph, broker=broker), MemoryJournal()
        dag = seen.stage.dag()

        def engine(pass_by: PassBy) -> ExecutionEngine:
            return ExecutionEngine(
                broker,
                dag,
                limit,
                on_error="collect",
                type_check="off",
                pass_by=pass_by,
                journal=journal,
            )

        async with broker.worker():
            pairs = engine(pass_by).execute_async(graph.lists, run_id="run", items=True)
            if stop_after is not None:
                await left_after(stop_after, pairs)
                seen.stage.most.clear()
                pairs = engine(pass_by_later).resume("run", items=True)
            async for name, value in pairs:
                seen.take(name, await with_values_read(value))
        await flow.shutdown()
        check_values(seen, expected, "collect", items=True)
        check_items(seen, expected, "collect", items=True)
        if stop_after is None:
            check_limits(seen, limit)

    with warnings.catch_warnings(action="ignore"):
        run_virtually(main())


async def left_after(count: int, pairs: AsyncGenerator[object, None]) -> None:
    """Read so many pairs of a run, and leave it."""
    async for _ in pairs:
        count -= 1
        if count <= 0:
            break
    await pairs.aclose()
