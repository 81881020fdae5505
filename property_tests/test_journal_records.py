"""Whatever is written to a log is read as it was, or said to be damaged."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from taskiq.serializers import JSONSerializer

from taskiq_flow.journal.records import Header, Record, chunk, records
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.stored import StoredValues

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
"""With surrogates, of which JSON makes one character where two stand side by side."""

RECORDS = st.lists(
    st.builds(
        Record,
        kind=st.integers(0, 255).map(lambda kind: bytes([kind])),
        name=ANY_TEXT,
        attempt=st.integers(0, 2**32 - 1),
        data=st.binary(max_size=50),
    ),
    max_size=8,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(RECORDS, st.data())
def test_records_are_read_as_they_were_written_or_said_to_be_damaged(
    entries: list[Record], data: st.DataObject
) -> None:
    content = chunk(entry.encoded() for entry in entries)
    assert list(records(content)) == entries
    changed = bytearray(content)
    changed[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    begin = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(begin + 1, len(content)))
    for damaged in (bytes(changed), content[:begin] + content[end:]):
        with pytest.raises(ValueError, match="checksum"):
            list(records(damaged))


@given(st.binary(max_size=60))
def test_bytes_of_chance_are_no_chunk(content: bytes) -> None:
    assume(content[:4] != chunk([content[4:]])[:4])
    with pytest.raises(ValueError, match="checksum"):
        list(records(content))


@given(st.dictionaries(st.text(), st.text()), st.none() | st.lists(st.text()), st.text())
def test_a_header_is_read_as_it_was_written(
    nodes: dict[str, str], outputs: list[str] | None, serializer: str
) -> None:
    header = Header(nodes, outputs, serializer)
    (entry,) = records(chunk([header.encoded()]))
    assert Header.decoded("a run", entry) == header


@given(PLAIN)
def test_plain_data_is_kept_as_it_is(value: object) -> None:
    for encodes in (True, False):
        stored = StoredValues(JSONSerializer(), Classes(), encodes=encodes)
        assert stored.loads(stored.dumps(value)) == value
