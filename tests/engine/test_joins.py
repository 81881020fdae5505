"""When a node starts, and what becomes of those whose inputs will never be there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    BindingError,
    DAGBuilder,
    ExecutionEngine,
    NodeFailedError,
    NodeFailure,
    RunCancelledError,
    RunFailedError,
)
from tests.virtual_clock import run_virtually, virtual_loop, virtually


async def one() -> int:
    return 1


async def slow() -> int:
    await asyncio.sleep(5)
    return 5


async def failing() -> int:
    raise LookupError


async def given(*, one: int | None = None, slow: int | None = None, failing: Any = None) -> Any:
    return {"one": one, "slow": slow, "failing": failing}


def never() -> bool:
    return False


def engine_of(builder: DAGBuilder, **options: Any) -> ExecutionEngine:
    return ExecutionEngine(InMemoryBroker(), builder.build(), **options)


async def pairs_of(builder: DAGBuilder, **inputs: Any) -> dict[str, Any]:
    engine = engine_of(builder, on_error="collect")
    return {name: value async for name, value in engine.execute_async(inputs)}


@virtually
async def test_any_starts_with_the_first_input_and_leaves_out_the_others() -> None:
    builder = DAGBuilder().node(one).node(slow)
    builder.node(given, inputs=["one", "slow"], join="any", name="j")

    engine = engine_of(builder)
    assert [(virtual_loop().time(), *pair) async for pair in engine.execute_async()] == [
        (0.0, "one", 1),
        (0.0, "j", {"one": 1, "slow": None, "failing": None}),
        (5.0, "slow", 5),
    ]


@virtually
@pytest.mark.parametrize("fails", [False, True])
async def test_an_element_by_any_has_ended_when_another_of_its_inputs_comes(fails: bool) -> None:
    async def early(number: int) -> int:
        await asyncio.sleep(number)
        return number

    async def late(number: int) -> int:
        await asyncio.sleep(10)
        if fails:
            raise LookupError
        return number

    async def first(early: int | None = None, late: int | None = None) -> Any:
        return early, late

    builder = DAGBuilder().node(early, inputs={"number": "numbers"}, map_over="numbers")
    builder.node(late, inputs={"number": "numbers"}, map_over="numbers")
    builder.node(first, inputs=["early", "late"], map_over=["early", "late"], join="any")
    engine = engine_of(builder, on_error="collect")
    stream = engine.execute_async({"numbers": [1, 2]}, items="only")
    found = [(virtual_loop().time(), name, item.value) async for name, item in stream]
    assert [each for each in found if each[1] == "first"] == [
        (1, "first", (1, None)),
        (2, "first", (2, None)),
    ]
    assert [each[0] for each in found if each[1] == "late"] == [10, 10]


def test_none_failed_waits_for_all_and_minds_failures_only() -> None:
    builder = DAGBuilder().node(one, when=lambda: False).node(slow)
    builder.node(given, inputs=["one", "slow"], join="none_failed", name="j")
    builder.node(failing).node(given, inputs=["slow", "failing"], join="none_failed", name="k")
    pairs = run_virtually(pairs_of(builder))
    assert pairs["j"] == {"one": None, "slow": 5, "failing": None}
    assert pairs["k"].because_of == ("failing",)
    assert pairs["k"].reason == "failure"
    assert isinstance(pairs["failing"], NodeFailure)


@pytest.mark.parametrize("join", ["any", "none_failed"])
def test_what_a_rule_may_do_without_needs_a_default(join: Any) -> None:
    async def needs(one: int, slow: int | None = None) -> None: ...

    builder = DAGBuilder().node(one).node(slow)
    with pytest.raises(BindingError, match=f"node 'needs' has join='{join}' and may start without"):
        builder.node(needs, join=join).build()


@pytest.mark.parametrize(
    ("declare", "expected"),
    [
        (lambda first=0, *rest: (first, rest), (0, [5])),
        (lambda *all_of_them: list(all_of_them), [5]),
        (lambda **by_name: by_name, {"slow": 5}),
        (lambda one=0, /, slow=0: (one, slow), (0, 5)),
        (lambda *, one=0, slow=0: (one, slow), (0, 5)),
    ],
)
def test_inputs_that_are_not_there_are_left_out_of_any_call(
    declare: Callable[..., Any], expected: Any
) -> None:
    builder = DAGBuilder().node(failing, name="one").node(slow)
    builder.node(declare, inputs=["one", "slow"], join="any", name="j")
    value = run_virtually(pairs_of(builder))["j"]
    assert _listed(value) == _listed(expected)


def _listed(value: Any) -> Any:
    return [_listed(part) for part in value] if isinstance(value, (list, tuple)) else value


# Conditions


def test_a_node_is_skipped_by_a_condition_and_what_depends_on_it_follows_its_own_rule() -> None:
    builder = DAGBuilder().node(one, when=lambda x: x > 3)
    builder.node(lambda one: one, name="all")
    builder.node(lambda value=7: value, name="any", inputs=["all"], join="any")
    builder.node(lambda value=7: value, name="none_failed", inputs=["all"], join="none_failed")
    pairs = run_virtually(pairs_of(builder, x=3))
    assert pairs.pop("none_failed") == 7
    assert {name: (skip.because_of, skip.reason) for name, skip in pairs.items()} == {
        "one": ((), "condition"),
        "all": (("one",), "condition"),
        "any": (("all",), "condition"),
    }
    pairs = run_virtually(pairs_of(builder, x=4))
    assert pairs == dict.fromkeys(["one", "all", "any", "none_failed"], 1)


@pytest.mark.parametrize("on_error", ["raise", "continue"])
def test_a_skip_by_condition_is_no_failure(on_error: Any) -> None:
    builder = DAGBuilder().node(one, when=never).node(lambda one: one, name="behind").node(slow)
    assert run_virtually(engine_of(builder, on_error=on_error).execute()) == {"slow": 5}


def test_a_condition_may_ask_for_a_key_that_the_task_does_not_take() -> None:
    builder = DAGBuilder().node(one, when=lambda slow: slow == 5).node(slow)
    dag = builder.build()
    assert [(a.task_name, b.task_name) for a, b in dag.edges] == [("slow", "one")]
    assert run_virtually(engine_of(builder).execute()) == {"one": 1, "slow": 5}


def test_a_condition_is_asked_once_with_what_is_there() -> None:
    asked: list[tuple[int, int]] = []

    def condition(x: int, maybe: int = 7) -> bool:
        asked.append((x, maybe))
        return True

    builder = DAGBuilder().node(one, when=condition)
    run_virtually(engine_of(builder).execute({"x": 1}))
    run_virtually(engine_of(builder).execute({"x": 1, "maybe": 2}))
    assert asked == [(1, 7), (1, 2)]


def test_a_condition_that_raises_is_the_nodes_failure() -> None:
    builder = DAGBuilder().node(one, when=lambda x: 1 / x > 0)
    with pytest.raises(NodeFailedError) as caught:
        run_virtually(engine_of(builder).execute({"x": 0}))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def _streamed(x: int) -> Iterator[bool]:
    yield True


class AsksLater:
    """A condition whose ``__call__`` is async."""

    async def __call__(self, x: int) -> bool:
        await asyncio.sleep(1)
        return x > 0


async def ask_later(x: int) -> bool:
    return await AsksLater()(x)


@pytest.mark.parametrize("when", [AsksLater(), ask_later, lambda x: ask_later(x + 0)])
@pytest.mark.parametrize(("x", "results"), [(1, {"one": 1}), (0, {})])
def test_an_async_condition_is_awaited(when: Any, x: int, results: dict[str, int]) -> None:
    builder = DAGBuilder().node(one, when=when)
    assert run_virtually(engine_of(builder).execute({"x": x})) == results


@pytest.mark.parametrize("options", [{}, {"retry": 2}, {"cache": True}, {"fallback": 7}])
def test_a_node_with_other_options_is_sent_after_an_async_condition(options: Any) -> None:
    builder = DAGBuilder().node(one, when=ask_later, **options)
    assert run_virtually(engine_of(builder, max_parallel=1).execute({"x": 1})) == {"one": 1}


async def a_generator() -> Any:
    return (number for number in (1,))


@InMemoryBroker().task
async def no() -> bool:
    return False


async def a_sending() -> Any:
    return await no.kiq()


async def a_result() -> Any:
    return await (await no.kiq()).wait_result()


@pytest.mark.parametrize(
    "when",
    [
        lambda: (number for number in (1,)),
        lambda: map(bool, []),
        lambda: "text".isdigit,
        a_generator,
        lambda: partial(bool, 0),
        lambda: (0).__bool__,
        lambda: int.__bool__,
        lambda: str.isdigit,
        lambda: no,
        lambda: no.kicker().with_labels(),
        a_sending,
        a_result,
    ],
)
def test_an_answer_that_is_always_true_is_the_nodes_failure(when: Any) -> None:
    pairs = run_virtually(pairs_of(DAGBuilder().node(lambda: 1, name="node", when=when)))
    assert isinstance(pairs["node"].error, TypeError)
    assert "always true" in str(pairs["node"].error)
    kept = DAGBuilder().node(lambda x: when, name="kept", map_over="x", filter=True)
    with pytest.raises(NodeFailedError, match="always true"):
        run_virtually(engine_of(kept).execute({"x": [1]}))


def test_what_an_async_condition_raises_fails_its_node() -> None:
    async def broken() -> bool:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    builder = DAGBuilder().node(one, when=broken).node(slow)
    pairs = run_virtually(pairs_of(builder))
    assert isinstance(pairs["one"].error, ZeroDivisionError)
    assert pairs["slow"] == 5
    with_fallback = DAGBuilder().node(one, when=broken, fallback=9)
    assert run_virtually(pairs_of(with_fallback)) == {"one": 9}


@virtually
async def test_a_run_that_ends_cancels_its_async_conditions() -> None:
    ended: list[str] = []

    async def asked_for_ever() -> bool:
        try:
            await asyncio.sleep(1e6)
        finally:
            ended.append("condition")
        return True

    engine = engine_of(DAGBuilder().node(one, when=asked_for_ever).node(slow))
    with pytest.raises(RunCancelledError):
        async for _ in engine.execute_async():
            engine.cancel()
    assert ended == ["condition"]


def test_a_condition_that_cancels_its_run_is_not_left_unawaited() -> None:
    engine: ExecutionEngine

    async def asked() -> bool:
        return True

    def cancels() -> Any:
        engine.cancel()
        return asked()

    engine = engine_of(DAGBuilder().node(one, when=cancels))
    with pytest.raises(RunCancelledError):
        run_virtually(engine.execute())


def test_what_an_async_condition_sets_in_its_context_does_not_reach_its_node() -> None:
    word: ContextVar[str] = ContextVar("word", default="unset")

    async def sets() -> bool:
        word.set("set")
        return True

    async def reads() -> str:
        return word.get()

    builder = DAGBuilder().node(reads, when=sets)
    assert run_virtually(engine_of(builder).execute()) == {"reads": "unset"}


@pytest.mark.parametrize("when", ["text", _streamed, lambda *keys: True])
def test_a_condition_that_cannot_be_asked_is_refused(when: Any) -> None:
    with pytest.raises(TypeError, match="when of node 'one'"):
        DAGBuilder().node(one, when=when)


def test_a_rule_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="join of node 'one' is 'some'"):
        DAGBuilder().node(one, join="some")  # type: ignore[arg-type]


# Failures beside rules


def test_a_node_that_another_input_lets_start_is_not_among_the_skipped() -> None:
    builder = DAGBuilder().node(failing).node(one)
    builder.node(given, inputs=["one", "failing"], join="any", name="j")
    builder.node(lambda failing=0: failing, inputs=["failing"], join="any", name="k")
    builder.node(lambda failing: failing, name="behind")
    for on_error in ("raise", "continue"):
        with pytest.raises((NodeFailedError, RunFailedError)) as caught:
            run_virtually(engine_of(builder, on_error=on_error).execute())
        assert sorted(caught.value.skipped) == ["behind", "k"]


# What conditions and fallbacks must not change


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt, GeneratorExit])
def test_whatever_a_condition_raises_the_run_ends(error: type[BaseException]) -> None:
    def condition(one: int) -> bool:
        raise error

    builder = DAGBuilder().node(one).node(lambda one: one, name="n", when=condition)
    with pytest.raises((error, NodeFailedError)) as caught:
        run_virtually(engine_of(builder).execute())
    assert error in (type(caught.value), type(caught.value.__cause__))


def test_what_a_condition_sets_in_its_context_stays_there() -> None:
    setting = ContextVar("setting", default="of the run")

    def condition(one: int) -> bool:
        setting.set("of the condition")
        return True

    async def read(one: int) -> str:
        return setting.get()

    builder = DAGBuilder().node(one)
    builder.node(read, name="asked", when=condition).node(read, name="beside")
    results = run_virtually(engine_of(builder).execute())
    assert results == {"one": 1, "asked": "of the run", "beside": "of the run"}


@pytest.mark.parametrize("answer", [True, False])
async def test_a_run_that_is_cancelled_in_a_condition_is_cancelled(*, answer: bool) -> None:
    ran: list[int] = []

    def cancel(first: int) -> bool:
        engine.cancel()
        return answer

    dag = DAGBuilder().node(lambda: 1, name="first")
    dag.node(ran.append, name="second", inputs=["first"], when=cancel)
    engine = ExecutionEngine(InMemoryBroker(), dag.build())
    with pytest.raises(RunCancelledError):
        await engine.execute()
    assert ran == []


async def test_a_fallback_is_a_fresh_value_in_each_run() -> None:
    def fail() -> list[int]:
        raise LookupError

    builder = DAGBuilder().node(fail, name="n", fallback=[])
    engine = ExecutionEngine(InMemoryBroker(), builder.build())
    for _ in range(2):
        results = await engine.execute()
        assert results == {"n": []}
        results["n"].append(1)


def test_an_order_to_stop_in_an_async_condition_stops_the_process_and_not_the_node() -> None:
    async def asked() -> bool:
        await asyncio.sleep(0)
        raise SystemExit(3)

    builder = DAGBuilder().node(one, when=asked, fallback=2)
    with pytest.raises(SystemExit):
        asyncio.run(engine_of(builder, on_error="collect").execute())
