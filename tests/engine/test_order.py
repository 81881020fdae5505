"""A pair comes behind those of all that its node depends on, also where it has no elements."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import DAG, DAGBuilder, ExecutionEngine, NodeSkipped
from taskiq_flow.engine.run_spec import Items
from tests.virtual_clock import virtually


async def slow() -> str:
    await asyncio.sleep(10)
    return "slow"


async def joined(element: int, whole: str = "") -> str:
    return f"{element} {whole}"


async def broken() -> list[int]:
    raise ValueError("broken")


def over(key: str) -> DAGBuilder:
    """A node that maps over a key and takes a slow one whole, and nodes that depend on it."""
    builder = DAGBuilder().node(slow).node(joined, name="each", inputs=[key, "slow"], map_over=key)
    builder.node(str.upper, name="loud", inputs=["each"], map_over="each")
    return builder.node(len, name="count", inputs=["each"])


async def names(dag: DAG, inputs: dict[str, Any], *, items: Items = False) -> list[str]:
    engine = ExecutionEngine(InMemoryBroker(), dag, on_error="collect")
    return [name async for name, _ in engine.execute_async(inputs, items=items)]


@virtually
@pytest.mark.parametrize("items", [False, True])
async def test_an_empty_list_comes_behind_what_its_elements_would_have_taken_whole(
    items: Items,
) -> None:
    found = await names(over("xs").build(), {"xs": []}, items=items)
    assert found[:2] == ["slow", "each"]
    assert sorted(found[2:]) == ["count", "loud"]


@virtually
async def test_what_takes_an_empty_list_comes_behind_all_that_it_depends_on() -> None:
    found = await names(over("xs").build(), {"xs": []}, items="only")
    assert found == ["slow", "count"]


@virtually
async def test_a_map_that_is_skipped_comes_behind_all_that_it_depends_on() -> None:
    found = await names(over("broken").node(broken).build(), {})
    assert found[:3] == ["broken", "slow", "each"]
    assert sorted(found[3:]) == ["count", "loud"]


async def counted(element: int, whole: list[str]) -> int:
    return element + len(whole)


async def items_of(broken: list[int]) -> AsyncIterator[str]:
    for number in broken:
        yield str(number)


@virtually
async def test_an_empty_list_comes_behind_a_generator_that_is_skipped() -> None:
    builder = DAGBuilder().node(broken).node(items_of, inputs=["broken"])
    builder.node(counted, name="each", inputs=["xs", "items_of"], map_over="xs")
    builder.node(str.upper, name="others", inputs=["items_of"], map_over="items_of")
    found = await names(builder.build(), {"xs": []})
    assert found[:2] == ["broken", "items_of"]
    assert sorted(found[2:]) == ["each", "others"]


@virtually
async def test_a_list_by_any_waits_for_nothing_else() -> None:
    builder = DAGBuilder().node(slow)
    builder.node(joined, name="each", inputs=["xs", "slow"], map_over="xs", join="any")
    assert await names(builder.build(), {"xs": []}) == ["each", "slow"]


@virtually
@pytest.mark.parametrize("key", ["xs", "broken"])
async def test_each_of_many_runs_has_that_order(key: str) -> None:
    builder = over(key) if key == "xs" else over(key).node(broken)
    engine = ExecutionEngine(InMemoryBroker(), builder.build(), on_error="collect")
    inputs: list[dict[str, Any]] = [{"xs": []} if key == "xs" else {} for _ in range(2)]
    found: dict[int, list[str]] = {0: [], 1: []}
    async for number, name, _ in engine.execute_many(inputs):
        found[number].append(name)
    for each in found.values():
        assert each[-4:-2] == ["slow", "each"]
        assert sorted(each[-2:]) == ["count", "loud"]


@virtually
async def test_a_long_chain_of_maps_over_an_empty_list_ends() -> None:
    builder, before = DAGBuilder(), "xs"
    for number in range(500):
        builder.node(str.upper, name=f"n{number}", inputs=[before], map_over=before)
        before = f"n{number}"
    found = await names(builder.build(), {"xs": []})
    assert found == [f"n{number}" for number in range(500)]
    many = ExecutionEngine(InMemoryBroker(), builder.build()).execute_many([{"xs": []}])
    assert [name async for _, name, _ in many] == found


def is_good(text: str) -> bool:
    return text != "bad"


def read(text: str) -> list[list[str]]:
    if text == "bad":
        raise OSError(text)
    return [[text]]


def same(value: Any) -> Any:
    return value


def both(title: Any, upper: Any) -> Any:
    return title, upper


@virtually
@pytest.mark.parametrize("because", ["of a failure", "of a condition"])
async def test_what_is_skipped_in_one_of_many_runs_is_told_behind_all_that_it_depends_on(
    because: str,
) -> None:
    builder = DAGBuilder()
    if because == "of a failure":
        builder.node(read)
    else:
        builder.node(same, name="read", inputs=["text"], when=is_good)
    builder.node(same, name="parts", inputs=["read"])
    builder.node(same, name="upper", inputs=["parts"], map_over="parts")
    builder.node(same, name="title", inputs=["read"])
    builder.node(both, name="page", inputs=["title", "upper"])
    engine = ExecutionEngine(InMemoryBroker(), builder.build(), on_error="collect")
    found = {name: value async for _, name, value in engine.execute_many([{"text": "bad"}])}
    assert list(found)[-1] == "page"
    assert found["page"].because_of == ("title[0]", "upper[0]")


@virtually
async def test_elements_within_a_list_that_never_came_to_be_are_skipped_in_their_order() -> None:
    dag = (
        DAGBuilder()
        .node(read, inputs={"text": "texts"}, map_over="texts")
        .node(same, name="each", inputs=["read"], map_over={"read": 3})
        .node(len, name="group", inputs=["each"], map_over={"each": 2})
        .build()
    )
    engine = ExecutionEngine(InMemoryBroker(), dag, on_error="collect")
    found: dict[str, Any] = {}
    async for name, value in engine.execute_async({"texts": ["a", "bad"]}, items="only"):
        if isinstance(value.value, NodeSkipped):
            found[name] = value.value.because_of
    assert [*found.items()] == [("each", ("read[1]",)), ("group", ("each[1]",))]
