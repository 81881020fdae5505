"""What a run's log says, and how it is written: records, gathered into chunks with a checksum."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic_core import to_jsonable_python
from taskiq.abc.serializer import TaskiqSerializer

from taskiq_flow.errors import JournalError
from taskiq_flow.journal.protocol import decoded, encoded

FORMAT = 1
"""The version of what is written below; a log of another version is refused."""

HEADER, INPUT, SESSION = b"h", b"i", b"b"
SENT, COMPLETED, REFERRED, FAILED, DROPPED, ENDED = b"s", b"c", b"r", b"f", b"d", b"e"
# HEADER: the graph and how values are written, once more when the run is gone on with in another
# graph; INPUT: the value of one of the run's inputs.
# SESSION: an engine begins or goes on with the run; the data says how workers know it.
# SENT, COMPLETED, FAILED: what a node has come to in an attempt; with COMPLETED its result, with
# REFERRED the reference to it, with FAILED the error in words. DROPPED: what a node has come to
# does not count any more, as the graph has changed. ENDED: how the session has ended.

_RECORD = struct.Struct(">cIII")  # kind, attempt, length of the name, length of the data
_CHECKSUM = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Record:
    """One thing that happened. ``name``: the node or the input that it is about."""

    kind: bytes
    name: str = ""
    attempt: int = 0
    data: bytes = b""

    def encoded(self) -> bytes:
        """The record as it stands in a chunk."""
        return record(self.kind, self.name, self.attempt, self.data)


def record(kind: bytes, name: str, attempt: int, data: bytes = b"") -> bytes:
    """A record as it stands in a chunk."""
    named = encoded(name)
    return _RECORD.pack(kind, attempt, len(named), len(data)) + named + data


def chunk(records: Iterable[bytes]) -> bytes:
    """Records, gathered for being written at once. CRC-32, as of zlib, tells a damaged one."""
    content = b"".join(records)
    return _CHECKSUM.pack(zlib.crc32(content)) + content


def records(data: bytes) -> Iterator[Record]:
    """The records of a chunk. Raises ``ValueError`` for one that is not as it was written."""
    content = memoryview(data)[_CHECKSUM.size :]
    if len(data) < _CHECKSUM.size or _CHECKSUM.unpack_from(data)[0] != zlib.crc32(content):
        raise ValueError("its checksum does not match")
    place, end = 0, len(content)
    while place < end:
        kind, attempt, name_length, data_length = _RECORD.unpack_from(content, place)
        name_at = place + _RECORD.size
        data_at = name_at + name_length
        place = data_at + data_length
        name = decoded(content[name_at:data_at])
        yield Record(kind, name, attempt, bytes(content[data_at:place]))


@dataclass(frozen=True, slots=True)
class Header:
    """What a log begins with. ``nodes``: the graph's fingerprints; ``outputs``: those asked for."""

    nodes: Mapping[str, str]
    outputs: Sequence[str] | None
    serializer: str

    def encoded(self) -> bytes:
        """The header as a record."""
        content = {
            "format": FORMAT,
            "serializer": self.serializer,
            "outputs": None if self.outputs is None else list(self.outputs),
            "nodes": dict(self.nodes),
        }
        return record(HEADER, "", 0, json.dumps(content).encode())

    @classmethod
    def decoded(cls, run_id: str, first: Record) -> Self:
        """The header in a log's first record; raises ``JournalError`` for what is none."""
        try:
            content = json.loads(first.data) if first.kind == HEADER else {}
            version = content["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(run_id, error) from error
        if version != FORMAT:
            raise JournalError(
                f"run {run_id!r} was written in format {version} of the journal, and this version "
                f"of taskiq_flow reads format {FORMAT}; resume it with the version that wrote it"
            )
        return cls(content["nodes"], content["outputs"], content["serializer"])


def read_chunk(run_id: str, data: bytes) -> list[Record]:
    """The records of a chunk of a run's log; raises ``JournalError`` for one that is damaged."""
    try:
        return list(records(data))
    except (ValueError, struct.error) as error:
        raise damaged(run_id, error) from error


def damaged(run_id: str, error: object) -> JournalError:
    """The error of a log that is not as it was written."""
    return JournalError(
        f"the log of run {run_id!r} is damaged ({error}); nothing was changed in it: restore the "
        "journal from a copy, or begin the run anew under another run_id"
    )


def serializer_name(serializer: TaskiqSerializer) -> str:
    """What a header says of how values are written."""
    return f"{type(serializer).__module__}.{type(serializer).__qualname__}"


def serialize(serializer: TaskiqSerializer, value: Any) -> bytes:
    """A value as it is written: as the serializer takes it, or else as plain data.

    Raises whatever the serializer does if it takes neither.
    """
    try:
        return serializer.dumpb(value)
    except Exception:  # of whatever kind: what it does not know may have a plain form
        return serializer.dumpb(to_jsonable_python(value))
