"""Pipelines: one step after the other."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from operator import itemgetter
from typing import Any, Generic, Self, TypeVar, cast, overload

from taskiq import AsyncBroker

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.options import Seconds, most_parallel
from taskiq_flow.dataflow.tasks import Task
from taskiq_flow.events import Listener
from taskiq_flow.execution_engine import ExecutionEngine
from taskiq_flow.pipelines.base import Prepared, RunnablePipeline
from taskiq_flow.pipelines.pipeline_task import PipelineTask
from taskiq_flow.pipelines.steps import (
    NOT_PASSED,
    Call,
    Compiled,
    Group,
    ParamName,
    Step,
    Taken,
    compiled,
)
from taskiq_flow.suggestions import suggests_keywords

T = TypeVar("T")
R = TypeVar("R")

_Generator = Callable[..., Iterator[R] | AsyncIterator[R]]
"""A generator function, whose value as a step is the list of its items."""

_Async = Callable[..., Coroutine[Any, Any, R]]

_Shape = tuple[int, tuple[str, ...]]
"""How many values a call of ``kiq`` has by position, and the names of the others."""


@suggests_keywords(
    task="pipeline.call_next(task)",
    tasks="pipeline.call_next(task) for each",
    retry="pipeline.with_retry(max_attempts=3)",
    hooks="pipeline.with_hooks(manager)",
    tracking="pipeline.with_tracking(manager)",
)
class Pipeline(RunnablePipeline, Generic[T]):
    """Steps, each of which is given the result of the one before it.

    Each method adds a step and returns the pipeline. ``kiq`` runs it: its arguments are those of
    the first step, and the result is that of the last one. ``stream`` yields the result of each
    step as it arrives.

    ``max_parallel``: how many tasks may be in flight. ``timeout``: how long a run may take, in
    seconds or as a ``timedelta``. ``pipeline_id``: the id of its runs. ``listeners``: as those of
    an engine. A step is named after its task; a second one of the same name is ``name_2``.

    >>> def words(text): return text.split()
    >>> pipeline = Pipeline(InMemoryBroker()).call_next(words).map(len).call_next(sum)
    >>> async def main():
    ...     async for step, result in pipeline.stream("ebb and flow"):
    ...         print(step, result)
    >>> asyncio.run(main())
    words ['ebb', 'and', 'flow']
    len [3, 3, 4]
    sum 10
    """

    _execution_mode = "sequential"

    def __init__(
        self: Pipeline[Any],
        broker: AsyncBroker,
        max_parallel: int | None = None,
        timeout: Seconds | None = None,
        pipeline_id: str | None = None,
        *,
        listeners: Iterable[Listener] = (),
    ) -> None:
        super().__init__(broker, max_parallel, timeout, pipeline_id, listeners)
        self._steps: list[Step | Group] = []
        self._compiled: dict[_Shape, tuple[Compiled, ExecutionEngine]] = {}

    # Steps

    @overload
    def call_next(
        self, task: _Generator[R], *args: Any, param_name: ParamName = ..., **kwargs: Any
    ) -> Pipeline[list[R]]: ...
    @overload
    def call_next(
        self, task: _Async[R], *args: Any, param_name: ParamName = ..., **kwargs: Any
    ) -> Pipeline[R]: ...
    @overload
    def call_next(
        self, task: Callable[..., R], *args: Any, param_name: ParamName = ..., **kwargs: Any
    ) -> Pipeline[R]: ...
    def call_next(
        self, task: Task, *args: Any, param_name: ParamName = None, **kwargs: Any
    ) -> Pipeline[Any]:
        """Add a step that is given the result of the step before it, or the arguments of ``kiq``.

        That is its first argument, or the one that ``param_name`` names; ``args`` and ``kwargs``
        are the others, the same in every run. ``param_name=-1``: as ``call_after``. Raises
        ``BindingError`` if the task cannot be called so; of the first step, whatever ``kiq`` gives.

        >>> pipeline = Pipeline(InMemoryBroker()).call_next(abs).call_next(pow, 2, mod=10)
        >>> async def main():
        ...     return await (await pipeline.kiq(-7))
        >>> asyncio.run(main())
        9
        """
        return self._add(Step(Call(task, args, kwargs, param_name)))

    @overload
    def call_after(self, task: _Generator[R], *args: Any, **kwargs: Any) -> Pipeline[list[R]]: ...
    @overload
    def call_after(self, task: _Async[R], *args: Any, **kwargs: Any) -> Pipeline[R]: ...
    @overload
    def call_after(self, task: Callable[..., R], *args: Any, **kwargs: Any) -> Pipeline[R]: ...
    def call_after(self, task: Task, *args: Any, **kwargs: Any) -> Pipeline[Any]:
        """Add a step that runs after the step before it and is not given its result.

        ``args`` and ``kwargs`` are all that it is given. Raises ``BindingError`` as ``call_next``.
        """
        return self._add(Step(Call(task, args, kwargs, NOT_PASSED)))

    @overload
    def map(
        self,
        task: _Generator[R],
        max_parallel: int | None = ...,
        output_name: str | None = ...,
        *,
        param_name: str | None = ...,
        **kwargs: Any,
    ) -> Pipeline[list[list[R]]]: ...
    @overload
    def map(
        self,
        task: _Async[R],
        max_parallel: int | None = ...,
        output_name: str | None = ...,
        *,
        param_name: str | None = ...,
        **kwargs: Any,
    ) -> Pipeline[list[R]]: ...
    @overload
    def map(
        self,
        task: Callable[..., R],
        max_parallel: int | None = ...,
        output_name: str | None = ...,
        *,
        param_name: str | None = ...,
        **kwargs: Any,
    ) -> Pipeline[list[R]]: ...
    def map(
        self,
        task: Task,
        max_parallel: int | None = None,
        output_name: str | None = None,
        *,
        param_name: str | None = None,
        **kwargs: Any,
    ) -> Pipeline[Any]:
        """Add a step that runs for each element of the list that the step before it gives.

        Its result is the list of what these give, in order. A map after a map or a filter takes an
        element as soon as it is there. ``max_parallel``: how many run at once. ``output_name``: the
        key of the list among the results of the run. ``param_name``: the parameter that takes the
        element, the first one if it is left out. ``kwargs``: the same for all elements.
        """
        limit = most_parallel("max_parallel", max_parallel)
        return self._add(Step(Call(task, (), kwargs, param_name), "map", limit, output_name))

    def filter(
        self,
        task: Task,
        max_parallel: int | None = None,
        output_name: str | None = None,
        *,
        param_name: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Add a step that keeps the elements for which its task returns a true value.

        The arguments are those of ``map``. If none is left, the next step is given ``[]``.
        """
        limit = most_parallel("max_parallel", max_parallel)
        self._add(Step(Call(task, (), kwargs, param_name), "filter", limit, output_name))
        return self

    def group(
        self, tasks: Iterable[Task], param_names: Sequence[ParamName] | None = None
    ) -> Pipeline[list[Any]]:
        """Add a step of several tasks, which are given the same and run side by side.

        Its result is the list of theirs, in the order of ``tasks``. ``param_names``: for each task,
        the parameter that takes the result of the step before, ``None`` for the first one.
        """
        listed = tuple(tasks)
        names = (None,) * len(listed) if param_names is None else tuple(param_names)
        if len(names) != len(listed):
            raise ValueError(
                f"param_names has {len(names)} names for {len(listed)} tasks; give one for each, "
                "None for the first parameter"
            )
        calls = (Call(task, param_name=name) for task, name in zip(listed, names, strict=True))
        return self._add(Group(tuple(calls)))

    def _add(self, step: Step | Group) -> Pipeline[Any]:
        for call in step.calls:
            call.check()
            if self._steps:
                call.bound(Taken(("result",)))
            else:
                call.check_first(is_mapped=isinstance(step, Step) and step.kind != "call")
        self._steps.append(step)
        return cast("Pipeline[Any]", self._changed("a step"))

    def _forget_engines(self) -> None:
        self._compiled.clear()

    # Running

    async def kiq(self, *args: Any, **kwargs: Any) -> PipelineTask[T]:
        """Begin a run, and return it as a task of taskiq. The arguments go to the first step.

        Raises ``PipelineError`` for a pipeline without steps, and before anything is sent what
        ``ExecutionEngine.start`` raises, such as ``BindingError`` for arguments that the first step
        does not take.
        """
        return self._begin(args, kwargs)

    def stream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[tuple[str, Any], None]:
        """Run the pipeline and yield ``(step, result)`` as the results arrive.

        A map or a filter has its list when that is whole. Leaving the loop cancels the run; raises
        what ``ExecutionEngine.execute_async`` does.
        """
        return self._stream(args, kwargs)

    def stream_items(self, *args: Any, **kwargs: Any) -> AsyncGenerator[tuple[str, Any], None]:
        """Like ``stream``. Maps and filters give each element as an ``Item``, and no list.

        The input of a pipeline that begins with a map may be an iterable without an end then.

        >>> pipeline = Pipeline(InMemoryBroker(), max_parallel=1).map(abs).map(hex)
        >>> async def main():
        ...     async for step, item in pipeline.stream_items([-1, 2]):
        ...         print(step, item)
        >>> asyncio.run(main())
        abs Item(index=0, value=1)
        abs Item(index=1, value=2)
        hex Item(index=0, value='0x1')
        hex Item(index=1, value='0x2')
        """
        return self._stream(args, kwargs, items="only")

    @property
    def dag(self) -> DAG:
        """The graph of a run that is given one value, under the key ``input``.

        It can be drawn, or run by an ``ExecutionEngine`` with options of its own.
        """
        return compiled(self._steps, 1, ()).dag

    def _prepared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Prepared:
        shape = len(args), tuple(kwargs)
        if (found := self._compiled.get(shape)) is None:
            graph = compiled(self._steps, *shape)
            found = self._compiled[shape] = graph, self._engine(graph.dag)
        graph, engine = found
        return Prepared(engine, graph.dag, graph.inputs(args, kwargs), itemgetter(graph.result))

    def __repr__(self) -> str:
        count = len(self._steps)
        steps = ", ".join(" | ".join(call.name for call in step.calls) for step in self._steps)
        return f"<Pipeline of {count} {'step' if count == 1 else 'steps'}: {steps}>"
