"""An engine's runs in its journal: their new logs, and old logs after the graph has changed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from taskiq_flow.cleanup import to_the_end
from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.fingerprint import Fingerprints, changes, fingerprints, with_dependents
from taskiq_flow.dataflow.plan import Plan
from taskiq_flow.errors import ConfigurationError, GraphChangedError, RunLockedError
from taskiq_flow.journal import errors
from taskiq_flow.journal.history import RestoredRun, initial_records, was_begun_otherwise
from taskiq_flow.journal.packed import GraphText
from taskiq_flow.journal.protocol import Journal, stores_events
from taskiq_flow.journal.records import Record
from taskiq_flow.journal.summary import Head
from taskiq_flow.journal.writer import LEASE_PAUSE, LogWriter
from taskiq_flow.values.stored import StoredValues

logger = logging.getLogger("taskiq_flow")


class JournaledRuns:
    """The journal of an engine, if it has one, for the runs of the engine's graph.

    ``is_of_many``: the graph is one that runs for each of many inputs. ``on_error``: the engine's.
    """

    def __init__(
        self,
        journal: Journal | None,
        dag: DAG,
        values: StoredValues,
        *,
        is_of_many: bool = False,
        on_error: str = "raise",
    ) -> None:
        self._journal = journal
        self._values = values
        self._dag = dag
        self._is_of_many = is_of_many
        self._on_error = on_error
        self._fingerprinted: tuple[Plan, Fingerprints] | None = None
        self._graph = GraphText()

    @property
    def journal(self) -> Journal:
        """The engine's journal. Raises ``ConfigurationError`` if it has none."""
        if self._journal is None:
            raise ConfigurationError(
                "this engine has no journal, so no run of it can be resumed; give it one, as in "
                "ExecutionEngine(..., journal=SqliteJournal('runs.db')), before the first run"
            )
        return self._journal

    def of_many(self, graph: DAG) -> JournaledRuns:
        """The same journal, for runs of a graph that runs for each of many inputs."""
        return JournaledRuns(
            self._journal, graph, self._values, is_of_many=True, on_error=self._on_error
        )

    def new_log(
        self,
        run_id: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] | None,
        results: Iterable[Record] = (),
        values: StoredValues | None = None,
        parent: str | None = None,
        tags: tuple[str, ...] = (),
    ) -> LogWriter[Any] | None:
        """The log of a new run; ``None`` without a journal.

        ``results``: taken from another run, its ``parent``, whose ``values`` are written in this
        way. ``tags``: of that run.
        """
        journal = self._journal
        if journal is None:
            return None
        nodes = self._fingerprints()
        values = self._values if values is None else values
        records = initial_records(
            *(values, nodes, inputs, outputs, results),
            is_of_many=self._is_of_many,
            on_error=self._on_error,
            generators=self._generators(),
        )
        head = Head(self._dag.name, parent, tags=tags)
        return LogWriter(journal, run_id, values, records, head, self._graph)

    def old_log(self, run_id: str) -> LogWriter[Any]:
        """The log of a run of the journal. Raises ``ConfigurationError`` without a journal."""
        head = Head(self._dag.name)
        return LogWriter(self.journal, run_id, self._values, head=head, graph=self._graph)

    async def tags_of(self, run_id: str) -> tuple[str, ...]:
        """The tags of a run of the journal; none in one that stores no events."""
        journal = self.journal
        return (await journal.summary(run_id)).tags if stores_events(journal) else ()

    async def check_is_free(self, run_id: str) -> None:
        """Raise ``RunLockedError`` if an engine has a run of the journal that has not ended."""
        journal = self.journal
        if not stores_events(journal):
            log = self.old_log(run_id)
            try:
                await log.acquire(LEASE_PAUSE)  # somebody else may ask at this moment
            except RunLockedError:
                raise errors.in_progress(run_id) from None
            finally:
                await to_the_end(log.release())
            return
        run = await journal.summary(run_id)
        if run.status == "running" and run.is_resumable and run.lease_left > 0:
            raise errors.in_progress(run_id)

    def warn_of_policy(self, restored: RestoredRun) -> None:
        """Log a warning if failures meant something else where a restored run was begun."""
        begun = restored.header.on_error
        if was_begun_otherwise(begun, self._on_error):
            logger.warning(
                "run %r was begun with on_error=%r, and goes on with on_error=%r, as its engine "
                "has it now",
                *(restored.run_id, begun, self._on_error),
            )

    def has_changed(self, restored: RestoredRun) -> bool:
        """Whether a restored run was begun with another graph."""
        return bool(changes(restored.header.nodes, self._fingerprints()))

    def adapt_to_graph(self, restored: RestoredRun, *, allow_changed: bool) -> list[bytes]:
        """Continue a restored run with the engine's graph. Returns the records that log a change.

        Drops the results of nodes that have changed or that depend on one that has. Raises
        ``GraphChangedError`` if the graph has changed and that is not allowed.
        """
        nodes = self._fingerprints()
        found = changes(restored.header.nodes, nodes)
        if not found:
            return []
        if not allow_changed:
            raise GraphChangedError(
                f"run {restored.run_id!r} was started with another graph ({found}); resume it with "
                "that graph, or with allow_changed=True, which keeps the results of nodes that "
                "have not changed and depend on none that has",
                added=found.added,
                removed=found.removed,
                changed=found.changed,
            )
        plan = self._dag.plan()
        changed = with_dependents(plan, [*found.added, *found.changed])
        sent = dict.fromkeys((*restored.results, *restored.attempts))
        elements = [name for name in sent if plan.node_of(name) in changed]
        outdated = dict.fromkeys((*changed, *elements))
        return restored.replace_graph(nodes, self._generators(), outdated)

    def _generators(self) -> dict[str, int]:
        """As of ``Header``."""
        plan = self._dag.plan()
        mapped = {} if plan.elements is None else plan.elements.mapped
        return {
            node.task_name: len(mapped[node].axes) if node in mapped else 0
            for node in plan.order
            if node.is_generator
        }

    def _fingerprints(self) -> Fingerprints:
        plan = self._dag.plan()
        if self._fingerprinted is None or self._fingerprinted[0] is not plan:
            self._fingerprinted = plan, fingerprints(plan)
        return self._fingerprinted[1]
