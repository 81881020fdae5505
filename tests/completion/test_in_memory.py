"""Completions on the embedded broker: pushed, once, whatever taskiq's own parts do in between."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import pickle
import threading
import weakref
from contextlib import aclosing
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, model_serializer
from taskiq import (
    Context,
    InMemoryBroker,
    NoResultError,
    SimpleRetryMiddleware,
    SmartRetryMiddleware,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)

from taskiq_flow import (
    DAG,
    DAGBuilder,
    ExecutionEngine,
    MapReduce,
    NodeFailedError,
    NodeRetried,
    ResultHandle,
    Retry,
    RunCancelledError,
    RunTimeoutError,
    TaskLostError,
)
from taskiq_flow.completion import in_memory, threads
from taskiq_flow.completion.in_memory_hooks import InMemoryHooks
from taskiq_flow.values.call import Call
from tests.recording import Recorder
from tests.virtual_clock import start_tasks_later


def one_node(task: Any, **kwargs: Any) -> DAG:
    return DAGBuilder().node(task, name="node", **kwargs).build()


@pytest.fixture
def quick_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_memory, "SWEEP_INTERVAL", 0.01)


async def test_a_graph_of_500_with_a_sleeping_reader_loses_nothing(broker: InMemoryBroker) -> None:
    async def number(value: int) -> int:
        return value

    builder = DAGBuilder()
    for index in range(500):
        builder.node(number, name=f"n{index}", inputs={"value": f"v{index}"})
    inputs = {f"v{index}": index for index in range(500)}
    seen = {}
    async for name, value in ExecutionEngine(broker, builder.build()).execute_async(inputs):
        seen[name] = value
        await asyncio.sleep(0.0005)
    assert seen == {f"n{index}": index for index in range(500)}


async def test_a_map_of_500_with_a_sleeping_reader_loses_nothing(broker: InMemoryBroker) -> None:
    async def double(item: int) -> int:
        return 2 * item

    seen = {}
    async for index, value in await MapReduce.map(broker, double, range(500)):
        seen[index] = value
        await asyncio.sleep(0.0005)
    assert seen == {index: 2 * index for index in range(500)}


async def test_a_result_that_the_store_refuses_still_arrives(broker: InMemoryBroker) -> None:
    async def refuse(task_id: str, result: Any) -> None:
        raise TypeError("cannot be stored")

    broker.result_backend.set_result = refuse  # type: ignore[method-assign]
    value = object()
    results = await ExecutionEngine(broker, one_node(lambda: value)).execute()
    assert results["node"] is value


async def test_a_task_that_raises_no_result_error_has_failed(broker: InMemoryBroker) -> None:
    async def shy() -> None:
        raise NoResultError

    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(broker, one_node(shy)).execute()
    assert isinstance(caught.value.__cause__, NoResultError)


class Flaky:
    """Fails twice, then gives a value."""

    def __init__(self, failures: int = 2) -> None:
        self.calls = 0
        self.failures = failures

    async def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise ValueError(self.calls)
        return "done"


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("no_result_on_retry", [True, False])
class TestRetryMiddleware:
    """One final outcome, never an attempt's; and no attempts but the middleware's."""

    @pytest.fixture
    def retrying(self, no_result_on_retry: bool, in_place: bool) -> InMemoryBroker:
        broker = InMemoryBroker(await_inplace=in_place)
        broker.add_middlewares(
            SimpleRetryMiddleware(
                default_retry_count=3,
                default_retry_label=True,
                no_result_on_retry=no_result_on_retry,
            )
        )
        return broker

    async def test_a_success_after_failures_is_the_outcome(self, retrying: InMemoryBroker) -> None:
        task, recorder = Flaky(), Recorder()
        engine = ExecutionEngine(retrying, one_node(task), listeners=[recorder])
        pairs = [pair async for pair in engine.execute_async()]
        assert pairs == [("node", "done")]
        assert task.calls == 3
        assert [event.attempt for event in recorder.of(NodeRetried)] == [2, 3]

    async def test_the_last_failure_is_the_outcome(self, retrying: InMemoryBroker) -> None:
        task = Flaky(failures=10)
        with pytest.raises(NodeFailedError) as caught:
            await ExecutionEngine(retrying, one_node(task)).execute()
        assert repr(caught.value.__cause__) == "ValueError(3)"
        assert caught.value.attempts == task.calls == 3

    async def test_a_cancelled_task_is_not_sent_again(self, retrying: InMemoryBroker) -> None:
        started: list[int] = []

        async def wait() -> None:
            started.append(1)
            await asyncio.Event().wait()

        engine = ExecutionEngine(retrying, one_node(wait))
        run = asyncio.ensure_future(engine.execute())
        while not started:
            await asyncio.sleep(0)
        engine.cancel()
        with contextlib.suppress(Exception):
            await run
        for _ in range(5):
            await asyncio.sleep(0)
        assert started == [1]
        assert not InMemoryHooks.of(retrying).executions


async def test_a_retry_with_a_slow_hook_behind_it_is_not_taken_for_the_outcome(
    broker: InMemoryBroker,
) -> None:
    class SlowHooks(TaskiqMiddleware):
        async def post_send(self, message: TaskiqMessage) -> None:
            await asyncio.sleep(0.005)

    broker.add_middlewares(
        SimpleRetryMiddleware(default_retry_label=True, no_result_on_retry=False), SlowHooks()
    )
    assert await ExecutionEngine(broker, one_node(Flaky())).execute() == {"node": "done"}


async def test_a_retry_that_is_sent_later_is_waited_for(
    broker: InMemoryBroker, quick_sweep: None
) -> None:
    class Later(SmartRetryMiddleware):
        """Has the task sent again in a while, as a schedule does."""

        async def on_send(self, kicker: Any, message: TaskiqMessage, delay: float) -> None:
            async def send() -> None:
                await asyncio.sleep(delay)
                await kicker.kiq(*message.args, **message.kwargs)

            sends.append(asyncio.ensure_future(send()))

    sends: list[asyncio.Task[None]] = []
    broker.add_middlewares(Later(default_retry_label=True, default_delay=0.05))
    assert await ExecutionEngine(broker, one_node(Flaky())).execute() == {"node": "done"}
    assert len(sends) == 2


async def test_a_retry_that_cannot_be_sent_is_an_error(
    broker: InMemoryBroker, quick_sweep: None
) -> None:
    class OnceOnly(TaskiqMiddleware):
        sends = 0

        def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            self.sends += 1
            if self.sends > 1:
                raise ConnectionError("the line is dead")
            return message

    broker.add_middlewares(SimpleRetryMiddleware(default_retry_label=True), OnceOnly())
    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(broker, one_node(Flaky())).execute()
    assert repr(caught.value.__cause__) == "ConnectionError('the line is dead')"


async def test_a_send_that_is_cancelled_by_somebody_else_is_an_error() -> None:
    class Cancelling(InMemoryBroker):
        async def kick(self, message: Any) -> None:
            raise asyncio.CancelledError

    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(Cancelling(), one_node(lambda: 1)).execute()
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


async def test_a_task_in_place_that_cancels_its_own_asyncio_task_ends_nothing_else() -> None:
    async def slow() -> int:
        await asyncio.sleep(0.01)
        return 1

    async def rude() -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return 2

    dag = DAGBuilder().node(slow).node(rude).node(lambda slow: slow + 1, name="after").build()
    engine = ExecutionEngine(InMemoryBroker(await_inplace=True), dag, on_error="collect")
    assert (await engine.execute())["after"] == 2


async def test_a_task_that_requeues_itself_is_waited_for(broker: InMemoryBroker) -> None:
    calls: list[int] = []

    @broker.task
    async def patient(context: Context = TaskiqDepends()) -> str:  # noqa: B008 - taskiq's way
        calls.append(1)
        if len(calls) < 3:
            await context.requeue()
        return "done"

    recorder = Recorder()
    engine = ExecutionEngine(broker, one_node(patient), listeners=[recorder])
    assert await engine.execute() == {"node": "done"}
    assert len(recorder.of(NodeRetried)) == 2


@pytest.mark.parametrize("hook", ["pre_execute", "post_execute", "on_error"])
async def test_a_middleware_that_raises_fails_the_node_instead_of_hanging(
    broker: InMemoryBroker, quick_sweep: None, hook: str
) -> None:
    def breaks(self: Any, *_: Any) -> Any:
        raise RuntimeError("middleware is broken")

    broker.add_middlewares(type("Broken", (TaskiqMiddleware,), {hook: breaks})())

    def task() -> None:
        if hook == "on_error":
            raise ValueError

    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(broker, one_node(task)).execute()
    assert repr(caught.value.__cause__) == "RuntimeError('middleware is broken')"


async def test_a_middleware_that_raises_after_the_result_is_saved_changes_nothing(
    broker: InMemoryBroker,
) -> None:
    class Broken(TaskiqMiddleware):
        def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
            raise RuntimeError

    broker.add_middlewares(Broken())
    assert await ExecutionEngine(broker, one_node(lambda: 1)).execute() == {"node": 1}


async def test_what_another_middleware_makes_of_the_result_is_what_arrives(
    broker: InMemoryBroker,
) -> None:
    class Doubling(TaskiqMiddleware):
        def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
            result.return_value *= 2

    broker.add_middlewares(Doubling())
    assert await ExecutionEngine(broker, one_node(lambda: 21)).execute() == {"node": 42}


async def test_a_worker_task_that_is_cancelled_is_reported_as_cancelled(
    broker: InMemoryBroker,
) -> None:
    start_tasks_later()

    async def wait() -> None:
        (worker,) = broker._running_tasks
        worker.cancel()
        await asyncio.Event().wait()

    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(broker, one_node(wait)).execute()
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert caught.value.results == {}


async def test_a_worker_task_that_is_cancelled_before_it_begins_is_found(
    broker: InMemoryBroker, quick_sweep: None
) -> None:
    start_tasks_later()
    kick = broker.kick

    async def kick_and_cancel(message: Any) -> None:
        await kick(message)
        for worker in broker._running_tasks:
            worker.cancel()

    broker.kick = kick_and_cancel  # type: ignore[method-assign]
    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(broker, one_node(lambda: 1)).execute()
    assert isinstance(caught.value.__cause__, TaskLostError)
    assert "never began" in str(caught.value)


async def test_a_message_that_cannot_be_read_back_is_found(
    broker: InMemoryBroker, quick_sweep: None
) -> None:
    class OneWay(type(broker.serializer)):  # type: ignore[misc]
        def loadb(self, value: bytes) -> Any:
            raise ValueError("garbled")

    broker.with_serializer(OneWay())
    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(broker, one_node(lambda: 1)).execute()
    assert isinstance(caught.value.__cause__, TaskLostError)


async def test_a_task_that_the_broker_no_longer_knows_is_an_error(broker: InMemoryBroker) -> None:
    @broker.task(task_name="gone")
    async def second(first: int) -> None: ...

    @broker.task
    async def first() -> int:
        del broker.local_task_registry["gone"]
        return 1

    dag = DAGBuilder().node(first).node(second).build()
    with pytest.raises(NodeFailedError, match="unknown task"):
        await ExecutionEngine(broker, dag).execute()


async def test_the_hooks_are_put_in_place_once_and_first(broker: InMemoryBroker) -> None:
    other = SimpleRetryMiddleware()
    broker.add_middlewares(other)
    engine = ExecutionEngine(broker, one_node(lambda: 1))
    await asyncio.gather(engine.execute(), engine.execute())
    assert broker.middlewares == [InMemoryHooks.of(broker), other]


async def test_a_broker_that_runs_tasks_in_place_keeps_the_contract() -> None:
    broker = InMemoryBroker(await_inplace=True)
    release = asyncio.Event()

    async def slow() -> str:
        await release.wait()
        return "slow"

    async def fast() -> str:
        return "fast"

    async def after(fast: str) -> str:
        release.set()
        return "after"

    dag = DAGBuilder().node(slow).node(fast).node(after).build()
    pairs = [pair async for pair in ExecutionEngine(broker, dag).execute_async()]
    assert pairs == [("fast", "fast"), ("after", "after"), ("slow", "slow")]


async def test_a_task_that_is_sent_in_place_leaves_its_sender_what_that_runs_with(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = InMemoryBroker(await_inplace=True)

    @broker.task
    async def audit() -> None: ...

    class Audits(TaskiqMiddleware):
        async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            if message.task_name != audit.task_name:
                await audit.kiq()
            return message

    async def fails(x: int) -> None:
        await audit.kiq()
        await ExecutionEngine(broker, one_node(lambda: 1)).execute()
        raise ValueError(x)

    broker.add_middlewares(Audits())
    dag = DAGBuilder().node(fails, inputs=["x"]).build()
    with (
        caplog.at_level(logging.WARNING, "taskiq"),
        pytest.raises(NodeFailedError, match="ValueError: 7"),
    ):
        await ExecutionEngine(broker, dag).execute({"x": 7})
    (line,) = caplog.records
    assert "ended with ValueError: 7 (" in line.getMessage()


async def test_a_chain_of_thousands_in_place_needs_no_recursion() -> None:
    builder = DAGBuilder().node(lambda: 0, name="n0")
    for index in range(1, 3000):
        builder.node(_next, name=f"n{index}", inputs=[f"n{index - 1}"])
    results = await ExecutionEngine(InMemoryBroker(await_inplace=True), builder.build()).execute()
    assert results["n2999"] == 2999


async def _next(number: int) -> int:
    return number + 1


async def test_a_sync_task_that_is_cancelled_gives_no_late_second_result(
    broker: InMemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    release, begun = threading.Event(), threading.Event()

    def stuck() -> str:
        begun.set()
        release.wait(10)
        return "late"

    engine = ExecutionEngine(broker, one_node(stuck))
    run = asyncio.ensure_future(engine.execute())
    await asyncio.to_thread(begun.wait)
    engine.cancel()
    outcome = (await asyncio.gather(run, return_exceptions=True))[0]
    assert type(outcome).__name__ == "RunCancelledError"
    with caplog.at_level(logging.WARNING):
        release.set()
        await asyncio.to_thread(lambda: None)
    assert not caplog.records
    assert await engine_still_works(broker)


async def engine_still_works(broker: InMemoryBroker) -> bool:
    return await ExecutionEngine(broker, one_node(lambda: 1)).execute() == {"node": 1}


async def test_a_task_that_outlives_its_label_timeout_fails_once(broker: InMemoryBroker) -> None:
    release = asyncio.Event()

    @broker.task(timeout=0.01)
    async def slow() -> str:
        await release.wait()
        return "late"

    @broker.task
    async def quick() -> int:
        return 1

    dag = DAGBuilder().node(slow).node(quick).build()
    engine = ExecutionEngine(broker, dag, on_error="collect")
    pairs = [pair async for pair in engine.execute_async()]
    assert [name for name, _ in pairs] == ["quick", "slow"]
    assert isinstance(pairs[1][1].error, TimeoutError)


async def test_a_sync_task_that_outlives_its_timeout_gives_no_second_result(
    broker: InMemoryBroker,
) -> None:
    release = threading.Event()

    @broker.task(timeout=0.01)
    def slow() -> str:
        release.wait(10)
        ended.append(1)
        return "late"

    ended: list[int] = []
    engine = ExecutionEngine(broker, DAGBuilder().node(slow).build(), on_error="collect")
    async for _, result in engine.execute_async():
        assert isinstance(result.error, TimeoutError)
        release.set()
        while not ended:
            await asyncio.sleep(0.001)


# What is logged


def lines_of(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, bool]]:
    """The lines of taskiq's that are about an error: level, text, whether with a traceback."""
    return [
        (record.levelname, record.getMessage(), bool(record.exc_info))
        for record in caplog.records
        if record.name.startswith("taskiq.receiver") and record.levelno >= logging.WARNING
    ]


@pytest.mark.usefixtures("plain_task_ids")
async def test_a_task_that_fails_is_one_line_and_no_traceback(
    broker: InMemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "taskiq")

    async def fail() -> None:
        raise LookupError("not here")

    place = f"{__file__}:{fail.__code__.co_firstlineno + 1}"
    engine = ExecutionEngine(broker, one_node(fail, retry=Retry(attempts=2, wait=0)))
    with pytest.raises(NodeFailedError):
        await engine.execute(run_id="run")
    assert lines_of(caplog) == [
        ("WARNING", f"task 'run:node:{attempt}' ended with LookupError: not here ({place})", False)
        for attempt in (1, 2)
    ]


@pytest.mark.usefixtures("plain_task_ids")
async def test_a_task_that_its_timeout_has_ended_is_one_line_that_names_it(
    broker: InMemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "taskiq")
    with pytest.raises(NodeFailedError):
        await ExecutionEngine(broker, one_node(asyncio.Event().wait, timeout=0.1)).execute(
            run_id="run"
        )
    text = "task 'run:node:1' did not end within 0.1 s, its timeout"
    assert lines_of(caplog) == [("WARNING", text, False)]


@pytest.mark.parametrize("how", ["left", "cancelled", "timed out"])
async def test_a_task_that_was_cancelled_on_purpose_is_no_error(
    broker: InMemoryBroker, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    caplog.set_level(logging.WARNING, "taskiq")

    async def wait() -> None:
        if how == "cancelled":
            engine.cancel()
        await asyncio.Event().wait()

    dag = DAGBuilder().node(wait).node(lambda: 1, name="quick").build()
    limit = 0.05 if how == "timed out" else None
    engine = ExecutionEngine(broker, dag, run_timeout=limit)
    with contextlib.suppress(RunCancelledError, RunTimeoutError):
        async with aclosing(engine.execute_async()) as pairs:
            async for _ in pairs:
                if how == "left":
                    break
    assert lines_of(caplog) == []


async def test_a_task_that_no_engine_has_sent_is_logged_as_ever(
    broker: InMemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "taskiq")

    @broker.task
    async def fail() -> None:
        raise LookupError("not here")

    await ExecutionEngine(broker, one_node(lambda: 1)).execute()
    await (await fail.kiq()).wait_result()
    assert lines_of(caplog) == [("ERROR", "Exception found while executing function.", True)]


# Threads


async def test_a_pool_whose_tasks_wait_for_each_other_is_said_to_stand_still(
    quick_sweep: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threads, "STALLED_AFTER", 0.1)
    broker, release = InMemoryBroker(sync_tasks_pool_size=2), threading.Event()
    warned = asyncio.Event()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "sync tasks wait for a thread" in record.getMessage():
                warned.set()

    handler = Heard()
    logging.getLogger("taskiq_flow").addHandler(handler)
    builder = DAGBuilder()
    for number in range(3):
        builder.node(lambda: release.wait(20), name=f"n{number}")
    running = asyncio.ensure_future(ExecutionEngine(broker, builder.build()).execute())
    await asyncio.wait_for(warned.wait(), 10)
    release.set()
    assert await running == {"n0": True, "n1": True, "n2": True}
    logging.getLogger("taskiq_flow").removeHandler(handler)
    assert caplog.text.count("sync tasks wait for a thread") == 1


class Opaque:
    """A value that has no JSON form."""


@pytest.mark.parametrize("pass_by", ["value", 1000])
async def test_a_value_without_a_json_form_reaches_the_reader(
    broker: InMemoryBroker, pass_by: Any
) -> None:
    engine = ExecutionEngine(broker, one_node(Opaque), pass_by=pass_by)
    results = await asyncio.wait_for(engine.execute(), 5)
    assert isinstance(results["node"], Opaque)


async def test_a_task_that_a_node_sends_by_itself_is_logged_as_taskiq_does(
    broker: InMemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    @broker.task
    async def audit() -> None:
        raise ValueError("audit")

    async def sends() -> int:
        sent = await audit.kiq()
        assert (await sent.wait_result(check_interval=0.01)).is_err
        return 1

    caplog.set_level(logging.WARNING, "taskiq")
    assert await ExecutionEngine(broker, one_node(sends)).execute() == {"node": 1}
    (line,) = lines_of(caplog)
    assert (line[0], line[2]) == ("ERROR", True)


async def test_a_large_result_is_not_measured_on_the_event_loop(broker: InMemoryBroker) -> None:
    threads: set[int] = set()

    class Recorded(BaseModel):
        @model_serializer
        def dump(self) -> str:
            threads.add(threading.get_ident())
            return "recorded"

    dag = one_node(lambda: [Recorded()] * 2_000)
    results = await ExecutionEngine(broker, dag, pass_by=10).execute()
    assert isinstance(results["node"], ResultHandle)
    assert threads
    assert threading.get_ident() not in threads


class Thing:
    pass


class TestMemory:
    """A value is let go of when its run is over, whatever else goes on on the broker."""

    async def test_a_result_does_not_stay_in_the_brokers_store(
        self, broker: InMemoryBroker
    ) -> None:
        made: list[weakref.ref[Thing]] = []

        def make() -> Thing:
            thing = Thing()
            made.append(weakref.ref(thing))
            return thing

        dag = DAGBuilder().node(make).node(lambda make: None, name="take").build()
        await ExecutionEngine(broker, dag).execute()
        await broker.wait_all()
        gc.collect()
        assert made[0]() is None

    async def test_results_of_tasks_that_no_run_has_sent_stay_there(
        self, broker: InMemoryBroker
    ) -> None:
        @broker.task
        async def answer() -> int:
            return 42

        sent = await answer.kiq()
        await sent.wait_result()
        dag = DAGBuilder()
        for number in range(200):
            dag.node(answer, name=f"n{number}")
        await ExecutionEngine(broker, dag.build()).execute()
        assert (await sent.get_result()).return_value == 42

    @pytest.mark.parametrize("retries", [False, True])
    async def test_an_argument_is_not_kept_by_what_its_task_has_started(
        self, retries: bool
    ) -> None:
        broker = InMemoryBroker()
        if retries:
            broker.add_middlewares(SimpleRetryMiddleware())
        started: list[asyncio.Task[Any]] = []

        @broker.task(retry_on_error=True)
        async def take(thing: Thing) -> None:
            started.append(asyncio.create_task(asyncio.sleep(3600)))  # has its context
            if retries and len(started) == 1:
                raise OSError

        thing = Thing()
        alive = weakref.ref(thing)
        await ExecutionEngine(broker, one_node(take)).execute({"thing": thing})
        del thing
        await broker.wait_all()
        gc.collect()
        assert alive() is None
        assert len(started) == 1 + retries
        for task in started:
            task.cancel()


async def test_a_task_that_is_sent_again_after_its_run_does_not_run_without_its_arguments(
    broker: InMemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[TaskiqMessage] = []
    charged: list[int] = []

    class Watcher(TaskiqMiddleware):
        async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            sent.append(message)
            return message

    broker.add_middlewares(Watcher())

    @broker.task
    async def charge(amount: int = 10) -> None:
        charged.append(amount)

    await ExecutionEngine(broker, one_node(charge, inputs=["amount"])).execute({"amount": 500})
    with caplog.at_level(logging.WARNING, "taskiq_flow"):
        await broker.kick(broker.formatter.dumps(sent[0]))
        with contextlib.suppress(asyncio.CancelledError):
            await broker.wait_all()
    assert charged == [500]
    assert "was sent again after its run had ended, and is not executed" in caplog.text


async def test_a_task_may_pass_its_labels_on_to_another(broker: InMemoryBroker) -> None:
    @broker.task
    async def other() -> int:
        return 1

    @broker.task
    async def first(context: Annotated[Context, TaskiqDepends()]) -> int:
        sent = await other.kicker().with_labels(**context.message.labels).kiq()
        return (await sent.wait_result(check_interval=0.01)).return_value

    assert await ExecutionEngine(broker, one_node(first)).execute() == {"node": 1}


def test_a_call_reaches_a_child_process_with_its_values() -> None:
    call = pickle.loads(pickle.dumps(Call("charge", [500], {"currency": "EUR"})))  # noqa: S301
    assert call.taken() == ([500], {"currency": "EUR"})


def test_a_call_whose_values_are_forgotten_is_not_made_without_them() -> None:
    call = Call("charge", [500], {})
    call.forget()
    with pytest.raises(RuntimeError, match="'charge' is not executed: its run is over"):
        call.taken()
