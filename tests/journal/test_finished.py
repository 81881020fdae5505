"""Positions as ranges, and the records of those at which all has ended."""

from __future__ import annotations

import random

import pytest

from taskiq_flow.journal.finished import AT_ONCE, Finished, FinishedRecords, PassedOver, Positions
from taskiq_flow.journal.records import COMPLETED, FINISHED, SENT, Record, chunk, records


def test_positions_are_a_set_that_is_kept_as_ranges() -> None:
    chance = random.Random(7)
    positions, expected = Positions(), set[int]()
    for _ in range(2_000):
        position = chance.randrange(60)
        if chance.random() < 0.6:
            positions.add(position)
            expected.add(position)
        else:
            positions.discard(position)
            expected.discard(position)
        assert list(positions) == sorted(expected)
        assert len(positions) == len(expected)
        assert {each for each in range(60) if each in positions} == expected
        assert Positions(str(positions)) == positions
    for position in range(60):
        positions.add(position)
    assert str(positions) == "0-59"


@pytest.mark.parametrize("text", ["", "0", "3-5", "0-2,4,9-11"])
def test_positions_are_written_as_they_were_read(text: str) -> None:
    assert str(Positions(text)) == text


def record_of(data: bytes) -> Record:
    (entry,) = records(chunk([data]))
    return entry


def test_a_record_is_made_of_many_positions_and_of_the_rest() -> None:
    made = FinishedRecords()
    found = [made.add("first", number, ["second"] if number == 3 else []) for number in range(70)]
    assert [number for number, data in enumerate(found) if data is not None] == [AT_ONCE - 1]
    written = [record_of(data) for data in found if data is not None]
    written += [record_of(data) for data in made.rest()]
    assert made.rest() == []
    assert [Finished.decoded(entry) for entry in written] == [
        Finished("first", Positions("0-63"), {"second": Positions("3")}),
        Finished("first", Positions("64-69"), {}),
    ]


def test_one_of_many_inputs_is_known_by_its_element_as_in_logs_of_earlier_versions() -> None:
    one = Finished.at("inputs", 3, ["total"])
    entry = record_of(one.encoded("inputs[3]"))
    assert entry.name == "inputs[3]"
    assert Finished.decoded(entry) == one
    earlier = Record(FINISHED, "inputs[3]")
    assert Finished.decoded(earlier) == Finished("inputs", Positions("3"), {})


def test_positions_that_are_passed_over_name_all_that_the_log_has_of_them() -> None:
    passed = PassedOver({"page": ["page", "title"]}, {"page": ["word"]})
    for kind, name in ((SENT, "word[4,0]"), (COMPLETED, "word[4,0]"), (SENT, "word[5,0]")):
        passed.note(Record(kind, name))
    assert [*passed.finish(Finished("other", Positions("4"), {}))] == []
    named = passed.finish(Finished("page", Positions("4"), {"title": Positions("4")}))
    assert sorted(named) == ["page[4]", "title[4]", "word[4,0]"]
    assert passed.positions == {"page": Positions("4")}
    assert [passed.is_skipped(node, (4,)) for node in ("page", "title")] == [False, True]


def test_elements_within_positions_are_named_once_and_forgotten() -> None:
    passed = PassedOver({"page": ["page"]}, {"page": ["word"]})
    for number in (1, 0):
        passed.note(Record(SENT, f"word[4,{number}]"))
    finished = Finished("page", Positions("4"), {})
    assert sorted(passed.finish(finished)) == ["page[4]", "word[4,0]", "word[4,1]"]
    assert [*passed.finish(finished)] == ["page[4]"]
    assert [passed.within("word", 4) for _ in range(2)] == [[(4, 0), (4, 1)], []]
