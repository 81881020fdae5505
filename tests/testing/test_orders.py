"""The orders in which nodes may complete are found, and the smallest that fails is told."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from taskiq_flow import DAG, DAGBuilder, Retry
from taskiq_flow.testing import OrderError, OrdersChecked, RunOutcome, check_orders


class Shop:
    """Seven nodes. ``ship`` reads the stock that ``reserve`` writes, and nothing says so."""

    def __init__(self) -> None:
        self.stock: dict[str, int] = {}
        self.log: list[str] = []

    def clear(self) -> None:
        self.stock.clear()
        self.log.clear()

    def dag(self) -> DAG:
        def noted(name: str) -> Any:
            def task(*_: Any) -> str:
                self.log.append(name)
                return name

            return task

        def reserve(*_: Any) -> int:
            return self.stock.setdefault("lamp", 1)

        def ship(*_: Any) -> int:
            return self.stock.get("lamp", 0)

        return (
            DAGBuilder()
            .node(noted("order"), name="order")
            .node(noted("price"), name="price", inputs=["order"])
            .node(reserve, name="reserve", inputs=["order"])
            .node(noted("charge"), name="charge", inputs=["price"])
            .node(ship, name="ship", inputs=["charge"])
            .node(noted("invoice"), name="invoice", inputs=["price"])
            .node(noted("close"), name="close", inputs=["ship", "reserve", "invoice"])
            .build()
        )


def has_shipped(outcome: RunOutcome) -> None:
    assert outcome.results["ship"] == 1


def test_an_order_bug_in_a_graph_of_seven_nodes_is_found_and_is_small() -> None:
    shop = Shop()
    with pytest.raises(OrderError) as caught:
        check_orders(shop.dag(), {}, has_shipped, setup=shop.clear)
    order = caught.value.order
    assert order == ["order", "price", "charge", "ship"]
    assert str(caught.value).endswith(f"check_orders(dag, inputs, check, order={order!r})")
    assert isinstance(caught.value.__cause__, AssertionError)
    with pytest.raises(OrderError):
        check_orders(shop.dag(), {}, has_shipped, setup=shop.clear, order=order)
    natural = ["order", "price", "reserve"]
    checked = check_orders(shop.dag(), {}, has_shipped, setup=shop.clear, order=natural)
    assert checked == OrdersChecked(1, all=False)


def test_all_orders_are_run_where_they_are_few() -> None:
    shop, seen = Shop(), set()
    dag = shop.dag()

    def check(outcome: RunOutcome) -> None:
        seen.add(tuple(outcome.order))

    checked = check_orders(dag, {}, check, setup=shop.clear, most=None)
    # order, then price before charge before ship, invoice after price, reserve anywhere; close
    assert checked == OrdersChecked(len(seen), all=True)
    assert len(seen) == 3 * 5
    before = {"charge": "price", "ship": "charge", "invoice": "price"}
    for order in seen:
        assert all(order.index(a) < order.index(b) for b, a in before.items())


class Falsy:
    """Like a false value of numpy."""

    def __bool__(self) -> bool:
        return False


def wide(log: list[str], nodes: int) -> DAG:
    builder = DAGBuilder()
    for number in range(nodes):
        name = f"n{number}"
        builder.node(lambda name=name: log.append(name), name=name)
    return builder.build()


def test_of_many_orders_some_are_run_at_random_and_a_failing_one_is_made_smaller() -> None:
    log: list[str] = []
    dag = wide(log, 7)

    def no_bug(_: RunOutcome) -> bool:
        return not (log.index("n6") < log.index("n5") < log.index("n4") < log.index("n3"))

    checked = check_orders(dag, {}, lambda _: True, setup=log.clear, most=60)
    assert checked == OrdersChecked(60, all=False)
    assert math.factorial(7) > 60
    with pytest.raises(OrderError) as caught:
        check_orders(dag, {}, no_bug, setup=log.clear, most=200, seed=5)
    assert caught.value.order == ["n6", "n5", "n4"]
    again = caught.value.order
    with pytest.raises(OrderError) as same:
        check_orders(dag, {}, no_bug, setup=log.clear, order=again)
    assert same.value.order == again


def test_elements_of_maps_items_of_generators_and_attempts_are_chosen_as_nodes_are() -> None:
    tries: list[int] = []

    def flaky(n: int) -> int:
        tries.append(n)
        if len(tries) == 1:
            raise OSError
        return n

    def numbers() -> Any:
        yield from (1, 2)

    dag = (
        DAGBuilder()
        .node(numbers)
        .node(abs, name="each", inputs=["numbers"], map_over="numbers")
        .node(flaky, retry=Retry(attempts=2, wait=0.0))
        .build()
    )
    seen = set()

    def check(outcome: RunOutcome) -> None:
        assert outcome.results == {"numbers": [1, 2], "each": [1, 2], "flaky": 0}
        seen.add(tuple(outcome.order))

    checked = check_orders(dag, {"n": 0}, check, setup=tries.clear)
    assert checked.all
    assert checked.count >= len(seen) > 3
    elements = {tuple(n for n in order if n.startswith("each")) for order in seen}
    assert elements == {("each[0]", "each[1]"), ("each[1]", "each[0]")}


def test_a_task_that_waits_is_at_its_end_before_the_next_one_begins() -> None:
    log: list[str] = []

    def slow(name: str) -> Any:
        async def task() -> None:
            log.append(f"{name} begins")
            await asyncio.sleep(1.0)
            log.append(f"{name} ends")

        return task

    dag = DAGBuilder().node(slow("a"), name="a").node(slow("b"), name="b").build()

    def check(_: RunOutcome) -> bool:
        return [line[0] for line in log] in (list("aabb"), list("bbaa"))

    assert check_orders(dag, {}, check, setup=log.clear) == OrdersChecked(2, all=True)


def test_what_fails_without_the_check_looking_at_it_is_the_results() -> None:
    dag = DAGBuilder().node(lambda: 1 / 0, name="bad").build()
    with pytest.raises(OrderError) as caught:
        check_orders(dag, {}, lambda outcome: outcome.results)
    assert caught.value.order == []
    assert caught.value.outcome is not None
    assert isinstance(caught.value.outcome.failures["bad"], ZeroDivisionError)


@pytest.mark.parametrize("answer", [False, 0, "", Falsy()])
def test_a_check_fails_by_any_false_value_but_none(answer: object) -> None:
    """As a comparison of numpy gives one, which is not ``False`` itself."""
    with pytest.raises(OrderError) as caught:
        check_orders(wide([], 1), {}, lambda _: answer)
    assert str(caught.value.__cause__) == f"the check is {answer!r}"
    assert check_orders(wide([], 1), {}, lambda _: None).count == 1


def test_async_functions_that_would_check_nothing_are_refused() -> None:
    async def never_awaited(*_: object) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match=r"check is .*, which is async"):
        check_orders(wide([], 1), {}, never_awaited)
    with pytest.raises(TypeError, match=r"setup is .*, which is async"):
        check_orders(wide([], 1), {}, lambda _: None, setup=never_awaited)


def test_an_order_that_cannot_be_is_refused() -> None:
    dag = wide([], 2)
    with pytest.raises(ValueError, match=r"'n3', which is not in flight after \['n1'\]; in flight"):
        check_orders(dag, {}, lambda _: None, order=["n1", "n3"])
    with pytest.raises(ValueError, match="names 'n0' after all nodes have completed"):
        check_orders(dag, {}, lambda _: None, order=["n1", "n0", "n0"])
    with pytest.raises(ValueError, match="most is 0"):
        check_orders(dag, {}, lambda _: None, most=0)
    with pytest.raises(TypeError, match="check is None"):
        check_orders(dag, {}, None)  # type: ignore[arg-type]
