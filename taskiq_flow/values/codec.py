"""Encodes values for other processes and for stores, and decodes them. Does no I/O.

``docs/values_format.md`` describes the format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from taskiq_flow.errors import SerializationError
from taskiq_flow.values import arrays, frames, objects, tables, tables_pandas, tags
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.inspection import changed_meanwhile
from taskiq_flow.values.plain import LEAVES, TAG, is_plain
from taskiq_flow.values.tree import (
    NEWER,
    Decode,
    Decoder,
    Encoder,
    Handler,
    RefusedError,
)

T = TypeVar("T")

VERSION = 1
_NATIVE = frozenset({*LEAVES, float, list, dict})
_LIBRARIES = {
    "numpy": arrays.find_array,
    "pandas": tables_pandas.find_pandas,
    "polars": tables.find_polars,
    "pyarrow": tables.find_arrow,
}
_DECODE = {
    **tags.DECODE,
    **objects.DECODE,
    **arrays.DECODE,
    **tables.DECODE,
    **tables_pandas.DECODE,
}


class ValueCodec:
    """Carries values of many types through JSON and through stores.

    ``pickle``: also carry by ``pickle`` what nothing else carries. Unpickling executes what the
    data say: only for servers that nobody else can write to.

    >>> codec = ValueCodec()
    >>> class Money:
    ...     def __init__(self, cents):
    ...         self.cents = cents
    >>> codec.register(Money, encode=lambda money: money.cents, decode=Money, name="money")
    >>> middleware = FlowMiddleware(codec=codec)  # the same on all sides
    """

    def __init__(self, *, pickle: bool = False) -> None:
        self._encoders: dict[type, Handler] = {}
        self._decoders: dict[str, Decode] = {}
        self._fallback: Handler | None = ("pk", tags.encode_pickle) if pickle else None

    def register(
        self,
        kind: type[T],
        encode: Callable[[T], Any],
        decode: Callable[[Any], T],
        *,
        name: str,
    ) -> None:
        """Carry objects of exactly the class ``kind`` as what ``encode`` makes of them.

        ``name``: stands for the class in the data, in all processes. Raises ``ValueError`` for a
        class or a name that is registered already, ``TypeError`` for what cannot be registered.
        """
        if not isinstance(kind, type) or kind in _NATIVE:
            raise TypeError(f"{kind!r} cannot be registered; give a class that JSON does not have")
        tag = f"u:{name}"
        if kind in self._encoders:
            raise ValueError(
                f"{kind.__qualname__} is registered as {self._encoders[kind][0][2:]!r}"
            )
        if tag in self._decoders:
            raise ValueError(
                f"the name {name!r} is registered for another class; give another name"
            )
        self._encoders[kind] = tag, lambda encoder, value: (encoder.encode(encode(value)),)
        self._decoders[tag] = lambda decoder, parts: decode(decoder.decode(parts[0]))

    def encode(self, value: Any, *, strict: bool = False, keeps_main: bool = False) -> Any:
        """The JSON form of a value: the value itself where JSON carries it exactly.

        ``strict``: also tag integers beyond 64 bits and lone surrogates, which orjson and msgpack
        refuse. ``keeps_main``: also encode objects of classes of the main script, for a later run
        of that script. Raises ``SerializationError`` with the path to what cannot be carried.
        """
        plain = is_plain(value)
        if plain and not strict:
            return value
        encoder = Encoder(self._find, strict=strict, fallback=self._fallback, keeps_main=keeps_main)
        tree = self._tree(value, encoder)
        return value if plain and tree == value else {TAG: VERSION, "v": tree}

    def decode(self, tree: Any, classes: Classes) -> Any:
        """The value that ``encode`` was given. Only for data that a codec is known to have made.

        ``classes``: those that may be restored. Raises ``SerializationError``.
        """
        if type(tree) is not dict or type(tree.get(TAG)) is not int:
            return tree
        if tree[TAG] != VERSION or tree.keys() != {TAG, "v"}:
            raise SerializationError(f"a value of version {tree[TAG]} {NEWER}")
        return _read(tree["v"], Decoder(self._find_decoder, classes))

    def encode_frame(self, value: Any) -> list[bytes | memoryview]:
        """The form of a value in a store, as buffers that follow each other.

        Arrays and bytes are not copied: change none of them until the buffers have been written.
        Raises ``SerializationError``.
        """
        buffers: list[memoryview] = []
        encoder = Encoder(self._find, strict=True, buffers=buffers, fallback=self._fallback)
        return frames.assemble(self._tree(value, encoder), buffers)

    def decode_frame(self, buffer: bytes | bytearray | memoryview, classes: Classes) -> Any:
        """The value of a frame. Arrays are read-only views of ``buffer``.

        Raises ``SerializationError``.
        """
        try:
            tree, buffers = frames.take_apart(memoryview(buffer).cast("B"))
        except RefusedError as error:
            raise SerializationError(f"a stored value cannot be read: {error}") from error
        return _read(tree, Decoder(self._find_decoder, classes, buffers))

    def _tree(self, value: Any, encoder: Encoder) -> Any:
        try:
            return encoder.encode(value)
        except RefusedError as error:
            kind, path, why = error.kind or type(value), error.path(), str(error)
            raise SerializationError(
                f"a {kind.__module__}.{kind.__qualname__}{' at ' if path else ''}{path} cannot be "
                f"sent to another process: {why}",
                value_type=kind,
            ) from error
        except RecursionError as error:
            raise SerializationError(
                f"a {type(value).__qualname__} is nested too deeply for this call",
                value_type=type(value),
            ) from error
        except RuntimeError as error:
            raise changed_meanwhile(value, "encoded", error) from error

    def _find(self, value: Any) -> Handler:
        cls = type(value)
        found = self._encoders.get(cls) or tags.ENCODE.get(cls) or objects.find_object(cls)
        if found is None:
            find = _LIBRARIES.get(cls.__module__.partition(".")[0])
            found = find(value) if find is not None else None
        if found is None:
            raise RefusedError(_remedy(value))
        return found

    def _find_decoder(self, tag: str) -> Decode:
        found = _DECODE.get(tag) or self._decoders.get(tag)
        if found is not None:
            return found
        if tag == "pk":
            if self._fallback is not None:
                return tags.decode_pickle
            raise RefusedError("it was pickled, and this codec does not unpickle")
        if tag.startswith("u:"):
            raise RefusedError(f"the type {tag[2:]!r} is not registered with this process's codec")
        raise RefusedError(f"tag {tag[:20]!r} {NEWER}")


def _read(tree: Any, decoder: Decoder) -> Any:
    try:
        return decoder.decode(tree)
    except RefusedError as error:
        raise SerializationError(f"a value cannot be decoded: {error}") from error
    except RecursionError as error:
        raise SerializationError("a value is nested too deeply to be decoded here") from error


def _remedy(value: Any) -> str:
    if hasattr(value, "__next__") or hasattr(value, "__anext__") or hasattr(value, "__await__"):
        is_file = hasattr(value, "read")
        what = "send its content, or its path" if is_file else "use list(...)"
        return f"it can be read only once; {what}"
    if isinstance(value, type) or callable(value):
        return "functions and classes are not carried; return data"
    if isinstance(value, memoryview):
        return "use bytes(...)"
    if isinstance(value, (int, float, str, bytes, list, dict, set, frozenset, tuple)):
        return "subclasses of builtin types are not carried; convert it, or register the type"
    return "register its type: ValueCodec().register(Type, encode, decode, name=...)"
