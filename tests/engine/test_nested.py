"""Lists within lists: nodes over several levels, products, lists that are joined and filtered."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAGBuilder,
    ElementsKnown,
    ExecutionEngine,
    Failure,
    GraphError,
    InputError,
    Item,
    NodeCompleted,
    NodeFailed,
    NodeFailedError,
    NodeFailure,
    NodeSkipped,
    OutputShapeError,
    Product,
)
from tests.recording import Recorder
from tests.virtual_clock import virtually
from tests.waiting import until


def links(page: str) -> list[str]:
    """As many as the page's name ends with."""
    return [f"{page}.{number}" for number in range(int(page[-1]))]


def fetch(link: str) -> str:
    return link.upper()


def crawler() -> DAGBuilder:
    builder = DAGBuilder().node(links, inputs=["pages"], map_over="pages")
    return builder.node(fetch, inputs=["links"], map_over={"links": 2})


def engine_of(builder: DAGBuilder, **options: Any) -> ExecutionEngine:
    return ExecutionEngine(InMemoryBroker(), builder.build(), **options)


# Levels


async def test_a_node_over_two_levels_gives_lists_within_a_list() -> None:
    results = await engine_of(crawler()).execute({"pages": ["a2", "b0", "c1"]})
    assert results["fetch"] == [["A2.0", "A2.1"], [], ["C1.0"]]


async def test_a_node_over_one_level_of_two_is_given_the_list_of_each_group() -> None:
    builder = crawler().node(len, name="count", inputs=["fetch"], map_over="fetch")
    builder.node(
        lambda page, texts: [page, *texts],
        name="report",
        inputs={"page": "pages", "texts": "fetch"},
        map_over=["pages", "fetch"],
    )
    results = await engine_of(builder, max_parallel=1).execute({"pages": ["a2", "b0"]})
    assert results["count"] == [2, 0]
    assert results["report"] == [["a2", "A2.0", "A2.1"], ["b0"]]


async def test_an_outer_element_is_repeated_for_those_within_it() -> None:
    builder = crawler().node(
        lambda page, text: f"{page}: {text}",
        name="titled",
        inputs={"page": "pages", "text": "fetch"},
        map_over={"fetch": 2, "pages": 1},
    )
    results = await engine_of(builder).execute({"pages": ["a1", "b1"]})
    assert results["titled"] == [["a1: A1.0"], ["b1: B1.0"]]


@pytest.mark.parametrize("limit", [None, 1])
async def test_lists_within_a_list_may_be_given_or_returned(limit: int | None) -> None:
    builder = DAGBuilder().node(lambda: [[1, 2], [], [3]], name="rows")
    builder.node(lambda cell: -cell, name="less", inputs=["rows"], map_over={"rows": 2})
    builder.node(lambda cell: 2 * cell, name="twice", inputs=["given"], map_over={"given": 2})
    results = await engine_of(builder, max_parallel=limit).execute({"given": iter([[1], [], [2]])})
    assert (results["less"], results["twice"]) == ([[-1, -2], [], [-3]], [[2], [], [4]])


@virtually
async def test_a_group_goes_on_while_another_one_is_not_there_yet() -> None:
    async def slow_links(page: str) -> list[str]:
        await asyncio.sleep(10 if page == "slow" else 1)
        return [page]

    async def slow_fetch(link: str) -> str:
        await asyncio.sleep(1)
        return link

    async def joined(texts: list[str]) -> str:
        return "".join(texts)

    builder = DAGBuilder().node(slow_links, name="links", inputs=["pages"], map_over="pages")
    builder.node(slow_fetch, name="fetch", inputs=["links"], map_over={"links": 2})
    builder.node(joined, name="text", inputs=["fetch"], map_over="fetch")
    seen = {}
    async for name, item in engine_of(builder).execute_async(
        {"pages": ["slow", "quick"]}, items="only"
    ):
        seen[name, item.index] = asyncio.get_running_loop().time()
    assert seen["fetch", (1, 0)] == pytest.approx(2)
    assert seen["text", 1] == pytest.approx(2)
    assert seen["text", 0] == pytest.approx(11)


async def test_an_element_is_named_by_its_path() -> None:
    recorder = Recorder()
    engine = engine_of(crawler(), listeners=[recorder])
    items = [
        (name, item.index)
        async for name, item in engine.execute_async({"pages": ["a2", "b1"]}, items="only")
    ]
    expected = [("links", 0), ("links", 1), ("fetch", (0, 0)), ("fetch", (0, 1)), ("fetch", (1, 0))]
    assert sorted(items, key=repr) == sorted(expected, key=repr)
    names = {event.task_name for event in recorder.events if hasattr(event, "task_id")}
    assert {"links[0]", "fetch[0,1]", "fetch[1,0]"} < names
    known = [event for event in recorder.events if isinstance(event, ElementsKnown)]
    counts = {event.task_name: event.count for event in known}
    assert counts == {"links": 2, "fetch": 2, "fetch[0]": 2, "fetch[1]": 1}


async def test_several_outputs_have_lists_of_their_own_at_each_level() -> None:
    def halves(link: str) -> dict[str, Any]:
        return {"page": link.split(".", maxsplit=1)[0], "parts": link.split(".")}

    builder = DAGBuilder().node(links, inputs=["pages"], map_over="pages")
    options: dict[str, Any] = {"inputs": ["links"], "map_over": {"links": 2}}
    builder.node(halves, outputs=["page", "parts"], **options)
    builder.node(
        lambda link: ([link], link.split(".")),
        name="flat",
        outputs=["all", "flat_parts"],
        flatten=True,
        **options,
    )
    builder.node(len, name="count", inputs=["parts"], map_over={"parts": 3})
    results = await engine_of(builder).execute({"pages": ["a2", "b0"]})
    assert results["page"] == [["a2", "a2"], []]
    assert results["parts"] == [[["a2", "0"], ["a2", "1"]], []]
    assert results["flat_parts"] == [["a2", "0", "a2", "1"], []]
    assert results["count"] == [[[2, 1], [2, 1]], []]


# Flatten, filter, product


async def test_flatten_joins_the_lists_of_all_elements() -> None:
    builder = DAGBuilder().node(links, inputs=["pages"], map_over="pages", flatten=True)
    builder.node(fetch, inputs=["links"], map_over="links")
    builder.node(len, name="count", inputs=["links"])
    engine = engine_of(builder)
    pages = {"pages": ["a2", "b0", "c1"]}
    results = await engine.execute(pages)
    assert results == {
        "links": ["a2.0", "a2.1", "c1.0"],
        "fetch": ["A2.0", "A2.1", "C1.0"],
        "count": 3,
    }
    items = [pair async for pair in engine.execute_async(pages, items="only")]
    assert ("links", Item(0, ["a2.0", "a2.1"])) in items
    assert ("fetch", Item((2, 0), "C1.0")) in items


async def test_a_filter_gives_the_elements_that_its_task_wants_at_their_own_places() -> None:
    builder = DAGBuilder()
    builder.node(lambda n: n % 2, name="odd", inputs=["ns"], map_over="ns", filter=True)
    builder.node(lambda n: 10 * n, name="tens", inputs=["odd"], map_over="odd")
    builder.node(
        lambda n, square: (n, square),
        name="pair",
        inputs={"n": "odd", "square": "squares"},
        map_over=["odd", "squares"],
    )
    engine = engine_of(builder)
    inputs = {"ns": [1, 2, 3], "squares": [1, 4, 9]}
    results = await engine.execute(inputs)
    assert results == {"odd": [1, 3], "tens": [10, 30], "pair": [(1, 1), (3, 9)]}
    items = [pair async for pair in engine.execute_async(inputs, items="only")]
    assert ("odd", Item(2, 3)) in items
    assert all(item.index != 1 for _, item in items)


async def test_a_filter_that_leaves_nothing_of_a_group_leaves_it_empty() -> None:
    builder = DAGBuilder()
    builder.node(lambda n: n > 1, name="large", inputs=["rows"], map_over={"rows": 2}, filter=True)
    builder.node(sum, name="sums", inputs=["large"], map_over="large")
    results = await engine_of(builder).execute({"rows": [[1, 2, 3], [0], []]})
    assert results == {"large": [[2, 3], [], []], "sums": [5, 0, 0]}


async def test_a_product_runs_for_each_combination() -> None:
    builder = DAGBuilder().node(
        lambda x, y, z: f"{x}{y}{z}",
        name="all",
        inputs=["x", "y", "z"],
        map_over=Product("x", ("y", "z")),
    )
    builder.node("-".join, name="row", inputs=["all"], map_over="all")
    results = await engine_of(builder, max_parallel=2).execute(
        {"x": ["a", "b"], "y": [1, 2], "z": [3, 4]}
    )
    assert results == {"all": [["a13", "a24"], ["b13", "b24"]], "row": ["a13-a24", "b13-b24"]}


async def test_a_product_takes_an_endless_outer_list_and_refuses_an_inner_one() -> None:
    async def multiply(xs: int, ys: int) -> int:
        return xs * ys

    product = Product("xs", "ys")
    builder = DAGBuilder().node(multiply, name="p", map_over=product)
    engine = engine_of(builder, max_parallel=2)
    stream = engine.execute_async({"xs": itertools.count(), "ys": [1, 2]}, items="only")
    first = {item.index: item.value for _, item in [await anext(stream) for _ in range(6)]}
    await stream.aclose()
    assert first[0, 0] == 0
    assert first[1, 1] == 2
    with pytest.raises(InputError, match="'ys' is read once more for each element"):
        await engine.execute({"xs": [1], "ys": iter([1])})


# Failures


def fail_at(*texts: str) -> Any:
    def task(text: str) -> str:
        if text in texts:
            raise ValueError(text)
        return text

    return task


async def test_the_failure_of_an_element_names_its_path() -> None:
    builder = DAGBuilder().node(links, inputs=["pages"], map_over="pages")
    builder.node(fail_at("b1.0"), name="m", inputs=["links"], map_over={"links": 2})
    with pytest.raises(NodeFailedError) as caught:
        await engine_of(builder).execute({"pages": ["b1"]})
    assert caught.value.task_name == "m[0,0]"


async def test_failures_stand_in_their_places_and_only_their_groups_are_skipped() -> None:
    builder = DAGBuilder().node(links, inputs=["pages"], map_over="pages")
    builder.node(fail_at("a2.1"), name="m", inputs=["links"], map_over={"links": 2})
    builder.node(len, name="count", inputs=["m"], map_over="m")
    builder.node(
        lambda texts=(): list(texts), name="left", inputs=["m"], map_over="m", join="ended"
    )
    builder.node(
        lambda failures: failures, name="why", inputs={"failures": "m.failures"}, join="ended"
    )
    results = await engine_of(builder, on_error="collect").execute({"pages": ["a2", "b1"]})
    first, second = results["m"][0]
    assert first == "a2.0"
    assert isinstance(second, NodeFailure)
    assert second.index == (0, 1)
    assert isinstance(results["count"][0], NodeSkipped)
    assert results["count"][0].because_of == ("m[0]",)
    assert results["count"][1] == 1
    assert results["left"] == [["a2.0"], ["b1.0"]]
    assert results["why"] == [Failure("m", (0, 1), "ValueError", "a2.1")]


async def test_nodes_over_a_list_that_never_came_to_be_are_skipped_once_each() -> None:
    def failing(page: str) -> list[str]:
        if page == "bad":
            raise ValueError(page)
        return [page]

    builder = DAGBuilder().node(failing, name="links", inputs=["pages"], map_over="pages")
    builder.node(fetch, inputs=["links"], map_over={"links": 2})
    builder.node(fetch, name="again", inputs=["fetch"], map_over={"fetch": 2})
    engine = engine_of(builder, on_error="collect")
    items: dict[tuple[str, Any], Any] = {}
    async for name, value in engine.execute_async({"pages": ["bad", "a"]}, items=True):
        if isinstance(value, Item):
            items[name, value.index] = value.value
        else:
            items[name, None] = value
    assert isinstance(items["links", 0], NodeFailure)
    assert items["fetch", 0].because_of == ("links[0]",)
    assert items["again", 0].because_of == ("fetch[0]",)
    assert items["again", (1, 0)] == "A"
    assert [type(value) for value in items["again", None]] == [NodeSkipped, list]


async def test_a_partial_list_is_given_to_a_node_that_waits_for_all_ends_only() -> None:
    recorder = Recorder()
    builder = DAGBuilder().node(links, inputs=["pages"], map_over="pages")
    builder.node(fail_at("a2.1"), name="m", inputs=["links"], map_over={"links": 2})

    async def title(page: str) -> str:
        # "any" is decided when the list has ended already: links[0], m[0][0] and m[0][1].
        await until(lambda: len(recorder.of(NodeCompleted, NodeFailed)) == 3, "the list has ended")
        return page.title()

    def left(title: Any = "none", texts: Any = "none") -> list[Any]:
        return [title, texts]

    builder.node(title, inputs=["pages"], map_over="pages")
    inputs = {"title": "title", "texts": "m"}
    builder.node(left, name="any", inputs=inputs, map_over=["title", "m"], join="any")
    engine = engine_of(builder, on_error="collect", listeners=[recorder])
    results = await engine.execute({"pages": ["a2"]})
    assert results["any"] == [["A2", "none"]]


async def test_a_product_that_never_is_holds_up_nothing() -> None:
    def broken() -> list[int]:
        raise ValueError("no list")

    builder = DAGBuilder().node(broken, name="ys").node(abs, inputs=["xs"], map_over="xs")
    product = Product("abs", "ys")
    builder.node(lambda abs, ys: 0, name="product", map_over=product)  # noqa: A006 - the key
    engine = engine_of(builder, on_error="collect", max_parallel=1)
    results = await engine.execute({"xs": list(range(9))})
    assert results["abs"] == list(range(9))
    assert isinstance(results["product"], NodeSkipped)


# What is no list


async def test_a_node_that_gives_no_lists_within_its_list_fails_and_is_tried_again() -> None:
    given = iter([[1, 2], [[1], [2]]])
    builder = DAGBuilder().node(lambda: next(given), name="rows", retry=2)
    builder.node(abs, inputs=["rows"], map_over={"rows": 2})
    assert (await engine_of(builder).execute())["abs"] == [[1], [2]]
    given = iter([[1, 2]])
    builder = DAGBuilder().node(lambda: next(given), name="rows")
    builder.node(abs, inputs=["rows"], map_over={"rows": 2})
    with pytest.raises(NodeFailedError, match="one of its lists is a int") as caught:
        await engine_of(builder).execute()
    assert isinstance(caught.value.__cause__, OutputShapeError)


@pytest.mark.parametrize("given", [[1], iter([1])], ids=["list", "iterator"])
async def test_an_input_without_lists_within_it_is_refused(given: Any) -> None:
    builder = DAGBuilder().node(abs, inputs=["rows"], map_over={"rows": 2})
    with pytest.raises(InputError, match=r"'rows'.* a int"):
        await engine_of(builder).execute({"rows": given})


@pytest.mark.parametrize(
    ("map_over", "message"),
    [
        ({"joined": 1, "others": 1}, "or lists that were joined"),
        (Product("deep", "pages"), "multiplies keys of the same list"),
        ({"others": 1, "pairs": 2}, "have different lists within their lists"),
        (Product({"others": 1}, {"others_deep": 2}), "multiplies keys of the same list"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(map_over: Any, message: str) -> None:
    builder = DAGBuilder().node(links, inputs=["pages"], map_over="pages")
    builder.node(fetch, name="deep", inputs=["links"], map_over={"links": 2})
    product = Product("pages", "others")
    builder.node(lambda pages, others: 0, name="pairs", map_over=product)
    builder.node(links, name="joined", inputs=["pages"], map_over="pages", flatten=True)
    builder.node(links, name="others_deep", inputs=["others"], map_over="others")
    builder.node(
        lambda deep, others, pages, pairs, joined, others_deep: 0, name="m", map_over=map_over
    )
    with pytest.raises(GraphError, match=message):
        builder.build()


async def test_a_node_that_starts_when_all_has_ended_needs_no_default_for_an_element() -> None:
    builder = DAGBuilder().node(links, inputs=["pages"], map_over="pages")
    builder.node(fetch, inputs=["links"], map_over={"links": 2}, join="ended")
    assert (await engine_of(builder).execute({"pages": ["a1"]}))["fetch"] == [["A1.0"]]


# Room


@virtually
async def test_a_node_at_its_limit_does_not_hold_up_the_lists_within_its_own() -> None:
    async def slow(row: list[int]) -> int:
        await asyncio.sleep(10)
        return len(row)

    async def quick(cell: int) -> float:
        await asyncio.sleep(1)
        return asyncio.get_running_loop().time()

    builder = DAGBuilder().node(slow, inputs=["rows"], map_over="rows", max_parallel=1)
    builder.node(quick, inputs=["rows"], map_over={"rows": 2})
    results = await engine_of(builder).execute({"rows": [[1], [2], [3]]})
    assert results["quick"] == [[1.0], [1.0], [1.0]]


@pytest.mark.parametrize("limit", [1, 2, None])
async def test_a_group_goes_back_to_its_own_elements_whatever_its_length(limit: int | None) -> None:
    builder = DAGBuilder().node(abs, name="size", inputs=["rows"], map_over={"rows": 2})
    builder.node(sum, name="total", inputs=["size"], map_over="size")
    builder.node(
        lambda size, total: size / total,
        name="share",
        inputs=["size", "total"],
        map_over={"size": 2, "total": 1},
    )
    rows = [[1] * 9, [-2, 2], []]
    results = await engine_of(builder, max_parallel=limit).execute({"rows": rows})
    assert results["share"] == [[1 / 9] * 9, [0.5, 0.5], []]


@pytest.mark.parametrize("limit", [1, 2])
async def test_a_list_that_comes_of_a_map_is_taken_together_with_the_maps_own(limit: int) -> None:
    builder = DAGBuilder().node(abs, inputs=["xs"], map_over="xs")
    builder.node(lambda absolutes: [-x for x in absolutes], name="later", inputs=["abs"])
    product = Product("xs", "later")
    builder.node(lambda xs, later: xs * later, name="product", map_over=product)
    builder.node(lambda xs, later: xs + later, name="zip", map_over=["xs", "later"])
    results = await engine_of(builder, max_parallel=limit).execute({"xs": list(range(6))})
    assert results["zip"] == [0] * 6
    assert results["product"][2] == [0, -2, -4, -6, -8, -10]


async def test_a_source_of_lists_is_read_to_its_end_for_what_a_later_pass_waits_for() -> None:
    builder = DAGBuilder()
    options: dict[str, Any] = {"map_over": {"zs": 2, "ys": 1}}
    builder.node(lambda zs, ys: zs * ys, name="first", inputs=["zs", "ys"], **options)
    builder.node(len, name="count", inputs=["first"])
    builder.node(lambda zs, count: zs + count, name="second", map_over={"zs": 2})
    inputs = {"zs": iter([[1], [2, 3], [4]]), "ys": [1, 2, 3]}
    results = await engine_of(builder, max_parallel=1).execute(inputs)
    assert results["second"] == [[4], [5, 6], [7]]


async def test_what_a_later_pass_takes_is_there_though_its_list_is_not_kept() -> None:
    builder = DAGBuilder().node(links, inputs=["pages"], map_over="pages", flatten=True)
    builder.node(fetch, inputs=["links"], map_over="links")
    builder.node(len, name="count", inputs=["fetch"])
    builder.node(fetch, name="other", inputs=["links"], map_over="links")
    builder.node(
        lambda links, other, count: (links, other, count),
        name="later",
        map_over=["links", "other"],
    )
    engine = engine_of(builder, max_parallel=1)
    stream = engine.execute_async({"pages": iter(["a1", "b2"])}, items="only")
    later = [item.value async for name, item in stream if name == "later"]
    assert sorted(later) == [("a1.0", "A1.0", 3), ("b2.0", "B2.0", 3), ("b2.1", "B2.1", 3)]


@virtually
async def test_what_takes_a_group_whole_at_its_own_level_waits_for_that_group_only() -> None:
    async def slow(cell: int) -> int:
        await asyncio.sleep(cell)
        return cell

    async def share(cell: int, row: list[int]) -> tuple[float, float]:
        return cell / sum(row), asyncio.get_running_loop().time()

    builder = DAGBuilder().node(slow, inputs=["rows"], map_over={"rows": 2})
    keys = {"cell": "rows", "row": "slow"}
    builder.node(share, inputs=keys, map_over={"rows": 2, "slow": 1})
    engine = engine_of(builder, max_parallel=8)
    results = await engine.execute({"rows": iter([[1, 1, 2], [10, 10]])})
    assert results["share"] == [[(0.25, 2.0), (0.25, 2.0), (0.5, 2.0)], [(0.5, 10.0), (0.5, 10.0)]]


@virtually
@pytest.mark.parametrize("limit", [1, 2, None])
async def test_what_waits_for_the_outermost_list_lets_the_lists_around_it_end(
    limit: int | None,
) -> None:
    async def parts(value: Any) -> list[Any]:
        return [(value, number) for number in range(4)]

    async def same(value: Any, whole: Any = None) -> Any:
        return value

    builder = DAGBuilder().node(same, name="first", inputs={"value": "xs"}, map_over="xs")
    builder.node(parts, name="second", inputs={"value": "first"}, map_over="first")
    builder.node(parts, name="third", inputs={"value": "second"}, map_over={"second": 2})
    builder.node(
        same,
        name="fourth",
        inputs={"value": "third", "whole": "first"},
        map_over={"third": 3},
    )
    results = await engine_of(builder, max_parallel=limit).execute({"xs": range(10)})
    assert results["fourth"] == results["third"]


@virtually
async def test_a_source_of_lists_is_read_only_as_far_as_all_within_has_ended() -> None:
    read = 0

    def rows() -> Iterator[list[int]]:
        nonlocal read
        for number in itertools.count():
            read += 1
            yield [number, number]

    async def slow(cell: int) -> int:
        await asyncio.sleep(10 if cell == 0 else 0.1)
        return cell

    builder = DAGBuilder().node(len, name="size", inputs=["rows"], map_over="rows")
    builder.node(slow, name="cell", inputs=["rows"], map_over={"rows": 2})
    stream = engine_of(builder, max_parallel=4).execute_async({"rows": rows()}, items="only")
    async for name, item in stream:
        if name == "cell" and item.index[0] == 8:
            break
    await stream.aclose()
    assert read <= 8 + 2 * 4


@virtually
async def test_an_async_source_of_lists_ends_with_its_last_group() -> None:
    async def rows() -> AsyncIterator[list[int]]:
        for number in range(3):
            await asyncio.sleep(1)
            yield list(range(number))

    builder = DAGBuilder().node(lambda n: -n, name="cell", inputs=["rows"], map_over={"rows": 2})
    results = await engine_of(builder).execute({"rows": rows()})
    assert results == {"cell": [[], [0], [0, -1]]}


@virtually
@pytest.mark.parametrize("limit", [1, 2, None])
async def test_a_list_that_is_read_again_for_each_element_of_another_stays_to_the_last(
    limit: int | None,
) -> None:
    async def pair(title: str, link: str) -> str:
        await asyncio.sleep(1)
        return f"{title} {link}"

    builder = DAGBuilder().node(listed, name="links", inputs=["pages"], map_over="pages")
    inputs = {"title": "titles", "link": "links"}
    builder.node(pair, inputs=inputs, map_over=Product("titles", {"links": 2}))
    engine = engine_of(builder, max_parallel=limit)
    results = await engine.execute({"pages": ["a2", "b1"], "titles": ["T", "U", "V"]})
    assert results["pair"] == [
        [[f"{title} a2.0", f"{title} a2.1"], [f"{title} b1.0"]] for title in "TUV"
    ]


@virtually
async def test_a_source_is_read_on_for_one_node_where_another_will_never_have_lists() -> None:
    """The elements of "report" take lists of a map whose own list has failed."""

    def broken() -> list[int]:
        raise ConnectionError

    async def pages() -> AsyncIterator[list[str]]:
        for page in ("a", "b"):
            await asyncio.sleep(1)
            yield [page]

    builder = DAGBuilder().node(broken)
    over = Product({"pages": 2}, {"broken": 1})
    builder.node(
        lambda page, broken: page,
        name="match",
        inputs={"page": "pages", "broken": "broken"},
        map_over=over,
    )
    builder.node(len, name="report", inputs={"obj": "match"}, map_over={"match": 1})
    engine = engine_of(builder, on_error="collect", type_check="off")
    results = await engine.execute({"pages": pages()})
    assert isinstance(results["match"], NodeSkipped)
    assert [skip.because_of for skip in results["report"]] == [("match",), ("match",)]


async def listed(page: str) -> list[str]:
    return links(page)


@virtually
async def test_a_list_that_is_shorter_than_that_of_a_generator_is_told_within_other_lists() -> None:
    """The items are at places of their own, and not at those of the lists around both."""

    def pages() -> Iterator[str]:
        yield from ("a1", "b1", "c1")

    async def links_of(page: str) -> list[str]:
        await asyncio.sleep(1)  # so that items are still there when it is known
        return links(page)

    builder = DAGBuilder().node(pages, output="page")
    builder.node(links_of, inputs={"page": "page"}, map_over="page", output="links")
    builder.node(
        lambda row, title, link: (row, title, link),
        name="match",
        inputs={"row": "rows", "title": "titles", "link": "links"},
        map_over=Product({"rows": 2}, {"titles": 1, "links": 2}),
    )
    engine = engine_of(builder, on_error="collect", type_check="off")
    inputs = {"rows": [["x", "y"]], "titles": ["A"]}
    pairs = [pair async for pair in engine.execute_async(inputs, items="only")]
    assert sorted(item.value for name, item in pairs if name == "links_of") == [
        *(["a1.0"], ["b1.0"], ["c1.0"])
    ]
    failures = [value for _, value in pairs if isinstance(value, NodeFailure)]
    assert [type(failure.error) for failure in failures] == [OutputShapeError]
