"""Stopped anywhere, gone on with anywhere: in the end the outcomes of an undisturbed run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from property_tests.policies import (
    FALLBACK,
    Completed,
    PolicyGraph,
    evaluate,
    executions,
)
from property_tests.policy_stage import check_error, check_value, plain, without_suffix
from property_tests.policy_strategies import ChangedGraph, changed_graphs, policy_graphs
from property_tests.resuming import (
    SETTINGS,
    STOPPED,
    WHOLE,
    Part,
    Saga,
    Session,
    Setting,
    Stop,
)
from taskiq_flow import (
    GraphChangedError,
    JournalError,
    NodeFailedError,
    RunCancelledError,
    RunError,
    RunFailedError,
    RunTimeoutError,
)
from tests.virtual_clock import virtually

SAGAS = settings(max_examples=settings().max_examples * 7 // 10)
"""Each of them is several runs."""

STEADY = policy_graphs(most_nodes=6).map(lambda graph: graph.steady)
"""Graphs whose nodes end the same however often they are tried anew."""


ENDINGS: dict[Stop, type[RunError]] = {
    "cancelled": RunCancelledError,
    "timed out": RunTimeoutError,
    "failed": NodeFailedError,
    "journal broken": JournalError,
}


class Ledger:
    """What has to hold of one run in all of its sessions. ``completed``: as the nodes did.

    ``late``: nodes whose results a session that replays them tells where they would start, as they
    may run without a dependency, which ends once more, or depend on such a node.
    """

    def __init__(self, graph: PolicyGraph) -> None:
        self.graph = graph
        self.outcomes = evaluate(graph)
        self.executions = executions(graph, self.outcomes)
        self.completed: list[str] = []
        self.yielded: set[str] = set()
        self.may_lack = False
        self.late: set[str] = set()
        for node in sorted(graph, key=lambda node: node.index):
            before = {other.name for other in graph.waits_for[node.name]}
            if before & self.late or (before and node.join != "all"):
                self.late.add(node.name)

    @property
    def all_completed(self) -> set[str]:
        return {name for name, o in self.outcomes.items() if isinstance(o, Completed)}

    def check(self, saga: Saga, part: Part, session: Session) -> None:
        """What holds of any session, stopped or not."""
        if session.stop == "cancelled" and not part.has_begun:
            assert (part.pairs, part.executed) == ([], set())
            return
        late = self.late if session.replay else set()
        at_once = [name for name in part.kept if name not in late]
        expected = [name for name in self.completed if name not in late]
        untold = late.intersection(self.completed).difference(part.kept)
        assert at_once == expected[: len(at_once)]
        assert self.may_lack or len(at_once) == len(expected)
        assert set(part.kept) <= set(self.completed)
        assert self.yielded <= {*part.kept, *untold}
        assert part.executed.isdisjoint(part.kept)
        assert self.may_lack or part.executed.isdisjoint(untold)
        assert saga.stage.executions <= self.executions
        saga.stage.check_given()
        names = [name for name, _ in part.pairs]
        assert len(names) == len(set(names))
        if session.replay:
            assert names[: len(at_once)] == at_once[: len(names)]
            waits = {node.name for node in self.graph if node.join != "any"}
            for place, name in enumerate(names):
                before = {other.name for other in self.graph.waits_for[name]}
                assert name not in late & waits or before.isdisjoint(names[place:])
        else:
            assert set(part.kept).isdisjoint(names)
        for name, value in part.pairs:
            check_value(value, self.outcomes[name])
        self.check_error(part, session)
        earlier = [name for name in self.completed if name in {*part.kept, *untold}]
        self.completed = [*earlier, *(name for name in part.completed if name not in earlier)]
        self.yielded |= self.all_completed.intersection(names)
        self.may_lack = session.stop == "journal broken" or (self.may_lack and bool(untold))

    def check_error(self, part: Part, session: Session) -> None:
        if part.error is None:
            return
        assert isinstance(part.error, ENDINGS.get(session.stop, RunFailedError) | RunFailedError)
        values: dict[str, object] = {}
        for node in self.graph:
            outcome = self.outcomes[node.name]
            if node.name in (*part.kept, *part.completed) and isinstance(outcome, Completed):
                values |= node.keyed(outcome.result)
        assert plain(part.error.results) == plain(values)

    def check_end(self, part: Part, session: Session, setting: Setting) -> None:
        """What holds of a session in which the run has come to its end."""
        assert {*part.kept, *part.completed} == self.all_completed
        goes_on = setting.on_error == "continue"
        names = self.all_completed if goes_on else set(self.outcomes)
        kept = [] if session.replay else part.kept
        assert {name for name, _ in part.pairs} == names.difference(kept)
        check_error(part.error, self.outcomes if goes_on else {})
        left = {name.removesuffix(FALLBACK) for name in self.executions}.difference(part.kept)
        assert part.executed <= left
        if session.place == "another process":  # where no earlier attempt's result is to be had
            assert part.executed == left


@SAGAS
@given(STEADY, st.data(), SETTINGS, st.lists(STOPPED, min_size=1, max_size=3), WHOLE)
@virtually
async def test_a_run_is_stopped_and_resumed_until_it_is_done(
    graph: PolicyGraph,
    data: st.DataObject,
    setting: Setting,
    stopped: list[Session],
    last: Session,
) -> None:
    keys = [key for node in graph for key in node.outputs]
    outputs = data.draw(st.none() | st.lists(st.sampled_from(keys), min_size=1)) if keys else None

    saga = Saga(graph, setting)
    ledger = Ledger(graph if outputs is None else graph.part(outputs))
    first, *others = stopped
    ledger.check(saga, await saga.begin(first, outputs), first)
    for session in others:
        ledger.check(saga, await saga.resume(session), session)
    for _ in range(2):  # the second time with nothing left to do but what has failed
        part = await saga.resume(last)
        ledger.check(saga, part, last)
        ledger.check_end(part, last, setting)
    assert set(part.kept) == ledger.all_completed
    sent = [attempt for attempt in saga.attempts if FALLBACK not in attempt.name]
    ids = [without_suffix(attempt.task_id) for attempt in sent]
    assert any(s.stop == "journal broken" for s in stopped) or len(ids) == len(set(ids))


@SAGAS
@given(STEADY, SETTINGS, st.data(), st.none() | STOPPED, st.none() | STOPPED, WHOLE)
@virtually
async def test_a_rerun_runs_the_named_nodes_and_those_behind_them_and_leaves_the_run_as_it_was(
    graph: PolicyGraph,
    setting: Setting,
    data: st.DataObject,
    stopped: Session | None,
    stopped_again: Session | None,
    session: Session,
) -> None:
    names = [node.name for node in graph]
    named = data.draw(st.lists(st.sampled_from(names), max_size=2) if names else st.just([]))

    saga, ledger = Saga(graph, setting), Ledger(graph)
    first = stopped or Session()
    ledger.check(saga, await saga.begin(first), first)
    log = await saga.journal.log("run")
    again = {*named}.union(*(graph.behind(name) for name in named))
    other = Ledger(graph)
    other.completed = [name for name in ledger.completed if name not in again]
    other.may_lack = ledger.may_lack
    second = stopped_again or session
    part = await saga.rerun(second, named)
    other.check(saga, part, second)
    if second is session:
        other.check_end(part, session, setting)
    assert {attempt.task_id.split(":")[0] for attempt in saga.stage.fates.attempts} <= {"again"}
    assert await saga.journal.log("run") == log
    for run_id, its in (("run", ledger), ("again", other)):
        part = await saga.resume(session, run_id)
        its.check(saga, part, session)
        its.check_end(part, session, setting)


@SAGAS
@given(changed_graphs(), SETTINGS, st.none() | STOPPED, st.none() | STOPPED, WHOLE)
@virtually
async def test_a_changed_graph_is_refused_by_name_or_keeps_what_is_as_it_was(
    graphs: ChangedGraph,
    setting: Setting,
    stopped: Session | None,
    stopped_again: Session | None,
    session: Session,
) -> None:
    saga, before, now = Saga(graphs.before, setting), Ledger(graphs.before), Ledger(graphs.now)
    first, second = stopped or session, stopped_again or session
    before.check(saga, await saga.begin(first), first)
    saga.enter(graphs.now)
    await _check_refusal(saga, session, (graphs.added, graphs.removed, graphs.changed))
    outdated = {*graphs.added, *graphs.changed}
    outdated.update(*(graphs.now.behind(name) for name in outdated))
    now.completed = [n for n in before.completed if n in now.outcomes and n not in outdated]
    now.may_lack = before.may_lack
    now.check(saga, await saga.resume(second, allow_changed=True), second)
    part = await saga.resume(session)  # by now it is the run's own graph
    now.check(saga, part, session)
    now.check_end(part, session, setting)
    saga.enter(graphs.before)
    await _check_refusal(saga, session, (graphs.removed, graphs.added, graphs.changed))


async def _check_refusal(
    saga: Saga, session: Session, changes: tuple[set[str], set[str], set[str]]
) -> None:
    """A changed graph does nothing to a run unless it is allowed to."""
    if not any(changes):
        return
    log = await saga.journal.log("run")
    with pytest.raises(GraphChangedError) as caught:
        await saga.resume(session)
    error = caught.value
    assert ({*error.added}, {*error.removed}, {*error.changed}) == changes
    assert not saga.stage.fates.attempts
    assert await saga.journal.log("run") == log
