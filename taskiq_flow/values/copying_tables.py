"""Copies of arrays and tables: views that cannot be written to, and lazy copies."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from taskiq_flow.values.inspection import never_change

if TYPE_CHECKING:
    from taskiq_flow.values.copying import Copies


def array_copy(value: Any, copies: Copies) -> Any:
    """A view of an array, or a copy if it holds objects that can be changed. Both are read-only.

    It is a view also where nobody can write: the shape of an array can be set in any case.
    """
    numpy, dtype = sys.modules["numpy"], value.dtype
    if type(value) is numpy.ndarray and not (copies.detaches or dtype.hasobject or dtype.names):
        made = value.view()  # the most frequent case, without the steps that it does not need
        made.setflags(False)  # noqa: FBT003 - by name it takes twice as long
        return made
    if dtype.hasobject and not never_change(numpy.asarray(value).ravel().tolist()):
        copies[id(value)] = made = _own_view(value.copy(order="C"))
        _copy_cells(numpy.asarray(made).reshape(-1), copies)
    elif hasattr(value, "unshare_mask"):  # a masked array: setting its mask writes to no item
        ma = numpy.ma
        if value is ma.masked:
            return value
        made = ma.array(
            _own_view(_kept(value, copies)),
            mask=ma.nomask if value.mask is ma.nomask else value.mask.copy(),
            fill_value=None if dtype.names is None else value.fill_value,
            copy=False,
            keep_mask=False,
            hard_mask=value.hardmask,
        )
    else:
        made = _own_view(_kept(value, copies))
    made.setflags(write=False)
    return made


def _kept(value: Any, copies: Copies) -> Any:
    """An array whose memory stays as it is: a copy if its owner goes on to write there."""
    if copies.detaches:
        memory = value
        while isinstance(memory, sys.modules["numpy"].ndarray):
            if memory.flags.writeable:
                return value.copy(order="K")
            memory = memory.base
    return value


def _own_view(value: Any) -> Any:
    """A view of an array. Its fields have names of their own, as these can be set."""
    return value.view() if value.dtype.names is None else value.view(_own_dtype(value.dtype))


def _own_dtype(dtype: Any) -> Any:
    return dtype.newbyteorder("|")  # a copy, with all that a dtype has


def record_copy(value: Any, copies: Copies) -> Any:
    """An element of an array with named fields, of which it is a view."""
    made = sys.modules["numpy"].array([value], _own_dtype(value.dtype))
    _copy_cells(made, copies)
    return made[0]


def _copy_cells(made: Any, copies: Copies) -> None:
    """Put copies in the places of the Python objects in an array, also in its named fields."""
    if made.dtype.names is not None:
        for name in made.dtype.names:
            _copy_cells(made[name], copies)
    elif made.dtype.hasobject:
        for place in sys.modules["numpy"].ndindex(made.shape):
            made[place] = copies.of(made[place])


def pandas_table_copy(value: Any, copies: Copies) -> Any:
    """A table or column: copied when it is written to, or now where pandas cannot do that."""
    pandas = sys.modules["pandas"]
    copies_on_write = int(pandas.__version__.partition(".")[0]) >= 3 or (  # noqa: PLR2004
        pandas.options.mode.copy_on_write is True
    )
    made = value.copy(deep=not copies_on_write)
    if isinstance(value, pandas.Series):
        _copy_column(value, made.iloc, slice(None), copies)
    else:
        for place, kind in enumerate(value.dtypes):
            if kind == "object":
                _copy_column(value.iloc[:, place], made.iloc, (slice(None), place), copies)
    return made


def pandas_array_copy(value: Any, copies: Copies) -> Any:
    """A copy of a column's array."""
    made = value.copy()
    _copy_column(value, made, slice(None), copies)
    return made


def pandas_index_copy(value: Any, _: Copies) -> Any:
    """A view of an index."""
    return value.view()  # its names can be set, its labels cannot


def _copy_column(column: Any, made: Any, place: Any, copies: Copies) -> None:
    """Write copies of a pandas column's cells to a place of ``made``, if any can be changed."""
    if column.dtype == "object" and not never_change(cells := column.tolist()):
        own = sys.modules["numpy"].empty(len(cells), object)
        for row, cell in enumerate(cells):
            own[row] = copies.of(cell)
        made[place] = own


def polars_table_copy(value: Any, copies: Copies) -> Any:
    """A table: shares what nobody writes to, which polars does with all but Python objects."""
    made = value.clone()
    for place, column in enumerate(value.get_columns()):
        made.replace_column(place, polars_column_copy(column, copies))
    return made


def polars_column_copy(value: Any, copies: Copies) -> Any:
    """A column: shares its memory, unless it holds Python objects."""
    polars = sys.modules["polars"]
    if value.dtype != polars.Object:
        return value.clone()
    cells = [copies.of(cell) for cell in value]
    return polars.Series(value.name, cells, dtype=polars.Object)
