"""The form of values in stores: a head in JSON, then raw buffers that are aligned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from taskiq_flow.values.tree import NEWER, RefusedError

MAGIC = b"tqflow\x00"
VERSION = 1
ALIGNMENT = 64
_START = 16
_MOST_SIZE = 2**62


def assemble(tree: Any, buffers: Sequence[memoryview]) -> list[bytes | memoryview]:
    """The parts of a frame, in order."""
    sizes = [buffer.nbytes for buffer in buffers]
    head = json.dumps({"sizes": sizes, "v": tree}, allow_nan=False, separators=(",", ":")).encode()
    start = MAGIC + bytes([VERSION]) + len(head).to_bytes(8, "little")
    parts: list[bytes | memoryview] = [start + head]
    end = _START + len(head)
    for buffer, (offset, size) in zip(buffers, _places(end, sizes), strict=True):
        parts += [bytes(offset - end), buffer]
        end = offset + size
    return parts


def take_apart(frame: memoryview) -> tuple[Any, list[memoryview]]:
    """The tree and the buffers of a frame. Raises ``RefusedError`` for one that is damaged."""
    if frame.nbytes < _START or frame[: len(MAGIC)] != MAGIC:
        raise RefusedError("it is no frame of a value")
    if frame[len(MAGIC)] != VERSION:
        raise RefusedError(f"its version {frame[len(MAGIC)]} {NEWER}")
    end = _START + int.from_bytes(frame[8:_START], "little")
    if end > frame.nbytes:
        raise RefusedError("its head is longer than the frame")
    try:
        head = json.loads(bytes(frame[_START:end]))
        tree, sizes = head["v"], head["sizes"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise RefusedError("its head is damaged") from error
    if type(sizes) is not list or not all(type(n) is int and 0 <= n < _MOST_SIZE for n in sizes):
        raise RefusedError("its head is damaged")
    places = list(_places(end, sizes))
    last = sum(places[-1]) if places else end
    if last != frame.nbytes:
        raise RefusedError(f"it should have {last} bytes and has {frame.nbytes}")
    return tree, [frame[offset : offset + size] for offset, size in places]


def _places(end: int, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    for size in sizes:
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        yield offset, size
        end = offset + size
