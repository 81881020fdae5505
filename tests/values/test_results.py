"""Results that were stored, and what their tasks' annotations say of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel

from taskiq_flow.values import results
from taskiq_flow.values.results import fitting


def test_the_annotation_of_many_results_is_read_once() -> None:
    class Point(BaseModel):
        x: int

    read = results._fit_of.cache_info().misses
    assert [fitting({"x": number}, Point) for number in range(5)] == [Point(x=n) for n in range(5)]
    assert results._fit_of.cache_info().misses == read + 1


def test_an_annotation_without_a_hash_is_read_each_time() -> None:
    unhashable = Annotated[int, ["a remark"]]
    assert [fitting("3", unhashable) for _ in range(2)] == [3, 3]
