"""The classes that may be restored because tasks deal with them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel

from taskiq_flow import SerializationError
from taskiq_flow.dataflow import known_classes
from taskiq_flow.dataflow.known_classes import ClassesOfTasks, classes_of
from tests.values import kinds


@dataclass
class Point:
    x: int


class Order(BaseModel):
    class State(Enum):
        OPEN = 1

    state: State
    frozen: kinds.Frozen

    class Part(BaseModel):
        name: str


def shipped(order):  # type: ignore[no-untyped-def]
    return order


def moved(point: Point) -> Point:
    return point


def find(classes: ClassesOfTasks) -> type:
    return classes.find(__name__, "Point", "dataclass")


def test_a_class_is_found_while_another_thread_looks_through_the_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classes = ClassesOfTasks(lambda: [moved])
    found: list[Any] = []

    def slowly(task: Any) -> set[type]:
        monkeypatch.setattr(known_classes, "classes_of", classes_of)
        with ThreadPoolExecutor(1) as threads:
            found.append(threads.submit(find, classes).result())
        return classes_of(task)

    monkeypatch.setattr(known_classes, "classes_of", slowly)
    assert find(classes) is Point
    assert found == [Point]


def test_a_class_that_no_task_deals_with_is_refused_each_time() -> None:
    classes = ClassesOfTasks(list)
    for _ in range(2):
        with pytest.raises(SerializationError, match="not among the classes"):
            find(classes)


def test_classes_in_the_fields_of_a_modules_classes_and_within_these_are_known() -> None:
    assert {Order, Order.State, Order.Part, kinds.Frozen, kinds.Point} <= classes_of(shipped)
    assert kinds.Derived not in classes_of(shipped)
