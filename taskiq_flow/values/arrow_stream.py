"""Checks an Arrow IPC stream before a library reads it.

The libraries allocate what a stream declares: a length that lies can end the process. Each number
of rows and each size that the stream declares is therefore compared with the bytes it has. The
format: https://arrow.apache.org/docs/format/Columnar.html
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from taskiq_flow.values.tree import RefusedError

_FREE_ROWS = 2**20
"""Rows that a column may have beyond those that its bytes can hold: columns of nulls have none."""

_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3  # the types of messages
_CONTINUES = b"\xff\xff\xff\xff"
_PRIVATE = b"POLARS_EXTENSION_TYPE"
"""An extension type of polars whose values are addresses in memory."""


def check_stream(content: memoryview, rows: object) -> None:
    """Check that a stream has this many rows, and everything it declares. Raises ``RefusedError``.

    Compressed streams are refused: the codec writes none.
    """
    content = content.cast("B")
    most = 8 * content.nbytes + _FREE_ROWS
    if type(rows) is not int or not 0 <= rows <= most:
        raise RefusedError(f"a table does not have {str(rows)[:40]} rows in {content.nbytes} bytes")
    found = 0
    try:
        for message, body_size in _messages(content):
            root = _Table(message, message.pointer(0))
            kind, header = root.number(1, "B"), root.table(2)
            if kind == _SCHEMA:
                if _PRIVATE in bytes(message.content):
                    raise RefusedError("a table of Python objects is not restored")
                continue
            if kind not in (_DICTIONARY, _BATCH):
                raise RefusedError(f"a table has a message of type {kind}")
            batch = header.table(1) if kind == _DICTIONARY else header
            size = _check_batch(batch, body_size, most)
            found += size if kind == _BATCH else 0
    except struct.error as error:
        raise RefusedError("the head of a table is damaged") from error
    if found != rows:
        raise RefusedError(f"a table of {rows} rows has {found}")


def _messages(content: memoryview) -> Iterator[tuple[_Bytes, int]]:
    """The head of each message of a stream, and the size of its body."""
    place = 0
    while place + 8 <= content.nbytes:
        if content[place : place + 4] != _CONTINUES:
            raise RefusedError("a table is no Arrow stream")
        size = _Bytes(content).number(place + 4, "I")
        if size == 0:
            return
        head = _Bytes(content[place + 8 : place + 8 + size])
        body_size = _Table(head, head.pointer(0)).number(3, "q")
        place += 8 + size + body_size
        if body_size < 0 or place > content.nbytes:
            raise RefusedError("a table is longer than its data")
        yield head, body_size


def _check_batch(batch: _Table, body_size: int, most: int) -> int:
    """The number of a batch's rows."""
    if batch.has(3):
        raise RefusedError("a table is compressed")
    lengths = [batch.number(0, "q"), *(length for length, _ in batch.pairs(1))]
    if not 0 <= min(lengths) <= max(lengths) <= most:
        raise RefusedError(f"a table has {max(lengths)} items in {body_size} bytes")
    if any(nulls < 0 or nulls > length for length, nulls in batch.pairs(1)):
        raise RefusedError("a table has more nulls than items")
    for offset, size in batch.pairs(2):
        if offset < 0 or size < 0 or offset + size > body_size:
            raise RefusedError("a table has a buffer outside of its data")
    return lengths[0]


class _Bytes:
    """Numbers within a FlatBuffer. Raises ``struct.error`` beyond its end."""

    def __init__(self, content: memoryview) -> None:
        self.content = content

    def number(self, place: int, form: str) -> int:
        if place < 0:
            raise struct.error
        found: int = struct.unpack_from("<" + form, self.content, place)[0]
        return found

    def pointer(self, place: int) -> int:
        return place + self.number(place, "I")


class _Table:
    """A table of a FlatBuffer: https://flatbuffers.dev/internals/."""

    def __init__(self, content: _Bytes, place: int) -> None:
        self._bytes = content
        self._place = place
        self._fields = place - content.number(place, "i")
        self._end = content.number(self._fields, "H")

    def _field(self, index: int) -> int | None:
        """The place of a field. ``None`` for one that has its default."""
        entry = 4 + 2 * index
        offset = self._bytes.number(self._fields + entry, "H") if entry + 2 <= self._end else 0
        return self._place + offset if offset else None

    def has(self, index: int) -> bool:
        return self._field(index) is not None

    def number(self, index: int, form: str) -> int:
        place = self._field(index)
        return 0 if place is None else self._bytes.number(place, form)

    def table(self, index: int) -> _Table:
        place = self._field(index)
        if place is None:
            raise struct.error
        return _Table(self._bytes, self._bytes.pointer(place))

    def pairs(self, index: int) -> Iterator[tuple[int, int]]:
        """A vector of structs of two 64-bit numbers."""
        place = self._field(index)
        if place is None:
            return
        start = self._bytes.pointer(place)
        size = 16 * self._bytes.number(start, "I")
        vector = self._bytes.content[start + 4 : start + 4 + size]
        if vector.nbytes != size:
            raise struct.error
        yield from struct.iter_unpack("<qq", vector)
