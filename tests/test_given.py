"""Values of parameters that are fixed for a node: no key binds them, no run input reaches them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    BindingError,
    Cache,
    DAGBuilder,
    DAGNode,
    ExecutionEngine,
    GraphChangedError,
    MemoryJournal,
    UnusedInputWarning,
)


def power(base: int, exponent: int = 1) -> int:
    return int(base**exponent)


def gather(first: int, *rest: int, scale: int = 1, **others: int) -> list[int]:
    return [first * scale, *rest, *others.values()]


async def run(broker: InMemoryBroker, node: DAGNode, inputs: dict[str, Any]) -> Any:
    dag = DAGBuilder().build()
    dag.add_node(node)
    return (await ExecutionEngine(broker, dag).execute(inputs))[node.task_name]


@pytest.mark.parametrize(
    ("node", "inputs", "expected"),
    [
        (DAGNode(power, given={"exponent": 2}), {"base": 3}, 9),
        (DAGNode(power, inputs=["x"], given={"exponent": 2}), {"x": 3}, 9),
        (DAGNode(power, inputs={"base": "x"}, given={"exponent": 2}), {"x": 3}, 9),
        (DAGNode(power, inputs={"exponent": "x"}, given={"base": 2}), {"x": 3}, 8),
        (DAGNode(power, inputs=["x"], given={"base": 2}), {"x": 3}, 8),
        (DAGNode(gather, inputs=["a", "b"], given={"first": 9}), {"a": 1, "b": 2}, [9, 1, 2]),
        (DAGNode(gather, inputs=["a"], given={"scale": 2, "z": 5}), {"a": 1}, [2, 5]),
        (DAGNode(power, join="ended", given={"exponent": 2}), {"base": 3}, 9),
        (DAGNode(functools.partial(power, exponent=2), name="power"), {"base": 3}, 9),
        (DAGNode(functools.partial(power, 3), name="power"), {}, 3),
    ],
)
async def test_what_is_given_reaches_its_parameter(
    broker: InMemoryBroker, node: DAGNode, inputs: dict[str, Any], expected: Any
) -> None:
    assert await run(broker, node, inputs) == expected


@pytest.mark.parametrize(
    "node",
    [
        lambda: DAGNode(power, given={"exponent": 2}),
        lambda: DAGNode(functools.partial(power, exponent=2), name="power"),
        lambda: DAGNode(lambda base, exponent=2: base**exponent, name="power"),
    ],
)
async def test_no_key_and_no_input_reaches_what_is_fixed(broker: InMemoryBroker, node: Any) -> None:
    dag = DAGBuilder().node(lambda: 10, name="exponent").build()
    dag.add_node(node())
    results = await ExecutionEngine(broker, dag).execute({"base": 3})
    assert results == {"exponent": 10, "power": 9}
    alone = DAGBuilder().build()
    alone.add_node(node())
    with pytest.warns(UnusedInputWarning):
        assert await ExecutionEngine(broker, alone).execute({"base": 3, "exponent": 10}) == {
            "power": 9
        }


async def test_a_default_of_a_lambda_is_an_input_where_it_is_declared(
    broker: InMemoryBroker,
) -> None:
    node = DAGNode(lambda base, exponent=2: base**exponent, name="p", inputs=["base", "exponent"])
    assert await run(broker, node, {"base": 3, "exponent": 3}) == 27


async def test_a_task_that_changes_what_it_is_given_changes_no_other_run(
    broker: InMemoryBroker,
) -> None:
    def grow(parts: list[int]) -> int:
        parts.append(0)
        return len(parts)

    node = DAGNode(grow, given={"parts": []})
    assert [await run(broker, node, {}) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (DAGNode(power, given={"exponnt": 2}), "did you mean 'exponent'"),
        (DAGNode(power, inputs={"exponent": "x"}, given={"exponent": 2}), "a value in given="),
        (DAGNode(divmod, inputs=["a"], given={"x": 2}), "passed by name"),
        (
            DAGNode(gather, inputs=["a", "b"], given={"first": 1}, join="ended"),
            r"given= and keys of \*args",
        ),
    ],
)
def test_a_value_for_no_parameter_is_an_error_when_the_graph_is_built(
    node: DAGNode, words: str
) -> None:
    dag = DAGBuilder().build()
    dag.add_node(node)
    with pytest.raises(BindingError, match=words):
        dag.validate()


@pytest.mark.parametrize(
    "node",
    [
        lambda exponent: DAGNode(power, given={"exponent": exponent}),
        lambda exponent: DAGNode(functools.partial(power, exponent=exponent), name="power"),
    ],
)
async def test_what_is_given_is_part_of_the_graph_that_a_run_was_begun_with(
    broker: InMemoryBroker, node: Any
) -> None:
    journal = MemoryJournal()

    def engine(exponent: int) -> ExecutionEngine:
        dag = DAGBuilder().build()
        dag.add_node(node(exponent))
        return ExecutionEngine(broker, dag, journal=journal)

    await engine(2).execute({"base": 3}, run_id="r")
    with pytest.raises(GraphChangedError):
        [pair async for pair in engine(3).resume("r")]
    assert [pair async for pair in engine(2).resume("r")] == [("power", 9)]


async def test_what_is_given_is_part_of_the_key_of_a_cached_result(broker: InMemoryBroker) -> None:
    journal = MemoryJournal()
    results: list[int] = []
    for exponent in (2, 3):
        dag = DAGBuilder().node(power, given={"exponent": exponent}, cache=Cache()).build()
        results += (
            await ExecutionEngine(broker, dag, journal=journal).execute({"base": 3})
        ).values()
    assert results == [9, 27]


async def test_what_is_given_is_as_it_was_when_the_node_was_made(broker: InMemoryBroker) -> None:
    def phase(settings: dict[str, int]) -> int:
        return settings["phase"]

    settings = {"phase": 0}
    dag = DAGBuilder()
    for number in range(3):
        settings["phase"] = number
        dag.node(phase, name=f"n{number}", given={"settings": settings})
    results = await ExecutionEngine(broker, dag.build()).execute()
    assert results == {"n0": 0, "n1": 1, "n2": 2}


def test_what_can_be_read_once_only_is_refused_where_the_node_is_made() -> None:
    with pytest.raises(
        TypeError, match=r"given= of node 'power' for parameter 'base': .* read once"
    ):
        DAGNode(power, given={"base": iter([1])})
    with pytest.raises(TypeError, match=r"fallback= of node 'power': .* read once"):
        DAGNode(power, fallback=iter([1]))
