"""The node is named that changes a value which others hold."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import dataclass
from typing import Any

import pytest

from taskiq_flow import DAG, DAGBuilder
from taskiq_flow.testing import ValueChangedError, run
from taskiq_flow.testing.shared_values import difference


@dataclass
class Row:
    price: float


def load() -> list[Row]:
    return [Row(1.0), Row(2.0)]


async def total(rows: list[Row]) -> float:
    before = sum(row.price for row in rows)
    await asyncio.sleep(2.0)
    return before


def graph(task: Any) -> DAG:
    return (
        DAGBuilder()
        .node(load, output="rows")
        .node(total)
        .node(task, name="tax", inputs=["rows"])
        .build()
    )


def checked(dag: DAG, inputs: Any = None, **options: Any) -> ValueChangedError | None:
    try:
        run(dag, inputs, values="shared", check_values=True, **options)
    except ValueChangedError as error:
        return error
    return None


async def tax_in_place(rows: list[Row]) -> None:
    await asyncio.sleep(1.0)  # total holds the rows meanwhile, and ends later
    for row in rows[1:]:
        row.price *= 2


def test_the_node_is_named_with_the_key_and_what_has_changed() -> None:
    error = checked(graph(tax_in_place))
    assert error is not None
    assert (error.task_name, error.key) == ("tax", "rows")
    assert error.change == "[1].price was 2.0 and is 4.0"
    assert "node 'tax' changed the value of 'rows'" in str(error)
    assert pickle.loads(pickle.dumps(error)).change == error.change  # noqa: S301 - dumped here


def test_nodes_that_change_copies_are_fine() -> None:
    def tax(rows: list[Row]) -> list[Row]:
        new = [Row(row.price * 2) for row in rows]
        new.reverse()
        return new

    assert checked(graph(tax)) is None


def test_a_failing_node_a_fallback_and_a_retry_hide_no_change() -> None:
    def tax(rows: list[Row]) -> None:
        rows.clear()
        raise OSError

    dag = DAGBuilder().node(load, output="rows").node(tax, retry=2, fallback=None).build()
    error = checked(dag, on_error="collect")
    assert error is not None
    assert error.change == "[0] is gone, which was Row(price=1.0)"


def test_inputs_of_the_run_and_items_of_generators_are_held_as_well() -> None:
    def numbers(start: list[int]) -> Any:
        yield [1]
        start.append(9)
        yield [2]

    def double(numbers: list[int]) -> None:
        numbers[0] *= 2

    dag = DAGBuilder().node(numbers).build()
    error = checked(dag, {"start": []})
    assert error is not None
    assert (error.task_name, error.key, error.change) == (
        "numbers",
        "start",
        "[0] is new, and is 9",
    )
    dag = DAGBuilder().node(numbers).node(double, map_over="numbers").build()
    error = checked(dag, {"start": [9]}, replace={"numbers": [[1], [2]]})
    assert error is not None
    assert error.task_name == "double[0]"


def test_a_value_that_a_node_has_given_and_changes_later_is_its_own_fault() -> None:
    known: list[str] = []

    def first() -> list[str]:
        return known

    def second(first: list[str]) -> None:
        known.append("x")

    error = checked(DAGBuilder().node(first).node(second).build())
    assert error is not None
    assert (error.task_name, error.key) == ("second", "first")


def test_a_cancellation_reaches_a_task_that_is_watched() -> None:
    ended: list[str] = []

    async def busy(rows: list[Row]) -> None:
        try:
            for _ in range(1000):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def fail(rows: list[Row]) -> None:
        await asyncio.sleep(0)
        raise OSError

    dag = DAGBuilder().node(load, output="rows").node(busy).node(fail).build()
    outcome = run(dag, values="shared", check_values=True)
    assert isinstance(outcome.failures["fail"], OSError)
    assert ended == ["cancelled"]


def test_arrays_are_compared_by_their_bytes() -> None:
    numpy = pytest.importorskip("numpy")

    def scale(values: Any) -> None:
        values[1] = 7

    dag = DAGBuilder().node(lambda: numpy.zeros(3), name="values").node(scale).build()
    error = checked(dag)
    assert error is not None
    assert error.task_name == "scale"


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        ({"a": [1]}, {"a": [1, 2]}, "['a'][1] is new, and is 2"),
        ({"a": 1, "b": 2}, {"a": 1}, "['b'] is gone, which was 2"),
        ({1}, {1, 2}, "it was {1} and is {1, 2}"),
        ([1, "x"], [1, "y"], "[1] was 'x' and is 'y'"),
        ([1], [1], ""),
    ],
)
def test_a_difference_is_told_by_where_it_is(before: Any, now: Any, text: str) -> None:
    assert difference(before, now) == text
