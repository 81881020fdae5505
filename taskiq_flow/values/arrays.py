"""The tags of NumPy's arrays and scalars. NumPy is used only where it has been imported."""

from __future__ import annotations

import math
import re
import sys
from contextlib import suppress
from typing import Any

from taskiq_flow.values.tree import Decode, Decoder, Encoder, Handler, RefusedError

_DTYPE = re.compile(r"[<>|=]?(?:[biufcV]\d+|b1|[SU]\d+|[mM]8(?:\[\d*[a-zA-Z]+\])?)")


def library(name: str) -> Any:
    """A library that this process has imported. Raises ``RefusedError`` if it has not."""
    found = sys.modules.get(name)
    if found is None:
        raise RefusedError(
            f"the value needs {name}, which this process has not imported; import it in the module "
            "of the task"
        )
    return found


def find_array(value: Any) -> Handler | None:
    """The tag of a value of NumPy's and its function, if it is carried."""
    numpy = library("numpy")
    if type(value) is numpy.ndarray:
        return "na", _array
    if isinstance(value, numpy.generic) and type(value) in numpy.sctypeDict.values():
        return "ns", _scalar
    if isinstance(value, numpy.ndarray):
        is_masked = hasattr(value, "mask")
        remedy = "use .filled(...), or send .data and .mask" if is_masked else "use numpy.asarray"
        raise RefusedError(f"subclasses of numpy.ndarray are not carried; {remedy}")
    if isinstance(value, numpy.generic):
        raise RefusedError(f"numpy.{type(value).__name__} is not carried; use .item()")
    return None


def _dtype_form(numpy: Any, dtype: Any) -> Any:
    if dtype.kind == "T":
        raise RefusedError(f"its dtype is {dtype}; use .astype('U')")
    if dtype.hasobject:
        raise RefusedError(f"its dtype is {dtype}; use a list, or a dtype without objects")
    if _is_bare(numpy, dtype):
        with suppress(ValueError):  # of fields that overlap, or stand in another order
            form = numpy.lib.format.dtype_to_descr(dtype)
            if numpy.lib.format.descr_to_dtype(form) == dtype:
                return form
    raise RefusedError(
        f"its dtype {dtype!r} is numpy.record or has metadata or a layout of its own; use "
        ".astype(...) with a dtype of fields alone"
    )


def _is_bare(numpy: Any, dtype: Any) -> bool:
    """Whether a dtype has nothing that NumPy's comparison of dtypes ignores."""
    if dtype.metadata or dtype.type is numpy.record:
        return False
    if dtype.subdtype is not None:
        return _is_bare(numpy, dtype.base)
    return all(_is_bare(numpy, dtype[name]) for name in dtype.names or ())


def _read_dtype(numpy: Any, form: Any) -> Any:
    dtype = numpy.lib.format.descr_to_dtype(_checked(form))
    if dtype.hasobject:
        raise RefusedError("an array of objects is not restored")
    return dtype


def _checked(form: Any) -> Any:
    """A dtype's form with tuples as NumPy needs them. Refuses what no array of ours has."""
    if type(form) is str:
        if _DTYPE.fullmatch(form) is None:
            raise RefusedError(f"{form[:40]!r} is no dtype that is carried")
        return form
    fields = []
    for name, kind, *shape in form:
        label = tuple(map(str, name)) if type(name) is list else str(name)
        fields.append((label, _checked(kind), *(tuple(map(int, part)) for part in shape)))
    return fields


def _array(encoder: Encoder, value: Any) -> tuple[Any, ...]:
    numpy = library("numpy")
    form = _dtype_form(numpy, value.dtype)
    order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    content = value if value.flags.contiguous or order == "F" else numpy.ascontiguousarray(value)
    return form, list(value.shape), order, encoder.binary(_raw(numpy, content, order))


def _raw(numpy: Any, value: Any, order: str) -> Any:
    if value.nbytes == 0:
        return b""
    return memoryview(value.reshape(-1, order=order).view(numpy.uint8))


def _read_array(decoder: Decoder, parts: list[Any]) -> Any:
    form, shape, order, leaf = parts
    numpy = library("numpy")
    dtype, content = _read_dtype(numpy, form), decoder.binary(leaf)
    if any(type(size) is not int or size < 0 for size in shape):
        raise RefusedError("an array has no such shape")
    if math.prod(shape) * dtype.itemsize != content.nbytes:
        raise RefusedError(
            f"an array of shape {shape} and dtype {dtype} does not have {content.nbytes} bytes"
        )
    if content.nbytes == 0:
        if math.prod(size for size in shape if size) > 2**31:
            raise RefusedError("an empty array has no such shape")
        # numpy.zeros gives texts without letters one letter each, and that many bytes.
        return numpy.ndarray(shape, dtype, order=order)
    # Of memory that cannot be written to, so that nobody makes the array writable again.
    array = numpy.frombuffer(content.toreadonly(), dtype)
    return array.reshape(shape, order=order)


def _scalar(encoder: Encoder, value: Any) -> tuple[Any, ...]:
    numpy = library("numpy")
    name = type(value).__name__
    if name in {"str_", "bytes_"}:  # an array would cut their trailing zeros
        content = "".join(value) if name == "str_" else b"".join((value,))
        return name, None, encoder.encode(content)
    form = _dtype_form(numpy, value.dtype)
    return name, form, encoder.binary(value.tobytes())


def _read_scalar(decoder: Decoder, parts: list[Any]) -> Any:
    name, form, leaf = parts
    numpy = library("numpy")
    kind = {kind.__name__: kind for kind in numpy.sctypeDict.values()}[name]
    if form is None and name in {"str_", "bytes_"}:
        text = decoder.decode(leaf)
        if type(text) is not (str if name == "str_" else bytes):  # of a number, bytes() makes zeros
            raise RefusedError(f"a numpy.{name} was written without its text")
        return kind(text)
    dtype, content = _read_dtype(numpy, form), decoder.binary(leaf)
    if dtype.kind not in "mMV" and numpy.dtype(kind) == dtype.newbyteorder("="):
        dtype = numpy.dtype(kind).newbyteorder(dtype.byteorder)
    if dtype.itemsize != content.nbytes or dtype.itemsize == 0:
        raise RefusedError(f"a scalar of dtype {dtype} does not have {content.nbytes} bytes")
    scalar = numpy.ndarray((), dtype, buffer=content)[()]
    if type(scalar) is not kind:
        raise RefusedError(f"a numpy.{name} was written with another dtype")
    return scalar


DECODE: dict[str, Decode] = {"na": _read_array, "ns": _read_scalar}
