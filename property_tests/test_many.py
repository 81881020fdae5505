"""Many inputs of a random graph have the results of as many runs of their own."""

from __future__ import annotations

import asyncio
import warnings
from collections import Counter
from contextlib import aclosing
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from taskiq import InMemoryBroker

from property_tests.elements import Graph, Sequential, Stage, graphs
from property_tests.strategies import LIMITS
from property_tests.test_elements import PASS_BY, Seen, check_order, same
from taskiq_flow import ExecutionEngine, MemoryJournal
from taskiq_flow.engine.arguments import PassBy
from taskiq_flow.journal.history import restore_run
from taskiq_flow.values.handle import with_values
from tests.virtual_clock import run_virtually


def inputs_of(graph: Graph, count: int) -> list[dict[str, Any]]:
    """The lists of a graph, cut so that each input has others."""
    return [{key: values[: n + 1] for key, values in graph.lists.items()} for n in range(count)]


@settings(max_examples=settings().max_examples // 2)  # each runs a graph several times
@given(
    graphs(),
    LIMITS,
    st.integers(0, 4),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([0, 0, 1, 5]),
    PASS_BY,
)
def test_many_inputs_have_the_results_of_as_many_runs(
    graph: Graph,
    limit: int | None,
    inputs: int,
    task_limit: int,
    ordered: bool,  # noqa: FBT001 - hypothesis passes it by name
    reading: int,
    pass_by: PassBy,
) -> None:
    given_inputs = inputs_of(graph, inputs)

    async def main() -> tuple[list[Any], list[Any]]:
        engine = ExecutionEngine(
            InMemoryBroker(),
            Stage(graph).dag(),
            limit,
            on_error="collect",
            type_check="off",
            pass_by=pass_by,
        )
        alone = [(n, await read(await engine.execute(each))) for n, each in enumerate(given_inputs)]
        many = engine.execute_many(given_inputs, task_limit=task_limit, ordered=ordered, whole=True)
        together = []
        async for n, results in many:
            together.append((n, await read(results)))
            await asyncio.sleep(reading)
        return alone, together

    with warnings.catch_warnings(action="ignore"):
        alone, together = run_virtually(main())
    if not ordered:
        together.sort(key=lambda pair: pair[0])
    assert [(n, shown(results)) for n, results in together] == [
        (n, shown(results)) for n, results in alone
    ]


@settings(max_examples=settings().max_examples // 4)
@given(graphs(), LIMITS, st.integers(1, 3), st.sampled_from([False, True]), st.integers(0, 12))
def test_pairs_of_each_of_many_runs_come_in_order(
    graph: Graph,
    limit: int | None,
    inputs: int,
    items: bool,  # noqa: FBT001 - hypothesis passes it by name
    stop_after: int,
) -> None:
    given_inputs = inputs_of(graph, inputs)

    async def session(journal: MemoryJournal, most: int | None, *, resumes: bool) -> None:
        engine = ExecutionEngine(
            InMemoryBroker(),
            Stage(graph).dag(),
            limit,
            on_error="collect",
            type_check="off",
            journal=journal,
        )
        each = [Seen(graph) for _ in given_inputs]
        triples = engine.execute_many(
            given_inputs, task_limit=2, items=items, run_id="run", resume=resumes
        )
        async with aclosing(triples):
            async for number, name, value in triples:
                each[number].take(name, value)
                if most is not None and sum(len(seen.order) for seen in each) > most:
                    break
        for seen, lists in zip(each, given_inputs, strict=True):
            check_order(seen, Sequential(Graph(graph.nodes, lists)).evaluate(), items)

    async def main() -> None:
        journal = MemoryJournal()
        await session(journal, stop_after, resumes=False)
        await session(journal, None, resumes=True)

    with warnings.catch_warnings(action="ignore"):
        run_virtually(main())


@settings(max_examples=settings().max_examples // 2)
@given(graphs(), LIMITS, st.integers(1, 4), st.integers(0, 12), st.booleans(), st.booleans())
def test_many_inputs_that_are_resumed_have_the_same_results(
    graph: Graph,
    limit: int | None,
    inputs: int,
    stop_after: int,
    whole: bool,  # noqa: FBT001 - hypothesis passes them by name
    replay: bool,  # noqa: FBT001 - as above
) -> None:
    given_inputs = inputs_of(graph, inputs)

    async def main() -> None:
        journal = MemoryJournal()

        def engine(stage: Stage) -> ExecutionEngine:
            options: dict[str, Any] = {"on_error": "collect", "type_check": "off"}
            return ExecutionEngine(InMemoryBroker(), stage.dag(), limit, journal=journal, **options)

        alone = [Stage(graph) for _ in given_inputs]
        results = [
            shown(await engine(stage).execute(each))
            for stage, each in zip(alone, given_inputs, strict=True)
        ]
        stream = engine(Stage(graph)).execute_many(
            given_inputs, task_limit=2, run_id="run", whole=whole
        )
        count = 0
        async with aclosing(stream):
            async for _ in stream:
                count += 1
                if count > stop_after:
                    break
        kept = (await restore_run(journal, "run")).finished
        stage = Stage(graph)
        again = engine(stage).execute_many(
            given_inputs, task_limit=2, run_id="run", resume=True, whole=True, replay=replay
        )
        found = {number: shown(each) async for number, each in again}
        assert found == {
            number: each
            for number, each in enumerate(results)
            if replay or number not in kept.get("inputs", ())
        }
        left = [one for n, one in enumerate(alone) if n not in kept.get("inputs", ())]
        assert stage.calls <= sum((one.calls for one in left), Counter())

    with warnings.catch_warnings(action="ignore"):
        run_virtually(main())


async def read(results: dict[str, Any]) -> dict[str, Any]:
    """The results with values in the places of handles."""
    return {key: await with_values(value) for key, value in results.items()}


def shown(results: dict[str, Any]) -> dict[str, Any]:
    return {key: same(value) for key, value in results.items()}
