"""Nodes that start when all that they wait for has ended, and what they are told of failures."""

from __future__ import annotations

from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    BindingError,
    DAGBuilder,
    ExecutionEngine,
    Failure,
    MissingInputError,
    NodeSkipped,
    RunFailedError,
)


def fail() -> int:
    raise ValueError("no such page")


def report(good: Any = None, bad: Any = "missing", failures: Any = ()) -> tuple[Any, Any, Any]:
    return good, bad, failures


INPUTS = {"good": "good", "bad": "bad", "failures": "bad.failures"}


async def test_it_starts_with_defaults_for_what_failed_and_is_told_why(
    broker: InMemoryBroker,
) -> None:
    dag = DAGBuilder().node(lambda: 1, name="good").node(fail, name="bad")
    dag.node(report, inputs=INPUTS, join="ended")
    engine = ExecutionEngine(broker, dag.build(), on_error="continue")
    with pytest.raises(RunFailedError) as caught:
        await engine.execute()
    expected = Failure("bad", None, "ValueError", "no such page")
    assert caught.value.results == {"good": 1, "report": (1, "missing", [expected])}
    assert caught.value.skipped == []


async def test_without_failures_it_is_given_an_empty_list(broker: InMemoryBroker) -> None:
    dag = DAGBuilder().node(lambda: 1, name="good").node(lambda: 2, name="bad")
    dag.node(report, inputs=INPUTS, join="ended")
    results = await ExecutionEngine(broker, dag.build()).execute()
    assert results == {"good": 1, "bad": 2, "report": (1, 2, [])}


async def test_what_was_skipped_is_missing_and_no_failure(broker: InMemoryBroker) -> None:
    dag = DAGBuilder().node(lambda: 1, name="good")
    dag.node(lambda: 2, name="bad", when=lambda: False)
    dag.node(report, inputs=INPUTS, join="ended")
    results = await ExecutionEngine(broker, dag.build(), on_error="collect").execute()
    assert isinstance(results["bad"], NodeSkipped)
    assert results["report"] == (1, "missing", [])


async def test_one_behind_a_node_that_a_failure_skipped_runs(broker: InMemoryBroker) -> None:
    dag = DAGBuilder().node(fail, name="bad").node(lambda bad: bad, name="between")
    dag.node(lambda between="none": between, name="last", join="ended")
    results = await ExecutionEngine(broker, dag.build(), on_error="collect").execute()
    assert results["last"] == "none"


async def test_failures_alone_can_be_waited_for(broker: InMemoryBroker) -> None:
    dag = DAGBuilder().node(fail, name="bad")
    dag.node(len, name="count", inputs=["bad.failures"], join="ended")
    results = await ExecutionEngine(broker, dag.build(), on_error="collect").execute()
    assert results["count"] == 1


@pytest.mark.parametrize("join", ["all", "any", "none_failed"])
def test_failures_are_refused_by_a_node_that_would_not_run_with_any(join: Any) -> None:
    dag = DAGBuilder().node(fail, name="bad")
    with pytest.raises(BindingError, match="give it join='ended'"):
        dag.node(lambda failures: 1, name="n", inputs=["bad.failures"], join=join).build()


def test_a_parameter_without_a_default_is_refused() -> None:
    dag = DAGBuilder().node(fail, name="bad")
    with pytest.raises(BindingError, match="may start without 'bad'"):
        dag.node(lambda bad: 1, name="n", join="ended").build()


async def test_a_key_with_that_ending_and_no_such_node_is_an_input(broker: InMemoryBroker) -> None:
    dag = DAGBuilder().node(len, name="n", inputs=["x.failures"]).build()
    assert await ExecutionEngine(broker, dag).execute({"x.failures": [1]}) == {"n": 1}


class TestErrorsOfFallbacks:
    async def test_a_fallback_is_given_the_error(self, broker: InMemoryBroker) -> None:
        def explain(error: Exception, page: int) -> str:
            return f"{page}: {error}"

        def load(page: int) -> str:
            raise ValueError("no such page")

        dag = DAGBuilder().node(load, fallback=explain).build()
        assert await ExecutionEngine(broker, dag).execute({"page": 3}) == {
            "load": "3: no such page"
        }

    @pytest.mark.parametrize("inputs", [None, ["page"], {"page": "page"}])
    @pytest.mark.parametrize("is_mapped", [False, True])
    async def test_a_fallback_is_given_the_error_also_if_it_has_a_default_for_it(
        self, broker: InMemoryBroker, inputs: Any, is_mapped: bool
    ) -> None:
        def explain(page: int, error: Exception | None = None) -> str:
            return f"{page}: {error}"

        def load(page: int) -> str:
            raise ValueError("no such page")

        if is_mapped and inputs is None:
            inputs = {"page": "page"}
        dag = (
            DAGBuilder()
            .node(load, inputs=inputs, map_over="page" if is_mapped else None, fallback=explain)
            .build()
        )
        results = await ExecutionEngine(broker, dag).execute({"page": [3] if is_mapped else 3})
        assert results == {"load": ["3: no such page"] if is_mapped else "3: no such page"}

    async def test_a_key_of_that_name_is_not_the_error(self, broker: InMemoryBroker) -> None:
        def load(error: int) -> int:
            raise ValueError

        dag = DAGBuilder().node(load, fallback=lambda error: error + 1).build()
        assert await ExecutionEngine(broker, dag).execute({"error": 1}) == {"load": 2}


class TestOrder:
    async def order_of(self, broker: InMemoryBroker, order: Any) -> list[str]:
        dag = DAGBuilder()
        for number in range(3):
            dag.node(lambda: 0, name=f"read{number}", expected_seconds=5)
            dag.node(lambda x: x, name=f"parse{number}", inputs=[f"read{number}"])
            dag.node(lambda x: x, name=f"store{number}", inputs=[f"parse{number}"])
        engine = ExecutionEngine(broker, dag.build(), max_parallel=1, order=order)
        return [name async for name, _ in engine.execute_async()]

    async def test_depth_first_ends_what_it_has_begun(self, broker: InMemoryBroker) -> None:
        assert await self.order_of(broker, "depth_first") == [
            f"{what}{n}" for n in range(3) for what in ("read", "parse", "store")
        ]

    async def test_critical_path_begins_the_longest_first(self, broker: InMemoryBroker) -> None:
        names = await self.order_of(broker, "critical_path")
        assert names[:3] == ["read0", "read1", "read2"]

    def test_any_other_order_is_refused(self, broker: InMemoryBroker) -> None:
        with pytest.raises(ValueError, match="order is 'breadth_first'; give one of"):
            ExecutionEngine(broker, DAGBuilder().build(), order="breadth_first")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("bda.failures", "no node is called 'bda'; did you mean 'bad'"),
        ("somewhere.failures", "no node is called 'somewhere'"),
        ("godo", "did you mean 'good'"),
    ],
)
@pytest.mark.parametrize("join", ["ended", "any", "none_failed"])
async def test_a_key_that_no_node_gives_is_an_input_of_the_run_whatever_the_join_rule(
    broker: InMemoryBroker, key: str, remedy: str, join: Any
) -> None:
    dag = DAGBuilder().node(lambda: 1, name="good").node(fail, name="bad")
    dag.node(report, inputs={"good": "good", "bad": key}, join=join)
    with pytest.raises(MissingInputError, match=f"needs '{key}', .*{remedy}"):
        await ExecutionEngine(broker, dag.build(), on_error="collect").execute()
    results = await ExecutionEngine(broker, dag.build(), on_error="collect").execute({key: 7})
    assert results["report"][1] == 7
