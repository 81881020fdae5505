"""The tags of pandas' tables and scalars. pandas is used only where it has been imported."""

from __future__ import annotations

from typing import Any

from taskiq_flow.values.arrays import library
from taskiq_flow.values.tables import arrow
from taskiq_flow.values.tags import encode_zone
from taskiq_flow.values.tree import Decode, Decoder, Encoder, Handler, RefusedError


def find_pandas(value: Any) -> Handler | None:
    """The tag of a value of pandas' and its function, if it is carried."""
    pd = library("pandas")
    handlers: dict[Any, Handler] = {
        pd.DataFrame: ("pf", _frame),
        pd.Series: ("ps", _series),
        pd.Timestamp: ("pt", _timestamp),
        pd.Timedelta: ("pd", lambda _, span: (int(span.asm8.view("i8")), span.unit)),
        pd.Period: ("pe", lambda _, period: (period.ordinal, period.freqstr)),
        pd.Interval: ("pv", _interval),
        type(pd.NaT): ("pn", lambda _, __: ("NaT",)),
        type(pd.NA): ("pn", lambda _, __: ("NA",)),
    }
    if isinstance(value, pd.Index):
        return "pi", _index
    return handlers.get(type(value))


def _timestamp(encoder: Encoder, value: Any) -> tuple[Any, ...]:
    return int(value.asm8.view("i8")), value.unit, encode_zone(encoder, value.tzinfo)


def _read_timestamp(decoder: Decoder, parts: list[Any]) -> Any:
    pd, numpy = library("pandas"), library("numpy")
    count, unit, zone = parts
    moment = pd.Timestamp(numpy.datetime64(count, unit))
    tz = decoder.decode(zone)
    return moment if tz is None else moment.tz_localize("UTC").tz_convert(tz)


def _read_timedelta(decoder: Decoder, parts: list[Any]) -> Any:
    return library("pandas").Timedelta(library("numpy").timedelta64(*parts))


def _read_period(decoder: Decoder, parts: list[Any]) -> Any:
    ordinal, frequency = parts
    return library("pandas").Period(ordinal=ordinal, freq=frequency)


def _interval(encoder: Encoder, value: Any) -> tuple[Any, ...]:
    return *encoder.items([value.left, value.right]), value.closed


def _read_interval(decoder: Decoder, parts: list[Any]) -> Any:
    left, right, closed = decoder.items(parts)
    return library("pandas").Interval(left, right, closed)


def _read_missing(decoder: Decoder, parts: list[Any]) -> Any:
    pd = library("pandas")
    return {"NaT": pd.NaT, "NA": pd.NA}[parts[0]]


def _frame(encoder: Encoder, value: Any) -> tuple[Any, ...]:
    columns = []
    for number in range(value.shape[1]):
        try:
            columns.append(_column(encoder, value.iloc[:, number].array))
        except RefusedError as error:
            error.parts.append(f"[{str(value.columns[number])[:80]!r}]")
            raise
    return (
        columns,
        encoder.encode(value.index),
        encoder.encode(value.columns),
        *_notes(encoder, value),
    )


def _read_frame(decoder: Decoder, parts: list[Any]) -> Any:
    pd = library("pandas")
    trees, index, columns, *notes = parts
    rows = decoder.decode(index)
    found = [_read_column(decoder, tree) for tree in trees]
    if any(len(column) != len(rows) for column in found):
        raise RefusedError("the columns of a table differ in length")
    # A constructor that is not told the dtype takes objects that are strings for dtype ``str``.
    series = [pd.Series(column, index=rows, dtype=column.dtype, copy=True) for column in found]
    frame = pd.DataFrame(dict(enumerate(series)), index=rows)
    frame.columns = decoder.decode(columns)
    return _with_notes(decoder, frame, *notes)


def _series(encoder: Encoder, value: Any) -> tuple[Any, ...]:
    return (
        _column(encoder, value.array),
        encoder.encode(value.index),
        encoder.encode(value.name),
        *_notes(encoder, value),
    )


def _notes(encoder: Encoder, value: Any) -> tuple[Any, bool]:
    """What a table or a series has besides its data."""
    return encoder.encode(value.attrs), value.flags.allows_duplicate_labels


def _with_notes(decoder: Decoder, value: Any, attributes: Any, allows_duplicates: Any) -> Any:
    value.attrs = decoder.decode(attributes)
    value.flags.allows_duplicate_labels = bool(allows_duplicates)
    return value


def _read_series(decoder: Decoder, parts: list[Any]) -> Any:
    pd = library("pandas")
    column, index, name, *notes = parts
    values, rows = _read_column(decoder, column), decoder.decode(index)
    label = decoder.decode(name)
    series = pd.Series(values, index=rows, name=label, dtype=values.dtype, copy=True)
    return _with_notes(decoder, series, *notes)


def _column(  # noqa: C901, PLR0911 - one case for each kind of dtype
    encoder: Encoder, values: Any
) -> list[Any]:
    """The tree of one array of pandas'."""
    pd = library("pandas")
    if type(values) is pd.arrays.NumpyExtensionArray:
        values = values.to_numpy()
    dtype = values.dtype
    if getattr(dtype, "hasobject", False):
        return ["objects", encoder.items(list(values))]
    if isinstance(dtype, pd.CategoricalDtype):
        codes = encoder.encode(values.codes)
        return ["category", codes, encoder.encode(values.categories), values.ordered]
    if isinstance(dtype, pd.DatetimeTZDtype):
        moments = encoder.encode(values.asi8)
        return ["zoned", moments, dtype.unit, encode_zone(encoder, dtype.tz)]
    if isinstance(dtype, pd.StringDtype):
        known = "NA" if dtype.na_value is pd.NA else "nan"
        return ["text", dtype.storage, known, _as_arrow(encoder, values)]
    if hasattr(values, "_mask") and hasattr(values, "_data"):  # Int64, Float32, boolean, ...
        return ["masked", str(dtype), _as_arrow(encoder, values)]
    if isinstance(dtype, pd.ArrowDtype):
        return ["arrow", _as_arrow(encoder, values)]
    if isinstance(dtype, pd.PeriodDtype):
        return ["period", encoder.encode(values.asi8), str(dtype)]
    if isinstance(dtype, pd.IntervalDtype):
        ends = [encoder.encode(_stored(end)) for end in (values.left, values.right)]
        return ["interval", *ends, dtype.closed]
    if isinstance(dtype, library("numpy").dtype):
        return ["numpy", encoder.encode(library("numpy").asarray(values))]
    remedy = "use .sparse.to_dense()" if isinstance(dtype, pd.SparseDtype) else "use .astype(...)"
    raise RefusedError(f"its dtype {dtype} is not carried; {remedy}", kind=type(values))


def _stored(index: Any) -> Any:
    """An index whose values are written, and not the bounds of a range."""
    pd = library("pandas")
    return pd.Index(index.to_numpy(), name=index.name) if type(index) is pd.RangeIndex else index


def _as_arrow(encoder: Encoder, values: Any) -> Any:
    return encoder.encode(arrow().array(values))


def _read_column(  # noqa: PLR0911 - one case for each form
    decoder: Decoder, parts: list[Any]
) -> Any:
    pd, numpy = library("pandas"), library("numpy")
    form, *rest = parts
    match form:
        case "numpy":
            return _numbers(decoder, rest[0])
        case "objects":
            items = decoder.items(rest[0])
            found = numpy.empty(len(items), dtype=object)
            found[:] = items
            return found
        case "category":
            kind = pd.CategoricalDtype(decoder.decode(rest[1]), rest[2])
            return pd.Categorical.from_codes(_numbers(decoder, rest[0]), dtype=kind)
        case "zoned":
            moments = _numbers(decoder, rest[0]).view(f"M8[{rest[1]}]")
            zoned = pd.DatetimeIndex(moments).tz_localize("UTC")
            return zoned.tz_convert(decoder.decode(rest[2])).array
        case "text":
            missing = pd.NA if rest[1] == "NA" else numpy.nan
            kind = pd.StringDtype(rest[0], na_value=missing)
            return kind.__from_arrow__(_arrow_array(decoder, rest[2], _TEXT))
        case "arrow":
            return pd.arrays.ArrowExtensionArray(decoder.decode(rest[0]))
        case "period":
            return pd.arrays.PeriodArray(_numbers(decoder, rest[0]), pd.PeriodDtype(rest[1]))
        case "interval":
            left, right, closed = decoder.items(rest)
            _check_stored([left, right], most=_MOST_ENDS)
            return pd.arrays.IntervalArray.from_arrays(left, right, closed)
        case "masked":
            kind = pd.api.types.pandas_dtype(rest[0])
            return kind.__from_arrow__(_arrow_array(decoder, rest[1], _MASKED))
    raise RefusedError(f"a column of the form {str(form)[:40]!r} is not known here")


_MOST_ENDS = 1_000
_MOST_IN_LEVEL = 2**20
"""Items of a range that stands for the ends of intervals, or for a level of an index, in what
earlier versions wrote. pandas takes 16 bytes for an interval, and one for an item of a level.
"""

_TEXT = ("is_string", "is_large_string", "is_string_view")
_MASKED = ("is_integer", "is_floating", "is_boolean")
"""Types of pyarrow, by the functions that tell them, which have data for each item."""


def _arrow_array(decoder: Decoder, tree: Any, kinds: tuple[str, ...]) -> Any:
    """A column of pyarrow that pandas copies: not one of nulls or runs, which have no data."""
    found, types = decoder.decode(tree), arrow().types
    if not any(getattr(types, kind)(found.type) for kind in kinds if hasattr(types, kind)):
        raise RefusedError(f"a column of pandas is not made of {str(found.type)[:40]}")
    return found


def _numbers(decoder: Decoder, tree: Any) -> Any:
    """An array of a dtype that pandas keeps, each of whose items has data: not a range."""
    found = decoder.decode(tree)
    if type(found) is not library("numpy").ndarray or found.dtype.kind not in "biufcmM":
        raise RefusedError("a column of pandas is not made of an array of numbers")
    return found


def _check_stored(indexes: list[Any], most: int) -> None:
    """Refuse ranges of more than ``most`` items, which pandas would write out."""
    pd = library("pandas")
    for index in indexes:
        if not isinstance(index, pd.Index):
            raise RefusedError("an index of pandas is missing")
        if type(index) is pd.RangeIndex and len(index) > most:
            raise RefusedError(f"a range stands for {len(index)} values of an index")


def _index(encoder: Encoder, value: Any) -> tuple[Any, ...]:
    pd = library("pandas")
    if type(value) is pd.RangeIndex:
        bounds = [value.start, value.stop, value.step]
        return "range", encoder.items(bounds), encoder.encode(value.name)
    if type(value) is pd.MultiIndex:
        levels = encoder.items(list(map(_stored, value.levels)))
        codes = encoder.items([library("numpy").asarray(code) for code in value.codes])
        return "multi", [levels, codes], encoder.items(list(value.names))
    has_frequency = type(value) in {pd.DatetimeIndex, pd.TimedeltaIndex}
    frequency = value.freqstr if has_frequency else None
    return "values", [_column(encoder, value.array), frequency], encoder.encode(value.name)


def _read_index(decoder: Decoder, parts: list[Any]) -> Any:
    pd = library("pandas")
    form, content, name = parts
    if form == "range":
        return pd.RangeIndex(*decoder.items(content), name=decoder.decode(name))
    if form == "multi":
        levels, codes = decoder.items(content[0]), [_numbers(decoder, tree) for tree in content[1]]
        _check_stored(levels, most=_MOST_IN_LEVEL)
        return pd.MultiIndex(levels, codes, names=decoder.items(name))
    values, frequency = content
    array = _read_column(decoder, values)
    index = pd.Index(array, name=decoder.decode(name), dtype=array.dtype)
    if frequency is not None:
        index.freq = frequency
    return index


DECODE: dict[str, Decode] = {
    "pf": _read_frame,
    "ps": _read_series,
    "pi": _read_index,
    "pt": _read_timestamp,
    "pd": _read_timedelta,
    "pe": _read_period,
    "pv": _read_interval,
    "pn": _read_missing,
}
