"""Values in journals and caches: encoded by the codec, then serialized."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic_core import to_jsonable_python
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers import (
    CBORSerializer,
    JSONSerializer,
    MSGPackSerializer,
    ORJSONSerializer,
    PickleSerializer,
)

from taskiq_flow.errors import SerializationError, describe
from taskiq_flow.processes.child_main import check_read_back, pickled
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import VERSION, ValueCodec
from taskiq_flow.values.plain import is_plain

_OF_PLAIN_DATA = (JSONSerializer, ORJSONSerializer, MSGPackSerializer, CBORSerializer)
"""Serializers of plain data. Others, as one that pickles, are given the values themselves."""

_ENCODED = f"+values{VERSION}"


class StoredValues:
    """How the values of one store are written and read.

    ``classes``: those that may be restored. ``encodes``: whether the codec is used; a log of an
    earlier version is read and continued without it.
    """

    def __init__(
        self,
        serializer: TaskiqSerializer,
        classes: Classes,
        codec: ValueCodec | None = None,
        *,
        encodes: bool = True,
    ) -> None:
        self.serializer = serializer
        self._classes = classes
        self._codec = ValueCodec() if codec is None else codec
        self.encodes = encodes and type(serializer) in _OF_PLAIN_DATA

    def like(self, name: str) -> StoredValues:
        """The same for a log that has the ``name`` in its header."""
        encodes = name.endswith(_ENCODED)
        if encodes == self.encodes:
            return self
        return StoredValues(self.serializer, self._classes, self._codec, encodes=encodes)

    @property
    def name(self) -> str:
        """The name for a log's header: the serializer's, and the codec's version."""
        return serializer_name(self.serializer) + (_ENCODED if self.encodes else "")

    def encode(self, value: Any) -> Any:
        """A value as its serializer is given it. Raises ``SerializationError``."""
        if not self.encodes or (type(self.serializer) is JSONSerializer and is_plain(value)):
            return value
        return self._tagged(value)

    def decode(self, content: Any) -> Any:
        """A value as it was encoded. Raises ``SerializationError``."""
        return self._codec.decode(content, self._classes) if self.encodes else content

    def dumps(self, value: Any) -> bytes:
        """The bytes of a value. Raises ``SerializationError``, or what the serializer raises."""
        if self.encodes:
            try:
                return self.serializer.dumpb(self.encode(value))
            except ValueError:  # of an integer of too many digits within plain data
                return self.serializer.dumpb(self._tagged(value))
        try:
            if type(self.serializer) is PickleSerializer:
                return pickled(value)
            data = self.serializer.dumpb(value)
            if not is_plain(value) and self._keeps_classes:
                check_read_back(value, lambda: self.serializer.loadb(data))
        except Exception as refused:  # whatever a serializer raises
            if not self._keeps_classes:
                return self.serializer.dumpb(to_jsonable_python(value))  # as earlier versions did
            try:
                tree = self._tagged(value)
            except SerializationError as error:
                text = f"{error}; nor can it be serialized: {describe(refused)}"
                raise SerializationError(text, value_type=error.value_type) from error
            return self.serializer.dumpb(_Encoded(tree))
        return data

    def _tagged(self, value: Any) -> Any:
        return self._codec.encode(value, strict=True, keeps_main=True)

    @cached_property
    def _keeps_classes(self) -> bool:
        """Whether the serializer gives objects back as they were. One of the user's may do so."""
        try:
            content = self.serializer.loadb(self.serializer.dumpb(_Encoded(None)))
        except Exception:  # likewise
            return False
        return type(content) is _Encoded

    def loads(self, data: bytes) -> Any:
        """The value of bytes. Raises ``SerializationError``, or what the serializer raises."""
        content = self.serializer.loadb(data)
        if type(content) is _Encoded:
            return self._codec.decode(content.tree, self._classes)
        return self.decode(content)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """What the codec has made of a value that a serializer, as one that pickles, has refused."""

    tree: Any


def serializer_name(serializer: TaskiqSerializer) -> str:
    """The name of a serializer in the header of a log."""
    return f"{type(serializer).__module__}.{type(serializer).__qualname__}"


def is_written_by(serializer: TaskiqSerializer, name: str) -> bool:
    """Whether a log with the ``name`` in its header is read with this serializer."""
    return name.removesuffix(_ENCODED) == serializer_name(serializer)
