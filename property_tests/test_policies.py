"""Any failures, retries, limits in time, fallbacks, joins and conditions: the model's outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from property_tests.policies import (
    FALLBACK,
    Completed,
    Failed,
    Outcome,
    PolicyGraph,
    PolicyNode,
    behind_failures,
    evaluate,
    executions,
    story,
)
from property_tests.policy_stage import (
    Attempt,
    PolicyStage,
    check_error,
    check_value,
    without_suffix,
)
from property_tests.policy_strategies import policy_graphs
from property_tests.strategies import DELAYS, LIMITS
from taskiq_flow import (
    NodeCompleted,
    NodeFailed,
    NodeFailedError,
    NodeSkipped,
    RunError,
)
from taskiq_flow.engine.run_spec import OnError
from tests.virtual_clock import run_virtually

GOING_ON: st.SearchStrategy[OnError] = st.sampled_from(["continue", "collect"])


class Seen:
    """What a reader that takes its time for each pair gets of a run."""

    def __init__(self, graph: PolicyGraph) -> None:
        self.stage = PolicyStage(graph)
        self.pairs: list[tuple[str, Any]] = []
        self.error: RunError | None = None

    async def read(self, on_error: OnError, limit: int | None, reading: int) -> None:
        engine = self.stage.engine(limit, on_error=on_error)
        try:
            async for pair in engine.execute_async(self.stage.graph.inputs, run_id="run"):
                self.pairs.append(pair)
                await asyncio.sleep(reading)
        except RunError as error:
            self.error = error
        self.stage.check_nothing_is_left()


def _run(graph: PolicyGraph, on_error: OnError, limit: int | None, reading: int) -> Seen:
    async def main() -> Seen:
        seen = Seen(graph)
        await seen.read(on_error, limit, reading)
        return seen

    return run_virtually(main())


@given(policy_graphs(), GOING_ON, LIMITS, DELAYS)
def test_a_run_gives_the_outcomes_of_a_sequential_evaluation(
    graph: PolicyGraph, on_error: OnError, limit: int | None, reading: int
) -> None:
    seen, outcomes = _run(graph, on_error, limit, reading), evaluate(graph)
    if on_error == "collect":
        _check_collected(seen, outcomes)
    else:
        _check_continued(seen, outcomes)
    stage = seen.stage
    assert +stage.executions == executions(graph, outcomes)
    stage.check_given()
    for node in graph:
        assert stage.story(node.name) == story(node, outcomes[node.name])
        ids = [without_suffix(attempt.task_id) for attempt in stage.attempts(node.name)]
        assert ids == [f"run:{node.name}:{number + 1}" for number in range(len(ids))]
    assert stage.fates.most_in_flight <= (limit or len(graph.nodes))
    _check_each_attempt_is_sent_when_its_time_has_come(graph, stage, limit)


def _check_collected(seen: Seen, outcomes: Mapping[str, Outcome]) -> None:
    assert seen.error is None
    assert len(seen.pairs) == len(outcomes)
    for name, value in seen.pairs:
        outcome = outcomes[name]
        check_value(value, outcome)
        if isinstance(outcome, Failed):
            assert value.attempts == outcome.attempts


def _check_continued(seen: Seen, outcomes: Mapping[str, Outcome]) -> None:
    results = {name: o.result for name, o in outcomes.items() if isinstance(o, Completed)}
    assert dict(seen.pairs) == results
    assert len(seen.pairs) == len(results)
    check_error(seen.error, outcomes)


@given(policy_graphs(), LIMITS, DELAYS)
def test_raise_ends_the_run_at_a_failure_of_the_models_and_only_then(
    graph: PolicyGraph, limit: int | None, reading: int
) -> None:
    seen, outcomes = _run(graph, "raise", limit, reading), evaluate(graph)
    failed = {name for name, outcome in outcomes.items() if isinstance(outcome, Failed)}
    if not failed:
        assert seen.error is None
        return
    error, stage = seen.error, seen.stage
    assert isinstance(error, NodeFailedError)
    outcome = outcomes[error.task_name]
    assert isinstance(outcome, Failed)
    assert (type(error.__cause__), error.attempts) == (outcome.error, outcome.attempts)
    assert error.failures == {error.task_name: error.__cause__}
    assert _surely_behind(graph, error.task_name) <= {*error.skipped} <= behind_failures(outcomes)
    for name, result in seen.pairs:
        assert outcomes[name] == replace(_completed(outcomes[name]), result=result)
    over = max(event.at for event in stage.events if isinstance(event, NodeFailed))
    assert all(start <= over for start in stage.started.values())
    assert stage.executions <= executions(graph, outcomes)


def _completed(outcome: Outcome) -> Completed:
    assert isinstance(outcome, Completed)
    return outcome


def _surely_behind(graph: PolicyGraph, failed: str) -> set[str]:
    """The nodes that cannot run for a failure, whatever becomes of all others."""
    behind = {failed}
    for node in sorted(graph, key=lambda node: node.index):
        if node.join != "any" and any(b.name in behind for b in graph.waits_for[node.name]):
            behind.add(node.name)
    return behind - {failed}


def _check_each_attempt_is_sent_when_its_time_has_come(
    graph: PolicyGraph, stage: PolicyStage, limit: int | None
) -> None:
    """Unless the limit is reached."""
    spans = [(attempt.sent, attempt.ended) for attempt in stage.fates.attempts]
    for node in graph:
        if node.condition is not None and node.condition.verdict == "raises":
            continue
        moments = _moments(graph, stage, node)
        for attempt, ready in moments:
            if limit is None:
                assert attempt.sent == ready
            for halves in range(int(2 * ready), int(2 * attempt.sent)):
                assert sum(start <= halves / 2 < end for start, end in spans) == limit
        if moments:
            assert moments[-1][0].ended == _ended_at(stage, node.name)


def _moments(
    graph: PolicyGraph, stage: PolicyStage, node: PolicyNode
) -> list[tuple[Attempt, float]]:
    """The attempts of a node and of its fallback, and when it was time for each."""
    attempts = stage.attempts(node.name)
    if not attempts:
        return []
    ready = [_ready(graph, stage, node)]
    for number, attempt in enumerate(attempts[:-1], start=1):
        ready.append(attempt.ended + node.pause(number))
    fallback = stage.attempts(node.name + FALLBACK)
    ready += [attempts[-1].ended for _ in fallback]
    return list(zip([*attempts, *fallback], ready, strict=True))


def _ready(graph: PolicyGraph, stage: PolicyStage, node: PolicyNode) -> float:
    before = [other.name for other in graph.waits_for[node.name]]
    if node.join != "any":
        return max((_ended_at(stage, name) for name in before), default=0)
    completed = [e for e in stage.events if isinstance(e, NodeCompleted) and e.task_name in before]
    return min((event.at for event in completed), default=0)


def _ended_at(stage: PolicyStage, name: str) -> float:
    kinds = (NodeCompleted, NodeFailed, NodeSkipped)
    (end,) = (e.at for e in stage.events if isinstance(e, kinds) and e.task_name == name)
    return end
