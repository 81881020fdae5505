"""Nodes that are tried again, that may take so long and no longer, and that have a fallback."""

from __future__ import annotations

import asyncio
import copy
import functools
import threading
import time
import traceback
from contextlib import aclosing
from typing import Any, cast

import anyio
import pytest
from taskiq import (
    BrokerMessage,
    InMemoryBroker,
    SimpleRetryMiddleware,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)

from taskiq_flow import (
    BindingError,
    Cache,
    ConfigurationError,
    DAGBuilder,
    ExecutionEngine,
    NodeBegan,
    NodeCompleted,
    NodeFailed,
    NodeFailedError,
    NodeFailure,
    NodeFellBack,
    NodeRetried,
    NodeStarted,
    NodeTimeoutError,
    OutputShapeError,
    Retry,
    RunFailedError,
    RunTimeoutError,
    SerializationError,
)
from taskiq_flow.completion.in_memory_hooks import InMemoryHooks
from taskiq_flow.engine.node_run import NodeRun
from taskiq_flow.engine.run_spec import NO_SESSIONS, PLAIN_OPTIONS
from taskiq_flow.errors import describe
from taskiq_flow.testing import LocalBroker
from tests.recording import AtOnce, Recorder
from tests.virtual_clock import run_virtually, virtual_loop, virtually
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("plain_task_ids")


class Flaky:
    """A task that fails so many times, with errors of a kind, and notes when it was executed."""

    def __init__(self, failures: int, kind: type[Exception] = LookupError) -> None:
        self.failures = failures
        self.kind = kind
        self.at: list[float] = []

    async def __call__(self, start: int = 0) -> int:
        self.at.append(asyncio.get_running_loop().time())
        if len(self.at) <= self.failures:
            raise self.kind(len(self.at))
        return start + len(self.at)


def engine_of(
    task: Any, broker: Any = None, *, engine: Any = None, **node: Any
) -> tuple[ExecutionEngine, Recorder]:
    """An engine of one node, ``n``, and what its listener is told."""
    recorder = Recorder()
    dag = DAGBuilder().node(task, name="n", **node).build()
    broker = broker or InMemoryBroker()
    return ExecutionEngine(broker, dag, listeners=[recorder], **(engine or {})), recorder


# Retry


@virtually
async def test_a_node_is_tried_again_after_growing_delays_with_a_task_id_for_each_attempt() -> None:
    task = Flaky(3)
    engine, recorder = engine_of(task, retry=Retry(5, wait=1.0, factor=3.0, max_wait=5.0, jitter=0))

    assert await engine.execute(run_id="r") == {"n": 4}
    assert task.at == [0.0, 1.0, 4.0, 9.0]
    (started,) = recorder.of(NodeStarted)
    assert started.task_id == "r:n:1"
    retried = recorder.of(NodeRetried)
    assert [(event.task_id, event.attempt) for event in retried] == [
        *(("r:n:2", 2), ("r:n:3", 3), ("r:n:4", 4)),
    ]
    assert [event.delay for event in retried] == [1.0, 3.0, 5.0]
    assert [event.attempt for event in recorder.of(NodeBegan)] == [1, 2, 3, 4]
    assert [repr(event.error) for event in retried] == [f"LookupError({n})" for n in (1, 2, 3)]
    assert recorder.of(NodeCompleted)[0].task_id == "r:n:4"


@virtually
async def test_the_engine_says_what_its_nodes_do_not() -> None:
    retry = Retry(2, wait=0)

    of_engine, once = Flaky(1), Flaky(1)
    engine, _ = engine_of(of_engine, engine={"retry": retry})
    assert await engine.execute() == {"n": 2}
    engine, _ = engine_of(once, engine={"retry": retry}, retry=Retry(1))
    with pytest.raises(NodeFailedError):
        await engine.execute()
    assert len(once.at) == 1


@virtually
async def test_what_cannot_be_sent_is_not_sent_again() -> None:
    engine, recorder = engine_of(Flaky(0), retry=Retry())

    with pytest.raises(NodeFailedError) as caught:
        await engine.execute({"start": object()})
    assert isinstance(caught.value.__cause__, SerializationError)
    assert not recorder.of(NodeRetried)


@pytest.mark.parametrize("no_result_on_retry", [True, False])
@virtually
async def test_a_retry_middleware_leaves_a_node_with_a_retry_to_the_engine(
    *, no_result_on_retry: bool
) -> None:
    middleware = SimpleRetryMiddleware(
        default_retry_count=4, default_retry_label=True, no_result_on_retry=no_result_on_retry
    )
    broker = InMemoryBroker().with_middlewares(middleware)
    task = Flaky(99)
    engine, recorder = engine_of(task, broker, retry=Retry(2))

    with pytest.raises(NodeFailedError) as caught:
        await engine.execute()
    assert caught.value.attempts == 2
    assert len(task.at) == 2
    assert len(recorder.of(NodeRetried)) == 1


class Stubborn(TaskiqMiddleware):
    """Sends a task that has failed again, so many ``times``, whatever its labels say."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    async def on_error(self, message: TaskiqMessage, result: Any, exception: Any) -> None:
        if self.times:
            self.times -= 1
            broker: Any = self.broker
            again = InMemoryHooks.of(broker).pre_send(message)
            await broker.kick(broker.formatter.dumps(again))


@virtually
async def test_attempts_of_a_middleware_that_heeds_no_label_count_as_well() -> None:
    task = Flaky(99)
    broker = InMemoryBroker().with_middlewares(Stubborn(5))
    engine, _ = engine_of(task, broker, retry=Retry(4))

    with pytest.raises(NodeFailedError) as caught:
        await engine.execute()
    assert caught.value.attempts == len(task.at) == 6


@virtually
async def test_attempts_are_numbered_on_whoever_sends_them() -> None:
    broker = InMemoryBroker().with_middlewares(Stubborn(1))
    engine, recorder = engine_of(Flaky(99), broker, retry=Retry(4))

    with pytest.raises(NodeFailedError):
        await engine.execute()
    assert [event.attempt for event in recorder.of(NodeRetried)] == [2, 3, 4]
    assert [event.attempt for event in recorder.of(NodeBegan)] == [1, 2, 3, 4]
    assert recorder.of(NodeFailed)[0].attempt == 4


@virtually
async def test_what_a_later_attempt_is_given_is_what_the_first_one_was() -> None:
    seen: list[list[int]] = []

    async def make() -> list[int]:
        return [1]

    async def take(make: list[int]) -> None:
        seen.append(list(make))
        if len(seen) == 1:
            raise LookupError

    dag = DAGBuilder().node(make).node(take, retry=Retry(wait=1.0)).build()
    async for name, value in ExecutionEngine(InMemoryBroker(), dag).execute_async():
        if name == "make":
            value.append(2)
    assert seen == [[1], [1]]


@pytest.mark.parametrize("end", ["break", "cancel"])
@virtually
async def test_a_run_that_ends_while_a_node_waits_leaves_nothing(end: str) -> None:
    task = Flaky(9)
    engine, _ = engine_of(task, retry=Retry(wait=1000.0, max_wait=1000.0))
    running = asyncio.ensure_future(engine.execute())
    while not task.at:
        await asyncio.sleep(0)
    await asyncio.sleep(1)
    if end == "cancel":
        engine.cancel()
    else:
        running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not virtual_loop().pending_timers
    assert len(task.at) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        *({"attempts": 0}, {"attempts": True}, {"attempts": 1.5}, {"wait": -1.0}),
        *({"factor": 0.5}, {"max_wait": float("nan")}, {"jitter": 1.5}, {"on": (1,)}),
    ],
)
def test_a_retry_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        Retry(**wrong)


@pytest.mark.parametrize("failures", [1, 2, 5, 60, 5000])
def test_a_delay_is_bounded_and_only_ever_shortened_by_chance(failures: int) -> None:
    retry = Retry(10_000, wait=0.5, factor=2.0, max_wait=60.0, jitter=0.25)
    longest = min(60.0, 0.5 * 2.0 ** min(failures - 1, 100))
    assert retry.delay(failures, 0.0) == longest
    assert retry.delay(failures, 1.0) == longest * 0.75


@pytest.mark.parametrize("wait", [0.0, 300.0])
@pytest.mark.parametrize("failures", [1, 2, 5000])
def test_a_wait_that_is_asked_for_is_never_cut(wait: float, failures: int) -> None:
    assert Retry(10_000, wait=wait, jitter=0).delay(failures, 0.0) == wait


# Timeouts


async def sleeping(seconds: float = 10.0) -> float:
    await asyncio.sleep(seconds)
    return seconds


@virtually
async def test_an_attempt_that_takes_too_long_is_cancelled_and_named() -> None:
    engine, recorder = engine_of(sleeping, timeout=2.0)

    with pytest.raises(NodeFailedError) as caught:
        await engine.execute()
    cause = caught.value.__cause__
    assert isinstance(cause, NodeTimeoutError)
    assert isinstance(cause, TimeoutError)
    assert (cause.task_name, cause.seconds, cause.waited) == ("n", 2.0, False)
    assert virtual_loop().time() == 2.0
    assert isinstance(recorder.of(NodeFailed)[0].error, NodeTimeoutError)


def test_a_sync_task_that_outlives_its_timeout_is_one_error_and_no_late_result() -> None:
    released = threading.Event()
    ended = threading.Event()

    def task() -> str:
        released.wait()
        ended.set()
        return "late"

    async def main() -> None:
        engine, recorder = engine_of(task, timeout=0.05, engine={"on_error": "collect"})
        pairs = [pair async for pair in engine.execute_async()]
        released.set()
        await until(ended.is_set, "the thread has ended")
        ((_, failure),) = pairs
        assert isinstance(failure.error, NodeTimeoutError)
        assert len(recorder.of(NodeFailed, NodeCompleted)) == 1

    asyncio.run(main())


@virtually
async def test_a_task_that_will_not_be_cancelled_is_given_up() -> None:
    async def stubborn() -> str:
        with anyio.CancelScope(shield=True):
            await asyncio.sleep(20)
        return "late"

    engine, recorder = engine_of(stubborn, timeout=2.0, fallback="instead")
    async with asyncio.timeout(10):
        pair = await anext(engine.execute_async())
    assert pair == ("n", "instead")
    await asyncio.sleep(30)
    assert len(recorder.of(NodeCompleted)) == 1


@virtually
async def test_a_queue_timeout_is_refused_where_nobody_can_tell_what_waits() -> None:
    broker = LocalBroker()  # which nobody serves
    ran: list[str] = []

    @broker.task(task_name="t")
    async def t() -> None:
        ran.append("t")

    engine, _ = engine_of(t, broker, queue_timeout=3.0)
    with (
        pytest.warns(match="has no FlowMiddleware"),
        pytest.raises(ConfigurationError, match="does not tell when a task begins"),
    ):
        await engine.execute()


@virtually
async def test_a_run_has_a_limit_too_and_keeps_what_it_had_reached() -> None:
    dag = DAGBuilder().node(lambda: 1, name="fast").node(sleeping).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, run_timeout=4.0, on_error="collect")
    names: list[str] = []
    with pytest.raises(RunTimeoutError, match="did not end within 4 s") as caught:
        async for name, _ in engine.execute_async():
            names.append(name)
    assert names == ["fast"]
    assert caught.value.results == {"fast": 1}
    assert not virtual_loop().pending_timers
    assert virtual_loop().time() == 4.0


@virtually
async def test_a_run_that_takes_too_long_says_which_nodes_were_in_progress() -> None:
    builder = DAGBuilder().node(lambda: 1, name="fast").node(sleeping)
    for number in range(7):
        builder.node(sleeping, name=f"slow {number}")
    dag = builder.node(lambda sleeping: sleeping, name="later", inputs=["sleeping"]).build()
    with pytest.raises(RunTimeoutError) as caught:
        await ExecutionEngine(InMemoryBroker(), dag, run_timeout=4.0).execute(run_id="r")
    assert str(caught.value) == (
        "run 'r' did not end within 4 s, its run_timeout: in progress were 'sleeping', 'slow 0', "
        "'slow 1', 'slow 2', 'slow 3' and 3 more; nodes that had not started: 1; results of what "
        "had completed are in .results: 1; give it more time, or give nodes a timeout= or a "
        "queue_timeout=, which say which of them is slow and which no worker takes"
    )


@pytest.mark.parametrize("name", ["timeout", "queue_timeout", "run_timeout"])
@pytest.mark.parametrize("seconds", [0, -1.0, float("inf"), float("nan")])
def test_a_limit_that_cannot_be_is_refused(name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is"):
        engine_of(sleeping, engine={name: seconds})
    if name != "run_timeout":
        with pytest.raises(ValueError, match=f"{name} of node 'n' is"):
            engine_of(sleeping, engine=None, **{name: seconds})
    with pytest.raises(ValueError, match="ttl is"):
        Cache(ttl=seconds)


# Fallback


@pytest.mark.parametrize("value", [None, 0, "x", [1]])
@virtually
async def test_a_value_stands_in_for_a_node_that_has_failed_for_good(value: Any) -> None:
    engine, recorder = engine_of(Flaky(9), retry=Retry(2, wait=0), fallback=value)

    assert await engine.execute() == {"n": value}
    (fell,) = recorder.of(NodeFellBack)
    assert (fell.task_name, repr(fell.error), fell.attempts) == ("n", "LookupError(2)", 2)
    (completed,) = recorder.of(NodeCompleted)
    assert (completed.result, completed.source) == (value, "fallback")
    assert not recorder.of(NodeFailed)


@virtually
async def test_a_task_stands_in_with_the_inputs_of_the_node() -> None:
    async def instead(start: int, missing: int = 7) -> tuple[int, int]:
        return start, missing

    engine, recorder = engine_of(Flaky(9), inputs=["start"], fallback=instead, outputs=["a", "b"])

    results = await engine.execute({"start": 5}, run_id="r")
    assert results == {"a": 5, "b": 7}
    assert recorder.of(NodeCompleted)[0].task_id == "r:n:fallback-2"
    assert [type(event) for event in recorder.events[1:-1]] == [
        *(NodeStarted, NodeBegan, NodeFellBack, NodeBegan, NodeCompleted)
    ]
    assert [event.attempt for event in recorder.events[1:-1]] == [1, 1, 2, 2, 2]


@pytest.mark.parametrize("fallback", [Flaky(9, OSError), (1,)])
@virtually
async def test_a_fallback_that_fails_too_is_the_nodes_failure(fallback: Any) -> None:
    engine, recorder = engine_of(Flaky(9), outputs=["a", "b"], fallback=fallback, retry=Retry(2))

    with pytest.raises(NodeFailedError) as caught:
        await engine.execute()
    error = caught.value.__cause__
    assert isinstance(error, (OSError, OutputShapeError))
    assert repr(error.__context__) == "LookupError(2)"
    (failed,) = recorder.of(NodeFailed)
    assert caught.value.attempts == failed.attempts == failed.attempt == 3
    assert str(caught.value) == (
        f"node 'n' failed in attempt 3: its fallback failed with {describe(error)}, after "
        "LookupError: 2"
    )
    shown = failed.to_dict()["error"]
    assert shown["message"] == (f"{error} (raised by the fallback, after LookupError: 2)")
    assert shown["traceback"].index("LookupError: 2") < shown["traceback"].rindex(describe(error))


class StatusError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")


def asks_for_url(status: int, error: Any) -> Any:
    return error.url


def hides_its_context(status: int, error: Any) -> Any:
    try:
        return error.url
    except AttributeError:
        raise KeyError("no url") from None


def says_from_what(status: int, error: Any) -> Any:
    raise KeyError("no url") from error


@pytest.mark.parametrize("fallback", [asks_for_url, hides_its_context, says_from_what])
@pytest.mark.parametrize("is_mapped", [False, True])
def test_the_error_before_that_of_a_fallback_is_told_everywhere(
    fallback: Any, *, is_mapped: bool
) -> None:
    def fetch(status: int) -> None:
        raise StatusError(status)

    mapping: Any = {"inputs": {"status": "statuses"}, "map_over": "statuses"}
    inputs: Any = {"statuses": [404]} if is_mapped else {"status": 404}
    dag = (
        DAGBuilder()
        .node(fetch, fallback=fallback, **(mapping if is_mapped else {}))
        .node(lambda failures: failures, "told", inputs=["fetch.failures"], join="ended")
        .build()
    )
    error = "AttributeError" if fallback is asks_for_url else "KeyError"
    origin = "StatusError: status 404"
    with pytest.raises(NodeFailedError, match=f"its fallback failed with {error}.*after {origin}"):
        ExecutionEngine(InMemoryBroker(), dag).execute_sync(inputs)
    with pytest.raises(
        RunFailedError, match=rf"{error}: .* \(raised by the fallback, after {origin}"
    ):
        ExecutionEngine(InMemoryBroker(), dag, on_error="continue").execute_sync(inputs)

    results = ExecutionEngine(InMemoryBroker(), dag, on_error="collect").execute_sync(inputs)
    (told,) = results["told"]
    assert (told.error_type, told.index) == (error, 0 if is_mapped else None)
    assert told.message.endswith(f"(raised by the fallback, after {origin})")
    failure = results["fetch"][0] if is_mapped else results["fetch"]
    assert (str(failure.after), failure.attempts) == ("status 404", 2)
    lines = "".join(traceback.format_exception(failure.error))
    assert lines.count(f"{origin}\n") == 1 < lines.index(error)


def test_both_errors_are_shown_also_if_they_were_raised_while_a_third_was_handled() -> None:
    async def fails() -> None:
        raise ValueError("the first")

    async def instead(error: Exception) -> None:
        raise LookupError("the second")

    async def outer() -> Any:
        try:
            int("x")
        except ValueError:
            return await ExecutionEngine(InMemoryBroker(), dag).execute()

    dag = DAGBuilder().node(fails, fallback=instead).build()
    with pytest.raises(NodeFailedError) as caught:
        asyncio.run(outer())
    assert repr(caught.value.__cause__) == "LookupError('the second')"
    lines = "".join(traceback.format_exception(caught.value.__cause__))
    assert lines.index("the first") < lines.index("the second")


def test_what_a_task_raises_was_not_raised_while_the_loop_was_looked_for() -> None:
    async def fails() -> None:
        raise ValueError

    with pytest.raises(NodeFailedError) as caught:
        engine_of(fails)[0].execute_sync()
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.__context__ is None


@pytest.mark.parametrize("is_copy", [False, True])
def test_a_fallback_that_raises_the_error_again_adds_nothing_to_it(*, is_copy: bool) -> None:
    def passes_on(error: Exception) -> None:
        raise copy.copy(error) if is_copy else error

    engine, _ = engine_of(Flaky(9), fallback=passes_on)
    with pytest.raises(
        NodeFailedError, match=r"in attempt 2 with LookupError: 1; it was"
    ) as caught:
        engine.execute_sync()
    assert "raised" not in str(caught.value)
    lines = "".join(traceback.format_exception(caught.value.__cause__))
    assert lines.count("LookupError: 1\n") == 1


def test_an_error_that_a_module_keeps_is_no_longer_for_each_node_that_it_fails() -> None:
    kept = LookupError("kept")

    def fails(number: int) -> None:
        raise ValueError(number)

    def gives_up(number: int) -> None:
        raise kept

    dag = DAGBuilder().node(fails, map_over="number", fallback=gives_up).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, on_error="collect")
    results = engine.execute_sync({"number": range(300)})
    assert len({str(failure.after) for failure in results["fails"]}) == 300
    error, length = cast("BaseException | None", kept), 0
    while error is not None:
        error, length = error.__context__, length + 1
    assert length <= 101


def test_a_fallback_may_need_nothing_that_the_node_does_not_take() -> None:
    with pytest.raises(BindingError, match=r"the fallback of node 'n' needs 'other'"):
        engine_of(Flaky(0), fallback=lambda other: other)


@virtually
async def test_a_fallback_that_the_broker_does_not_know_is_refused_before_anything_is_sent() -> (
    None
):
    broker = LocalBroker()

    @broker.task(task_name="t")
    async def t() -> None: ...

    engine, _ = engine_of(t, broker, fallback=lambda: 1)
    with (
        pytest.warns(match="has no FlowMiddleware"),
        pytest.raises(ConfigurationError, match="is a plain callable"),
    ):
        await engine.execute()


# Sends that take their time


class Lingering(InMemoryBroker):
    """Hands tasks over at once, and raises or returns for the first of them much later."""

    raises = True

    async def kick(self, message: BrokerMessage) -> None:
        await super().kick(message)
        if message.task_id.endswith(":1"):
            await asyncio.sleep(2.5)
            if self.raises:
                raise ConnectionError("no confirm")


class SlowToSendAgain(TaskiqMiddleware):
    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        if message.task_id.endswith(":2"):
            await asyncio.sleep(10)
        return message


@pytest.mark.parametrize("policy", [{}, {"timeout": 60.0}, {"retry": Retry(2)}])
@virtually
async def test_a_send_that_raises_after_its_tasks_end_changes_nothing(
    policy: dict[str, Any],
) -> None:
    dag = DAGBuilder().node(Flaky(0), name="n", **policy)
    dag.node(sleeping, inputs={"seconds": "n"})
    engine = ExecutionEngine(Lingering(), dag.build(), on_error="collect")
    assert (await engine.execute())["n"] == 1


@virtually
async def test_a_send_that_raises_after_its_attempt_was_given_up_changes_nothing() -> None:
    async def unstoppable() -> None:
        with anyio.CancelScope(shield=True):
            await asyncio.sleep(60)

    dag = DAGBuilder().node(unstoppable, name="n", timeout=1.2, retry=Retry(2, wait=5.0))
    engine = ExecutionEngine(Lingering(), dag.build(), on_error="collect")
    async with aclosing(engine.execute_async()) as pairs:
        _, failure = await anext(pairs)
    assert isinstance(failure.error, NodeTimeoutError)
    assert failure.attempts == 2


@pytest.mark.parametrize("policy", [{}, {"retry": Retry(3, wait=0)}])
@virtually
async def test_a_task_whose_send_raises_while_it_runs_is_cancelled(policy: dict[str, Any]) -> None:
    class RaisesLate(InMemoryBroker):
        async def kick(self, message: BrokerMessage) -> None:
            await super().kick(message)
            await asyncio.sleep(1)
            raise ConnectionError("no confirm")

    running = AtOnce()

    async def slow() -> None:
        with running:
            await asyncio.sleep(100)

    dag = DAGBuilder().node(slow, name="n", **policy).build()
    results = await ExecutionEngine(RaisesLate(), dag, on_error="collect").execute()
    assert isinstance(results["n"].error, ConnectionError)
    assert (running.most, running.now) == (1, 0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtually
async def test_a_late_error_of_a_send_is_not_that_of_the_next_attempt() -> None:
    task = Flaky(1)

    async def slow_at_last() -> int:
        given = await task()
        await asyncio.sleep(10)
        return given

    engine, _ = engine_of(slow_at_last, Lingering(), retry=Retry(2, wait=0))
    assert await engine.execute() == {"n": 2}
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtually
async def test_a_send_that_returns_late_does_not_set_the_next_attempts_clock_going() -> None:
    broker = Lingering().with_middlewares(SlowToSendAgain())
    broker.raises = False
    engine, _ = engine_of(Flaky(1), broker, retry=Retry(2, wait=0), queue_timeout=5.0)
    assert await engine.execute() == {"n": 2}


@virtually
async def test_an_attempt_that_is_given_up_while_it_is_being_sent_does_not_run_afterwards() -> None:
    class SlowAtFirst(TaskiqMiddleware):
        async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            if message.task_id.endswith(":1"):
                await asyncio.sleep(1.5)
            return message

    broker = InMemoryBroker().with_middlewares(SlowAtFirst())
    engine, _ = engine_of(sleeping, broker, queue_timeout=0.5, retry=Retry(2, wait=0))
    assert await engine.execute() == {"n": 10.0}
    assert asyncio.all_tasks() == {asyncio.current_task()}


# Conditions beside retries and fallbacks


@pytest.mark.parametrize("fallback", [-1, lambda x: -x])
def test_a_condition_that_raises_is_asked_once_and_the_fallback_stands_in(fallback: Any) -> None:
    asked: list[int] = []

    def when(x: int) -> bool:
        asked.append(x)
        raise ValueError(x)

    engine, _ = engine_of(Flaky(0), inputs=["x"], when=when, retry=Retry(3), fallback=fallback)
    assert run_virtually(engine.execute({"x": 1})) == {"n": -1}
    assert asked == [1]


# When an attempt begins


def test_a_sync_task_begins_when_it_has_a_thread() -> None:
    """Six tasks on four threads: those that wait for a thread are not running."""
    first_four = threading.Barrier(4)
    running: list[int] = []

    def work(number: int) -> int:
        running.append(number)
        if len(running) <= 4:
            first_four.wait(20)
        time.sleep(0.55)
        return number

    async def main(**options: Any) -> dict[str, Any]:
        running.clear()
        builder = DAGBuilder()
        for number in range(6):
            builder.node(
                functools.partial(work, number), name=f"n{number}", output=f"n{number}", **options
            )
        engine = ExecutionEngine(InMemoryBroker(), builder.build(), on_error="collect")
        return await engine.execute()

    assert asyncio.run(main(timeout=1.0)) == {f"n{number}": number for number in range(6)}
    results = asyncio.run(main(queue_timeout=0.5))
    late = [result.error for result in results.values() if isinstance(result, NodeFailure)]
    assert len(late) == 2
    assert all(isinstance(error, NodeTimeoutError) and error.waited for error in late)


@virtually
async def test_a_limit_counts_from_the_second_execution_when_a_middleware_sends_a_task_again() -> (
    None
):
    executed: list[float] = []

    async def work() -> str:
        executed.append(asyncio.get_running_loop().time())
        if len(executed) == 1:
            await asyncio.sleep(8)
            raise LookupError
        await asyncio.sleep(9)
        return "done"

    broker = InMemoryBroker().with_middlewares(SimpleRetryMiddleware(default_retry_count=3))
    task = broker.register_task(work, task_name="work", retry_on_error=True)
    engine, _ = engine_of(task, broker, timeout=10.0)
    assert (await engine.execute(), asyncio.get_running_loop().time()) == ({"n": "done"}, 17.0)


@virtually
async def test_a_second_execution_that_takes_too_long_is_timed_out_when_its_own_time_is_over() -> (
    None
):
    executed: list[float] = []

    async def work() -> None:
        executed.append(asyncio.get_running_loop().time())
        if len(executed) == 1:
            await asyncio.sleep(8)
            raise LookupError
        await asyncio.Event().wait()

    broker = InMemoryBroker().with_middlewares(SimpleRetryMiddleware(default_retry_count=2))
    task = broker.register_task(work, task_name="work", retry_on_error=True)
    engine, _ = engine_of(task, broker, timeout=10.0)
    with pytest.raises(NodeFailedError) as caught:
        await engine.execute()
    assert isinstance(caught.value.__cause__, NodeTimeoutError)
    assert 18.0 <= asyncio.get_running_loop().time() <= 19.0


def test_what_is_told_of_an_earlier_attempt_does_not_reach_the_run() -> None:
    told: list[str] = []

    class Run:
        def began(self, _: NodeRun, worker: str) -> None:
            told.append(worker)

        def items(self, _: NodeRun, first: int, items: Any, digest: bytes) -> None:
            told.extend(items)

        def settle(self, _: NodeRun, result: TaskiqResult[Any]) -> None:
            told.append(result.return_value)

    node = DAGBuilder().node(abs, inputs=["number"]).build().get_node("abs")
    node_run = NodeRun(node, cast("Any", Run()), PLAIN_OPTIONS, {}, NO_SESSIONS)
    for task_id in [node_run.begin_attempt("r", ""), node_run.begin_attempt("r", "")]:
        node_run.began(task_id, f"worker of {task_id}")
        node_run.items(task_id, 0, [f"item of {task_id}"], b"")
        ended = TaskiqResult(is_err=False, return_value=f"end of {task_id}", execution_time=0.0)
        node_run.settle(task_id, ended)
        node_run.began(task_id, "another, too late")
    assert told == ["worker of r:abs:2", "item of r:abs:2", "end of r:abs:2"]
