"""What one taker does to its value is seen by no other, however the value is nested."""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow.values.isolation import Isolation, detached, isolated


@dataclass
class Data:
    part: Any


leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
)
rows = st.lists(st.dictionaries(st.text(max_size=2), leaves, max_size=3), max_size=4)
values = st.recursive(
    leaves | st.sets(st.integers()) | st.binary(max_size=3).map(bytearray) | rows,
    lambda parts: (
        st.lists(parts, max_size=4)
        | st.lists(parts, max_size=3).map(tuple)
        | st.lists(parts, max_size=3).map(deque)
        | st.dictionaries(leaves, parts, max_size=3)
        | st.lists(st.dictionaries(st.text(max_size=2), parts, max_size=2), max_size=3)
        | st.builds(Data, parts)
    ),
    max_leaves=12,
)


def change(value: Any) -> None:
    """Change all that can be changed."""
    match value:
        case list() | deque():
            for part in value:
                change(part)
            value.append("changed")
        case tuple():
            for part in value:
                change(part)
        case dict():
            for part in value.values():
                change(part)
            value["changed"] = True
        case set():
            value.add("changed")
        case bytearray():
            value.append(0)
        case Data(part):
            change(part)
            value.part = "changed"


@given(values)
def test_what_a_taker_changes_nobody_else_sees(value: Any) -> None:
    before = copy.deepcopy(value)
    take = Isolation()
    for taker in (isolated, detached, take, take, take.kept):
        taken = taker(value)
        assert taken == before
        change(taken)
        assert value == before


@given(values)
def test_a_copy_that_a_run_keeps_is_not_changed_by_whoever_gave_it(value: Any) -> None:
    before = copy.deepcopy(value)
    take = Isolation()
    kept = take.kept(value)
    change(value)
    assert kept == before
    change(take(kept))
    assert kept == before
