"""The short way to a broker's message ends where taskiq's own formatter does."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import ipaddress
import json
import math
import pathlib
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel
from taskiq import AsyncBroker, BrokerMessage, InMemoryBroker
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers import JSONSerializer

from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dispatch.encoding import Address, Invocation, encode_unseen, plain


class Point(BaseModel):
    x: int
    pair: tuple[int, int] = (1, 2)


@dataclasses.dataclass
class Box:
    content: Any


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Word(str):
    __slots__ = ()


class Indented(JSONSerializer):
    def dumpb(self, value: Any) -> bytes:
        return json.dumps(value, indent=1).encode()


VALUES: list[Callable[[], Any]] = [
    lambda: None,
    lambda: True,
    lambda: 10**30,
    lambda: -0.0,
    lambda: math.nan,
    lambda: math.inf,
    lambda: "é\u2028",
    lambda: (1, (2, [3])),
    lambda: {3},
    lambda: frozenset({3}),
    lambda: b"raw",
    lambda: b"\xff",
    lambda: bytearray(b"raw"),
    lambda: dt.datetime(2020, 1, 2, tzinfo=dt.UTC),
    lambda: dt.timedelta(seconds=90),
    lambda: decimal.Decimal("1.50"),
    lambda: Colour.RED,
    lambda: Level.LOW,
    lambda: uuid.UUID(int=5),
    lambda: pathlib.PurePosixPath("/a"),
    lambda: ipaddress.ip_address("127.0.0.1"),
    lambda: collections.deque([1]),
    lambda: collections.Counter("aab"),
    lambda: Point(x=1),
    lambda: [Point(x=1)],
    lambda: Box(1),
    lambda: {"box": Box(Box(2))},
    lambda: Word("word"),
    lambda: {1: "a", None: "b", 1.5: "c", (1, 2): "d", Colour.RED: "e"},
    lambda: iter([1, 2]),
    lambda: range(3),
    lambda: complex(1, 2),
    object,
    lambda: Point,
    lambda: len,
]


@pytest.fixture
def address() -> Address:
    @InMemoryBroker().task(task_name="work", priority=3, flag=True, blob=b"x")
    def work() -> None: ...

    return Address.of(work, {})


def outcome(encode: Callable[[], BrokerMessage]) -> object:
    try:
        return encode()
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("number", range(len(VALUES)))
@pytest.mark.parametrize("by_name", [False, True])
def test_both_ways_give_the_same_bytes_or_the_same_error(
    address: Address, number: int, by_name: bool
) -> None:
    broker: AsyncBroker = InMemoryBroker()

    def call() -> tuple[list[Any], dict[str, Any]]:
        value = plain(VALUES[number]())
        return ([], {"value": value}) if by_name else ([value], {})

    by_taskiq = outcome(lambda: broker.formatter.dumps(address.message("id", *call())))
    sent = Invocation(DAGNode(len), address, "id", [], {})
    own = outcome(lambda: encode_unseen(broker, sent, *call(), converts=True))
    assert own == by_taskiq


@pytest.mark.parametrize(
    "serializer",
    [JSONSerializer(), JSONSerializer(ensure_ascii=False), Indented()],
)
def test_messages_without_values_differ_in_the_id_alone(
    address: Address, serializer: TaskiqSerializer
) -> None:
    broker = InMemoryBroker().with_serializer(serializer)
    for task_id in ["first", 'a "second"\\', "größer:1", ""]:
        by_taskiq = broker.formatter.dumps(address.message(task_id, [], {}))
        sent = Invocation(DAGNode(len), address, task_id, [], {})
        assert encode_unseen(broker, sent, [], {}, converts=False) == by_taskiq
