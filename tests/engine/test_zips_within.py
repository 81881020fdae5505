"""Lists of one element that are taken together or multiplied, and the failures of one element."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    Failure,
    GraphError,
    Item,
    NodeFailedError,
    NodeFailure,
    NodeSkipped,
    OutputShapeError,
    Product,
    RunFailedError,
)
from tests.memory import growth
from tests.virtual_clock import virtually


async def words(text: str) -> list[str]:
    return text.split()


async def marks(text: str) -> list[str]:
    """As many as the text has words, or as it says itself."""
    count = text.rpartition(":")[-1]
    return list("!?.-"[: int(count) if count.isdigit() else len(text.split())])


async def joined(word: Any, mark: Any) -> str:
    return f"{word}{mark}"


def marking(map_over: Any = ("words", "marks")) -> DAGBuilder:
    """A graph over one text."""
    builder = DAGBuilder().node(words).node(marks)
    return builder.node(joined, inputs=["words", "marks"], map_over=map_over)


def library(map_over: Any) -> DAGBuilder:
    """The same over many texts, by hand."""
    builder = DAGBuilder()
    builder.node(words, inputs=["texts"], map_over="texts")
    builder.node(marks, inputs=["texts"], map_over="texts")
    return builder.node(joined, inputs=["words", "marks"], map_over=map_over)


def engine_of(builder: DAGBuilder, **options: Any) -> ExecutionEngine:
    return ExecutionEngine(InMemoryBroker(), builder.build(), **options)


async def results_of_many(builder: DAGBuilder, texts: list[str], **options: Any) -> Any:
    engine = engine_of(builder, **options)
    many = engine.execute_many(({"text": text} for text in texts), ordered=True, whole=True)
    return [results async for _, results in many]


# Zips


@pytest.mark.parametrize("limit", [None, 1])
async def test_two_lists_of_one_element_are_taken_together(limit: int | None) -> None:
    engine = engine_of(library({"words": 2, "marks": 2}), max_parallel=limit)
    results = await engine.execute({"texts": ["a bc", "", "d"]})
    assert results["joined"] == [["a!", "bc?"], [], ["d!"]]


async def test_lists_of_different_lists_are_taken_together_at_both_levels() -> None:
    builder = DAGBuilder()
    builder.node(words, inputs=["texts"], map_over="texts")
    builder.node(joined, inputs=["words", "rows"], map_over={"words": 2, "rows": 2})
    results = await engine_of(builder).execute({"texts": ["a bc", "d"], "rows": [[1, 2], [3]]})
    assert results["joined"] == [["a1", "bc2"], ["d3"]]


@pytest.mark.parametrize("limit", [None, 1])
async def test_a_graph_that_takes_lists_together_runs_for_many_inputs(limit: int | None) -> None:
    found = await results_of_many(marking(), ["a bc", "", "d"], max_parallel=limit)
    assert [results["joined"] for results in found] == [["a!", "bc?"], [], ["d!"]]


@virtually
async def test_elements_go_on_when_the_later_of_both_lists_is_there() -> None:
    async def slow(text: str) -> list[str]:
        await asyncio.sleep(len(text))
        return list(text)

    async def quick(text: str) -> list[str]:
        return list(text)

    builder = DAGBuilder().node(quick, inputs=["texts"], map_over="texts")
    builder.node(slow, inputs=["texts"], map_over="texts")
    builder.node(joined, inputs=["quick", "slow"], map_over={"quick": 2, "slow": 2})
    stream = engine_of(builder).execute_async({"texts": ["abc", "d"]}, items="only")
    found = [(name, item.index) async for name, item in stream]
    assert found.index(("joined", (1, 0))) < found.index(("slow", 0))
    assert len(found) == 8


async def test_items_of_a_generator_are_taken_together_with_a_list_of_its_element() -> None:
    async def made(text: str) -> AsyncIterator[str]:
        for letter in text:
            yield letter

    builder = DAGBuilder().node(made).node(list, name="listed", inputs=["text"])
    builder.node(joined, inputs=["made", "listed"], map_over=["made", "listed"])
    found = await results_of_many(builder, ["abc", "", "d"], max_parallel=2)
    assert [results["joined"] for results in found] == [["aa", "bb", "cc"], [], ["dd"]]


@virtually
async def test_a_generator_goes_on_when_a_shorter_list_beside_it_has_ended() -> None:
    async def made() -> AsyncIterator[int]:
        for number in range(9):
            yield number

    builder = DAGBuilder().node(made, window=1)
    builder.node(joined, name="pairs", inputs=["made", "signs"], map_over=Product("made", "signs"))
    builder.node(joined, inputs=["pairs", "few"], map_over=["pairs", "few"])
    engine = engine_of(builder, on_error="collect")
    results = await engine.execute({"signs": ["!"], "few": []})
    assert len(results["pairs"]) == 9
    assert isinstance(results["joined"], NodeFailure)


@pytest.mark.parametrize("titles", [["A", "B", "C"], ["A", "B"]])
@virtually
async def test_generators_wait_for_items_that_are_taken_within_two_lists_together(
    titles: list[str],
) -> None:
    """Where the other list is shorter, nobody takes the items of the last one, which goes on."""
    made: Counter[str] = Counter()
    leads: list[int] = []

    async def links(page: str) -> AsyncIterator[int]:
        for number in range(40):
            made[page] += 1
            yield number
            await asyncio.sleep(0)

    async def slowly(title: str, link: int) -> tuple[str, int]:
        leads.append(made[title.lower()] - link)
        await asyncio.sleep(1)
        return title, link

    builder = DAGBuilder().node(links, inputs=["pages"], map_over="pages", window=4)
    builder.node(slowly, inputs=["titles", "links"], map_over={"titles": 1, "links": 2})
    engine = engine_of(builder, max_parallel=2, on_error="collect")
    results = await engine.execute({"pages": list("abc"), "titles": titles})
    assert results["links"] == [list(range(40))] * 3
    assert len(leads) == 40 * len(titles)
    assert max(leads) <= 4 + 2
    assert isinstance(results["slowly"], NodeFailure) == (len(titles) < 3)


# Lists that differ in length


@pytest.mark.parametrize("items", [False, True])
async def test_lists_that_differ_in_length_fail_once_for_their_element(items: bool) -> None:
    builder = library({"words": 2, "marks": 2})
    builder.node(len, name="count", inputs=["joined"], map_over="joined")
    stream = engine_of(builder, on_error="collect").execute_async(
        {"texts": ["a b", "c d:1", "e"]}, items=items
    )
    found = [pair async for pair in stream]
    results = {name: value for name, value in found if not isinstance(value, Item)}
    first, failure, last = results["joined"]
    assert (first, last) == (["a!", "b?"], ["e!"])
    assert isinstance(failure, NodeFailure)
    assert (failure.task_name, failure.index) == ("joined[1]", 1)
    assert isinstance(failure.error, OutputShapeError)
    assert "'joined[1]' maps over lists together that differ in length: 'marks' has 1, " in str(
        failure.error
    )
    assert [type(each) for each in results["count"]] == [int, NodeSkipped, int]
    of_items = [value.value for name, value in found if name == "joined" and type(value) is Item]
    kinds = {type(value) for value in of_items}
    assert kinds == ({str, NodeFailure} if items else set())
    assert ("c!" in of_items) == items  # the common part runs


async def test_under_raise_and_continue_the_run_fails_for_the_element() -> None:
    inputs = {"texts": ["a b", "c d:1"]}
    with pytest.raises(NodeFailedError) as raised:
        await engine_of(library({"words": 2, "marks": 2})).execute(inputs)
    assert raised.value.task_name == "joined[1]"
    with pytest.raises(RunFailedError) as failed:
        await engine_of(library({"words": 2, "marks": 2}), on_error="continue").execute(inputs)
    assert list(failed.value.failures) == ["joined[1]"]
    assert "joined" not in failed.value.results


async def test_of_many_inputs_only_the_one_with_such_lists_fails() -> None:
    builder = marking().node(len, name="count", inputs=["joined"])
    found = await results_of_many(builder, ["a b", "c d:1", "e"], on_error="collect")
    assert [results["count"] for results in (found[0], found[2])] == [2, 1]
    assert isinstance(found[1]["joined"], NodeFailure)
    assert isinstance(found[1]["count"], NodeSkipped)
    assert found[1]["words"] == ["c", "d:1"]


async def test_where_lists_of_all_elements_differ_in_length_each_is_without_what_takes_them() -> (
    None
):
    """As in a run of the inner graph alone. The node itself fails once, not for each element."""

    async def beside(name: str) -> str:
        return name

    async def rest(joined: Any = ()) -> int:
        return len(joined)

    inner = DAGBuilder().node(joined, inputs=["words", "marks"], map_over=["words", "marks"])
    inner.node(len, name="count", inputs=["joined"]).node(beside, inputs=["name"])
    inner.node(rest, inputs=["joined"], join="ended")
    graph = inner.build()
    graph.add_edge("joined", "beside")
    builder = DAGBuilder().add_graph(graph, "each", map_over="name")
    builder.node(joined, name="again", inputs=["each/joined", "signs"], map_over=["each/joined"])
    engine = engine_of(builder, on_error="collect")
    inputs = {"words": ["a", "b"], "marks": ["!"], "signs": "?"}
    results = await engine.execute(inputs | {"name": ["x", "y"]})
    assert isinstance(results["each/joined"], NodeFailure)
    for name in ("each/count", "each/beside", "again"):
        assert [type(each) for each in results[name]] == [NodeSkipped, NodeSkipped], name
    assert results["each/rest"] == [1, 1]  # it takes what there is
    assert (await engine.execute(inputs | {"name": []}))["each/count"] == []


# Products


@pytest.mark.parametrize("limit", [None, 1])
async def test_two_lists_of_one_element_are_multiplied(limit: int | None) -> None:
    product = Product({"words": 2}, {"marks": 2})
    results = await engine_of(library(product), max_parallel=limit).execute(
        {"texts": ["a b", "", "c"]}
    )
    assert results["joined"] == [[["a!", "a?"], ["b!", "b?"]], [], [["c!"]]]


async def test_a_graph_with_a_product_runs_for_many_inputs() -> None:
    found = await results_of_many(marking(Product("words", "marks")), ["a b", "", "c"])
    assert [r["joined"] for r in found] == [[["a!", "a?"], ["b!", "b?"]], [], [["c!"]]]


@pytest.mark.parametrize("text", ["", "a b"])
async def test_a_product_within_an_element_needs_both_of_its_lists(text: str) -> None:
    async def failing(text: str) -> list[str]:
        raise ValueError(text)

    builder = DAGBuilder().node(words).node(failing, name="marks", inputs=["text"])
    builder.node(joined, inputs=["words", "marks"], map_over=Product("words", "marks"))
    builder.node(len, name="counts", inputs=["joined"], map_over="joined")
    alone = await engine_of(builder, on_error="collect").execute({"text": text})
    (found,) = await results_of_many(builder, [text], on_error="collect")
    assert isinstance(alone["joined"], NodeSkipped)
    assert isinstance(found["joined"], NodeSkipped)
    assert found["joined"].because_of == ("marks[0]",)
    for results in (alone, found):
        assert [each.reason for each in results["counts"]] == ["failure"] * len(text.split())


async def test_a_list_of_the_whole_is_multiplied_with_one_of_each_element() -> None:
    product = Product("signs", "words")
    inner = DAGBuilder().node(words)
    inner.node(joined, inputs=["words", "signs"], map_over=product)
    builder = DAGBuilder().add_graph(inner.build(), "g", inputs={"text": "texts"}, map_over="texts")
    results = await engine_of(builder).execute({"texts": ["a b", "c"], "signs": [1, 2]})
    assert results["g/joined"] == [[["a1", "b1"], ["a2", "b2"]], [["c1"], ["c2"]]]


async def test_inputs_of_a_graph_that_is_mapped_over_both_are_multiplied_for_each_pair() -> None:
    inner = DAGBuilder().node(joined, inputs=["a", "b"], map_over=Product("a", "b")).build()
    builder = DAGBuilder().add_graph(inner, "g", map_over=["a", "b"])
    results = await engine_of(builder).execute({"a": [["x", "y"], ["z"]], "b": [[1, 2], [3]]})
    assert results["g/joined"] == [[["x1", "x2"], ["y1", "y2"]], [["z3"]]]


# Failures


def inverse(number: int) -> float:
    return 1 / number


async def told(failures: list[Failure]) -> list[Any]:
    return [failure.index for failure in failures]


def telling() -> DAGBuilder:
    """A graph over one list of numbers."""
    builder = DAGBuilder().node(inverse, inputs=["numbers"], map_over="numbers")
    return builder.node(told, inputs={"failures": "inverse.failures"}, join="ended")


async def test_the_failures_of_one_input_are_given_to_its_own_run() -> None:
    engine = engine_of(telling(), on_error="collect")
    source = [{"numbers": numbers} for numbers in ([0, 1, 0], [1], [], [0])]
    many = engine.execute_many(source, ordered=True, whole=True)
    assert [results["told"] async for _, results in many] == [[0, 2], [], [], [0]]


async def test_what_waits_for_lists_taken_together_belongs_to_the_same_run() -> None:
    builder = DAGBuilder().node(abs, inputs=["a"], map_over="a")
    keys = {"word": "abs", "mark": "b"}
    builder.node(joined, inputs=keys, map_over=["abs", "b"])
    builder.node(told, inputs={"failures": "joined.failures"}, join="ended")
    many = engine_of(builder).execute_many([{"a": [-1], "b": [2]}], whole=True)
    assert [pair async for pair in many] == [(0, {"abs": [1], "joined": ["12"], "told": []})]


async def test_the_failures_of_a_node_are_taken_by_element_or_as_a_whole() -> None:
    builder = DAGBuilder().node(inverse, inputs=["rows"], map_over={"rows": 2})
    each = {"failures": "inverse.failures"}
    builder.node(told, inputs=each, join="ended", map_over="inverse.failures")
    builder.node(told, name="all", inputs=each, join="ended")
    results = await engine_of(builder, on_error="collect").execute({"rows": [[0, 1, 0], [1]]})
    assert results["told"] == [[0, 2], []]
    assert results["all"] == [(0, 0), (0, 2)]


async def test_failures_of_a_node_in_a_mapped_graph_within_a_mapped_graph() -> None:
    inner = DAGBuilder().add_graph(telling().build(), "each", map_over="numbers").build()
    outer = DAGBuilder().add_graph(inner, "all", inputs={"numbers": "rows"}, map_over="rows")
    results = await engine_of(outer, on_error="collect").execute(
        {"rows": [[[0, 1], [1]], [[2, 0]]]}
    )
    assert results["all/each/told"] == [[[0], []], [[1]]]


def test_failures_have_no_more_levels_than_their_node() -> None:
    builder = telling()
    each = {"failures": "inverse.failures"}
    builder.node(told, name="n", inputs=each, join="ended", map_over={"inverse.failures": 2})
    with pytest.raises(GraphError, match=r"maps over 'inverse\.failures' with 2 levels, and node"):
        builder.build()


# Memory


async def test_a_list_that_is_shorter_within_one_element_keeps_all_values_for_another() -> None:
    async def pair(x: int, y: int) -> tuple[int, int]:
        return x, y

    async def late(pair: tuple[int, int], z: int) -> tuple[int, int]:
        await asyncio.sleep(0)
        return pair

    builder = DAGBuilder()
    builder.node(pair, inputs={"x": "xs", "y": "ys"}, map_over=Product("xs", "ys"))
    builder.node(
        late,
        inputs={"pair": "pair", "z": "zs"},
        map_over={"pair": 2, "zs": 2},
        max_parallel=1,
    )
    inputs = {"xs": [0, 1], "ys": [0, 1, 2], "zs": [[0], [0, 0, 0]]}
    pairs = engine_of(builder, on_error="collect").execute_async(inputs, items="only")
    found = {value.index: value.value async for name, value in pairs if name == "late"}
    assert isinstance(found.pop(0), NodeFailure)
    assert found == {place: place for place in [(0, 0), (1, 0), (1, 1), (1, 2)]}


async def test_nothing_is_kept_of_an_input_that_has_ended() -> None:
    builder = marking()
    builder.node(joined, name="p", inputs=["words", "marks"], map_over=Product("words", "marks"))
    builder.node(told, inputs={"failures": "joined.failures"}, join="ended")
    engine = engine_of(builder, max_parallel=1)
    texts = ({"text": "a b"} for _ in itertools.count())
    many = engine.execute_many(texts, task_limit=1, ordered=True, whole=True)
    try:
        assert await growth(many, every=9) < 200
    finally:
        await many.aclose()


async def test_a_failure_in_the_place_of_a_list_is_one_of_each_element_within() -> None:
    async def fails(marks: list[str]) -> list[str]:
        raise OSError

    async def told(joined: tuple[str, ...] = ("none",)) -> list[str]:
        return list(joined)

    builder = DAGBuilder().node(fails, inputs=["marks"])
    each = Product("words", ("marks", "fails"))
    keys = {"word": "words", "mark": "marks", "more": "fails"}
    builder.node(lambda word, mark, more: word, name="joined", inputs=keys, map_over=each)
    builder.node(told, inputs=["joined"], map_over="joined", join="ended")
    engine = engine_of(builder, on_error="collect")
    inputs = {"words": ["a", "b"], "marks": ["!"]}
    alone = await engine.execute(inputs)
    ((_, found),) = [pair async for pair in engine.execute_many([inputs], whole=True)]
    assert found.keys() == alone.keys()
    assert isinstance(found["fails"], NodeFailure)
    assert found.get("told") == alone.get("told")


@pytest.mark.parametrize("limit", [1, 2, 3, None])
@pytest.mark.parametrize("odd", [0, 1, 2])
async def test_a_zip_of_lists_is_not_kept_waiting_by_an_element_that_gave_none(
    limit: int | None, odd: int
) -> None:
    async def twice(number: int) -> list[int]:
        return [number, number]

    async def same(each: int) -> int:
        return each

    async def beside(each: int, letter: str) -> str:
        return f"{letter}{each}"

    builder = DAGBuilder()
    numbers, some = {"number": "numbers"}, lambda numbers: numbers != odd
    builder.node(twice, inputs=numbers, map_over="numbers", when=some)
    builder.node(same, inputs={"each": "twice"}, map_over={"twice": 2})
    taken = {"each": "same", "letter": "letters"}
    builder.node(beside, inputs=taken, map_over={"same": 2, "letters": 1})
    engine = ExecutionEngine(InMemoryBroker(), builder.build(), limit)
    results = await engine.execute({"numbers": [0, 1, 2], "letters": list("abc")})
    assert results["beside"] == [[f"{'abc'[n]}{n}"] * 2 for n in range(3) if n != odd]
