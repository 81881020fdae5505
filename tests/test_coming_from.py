"""Each row of the tables for those who come from elsewhere is code that runs.

A test names its row by what stands at the left, and has the code that stands at the right.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    Cache,
    CycleError,
    DAGBuilder,
    DataflowPipeline,
    ExecutionEngine,
    Failure,
    MemoryJournal,
    NodeCompleted,
    NodeFailedError,
    NodeTimeoutError,
    Pipeline,
    PipelineMiddleware,
    PipelineScheduler,
    Retry,
    RunCancelledError,
    RunFailedError,
)
from tests.commands import ROOT
from tests.virtual_clock import run_virtually

ROW = re.compile(r"^\| (?P<theirs>.+?) \| (?P<ours>.+) \|$", re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")

PAGES = ("from_celery", "from_langgraph", "from_taskiq_pipelines")

ELSEWHERE = {
    "`acks_late=True`": "tests/distributed/test_losing.py",
    "`celery -A app worker`": "tests/distributed/test_examples.py",
}
"""What needs a server, and the tests of it."""

Test = Callable[[], Coroutine[Any, Any, None]]

TESTS: dict[str, Test] = {}


def row(theirs: str) -> Callable[[Test], Test]:
    def of_row(test: Test) -> Test:
        assert theirs not in TESTS
        TESTS[theirs] = test
        return test

    return of_row


def rows(page: str) -> dict[str, str]:
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    _, *found = ROW.finditer(text)  # the first one is the heading
    return {match["theirs"]: match["ours"] for match in found}


@pytest.mark.parametrize("page", PAGES)
def test_each_row_has_its_test_with_the_code_that_it_shows(page: str) -> None:
    for theirs, ours in rows(page).items():
        code = [span for span in CODE.findall(ours) if not span.endswith(".md")]
        if theirs in ELSEWHERE:
            assert (ROOT / ELSEWHERE[theirs]).exists()
        elif code:
            source = " ".join(inspect.getsource(TESTS[theirs]).split())
            for part in (part for span in code for part in span.split("...")):
                assert part in source, (theirs, part)


def test_no_test_is_of_a_row_that_is_gone() -> None:
    assert TESTS.keys() | ELSEWHERE.keys() <= {theirs for page in PAGES for theirs in rows(page)}


@pytest.mark.parametrize("theirs", TESTS)
def test_the_code_of_a_row_runs(theirs: str) -> None:
    run_virtually(TESTS[theirs]())


broker = InMemoryBroker().with_middlewares(PipelineMiddleware())


async def a(x: int) -> int:
    return x + 1


async def b(a: int) -> int:
    return 10 * a


async def task(x: int) -> int:
    return -x


# From Celery


@row("`@app.task`")
async def _() -> None:
    @broker.task
    async def double(x: int) -> int:
        return 2 * x

    dag = DAGBuilder().node(double).build()
    assert await ExecutionEngine(broker, dag).execute({"x": 2}) == {"double": 4}


@row("`task.delay(x)`")
async def _() -> None:
    task, x = broker.register_task(a, task_name="celery's a"), 1
    sent = await task.kiq(x)
    assert (await sent.wait_result(timeout=5)).return_value == 2


@row("`chain(a.s(), b.s())`")
async def _() -> None:
    dag = DAGBuilder().node(a).node(b).build()
    assert await ExecutionEngine(broker, dag).execute({"x": 1}) == {"a": 2, "b": 20}
    pipeline = Pipeline(broker).call_next(a).call_next(b)
    assert await (await pipeline.kiq(1)) == 20


@row("`group(...)`")
async def _() -> None:
    dag = DAGBuilder().node(a).node(task).build()
    assert await ExecutionEngine(broker, dag).execute({"x": 1}) == {"a": 2, "task": -1}
    assert await (await Pipeline(broker).group([a, b]).kiq(1)) == [2, 10]


@row("`chord(header, body)`")
async def _() -> None:
    dag = DAGBuilder().node(a).node(task).node(lambda a, task: a + task, name="body").build()
    assert (await ExecutionEngine(broker, dag).execute({"x": 1}))["body"] == 1
    mapped = DAGBuilder().node(a, map_over="x").node(sum, inputs=["a"]).build()
    assert (await ExecutionEngine(broker, mapped).execute({"x": [1, 2]}))["sum"] == 5


@row("`task.map(items)`, `task.chunks(items, n)`")
async def _() -> None:
    def task(numbers: list[int]) -> list[int]:
        return [-number for number in numbers]

    dag = DAGBuilder().node(abs, inputs=["items"], map_over="items").build()
    assert await ExecutionEngine(broker, dag).execute({"items": [-1, 2]}) == {"abs": [1, 2]}
    pipeline = DataflowPipeline(broker)
    pipeline.map(task, "items", "results", chunk_config={"chunk_size": 100})
    assert await pipeline.kiq_map_reduce(items=range(300)) == {"results": [-n for n in range(300)]}


@row("`.s(x=1)`")
async def _() -> None:
    dag = DAGBuilder().node(a, given={"x": 1}).build()
    assert await ExecutionEngine(broker, dag).execute() == {"a": 2}


@row("`.si()`")
async def _() -> None:
    done: list[str] = []
    builder = DAGBuilder().node(lambda: done.append("after"), name="after")
    dag = builder.node(lambda: done.append("before"), name="before").build()
    dag.add_edge("before", "after")
    await ExecutionEngine(broker, dag).execute()
    assert done == ["before", "after"]


@row("`link_error=`")
async def _() -> None:
    def fail() -> int:
        raise LookupError("gone")

    dag = DAGBuilder().node(fail, fallback=7).build()
    assert await ExecutionEngine(broker, dag).execute() == {"fail": 7}

    def told(failures: list[Failure]) -> str:
        return failures[0].message

    builder = DAGBuilder().node(fail, name="NAME")
    dag = builder.node(told, inputs=["NAME.failures"], join="ended").build()
    assert (await ExecutionEngine(broker, dag, on_error="collect").execute())["told"] == "gone"


@row("`autoretry_for`, `retry_backoff`, `max_retries`")
async def _() -> None:
    is_away = iter([True, False])

    def ask() -> int:
        if next(is_away):
            raise ConnectionError("away")
        return 7

    retry = Retry(attempts=3, wait=1, factor=2, on=(ConnectionError,))
    dag = DAGBuilder().node(ask, retry=Retry(attempts=3, wait=1, factor=2, on=(ConnectionError,)))
    assert await ExecutionEngine(broker, dag.build()).execute() == {"ask": 7}
    assert ExecutionEngine(broker, dag.build(), retry=retry).options["retry"] == retry


async def hang() -> None:
    await asyncio.sleep(3600)


@row("`time_limit=`")
async def _() -> None:
    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(broker, DAGBuilder().node(hang, timeout=5).build()).execute()
    assert isinstance(caught.value.__cause__, NodeTimeoutError)


@row("`expires=`")
async def _() -> None:
    dag = DAGBuilder().node(a, queue_timeout=60).build()
    assert await ExecutionEngine(broker, dag).execute({"x": 1}) == {"a": 2}


def engine_of_a() -> ExecutionEngine:
    return ExecutionEngine(broker, DAGBuilder().node(a).build())


@row("`result.get()`")
async def _() -> None:
    engine, inputs = ExecutionEngine(InMemoryBroker(), DAGBuilder().node(a).build()), {"x": 1}
    assert await engine.execute(inputs) == engine.execute_sync(inputs) == {"a": 2}


@row("`result.collect()`")
async def _() -> None:
    engine, inputs = engine_of_a(), {"x": 1}
    async for name, result in engine.execute_async(inputs):
        assert (name, result) == ("a", 2)


@row("`result.revoke(terminate=True)`")
async def _() -> None:
    engine = ExecutionEngine(broker, DAGBuilder().node(hang).build())
    run, other = engine.start(), engine.start()
    await asyncio.sleep(1)
    run.cancel()
    with pytest.raises(RunCancelledError):
        await run
    assert other.status == "running"
    engine.cancel()
    with pytest.raises(RunCancelledError):
        await other


@row("`beat`")
async def _() -> None:
    scheduler = PipelineScheduler(broker)  # which `taskiq scheduler` takes, as it is one of taskiq
    job = await scheduler.schedule(Pipeline(broker).call_next(a), "0 3 * * *", args=(1,))
    assert [each.id for each in await scheduler.list_jobs()] == [job]


# From LangGraph


@row("`StateGraph(State)`")
async def _() -> None:
    dag = DAGBuilder().node(a).build()
    assert dag.outputs == ["a"]


@row('`add_node("name", function)`')
async def _() -> None:
    function = a
    dag = DAGBuilder().node(function).node(function, name="name").build()
    results = await ExecutionEngine(broker, dag).execute({"x": 1})
    assert results == {"a": 2, "name": 2}


@row('`add_edge("a", "b")`')
async def _() -> None:
    assert len(DAGBuilder().node(a).node(b).build().edges) == 1
    dag = DAGBuilder().node(a).node(task, name="b").build()
    dag.add_edge("a", "b")
    pairs = ExecutionEngine(broker, dag).execute_async({"x": 1})
    assert [name async for name, _ in pairs] == ["a", "b"]


@row("`add_conditional_edges`")
async def _() -> None:
    def meet(b: int = 0, task: int = 0) -> int:
        return b + task

    dag = (
        DAGBuilder()
        .node(a)
        .node(b, when=lambda a: a > 1)
        .node(task, when=lambda a: a <= 1)
        .node(meet, inputs=["b", "task"], join="none_failed")
        .build()
    )
    for x, expected in ((1, 20), (0, 0)):
        assert (await ExecutionEngine(broker, dag).execute({"x": x}))["meet"] == expected


@row("reducers, such as `Annotated[list, add]`")
async def _() -> None:
    dag = DAGBuilder().node(a).node(task).node(lambda a, task: [a, task], name="joined").build()
    assert (await ExecutionEngine(broker, dag).execute({"x": 1}))["joined"] == [2, -1]


@row('`Send("node", item)` for each item')
async def _() -> None:
    dag = DAGBuilder().node(a, map_over="x").build()
    assert await ExecutionEngine(broker, dag).execute({"x": [1, 2]}) == {"a": [2, 3]}


@row("a subgraph")
async def _() -> None:
    graph = DAGBuilder().node(a).build()
    dag = DAGBuilder().add_graph(graph, "name").build()
    assert await ExecutionEngine(broker, dag).execute({"x": 1}) == {"name/a": 2}
    mapped = DAGBuilder().add_graph(graph, "name", map_over="x").build()
    assert await ExecutionEngine(broker, mapped).execute({"x": [1, 2]}) == {"name/a": [2, 3]}


@row("`graph.ainvoke(state)`")
async def _() -> None:
    engine, inputs = engine_of_a(), {"x": 1}
    assert await engine.execute(inputs) == {"a": 2}


@row('`graph.astream(state, stream_mode="updates")`')
async def _() -> None:
    engine, inputs = engine_of_a(), {"x": 1}
    assert [pair async for pair in engine.execute_async(inputs)] == [("a", 2)]


@row('`stream_mode="messages"`, `"custom"`')
async def _() -> None:
    async def words(x: int) -> AsyncIterator[str]:
        for word in ("ebb", "flow")[:x]:
            yield word

    engine = ExecutionEngine(broker, DAGBuilder().node(words).build())
    pairs = engine.execute_async({"x": 2}, items="only")
    assert [item.value async for _, item in pairs] == ["ebb", "flow"]


@row('`stream_mode="debug"`')
async def _() -> None:
    heard: list[str] = []

    class Listener:
        def on_event(self, event: Any) -> None:
            heard.append(event.type)

    dag = DAGBuilder().node(a).build()
    run = ExecutionEngine(broker, dag, listeners=[Listener()]).start({"x": 1})
    told = [event.type async for event in run.events()]
    assert told == heard
    assert told[-1] == "run.ended"


@row("`RetryPolicy(...)`")
async def _() -> None:
    dag = DAGBuilder().node(a, retry=Retry(attempts=3)).build()
    assert await ExecutionEngine(broker, dag).execute({"x": 1}) == {"a": 2}


@row("`CachePolicy(...)`")
async def _() -> None:
    dag = DAGBuilder().node(a, cache=Cache(ttl=60)).build()
    engine = ExecutionEngine(broker, dag)
    sources = []
    for _ in range(2):
        run = engine.start({"x": 1})
        sources += [e.source async for e in run.events() if isinstance(e, NodeCompleted)]
    assert sources == ["task", "cache"]


@row("a checkpointer, a `thread_id`")
async def _() -> None:
    calls: list[int] = []
    away = iter([True, False])

    def once(x: int) -> int:
        calls.append(x)
        return x

    def fail(once: int) -> int:
        if next(away):
            raise ConnectionError("away")
        return once

    run_id, dag = "mine", DAGBuilder().node(once).node(fail).build()
    engine = ExecutionEngine(broker, dag, journal=MemoryJournal())
    with pytest.raises(NodeFailedError):
        await engine.execute({"x": 1}, run_id=run_id)
    assert [pair async for pair in engine.resume(run_id)] == [("once", 1), ("fail", 1)]
    assert calls == [1]


@row("`recursion_limit`")
async def _() -> None:
    with pytest.raises(CycleError):
        DAGBuilder().node(lambda b: b, name="a").node(lambda a: a, name="b").build()


@row("`draw_mermaid()`")
async def _() -> None:
    pytest.importorskip("pygraphviz")
    dag = DAGBuilder().node(a).node(b).build()
    assert dag.to_mermaid().startswith("flowchart")
    assert dag.to_svg().startswith("<svg")


# From taskiq-pipelines


@row("`Pipeline(broker, task)`")
async def _() -> None:
    assert await (await Pipeline(broker).call_next(task).kiq(1)) == -1


@row('`call_next(task, param_name="x")`, `call_after(task)`')
async def _() -> None:
    pipeline = Pipeline(broker).call_next(task, param_name="x").call_after(task, x=3)
    assert await (await pipeline.kiq(1)) == -3


@row("`map(task)`, `filter(task)`")
async def _() -> None:
    assert await (await Pipeline(broker).map(task).filter(task).kiq([1, 0])) == [-1]


@row("`skip_errors=True`")
async def _() -> None:
    def parsed(text: str) -> int | None:
        return int(text)

    def is_there(parsed: int | None) -> bool:
        return parsed is not None

    dag = (
        DAGBuilder()
        .node(parsed, inputs=["text"], map_over="text", fallback=None)
        .node(is_there, output="kept", inputs=["parsed"], map_over="parsed", filter=True)
        .build()
    )
    results = await ExecutionEngine(broker, dag).execute({"text": ["1", "x", "3"]})
    assert results["kept"] == [1, 3]
    run = await Pipeline(broker).map(parsed).on_error("continue").kiq(["1", "x", "3"])
    with pytest.raises(RunFailedError) as caught:
        await run
    assert list(caught.value.failures) == ["parsed[1]"]
    assert caught.value.results == {"parsed[0]": 1, "parsed[2]": 3}


@row("`check_interval=`")
async def _() -> None:
    done = await (await Pipeline(broker).call_next(a).kiq(1)).wait_result()
    assert done.return_value == 2


@row("`MappingError`, `FilterError`")
async def _() -> None:
    def fail(x: int) -> int:
        raise LookupError(x)

    with pytest.raises(NodeFailedError) as caught:
        await (await Pipeline(broker).map(fail).kiq([1]))
    assert isinstance(caught.value.__cause__, LookupError)


@row("`AbortPipeline` raised in a task")
async def _() -> None:
    dag = DAGBuilder().node(a).node(b, when=lambda a: a > 2).build()
    pairs = ExecutionEngine(broker, dag).execute_async({"x": 1})
    assert [pair async for pair in pairs] == [("a", 2)]


@row("`PipelineMiddleware()` on every broker")
async def _() -> None:
    assert InMemoryBroker().with_middlewares(PipelineMiddleware()).middlewares


@row("`task_id` of the last step")
async def _() -> None:
    task = await Pipeline(broker, pipeline_id="mine").call_next(a).kiq(1)
    assert task.run.run_id == task.task_id == "mine"
    await task


@row("`dumpb`, `loadb`")
async def _() -> None:
    own = InMemoryBroker()
    pipeline = Pipeline(own).call_next(a).call_next(b)
    pipeline.as_task("name")
    registered = own.find_task("name")
    assert registered is not None
    sent = await registered.kiq(1)
    assert (await sent.wait_result(timeout=5)).return_value == 20
