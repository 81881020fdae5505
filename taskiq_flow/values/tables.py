"""The tags of tables: pandas, polars and pyarrow. Each is used only where it has been imported."""

from __future__ import annotations

import io
from typing import Any

from taskiq_flow.values.arrays import library
from taskiq_flow.values.tags import encode_zone
from taskiq_flow.values.tree import Decode, Decoder, Encoder, Handler, RefusedError

_FREE_ROWS = 2**20
"""Rows that a table may have beyond those that its bytes can hold: columns of nulls have none."""

_OLDEST_ARROW = (14, 0, 1)


def find_arrow(value: Any) -> Handler | None:
    """The tag of a value of pyarrow's and its function, if it is carried."""
    pa = _arrow()
    if type(value) in {pa.Table, pa.RecordBatch, pa.ChunkedArray} or isinstance(value, pa.Array):
        return "pa", _encode_arrow
    return None


def _arrow() -> Any:
    pa = library("pyarrow")
    version = tuple(int(part) for part in pa.__version__.split(".")[:3] if part.isdigit())
    if version < _OLDEST_ARROW:
        raise RefusedError(f"pyarrow {pa.__version__} is unsafe; install pyarrow>=14.0.1")
    return pa


def _encode_arrow(encoder: Encoder, value: Any) -> tuple[Any, ...]:
    pa = _arrow()
    if type(value) is pa.Table:
        return "table", value.num_rows, encoder.binary(_written(pa, value))
    if type(value) is pa.RecordBatch:
        return "batch", value.num_rows, encoder.binary(_written(pa, pa.Table.from_batches([value])))
    form = "chunks" if type(value) is pa.ChunkedArray else "array"
    return form, len(value), encoder.binary(_written(pa, pa.table({"": value})))


def _written(pa: Any, table: Any) -> Any:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def _read_arrow(decoder: Decoder, parts: list[Any]) -> Any:
    form, rows, leaf = parts
    pa, content = _arrow(), decoder.binary(leaf)
    _check_rows(rows, content)
    reader = pa.ipc.open_stream(pa.py_buffer(content))
    batches, found = [], 0
    for batch in reader:
        batch.validate(full=True)
        batches.append(batch)
        found += batch.num_rows
    if found != rows:
        raise RefusedError(f"a table of {rows} rows has {found}")
    table = pa.Table.from_batches(batches, reader.schema)
    if form == "table":
        return table
    if form == "batch":
        combined = table.combine_chunks().to_batches()
        return combined[0] if combined else pa.RecordBatch.from_pylist([], schema=table.schema)
    column = table.column(0)
    if form == "chunks":
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.array([], column.type) if column.num_chunks == 0 else column.combine_chunks()


def _check_rows(rows: Any, content: memoryview) -> None:
    if type(rows) is not int or not 0 <= rows <= 8 * content.nbytes + _FREE_ROWS:
        raise RefusedError(f"a table does not have {str(rows)[:40]} rows in {content.nbytes} bytes")


def find_polars(value: Any) -> Handler | None:
    """The tag of a value of polars' and its function, if it is carried."""
    pl = library("polars")
    if type(value) is pl.LazyFrame:
        raise RefusedError("a LazyFrame is a plan and no data; use .collect()", kind=pl.LazyFrame)
    return ("pl", _encode_polars) if type(value) in {pl.DataFrame, pl.Series} else None


def _encode_polars(encoder: Encoder, value: Any) -> tuple[Any, ...]:
    pl = library("polars")
    is_series = type(value) is pl.Series
    frame = value.to_frame() if is_series else value
    if any("Object" in repr(kind) and _has_objects(pl, kind) for kind in frame.dtypes):
        raise RefusedError("it has a column of dtype Object; cast it", kind=type(value))
    sink = io.BytesIO()
    frame.write_ipc(sink)
    return "series" if is_series else "frame", frame.height, encoder.binary(sink.getbuffer())


def _has_objects(pl: Any, dtype: Any) -> bool:
    inner = [getattr(dtype, "inner", None), *(part.dtype for part in getattr(dtype, "fields", ()))]
    return dtype == pl.Object or any(_has_objects(pl, part) for part in inner if part is not None)


def _read_polars(decoder: Decoder, parts: list[Any]) -> Any:
    form, rows, leaf = parts
    pl, content = library("polars"), decoder.binary(leaf)
    _check_rows(rows, content)
    frame = pl.read_ipc(io.BytesIO(content))
    if frame.height != rows:
        raise RefusedError(f"a table of {rows} rows has {frame.height}")
    return frame.to_series(0) if form == "series" else frame


def find_pandas(value: Any) -> Handler | None:
    """The tag of a value of pandas' and its function, if it is carried."""
    pd = library("pandas")
    handlers: dict[Any, Handler] = {
        pd.DataFrame: ("pf", _frame),
        pd.Series: ("ps", _series),
        pd.Timestamp: ("pt", _timestamp),
        pd.Timedelta: ("pd", lambda _, span: (int(span.asm8.view("i8")), span.unit)),
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
        encoder.encode(value.attrs),
    )


def _read_frame(decoder: Decoder, parts: list[Any]) -> Any:
    pd = library("pandas")
    trees, index, columns, attributes = parts
    rows = decoder.decode(index)
    found = [_read_column(decoder, tree) for tree in trees]
    if any(len(column) != len(rows) for column in found):
        raise RefusedError("the columns of a table differ in length")
    # A constructor that is not told the dtype takes objects that are strings for dtype ``str``.
    series = [pd.Series(column, index=rows, dtype=column.dtype, copy=True) for column in found]
    frame = pd.DataFrame(dict(enumerate(series)), index=rows)
    frame.columns = decoder.decode(columns)
    frame.attrs = decoder.decode(attributes)
    return frame


def _series(encoder: Encoder, value: Any) -> tuple[Any, ...]:
    return (
        _column(encoder, value.array),
        encoder.encode(value.index),
        encoder.encode(value.name),
        encoder.encode(value.attrs),
    )


def _read_series(decoder: Decoder, parts: list[Any]) -> Any:
    pd = library("pandas")
    column, index, name, attributes = parts
    values, rows = _read_column(decoder, column), decoder.decode(index)
    label = decoder.decode(name)
    series = pd.Series(values, index=rows, name=label, dtype=values.dtype, copy=True)
    series.attrs = decoder.decode(attributes)
    return series


def _column(encoder: Encoder, values: Any) -> list[Any]:
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
    if isinstance(dtype, library("numpy").dtype):
        return ["numpy", encoder.encode(library("numpy").asarray(values))]
    raise RefusedError(f"its dtype {dtype} is not carried; use astype", kind=type(values))


def _as_arrow(encoder: Encoder, values: Any) -> Any:
    found = _arrow().array(values)
    return encoder.encode(found)


def _read_column(decoder: Decoder, parts: list[Any]) -> Any:
    pd, numpy = library("pandas"), library("numpy")
    form, *rest = parts
    match form:
        case "numpy":
            return decoder.decode(rest[0])
        case "objects":
            items = decoder.items(rest[0])
            found = numpy.empty(len(items), dtype=object)
            found[:] = items
            return found
        case "category":
            kind = pd.CategoricalDtype(decoder.decode(rest[1]), rest[2])
            return pd.Categorical.from_codes(decoder.decode(rest[0]), dtype=kind)
        case "zoned":
            moments = decoder.decode(rest[0]).view(f"M8[{rest[1]}]")
            zoned = pd.DatetimeIndex(moments).tz_localize("UTC")
            return zoned.tz_convert(decoder.decode(rest[2])).array
        case "text":
            missing = pd.NA if rest[1] == "NA" else numpy.nan
            kind = pd.StringDtype(rest[0], na_value=missing)
            return kind.__from_arrow__(decoder.decode(rest[2]))
        case "masked":
            kind = pd.api.types.pandas_dtype(rest[0])
            return kind.__from_arrow__(decoder.decode(rest[1]))
    raise RefusedError(f"a column of the form {str(form)[:40]!r} is not known here")


def _index(encoder: Encoder, value: Any) -> tuple[Any, ...]:
    pd = library("pandas")
    if type(value) is pd.RangeIndex:
        bounds = [value.start, value.stop, value.step]
        return "range", encoder.items(bounds), encoder.encode(value.name)
    if type(value) is pd.MultiIndex:
        levels = encoder.items(list(value.levels))
        codes = encoder.items([library("numpy").asarray(code) for code in value.codes])
        return "multi", [levels, codes], encoder.items(list(value.names))
    frequency = getattr(value, "freqstr", None)
    return "values", [_column(encoder, value.array), frequency], encoder.encode(value.name)


def _read_index(decoder: Decoder, parts: list[Any]) -> Any:
    pd = library("pandas")
    form, content, name = parts
    if form == "range":
        return pd.RangeIndex(*decoder.items(content), name=decoder.decode(name))
    if form == "multi":
        levels, codes = map(decoder.items, content)
        return pd.MultiIndex(levels, codes, names=decoder.items(name))
    values, frequency = content
    array = _read_column(decoder, values)
    index = pd.Index(array, name=decoder.decode(name), dtype=array.dtype)
    if frequency is not None:
        index.freq = frequency
    return index


DECODE: dict[str, Decode] = {
    "pa": _read_arrow,
    "pl": _read_polars,
    "pf": _read_frame,
    "ps": _read_series,
    "pi": _read_index,
    "pt": _read_timestamp,
    "pd": _read_timedelta,
    "pn": _read_missing,
}
