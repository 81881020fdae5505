"""What a run of a graph has to do, from its inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.inputs import as_inputs, check_inputs, sources_among, warn_of_unused
from taskiq_flow.dataflow.many import graph_of_many
from taskiq_flow.dataflow.plan import Order, Plan
from taskiq_flow.dataflow.rows import Source
from taskiq_flow.dataflow.tasks import Task
from taskiq_flow.dataflow.type_check import TypeCheck, check_types
from taskiq_flow.engine.run_spec import (
    PLAIN_OPTIONS,
    Ahead,
    Items,
    NodeOptions,
    RunSettings,
    RunSpec,
)
from taskiq_flow.errors import GraphError, SerializationError
from taskiq_flow.values.isolation import Isolation, Take


class Planner:
    """Plans the runs of one engine. ``options``: of nodes that have none of their own.

    ``ahead``: of a run for many inputs, as in ``RunSpec``. ``shows_failures``: as there.
    """

    def __init__(
        self,
        dag: DAG,
        settings: RunSettings,
        options: NodeOptions,
        order: Order,
        type_check: TypeCheck,
        *,
        ahead: Ahead | None = None,
        shows_failures: bool = False,
    ) -> None:
        self.dag = dag
        self._ahead = ahead
        self._shows_failures = shows_failures
        self._settings = settings
        self._options = options
        self._order = order
        self._type_check = type_check
        self._type_checked: Plan | None = None
        self._many: tuple[Plan, DAG] | None = None
        try:
            plan = dag.plan()
        except GraphError:  # a run raises it
            return
        self._check_types(plan)

    def spec(
        self,
        inputs: Mapping[str, Any] | None,
        outputs: Iterable[str] | None,
        items: Items,
    ) -> RunSpec:
        """What a run has to do. Raises for inputs and outputs that do not fit the graph."""
        whole = self.dag.plan()
        self._check_types(whole)
        plan = whole if outputs is None else self.dag.plan_for(outputs)
        take = self._settings.isolation()
        given = as_inputs(inputs)
        warn_of_unused(check_inputs(given, whole, plan), whole)
        sources = sources_among(given, whole, self._settings.max_parallel, plan.order)
        values = {k: _taken_input(take, k, v) for k, v in given.items() if k not in sources}
        elements = plan.by_items if items else plan.elements
        of_engine = self._options
        asking = plan.with_policy if of_engine == PLAIN_OPTIONS else plan.order
        return RunSpec(
            nodes=plan.order,
            predecessors=plan.predecessors,
            successors=plan.successors,
            of_each_task=plan.of_each_task,
            priority={} if self._settings.max_parallel is None else plan.priority(self._order),
            failure_keys=plan.whole_failures,
            elements=elements,
            items=items,
            by_value=plan.by_value if elements is None else plan.by_value | {*elements.generators},
            sources={key: source for key, source in sources.items() if key in plan.required},
            joins=plan.joins,
            inputs=values,
            options={node: of_engine.of(node, take) for node in asking},
            take=take,
            ahead=self._ahead,
            shows_failures=self._shows_failures,
            describe=lambda: plan.description,
        )

    @property
    def tasks(self) -> list[Task]:
        """The tasks of the present graph, without fallbacks. None if it has an error."""
        try:
            return [node.task for node in self.dag.plan().of_each_task]
        except GraphError:  # a run raises it
            return []

    @property
    def is_of_many(self) -> bool:
        """Whether the graph is one that runs for each of many inputs."""
        return self._ahead is not None

    def of_many(
        self, outputs: Iterable[str] | None, ahead: Ahead, *, shows_failures: bool
    ) -> Planner:
        """Plans one run of the graph for each of many inputs, which are its input ``SOURCE``."""
        plan = self.dag.plan()
        self._check_types(plan)
        if self._many is None or self._many[0] is not plan:
            self._many = plan, graph_of_many(self.dag)
        return Planner(
            self._many[1] if outputs is None else graph_of_many(self.dag, outputs),
            self._settings,
            self._options,
            self._order,
            "off",
            ahead=ahead,
            shows_failures=shows_failures,
        )

    def sources(self, inputs: Mapping[str, Any]) -> dict[str, Source]:
        """The inputs that are read while the run goes on, as they have no length."""
        plan = self.dag.plan()
        return sources_among(inputs, plan, self._settings.max_parallel, plan.order)

    def _check_types(self, plan: Plan) -> None:
        """Compare the annotations of a graph's nodes, unless that was done."""
        if plan is not self._type_checked:
            check_types(plan, self._type_check)
            self._type_checked = plan


def _taken_input(take: Take, key: str, value: Any) -> Any:
    """An input as it is when the run begins. Raises ``SerializationError``, naming the key."""
    try:
        return take.kept(value) if isinstance(take, Isolation) else take(value)
    except SerializationError as error:
        raise SerializationError(
            f"the run was given the input {key!r}, which cannot be passed on: {error}",
            key=key,
            value_type=type(value),
        ) from None
