"""The traceback of a task on its worker, which is a note on the error that the engine raises."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from taskiq import NoResultError, TaskiqDepends

from taskiq_flow import DAGBuilder, ExecutionEngine, NodeFailedError, TaskLostError
from taskiq_flow.previews import shown_error
from taskiq_flow.processes.name import process_name
from taskiq_flow.testing import LocalBroker, LocalNotices
from taskiq_flow.values import worker_traceback as module
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import ValueCodec
from taskiq_flow.values.results import failed
from taskiq_flow.values.wire import Wire
from taskiq_flow.values.worker_traceback import add_note, worker_traceback
from tests.local_flow import with_flow
from tests.values.kinds import FrozenError, GuardedError

HEADING = f"Traceback on worker {process_name()} (most recent call last):"

KEPT = LookupError("kept by the module")


def refuse(number: int) -> None:
    raise ValueError(f"{number} is odd")


async def in_coroutine(number: int) -> None:
    refuse(number)


def in_thread(number: int) -> None:
    refuse(number)


def in_generator(number: int) -> Iterator[int]:
    refuse(number)
    yield number


async def in_async_generator(number: int) -> AsyncIterator[int]:
    refuse(number)
    yield number


def needed() -> None:
    refuse(7)


async def in_dependency(number: int, _needed: None = TaskiqDepends(needed)) -> None: ...


async def raised_by(function: Callable[..., Any], times: int = 1, **options: Any) -> BaseException:
    """The error of a task that a worker has executed, for the last time of several."""
    broker = LocalBroker()
    flow = with_flow(broker, LocalNotices())
    if "fallback" in options:
        options["fallback"] = broker.task(options["fallback"])
    dag = DAGBuilder().node(broker.task(function), inputs=["number"], **options).build()
    async with broker.worker():
        for _ in range(times):
            with pytest.raises(NodeFailedError) as caught:
                await ExecutionEngine(broker, dag).execute({"number": 7})
    await flow.shutdown()
    assert caught.value.__cause__ is not None
    return caught.value.__cause__


def frame(function: Any, line: str) -> str:
    lines, first = inspect.getsourcelines(function)
    number = next(number for number, text in enumerate(lines) if line in text)
    return f'  File "{__file__}", line {first + number}, in {function.__code__.co_name}\n    {line}'


@pytest.mark.parametrize("function", [in_coroutine, in_thread, in_generator, in_async_generator])
async def test_an_error_has_the_frames_of_its_task_alone(function: Callable[..., Any]) -> None:
    error = await raised_by(function)
    below = frame(refuse, 'raise ValueError(f"{number} is odd")')
    assert error.__notes__ == ["\n".join([HEADING, frame(function, "refuse(number)"), below])]
    assert (type(error), error.args, str(error)) == (ValueError, ("7 is odd",), "7 is odd")


async def test_an_error_has_the_frames_of_what_its_task_depends_on() -> None:
    (note,) = (await raised_by(in_dependency)).__notes__
    assert note.startswith(f"{HEADING}\n{frame(needed, 'refuse(7)')}\n")


async def raise_kept(number: int) -> None:
    raise KEPT


async def test_an_error_that_is_raised_again_has_the_last_frames_alone() -> None:
    error = await raised_by(raise_kept, times=3)
    assert error.__notes__ == [f"{HEADING}\n{frame(raise_kept, 'raise KEPT')}"]
    assert not hasattr(KEPT, "__notes__")


async def raise_noted(number: int) -> None:
    error = ValueError("x")
    error.add_note("a note")
    raise error


async def raise_again(number: int, error: Exception) -> None:
    raise error


async def test_a_note_of_the_users_stands_before_it() -> None:
    notes = (await raised_by(raise_noted)).__notes__
    assert notes == ["a note", f"{HEADING}\n{frame(raise_noted, 'raise error')}"]


async def test_an_error_that_a_fallback_raises_again_has_the_frames_of_the_task() -> None:
    notes = (await raised_by(raise_noted, fallback=raise_again)).__notes__
    assert notes == ["a note", f"{HEADING}\n{frame(raise_noted, 'raise error')}"]


async def raise_of_unknown_class(number: int) -> None:
    class UnknownError(Exception):
        pass

    raise UnknownError(number)


async def raise_large(number: int) -> None:
    error = ValueError("x")
    error.attribute = "x" * 2_000_000  # type: ignore[attr-defined]
    raise error


async def raise_frozen(number: int) -> None:
    raise FrozenError(number)


async def raise_guarded(number: int) -> None:
    raise GuardedError(number)


@pytest.mark.parametrize(
    "function", [raise_of_unknown_class, raise_large, raise_frozen, raise_guarded]
)
async def test_an_error_of_any_form_has_them(function: Callable[..., Any]) -> None:
    (note,) = (await raised_by(function)).__notes__
    assert note.startswith(f'{HEADING}\n  File "{__file__}"')


async def test_an_error_keeps_its_form_at_the_limit_of_its_size() -> None:
    async def fail(number: int) -> None:
        error = ValueError("x" * 990_000)
        error.attribute = 1  # type: ignore[attr-defined]
        raise error

    error: Any = await raised_by(fail)
    assert (error.attribute, len(error.__notes__)) == (1, 1)


async def lose(number: int) -> None:
    raise TaskLostError("lost")


async def give_nothing(number: int) -> None:
    raise NoResultError


@pytest.mark.parametrize("function", [lose, give_nothing])
async def test_an_error_of_this_package_has_none(function: Callable[..., Any]) -> None:
    assert not hasattr(await raised_by(function), "__notes__")


async def never(number: int) -> None:
    await asyncio.Event().wait()


async def test_a_timeout_has_none() -> None:
    error = await raised_by(never, timeout=0.05)
    assert not hasattr(error, "__notes__")
    assert not hasattr(error.__cause__, "__notes__")


def raised(function: Callable[..., Any], *args: Any) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
        function(*args)
    return caught.value


def descend(levels: int) -> None:
    if levels == 0:
        refuse(levels)
    descend(levels - 1)


def test_the_newest_frames_are_kept() -> None:
    text = worker_traceback(raised(descend, 50)) or ""
    lines = text.splitlines()
    assert lines[0] == HEADING
    assert lines[1] == "  [33 earlier frames are left out]"  # with one of this test's own
    assert lines[-1] == '    raise ValueError(f"{number} is odd")'
    assert text.count(__file__) == 5, "those that repeat stand there three times"


def test_what_is_shown_of_an_error_has_all_frames() -> None:
    names: dict[str, Any] = {}
    source = "\n".join(f"def f{n}(): f{n + 1}() # {'x' * 1_000}" for n in range(40))
    exec(compile(source, f"/{'long/' * 100}tasks.py", "exec"), names)  # noqa: S102
    error = raised(names["f0"])
    add_note(error, worker_traceback(error) or "")
    shown = shown_error(error)
    assert shown is not None
    before, _, frames = shown["traceback"].partition(f"\n{HEADING}\n")
    assert "NameError: name 'f40' is not defined" in before
    assert frames.count("  File ") == module.MOST_FRAMES


def test_a_name_that_is_no_text_is_written_as_text() -> None:
    error = raised(eval, compile("1 / 0", "\udc80.py", "eval"))
    assert r'File "\udc80.py", line 1' in (worker_traceback(error) or "")


def wire(secret: bytes) -> Wire:
    return Wire(ValueCodec(), Classes(), secret)


def test_one_that_another_secret_has_sealed_is_left_out() -> None:
    result = failed(raised(refuse, 7))
    sent = wire(b"one").encode_result("t", result, strict=False)
    sent = sent.model_copy(update={"error": ValueError("7 is odd")})  # as taskiq carries it
    damaged = sent.model_copy(update={"return_value": 5})
    for other, content in ((wire(b"two"), sent), (wire(b"one"), damaged)):
        error = other.decode_error("t", content).error
        assert error is sent.error
        assert not hasattr(error, "__notes__")
    assert hasattr(wire(b"one").decode_error("t", sent).error, "__notes__")


class ClosedError(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_an_error_that_allows_no_look_at_it_stays_as_it_is() -> None:
    error = ValueError()
    error.__notes__ = 5  # type: ignore[assignment]
    for each in (error, ClosedError()):
        assert worker_traceback(each) is None
        add_note(each, "text")
    assert vars(error) == {"__notes__": 5}
