"""The wrapper around a task's function: what it lets through, what it stops."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from taskiq import NoResultError, TaskiqMessage

from taskiq_flow.processes.awaited import is_awaited_by_taskiq
from taskiq_flow.transport.notice import ReplyTo
from taskiq_flow.worker.execution import REFUSAL, Execution, Refusal, RevokedError, current, guarded


def execution(task_id: str = "run:node:1") -> Execution:
    message = TaskiqMessage(
        task_id=task_id, task_name="t", labels={}, labels_types={}, args=[], kwargs={}
    )
    return Execution(message, ReplyTo("channel", b"", "run"))


def module_level(a: int, b: int = 2) -> int:
    """Adds."""
    return a + b


async def async_level(a: int, b: int = 2) -> int:
    """Adds."""
    return a + b


both = pytest.mark.parametrize("function", [module_level, async_level])


async def call(function: object, *args: object, **kwargs: object) -> object:
    result = guarded(function)(*args, **kwargs)  # type: ignore[arg-type]
    return await result if inspect.isawaitable(result) else result


@both
async def test_it_looks_and_acts_like_the_function(function: object) -> None:
    wrapped = guarded(function)  # type: ignore[arg-type]
    assert inspect.signature(wrapped) == inspect.signature(function)  # type: ignore[arg-type]
    assert inspect.iscoroutinefunction(wrapped) == inspect.iscoroutinefunction(function)
    assert (wrapped.__doc__, wrapped.__module__) == ("Adds.", __name__)
    assert await call(function, 1, b=5) == 6


@both
async def test_a_refused_task_raises_instead_of_running(function: object) -> None:
    with pytest.raises(LookupError):
        await call(function, 1, **{REFUSAL: Refusal(LookupError("refused"))})


def any_words(**words: object) -> dict[str, object]:
    return words


async def test_an_argument_of_that_name_is_no_refusal() -> None:
    given = {REFUSAL: "the user's own"}
    assert await call(any_words, **given) == given


def test_a_function_is_wrapped_once() -> None:
    for function in (module_level, async_level):
        wrapped = guarded(function)
        assert guarded(wrapped) is wrapped


async def test_a_process_that_was_forked_while_a_task_was_revoked_runs_others() -> None:
    revoked = execution()
    current.set(revoked)
    revoked.revoke()
    revoked._pid += 1  # as if this were another process than that of the execution
    assert await call(module_level, 1) == 3


@both
async def test_a_revoked_task_does_not_run(function: object) -> None:
    revoked = execution()
    current.set(revoked)
    revoked.revoke()
    with pytest.raises(RevokedError):
        await call(function, 1)


async def test_a_task_that_runs_is_cancelled_once_and_may_clean_up() -> None:
    begun, cleaned = asyncio.Event(), []

    async def work() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    async def execute() -> str:
        current.set(running)
        try:
            await guarded(work)()
        except RevokedError:
            await asyncio.sleep(0)  # what follows is not cancelled
            return "revoked"
        return "ended"

    running = execution()
    executing = asyncio.ensure_future(execute())
    await begun.wait()
    running.revoke()
    running.revoke()
    assert await executing == "revoked"
    assert cleaned == [True]
    assert not executing.cancelling()


async def test_a_task_that_calls_another_one_is_cancelled_still() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        assert await call(async_level, 1) == 3
        begun.set()
        await asyncio.Event().wait()

    async def execute() -> None:
        current.set(running)
        with pytest.raises(RevokedError):
            await guarded(work)()

    running = execution()
    executing = asyncio.ensure_future(execute())
    await begun.wait()
    running.revoke()
    async with asyncio.timeout(5):
        await executing


def letters(word: str) -> Iterator[str]:
    try:
        yield from word
    except LookupError:
        yield "?"


async def letters_async(word: str) -> AsyncIterator[str]:
    for letter in letters(word):
        try:
            yield letter
        except LookupError:
            yield "?"


async def test_a_generator_that_a_task_calls_as_a_function_is_one() -> None:
    current.set(execution())
    assert list(guarded(letters)("abc")) == ["a", "b", "c"]
    items: Any = guarded(letters)("abc")
    assert (next(items), items.throw(LookupError()), items.close()) == ("a", "?", None)
    assert list(items) == []
    assert [letter async for letter in guarded(letters_async)("abc")] == ["a", "b", "c"]
    async with aclosing(guarded(letters_async)("abc")) as several:
        assert (await anext(several), await several.asend(None)) == ("a", "b")
        assert await several.athrow(LookupError()) == "?"
    assert [letter async for letter in several] == []


async def test_taskiq_is_given_the_list_of_a_generator_that_no_engine_has_sent() -> None:
    for function in (letters, letters_async):
        assert is_awaited_by_taskiq(guarded(function))
        assert await guarded(function)("abc") == ["a", "b", "c"]


async def test_a_cancellation_of_somebody_elses_is_let_through() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    async def execute() -> None:
        current.set(execution())
        await guarded(work)()

    executing = asyncio.ensure_future(execute())
    await begun.wait()
    executing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await executing


def test_a_sync_function_and_a_refusal_travel_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(guarded(module_level)))(1) == 3  # noqa: S301 - ours
    refusal = pickle.loads(pickle.dumps(RevokedError()))  # noqa: S301 - ours
    assert isinstance(refusal, RevokedError)
    assert isinstance(refusal, NoResultError)  # which retry middlewares leave alone


@pytest.mark.parametrize("name", ["node", "a:b", "node:1"])
def test_an_execution_knows_its_node(name: str) -> None:
    assert execution(f"run:{name}:1").node_name == name
