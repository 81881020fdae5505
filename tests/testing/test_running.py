"""Graphs are run on a virtual clock, with stand-ins for their tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired
from unittest.mock import AsyncMock

import pytest
from pydantic import Field
from taskiq import InMemoryBroker, TaskiqDepends
from typing_extensions import TypedDict

from taskiq_flow import (
    DAG,
    AnnotationError,
    Cache,
    DAGBuilder,
    DataflowPipeline,
    Event,
    Item,
    MemoryJournal,
    MissingInputError,
    MissingNodeError,
    NodeFailedError,
    NodeFailure,
    NodeTimeoutError,
    Pipeline,
    PipelineContext,
    PipelineError,
    Retry,
    RunTimeoutError,
    in_process,
)
from taskiq_flow.testing import HangingError, check_orders, record, replay, run

ONE = Retry(attempts=2, wait=1.0, jitter=0.0)


def fetch(url: str) -> str:
    raise AssertionError("a test asks no server")


def count(page: str) -> int:
    return len(page)


async def save(count: int) -> str:
    await asyncio.sleep(2.0)
    return f"saved {count}"


def pages(**options: Any) -> DAG:
    return DAGBuilder().node(fetch, output="page", **options).node(count).node(save).build()


def test_tasks_are_replaced_and_take_their_time() -> None:
    began = time.monotonic()
    outcome = run(
        pages(),
        {"url": "a"},
        replace={"fetch": "<h1>"},
        takes={"fetch": 5, "count": timedelta(hours=1)},
    )
    assert outcome.results == {"page": "<h1>", "count": 4, "save": "saved 4"}
    assert outcome.pairs == [("fetch", "<h1>"), ("count", 4), ("save", "saved 4")]
    assert outcome.order == ["fetch", "count", "save"]
    assert outcome.started_at == {"fetch": 0.0, "count": 5.0, "save": 3605.0}
    assert outcome.ended_at == {"fetch": 5.0, "count": 3605.0, "save": 3607.0}
    assert outcome.seconds == outcome.report.seconds == 3607.0
    assert outcome.attempts == {"fetch": 1, "count": 1, "save": 1}
    assert (outcome.error, outcome.failures, outcome.skipped) == (None, {}, {})
    assert time.monotonic() - began < 30.0


def test_one_time_is_that_of_all_nodes() -> None:
    outcome = run(pages(), {"url": "a"}, replace={"fetch": "<h1>"}, takes=1.5)
    assert outcome.ended_at == {"fetch": 1.5, "count": 3.0, "save": 6.5}


@pytest.mark.parametrize("error", [OSError("away"), OSError])
def test_an_error_stands_in_for_a_task_and_is_retried(error: Any) -> None:
    outcome = run(pages(retry=ONE), {"url": "a"}, replace={"fetch": error}, takes={"fetch": 3})
    assert isinstance(outcome.error, NodeFailedError)
    assert isinstance(outcome.failures["fetch"], OSError)
    assert outcome.attempts == {"fetch": 2}
    assert outcome.ended_at["fetch"] == 7.0
    with pytest.raises(NodeFailedError):
        _ = outcome.results


def test_failures_are_collected() -> None:
    replace = {"fetch": OSError("away")}
    outcome = run(pages(), {"url": "a"}, replace=replace, on_error="collect")
    assert isinstance(outcome.results["page"], NodeFailure)
    assert outcome.skipped["count"].because_of == ("fetch",)
    assert outcome.error is None


def test_a_function_stands_in_and_is_called_as_the_task() -> None:
    told = AsyncMock(return_value="<p>")
    outcome = run(pages(), {"url": "a"}, replace={"fetch": told, "save": lambda count: "-" * count})
    assert outcome.results["save"] == "---"
    told.assert_awaited_once_with(url="a")


def test_a_stand_in_gives_what_the_task_is_annotated_with() -> None:
    outcome = run(pages(), {"url": "a"}, replace={"fetch": ["no text"]})
    assert isinstance(outcome.failures["fetch"], AnnotationError)


class Row(TypedDict):
    name: str
    price: NotRequired[float]


class Tree(TypedDict):
    children: list["Tree"]  # noqa: UP037 - it is not there yet


@dataclass
class Point:
    x: int


FITTING: list[tuple[Any, Any]] = [
    (list[int], [1, True]),
    (list[float], [1, 2.5]),
    (list[dict[str, str]], [{"a": "b"}]),
    (dict[str, list[int | None]], {"a": [1, None]}),
    (tuple[int, ...], (1, 2)),
    (list[tuple[str, int]], [("a", 1)]),
    (Sequence[int], (1, 2)),
    (list[Row], [{"name": "a"}, {"name": "b", "price": 1}]),
    (Tree, {"children": [{"children": []}]}),
    (list[Literal["a", "b"]], ["a"]),
    (list[Point], [Point(1)]),
    (list[Annotated[int, Field(gt=0)]], [1]),
    (list[Any], ["a", 1]),
    (int | list[str], ["a"]),
]

UNFIT: list[tuple[Any, Any, str]] = [
    (list[int], [1, "a"], "1: Input should be a valid integer"),
    (list[int], [1, "2"], "1: Input should be a valid integer"),
    (list[dict[str, str]], [1, 2], "0: Input should be a valid dictionary"),
    (dict[str, list[int]], {"a": [None]}, "a.0: Input should be a valid integer"),
    (tuple[int, ...], (1, 2.5), "1: Input should be a valid integer"),
    (list[tuple[str, int]], [["a", 1]], "0: Input should be a valid tuple"),
    (Sequence[int], ("a",), "0: Input should be a valid integer"),
    (list[Row], [{"price": 1.0}], "0.name: Field required"),
    (Row, {"name": "a", "price": "1"}, "price: Input should be a valid number"),
    (Tree, {"children": [{"children": 0}]}, "children.0.children: Input should be a valid list"),
    (list[Annotated[int, Field(gt=0)]], [0], "0: Input should be greater than 0"),
    (int | list[str], [1], "int: Input should be a valid integer"),
]


def giving(annotation: Any) -> Any:
    def give() -> Any:
        raise AssertionError("it is replaced")

    give.__annotations__["return"] = annotation
    return give


def giving_items(annotation: Any) -> Any:
    def give() -> Any:
        yield

    give.__annotations__["return"] = Iterator[annotation]
    return give


@pytest.mark.parametrize("values", ["isolated", "encoded"])
def test_a_stand_in_that_fits_the_annotation_in_full_is_given(values: Any) -> None:
    builder, stand_ins = DAGBuilder(), dict[str, Any]()
    for number, (annotation, value) in enumerate(FITTING):
        builder.node(giving(annotation), name=f"give {number}")
        builder.node(giving_items(annotation), name=f"items {number}")
        stand_ins |= {f"give {number}": value, f"items {number}": [value]}
    results = run(builder.build(), replace=stand_ins, values=values).results
    for number, (_, value) in enumerate(FITTING):
        assert results[f"give {number}"] == value
        assert results[f"items {number}"] == [value]


@pytest.mark.parametrize(("annotation", "value", "why"), UNFIT)
def test_what_a_stand_in_contains_fits_the_annotation(
    annotation: Any, value: Any, why: str
) -> None:
    for task, stand_in in ((giving(annotation), value), (giving_items(annotation), [value])):
        dag = DAGBuilder().node(task, name="give").build()
        outcome = run(dag, replace={"give": stand_in})
        failure = outcome.failures["give"]
        assert isinstance(failure, AnnotationError)
        assert str(failure).startswith("give is annotated to ")
        assert str(failure).endswith(why)


def test_what_a_task_itself_gives_is_passed_on_as_in_a_run() -> None:
    def rows() -> list[int]:
        return ["a"]  # type: ignore[list-item]

    assert run(DAGBuilder().node(rows).build()).results == {"rows": ["a"]}


def test_timeouts_are_those_of_the_virtual_clock() -> None:
    outcome = run(pages(timeout=10), {"url": "a"}, replace={"fetch": ""}, takes={"fetch": 60})
    assert isinstance(outcome.failures["fetch"], NodeTimeoutError)
    assert outcome.ended_at["fetch"] == 10.0
    outcome = run(pages(), {"url": "a"}, replace={"fetch": ""}, takes=60, run_timeout=90)
    assert isinstance(outcome.error, RunTimeoutError)
    assert (outcome.order, outcome.seconds) == (["fetch"], 90.0)


def test_a_fallback_is_executed_too() -> None:
    def cached(url: str) -> str:
        return f"old {url}"

    outcome = run(
        pages(fallback=cached), {"url": "a"}, replace={"fetch": OSError()}, takes={"fetch": 1}
    )
    assert outcome.results["page"] == "old a"
    assert (outcome.attempts["fetch"], outcome.ended_at["fetch"]) == (2, 2.0)


def test_elements_of_maps_have_names_and_times_of_their_own() -> None:
    dag = DAGBuilder().node(abs, inputs=["numbers"], map_over="numbers").build()
    takes = {"abs": 2, "abs[1]": 7}
    outcome = run(dag, {"numbers": [-1, -2, -3]}, takes=takes, items=True, max_parallel=2)
    assert outcome.order == ["abs[0]", "abs[2]", "abs[1]"]
    assert outcome.started_at == {"abs[0]": 0.0, "abs": 0.0, "abs[1]": 0.0, "abs[2]": 2.0}
    assert outcome.ended_at["abs"] == 7.0
    assert outcome.pairs[0] == ("abs", Item(0, 1))
    assert outcome.results == {"abs": [1, 2, 3]}


def test_what_ends_at_the_same_moment_ends_as_it_began() -> None:
    dag = DAGBuilder().node(abs, inputs=["numbers"], map_over="numbers").build()
    outcome = run(dag, {"numbers": list(range(9))}, takes=1)
    assert outcome.order == [f"abs[{number}]" for number in range(9)]


def numbers(count: int) -> Iterator[int]:
    yield from range(count)


async def numbers_slowly(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(1.0)
        yield number


@pytest.mark.parametrize("task", [numbers, numbers_slowly])
@pytest.mark.parametrize("stand_in", [None, numbers, [0, 1, 2]])
def test_a_generator_takes_its_time_for_each_item(task: Any, stand_in: Any) -> None:
    dag = (
        DAGBuilder()
        .node(task, name="numbers")
        .node(lambda n: n * n, name="square", inputs=["numbers"], map_over="numbers")
        .build()
    )
    replace = {} if stand_in is None else {"numbers": stand_in}
    seconds = 1.0 if task is numbers_slowly and stand_in is None else 0.0
    outcome = run(dag, {"count": 3}, replace=replace, takes={"numbers": 1.0 - seconds})
    assert outcome.results["square"] == [0, 1, 4]
    assert [outcome.ended_at[f"square[{place}]"] for place in range(3)] == [1.0, 2.0, 3.0]


def test_what_threads_and_processes_do_is_done_on_the_clock() -> None:
    async def in_thread(square: int) -> int:
        return await asyncio.to_thread(square.__add__, 1)

    dag = DAGBuilder().node(in_process(square), inputs=["n"]).node(in_thread).build()
    assert run(dag, {"n": 3}).results == {"square": 9, "in_thread": 10}


def square(n: int) -> int:
    return n * n


class Settings:
    word = "set"


def test_tasks_have_what_their_broker_injects_and_stand_ins_need_none() -> None:
    broker = InMemoryBroker()

    @broker.task
    def greet(name: str, settings: Annotated[Settings, TaskiqDepends()]) -> str:
        return f"{settings.word} {name}"

    class Other(Settings):
        word = "other"

    broker.dependency_overrides[Settings] = Other
    dag = DAGBuilder().node(greet, name="one").node(greet, name="two").build()
    outcome = run(dag, {"name": "a"}, replace={"two": lambda name: name})
    assert outcome.results == {"one": "other a", "two": "a"}


def test_the_graph_is_left_as_it_is_and_caches_are_not_asked() -> None:
    dag = DAGBuilder().node(list, name="load", cache=Cache(ttl=60)).build()
    task = dag.get_node("load").task
    assert run(dag, replace={"load": [1]}).results == {"load": [1]}
    assert run(dag).results == {"load": []}
    assert dag.get_node("load").task is task
    assert dag.get_node("load").cache is not None


def test_a_journal_in_memory_and_encoded_values_are_used() -> None:
    replace = {"fetch": "<p>"}
    outcome = run(pages(), {"url": "a"}, replace=replace, journal=MemoryJournal(), values="encoded")
    assert outcome.results["count"] == 3


def test_edges_without_data_are_kept() -> None:
    dag = DAGBuilder().node(lambda: 1, name="a").node(lambda: 2, name="b").build()
    dag.add_edge("b", "a")
    assert run(dag).order == ["b", "a"]


async def test_a_run_may_be_made_while_an_event_loop_runs() -> None:
    assert run(pages(), {"url": "a"}, replace={"fetch": ""}).results["count"] == 0


def test_a_run_that_waits_for_what_will_not_come_names_its_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("taskiq_flow.testing.virtual_clock.LONGEST_RUN", 1000.0)

    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(HangingError, match="in flight: 'wait'; replace= tasks"):
        run(DAGBuilder().node(lambda: 1, name="load").node(wait).build())


def test_what_is_refused_before_a_run_is_raised() -> None:
    with pytest.raises(MissingInputError):
        run(pages())
    with pytest.raises(MissingNodeError, match="has no such node; it has 'fetch'"):
        run(pages(), {"url": "a"}, replace={"load": 1})
    with pytest.raises(MissingNodeError, match="no such node; did you mean 'fetch'"):
        run(pages(), {"url": "a"}, replace={"fetsh": 1})
    with pytest.raises(MissingNodeError, match="no such node; did you mean 'fetch'"):
        run(pages(), {"url": "a"}, takes={"fetsh": 1})
    with pytest.raises(MissingNodeError, match="an element; replace its node 'fetch'"):
        run(pages(), {"url": "a"}, replace={"fetch[0]": 1})
    with pytest.raises(MissingNodeError, match=r"takes= has 'count\[0\]'"):
        run(pages(), {"url": "a"}, takes={"count[0]": 1})
    with pytest.raises(ValueError, match="takes of 'fetch' is -1"):
        run(pages(), {"url": "a"}, takes={"fetch": -1})
    with pytest.raises(TypeError, match=r"task is called with \(url=\).*'uri'"):
        run(pages(), {"url": "a"}, replace={"fetch": lambda uri: uri})
    with pytest.raises(ValueError, match="without values='shared'"):
        run(pages(), {"url": "a"}, check_values=True)
    with pytest.raises(TypeError, match="ExecutionEngine has no argument 'retries'"):
        run(pages(), {"url": "a"}, retries=3)
    with pytest.raises(TypeError, match="dag is"):
        run(object())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="replace is"):
        run(pages(), {"url": "a"}, replace=["fetch"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"journal is 'runs\.db', for which"):
        run(pages(), {"url": "a"}, journal="runs.db")


def test_what_the_engine_makes_itself_is_made_as_it_does() -> None:
    pipeline = Pipeline(InMemoryBroker()).group([len, sorted])
    assert run(pipeline.dag, {"input": "abc"}).results["group"] == [3, ["a", "b", "c"]]
    with pytest.raises(ValueError, match="replace= has 'group', which the engine makes"):
        run(pipeline.dag, {"input": "abc"}, replace={"group": []})


@pytest.mark.parametrize("task", [numbers, numbers_slowly])
def test_the_items_of_a_stand_in_fit_the_annotation_of_the_generator(task: Any) -> None:
    dag = DAGBuilder().node(task, name="numbers").node(sum, inputs=["numbers"]).build()
    assert run(dag, {"count": 2}, replace={"numbers": ["7", 8]}).results["numbers"] == [7, 8]
    outcome = run(dag, {"count": 2}, replace={"numbers": lambda count: iter([1, "one"])})
    failure = outcome.failures["numbers"]
    assert isinstance(failure, AnnotationError)
    assert str(failure).startswith(
        "numbers is annotated to give items of int, and gave 'one' (str): "
    )


def test_items_of_the_generator_itself_and_of_one_without_annotation_are_as_they_are() -> None:
    def words(count: int) -> Iterator[int]:
        yield from ("a",) * count  # type: ignore[misc]

    def anything(count):  # type: ignore[no-untyped-def]
        yield count

    dag = DAGBuilder().node(words).node(anything).build()
    outcome = run(dag, {"count": 2}, replace={"anything": ["b"]})
    assert outcome.results == {"words": ["a", "a"], "anything": ["b"]}


def test_a_pipeline_is_run_with_its_options() -> None:
    broker, heard = InMemoryBroker(), list[str]()

    class Listener:
        def on_event(self, event: Event) -> None:
            heard.append(event.type)

    @broker.task
    def fetch_page(url: str) -> str:
        raise AssertionError("a test asks no server")

    @broker.task
    def place(page: str, context: Annotated[PipelineContext, TaskiqDepends()]) -> int:
        return context.step_index

    pipeline = Pipeline(broker, timeout=60, listeners=[Listener()]).with_context()
    pipeline.with_retry(policy=ONE).call_next(fetch_page).call_next(place)
    outcome = run(pipeline, {"input": "a"}, replace={"fetch_page": "<p>"}, takes=5)
    assert (outcome.results["place"], outcome.seconds) == (1, 10.0)
    assert heard[-1] == "run.ended"
    outcome = run(pipeline, {"input": "a"}, replace={"fetch_page": OSError("away")})
    assert outcome.attempts == {"fetch_page": 2}
    outcome = run(pipeline, {"input": "a"}, replace={"fetch_page": ""}, takes=50)
    assert isinstance(outcome.error, RunTimeoutError)
    outcome = run(pipeline, {"input": "a"}, replace={"fetch_page": ""}, takes=50, run_timeout=None)
    assert outcome.seconds == 100.0


def test_a_dataflow_pipeline_is_run_and_one_without_steps_is_refused() -> None:
    pipeline = DataflowPipeline(InMemoryBroker(), [fetch])
    pipeline.map(str.upper, "words", "loud")
    outcome = run(pipeline, {"url": "a", "words": ["ebb"]}, replace={"fetch": "<p>"})
    assert outcome.results == {"fetch": "<p>", "loud": ["EBB"]}
    with pytest.raises(PipelineError, match="has no steps"):
        run(Pipeline(InMemoryBroker()))
    with pytest.raises(TypeError, match="dag is the class Pipeline"):
        run(Pipeline)  # type: ignore[arg-type]


def test_orders_and_recordings_of_a_pipeline(tmp_path: Path) -> None:
    pipeline = Pipeline(InMemoryBroker()).call_next(str.split).group([len, sorted])
    checked = check_orders(pipeline, {"input": "b a"}, lambda outcome: outcome.error is None)
    assert checked.count == 2
    file = tmp_path / "run.json"
    recorded = asyncio.run(record(file, InMemoryBroker(), pipeline, {"input": "b a"}))
    assert recorded["group"] == [2, ["a", "b"]]
    assert replay(file, pipeline).results == recorded
