"""A run of mapped nodes whose log is cut anywhere goes on to the values of an undisturbed one."""

from __future__ import annotations

import warnings
from collections import Counter
from contextlib import aclosing
from typing import Any
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from taskiq import InMemoryBroker

from property_tests.elements import Graph, Sequential, graphs, named
from property_tests.strategies import LIMITS
from property_tests.test_elements import (
    GIVEN_AS,
    ITEMS,
    GivenAs,
    Seen,
    check_items,
    check_order,
    check_values,
    made_of_failures,
)
from taskiq_flow import ExecutionEngine, Lease, MemoryJournal
from taskiq_flow.engine.run_spec import Items
from taskiq_flow.journal.records import COMPLETED, FINISHED, SESSION, Record, chunk, read_chunk
from tests.virtual_clock import run_virtually


@given(graphs(), LIMITS, ITEMS, st.booleans(), GIVEN_AS, st.integers(1, 3), st.data())
def test_a_run_is_resumed_from_any_part_of_its_log(
    graph: Graph,
    limit: int | None,
    items: Items,
    replay: bool,  # noqa: FBT001 - hypothesis passes it by name
    given_as: GivenAs,
    at_once: int,
    data: st.DataObject,
) -> None:
    expected = Sequential(graph).evaluate()

    async def session(
        seen: Seen, journal: MemoryJournal, items: Items, *, replay: bool = True, resumes: bool
    ) -> None:
        engine = ExecutionEngine(
            InMemoryBroker(),
            seen.stage.dag(),
            limit,
            on_error="collect",
            type_check="off",
            journal=journal,
        )
        inputs: dict[str, Any] = seen.inputs()
        if resumes:
            inputs = {key: value for key, value in inputs.items() if not isinstance(value, list)}
            pairs = engine.resume("run", inputs=inputs, items=items, replay=replay)
        else:
            pairs = engine.execute_async(inputs, run_id="run", items=items)
        async with aclosing(pairs):
            async for name, value in pairs:
                seen.take(name, value)

    async def main() -> None:
        whole = MemoryJournal()
        await session(Seen(graph, given_as), whole, data.draw(ITEMS), resumes=False)
        cut = cut_anywhere(await log_of(whole), data)
        journal = await journal_with(cut)
        done = {entry.name for entry in cut if entry.kind == COMPLETED}
        again = made_of_failures(graph, expected)
        second, third = Seen(graph, given_as), Seen(graph, given_as)
        await session(second, journal, items, replay=replay, resumes=True)
        if replay:
            check_values(second, expected, "collect", items)
            check_items(second, expected, "collect", items)
        check_order(second, expected, items)
        check_nothing_ran_again(second, expected, done, again)
        # What one session has passed over is there for the next one.
        await session(third, journal, items=True, resumes=True)
        check_values(third, expected, "collect", items=True)
        check_items(third, expected, "collect", items=True)
        check_order(third, expected, items=True)
        all_done = {name for name, count in expected.calls.items() if count} - failed(expected)
        check_nothing_ran_again(third, expected, all_done, again)

    with (
        warnings.catch_warnings(action="ignore"),
        patch("taskiq_flow.journal.finished.AT_ONCE", at_once),
    ):
        run_virtually(main())


async def log_of(journal: MemoryJournal) -> list[Record]:
    return [entry async for data in journal.read("run") for entry in read_chunk("run", data)]


def cut_anywhere(log: list[Record], data: st.DataObject) -> list[Record]:
    """The log up to some place. What is finished stands behind what it tells of, or is lost."""
    begin = next(place for place, entry in enumerate(log) if entry.kind == SESSION)
    part = log[: data.draw(st.integers(begin + 1, len(log)))]
    if data.draw(st.booleans()):
        return part
    return [entry for entry in part if entry.kind != FINISHED]  # as earlier versions wrote it


async def journal_with(log: list[Record]) -> MemoryJournal:
    journal, lease = MemoryJournal(), Lease("engine")
    await journal.create("run", lease, chunk(entry.encoded() for entry in log))
    await journal.release("run", lease)
    return journal


def failed(expected: Sequential) -> set[str]:
    found = {name for name, outcome in expected.whole.items() if outcome.ending == "failed"}
    return found | {
        named(name, path)
        for name, outcomes in expected.elements.items()
        for path, outcome in outcomes.items()
        if outcome.ending == "failed"
    }


def check_nothing_ran_again(
    seen: Seen, expected: Sequential, done: set[str], again: set[str]
) -> None:
    """Each node was executed for elements that were not done, and once for each of these."""
    executed: Counter[str] = Counter()
    for (name, _), count in seen.stage.calls.items():
        executed[name] += count
    for name, count in executed.items():
        elements = [named(name, path) for path in expected.elements.get(name, ())] or [name]
        left = [each for each in elements if name in again or each not in done]
        assert count <= sum(expected.calls[each] for each in left), name
