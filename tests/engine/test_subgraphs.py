"""Graphs as parts of other graphs, once or for each element of a list."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    BindingError,
    DAGBuilder,
    ExecutionEngine,
    GraphError,
    Item,
    MemoryJournal,
    NodeFailedError,
    Product,
)
from tests.virtual_clock import virtually


def bare(text: str) -> str:
    return text.strip()


def counted(bare: str, unit: str = "letters") -> dict[str, Any]:
    return {"number": len(bare), "label": f"{len(bare)} {unit}"}


def largest(numbers: list[int]) -> int:
    return max(numbers)


def cleaning() -> DAG:
    return DAGBuilder().node(bare).node(counted, outputs=["number", "label"]).build()


async def run(builder: DAGBuilder, inputs: Any, **options: Any) -> dict[str, Any]:
    return await ExecutionEngine(InMemoryBroker(), builder.build(), **options).execute(inputs)


async def test_a_graph_stands_in_another_one_under_its_name() -> None:
    builder = DAGBuilder().node(lambda: " tide ", name="load")
    builder.add_graph(cleaning(), "clean", inputs={"text": "load"}, outputs={"label": "title"})
    builder.node(str.upper, name="shout", inputs=["title"])
    assert await run(builder, {"unit": "signs"}) == {
        "load": " tide ",
        "clean/bare": "tide",
        "clean/number": 4,
        "title": "4 signs",
        "shout": "4 SIGNS",
    }


async def test_one_graph_may_be_added_twice_and_stays_as_it_was() -> None:
    graph = cleaning()
    builder = DAGBuilder()
    builder.add_graph(graph, "left", inputs={"text": "a"}, outputs={"number": "x"})
    builder.add_graph(graph, "right", inputs={"text": "b"}, outputs={"number": "y"})
    builder.node(lambda x, y: x + y, name="sum")
    assert (await run(builder, {"a": "ab", "b": "cde"}))["sum"] == 5
    own = await ExecutionEngine(InMemoryBroker(), graph).execute({"text": "ab"})
    assert own == {"bare": "ab", "number": 2, "label": "2 letters"}


@pytest.mark.parametrize("given", [[" a", "bc "], iter([" a", "bc "])], ids=["list", "source"])
async def test_a_mapped_graph_runs_for_each_element(given: Any) -> None:
    builder = DAGBuilder().add_graph(
        cleaning(), "clean", inputs={"text": "lines"}, map_over="lines"
    )
    builder.node(sum, name="total", inputs=["clean/number"])
    engine = ExecutionEngine(InMemoryBroker(), builder.build(), max_parallel=1)
    pairs = [p async for p in engine.execute_async({"lines": given, "unit": "u"}, items=True)]
    assert ("clean/bare", Item(1, "bc")) in pairs
    assert (
        "clean/counted",
        [{"number": 1, "label": "1 u"}, {"number": 2, "label": "2 u"}],
    ) in pairs
    assert pairs[-1] == ("total", 3)


async def test_maps_within_a_mapped_graph_go_one_level_deeper() -> None:
    inner = DAGBuilder().node(str.split, name="words", inputs=["text"])
    inner.node(len, name="lengths", inputs=["words"], map_over="words")
    inner.node(largest, name="longest", inputs=["lengths"])
    inner.node(str.ljust, name="padded", inputs=["words", "longest"], map_over="words")
    builder = DAGBuilder().add_graph(inner.build(), "t", inputs={"text": "lines"}, map_over="lines")
    builder.node(largest, name="widest", inputs=["t/longest"])
    assert await run(builder, {"lines": ["a bcd", "ef"]}) == {
        "t/words": [["a", "bcd"], ["ef"]],
        "t/lengths": [[1, 3], [2]],
        "t/longest": [3, 2],
        "t/padded": [["a  ", "bcd"], ["ef"]],
        "widest": 3,
    }


async def test_all_of_a_mapped_graph_runs_per_element_also_what_takes_none() -> None:
    calls: list[str] = []

    def first() -> None:
        calls.append("first")

    def second(name: str) -> str:
        calls.append(name)
        return name

    graph = DAGBuilder().node(first).node(second, inputs=["name"]).build()
    graph.add_edge("first", "second")
    builder = DAGBuilder().add_graph(graph, "g", inputs={"name": "names"}, map_over="names")
    results = await run(builder, {"names": ["a", "b"]}, max_parallel=1)
    assert results == {"g/first": [None, None], "g/second": ["a", "b"]}
    assert sorted(calls) == ["a", "b", "first", "first"]
    assert calls[0] == "first"


@virtually
async def test_an_edge_without_data_holds_within_each_element() -> None:
    async def first(seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def second() -> float:
        return asyncio.get_running_loop().time()

    graph = DAGBuilder().node(first).node(second).build()
    graph.add_edge("first", "second")
    builder = DAGBuilder().add_graph(graph, "g", inputs={"seconds": "times"}, map_over="times")
    assert (await run(builder, {"times": [5.0, 1.0]}))["g/second"] == [5.0, 1.0]


async def test_keys_that_are_mapped_over_together_go_together_in_all_nodes() -> None:
    graph = DAGBuilder().node(lambda a: -a, name="x").node(lambda x, b: (x, b), name="y").build()
    builder = DAGBuilder().add_graph(graph, "g", map_over=["a", "b"])
    assert await run(builder, {"a": [1, 2], "b": iter([3, 4])}) == {
        "g/x": [-1, -2],
        "g/y": [(-1, 3), (-2, 4)],
    }


async def test_a_list_of_the_outer_graph_multiplies_within_a_mapped_one() -> None:
    graph = DAGBuilder().node(lambda n, f: n * f, name="m", inputs=["n", "f"], map_over="f").build()
    builder = DAGBuilder().add_graph(graph, "g", inputs={"n": "ns", "f": "fs"}, map_over="ns")
    assert await run(builder, {"ns": [1, 2], "fs": [10, 20]}) == {"g/m": [[10, 20], [20, 40]]}


async def test_graphs_within_graphs_are_mapped_at_each_level() -> None:
    inner = DAGBuilder().node(lambda n: n + 1, name="more").build()
    middle = DAGBuilder().add_graph(inner, "in", inputs={"n": "row"}, map_over="row").build()
    builder = DAGBuilder().add_graph(middle, "mid", inputs={"row": "rows"}, map_over="rows")
    assert await run(builder, {"rows": [[1, 2], [], [3]]}) == {"mid/in/more": [[2, 3], [], [4]]}


async def test_a_product_within_a_mapped_graph_is_one_also_where_that_is_mapped_again() -> None:
    graph = DAGBuilder().node(pow, inputs=["n", "f"], map_over=Product("n", "f")).build()
    inner = DAGBuilder().add_graph(graph, "in", map_over=["n", "f"]).build()
    builder = DAGBuilder().add_graph(inner, "mid", map_over=["n", "f"])
    numbers = {"n": [[[2, 3]], [[4], [5]]], "f": [[[1, 2]], [[1], [0, 1]]]}
    assert await run(builder, numbers) == {"mid/in/pow": [[[[2, 4], [3, 9]]], [[[4]], [[1, 5]]]]}


async def test_a_product_of_lists_made_in_a_mapped_graph_is_one_for_each_of_its_elements() -> None:
    graph = DAGBuilder().node(pow, inputs=["n", "f"], map_over=Product("n", "f")).build()
    middle = DAGBuilder().node(list, name="n", inputs=["ns"]).node(list, name="f", inputs=["fs"])
    middle.add_graph(graph, "in", map_over=["n", "f"])
    builder = DAGBuilder().add_graph(
        middle.build(), "mid", inputs={"ns": "rows", "fs": "powers"}, map_over=["rows", "powers"]
    )
    numbers = {"rows": [[[2, 3]], [[4], [5]]], "powers": [[[1, 2]], [[1], [0, 1]]]}
    results = await run(builder, numbers)
    assert results["mid/in/pow"] == [[[[2, 4], [3, 9]]], [[[4]], [[1, 5]]]]


async def test_conditions_fallbacks_and_filters_see_the_keys_of_their_graph() -> None:
    def number(text: str) -> int:
        return int(text)

    graph = DAGBuilder().node(number, fallback=lambda text, error: f"no {text}")
    graph.node(lambda number: number, name="small", when=lambda number: number != 3)
    graph.node(lambda n: n > 1, name="kept", inputs=["list"], map_over="list", filter=True)
    builder = DAGBuilder().add_graph(
        graph.build(), "g", inputs={"text": "texts", "list": "lists"}, map_over=["texts", "lists"]
    )
    results = await run(builder, {"texts": ["1", "3", "x"], "lists": [[1, 2], [], [5]]})
    assert results == {
        "g/number": [1, 3, "no x"],
        "g/small": [1, "no x"],
        "g/kept": [[2], [], [5]],
    }


async def test_a_mapped_graph_resumes_at_its_elements() -> None:
    fails = True
    calls: list[str] = []

    def flaky(bare: str) -> str:
        calls.append(bare)
        if fails and bare == "b":
            raise ValueError
        return bare

    graph = DAGBuilder().node(bare).node(flaky).build()
    builder = DAGBuilder().add_graph(graph, "g", inputs={"text": "texts"}, map_over="texts")
    engine = ExecutionEngine(
        InMemoryBroker(), builder.build(), max_parallel=1, journal=MemoryJournal()
    )
    with pytest.raises(NodeFailedError, match=r"'g/flaky\[1\]'"):
        await engine.execute({"texts": ["a", "b"]}, run_id="r")
    fails = False
    pairs = [pair async for pair in engine.resume("r")]
    assert ("g/flaky", ["a", "b"]) in pairs
    assert calls == ["a", "b", "b"]


async def test_a_filter_within_a_mapped_graph_filters_its_own_list() -> None:
    graph = DAGBuilder().node(
        lambda word, least: len(word) > least,
        name="long",
        inputs=["words", "least"],
        map_over="words",
        filter=True,
    )
    builder = DAGBuilder().add_graph(graph.build(), "g", map_over="least")
    results = await run(builder, {"least": [1, 2], "words": ["ab", "abc"]})
    assert results == {"g/long": [["ab", "abc"], ["abc"]]}


def test_the_drawing_has_the_names_of_both() -> None:
    builder = DAGBuilder().add_graph(cleaning(), "c", inputs={"text": "lines"}, map_over="lines")
    stream = io.StringIO()
    builder.build().print(stream)
    assert "c/bare ×lines" in stream.getvalue()


def refused() -> Iterator[tuple[Any, type[Exception], str]]:
    simple = cleaning()
    yield {"inputs": {"txt": "x"}}, BindingError, "inputs of the graph 'g' names 'txt'.*'text'"
    yield {"outputs": {"bar": "x"}}, BindingError, "outputs of the graph 'g' names 'bar'"
    yield {"map_over": "lines"}, BindingError, "map_over of the graph 'g' names 'lines'"
    yield {"map_over": Product("text", "unit")}, GraphError, "is a Product"
    both = DAGBuilder().node(lambda a, b: 0, name="p", map_over=["a", "b"]).build()
    apart = "takes lists of the element and of the whole together"
    yield {"dag": both, "map_over": "a"}, GraphError, apart
    deep = DAGBuilder().node(lambda a, b: 0, name="p", map_over="b").build()
    fewer = "'p' maps over 'b', which is mapped fewer levels deep"
    yield {"dag": deep, "map_over": {"a": 2, "b": 1}}, GraphError, fewer
    yield {"dag": simple, "name": "taken"}, GraphError, "has a node 'taken/bare' already"
    yield {"dag": DAGBuilder()}, TypeError, "dag is <DAGBuilder.*builder.build()"
    yield {"name": None}, TypeError, "name is None; give a string"
    yield {"name": ""}, ValueError, "name is empty"
    yield {"outputs": ["number"]}, TypeError, "give a mapping of keys to keys"
    yield {"inputs": {"text": 3}}, TypeError, "inputs holds 3; keys are strings"
    twice = {"number": "z", "label": "z"}
    yield {"outputs": twice}, GraphError, "names 'z' for several of its keys"
    both = DAGBuilder().node(lambda a, b: 0, name="n", map_over="a").build()
    alike = {"dag": both, "inputs": {"a": "k", "b": "k"}}
    yield alike, GraphError, "maps over some of them and not over others"


@pytest.mark.parametrize(("options", "error", "message"), list(refused()))
def test_mistakes_are_told_when_a_graph_is_added(
    options: Any, error: type[Exception], message: str
) -> None:
    builder = DAGBuilder().node(bare, name="taken/bare", inputs=["other"])
    with pytest.raises(error, match=message):
        builder.add_graph(**{"dag": cleaning(), "name": "g", **options})


def test_a_product_of_lists_over_which_graphs_are_mapped_one_within_the_other_is_refused() -> None:
    graph = DAGBuilder().node(lambda a, b: 0, name="p", map_over=Product("a", "b")).build()
    inner = DAGBuilder().add_graph(graph, "of_b", map_over="b").build()
    message = "'of_a/of_b/p' multiplies with Product.* what the graphs around it are mapped over"
    with pytest.raises(GraphError, match=message):
        DAGBuilder().add_graph(inner, "of_a", map_over="a").build()
