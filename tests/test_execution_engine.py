"""The engine's contract: what goes in, what comes out, and what is refused before it starts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from taskiq import InMemoryBroker, ZeroMQBroker

from taskiq_flow import (
    DAG,
    ConfigurationError,
    CycleError,
    DAGBuilder,
    DAGNode,
    ExecutionEngine,
    InputConflictError,
    Item,
    MissingInputError,
    MissingNodeError,
    NodeFailedError,
    NodeFailure,
    NodeSkipped,
    OutputShapeError,
    RunFailedError,
    UnusedInputWarning,
)


def load(source: str) -> list[str]:
    return source.split()


def count(raw: list[str]) -> int:
    return len(raw)


def shout(raw: list[str]) -> list[str]:
    return [word.upper() for word in raw]


@pytest.fixture
def words() -> DAG:
    builder = DAGBuilder()
    builder.node(load, output="raw").node(count, output="words").node(shout, output="loud")
    return builder.build()


async def pairs_of(engine: ExecutionEngine, **kwargs: Any) -> list[tuple[str, Any]]:
    return [pair async for pair in engine.execute_async(**kwargs)]


async def test_the_stream_yields_each_node_once_with_its_result(
    broker: InMemoryBroker, words: DAG
) -> None:
    pairs = await pairs_of(ExecutionEngine(broker, words), inputs={"source": "a b c"})
    assert pairs[0] == ("load", ["a", "b", "c"])
    assert sorted(pairs[1:]) == [("count", 3), ("shout", ["A", "B", "C"])]


async def test_execute_returns_all_output_keys(broker: InMemoryBroker, words: DAG) -> None:
    results = await ExecutionEngine(broker, words).execute(inputs={"source": "a b"})
    assert results == {"raw": ["a", "b"], "words": 2, "loud": ["A", "B"]}


async def test_an_engine_can_be_used_again_and_keeps_nothing(
    broker: InMemoryBroker, words: DAG
) -> None:
    engine = ExecutionEngine(broker, words)
    before = dict(vars(engine)), words.nodes, words.edges
    first = await engine.execute({"source": "a"})
    second = await engine.execute({"source": "a b"})
    assert (first["words"], second["words"]) == (1, 2)
    assert (dict(vars(engine)), words.nodes, words.edges) == before
    assert not engine._in_progress


async def test_an_empty_graph_ends_at_once(broker: InMemoryBroker) -> None:
    assert await ExecutionEngine(broker, DAG()).execute() == {}


async def test_several_outputs_are_split_and_streamed_whole(broker: InMemoryBroker) -> None:
    def halves(numbers: list[int]) -> tuple[list[int], list[int]]:
        return numbers[:2], numbers[2:]

    builder = DAGBuilder()
    builder.node(halves, outputs=["low", "high"])
    builder.node(sum, output="total", inputs=["high"])
    engine = ExecutionEngine(broker, builder.build())
    inputs = {"numbers": [1, 2, 3, 4]}
    assert await pairs_of(engine, inputs=inputs) == [("halves", ([1, 2], [3, 4])), ("sum", 7)]
    assert await engine.execute(inputs) == {"low": [1, 2], "high": [3, 4], "total": 7}


async def test_a_result_of_the_wrong_shape_fails_the_node(broker: InMemoryBroker) -> None:
    dag = DAGBuilder().node(lambda: (1, 2, 3), outputs=["a", "b"], name="pair").build()
    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(broker, dag).execute()
    assert isinstance(caught.value.__cause__, OutputShapeError)
    assert "'pair' declares 2 outputs (a, b) and returned a tuple of 3" in str(caught.value)


async def test_a_mapping_that_cannot_be_read_fails_the_node(broker: InMemoryBroker) -> None:
    class Lazy(dict[str, int]):
        def __getitem__(self, key: str) -> int:
            raise LookupError(key)

    dag = DAGBuilder().node(lambda: Lazy(a=1, b=2), outputs=["a", "b"], name="lazy").build()
    with pytest.raises(NodeFailedError, match="LookupError: a"):
        await ExecutionEngine(broker, dag).execute()


async def test_an_exception_that_cannot_tell_what_it_is_fails_the_node(
    broker: InMemoryBroker,
) -> None:
    class SpeechlessError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    async def bad() -> None:
        raise SpeechlessError

    with pytest.raises(NodeFailedError, match="SpeechlessError"):
        await ExecutionEngine(broker, DAGBuilder().node(bad).build()).execute()


class TestPruning:
    async def test_only_what_the_outputs_need_is_run(
        self, broker: InMemoryBroker, words: DAG
    ) -> None:
        engine = ExecutionEngine(broker, words)
        pairs = await pairs_of(engine, inputs={"source": "a b"}, outputs=["words"])
        assert [name for name, _ in pairs] == ["load", "count"]
        assert await engine.execute({"source": "a"}, outputs=["raw"]) == {"raw": ["a"]}

    async def test_inputs_of_nodes_that_do_not_run_are_not_needed(
        self, broker: InMemoryBroker
    ) -> None:
        dag = DAGBuilder().node(load, output="raw").node(count, output="words").build()
        dag.add_node(DAGNode(lambda other: other, output="copy", name="copy"))
        results = await ExecutionEngine(broker, dag).execute({"source": "a"}, outputs=["words"])
        assert results == {"raw": ["a"], "words": 1}

    async def test_an_output_that_nobody_gives_is_an_error(
        self, broker: InMemoryBroker, words: DAG
    ) -> None:
        with pytest.raises(MissingNodeError, match="no node of the graph produces 'tags'"):
            await ExecutionEngine(broker, words).execute({"source": "a"}, outputs=["tags"])


class TestBadInput:
    """Refused before any task is sent."""

    @pytest.fixture(autouse=True)
    def nothing_may_be_sent(self, broker: InMemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(broker, "kick", pytest.fail)

    async def test_all_missing_inputs_are_named(self, broker: InMemoryBroker) -> None:
        dag = DAGBuilder().node(load, output="raw").node(lambda x, y: x, output="z", name="z")
        with pytest.raises(MissingInputError) as caught:
            await ExecutionEngine(broker, dag.build()).execute({"x": 1})
        assert caught.value.keys == ["source", "y"]
        assert "node 'load' needs 'source', which no node produces" in str(caught.value)
        assert "add a node with output='y'" in str(caught.value)

    async def test_an_input_that_a_node_produces_is_a_conflict(
        self, broker: InMemoryBroker, words: DAG
    ) -> None:
        with pytest.raises(InputConflictError, match=r"'raw' \(node 'load'\)") as caught:
            await ExecutionEngine(broker, words).execute({"source": "a", "raw": []})
        assert caught.value.keys == ["raw"]

    async def test_a_graph_with_a_cycle_is_refused(self, broker: InMemoryBroker) -> None:
        dag = DAG()
        dag.add_node(DAGNode(count, output="a", inputs=["b"], name="first"))
        dag.add_node(DAGNode(count, output="b", inputs=["a"], name="second"))
        with pytest.raises(CycleError):
            await ExecutionEngine(broker, dag).execute()

    async def test_a_broker_without_results_is_refused(self) -> None:
        broker = ZeroMQBroker.__new__(ZeroMQBroker)  # its library is not needed to be refused
        super(ZeroMQBroker, broker).__init__()
        dag = DAGBuilder().node(broker.task(load), output="raw").build()
        with pytest.raises(ConfigurationError, match="with_result_backend"):
            await ExecutionEngine(broker, dag).execute({"source": "a"})

    async def test_a_task_of_another_broker_is_refused(self, broker: InMemoryBroker) -> None:
        task = InMemoryBroker().task(task_name="elsewhere")(lambda: 1)
        dag = DAGBuilder().node(task).build()
        with pytest.raises(ConfigurationError, match="'elsewhere' of node 'elsewhere' belongs to"):
            await ExecutionEngine(broker, dag).execute()

    @pytest.mark.parametrize("limit", [0, -1, 1.5, "2", True])
    def test_max_parallel_is_a_positive_integer_or_none(
        self, broker: InMemoryBroker, limit: Any
    ) -> None:
        with pytest.raises(ValueError, match="max_parallel is "):
            ExecutionEngine(broker, DAG(), max_parallel=limit)

    def test_on_error_is_one_of_three(self, broker: InMemoryBroker) -> None:
        with pytest.raises(ValueError, match="on_error is 'ignore'"):
            ExecutionEngine(broker, DAG(), on_error="ignore")  # type: ignore[arg-type]


async def test_an_input_that_nobody_takes_is_a_warning(broker: InMemoryBroker, words: DAG) -> None:
    with pytest.warns(UnusedInputWarning, match="'sauce', which no node takes"):
        await ExecutionEngine(broker, words).execute({"source": "a", "sauce": "b"})


async def test_an_optional_input_is_used_if_it_is_given(broker: InMemoryBroker) -> None:
    def scale(number: int, factor: int = 10) -> int:
        return number * factor

    engine = ExecutionEngine(broker, DAGBuilder().node(scale).build())
    assert await engine.execute({"number": 2}) == {"scale": 20}
    assert await engine.execute({"number": 2, "factor": 3}) == {"scale": 6}


class TestOnStepComplete:
    async def test_it_is_called_once_per_pair_in_the_streams_order(
        self, broker: InMemoryBroker, words: DAG
    ) -> None:
        steps: list[tuple[str, Any]] = []

        async def on_step(task_name: str, result: Any) -> None:
            await asyncio.sleep(0)
            steps.append((task_name, result))

        engine = ExecutionEngine(broker, words, on_step_complete=on_step)
        pairs = await pairs_of(engine, inputs={"source": "a b"})
        assert steps == pairs
        steps.clear()
        await engine.execute({"source": "a b"})
        assert sorted(steps) == sorted(pairs)

    async def test_what_it_raises_ends_the_run_and_reaches_the_caller(
        self, broker: InMemoryBroker, words: DAG
    ) -> None:
        problem = LookupError("no such step")

        def on_step(task_name: str, result: Any) -> None:
            raise problem

        with pytest.raises(LookupError) as caught:
            await ExecutionEngine(broker, words, on_step_complete=on_step).execute({"source": "a"})
        assert caught.value is problem


def failing_graph() -> DAG:
    """root → bad → behind → further, root → good, alone; join waits for good and behind."""

    def bad(root: int) -> int:
        raise ValueError("spoilt")

    builder = DAGBuilder()
    builder.node(lambda: 1, name="root").node(bad)
    builder.node(lambda bad: bad, name="behind").node(lambda behind: behind, name="further")
    builder.node(lambda root: root + 1, name="good").node(lambda: 7, name="alone")
    builder.node(lambda good, behind: good, name="join")
    return builder.build()


class TestFailures:
    @pytest.mark.usefixtures("plain_task_ids")
    async def test_raise_ends_the_run_with_the_tasks_own_exception(
        self, broker: InMemoryBroker
    ) -> None:
        with pytest.raises(NodeFailedError) as caught:
            await ExecutionEngine(broker, failing_graph(), max_parallel=1).execute(run_id="r1")
        error = caught.value
        assert isinstance(error.__cause__, ValueError)
        assert (error.task_name, error.task_id, error.attempts) == ("bad", "r1:bad:1", 1)
        assert error.results["root"] == 1
        assert error.failures == {"bad": error.__cause__}
        assert error.skipped == ["behind", "further", "join"]
        assert "node 'bad' failed in attempt 1 with ValueError: spoilt" in str(error)

    async def test_raise_yields_what_had_arrived_first(self, broker: InMemoryBroker) -> None:
        seen = []
        with pytest.raises(NodeFailedError) as caught:
            async for name, _ in ExecutionEngine(broker, failing_graph()).execute_async():
                seen.append(name)
                await asyncio.sleep(0.01)
        assert set(seen) == set(caught.value.results)
        assert {"root", "alone"} <= set(seen)

    async def test_continue_runs_all_that_does_not_depend_on_a_failure(
        self, broker: InMemoryBroker
    ) -> None:
        seen = {}
        with pytest.raises(RunFailedError) as caught:
            engine = ExecutionEngine(broker, failing_graph(), on_error="continue")
            async for name, result in engine.execute_async():
                seen[name] = result
        assert seen == caught.value.results == {"root": 1, "good": 2, "alone": 7}
        assert list(caught.value.failures) == ["bad"]
        assert caught.value.skipped == ["behind", "further", "join"]

    async def test_collect_gives_failures_and_skips_as_values(self, broker: InMemoryBroker) -> None:
        engine = ExecutionEngine(broker, failing_graph(), on_error="collect")
        pairs = await pairs_of(engine)
        results = dict(pairs)
        assert len(pairs) == len(results) == 7
        assert isinstance(results["bad"], NodeFailure)
        assert isinstance(results["bad"].error, ValueError)
        for name, because_of in (
            ("behind", ("bad",)),
            ("further", ("behind",)),
            ("join", ("behind",)),
        ):
            assert isinstance(results[name], NodeSkipped)
            assert results[name].because_of == because_of
        order = [name for name, _ in pairs]
        for before, after in ((dep.task_name, n.task_name) for dep, n in failing_graph().edges):
            assert order.index(before) < order.index(after)

    async def test_collect_in_execute_puts_them_under_their_keys(
        self, broker: InMemoryBroker
    ) -> None:
        dag = DAGBuilder().node(lambda: 1 // 0, outputs=["a", "b"], name="divide").build()
        results = await ExecutionEngine(broker, dag, on_error="collect").execute()
        assert isinstance(results["a"], NodeFailure)
        assert results["a"] is results["b"]


async def test_an_item_that_a_task_returns_is_its_result() -> None:
    def each(words: list[str]) -> Iterator[str]:
        yield from words

    builder = DAGBuilder().node(lambda: Item(0, "a"), name="last").node(each)
    builder.node(len, name="size", inputs=["each"], map_over="each")
    engine = ExecutionEngine(InMemoryBroker(), builder.build())
    inputs = {"words": ["ab", "c"]}
    expected = {"last": Item(0, "a"), "each": ["ab", "c"], "size": [2, 1]}
    assert await engine.execute(inputs) == expected
    assert await engine.start(inputs, items=True) == expected
