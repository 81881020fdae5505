"""Handles within lists: how they are found, taken out and read, and how references travel."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
from taskiq import TaskiqResult
from taskiq.brokers.inmemory_broker import InmemoryResultBackend

from taskiq_flow import ResultHandle, ResultUnavailableError, ServerUnreachableError
from taskiq_flow.reconnect import OUTAGE_TIMEOUT
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import ValueCodec
from taskiq_flow.values.handle import Reference, holds_handles, with_values, without_handles
from taskiq_flow.values.references import handle_of
from taskiq_flow.values.results import failed
from taskiq_flow.values.wire import VALUES, Place, Wire
from tests.virtual_clock import virtually


def handle(value: Any) -> ResultHandle:
    async def read() -> Any:
        return value

    return ResultHandle(Reference(str(value)), read)


A, B = handle("a"), handle("b")

CYCLE: list[Any] = [1]
CYCLE.append(CYCLE)


@pytest.mark.parametrize("value", [A, [1, A], [[], [[A]]], [[1], "x", [B]]])
def test_handles_are_found_in_lists(value: Any) -> None:
    assert holds_handles(value)


@pytest.mark.parametrize("value", [None, [], [[1], ["x", [None]]], (A,), {"key": A}, CYCLE])
def test_nothing_but_lists_is_looked_into(value: Any) -> None:
    assert not holds_handles(value)


@pytest.mark.parametrize("make", [lambda: handle("c"), lambda: copy.copy(A)])
def test_values_are_searched_once_the_process_has_made_a_handle(
    make: Callable[[], ResultHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ResultHandle, "exist", False)
    made = make()
    assert holds_handles([made])


def test_no_value_is_searched_in_a_process_without_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResultHandle, "exist", False)
    assert not holds_handles([A])


async def test_a_value_is_taken_apart_and_its_handles_are_read() -> None:
    part = [1]
    value = [part, [A, 2], B]
    without, handles = without_handles(value)
    assert without == [[1], [None, 2], None]
    assert handles == [((1, 0), A), ((2,), B)]
    assert await with_values(value) == [[1], ["a", 2], "b"]
    assert value == [[1], [A, 2], B]
    assert without_handles(A) == (None, [((), A)])
    assert without_handles(part)[0] is part
    assert await with_values(part) is part


def test_places_of_references_arrive_and_those_of_earlier_versions_too() -> None:
    wire = Wire(ValueCodec(), Classes.imported())
    sent: list[tuple[Place, dict[str, str]]] = [
        (("texts", 1, 0), {"task_id": "a"}),
        ((0,), {"task_id": "b"}),
    ]
    kwargs = wire.encode_call("t", [None], {"texts": [1, [None]]}, sent)
    assert wire.references_of(kwargs) == sent
    assert wire.decode_call("t", kwargs) == ([None], {"texts": [1, [None]]})
    earlier = {VALUES: {"references": [["text", {"task_id": "a"}], [0, {"task_id": "b"}]]}}
    assert [place for place, _ in wire.references_of(earlier)] == [("text",), (0,)]


@pytest.mark.parametrize(
    ("task_id", "remedy"),
    [
        ("r1:load:1", r"engine.rerun\('r1', \['load'\]\) if the run has a journal"),
        ("a:b:load[3,1]:2.x7", r"engine.rerun\('a:b', \['load'\]\)"),
        ("r1:input.f00d", "begin the run again"),
    ],
)
async def test_the_error_of_a_result_that_has_expired_says_how_to_get_it(
    task_id: str, remedy: str
) -> None:
    expired = handle_of(InmemoryResultBackend(), task_id, None, None)
    with pytest.raises(ResultUnavailableError, match=f"{remedy}.*, and have the backend keep"):
        await expired.get()


class AwayBackend(InmemoryResultBackend[Any]):
    """Cannot be reached for so many questions. ``what``: the error, such as the client raises."""

    def __init__(self, questions: float, what: Callable[[], Exception] = ConnectionError) -> None:
        super().__init__()
        self._left, self._what = questions, what

    async def is_result_ready(self, task_id: str) -> bool:
        self._left -= 1
        if self._left >= 0:
            raise self._what()
        return await super().is_result_ready(task_id)


def completed(value: Any) -> TaskiqResult[Any]:
    return TaskiqResult(is_err=False, return_value=value, execution_time=0.0)


def with_result(backend: AwayBackend, result: TaskiqResult[Any]) -> ResultHandle:
    backend.results["t"] = result
    return handle_of(backend, "t", None, None)


@virtually
async def test_a_value_is_read_once_its_server_is_back() -> None:
    assert await with_result(AwayBackend(10), completed("tide")).get() == "tide"


@virtually
async def test_a_server_that_stays_away_is_named() -> None:
    unread = with_result(AwayBackend(math.inf), completed("tide"))
    with pytest.raises(ServerUnreachableError, match="AwayBackend was away for 60 s") as caught:
        await unread.get()
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert asyncio.get_running_loop().time() == pytest.approx(OUTAGE_TIMEOUT, abs=2.5)


@pytest.mark.parametrize("error", [LookupError, PermissionError])
@virtually
async def test_what_is_no_outage_is_not_waited_for(error: type[Exception]) -> None:
    with pytest.raises(error):
        await with_result(AwayBackend(1, error), completed("tide")).get()
    assert asyncio.get_running_loop().time() == 0


@virtually
async def test_an_error_of_the_task_that_looks_like_an_outage_is_raised_at_once() -> None:
    unread = with_result(AwayBackend(0), failed(ConnectionError("of the task")))
    with pytest.raises(ConnectionError, match="of the task"):
        await unread.get()
    assert asyncio.get_running_loop().time() == 0
