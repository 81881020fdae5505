"""What users' tests are told of any graph is so: times, orders, recordings."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from taskiq import InMemoryBroker

from property_tests.model import GraphSpec, evaluate
from property_tests.stage import Stage
from property_tests.strategies import graphs
from taskiq_flow.errors import RunFailedError
from taskiq_flow.testing import RunOutcome, check_orders, record, replay, run, run_virtually

FEWER = settings(max_examples=settings().max_examples // 10)
"""Each example is a run of several orders, or of two engines."""


def ends(graph: GraphSpec) -> dict[str, float]:
    """When each node that completes does so, where nothing takes time but its task."""
    known = evaluate(graph).results
    found: dict[str, float] = {}
    for node in graph.in_order:
        if node.name in known:
            before = [found[other.name] for other in graph.waits_for[node.name]]
            found[node.name] = max(before, default=0.0) + node.seconds
    return found


@FEWER
@given(graphs(varied=True, failing=True))
def test_any_graph_is_run_as_one_evaluated_in_sequence(graph: GraphSpec) -> None:
    expected = evaluate(graph)
    outcome = run(Stage(graph).dag, graph.inputs, on_error="continue")
    assert dict(outcome.pairs) == expected.results
    assert outcome.failures.keys() == expected.failures
    assert outcome.skipped.keys() == expected.skipped.keys()
    assert isinstance(outcome.error, RunFailedError) == bool(expected.failures)
    assert {name: outcome.ended_at[name] for name in expected.results} == ends(graph)


def count_orders(graph: GraphSpec) -> int:
    """In how many orders the nodes of a graph may complete: dynamic programming over sets."""
    names = frozenset(node.name for node in graph)
    before = {name: {n.name for n in nodes} for name, nodes in graph.waits_for.items()}

    @cache
    def orders(done: frozenset[str]) -> int:
        ready = [name for name in names - done if before[name] <= done]
        return sum(orders(done | {name}) for name in ready) if ready else 1

    return orders(frozenset())


@FEWER
@given(graphs(most_nodes=4))
def test_each_order_of_a_graph_is_run_once_and_gives_the_same(graph: GraphSpec) -> None:
    expected, seen = evaluate(graph), set[tuple[str, ...]]()

    def check(outcome: RunOutcome) -> None:
        assert outcome.results == expected.values
        assert tuple(outcome.order) not in seen
        seen.add(tuple(outcome.order))

    checked = check_orders(Stage(graph).dag, graph.inputs, check)
    assert checked.all
    assert checked.count == len(seen) == count_orders(graph)


@FEWER
@given(graphs(most_nodes=5), st.data())
def test_the_order_that_is_shown_fails_again(graph: GraphSpec, data: st.DataObject) -> None:
    names = [node.name for node in graph]
    if len(names) < 2:
        return
    first, second = data.draw(st.permutations(names))[:2]

    def check(outcome: RunOutcome) -> bool:
        return outcome.order.index(first) < outcome.order.index(second)

    dag, behind = Stage(graph).dag, graph.behind(first)
    order: list[str] | None = None
    try:
        check_orders(dag, graph.inputs, check, most=720)
    except AssertionError as error:
        order = vars(error)["order"]
    assert (order is None) == (second in behind)
    if order is not None:
        try:
            check_orders(dag, graph.inputs, check, order=order)
        except AssertionError as error:
            assert vars(error)["order"] == order  # noqa: PT017 - another error is another failure
        else:
            raise AssertionError("the order that was shown does not fail")


@FEWER
@given(graphs(varied=True, failing=True))
def test_a_replay_goes_as_the_recorded_run(graph: GraphSpec) -> None:
    stage = Stage(graph, broker=InMemoryBroker())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        try:
            results = run_virtually(
                record(path, stage.broker, stage.dag, graph.inputs, on_error="continue")
            )
        except RunFailedError as error:
            results = dict(error.results)
        recorded = dict(stage.ended)
        stage.forget()
        outcome = replay(path, stage.dag, on_error="continue")
    assert dict(outcome.pairs) == evaluate(graph).results
    assert results == {} or results.keys() >= evaluate(graph).values.keys()
    assert {n: t for n, t in outcome.ended_at.items() if n in recorded} == recorded
    assert not stage.executions
