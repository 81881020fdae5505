"""The runs of one graph that a journal keeps: how they are begun, and what still counts of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from taskiq_flow.dataflow.dag import DAG, Plan
from taskiq_flow.dataflow.fingerprint import Fingerprints, changes, fingerprints, with_dependents
from taskiq_flow.errors import ConfigurationError, GraphChangedError
from taskiq_flow.journal.history import RestoredRun, initial_records
from taskiq_flow.journal.protocol import Journal
from taskiq_flow.journal.records import Record
from taskiq_flow.journal.writer import LogWriter


class JournaledRuns:
    """What an engine with this graph keeps, if it has a journal."""

    def __init__(self, journal: Journal | None, dag: DAG) -> None:
        self._journal = journal
        self._dag = dag
        self._fingerprinted: tuple[Plan, Fingerprints] | None = None

    @property
    def journal(self) -> Journal:
        """The engine's journal; raises ``ConfigurationError`` if it has none."""
        if self._journal is None:
            raise ConfigurationError(
                "this engine has no journal, so no run of it is kept; give it one, as in "
                "ExecutionEngine(..., journal=SqliteJournal('runs.db')), before the first run"
            )
        return self._journal

    def new_log(
        self,
        run_id: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] | None,
        results: Iterable[Record] = (),
    ) -> LogWriter[Any] | None:
        """The log of a run that is about to begin, with results that it has from another."""
        journal = self._journal
        if journal is None:
            return None
        first = initial_records(journal.serializer, self._fingerprints(), inputs, outputs, results)
        return LogWriter(journal, run_id, first)

    def adapt_to_graph(self, restored: RestoredRun, *, allow_changed: bool) -> list[bytes]:
        """Have a run restored in terms of today's graph; what is to be noted for that.

        Results of nodes that have changed since, or depend on such, do not count any more. Raises
        ``GraphChangedError`` for any change that is not allowed.
        """
        found = changes(restored.header.nodes, self._fingerprints())
        if not found:
            return []
        if not allow_changed:
            raise GraphChangedError(
                f"run {restored.run_id!r} was begun with another graph ({found}); go on with that "
                "graph, or say allow_changed=True, which keeps the results of nodes that have not "
                "changed nor depend on one that has",
                added=found.added,
                removed=found.removed,
                changed=found.changed,
            )
        outdated = with_dependents(self._dag.plan(), [*found.added, *found.changed])
        return restored.changed(self._fingerprints(), outdated)

    def _fingerprints(self) -> Fingerprints:
        plan = self._dag.plan()
        if self._fingerprinted is None or self._fingerprinted[0] is not plan:
            self._fingerprinted = plan, fingerprints(plan)
        return self._fingerprinted[1]
