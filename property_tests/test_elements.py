"""Any graph of mapped nodes, under any limit and policy, ends as one evaluated in sequence."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from typing import Any, Literal

from hypothesis import given
from hypothesis import strategies as st
from taskiq import AsyncBroker, InMemoryBroker

from property_tests.elements import (
    MISSING,
    Graph,
    Node,
    Outcome,
    Path,
    Sequential,
    Stage,
    graphs,
    index_of,
    named,
    parts_of,
)
from property_tests.room import room_is_kept
from property_tests.strategies import LIMITS
from taskiq_flow import (
    ExecutionEngine,
    Item,
    MemoryJournal,
    NodeFailedError,
    NodeFailure,
    NodeSkipped,
    RunError,
    RunFailedError,
)
from taskiq_flow.engine.arguments import PassBy
from taskiq_flow.engine.run_spec import Items, OnError
from taskiq_flow.events import Index
from taskiq_flow.values.handle import with_values
from tests.virtual_clock import run_virtually

POLICIES: st.SearchStrategy[OnError] = st.sampled_from(["raise", "continue", "collect"])
GivenAs = Literal["list", "iterator", "async"]
GIVEN_AS: st.SearchStrategy[GivenAs] = st.sampled_from(["list", "iterator", "async"])
PASS_BY: st.SearchStrategy[PassBy] = st.sampled_from(["value", "reference", 110])
ITEMS: st.SearchStrategy[Items] = st.sampled_from([False, True, "only"])


class Seen:
    """What a reader gets of a run."""

    def __init__(
        self, graph: Graph, given_as: GivenAs = "list", broker: AsyncBroker | None = None
    ) -> None:
        self.stage = Stage(graph, broker)
        self.given_as = given_as
        self.values: dict[str, Any] = {}
        self.items: dict[str, dict[Index, Any]] = {}
        self.order: dict[str, dict[Path | None, int]] = {}  # by node: when its pairs came
        self.error: RunError | None = None

    async def read(
        self,
        on_error: OnError,
        limit: int | None,
        items: Items,
        reading: int = 0,
        pass_by: PassBy = "value",
    ) -> None:
        with warnings.catch_warnings(action="ignore"):  # an input that no node takes
            engine = ExecutionEngine(
                InMemoryBroker(),
                self.stage.dag(),
                limit,
                on_error=on_error,
                type_check="off",
                pass_by=pass_by,
            )
            try:
                async for name, value in engine.execute_async(self.inputs(), items=items):
                    self.take(name, await with_values_read(value))
                    await asyncio.sleep(reading)
            except RunError as error:
                self.error = error

    def inputs(self) -> dict[str, Any]:
        """The lists of the run. One that no node takes whole may be given without a length."""
        graph = self.stage.graph
        whole = {key for node in graph.nodes for key in node.keys if key not in node.mapped}
        whole |= {key for node in graph.nodes for factor in node.map_over[1:] for key, _ in factor}
        mapped = {key for node in graph.nodes for key in node.mapped}
        own = Sequential(graph).evaluate().shapes.keys
        # What is read once more for each element of another list has to have a length.
        whole |= {
            part[0]
            for shape in own.values()
            for axis in shape.own[1:]
            for part in parts_of(axis)
            if isinstance(part, tuple) and part[1] == 1
        }
        return {
            key: values if key in whole or key not in mapped else as_given(values, self.given_as)
            for key, values in graph.lists.items()
        }

    def take(self, name: str, value: Any) -> None:
        if isinstance(value, Item):
            row = self.items.setdefault(name, {})
            assert value.index not in row, "an element is yielded once"
            assert name not in self.values, "a list comes behind its last item"
            row[value.index] = value.value
        else:
            assert name not in self.values
            self.values[name] = value
        pairs = self.order.setdefault(name, {})
        pairs[path_of(value)] = sum(map(len, self.order.values()))


def path_of(value: Any) -> Path | None:
    """The path of an element; ``None`` for the pair of a node as a whole."""
    if not isinstance(value, Item):
        return None
    return value.index if isinstance(value.index, tuple) else (value.index,)


async def with_values_read(value: Any) -> Any:
    """What a reader is given, with values in the places of handles."""
    if isinstance(value, Item):
        return Item(value.index, await with_values(value.value))
    return await with_values(value)


def as_given(values: list[Any], given_as: GivenAs) -> Any:
    async def slowly() -> AsyncIterator[Any]:
        for number, value in enumerate(values):
            await asyncio.sleep(number % 3)
            yield value

    return {"list": values, "iterator": iter(values), "async": slowly()}[given_as]


def run(
    graph: Graph,
    on_error: OnError,
    limit: int | None,
    items: Items,
    reading: int,
    given_as: GivenAs = "list",
    pass_by: PassBy = "value",
) -> Seen:
    async def main() -> Seen:
        seen = Seen(graph, given_as)
        with room_is_kept(limit, items):
            await seen.read(on_error, limit, items, reading, pass_by)
        return seen

    return run_virtually(main())


def shown(outcome: Outcome) -> Any:
    """An outcome as ``same`` has a value of the stream."""
    return outcome.value if outcome.ending == "completed" else outcome.ending


def same(value: Any) -> Any:
    if isinstance(value, list):
        return [same(part) for part in value]
    if isinstance(value, NodeFailure):
        return "failed"
    if isinstance(value, NodeSkipped):
        return "failed" if value.reason == "failure" else "skipped"
    return value


@given(graphs(), POLICIES, LIMITS, ITEMS, st.integers(0, 3), GIVEN_AS, PASS_BY)
def test_a_run_gives_the_outcomes_of_a_sequential_evaluation(
    graph: Graph,
    on_error: OnError,
    limit: int | None,
    items: Items,
    reading: int,
    given_as: GivenAs,
    pass_by: PassBy,
) -> None:
    expected = Sequential(graph).evaluate()
    seen = run(graph, on_error, limit, items, reading, given_as, pass_by)
    has_failures = any(o.ending == "failed" for o in expected.whole.values())
    assert (seen.error is not None) == (has_failures and on_error != "collect")
    if on_error == "raise" and has_failures:
        assert isinstance(seen.error, NodeFailedError)
    elif has_failures and on_error == "continue":
        assert isinstance(seen.error, RunFailedError)
    check_values(seen, expected, on_error, items)
    if not (on_error == "raise" and has_failures):
        check_items(seen, expected, on_error, items)
    check_order(seen, expected, items)
    check_limits(seen, limit)


def check_values(seen: Seen, expected: Sequential, on_error: OnError, items: Items) -> None:
    for node in seen.stage.graph.nodes:
        name, outcome = node.name, expected.whole[node.name]
        if name not in seen.values:
            ended_early = on_error == "raise" and seen.error is not None
            has_items = bool(node.map_over) or node.generator
            is_uneven = () in expected.uneven.get(name, ())
            only_items = has_items and items == "only" and not is_uneven
            never = on_error != "collect" and outcome.ending != "completed"
            assert ended_early or only_items or never, name
            continue
        value = seen.values[name]
        if name in expected.elements and isinstance(value, list):
            assert same(value) == expected.lists(name, shown=True), name
        else:
            assert same(value) == shown(outcome), name


def check_items(seen: Seen, expected: Sequential, on_error: OnError, items: Items) -> None:
    generators = {node.name for node in seen.stage.graph.nodes if node.generator}
    for name in generators & seen.items.keys():
        own = expected.elements.get(name, {})
        broken = {} if on_error != "collect" else own
        assert {index: same(value) for index, value in seen.items[name].items()} == {
            **{index_of(path): item for path, item in expected.items.get(name, {}).items()},
            **{index_of(p): o.ending for p, o in broken.items() if o.ending != "completed"},
            **uneven_of(name, expected, on_error),
        }
    for name, outcomes in expected.elements.items():
        if name in generators:
            continue
        given = seen.items.get(name, {})
        if not items:
            assert not given
            continue
        kept = {
            index_of(path): shown(outcome)
            for path, outcome in outcomes.items()
            if outcome.ending == "completed" or on_error == "collect"
        }
        kept |= uneven_of(name, expected, on_error)
        assert {index: same(value) for index, value in given.items()} == kept


def check_order(seen: Seen, expected: Sequential, items: Items) -> None:
    """A pair comes behind all pairs of what its node depends on, or its element."""
    for name, pairs in seen.order.items():
        own = len(expected.shapes.keys[name].own)
        for path, number in pairs.items():
            element = named(name, path[:own]) if path is not None and own else name
            # One that stands for a list that never came to be was made of nothing else.
            for other, at in expected.takes.get(element, ()):
                place = at[: expected.depth(other)]
                for where, earlier in seen.order.get(other, {}).items():
                    if where is None and place and items:  # it is of its elements that this is made
                        continue
                    if where is None or where[: len(place)] == place:
                        assert earlier < number, (element, path, other, where)


def uneven_of(name: str, expected: Sequential, on_error: OnError) -> dict[Index, Any]:
    """What stands for the places at which lists within others differ in length."""
    if on_error != "collect":
        return {}
    return {index_of(path): "failed" for path in expected.uneven.get(name, ()) if path}


def check_limits(seen: Seen, limit: int | None) -> None:
    if limit is not None:
        assert seen.stage.most["all"] <= limit
    for node in seen.stage.graph.nodes:
        if node.limit is not None:
            assert seen.stage.most[node.name] <= node.limit


@given(graphs(), LIMITS)
def test_each_element_is_executed_once(graph: Graph, limit: int | None) -> None:
    expected = Sequential(graph).evaluate()
    seen = run(graph, "collect", limit, items=False, reading=0)
    assert seen.stage.calls.total() == expected.calls.total()


@given(graphs(), LIMITS, st.data())
def test_a_resumed_run_gives_the_same_and_runs_nothing_that_was_finished(
    graph: Graph, limit: int | None, data: st.DataObject
) -> None:
    expected = Sequential(graph).evaluate()

    async def main() -> None:
        first, second = Seen(graph), Seen(graph)
        journal, stop_after = MemoryJournal(), data.draw(st.integers(0, 8))
        done: set[tuple[str, Index]] = set()

        def engine(of: Seen) -> ExecutionEngine:
            return ExecutionEngine(
                InMemoryBroker(),
                of.stage.dag(),
                limit,
                on_error="collect",
                type_check="off",
                journal=journal,
            )

        stream = engine(first).execute_async(graph.lists, run_id="run", items=True)
        async for name, value in stream:
            if isinstance(value, Item) and not isinstance(value.value, (NodeFailure, NodeSkipped)):
                done.add((name, value.index))
            if len(done) >= stop_after:
                break
        await stream.aclose()
        async for name, value in engine(second).resume("run", items=True):
            second.take(name, value)
        check_values(second, expected, "collect", items=True)
        check_items(second, expected, "collect", items=True)
        check_order(second, expected, items=True)
        total = sum(
            count for (name, _), count in second.stage.calls.items() if name in expected.elements
        )
        again = made_of_failures(graph, expected)
        left = sum(
            1 + node.retries
            for node in graph.nodes
            for path in expected.elements.get(node.name, {})
            if (node.name in again or (node.name, index_of(path)) not in done)
            and expected.calls[named(node.name, path)]
        )
        assert total <= left

    with warnings.catch_warnings(action="ignore"):
        run_virtually(main())


def made_of_failures(graph: Graph, expected: Sequential) -> set[str]:
    """The nodes that may have run though one before them had failed, which is tried again."""
    found: set[str] = set()
    for node in graph.nodes:
        before = {key.removesuffix(".failures") for key in (*node.keys, *node.after)}
        has_failed = any(expected.whole[key].ending == "failed" for key in before)
        if before & found or (node.join == "ended" and has_failed):
            found.add(node.name)
    return found


def over(*keys: str) -> tuple[tuple[tuple[str, int], ...], ...]:
    return (tuple((key, 1) for key in keys),)


def test_the_model_says_what_a_reader_would_expect() -> None:
    """The model itself, on a graph that is small enough to be read."""
    graph = Graph(
        (
            Node("double", ("xs",), over("xs")),
            Node("total", ("double",)),
            Node("share", ("double", "total"), over("double")),
        ),
        {"xs": [1, 2]},
    )
    found = Sequential(graph).evaluate()
    assert {p: o.ending for p, o in found.elements["share"].items()} == {
        (0,): "completed",
        (1,): "completed",
    }
    assert found.calls == {"double[0]": 1, "double[1]": 1, "total": 1, "share[0]": 1, "share[1]": 1}
    assert found.whole["double"].value == found.lists("double")
    assert MISSING not in repr(found.whole)
