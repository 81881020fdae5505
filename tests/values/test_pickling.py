"""What is pickled comes back as it was, or is refused when it is written."""

from __future__ import annotations

import math
import pickle
import sys
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import attrs
import pytest
from taskiq import InMemoryBroker
from taskiq.serializers import PickleSerializer

from taskiq_flow import DAGBuilder, ExecutionEngine, MemoryJournal, NodeFailedError
from taskiq_flow.errors import SerializationError
from taskiq_flow.processes.child_main import pickled
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import ValueCodec
from taskiq_flow.values.stored import StoredValues
from tests.values.kinds import CodedError, LookupAttributeError, Point, SlottedError, ValueOSError

OPEN = Classes.imported()


class OwnPickle(PickleSerializer):
    """A serializer of the user's."""


def by_pickle(value: Any) -> Any:
    return pickle.loads(pickled(value))  # noqa: S301 - written here


def in_json(value: Any) -> Any:
    codec = ValueCodec(pickle=True)
    return codec.decode(codec.encode(value), OPEN)


def in_a_frame(value: Any) -> Any:
    codec = ValueCodec(pickle=True)
    return codec.decode_frame(b"".join(codec.encode_frame(value)), OPEN)


def in_a_journal(value: Any) -> Any:
    stored = StoredValues(PickleSerializer(), OPEN)
    return stored.loads(stored.dumps(value))


def in_a_journal_of_the_users(value: Any) -> Any:
    stored = StoredValues(OwnPickle(), OPEN)
    return stored.loads(stored.dumps(value))


WAYS = [by_pickle, in_json, in_a_frame, in_a_journal, in_a_journal_of_the_users]

Way = Callable[[Any], Any]


class Object:
    def __init__(self, *content: Any) -> None:
        self.content = content


class OfAnotherType(Object):
    def __reduce__(self) -> Any:
        return str, ("another",)


class NeedsMore(Object):
    def __init__(self, content: Any) -> None:
        super().__init__(content)

    def __reduce__(self) -> Any:
        return NeedsMore, ()


class NeedsMoreWhenMade(Object):
    def __new__(cls, content: Any) -> Self:  # noqa: ARG004 - counted
        return object.__new__(cls)


class RefusesItsState(Object):
    def __setstate__(self, state: Any) -> None:
        raise LookupError(state)


class Unequal(Object):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unequal) and other.content == self.content

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return Unequal, (*self.content, "more")


class Exits(Object):
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


class Doubling(list[int]):
    def append(self, item: int, /) -> None:
        super().append(item * 2)

    def extend(self, items: Any, /) -> None:
        for item in items:
            self.append(item)


class ReadOnly(dict[str, int]):
    def __setitem__(self, key: str, value: int, /) -> None:
        raise TypeError("read only")


class OthersWhenIterated(list[int]):
    def __iter__(self) -> Any:
        return iter([9])


class OfASet(set[int]):
    def __iter__(self) -> Any:
        return iter([9])


class OfADeque(deque[int]):
    def __iter__(self) -> Any:
        return iter([9])


class WithoutItems(OrderedDict[str, int]):
    def items(self) -> Any:
        return []


class Number(int):
    def __reduce__(self) -> Any:
        return int, (int(self),)


UNFAITHFUL = {
    "another type": OfAnotherType(1),
    "an argument is missing": NeedsMore(1),
    "an argument of __new__ is missing": NeedsMoreWhenMade(1),
    "its state is refused": RefusesItsState(1),
    "not equal": Unequal(1),
    "ends the process": Exits(),
    "other items": Doubling([1]),
    "no items": ReadOnly(a=1),
    "a builtin's subclass": Number(1),
    "a list that is read otherwise": OthersWhenIterated([1]),
    "a set that is read otherwise": OfASet([1]),
    "a deque that is read otherwise": OfADeque([1]),
    "a dictionary without items": WithoutItems(a=1),
}


@pytest.mark.parametrize("value", UNFAITHFUL.values(), ids=UNFAITHFUL)
@pytest.mark.parametrize("way", WAYS)
def test_what_would_come_back_as_another_value_is_refused(way: Way, value: Any) -> None:
    for sent in (value, [value], {"a": (Object(value),)}):
        with pytest.raises((SerializationError, pickle.PicklingError)):
            way(sent)


def test_a_refusal_says_why() -> None:
    with pytest.raises(SerializationError, match=r"Unequal.*comes back as a different one"):
        in_json(Unequal(1))
    with pytest.raises(SerializationError, match=r"OfAnotherType comes back as a builtins.str"):
        in_a_journal([OfAnotherType(1)])
    with pytest.raises(SerializationError, match=r"RefusesItsState.*does not come back: LookupErr"):
        in_a_journal(RefusesItsState(1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: CodedError(3, "no"), lambda: SlottedError((1,)), lambda: KeyError(Point(1)),
        lambda: FileNotFoundError(2, "none", "f"), lambda: ValueOSError(2, "none", "f"),
        lambda: UnicodeDecodeError("utf-8", b"a", 0, 1, "why"), lambda: SystemExit(3),
        lambda: ExceptionGroup("g", [CodedError(3, "no")]), lambda: ImportError("m", name="n"),
        lambda: LookupAttributeError("a"), lambda: NameError("a", name="b"),
        lambda: AttributeError("a", name="b", obj=lambda: None), lambda: OSError("one"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", WAYS)
def test_an_exception_comes_back_without_a_call_of_its_class(
    way: Way, make: Callable[[], BaseException]
) -> None:
    error = make()
    error.__cause__ = CodedError(4, "below")
    error.none, error.some = None, 1  # type: ignore[attr-defined]
    pickles = way is by_pickle or way is in_a_journal
    other = way(Object(error)).content[0] if pickles else way(error)
    assert type(other) is type(error)
    assert (str(other), repr(other.args)) == (str(error), repr(error.args))
    assert repr(vars(other)) == repr(vars(error))
    for name in ("errno", "filename", "name", "object", "code", "value", "place"):
        assert getattr(other, name, None) == getattr(error, name, None), name
    assert repr(other.__cause__) == repr(error.__cause__)


class Connected:
    """Leaves out what cannot be pickled."""

    def __init__(self, address: str) -> None:
        self.address, self.connection = address, object()

    def __getstate__(self) -> Any:
        return {"address": self.address}

    def __setstate__(self, state: Any) -> None:
        self.__init__(**state)  # type: ignore[misc]


class NotEvenItself(Object):
    def __eq__(self, other: object) -> Any:
        return [False]

    def __reduce__(self) -> Any:
        return NotEvenItself, self.content

    __hash__ = None  # type: ignore[assignment]


class Undecided(NotEvenItself):
    def __eq__(self, other: object) -> Any:
        raise ValueError("ambiguous")

    def __reduce__(self) -> Any:
        return Undecided, self.content

    __hash__ = None


@dataclass(frozen=True, slots=True)
class Holder:
    error: Exception


@attrs.frozen
class AttrsHolder:
    error: Exception


@pytest.mark.parametrize(
    "value",
    [
        Connected("here"), NotEvenItself(1), Undecided(1), Holder(CodedError(3, "no")),
        AttrsHolder(CodedError(3, "no")), Object({math.nan}, {Object(1)}),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.parametrize("way", WAYS)
def test_what_comes_back_is_not_refused(way: Way, value: Any) -> None:
    assert type(way([value])[0]) is type(value)
    loop: list[Any] = [Connected("a")]
    loop.append(loop)
    if way is by_pickle:
        assert type(way(loop)[1][1][0]) is Connected


async def test_a_journal_that_pickles_keeps_an_exception_or_fails_its_node() -> None:
    def outcome(fails: bool) -> Any:
        return NeedsMore(1) if fails else [CodedError(3, "no")]

    journal = MemoryJournal(serializer=PickleSerializer())
    dag = DAGBuilder().node(outcome).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
    await engine.execute({"fails": False}, run_id="good")
    [(_, [error])] = [pair async for pair in engine.resume("good")]
    assert (type(error), error.args, error.code) == (CodedError, ("3: no",), 3)
    with pytest.raises(NodeFailedError, match="NeedsMore does not come back: TypeError"):
        await engine.execute({"fails": True}, run_id="bad")
