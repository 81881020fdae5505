"""Views of real runs: a copy at any event goes on to the same; each node is as its events say."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from taskiq import InMemoryBroker

from property_tests.elements import Graph, Stage, graphs
from property_tests.policies import PolicyGraph
from property_tests.policy_strategies import policy_graphs
from property_tests.resuming import SETTINGS, STOPPED, WHOLE, Saga, Session, Setting
from property_tests.strategies import LIMITS
from property_tests.test_elements import GIVEN_AS, POLICIES, GivenAs, Seen
from taskiq_flow import (
    ElementsKnown,
    Event,
    ExecutionEngine,
    NodeBegan,
    NodeCompleted,
    NodeFailed,
    NodeFellBack,
    NodeRetried,
    NodeSkipped,
    NodeStarted,
    RunError,
    RunFinished,
    RunReport,
    RunStarted,
    RunView,
)
from taskiq_flow.engine.run_spec import OnError
from taskiq_flow.views.critical_path import critical_path
from tests.recording import Recorder
from tests.virtual_clock import run_virtually, virtual_loop, virtually

ENDS = {NodeCompleted: "completed", NodeFailed: "failed", NodeSkipped: "skipped"}
SENDINGS = (NodeStarted, NodeRetried, NodeFellBack)


def fold(events: Iterable[Event], view: RunView | None = None) -> RunView:
    view = RunView() if view is None else view
    for event in events:
        view.apply(event)
    return view


def check(events: Sequence[Event], cuts: Iterable[int]) -> RunView:
    """What holds of the events of one session, and of their view."""
    check_order(events)
    view = fold(events)
    for cut in cuts:
        snapshot = copy.deepcopy(fold(events[: cut % (len(events) + 1)]))
        assert fold(events, snapshot) == view  # what it has had is ignored
    check_states(view, events)
    before_the_end = fold(events[:-1])
    if view.status == "completed":
        assert all(node.is_ended for node in before_the_end.nodes.values())
    check_times(view)
    return view


def check_order(events: Sequence[Event]) -> None:
    first = events[0].seq
    assert [event.seq for event in events] == [*range(first, first + len(events))]
    assert [type(e) for e in events if isinstance(e, RunStarted | RunFinished)] == [
        *(RunStarted, RunFinished)
    ]
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunFinished)
    assert [event.at for event in events] == sorted(event.at for event in events)
    sent: dict[str, int] = {}
    begun: dict[str, int] = {}
    ended: set[str] = set()
    for event in events:
        if isinstance(event, RunStarted | RunFinished | ElementsKnown):
            continue
        assert not hasattr(event, "missed")
        name = event.task_name
        assert name not in ended
        if isinstance(event, SENDINGS):
            assert event.attempt > sent.get(name, 0)
            sent[name] = event.attempt
        elif isinstance(event, NodeBegan):
            assert event.attempt == sent[name] > begun.get(name, 0)
            begun[name] = event.attempt
        else:
            ended.add(name)
            if event.attempt and name in begun:
                assert event.attempt >= begun[name]


def check_states(view: RunView, events: Sequence[Event]) -> None:
    """Each node is in the state that its last event says."""
    started, finished = events[0], events[-1]
    assert isinstance(started, RunStarted)
    assert isinstance(finished, RunFinished)
    assert (view.status, view.seq, view.missed) == (finished.outcome, finished.seq, 0)
    states: dict[str, str] = {}
    of_maps: dict[str, Counter[str]] = {name: Counter() for name in started.mapped}
    elements: dict[str, str] = {}
    for event in events:
        if isinstance(event, RunStarted | RunFinished | ElementsKnown):
            continue
        assert not hasattr(event, "missed")
        store = states if event.index is None else elements
        store[event.task_name] = ENDS.get(type(event), "cancelled")
    for name, state in elements.items():
        of_maps[name.rpartition("[")[0]][state] += 1
    assert view.nodes.keys() == set(started.task_names)
    for name, node in view.nodes.items():
        if node.elements is None:
            assert node.state == states.get(name, "pending")
            continue
        found = node.elements
        counted = {state: getattr(found, state) for state in (*ENDS.values(), "cancelled")}
        assert +Counter(counted) == of_maps[name]
        assert (found.queued, found.running) == (0, 0)
        assert {*found.records} == {n for n, record in found.records.items() if record.is_ended}
        assert len(found.records) == found.failed
        assert found.ended <= found.known
        if name in states:
            assert node.state == states[name]
        elif finished.outcome == "completed":
            assert node.state == ("failed" if found.failed else "completed")
            assert found.ended == found.known
            assert found.are_all_known
    assert view.counts == Counter(node.state for node in view.nodes.values())


def check_times(view: RunView) -> None:
    """The times of a node add up to the time from when it was ready until it ended."""
    for node in view.nodes.values():
        times = (node.waiting, node.queued, node.running)
        assert min(times) >= -1e-6
        if node.ready_at is not None and node.ended_at is not None and node.elements is None:
            assert sum(times) == pytest.approx(node.ended_at - node.ready_at, abs=1e-6)
    check_critical_path(view)


def check_critical_path(view: RunView) -> None:
    """It is connected, lies within the run, and is the longest. The report has no other one."""
    report = RunReport.of(view)
    path = report.critical_path
    assert view.critical_path == [*path]
    for before, name in itertools.pairwise(path):
        assert before in view.edges[name]
    ended = {
        name: node.ended_at
        for name, node in view.nodes.items()
        if node.ended_at is not None and not node.is_kept
    }
    assert ended.keys() >= {*path}
    lengths = [length_of(view, other) for name in ended for other in paths_to(name, view, ended)]
    assert report.ideal_seconds == pytest.approx(max(lengths, default=0))
    assert report.ideal_seconds == pytest.approx(length_of(view, path))
    assert report.ideal_seconds <= view.seconds + 1e-6
    taken = 0.0
    for stage in critical_path(view.nodes, view.edges):
        assert min(stage.waiting, stage.queued, stage.running) >= -1e-6
        times = report.nodes[stage.name]
        assert stage.queued <= times.queued + 1e-6  # as in the table
        if view.nodes[stage.name].ready_at is not None:  # a map without elements was never ready
            assert stage.waiting <= times.waiting + 1e-6
        taken += stage.waiting + stage.queued + stage.running
    assert taken <= view.seconds + 1e-6  # its parts do not overlap
    assert not path or (path[0] in report.sentence and path[-1] in report.sentence)


def paths_to(name: str, view: RunView, ended: Mapping[str, float]) -> Iterator[list[str]]:
    """All paths of nodes that ended one after the other, up to this one."""
    yield [name]
    for other in ended.keys() & {*view.edges.get(name, ())}:
        if ended[other] > ended[name]:
            continue
        for path in paths_to(other, view, ended):
            yield [*path, name]


def length_of(view: RunView, path: Sequence[str]) -> float:
    """How long the nodes of a path ran, each after the end of the one before it."""
    length, since = 0.0, -math.inf
    for name in path:
        node = view.nodes[name]
        assert node.ended_at is not None
        ready_at = -math.inf if node.ready_at is None else node.ready_at
        length += max(0.0, min(node.longest, node.ended_at - max(since, ready_at)))
        since = node.ended_at
    return length


CUTS = st.lists(st.integers(0, 200), min_size=1, max_size=4)


@given(policy_graphs(), SETTINGS, WHOLE | STOPPED, CUTS)
@virtually
async def test_a_view_says_what_became_of_each_node(
    graph: PolicyGraph, setting: Setting, session: Session, cuts: list[int]
) -> None:
    saga = Saga(graph, setting)
    part = await saga.begin(session)
    if part.has_begun:
        check(saga.stage.events, cuts)


@given(policy_graphs(most_nodes=6), SETTINGS, STOPPED, WHOLE | STOPPED, CUTS)
@virtually
async def test_a_view_goes_on_with_a_run_that_is_resumed(
    graph: PolicyGraph, setting: Setting, first: Session, second: Session, cuts: list[int]
) -> None:
    saga = Saga(graph, setting)
    part = await saga.begin(first)
    if not part.has_begun:
        return
    earlier = fold(saga.stage.events)
    before = len(saga.stage.events)
    if earlier.status == "completed" or not await saga.journal.run_ids():
        return
    part = await saga.resume(second)
    if not part.has_begun:
        return
    numbers = [event.seq for event in saga.stage.events]
    # A journal that has failed lacks the last events of the first session.
    assert 1 <= numbers[0] <= before + 1
    assert first.stop == "journal broken" or numbers[0] == before + 1
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    events = [replace(event, seq=before + n) for n, event in enumerate(saga.stage.events, 1)]
    check(events, cuts)
    view = fold(events, copy.deepcopy(earlier))
    assert view.sessions == 2
    assert (view.seq, view.missed) == (before + len(events), 0)
    alone = fold(events)
    assert {n: node.state for n, node in view.nodes.items()} == {
        n: node.state for n, node in alone.nodes.items()
    }
    for name in part.kept:
        if earlier.nodes[name].state == "completed":  # else the events came too late to be seen
            assert view.nodes[name].running == earlier.nodes[name].running


@given(policy_graphs(most_nodes=6), SETTINGS, STOPPED, WHOLE, st.data(), CUTS)
@virtually
async def test_a_view_of_a_rerun_has_the_times_of_the_rerun_alone(
    graph: PolicyGraph,
    setting: Setting,
    first: Session,
    second: Session,
    data: st.DataObject,
    cuts: list[int],
) -> None:
    saga = Saga(graph, setting)
    part = await saga.begin(first)
    if not graph.nodes or not part.has_begun or not await saga.journal.run_ids():
        return
    name = data.draw(st.sampled_from([node.name for node in graph]))
    part = await saga.rerun(second, [name])
    if not part.has_begun:
        return
    view = check(saga.stage.events, cuts)
    for name in part.kept:
        node = view.nodes[name]
        assert (node.waiting, node.queued, node.running, node.ended_at) == (0, 0, 0, None)
        assert node.is_kept


@given(graphs(), POLICIES, LIMITS, GIVEN_AS, st.booleans(), CUTS)
def test_a_view_counts_the_elements_of_mapped_nodes(
    graph: Graph,
    on_error: OnError,
    limit: int | None,
    given_as: GivenAs,
    is_cancelled: bool,  # noqa: FBT001 - drawn
    cuts: list[int],
) -> None:
    async def main() -> list[Any]:
        recorder = Recorder()
        with warnings.catch_warnings(action="ignore"):  # an input that no node takes
            engine = ExecutionEngine(
                *(InMemoryBroker(), Stage(graph).dag(), limit),
                on_error=on_error,
                type_check="off",
                listeners=[recorder],
            )
            if is_cancelled:
                virtual_loop().call_later(3.5, engine.cancel)
            with contextlib.suppress(RunError):
                await engine.execute(Seen(graph, given_as).inputs())
        return recorder.events

    check(run_virtually(main()), cuts)
