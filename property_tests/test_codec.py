"""Values of all kinds, nested, arrive as they left, by every way."""

from __future__ import annotations

import copy
import json
import pickle
from collections import Counter, OrderedDict, deque
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from taskiq_flow.processes.child_main import pickled
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import ValueCodec
from taskiq_flow.values.digest import digest_of
from taskiq_flow.values.plain import is_plain
from tests.values.generated import form, hashables, values
from tests.values.kinds import Pair, Point

OPEN = Classes.imported()
CODEC = ValueCodec()

FEWER = settings(max_examples=settings().max_examples // 2)  # each of many values within values


def text(value: Any, *, strict: bool = False) -> str:
    return json.dumps(CODEC.encode(value, strict=strict), allow_nan=False)


@FEWER
@given(values)
def test_a_value_arrives_equal_with_all_of_its_types(value: Any) -> None:
    for strict in (False, True):
        assert form(CODEC.decode(json.loads(text(value, strict=strict)), OPEN)) == form(value)
    assert form(CODEC.decode_frame(b"".join(CODEC.encode_frame(value)), OPEN)) == form(value)


@FEWER
@given(values)
def test_encoding_changes_nothing_and_repeats_itself(value: Any) -> None:
    before = form(value)
    first = text(value)
    assert form(value) == before
    assert text(copy.deepcopy(value)) == first


@FEWER
@given(values, values)
def test_distinct_values_have_distinct_encodings(one: Any, other: Any) -> None:
    assert (text(one) == text(other)) == (form(one) == form(other))


@FEWER
@given(hashables)
def test_containers_of_one_item_have_distinct_encodings_and_digests(item: Any) -> None:
    holders = [
        item, [item], (item,), {item}, frozenset({item}), deque([item]), {item: 1}, {1: item},
        Counter({item: 1}), OrderedDict({item: 1}), Pair(item, 1), (item, 1), Point(item, 1),
    ]  # fmt: skip
    forms = [repr(form(holder)) for holder in holders]
    texts = [text(holder) for holder in holders]
    assert len(set(texts)) == len(set(forms))
    known = {
        form: digest
        for form, holder in zip(forms, holders, strict=True)
        if (digest := digest_of(holder))
    }
    assert len(set(known.values())) == len(known)


@FEWER
@given(values)
def test_a_plain_value_is_what_json_reads_back(value: Any) -> None:
    if is_plain(value):
        assert form(json.loads(json.dumps(value, allow_nan=False))) == form(value)
        assert CODEC.encode(value) is value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["$tf", "v", "x"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@FEWER
@given(json_values)
def test_no_plain_data_of_strangers_are_taken_for_tags(value: Any) -> None:
    for sent in (value, {"$tf": 1, "v": value}, {"$tf": [value]}):
        assert form(CODEC.decode(json.loads(json.dumps(CODEC.encode(sent))), OPEN)) == form(sent)


class OddError(Exception):
    """Takes other arguments than it keeps."""

    __slots__ = ("place",)

    def __init__(self, *, code: Any, place: Any) -> None:
        super().__init__("odd", code)
        self.code, self.place = code, place


def with_cause(parts: tuple[BaseException, BaseException]) -> BaseException:
    error, cause = parts
    error.__cause__ = cause
    return error


errors = st.recursive(
    st.builds(OddError, code=values, place=values)
    | st.builds(LookupError, values, values)
    | st.builds(FileNotFoundError, st.integers(1, 40), st.text(max_size=3), st.text(max_size=3)),
    lambda inner: (
        st.tuples(inner, inner).map(with_cause)
        | st.builds(ExceptionGroup, st.text(max_size=3), st.lists(inner, min_size=1, max_size=2))
    ),
    max_leaves=4,
)


def told(error: BaseException | None) -> Any:
    if error is None:
        return None
    members = [told(member) for member in getattr(error, "exceptions", ())]
    args = form(error.args) if not members else ""
    own = form(vars(error)), form(getattr(error, "place", None)), getattr(error, "filename", None)
    return type(error), args, *own, members, told(error.__cause__), error.__suppress_context__


@FEWER
@given(errors, values)
def test_errors_arrive_by_every_way_with_their_attributes_and_causes(
    error: Any, value: Any
) -> None:
    for sent in (error, [error, value]):
        back = [
            pickle.loads(pickled(sent)),  # noqa: S301 - written here
            CODEC.decode(json.loads(text(sent)), OPEN),
        ]
        for found in back:
            other, *rest = found if sent is not error else [found]
            assert told(other) == told(error)
            assert form(rest) == form([value] if sent is not error else [])
