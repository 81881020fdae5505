"""Items of generators as they travel: of any type, and sealed where there is a secret."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from taskiq_flow import SerializationError, ValueCodec
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.wire import Wire
from tests.values.kinds import Model


def wire(secret: bytes | None = None) -> Wire:
    return Wire(ValueCodec(), Classes.imported(), secret)


def content_of(items: list[object]) -> bytes:
    return b"[" + b",".join(map(wire().encode_item, items)) + b"]"


def test_items_of_any_type_arrive_as_they_left() -> None:
    model = Model(when=datetime(2020, 2, 29, tzinfo=UTC))
    items = [1, "ä\ud800\n", (1, 2), {3: {4}}, model, None, float("inf"), b"\0"]
    assert wire().decode_items("r:g:1", 5, content_of(items), "", len(items)) == items
    assert b"\n" not in content_of(items)


def test_an_array_arrives_as_it_left() -> None:
    numpy = pytest.importorskip("numpy")
    (array,) = wire().decode_items("r:g:1", 0, content_of([numpy.arange(3)]), "", 1)
    assert array.tolist() == [0, 1, 2]


def test_only_the_newest_items_are_decoded() -> None:
    assert wire().decode_items("r:g:1", 0, content_of([1, 2, 3]), "", 2) == [2, 3]


def test_an_item_that_is_not_carried_is_refused() -> None:
    with pytest.raises(SerializationError, match="functions and classes are not carried"):
        wire().encode_item(len)


@pytest.mark.parametrize(("task_id", "first"), [("r:g:2", 0), ("r:g:1", 1)])
def test_sealed_items_stand_in_their_place_only(task_id: str, first: int) -> None:
    sealed, content = wire(b"secret"), content_of([1, 2])
    seal = sealed.seal_of_items("r:g:1", 0, content)
    assert sealed.decode_items("r:g:1", 0, content, seal, 2) == [1, 2]
    with pytest.raises(SerializationError, match="not sealed with this process's secret"):
        sealed.decode_items(task_id, first, content, seal, 2)


@pytest.mark.parametrize("seal", ["", "0" * 32, wire(b"other").seal_of_items("r:g:1", 0, b"[1]")])
def test_items_of_whoever_lacks_the_secret_are_refused(seal: str) -> None:
    with pytest.raises(SerializationError, match="not sealed with this process's secret"):
        wire(b"secret").decode_items("r:g:1", 0, b"[1]", seal, 1)


@pytest.mark.parametrize("content", [b"", b"[1", b"1", b"[]", b'{"a": 1}'])
def test_damaged_items_are_refused(content: bytes) -> None:
    with pytest.raises(SerializationError, match="the items of task 'r:g:1' are damaged"):
        wire().decode_items("r:g:1", 0, content, "", 2)
