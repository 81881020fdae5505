"""Pipelines of one step after the other."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from taskiq import InMemoryBroker, SimpleRetryMiddleware, TaskiqResultTimeoutError

from taskiq_flow import (
    BindingError,
    ConfigurationError,
    DataflowPipeline,
    ExecutionEngine,
    HookManager,
    InputError,
    Listener,
    MemoryJournal,
    NodeFailedError,
    Pipeline,
    PipelineError,
    PipelineStartEvent,
    PipelineTask,
    PipelineTrackingManager,
    Retry,
    RunCancelledError,
    RunFailedError,
    RunReader,
    RunTimeoutError,
)
from tests.recording import Recorder


def words(text: str) -> list[str]:
    return text.split()


async def shout(word: str, mark: str = "!") -> str:
    return word.upper() + mark


def listed(values: Any) -> list[Any]:
    return list(values)


def nothing(value: Any) -> None:
    return None


def triple(value: Any, second: Any = 2, *, third: Any = 3) -> tuple[Any, Any, Any]:
    return value, second, third


def fails(value: Any) -> Any:
    raise LookupError(value)


untyped: Any = Pipeline


async def result(pipeline: Pipeline[Any], *args: Any, **kwargs: Any) -> Any:
    return await (await pipeline.kiq(*args, **kwargs))


# Steps


async def test_each_step_is_given_the_result_of_the_one_before(broker: InMemoryBroker) -> None:
    pipeline = Pipeline(broker).call_next(words).call_next(len).call_next(shout_number)
    assert await result(pipeline, "ebb and flow") == "3!"


def shout_number(number: int) -> str:
    return f"{number}!"


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((), {}, ("v", 2, 3)),
        ((7,), {}, ("v", 7, 3)),
        ((), {"third": 8}, ("v", 2, 8)),
        ((7,), {"third": 8}, ("v", 7, 8)),
        ((7,), {"param_name": "second"}, (7, "v", 3)),
        ((7, 8), {"param_name": "third"}, (7, 8, "v")),
        ((), {"value": 7}, (7, "v", 3)),
        ((7,), {"param_name": -1}, (7, 2, 3)),
    ],
)
async def test_fixed_arguments_stand_beside_the_result(
    broker: InMemoryBroker, args: Any, kwargs: Any, expected: Any
) -> None:
    pipeline = Pipeline(broker).call_next(lambda: "v").call_next(triple, *args, **kwargs)
    assert await result(pipeline) == expected


async def test_the_arguments_of_kiq_are_those_of_the_first_step(broker: InMemoryBroker) -> None:
    pipeline = Pipeline(broker).call_next(triple)
    assert await result(pipeline, 1) == (1, 2, 3)
    assert await result(pipeline, 1, 5) == (1, 5, 3)
    assert await result(pipeline, value=1, third=6) == (1, 2, 6)
    assert await result(pipeline, 1, third=6) == (1, 2, 6)


async def test_a_first_step_that_takes_any_number_of_arguments(broker: InMemoryBroker) -> None:
    def total(*numbers: int) -> int:
        return sum(numbers)

    def named(**values: int) -> list[str]:
        return sorted(values)

    pipeline = Pipeline(broker).call_next(total)
    assert [await result(pipeline), await result(pipeline, 1, 2, 3)] == [0, 6]
    assert await result(Pipeline(broker).call_next(named), b=1, a=2) == ["a", "b"]


async def test_call_after_waits_and_is_not_given_the_result(broker: InMemoryBroker) -> None:
    done = []

    async def slow(value: int) -> None:
        await asyncio.sleep(0)
        done.append(value)

    def seen(label: str) -> tuple[str, list[int]]:
        return label, list(done)

    pipeline = Pipeline(broker).map(slow).call_after(seen, "saw").call_next(listed)
    assert await result(pipeline, [1, 2]) == ["saw", [1, 2]]


async def test_a_step_may_give_none_a_tuple_or_the_items_of_a_generator(
    broker: InMemoryBroker,
) -> None:
    def letters(text: str) -> Iterator[str]:
        yield from text

    async def later(items: list[str]) -> AsyncIterator[str]:
        for item in items:
            yield item

    assert await result(Pipeline(broker).call_next(nothing).call_next(triple), 1) == (None, 2, 3)
    assert await result(Pipeline(broker).call_next(triple).call_next(listed), 1) == [1, 2, 3]
    assert await result(Pipeline(broker).call_next(triple).map(shout_number), 1) == [
        "1!",
        "2!",
        "3!",
    ]
    pipeline = Pipeline(broker).call_next(letters).call_next(later).map(shout)
    assert await result(pipeline, "ab") == ["A!", "B!"]


async def test_a_task_may_be_used_twice_and_have_the_name_of_a_parameter(
    broker: InMemoryBroker,
) -> None:
    def text(text: str) -> str:
        return text + "."

    def input(text: str) -> str:  # noqa: A001 - the key of what kiq is given
        return text + ","

    pipeline = Pipeline(broker).call_next(text).call_next(text).call_next(input)
    pairs = [pair async for pair in pipeline.stream(text="a")]
    assert pairs == [("text", "a."), ("text_2", "a.."), ("input", "a..,")]
    assert await result(pipeline, "b") == "b..,"


async def test_an_argument_may_be_called_input(broker: InMemoryBroker) -> None:
    def both(text: str, input: str) -> str:  # noqa: A002 - the key of what kiq is given
        return text + input

    assert await result(Pipeline(broker).call_next(both), "a", input="b") == "ab"
    assert await result(Pipeline(broker).call_next(both), input="b", text="a") == "ab"


async def test_a_result_never_goes_to_a_parameter_because_of_a_name(
    broker: InMemoryBroker,
) -> None:
    def second(text: str) -> str:
        return text + "."

    def joined(*parts: str, second: str = "-") -> str:
        return second.join(parts)

    assert await result(Pipeline(broker).call_next(second).call_next(triple), "a") == ("a.", 2, 3)
    with pytest.raises(BindingError, match="'second', which is also the name of the step before"):
        await result(Pipeline(broker).call_next(second).call_next(joined), "a")


async def test_tasks_of_the_broker_are_steps(broker: InMemoryBroker) -> None:
    @broker.task(task_name="my.words")
    async def own(text: str) -> list[str]:
        return text.split()

    pipeline = Pipeline(broker).call_next(own).map(words).call_next(len)
    pairs = [pair async for pair in pipeline.stream("a b")]
    assert pairs == [("my.words", ["a", "b"]), ("words", [["a"], ["b"]]), ("len", 2)]


# Maps, filters, groups


async def test_maps_and_filters_that_follow_each_other_wait_for_no_list(
    broker: InMemoryBroker,
) -> None:
    may_end, passed = asyncio.Event(), []

    async def first(number: int) -> int:
        if number == 0:
            await may_end.wait()
        return number

    def is_odd(number: int) -> bool:
        return number % 2 == 1

    async def last(number: int) -> int:
        passed.append(number)
        if len(passed) == 2:
            may_end.set()
        return number * 10

    pipeline = Pipeline(broker).map(first).filter(is_odd).map(last, output_name="tens")
    task = await pipeline.kiq(range(4))
    assert await task == [10, 30]
    assert passed == [1, 3]
    assert task.run.results["tens"] == [10, 30]


async def test_a_map_of_nothing_and_a_filter_that_leaves_nothing_go_on(
    broker: InMemoryBroker,
) -> None:
    pipeline = Pipeline(broker).map(shout).call_next(len)
    assert await result(pipeline, []) == 0
    assert await result(Pipeline(broker).map(shout), []) == []
    filtered = Pipeline(broker).filter(nothing).map(shout).call_next(triple)
    assert await result(filtered, ["a", "b"]) == ([], 2, 3)


async def test_max_parallel_holds_for_a_step_and_for_the_pipeline(broker: InMemoryBroker) -> None:
    running, most = 0, 0

    async def watched(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return number

    await result(Pipeline(broker).map(watched, 2), range(9))
    assert most == 2
    most = 0
    await result(Pipeline(broker, max_parallel=3).map(watched), range(9))
    assert most == 3


async def test_a_map_takes_the_element_where_it_is_told_to(broker: InMemoryBroker) -> None:
    pipeline = Pipeline(broker).map(shout, param_name="mark", word="so")
    assert await result(pipeline, ["?", "."]) == ["SO?", "SO."]


async def test_text_is_no_list_to_map_over(broker: InMemoryBroker) -> None:
    with pytest.raises(InputError, match="input"):
        await result(Pipeline(broker).map(shout), "text")


async def test_the_tasks_of_a_group_run_side_by_side_and_give_a_list(
    broker: InMemoryBroker,
) -> None:
    both = asyncio.Barrier(2)

    async def left(text: str) -> str:
        await both.wait()
        return text + " left"

    async def right(label: str, text: str = "") -> str:
        await both.wait()
        return text + " right"

    pipeline = Pipeline(broker).group([left, right], [None, "label"]).call_next(listed)
    assert await result(pipeline, "go") == ["go left", " right"]


async def test_a_group_after_a_group_and_in_the_middle(broker: InMemoryBroker) -> None:
    pipeline = Pipeline(broker).group([words, len]).group([triple, len]).map(triple)
    expected = [(([["a", "b"], 3], 2, 3), 2, 3), (2, 2, 3)]
    assert await result(pipeline, "a b") == expected


async def test_a_group_of_nothing_gives_an_empty_list_in_its_turn(broker: InMemoryBroker) -> None:
    assert await result(Pipeline(broker).group([])) == []
    stream = Pipeline(broker).call_next(shout).group([]).call_next(len).stream("a")
    assert [pair async for pair in stream] == [("shout", "A!"), ("group", []), ("len", 0)]
    with pytest.raises(NodeFailedError):
        await result(Pipeline(broker).call_next(fails).group([]), 1)


async def test_a_group_of_one_gives_a_list(broker: InMemoryBroker) -> None:
    """celery 4055 and 9012: what follows a group of one was given its result bare."""
    assert await result(Pipeline(broker).group([len]).call_next(listed), "abc") == [3]


async def test_a_pipeline_within_a_pipeline_is_a_task(broker: InMemoryBroker) -> None:
    """celery 3968, 4161 and 6200: chains within groups and chains lost their arguments."""
    inner = Pipeline(broker).call_next(words).map(shout).as_task("inner")
    pipeline = Pipeline(broker).call_next(shout).group([inner, len]).call_next(listed)
    assert await result(pipeline, "a b") == [["A!", "B!!"], 4]


async def test_the_name_as_a_task_is_that_of_the_graph_in_lists_of_runs(
    broker: InMemoryBroker,
) -> None:
    journal = MemoryJournal()
    pipeline = Pipeline(broker).call_next(abs)
    pipeline.as_task("nightly")
    engine = ExecutionEngine(**pipeline.engine.options | {"journal": journal})
    await engine.execute({"input": -7})
    assert [run.name for run in await RunReader(journal).runs()] == ["nightly"]


async def test_listeners_are_told_of_what_type_a_pipeline_is(broker: InMemoryBroker) -> None:
    tracking, starts = PipelineTrackingManager(), []

    class Starts:
        def on_pipeline_start(self, event: PipelineStartEvent) -> None:
            starts.append((event.pipeline_id, event.pipeline_type))

    hooks = HookManager().add_hook(Starts())
    listeners: list[Listener] = [tracking, hooks]
    steps = Pipeline(broker, pipeline_id="steps", listeners=listeners).call_next(len)
    await (await steps.kiq("abc"))
    keys = DataflowPipeline(broker, [words], pipeline_id="keys", listeners=listeners)
    await keys.kiq_dataflow(text="abc")
    assert starts == [("steps", "sequential"), ("keys", "dataflow")]
    found = {each.pipeline_id: each.pipeline_type for each in await tracking.list_pipelines()}
    assert found == {"steps": "sequential", "keys": "dataflow"}


# Running


async def test_the_stream_has_each_step_as_it_arrives(broker: InMemoryBroker) -> None:
    pipeline = Pipeline(broker).call_next(words).map(len).call_next(sum)
    stream = pipeline.stream("ebb and flow")
    assert await anext(stream) == ("words", ["ebb", "and", "flow"])
    assert [pair async for pair in stream] == [("len", [3, 3, 4]), ("sum", 10)]


async def test_items_of_an_endless_input_are_streamed(broker: InMemoryBroker) -> None:
    async def ticks() -> AsyncIterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    pipeline = Pipeline(broker, max_parallel=2).map(triple).map(len)
    stream = pipeline.stream_items(ticks())
    seen = []
    async for step, item in stream:
        if step == "len":
            seen.append((item.index, item.value))
        if len(seen) == 5:
            break
    await stream.aclose()
    assert sorted(seen) == [(n, 3) for n in range(5)]


async def test_kiq_gives_a_task_of_taskiq(broker: InMemoryBroker) -> None:
    may_end = asyncio.Event()

    async def waits(value: int) -> int:
        await may_end.wait()
        return value

    task = await Pipeline(broker).call_next(waits).kiq(7)
    assert isinstance(task, PipelineTask)
    assert not await task.is_ready()
    assert repr(task) == f"<PipelineTask {task.task_id!r}, running>"
    with pytest.raises(TaskiqResultTimeoutError):
        await task.wait_result(timeout=0.01)
    may_end.set()
    done = await task.wait_result()
    assert (done.is_err, done.return_value, done.error) == (False, 7, None)
    assert await task.is_ready()
    assert (await task.get_result()).return_value == await task == await task == 7
    with pytest.raises(TypeError, match="not set"):
        await task.result_backend.set_result(task.task_id, done)


async def test_a_run_that_nobody_holds_goes_on(broker: InMemoryBroker) -> None:
    ended = asyncio.Event()

    async def end(value: Any) -> None:
        ended.set()

    await Pipeline(broker).call_next(triple).call_next(end).kiq(1)
    gc.collect()
    await ended.wait()


async def test_a_pipeline_runs_again_and_again_and_at_the_same_time(
    broker: InMemoryBroker,
) -> None:
    both = asyncio.Barrier(2)

    async def meet(value: str) -> str:
        await both.wait()
        return value

    pipeline = Pipeline(broker).call_next(meet).call_next(shout)
    first, second = await pipeline.kiq("a"), await pipeline.kiq("b")
    assert (await first, await second) == ("A!", "B!")
    assert first.task_id != second.task_id


async def test_a_pipeline_id_that_was_set_is_kept(broker: InMemoryBroker) -> None:
    pipeline = Pipeline(broker, pipeline_id="one").call_next(len)
    for _ in range(2):
        task = await pipeline.kiq("abc")
        assert (task.task_id, task.pipeline_id, await task) == ("one", "one", 3)
    pipeline.pipeline_id = "two"
    assert (await pipeline.kiq("abc")).task_id == pipeline.pipeline_id == "two"
    with pytest.raises(ValueError, match="pipeline_id is empty"):
        pipeline.pipeline_id = ""


async def test_one_id_is_that_of_one_run_at_a_time(broker: InMemoryBroker) -> None:
    pipeline = Pipeline(broker, pipeline_id="one").call_next(triple)
    first, second = await pipeline.kiq(1), await pipeline.kiq(2)
    assert await first == (1, 2, 3)
    with pytest.raises(ConfigurationError, match="'one' is in use"):
        await second


async def test_a_step_that_is_added_later_is_of_later_runs(broker: InMemoryBroker) -> None:
    pipeline = Pipeline(broker).call_next(words)
    first = await pipeline.kiq("a b")
    pipeline.call_next(len)
    assert (await first, await result(pipeline, "a b")) == (["a", "b"], 2)


async def test_options_may_change_between_runs(broker: InMemoryBroker) -> None:
    told = Recorder()
    pipeline = Pipeline(broker).call_next(words)
    await result(pipeline, "a")
    await result(pipeline.with_hooks(told), "a")
    assert told.events[-1].outcome == "completed"
    with pytest.raises(RunTimeoutError):
        await result(pipeline.with_timeout(1e-9), "a")


async def test_cancelling_ends_the_run(broker: InMemoryBroker) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def long(value: int) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = await Pipeline(broker).call_next(long).kiq(1)
    await begun.wait()
    task.cancel()
    with pytest.raises(RunCancelledError):
        await task
    await ended.wait()
    assert task.run.status == "cancelled"


async def test_a_graph_of_it_may_be_run_by_an_engine(
    broker: InMemoryBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = Pipeline(broker).call_next(words).map(len)
    pipeline.print_dag()
    assert "1 ── len ×words  ← words" in capsys.readouterr().out
    results = await ExecutionEngine(broker, pipeline.dag).execute({"input": "ebb flow"})
    assert results == {"words": ["ebb", "flow"], "len": [3, 4]}


# Failures


@pytest.mark.parametrize("mode", ["stop", "continue", "retry"])
async def test_a_step_that_fails_ends_the_run_with_its_error(
    broker: InMemoryBroker, mode: Any
) -> None:
    pipeline = Pipeline(broker).call_next(fails).call_next(triple).on_error(mode)
    pipeline.with_retry(max_attempts=2, delay=0)
    task = await pipeline.kiq("x")
    done = await task.wait_result()
    kind = RunFailedError if mode == "continue" else NodeFailedError
    assert done.is_err
    assert type(done.error) is kind
    assert done.return_value is None
    assert isinstance(task.run.failures["fails"], LookupError)
    with pytest.raises(kind):
        await task


async def test_stop_is_what_happens_without_a_word(broker: InMemoryBroker) -> None:
    calls = []

    def odd_fails(number: int) -> int:
        calls.append(number)
        if number % 2:
            raise LookupError(number)
        return number

    pipeline = Pipeline(broker, max_parallel=1).map(odd_fails).map(triple)
    with pytest.raises(NodeFailedError, match=r"odd_fails\[1\]"):
        await result(pipeline, range(4))
    assert 3 not in calls


async def test_continue_goes_on_with_the_other_elements(broker: InMemoryBroker) -> None:
    passed: list[int] = []

    def keep(number: int) -> None:
        passed.append(number)

    def odd_fails(number: int) -> int:
        if number % 2:
            raise LookupError(number)
        return number

    pipeline = Pipeline(broker).map(odd_fails).map(keep).call_next(len)
    with pytest.raises(RunFailedError) as failure:
        await result(pipeline.on_error("continue"), range(4))
    assert sorted(passed) == [0, 2]
    assert sorted(failure.value.failures) == ["odd_fails[1]", "odd_fails[3]"]
    assert "len" in failure.value.skipped


@pytest.mark.parametrize(
    "retried",
    [
        lambda pipeline: pipeline.with_retry(max_attempts=3, delay=0.001, backoff=1),
        lambda pipeline: pipeline.with_retry(policy=Retry(3, wait=0.001)),
        lambda pipeline: pipeline.with_retry(policy=3),
        lambda pipeline: pipeline.on_error("retry"),
    ],
)
async def test_a_step_is_tried_again(broker: InMemoryBroker, retried: Any) -> None:
    calls = 0

    def flaky(value: int) -> int:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ConnectionError
        return value

    assert await result(retried(Pipeline(broker).call_next(flaky).call_next(str_of)), 7) == "7"
    assert calls == 3


def str_of(value: Any) -> str:
    return str(value)


async def test_a_timeout_ends_the_run(broker: InMemoryBroker) -> None:
    async def long(value: int) -> None:
        await asyncio.Event().wait()

    for pipeline in (Pipeline(broker, timeout=0.01), Pipeline(broker).with_timeout(0.01)):
        with pytest.raises(RunTimeoutError):
            await result(pipeline.call_next(long), 1)


# Mistakes


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: p.call_next(triple, 1, 2, 3), "is given more values than it takes"),
        (lambda p: p.call_next(triple, thrd=1), "has no parameter 'thrd'.*did you mean 'third'"),
        (lambda p: p.call_next(triple, param_name="forth"), "has no parameter 'forth'"),
        (lambda p: p.call_next(triple, value=1, param_name="value"), "is given 'value' twice"),
        (lambda p: p.call_after(triple), "lacks 'value'"),
        (lambda p: p.call_next(max), "wrap its task in a function"),
        (lambda p: p.group([triple, words], ["value", "value"]), "has no parameter 'value'"),
    ],
)
async def test_a_step_that_cannot_be_called_is_refused_at_once(
    broker: InMemoryBroker, call: Any, said: str
) -> None:
    with pytest.raises(BindingError, match=said):
        call(Pipeline(broker).call_next(words))


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda p: p.call_next("words"), TypeError, "a step's task is"),
        (lambda p: p.call_next(words, param_name=3), TypeError, "param_name of step 'words' is 3"),
        (lambda p: p.group([words, len], ["text"]), ValueError, "1 names for 2 tasks"),
        (lambda p: p.map(words, 0), ValueError, "max_parallel is 0"),
        (lambda p: p.on_error("ignore"), ValueError, "'stop', 'continue', 'retry'"),
        (lambda p: p.with_timeout(-1), ValueError, "seconds is -1"),
        (lambda p: p.with_retry(0), ValueError, "attempts is 0"),
        (lambda p: p.with_hooks(object()), TypeError, "has no method on_event"),
        (lambda p: p.with_context("yes"), TypeError, "enable is 'yes'"),
        (lambda p: untyped(p.broker, listeners=[object()]), TypeError, "has no method on_event"),
        (lambda p: untyped(p.broker, task=len), TypeError, "write pipeline.call_next"),
        (lambda p: untyped(p.broker, len), ValueError, "max_parallel is"),
        (lambda p: untyped("redis://"), TypeError, "broker"),
    ],
)
async def test_wrong_arguments_are_refused(
    broker: InMemoryBroker, call: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        call(Pipeline(broker))


async def test_what_kiq_is_given_has_to_fit_the_first_step(broker: InMemoryBroker) -> None:
    pipeline = Pipeline(broker).call_next(words).call_next(len)
    with pytest.raises(BindingError, match="step 'words' lacks 'text'"):
        await pipeline.kiq()
    with pytest.raises(BindingError, match="more values than it takes"):
        await pipeline.kiq("a", "b")
    with pytest.raises(BindingError, match="no parameter 'txt'; did you mean 'text'"):
        await pipeline.kiq(txt="a")
    with pytest.raises(PipelineError, match="the pipeline has no steps"):
        await Pipeline(broker).kiq(1)
    with pytest.raises(PipelineError, match="first step is given none"):
        await Pipeline(broker).call_after(triple, 1).kiq(2)
    with pytest.raises(PipelineError, match="runs for each element of one list"):
        await Pipeline(broker).map(triple).kiq([1], [2])


# Listeners


async def test_hooks_and_tracking_hear_of_each_run(broker: InMemoryBroker) -> None:
    class Log:
        def __init__(self) -> None:
            self.heard: list[Any] = []

        def on_step_start(self, event: Any) -> None:
            self.heard.append(("start", event.step_name))

        def on_step_complete(self, event: Any) -> None:
            self.heard.append((event.step_name, event.result))

        def on_pipeline_complete(self, event: Any) -> None:
            self.heard.append(event.status)

    log, tracking, other = Log(), PipelineTrackingManager(), Recorder()
    pipeline = Pipeline(broker, pipeline_id="p", listeners=[other]).call_next(words).call_next(len)
    pipeline.with_tracking(tracking).with_hooks(HookManager().add_hook(log)).with_tracking(tracking)
    task = await pipeline.kiq("a b")
    await task
    steps = [("start", "words"), ("words", ["a", "b"]), ("start", "len"), ("len", 2)]
    assert log.heard == [*steps, "COMPLETED"]
    status = await tracking.get_status("p")
    assert status is not None
    assert (status.status, len(status.steps)) == ("COMPLETED", 2)
    assert len(other.events) == 8


async def test_a_first_step_that_fails_is_told(broker: InMemoryBroker) -> None:
    tracking = PipelineTrackingManager()
    pipeline = Pipeline(broker, pipeline_id="p").call_next(fails).call_next(words)
    await (await pipeline.with_tracking(tracking).kiq("x")).wait_result()
    status = await tracking.get_status("p")
    assert status is not None
    assert status.status == "FAILED"


# What was reported of others


async def test_a_retry_by_a_middleware_is_not_the_result() -> None:
    """taskiq-pipelines 26: the first exception was the pipeline's result."""
    broker = InMemoryBroker().with_middlewares(SimpleRetryMiddleware(no_result_on_retry=True))
    calls = 0

    @broker.task(retry_on_error=True)
    async def flaky(value: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionError
        return value

    assert await result(Pipeline(broker).call_next(flaky).call_next(str_of), 7) == "7"


async def test_a_value_that_a_step_changes_changes_no_other_run(broker: InMemoryBroker) -> None:
    """Fixed arguments are those of each run, as in a signature that is used twice."""

    def grown(value: int, known: list[int]) -> list[int]:
        known.append(value)
        return known

    fixed = [0]
    pipeline = Pipeline(broker).call_next(grown, fixed)
    assert await result(pipeline, 1) == [0, 1]
    assert await result(pipeline, 2) == [0, 2]
    assert fixed == [0]


@pytest.mark.parametrize(
    ("add", "said"),
    [
        (lambda p: p.call_next(words, txt=1), "no parameter 'txt'; did you mean 'text'"),
        (lambda p: p.call_next(words, "a", "b"), "more values than it takes"),
        (lambda p: p.call_next(words, param_name="txt"), "no parameter 'txt'"),
        (lambda p: p.call_next(words, text="a", param_name="text"), "given 'text' twice"),
        (lambda p: p.call_after(words), "lacks 'text'"),
        (lambda p: p.map(words, text="a"), "more values than it takes"),
        (lambda p: p.filter(lambda: True), "more values than it takes"),
        (lambda p: p.group([words, len], ["txt", None]), "no parameter 'txt'"),
    ],
)
def test_a_first_step_that_kiq_could_never_call_is_refused_when_it_is_added(
    broker: InMemoryBroker, add: Any, said: str
) -> None:
    pipeline: Pipeline[Any] = Pipeline(broker)
    with pytest.raises(BindingError, match=said):
        add(pipeline)
    assert "0 steps" in repr(pipeline)


async def test_a_first_step_may_lack_what_kiq_gives(broker: InMemoryBroker) -> None:
    assert await (await Pipeline(broker).call_next(shout, mark="?").kiq(word="a")) == "A?"
    assert await (await Pipeline(broker).call_next(shout).kiq("a", mark="?")) == "A?"
    assert await (await Pipeline(broker).call_next(shout, "a").kiq()) == "A!"
    assert await (await Pipeline(broker).call_next(pow, mod=10).kiq(7, 2)) == 9
