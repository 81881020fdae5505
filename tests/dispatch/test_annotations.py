"""Each annotation of a plain function is read by itself, whatever the others are."""

# ruff: noqa: B008 - taskiq's way to inject

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Optional

import pytest
from pydantic import BaseModel
from taskiq import Context, InMemoryBroker, TaskiqDepends

from taskiq_flow import DAGBuilder, ExecutionEngine

if TYPE_CHECKING:
    from nowhere import Frame  # type: ignore[import-not-found]


class Model(BaseModel):
    x: int


class Plain:
    """Cannot be subscripted, as pandas' ``Series`` cannot be when the program runs."""


def seven() -> int:
    return 7


Injected = Annotated[int, TaskiqDepends(seven)]


def known_to_type_checkers(
    a: Model, b: Frame, c: Injected, d: date, ctx: Context = TaskiqDepends()
) -> Any:
    return a, b, c, d, ctx.message.task_id


def not_subscriptable(
    a: Model,
    b: Plain[float],  # type: ignore[type-arg]
    c: Injected,
    d: date,
    ctx: Context = TaskiqDepends(),
) -> Any:
    return a, b, c, d, ctx.message.task_id


def quoted_in_a_union(
    a: Model,
    b: int | "Model",  # noqa: UP037
    c: Injected,
    d: date,
    ctx: Context = TaskiqDepends(),
) -> Any:
    return a, b, c, d, ctx.message.task_id


def unknown_inside(
    a: Model,
    b: list[Missing],  # type: ignore[name-defined]  # noqa: F821
    c: Injected,
    d: date,
    ctx: Context = TaskiqDepends(),
) -> Any:
    return a, b, c, d, ctx.message.task_id


def no_type_at_all(
    a: Model,
    b: 1 / 0,  # type: ignore[valid-type]
    c: Injected,
    d: date,
    ctx: Context = TaskiqDepends(),
) -> Any:
    return a, b, c, d, ctx.message.task_id


def unknown_result(a: Model, b: int, c: Injected, d: date, ctx: Context = TaskiqDepends()) -> Frame:
    return a, b, c, d, ctx.message.task_id


def evaluated_but_for_one() -> Callable[..., Any]:
    def function(a: Any, b: Any, c: Any, d: Any, ctx: Any = TaskiqDepends()) -> Any:
        return a, b, c, d, ctx.message.task_id

    function.__annotations__ = {
        "a": Optional["Model"],
        "b": list["Missing"],  # type: ignore[name-defined]  # noqa: F821
        "c": Injected,
        "d": date,
        "ctx": Context,
    }
    return function


def annotated_with_a_local_class() -> Callable[..., Any]:
    class Local: ...

    def function(a: Model, b: Local, c: Injected, d: date, ctx: Context = TaskiqDepends()) -> Any:
        return a, b, c, d, ctx.message.task_id

    return function


@pytest.mark.parametrize(
    "function",
    [
        known_to_type_checkers,
        not_subscriptable,
        quoted_in_a_union,
        unknown_inside,
        no_type_at_all,
        unknown_result,
        evaluated_but_for_one(),
        annotated_with_a_local_class(),
    ],
)
async def test_an_annotation_without_a_value_leaves_the_other_parameters_as_they_are(
    broker: InMemoryBroker, function: Callable[..., Any]
) -> None:
    dag = DAGBuilder().node(function, output="out").build()
    inputs = {"a": {"x": 1}, "b": 3, "d": "2020-01-02"}
    engine = ExecutionEngine(broker, dag, type_check="off")  # which tells of misspelt names
    out = (await engine.execute(inputs, run_id="run"))["out"]
    assert out[:4] == (Model(x=1), 3, 7, date(2020, 1, 2))
    assert out[4].startswith("run:")


async def test_a_local_class_that_the_function_closes_over_is_known(
    broker: InMemoryBroker,
) -> None:
    class Local(BaseModel):
        x: int

    def function(a: Local) -> bool:
        return isinstance(a, Local)

    dag = DAGBuilder().node(function, output="out").build()
    assert await ExecutionEngine(broker, dag).execute({"a": {"x": 1}}) == {"out": True}
