from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, MemoryJournal, NodeCompleted
from taskiq_flow.errors import SerializationError
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import ValueCodec
from tests.recording import Recorder
from tests.values.library_kinds import library_kinds, of_library_kind

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")
pl = pytest.importorskip("polars")
pa = pytest.importorskip("pyarrow")

OPEN = Classes.imported()


def through_json(value: Any) -> Any:
    codec = ValueCodec()
    return codec.decode(json.loads(json.dumps(codec.encode(value), allow_nan=False)), OPEN)


def through_a_frame(value: Any) -> Any:
    codec = ValueCodec()
    return codec.decode_frame(b"".join(codec.encode_frame(value)), OPEN)


WAYS = [through_json, through_a_frame]

ARRAYS = [
    np.arange(12.0).reshape(3, 4), np.asfortranarray(np.arange(12).reshape(3, 4)),
    np.arange(20)[::3], np.array(5), np.zeros((0, 3), "f4"), np.array(["a", "bcd\0"]),
    np.array([b"x", b"yz"]), np.array(["2026-01-01", "NaT"], "M8[ns]"), np.array([1], "m8[25s]"),
    np.array([True, False]), np.array([1 + 2j]), np.array([1, 2], ">i4"), np.array([1], "f2"),
    np.array([(1, 2.5), (3, 4.5)], [("a", "i4"), ("b", "f8", (2,))]), np.zeros(2, "V3"),
    np.array([1.5], np.longdouble), np.zeros((2, 0, 3), "U0"),
    np.zeros(3, [("a", "S0")])["a"], np.zeros(3, [("a", "U0")])["a"],
]  # fmt: skip

SCALARS = [
    np.float64(1.5), np.float32("nan"), np.int8(-3), np.longlong(5), np.uint64(2**64 - 1),
    np.bool_(1), np.complex64(1j), np.datetime64("2026-01-01T00:00", "m"), np.str_("a\0"),
    np.bytes_(b"a\0"), np.timedelta64("NaT", "s"), np.longdouble(1) / 3, np.float16(2),
]  # fmt: skip


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.dtype))
@pytest.mark.parametrize("way", WAYS)
def test_an_array_keeps_dtype_shape_order_and_bytes(way: Callable[[Any], Any], array: Any) -> None:
    other = way([array])[0]
    assert type(other) is np.ndarray
    assert (other.dtype, other.shape) == (array.dtype, array.shape)
    assert other.tobytes() == array.tobytes()
    assert other.flags.f_contiguous or not array.flags.f_contiguous
    assert not other.nbytes or not other.flags.writeable


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda scalar: type(scalar).__name__)
@pytest.mark.parametrize("way", WAYS)
def test_a_scalar_keeps_its_type_and_bytes(way: Callable[[Any], Any], scalar: Any) -> None:
    other = way(scalar)
    assert type(other) is type(scalar)
    assert other.dtype == scalar.dtype
    assert other.tobytes() == scalar.tobytes()


RECORDS = np.rec.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")])
REFUSED: dict[str, tuple[Any, str]] = {
    "objects": (np.array([None, 1]), "use a list"),
    "objects in fields": (np.zeros(1, [("a", object)]), "use a list"),
    "StringDType": (np.array(["a"], "T"), r"dtype is StringDType.*\.astype\('U'\)"),
    "masked": (np.ma.masked_array([1, 2], [0, 1]), r"\.filled\(.*\.mask"),
    "recarray": (RECORDS, r"use numpy\.asarray"),
    "array of records": (np.asarray(RECORDS), r"numpy\.record.* use \.astype"),
    "records in fields": (np.zeros(1, [("a", RECORDS.dtype)]), r"use \.astype"),
    "record": (RECORDS[0], r"use \.item\(\)"),
    "memmap": (np.memmap(__file__, mode="r"), r"use numpy\.asarray"),
    "subclass": (np.zeros(1).view(type("Own", (np.ndarray,), {})), "register its type"),
    "metadata": (np.zeros(1, np.dtype("i4", metadata={"a": 1})), r"use \.astype"),
    "metadata in fields": (
        np.zeros(1, [("a", np.dtype("i4", metadata={"a": 1}))]),
        r"metadata.* use \.astype",
    ),
    "fields that overlap": (
        np.zeros(1, {"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [0, 0]}),
        r"layout .* use \.astype",
    ),
    "fields in another order": (np.zeros(1, "i4,i4")[["f1", "f0"]], r"layout .* use \.astype"),
    "lazy": (pl.LazyFrame({"a": [1]}), r"\.collect\(\)"),
    "polars objects": (pl.DataFrame({"a": [object()]}), "cast it"),
    "sparse": (pd.DataFrame({"a": pd.arrays.SparseArray([0, 1])}), r"\.sparse\.to_dense\(\)"),
    "sparse series": (pd.Series(pd.arrays.SparseArray([0, 1])), r"Sparse.*\.to_dense\(\)"),
    "many nulls": (pa.table({"a": pa.nulls(10**9)}), "does not have 1000000000 rows"),
    "many polars nulls": (pl.select(pl.repeat(None, 2**21)), "does not have 2097152 rows"),
}


@pytest.mark.parametrize(("value", "remedy"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_exact_form_is_refused_with_a_remedy(value: Any, remedy: str) -> None:
    with pytest.raises(SerializationError, match=rf"at \['a'\].*{remedy}"):
        ValueCodec().encode({"a": value})


BERLIN = ZoneInfo("Europe/Berlin")
FRAMES = {
    "object index": pd.DataFrame({"a": [1]}, index=pd.Index(["x"], dtype=object)),
    "plain": pd.DataFrame({"a": [1, 2], "b": [1.5, None], "c": ["x", None]}),
    "empty": pd.DataFrame(),
    "objects": pd.DataFrame({"a": pd.Series([1, None, "x", (1,), dt.date(1, 1, 1)], dtype=object)}),
    "text objects": pd.DataFrame({"a": pd.Series(["x", "y"], dtype=object)}),
    "no objects": pd.DataFrame({"a": pd.Series([], dtype=object)}),
    "labels": pd.DataFrame([[1, 2]], columns=[("a", 1), 5], index=[dt.date(2026, 1, 1)]),
    "twice": pd.DataFrame([[1, 2.5]], columns=["a", "a"]),
    "zones": pd.DataFrame({"a": pd.date_range("2026-01-01", periods=3, freq="D", tz=BERLIN)}),
    "dates": pd.DataFrame({"a": [1, 2]}, index=pd.date_range("2026", periods=2, freq="MS")),
    "masked": pd.DataFrame({"a": pd.array([1, None], "Int64"), "b": pd.array([True, None])}),
    "category": pd.DataFrame({"a": pd.Categorical(["b", "a", None], ["b", "a"], ordered=True)}),
    "text": pd.DataFrame({"a": pd.array(["x", None], "string[python]")}),
    "arrow": pd.DataFrame(
        {
            "a": pd.array([1, None], "int64[pyarrow]"),
            "b": pd.array([[1], None], pd.ArrowDtype(pa.list_(pa.int8()))),
        },
        index=pd.Index(["x", None], dtype=pd.ArrowDtype(pa.string())),
    ),
    "periods": pd.DataFrame(
        {"a": pd.period_range("2026-01", periods=2, freq="M")},
        index=pd.period_range("2026-01-05", periods=2, freq="2h"),
    ),
    "intervals": pd.DataFrame(
        {
            "a": pd.arrays.IntervalArray.from_tuples([(0, 1), None], closed="left"),
            "b": pd.interval_range(pd.Timestamp("2026-01-01", tz="UTC"), periods=2),
            "c": pd.cut([1, 9], 3),
        },
        index=pd.interval_range(0, 2),
    ),
    "no label twice": pd.DataFrame({"a": [1]}).set_flags(allows_duplicate_labels=False),
    "multi": pd.DataFrame(
        {("a", "b"): [1, 2]},
        index=pd.MultiIndex.from_tuples([(1, "x"), (2, "y")], names=["n", None]),
    ),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("way", WAYS)
def test_a_pandas_table_keeps_everything(way: Callable[[Any], Any], frame: Any) -> None:
    frame.attrs = {"source": ("a", 1)}
    other = way(frame)
    pd.testing.assert_frame_equal(frame, other, check_exact=True, check_freq=True)
    assert other.attrs == frame.attrs
    assert other.flags.allows_duplicate_labels == frame.flags.allows_duplicate_labels
    for number in range(frame.shape[1]):
        one, two = frame.iloc[:, number], other.iloc[:, number]
        assert list(map(type, one)) == list(map(type, two))
        pd.testing.assert_series_equal(one, way(one))


@pytest.mark.parametrize(
    "value",
    [
        pd.Timestamp("2026-01-01T00:00:00.000000001"),
        pd.Timestamp("2026-10-25 01:30Z").tz_convert(BERLIN),
        pd.Timestamp(1, unit="s"), pd.Timedelta("1ns"), pd.NaT, pd.NA,
        pd.Period("2026-01", "2M"), pd.Interval(pd.Timestamp(1), pd.Timestamp(2), "both"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", WAYS)
def test_a_pandas_scalar_keeps_its_unit_and_zone(way: Callable[[Any], Any], value: Any) -> None:
    other = way([value])[0]
    assert type(other) is type(value)
    assert repr(other) == repr(value)
    assert getattr(other, "unit", None) == getattr(value, "unit", None)


@pytest.mark.parametrize("way", WAYS)
def test_polars_tables_arrive_equal(way: Callable[[Any], Any]) -> None:
    frame = pl.DataFrame(
        {
            "a": [1, None],
            "b": ["x", "y"],
            "c": [[1], []],
            "d": [dt.date.max, None],
            "e": [None, None],
        },
        schema_overrides={"b": pl.Categorical},
    )
    other = way(frame)
    assert other.schema == frame.schema
    assert other.equals(frame)
    series = way(frame["c"])
    assert type(series) is pl.Series
    assert (series.name, series.to_list()) == ("c", [[1], []])


@pytest.mark.parametrize("way", WAYS)
def test_arrow_values_arrive_equal(way: Callable[[Any], Any]) -> None:
    table = pa.table({"a": [1, None], "b": [["x"], []]}).replace_schema_metadata({"k": "v"})
    values = [
        table, table.to_batches()[0], table.column(0), pa.array([1.5, None]),
        pa.array([], pa.int8()),
        pa.array(["x", "y", "x"]).dictionary_encode(), table.slice(0, 0),
    ]  # fmt: skip
    for value in values:
        other = way(value)
        assert type(other) is type(value)
        assert other.equals(value)
    assert way(table).schema.equals(table.schema, check_metadata=True)


def test_a_frame_holds_raw_buffers_at_aligned_places() -> None:
    array = np.arange(1000.0)
    frame = b"".join(ValueCodec().encode_frame({"a": b"x", "b": array, "c": {b"in a set"}}))
    assert frame.index(array.tobytes()) % 64 == 0
    assert frame.index(b"in a set") % 64 == 0


async def test_a_result_that_has_no_cache_key_itself_is_cached(broker: InMemoryBroker) -> None:
    def texts(values: dict[str, Any]) -> dict[str, str]:
        return {kind: json.dumps(ValueCodec().encode(values[kind])) for kind in library_kinds()}

    builder = DAGBuilder()
    for kind in library_kinds():
        builder.node(of_library_kind, name=kind, given={"kind": kind}, cache=True)
    recorder = Recorder()
    engine = ExecutionEngine(broker, builder.build(), listeners=[recorder], journal=MemoryJournal())
    for source in ("task", "cache"):
        recorder.events.clear()
        assert texts(await engine.execute()) == texts(library_kinds())
        assert {event.source for event in recorder.of(NodeCompleted)} == {source}
