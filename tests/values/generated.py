"""Generated values: all kinds within one another, for property tests; and what tells them apart."""

from __future__ import annotations

import importlib.util
import math
import re
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import attrs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.values.kinds import Access, Attrs, CodedError, Colour, Frozen, Level, Model, Pair, Point

hashables = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.binary()
    | st.text(st.characters(codec=None)) | st.sampled_from([*Colour, *Level, "$tf", 2**80])
    | st.dates() | st.times() | st.timedeltas() | st.uuids() | st.decimals(allow_nan=False)
    | st.fractions() | st.datetimes(timezones=st.none() | st.timezones())
    | st.complex_numbers(allow_nan=False)
    | st.ip_addresses(),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3)
    | st.builds(Pair, inner, inner),
    max_leaves=6,
)  # fmt: skip

values = st.recursive(
    hashables | st.builds(bytearray, st.binary()) | st.sampled_from([math.inf, -math.inf, ...]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hashables, inner, max_size=4)
    | st.dictionaries(st.sampled_from(["$tf", "v", "a"]), inner) | st.sets(hashables, max_size=3)
    | st.builds(Point, inner, inner) | st.builds(Model, when=inner)
    | st.builds(deque, st.lists(inner))
    | st.builds(Counter, st.lists(hashables))
    | st.builds(OrderedDict, st.dictionaries(hashables, inner)),
    max_leaves=12,
)  # fmt: skip
"""Values of which two are the same if ``form`` is: NaN is not in them."""

_numbers = st.integers(-9, 9)

_wider = st.recursive(
    values | st.floats() | st.decimals() | st.builds(range, _numbers, _numbers, st.just(2))
    | st.builds(slice, _numbers, _numbers) | st.sampled_from([re.compile("a+"), Path("/a/b")])
    | st.sampled_from([PurePosixPath("a"), Access.READ | Access.WRITE]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hashables, inner, max_size=4)
    | st.lists(inner, max_size=3).map(tuple) | st.builds(Pair, inner, inner)
    | st.builds(Attrs, inner) | st.builds(CodedError, _numbers, st.text())
    | st.builds(lambda part: Frozen(datetime(2026, 1, 1, tzinfo=UTC), (Point(part),)), inner)
    | st.builds(lambda items: deque(items, maxlen=3), st.lists(inner, max_size=3))
    | st.builds(lambda items: defaultdict(list, items), st.dictionaries(st.text(), inner)),
    max_leaves=8,
)  # fmt: skip


def _with_libraries() -> st.SearchStrategy[Any]:
    """With arrays and tables, where their libraries are installed."""
    if importlib.util.find_spec("numpy") is None or importlib.util.find_spec("pandas") is None:
        return _wider
    from hypothesis.extra import numpy, pandas  # noqa: PLC0415 - not in every environment

    arrays = numpy.arrays(
        numpy.scalar_dtypes() | numpy.array_dtypes(max_size=2),
        numpy.array_shapes(min_dims=0, min_side=0, max_side=3),
    )
    tables = pandas.data_frames(
        [pandas.column("a", dtype=int), pandas.column("b", dtype=float)],
        index=pandas.range_indexes(max_size=3),
    )
    return _wider | st.lists(
        _wider | arrays | numpy.scalar_dtypes().flatmap(numpy.from_dtype) | tables, max_size=3
    )


def batch(count: int) -> list[Any]:
    """Values of all kinds, anew at each call.

    They are not drawn within a test: a batch that goes over a server at once would be too large for
    one example of hypothesis. A test says which of its values did not arrive.
    """
    made: list[Any] = []

    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_with_libraries())
    def collect(value: Any) -> None:
        made.append(value)

    collect()
    return made


def form(value: Any) -> Any:  # noqa: PLR0911 - one line for each kind
    """What tells two values apart: all types, all parts, the order of dictionaries."""
    kind = type(value)
    if isinstance(value, dict):
        factory = getattr(value, "default_factory", None)
        return kind, factory, [(form(key), form(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return kind, getattr(value, "maxlen", None), [form(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return kind, sorted(repr(form(item)) for item in value)
    if isinstance(value, (Point, Model)):
        return kind, form(vars(value))
    if isinstance(value, Exception):
        return kind, form(value.args), form(vars(value))
    if isinstance(value, Frozen):
        return kind, form((value.when, value.points))
    if attrs.has(kind):
        return kind, form(attrs.astuple(value, recurse=False))
    if kind.__module__.partition(".")[0] == "numpy":
        return kind, repr(value.dtype), value.shape, value.tobytes()
    if kind.__module__.partition(".")[0] == "pandas":
        return (
            kind,
            repr(value.dtypes),
            [form(value[name].to_numpy()) for name in value],
            repr(value.index),
        )
    return kind, repr(value)
