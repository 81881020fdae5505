"""The format of a run's log: records, in chunks with a checksum."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from taskiq_flow.errors import JournalError
from taskiq_flow.journal import errors
from taskiq_flow.journal.protocol import decoded, encoded

FORMAT = 1
"""The version of this format. A log of another version is refused."""

HEADER, INPUT, SESSION = b"h", b"i", b"b"
SENT, COMPLETED, REFERRED, FAILED, DROPPED, ENDED = b"s", b"c", b"r", b"f", b"d", b"e"
KNOWN, GIVEN, FINISHED = b"k", b"g", b"n"
SOURCES = b"sources"
# HEADER: the graph and the serializer; a second one when the run is resumed with another graph.
# INPUT: the value of one of the run's inputs. SESSION: an engine starts or resumes the run; the
# data is the session's id. SENT, COMPLETED, REFERRED, FAILED: an attempt of a node; the data of
# COMPLETED is its result, of REFERRED the id of the task that has it, of FAILED the error's text.
# KNOWN: how many elements a node has that maps over a source. GIVEN: one of many inputs;
# the data is its digest. FINISHED: at positions of a list, all that runs has ended, and nothing has
# failed; see ``journal/finished.py``. Its name is that of the first node there; of many inputs, its
# element. DROPPED: the node's earlier records are void, as the graph has changed, and so is what is
# finished; without a name, that alone; with SOURCES as its data, what is known of the items of
# sources that its elements were given. ENDED: the session's outcome.

_RECORD = struct.Struct(">cIII")  # kind, attempt, length of the name, length of the data
_CHECKSUM = struct.Struct(">I")


class Record(NamedTuple):  # a log of a million is made quickly of these
    """One entry of the log. ``name``: its node or input."""

    kind: bytes
    name: str = ""
    attempt: int = 0
    data: bytes = b""

    def encoded(self) -> bytes:
        """The record's bytes in a chunk."""
        return record(self.kind, self.name, self.attempt, self.data)


def record(kind: bytes, name: str, attempt: int, data: bytes = b"") -> bytes:
    """A record's bytes in a chunk."""
    name_bytes = encoded(name)
    return _RECORD.pack(kind, attempt, len(name_bytes), len(data)) + name_bytes + data


def chunk(records: Iterable[bytes]) -> bytes:
    """A chunk of records: their CRC-32 (zlib), then the records."""
    content = b"".join(records)
    return _CHECKSUM.pack(zlib.crc32(content)) + content


def records(data: bytes) -> Iterator[Record]:
    """The records of a chunk. Raises ``ValueError`` if its checksum does not match."""
    place, end = _CHECKSUM.size, len(data)
    if end < place or _CHECKSUM.unpack_from(data)[0] != zlib.crc32(memoryview(data)[place:]):
        raise ValueError("its checksum does not match")
    unpack, name_after = _RECORD.unpack_from, _RECORD.size
    while place < end:
        kind, attempt, name_length, data_length = unpack(data, place)
        name_at = place + name_after
        data_at = name_at + name_length
        place = data_at + data_length
        yield Record(kind, decoded(data[name_at:data_at]), attempt, data[data_at:place])


@dataclass(frozen=True, slots=True)
class Header:
    """A log's first record.

    ``nodes``: fingerprints by node; ``outputs``: the requested keys; ``serializer``: how the values
    are written, ``StoredValues.name``. ``is_of_many``: the graph runs for each of many inputs.
    ``on_error``: of the engine that began the run. ``generators``: by name, how many positions the
    elements of a node have whose task is a generator, whose value may be the number of its items.
    Earlier versions wrote neither of these.
    """

    nodes: Mapping[str, str]
    outputs: Sequence[str] | None
    serializer: str
    is_of_many: bool = False
    on_error: str = "raise"
    generators: Mapping[str, int] = field(default_factory=dict)

    def encoded(self) -> bytes:
        """The header as a record."""
        content = {
            "format": FORMAT,
            "serializer": self.serializer,
            "outputs": None if self.outputs is None else list(self.outputs),
            "nodes": dict(self.nodes),
            **({"many": True} if self.is_of_many else {}),
            **({} if self.on_error == "raise" else {"on_error": self.on_error}),
            **({"generators": dict(self.generators)} if self.generators else {}),
        }
        return record(HEADER, "", 0, json.dumps(content).encode())

    @classmethod
    def decoded(cls, run_id: str, first: Record) -> Self:
        """The header in a log's first record. Raises ``JournalError`` if that has none."""
        try:
            content = json.loads(first.data) if first.kind == HEADER else {}
            version = content["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise errors.damaged(run_id, error) from error
        if version != FORMAT:
            raise JournalError(
                f"run {run_id!r} was written in format {version} of the journal, and this version "
                f"of taskiq_flow reads format {FORMAT}; resume it with the version that wrote it"
            )
        return cls(
            *(content["nodes"], content["outputs"], content["serializer"]),
            is_of_many=content.get("many", False),
            on_error=content.get("on_error", "raise"),
            generators=content.get("generators", {}),
        )


def read_chunk(run_id: str, data: bytes) -> list[Record]:
    """The records of a chunk of a run's log. Raises ``JournalError`` if it is damaged."""
    try:
        return list(records(data))
    except (ValueError, struct.error) as error:
        raise errors.damaged(run_id, error) from error
