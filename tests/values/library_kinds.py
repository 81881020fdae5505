"""Exceptions, and values of the libraries that are installed, by kind: beside ``KINDS``."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from tests.values.kinds import CodedError, Point

LIBRARIES = tuple(
    name for name in ("numpy", "pandas", "polars", "pyarrow") if importlib.util.find_spec(name)
)


NOT_COMPARED = frozenset(
    {
        *("exception", "table", "column", "index", "pandas scalars"),
        *("polars table", "polars column", "arrow table", "arrow column"),
    }
)
"""Kinds that have no cache key: what is given such a value is not cached."""


def _of_numpy(np: Any) -> dict[str, Any]:
    fields = np.dtype([("x", "<i4"), ("name", "U3")])
    return {
        "numpy scalars": [np.float32(0.1), np.int8(-1), np.bool_(True), np.datetime64(1, "s")],  # noqa: FBT003
        "array": np.arange(6, dtype=">i2").reshape(2, 3).T,
        "array of texts": np.array(["a", "☃"]),
        "array with fields": np.array([(1, "a"), (2, "b")], fields),
        "empty array": {"a": np.empty((0, 3), np.float16)},
    }


def _of_pandas(pd: Any) -> dict[str, Any]:
    columns = {"n": [1, 2], "text": ["a", None], "at": pd.to_datetime(["2026-01-02", None])}
    return {
        "table": pd.DataFrame(columns, index=pd.Index([5, 7], name="id")),
        "column": pd.Series(pd.Categorical(["b", "a", "b"]), name="kind"),
        "index": pd.MultiIndex.from_tuples([(1, "a"), (2, "b")], names=["n", None]),
        "pandas scalars": [pd.Timestamp("2026-01-02", tz="UTC"), pd.Timedelta(1, "ms"), pd.NaT],
    }


def _of_polars(pl: Any) -> dict[str, Any]:
    table = pl.DataFrame({"n": [1, None], "parts": [["a"], []]})
    return {"polars table": table, "polars column": table["parts"]}


def _of_pyarrow(pa: Any) -> dict[str, Any]:
    table = pa.table({"n": [1, None], "text": ["a", "b"]})
    return {"arrow table": table, "arrow column": pa.array([[1], None])}


_OF = {"numpy": _of_numpy, "pandas": _of_pandas, "polars": _of_polars, "pyarrow": _of_pyarrow}


def library_kinds() -> dict[str, Any]:
    """The values, made anew. Imports the libraries."""
    errors = [LookupError("x", 3), KeyError(Point(1)), CodedError(4, "no")]
    kinds: dict[str, Any] = {"exception": errors}
    for name in LIBRARIES:
        kinds |= _OF[name](importlib.import_module(name))
    return kinds


def of_library_kind(kind: str) -> Any:
    """A task that gives one of them."""
    return library_kinds()[kind]
