"""Runs of the journal that are continued, or run again in part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from taskiq import AsyncBroker

from taskiq_flow.cleanup import to_the_end
from taskiq_flow.dataflow.axes import element_name, parted
from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.fingerprint import with_dependents
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.outer_groups import OuterGroup, outer_groups
from taskiq_flow.dataflow.plan import Plan
from taskiq_flow.dataflow.rows import is_list
from taskiq_flow.dataflow.stale import settled, stale
from taskiq_flow.dispatch.callables import return_type_of
from taskiq_flow.engine.listeners import Listeners
from taskiq_flow.engine.planning import Planner
from taskiq_flow.engine.run import Run
from taskiq_flow.engine.run_spec import PLAIN_OPTIONS, EarlierSessions, Items, RunSpec
from taskiq_flow.engine.starting import Starter
from taskiq_flow.errors import InputConflictError, MissingInputError, MissingNodeError
from taskiq_flow.journal.finished import PassedOver
from taskiq_flow.journal.history import (
    RestoredRun,
    check_same_inputs,
    load_inputs,
    load_results,
    restore_run,
)
from taskiq_flow.journal.records import GIVEN, KNOWN, Header, Record
from taskiq_flow.journal.runs import JournaledRuns
from taskiq_flow.middleware import wire_of
from taskiq_flow.values.handle import ResultHandle
from taskiq_flow.values.references import handle_of
from taskiq_flow.values.stored import StoredValues


class Resumer:
    """Begins the runs of one engine that another run has begun."""

    def __init__(
        self,
        broker: AsyncBroker,
        planner: Planner,
        starter: Starter,
        runs: JournaledRuns,
        values: StoredValues,
    ) -> None:
        self._broker = broker
        self._dag = planner.dag
        self._planner = planner
        self._starter = starter
        self._runs = runs
        self._values = values

    async def resume(
        self,
        listeners: Listeners,
        run_id: str,
        *,
        replay: bool = True,
        passes_over: bool = False,
        allow_changed: bool = False,
        wait: float = 0.0,
        inputs: Mapping[str, Any] | None = None,
        outputs: list[str] | None = None,
        sources: Mapping[str, Any] = MappingProxyType({}),
        items: Items = False,
    ) -> Run:
        """Continue a run of the journal. ``inputs``, ``outputs``: what it must have begun with.

        ``sources``: inputs that the journal does not have. ``passes_over``: whether the reader asks
        for nothing of positions at which all has ended.
        """
        log = self._runs.old_log(run_id)
        try:
            await log.acquire(wait)
            restored = await self._restored(run_id, items, passes_over=passes_over)
            self._check_how_begun(restored)
            self._runs.warn_of_policy(restored)
            log.values = self._values.like(restored.header.serializer)
            if inputs is not None:
                sources = self._planner.sources(inputs)
                stored = {key: value for key, value in inputs.items() if key not in sources}
                check_same_inputs(restored, log.values, stored, outputs)
            sources = self._read_once(restored, sources)
            log.prepend(self._runs.adapt_to_graph(restored, allow_changed=allow_changed))
            log.prepend(restored.reopen(self._reopened(restored)))
            outdated = stale(self._dag.plan(), restored.results, restored.failed)
            log.prepend(restored.drop(outdated))
            spec = await self._restored_spec(restored, replay=replay, sources=sources, items=items)
        except BaseException:  # a cancellation too
            await to_the_end(log.release())
            raise
        return await self._starter.begin(
            listeners, run_id, spec, log, restored.sessions, is_named=True
        )

    async def rerun(
        self,
        listeners: Listeners,
        run_id: str,
        *,
        new_run_id: str,
        from_: Iterable[str],
        replay: bool,
        allow_changed: bool,
        is_named: bool,
        sources: Mapping[str, Any] = MappingProxyType({}),
        items: Items = False,
    ) -> Run:
        """Run nodes of a run of the journal again, with all that depends on them, as a new run.

        What has no result in the earlier run runs as well, and what was made of a failure again.
        ``is_named``: whether the user gave ``new_run_id``. ``sources``: inputs that the journal
        does not have, or has with other values; what takes these runs again as well.
        """
        await self._runs.check_is_free(run_id)
        restored = await restore_run(self._runs.journal, run_id)
        self._check_how_begun(restored)
        again = [self._node_to_rerun(run_id, name).task_name for name in from_]
        self._runs.adapt_to_graph(restored, allow_changed=allow_changed)
        plan, lists = self._dag.plan(), self._lists()
        changed = {key for key in sources if key in restored.inputs or key not in lists}
        sources = self._read_once(restored, sources)
        again += [n.task_name for n in plan.order if not changed.isdisjoint(_taken_keys(n))]
        rerun = with_dependents(plan, again)
        for node_name in [n for n in restored.results if plan.node_of(n) in rerun]:
            del restored.results[node_name]
        restored.drop(stale(plan, restored.results, restored.failed))
        for key in changed & restored.inputs.keys():
            del restored.inputs[key]
        spec = await self._restored_spec(restored, replay=replay, sources=sources, items=items)
        earlier = EarlierSessions(
            spec.earlier.results,
            is_replayed=replay,
            rerun=rerun,
            digests={n: d for n, d in restored.digests.items() if n in spec.earlier.results},
            lengths={n: c for n, c in restored.lengths.items() if plan.node_of(n) not in rerun},
        )
        kept = [
            *(restored.results[node_name] for node_name in earlier.results),
            *(Record(GIVEN, n, 0, digest) for n, digest in earlier.digests.items()),
            *(Record(KNOWN, n, 0, b"%d" % count) for n, count in earlier.lengths.items()),
        ]
        values = self._values.like(restored.header.serializer)
        log = self._runs.new_log(
            new_run_id,
            spec.inputs,
            restored.header.outputs,
            kept,
            values,
            parent=run_id,
            tags=await self._runs.tags_of(run_id),
        )
        spec = replace(spec, earlier=earlier)
        return await self._starter.begin(listeners, new_run_id, spec, log, is_named=is_named)

    def _node_to_rerun(self, run_id: str, name: str) -> DAGNode:
        """The node of that name. Raises ``MissingNodeError``, also for an element's name."""
        if (of_node := self._dag.plan().node_of(name)) != name:
            raise MissingNodeError(
                f"{name!r} is an element of node {of_node!r}, and elements cannot be run again "
                f"alone; run the node again, or resume run {run_id!r}, which runs its failed "
                "elements",
                reference=name,
            )
        return self._dag.get_node(name)

    async def _restored(self, run_id: str, items: Items, *, passes_over: bool) -> RestoredRun:
        """A run of the journal, without the values that nobody takes any more."""
        journal = self._runs.journal
        if passes_over:
            restored = await restore_run(journal, run_id, lambda of: self._passed_over(of, items))
            passed = restored.passed_over
            if passed is None:
                return restored
            lacks_values = passed.lacks_values or self._runs.has_changed(restored)
            if not lacks_values and passed.positions.keys().isdisjoint(self._reopened(restored)):
                return restored
        return await restore_run(journal, run_id)

    def _passed_over(self, header: Header, items: Items) -> PassedOver | None:
        plan = self._plan_of(header)
        groups = _outer_groups(plan.by_items if items else plan.elements)
        if not (closed := [group for group in groups if group.is_closed]):
            return None
        return PassedOver(
            {group.name: group.nodes for group in closed},
            {group.name: group.within for group in closed},
        )

    def _plan_of(self, header: Header) -> Plan:
        """The part of the graph that a run needs. Its other nodes must not count as completed."""
        plan, outputs = self._dag.plan(), header.outputs
        if outputs is None or not plan.producers.keys() >= {*outputs}:  # the spec refuses others
            return plan
        return self._dag.plan_for(outputs)

    def _reopened(self, restored: RestoredRun) -> list[str]:
        """The groups that depend on other nodes which have failed and are tried again.

        What these will give may be another answer for conditions at positions that were finished.
        """
        if not restored.failed:
            return []
        plan = self._plan_of(restored.header)
        failed = {plan.node_of(name) for name in restored.failed}
        return [
            group.name
            for group in _outer_groups(plan.elements)
            if not with_dependents(plan, failed.difference(group.all_nodes)).isdisjoint(
                group.all_nodes
            )
        ]

    def _lists(self) -> set[str]:
        elements = self._dag.plan().elements
        return set() if elements is None else elements.lists()

    def _read_once(self, restored: RestoredRun, given: Mapping[str, Any]) -> dict[str, Any]:
        """The same inputs; of lists that a run has read item by item, the items once more.

        The journal has the digests of these items, with which they are compared as they are read.
        """
        lists = self._lists() - restored.inputs.keys()
        return {k: iter(v) if k in lists and is_list(v) else v for k, v in given.items()}

    def _check_how_begun(self, restored: RestoredRun) -> None:
        """Raise ``InputConflictError`` for a run of many inputs that is taken for one, or so."""
        if restored.header.is_of_many == self._planner.is_of_many:
            return
        run_id = restored.run_id
        if restored.header.is_of_many:
            how, remedy = "execute_many", f"execute_many(source, run_id={run_id!r}, resume=True)"
        else:
            how, remedy = "the inputs of one run", f"resume({run_id!r})"
        raise InputConflictError(
            f"run {run_id!r} was begun with {how}; continue it with engine.{remedy}", keys=[]
        )

    def _owners(self, spec: RunSpec, restored: RestoredRun) -> dict[str, str]:
        """The nodes and elements whose results are kept, each with the node that it belongs to."""
        plan, kept = self._dag.plan(), {node.task_name for node in spec.nodes}
        owners = {name: plan.node_of(name) for name in restored.results}
        return {name: owner for name, owner in owners.items() if owner in kept}

    def _put_items_together(self, spec: RunSpec, results: dict[str, Any]) -> None:
        """Give generators their lists, where an earlier engine took the items one by one."""
        plan = spec.elements
        streamed, mapped = ({}, {}) if plan is None else (plan.generators, plan.mapped)
        depths = {
            node.task_name: len(mapped[node].axes) if node in mapped else 0
            for node in spec.nodes
            if node.is_generator and node not in streamed
        }
        for name, count in results.items() if depths else ():
            owner = self._dag.plan().node_of(name)
            path = () if owner == name else parted(name)[1]
            if depths.get(owner) == len(path) and isinstance(count, int):
                results[name] = [
                    results[element_name(owner, (*path, index))] for index in range(count)
                ]

    async def _restored_spec(
        self,
        restored: RestoredRun,
        *,
        replay: bool,
        sources: Mapping[str, Any] = MappingProxyType({}),
        items: Items = False,
    ) -> RunSpec:
        """What is left to do of a run. ``sources``: inputs that the journal does not have.

        Raises ``InputConflictError`` if the journal has one of them.
        """
        values = self._values.like(restored.header.serializer)
        inputs = load_inputs(restored, values)
        if known := [key for key in sources if key in inputs]:
            raise InputConflictError(
                f"run {restored.run_id!r} has its input {known[0]!r} in the journal; resume it "
                "without that one",
                keys=known,
            )
        plan = self._dag.plan()
        lists = self._lists() & plan.required.keys()
        if gone := [key for key in sorted(lists) if key not in inputs and key not in sources]:
            raise MissingInputError(
                f"run {restored.run_id!r} was begun with an iterable as {gone[0]!r}, which the "
                "journal does not have; give it once more, from its beginning, as "
                f"inputs={{{gone[0]!r}: ...}}",
                keys=gone,
            )
        spec = self._planner.spec({**inputs, **sources}, restored.header.outputs, items)
        owners = self._owners(spec, restored)
        returned = {node.task_name: return_type_of(node.task) for node in spec.nodes}
        generators = {node.task_name for node in spec.nodes if node.is_generator}
        backend, wire = self._broker.result_backend, wire_of(self._broker)
        results = load_results(
            restored,
            values,
            owners,
            # The annotation of a generator is that of its list, or of an iterator.
            {name: None if name in generators else kind for name, kind in returned.items()},
            lambda owner, task_id: handle_of(backend, task_id, returned[owner], wire),
        )
        by_value = {node.task_name for node in spec.by_value}
        for name, value in results.items():
            if isinstance(value, ResultHandle) and owners[name] in by_value:
                results[name] = await value.get()
        self._put_items_together(spec, results)
        earlier = EarlierSessions(
            results,
            replay,
            restored.attempts,
            restored.in_flight,
            digests=restored.digests,
            lengths=restored.lengths,
            finished=restored.finished,
            passed_over=restored.passed_over,
        )
        passed = restored.passed_over
        kept = [*restored.results, *(() if passed is None else passed.names)]
        options = dict(spec.options)
        for node in settled(self._dag.plan(), kept):
            options[node] = replace(options.get(node, PLAIN_OPTIONS), condition=_is_never_wanted)
        return replace(spec, earlier=earlier, options=options)


def _outer_groups(elements: ElementPlan | None) -> list[OuterGroup]:
    return [] if elements is None else outer_groups(elements)


def _is_never_wanted(_: Mapping[str, Any]) -> bool:
    return False


def _taken_keys(node: DAGNode) -> tuple[str, ...]:
    return (*node.required_keys, *node.optional_keys)
