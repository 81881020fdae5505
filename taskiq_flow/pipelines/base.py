"""What all pipelines have: the options of their runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask, Context, TaskiqDepends

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.inputs import check_inputs, warn_of_unused
from taskiq_flow.dataflow.options import Retry, Seconds, as_retry, most_parallel, time_limit
from taskiq_flow.dataflow.tasks import original_function
from taskiq_flow.dataflow.type_check import annotations_of_inputs
from taskiq_flow.engine.arguments import check_choice, checked_id, checked_listeners
from taskiq_flow.engine.connection import check_broker
from taskiq_flow.engine.run_spec import Items
from taskiq_flow.errors import AnnotationError, ConfigurationError
from taskiq_flow.events import Listener
from taskiq_flow.execution_engine import ExecutionEngine
from taskiq_flow.pipelines.context import ContextLabels
from taskiq_flow.pipelines.pipeline_task import PipelineTask
from taskiq_flow.values.fitting import Fit, misfit, name_of

OnStepError = Literal["stop", "continue", "retry"]

PIPELINE_ID = "pipeline_id"
"""The label of a message of a scheduled pipeline that has the id of its run."""

_PIPELINE = "taskiq_flow_pipeline"
"""The attribute of the function of a pipeline's task that has the pipeline."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run with some arguments of ``kiq`` begins with.

    ``dag``: the graph that ``engine`` runs. ``result_of``: takes the pipeline's result out of those
    of the nodes.
    """

    engine: ExecutionEngine
    dag: DAG
    inputs: Mapping[str, Any]
    result_of: Callable[[Mapping[str, Any]], Any]


class RunnablePipeline(ABC):
    """What ``Pipeline`` and ``DataflowPipeline`` have in common.

    Their options are those of engines. They may be changed at any time, and hold for runs that
    begin afterwards. A pipeline may be run any number of times, also at the same time: nothing of a
    run is kept on it.
    """

    _execution_mode = ""

    def __init__(
        self,
        broker: AsyncBroker,
        max_parallel: int | None,
        timeout: Seconds | None,
        pipeline_id: str | None,
        listeners: Iterable[Listener],
    ) -> None:
        check_broker(broker)
        self._broker = broker
        self._max_parallel = most_parallel("max_parallel", max_parallel)
        self._run_timeout = time_limit("timeout", timeout)
        self._listeners = checked_listeners(listeners)
        self._retry: Retry | None = None
        self._on_error: OnStepError = "stop"
        self._has_context = False
        self._task: AsyncTaskiqDecoratedTask[..., Any] | None = None
        self._late_changes: dict[str, None] = {}  # names of methods that were called after as_task
        self.pipeline_id = pipeline_id

    @property
    def broker(self) -> AsyncBroker:
        """The broker that the steps are sent to."""
        return self._broker

    @property
    def pipeline_id(self) -> str | None:
        """The id of the runs that begin from now on; ``None``: each has a new one."""
        return self._pipeline_id

    @pipeline_id.setter
    def pipeline_id(self, pipeline_id: str | None) -> None:
        self._pipeline_id = None if pipeline_id is None else checked_id("pipeline_id", pipeline_id)
        self._note_change("pipeline_id")

    def with_tracking(self, manager: Listener) -> Self:
        """Have a listener of engines, such as one that tracks runs, take the events of all runs."""
        return self._listened_to_by(manager, "with_tracking")

    def with_hooks(self, manager: Listener) -> Self:
        """Have a listener of engines, such as one that calls hooks, take the events of all runs."""
        return self._listened_to_by(manager, "with_hooks")

    def _listened_to_by(self, listener: Listener, method: str) -> Self:
        (checked,) = checked_listeners([listener])
        if not any(other is checked for other in self._listeners):
            self._listeners = (*self._listeners, checked)
        return self._changed(method)

    def with_context(self, enable: bool = True) -> Self:
        """Have tasks with a parameter ``PipelineContext = TaskiqDepends()`` be given one."""
        if not isinstance(enable, bool):
            raise TypeError(f"enable is {enable!r}; give True or False")
        self._has_context = enable
        return self._changed("with_context")

    def with_timeout(self, seconds: Seconds | None) -> Self:
        """End a run with ``RunTimeoutError`` when it has taken so long."""
        self._run_timeout = time_limit("seconds", seconds)
        return self._changed("with_timeout")

    def with_retry(
        self,
        max_attempts: int = 3,
        delay: Seconds = 0.1,
        backoff: float = 2.0,
        *,
        policy: Retry | int | None = None,
    ) -> Self:
        """Try a step again that fails; of a map, each element by itself.

        ``max_attempts``: executions, the first included. ``delay``: before the second one, in
        seconds or as a ``timedelta``, less a tenth at the most by chance; it grows by the factor
        ``backoff``, up to a minute. ``policy``: a ``Retry``, or a number of attempts, in place of
        these.
        """
        if policy is not None:
            self._retry = as_retry("policy", policy)
        else:
            self._retry = Retry(attempts=max_attempts, wait=delay, factor=backoff)
        return self._changed("with_retry")

    def on_error(self, mode: OnStepError) -> Self:
        """Say what follows when a step fails.

        ``"stop"``, the default: the run ends with ``NodeFailedError``. ``"retry"``: the same, after
        the attempts of ``with_retry``, or three of them without it. ``"continue"``: what does not
        depend on the failure still runs, such as the other elements of maps; then the run ends with
        ``RunFailedError``.
        """
        check_choice("mode", mode, get_args(OnStepError))
        self._on_error = mode
        return self._changed("on_error")

    def as_task(self, name: str, **labels: Any) -> AsyncTaskiqDecoratedTask[..., Any]:
        """Register the pipeline with its broker, as a task whose execution is a run of it.

        Do so in a module that workers import. The task has the arguments of ``kiq`` and the result
        of the pipeline. taskiq's own schedulers can send it: ``labels`` may have a ``schedule``.
        The worker that executes it waits for the steps, which it or another worker executes. In
        lists of runs, ``name`` is the name of the pipeline's graph.

        Raises ``ConfigurationError`` if the broker has a task of this name, or the pipeline another
        name, and what ``kiq`` raises for the arguments of a ``schedule``.

        >>> broker = InMemoryBroker()
        >>> nightly = Pipeline(broker).call_next(abs).call_next(hex).as_task("nightly")
        >>> async def main():
        ...     task = await nightly.kiq(-7)
        ...     return (await task.wait_result()).return_value
        >>> asyncio.run(main())
        '0x7'
        """
        checked_id("name", name)
        if self._task is not None:
            raise ConfigurationError(
                f"the pipeline is the task {self._task.task_name!r} already; use that one"
            )
        if self._broker.find_task(name) is not None:
            raise ConfigurationError(
                f"{type(self._broker).__name__} has a task {name!r} already; give the pipeline "
                "another name"
            )

        for one in labels.get("schedule") or ():
            self.check_call(tuple(one.get("args") or ()), one.get("kwargs") or {})

        async def run_pipeline(
            *args: Any, flow_context: Annotated[Context, TaskiqDepends()], **kwargs: Any
        ) -> Any:
            pipeline_id = flow_context.message.labels.get(PIPELINE_ID)
            task = self._begin(args, kwargs, pipeline_id, came_as_json=True)
            async with task.run:  # cancels the run if the task is cancelled
                return await task

        setattr(run_pipeline, _PIPELINE, self)
        self._task = self._broker.register_task(run_pipeline, task_name=name, **labels)
        globals().pop(run_pipeline.__name__, None)  # where taskiq puts it, for process pools
        self._forget_engines()
        return self._task

    @property
    def task(self) -> AsyncTaskiqDecoratedTask[..., Any] | None:
        """What ``as_task`` has returned; ``None`` before that."""
        return self._task

    @property
    def late_changes(self) -> tuple[str, ...]:
        """The methods that have changed the pipeline after ``as_task``, each once.

        Workers run the pipeline as the module that they import makes it, so that they do not have a
        change that is made elsewhere.
        """
        return tuple(self._late_changes)

    def check_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise what ``kiq`` raises for such arguments before anything is sent.

        Raises ``AnnotationError`` for a value that does not fit the first step, which ``kiq``
        leaves to the execution.
        """
        run = self._prepared(args, dict(kwargs))
        plan = run.dag.plan()
        warn_of_unused(check_inputs(run.inputs, plan, plan), plan)
        _fitting(run.dag, run.inputs)

    @property
    @abstractmethod
    def dag(self) -> DAG:
        """The graph."""

    def visualize(self) -> dict[str, list[dict[str, Any]]]:
        """The graph as ``{"nodes": [{"id", "inputs", "outputs"}], "edges": [{"from", "to"}]}``.

        >>> def words(text): return text.split()
        >>> DataflowPipeline(InMemoryBroker(), [words]).visualize()
        {'nodes': [{'id': 'words', 'inputs': ['text'], 'outputs': ['words']}], 'edges': []}
        """
        plan = self.dag.plan()
        return {
            "nodes": [
                {"id": node.task_name, "inputs": node.inputs, "outputs": node.outputs}
                for node in plan.order
            ],
            "edges": [
                {"from": before.task_name, "to": node.task_name}
                for node in plan.order
                for before in plan.predecessors.get(node, ())
            ],
        }

    def print_dag(self) -> None:
        """Draw the graph as text, to standard output."""
        self.dag.print()

    @property
    def engine(self) -> ExecutionEngine:
        """A new engine that runs ``dag`` with the options and listeners of this pipeline.

        It gives the results of all nodes. Its inputs are those of ``dag``: a list that a
        ``DataflowPipeline`` maps over is ``"OUTPUT.items"``.

        >>> pipeline = Pipeline(InMemoryBroker(), timeout=30).call_next(abs).call_next(hex)
        >>> pipeline.engine.execute_sync({"input": -7})
        {'abs': 7, 'hex': '0x7'}
        """
        return self._engine(self.dag)

    @abstractmethod
    def _prepared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Prepared:
        """Prepare a run with the arguments of ``kiq``."""

    def _begin(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        pipeline_id: str | None = None,
        *,
        came_as_json: bool = False,
    ) -> PipelineTask[Any]:
        """Begin a run with the arguments of ``kiq``. ``pipeline_id``: in place of the own one."""
        run = self._prepared(args, kwargs)
        inputs = _of_message(run.dag, run.inputs) if came_as_json else run.inputs
        handle = run.engine.start(inputs, run_id=pipeline_id or self._pipeline_id)
        return PipelineTask(handle, run.result_of)

    def _stream(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], items: Items = False
    ) -> AsyncGenerator[tuple[str, Any], None]:
        run = self._prepared(args, kwargs)
        return run.engine.execute_async(run.inputs, run_id=self._pipeline_id, items=items)

    @abstractmethod
    def _forget_engines(self) -> None:
        """Forget the engines, as their options are others now."""

    def _changed(self, method: str) -> Self:
        """Note that a method has changed the pipeline."""
        self._note_change(method)
        self._forget_engines()
        return self

    def _note_change(self, method: str) -> None:
        if self._task is not None:
            self._late_changes[method] = None

    def _engine(self, dag: DAG) -> ExecutionEngine:
        """An engine that runs a graph with the options of this pipeline."""
        if self._task is not None:
            dag.name = self._task.task_name
        listeners = self._listeners
        if self._has_context:
            listeners = (*listeners, ContextLabels(self._execution_mode))
        retry = self._retry
        if self._on_error == "retry" and retry is None:
            retry = Retry()
        return ExecutionEngine(
            self._broker,
            dag,
            self._max_parallel,
            on_error="continue" if self._on_error == "continue" else "raise",
            listeners=listeners,
            retry=retry,
            run_timeout=self._run_timeout,
        )


def _fitting(dag: DAG, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs that fit the annotations of the tasks that take them, with all that they contain.

    Raises ``AnnotationError``.
    """
    made = dict(inputs)
    for key, annotation in annotations_of_inputs(dag.plan()).items():
        fit = Fit.of(annotation) if key in inputs else None
        if fit is None:
            continue
        try:
            made[key] = fit.convert_whole(inputs[key])
        except Exception as error:  # whatever pydantic or a class's own code raises
            takes = f"the pipeline takes {name_of(annotation)} as {key!r}, and was given"
            raise misfit(takes, inputs[key], error, key) from error
    return made


def _of_message(dag: DAG, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Inputs that have come in JSON, which has text for keys of mappings and lists for tuples."""
    try:
        return _fitting(dag, inputs)
    except AnnotationError:  # the step fails with it, which listeners are told then
        return inputs


def pipeline_of(task: Callable[..., Any] | None) -> RunnablePipeline | None:
    """The pipeline that ``as_task`` has made a task of; ``None`` for another task."""
    found = None if task is None else getattr(original_function(task), _PIPELINE, None)
    return found if isinstance(found, RunnablePipeline) else None
