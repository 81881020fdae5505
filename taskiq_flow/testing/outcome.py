"""The outcome of a run, as tests read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.engine.results import store_result
from taskiq_flow.events import Event, NodeCompleted, NodeFailed, NodeSkipped, NodeStarted
from taskiq_flow.views.report import RunReport
from taskiq_flow.views.run_view import RunView


@dataclass(frozen=True)
class RunOutcome:
    """How a run has gone. Nodes and elements of maps are named as in events: ``page``, ``page[0]``.

    ``pairs``: what the run has yielded. ``error``: what it has ended with, if anything.
    ``order``: the names of all that has completed, in that order. ``started_at``, ``ended_at``:
    by name, seconds since the run began; a map starts with its first element and ends with its
    last. ``attempts``: by name, how often its task was executed. ``failures``: by name, the error
    of what failed for good. ``skipped``: by name, what was skipped, and why. ``events``: all of
    them. ``view``: what they say of the run.

    >>> from taskiq_flow.testing import run
    >>> dag = DAGBuilder().node(abs, inputs=["numbers"], map_over="numbers").build()
    >>> outcome = run(dag, {"numbers": [-1, 2]}, takes={"abs[0]": 9, "abs[1]": 4})
    >>> outcome.results, outcome.order, outcome.seconds
    ({'abs': [1, 2]}, ['abs[1]', 'abs[0]'], 9.0)
    """

    pairs: list[tuple[str, Any]]
    error: BaseException | None
    order: list[str]
    started_at: dict[str, float]
    ended_at: dict[str, float]
    attempts: Counter[str]
    failures: dict[str, BaseException]
    skipped: dict[str, NodeSkipped]
    events: list[Event]
    view: RunView
    _dag: DAG = field(repr=False)

    @property
    def results(self) -> dict[str, Any]:
        """The values of all output keys, as ``execute`` returns them. Raises ``error``."""
        if self.error is not None:
            raise self.error
        results: dict[str, Any] = {}
        for name, value in self.pairs:
            store_result(self._dag, results, name, value)
        return results

    @property
    def seconds(self) -> float:
        """How long the run took."""
        return self.view.seconds

    @property
    def report(self) -> RunReport:
        """Where the time went."""
        return RunReport.of(self.view)


def outcome_of(
    dag: DAG,
    pairs: list[tuple[str, Any]],
    error: BaseException | None,
    sent: Sequence[NodeStarted],
    events: list[Event],
) -> RunOutcome:
    """What a run's events say to a test. ``sent``: its attempts, fallbacks included."""
    view = RunView()
    order: list[str] = []
    started: dict[str, float] = {}
    ended: dict[str, float] = {}
    failures: dict[str, BaseException] = {}
    skipped: dict[str, NodeSkipped] = {}
    plan, began = dag.plan(), events[0].at
    for attempt in sent:
        for name in (attempt.task_name, plan.node_of(attempt.task_name)):
            started.setdefault(name, attempt.at - began)
    for event in events:
        view.apply(event)
        match event:
            case NodeCompleted(task_name=name):
                order.append(name)
            case NodeFailed(task_name=name, error=cause):
                failures[name] = cause
            case NodeSkipped(task_name=name):
                skipped[name] = event
            case _:
                continue
        for ended_by_it in (name, plan.node_of(name)):
            ended[ended_by_it] = event.at - began
    attempts = Counter(attempt.task_name for attempt in sent)
    return RunOutcome(
        pairs, error, order, started, ended, attempts, failures, skipped, events, view, dag
    )
