"""The tags of tables: polars and pyarrow. Each is used only where it has been imported."""

from __future__ import annotations

import io
from typing import Any

from taskiq_flow.values.arrays import library
from taskiq_flow.values.arrow_stream import check_stream
from taskiq_flow.values.tree import Decode, Decoder, Encoder, Handler, RefusedError

_OLDEST_ARROW = (14, 0, 1)


def find_arrow(value: Any) -> Handler | None:
    """The tag of a value of pyarrow's and its function, if it is carried."""
    pa = arrow()
    if type(value) in {pa.Table, pa.RecordBatch, pa.ChunkedArray} or isinstance(value, pa.Array):
        return "pa", _encode_arrow
    return None


def arrow() -> Any:
    """pyarrow, if this process has imported a version that is safe. Raises ``RefusedError``."""
    pa = library("pyarrow")
    version = tuple(int(part) for part in pa.__version__.split(".")[:3] if part.isdigit())
    if version < _OLDEST_ARROW:
        raise RefusedError(f"pyarrow {pa.__version__} is unsafe; install pyarrow>=14.0.1")
    return pa


def _encode_arrow(encoder: Encoder, value: Any) -> tuple[Any, ...]:
    pa = arrow()
    if type(value) is pa.Table:
        return "table", *_written(encoder, value)
    if type(value) is pa.RecordBatch:
        return "batch", *_written(encoder, pa.Table.from_batches([value]))
    form = "chunks" if type(value) is pa.ChunkedArray else "array"
    return form, *_written(encoder, pa.table({"": value}))


def _written(encoder: Encoder, table: Any) -> tuple[int, Any]:
    pa = arrow()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = memoryview(sink.getvalue())
    check_stream(content, table.num_rows)
    return table.num_rows, encoder.binary(content)


def _read_arrow(decoder: Decoder, parts: list[Any]) -> Any:
    form, rows, leaf = parts
    pa, content = arrow(), decoder.binary(leaf)
    check_stream(content, rows)
    table = pa.ipc.open_stream(pa.py_buffer(content)).read_all()
    table.validate(full=True)
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


def find_polars(value: Any) -> Handler | None:
    """The tag of a value of polars' and its function, if it is carried."""
    pl = library("polars")
    if type(value) is pl.LazyFrame:
        raise RefusedError("a LazyFrame is a plan and no data; use .collect()")
    return ("pl", _encode_polars) if type(value) in {pl.DataFrame, pl.Series} else None


def _encode_polars(encoder: Encoder, value: Any) -> tuple[Any, ...]:
    pl = library("polars")
    is_series = type(value) is pl.Series
    frame = value.to_frame() if is_series else value
    if any("Object" in repr(kind) and _has_objects(pl, kind) for kind in frame.dtypes):
        raise RefusedError("it has a column of dtype Object; cast it")
    sink = io.BytesIO()
    frame.write_ipc_stream(sink)
    content = sink.getbuffer()
    check_stream(content, frame.height)
    return "series" if is_series else "frame", frame.height, encoder.binary(content)


def _has_objects(pl: Any, dtype: Any) -> bool:
    inner = [getattr(dtype, "inner", None), *(part.dtype for part in getattr(dtype, "fields", ()))]
    return dtype == pl.Object or any(_has_objects(pl, part) for part in inner if part is not None)


def _read_polars(decoder: Decoder, parts: list[Any]) -> Any:
    form, rows, leaf = parts
    pl, content = library("polars"), decoder.binary(leaf)
    check_stream(content, rows)
    frame = pl.read_ipc_stream(io.BytesIO(content))
    return frame.to_series(0) if form == "series" else frame


DECODE: dict[str, Decode] = {"pa": _read_arrow, "pl": _read_polars}
