"""Pipelines whose order follows from the keys that their tasks take and give."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, Final, Self

from taskiq import AsyncBroker

from taskiq_flow.dataflow.computed import ComputedNode, chunks, with_first
from taskiq_flow.dataflow.dag import DAG, counted_nodes
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.options import Seconds, most_parallel
from taskiq_flow.dataflow.tasks import Task
from taskiq_flow.errors import PipelineError
from taskiq_flow.events import Listener
from taskiq_flow.execution_engine import ExecutionEngine
from taskiq_flow.pipelines.base import Prepared, RunnablePipeline
from taskiq_flow.pipelines.declared import declared_node
from taskiq_flow.pipelines.pipeline_task import PipelineTask
from taskiq_flow.suggestions import suggests_keywords

NO_INITIAL: Final = object()


@suggests_keywords(
    retry="pipeline.with_retry(max_attempts=3)",
    hooks="pipeline.with_hooks(manager)",
    tracking="pipeline.with_tracking(manager)",
)
class DataflowPipeline(RunnablePipeline):
    """Tasks, each of which runs when the keys that it takes are there.

    ``tasks``: taskiq tasks or callables. What they take and give is what ``pipeline_task`` says of
    them; otherwise each parameter takes the key of its name, and the output key is the task's name.
    Keys that no task gives are arguments of ``kiq_dataflow``. The other arguments are those of
    ``Pipeline``.

    >>> def words(text): return text.split()
    >>> def longest(words): return max(words, key=len)
    >>> def count(words): return len(words)
    >>> pipeline = DataflowPipeline(InMemoryBroker(), [count, longest, words])
    >>> asyncio.run(pipeline.kiq_dataflow(text="ebb and flow"))
    {'words': ['ebb', 'and', 'flow'], 'count': 3, 'longest': 'flow'}
    """

    _execution_mode = "dataflow"

    def __init__(
        self,
        broker: AsyncBroker,
        tasks: Iterable[Task] | None = None,
        max_parallel: int | None = None,
        timeout: Seconds | None = None,
        pipeline_id: str | None = None,
        *,
        listeners: Iterable[Listener] = (),
    ) -> None:
        super().__init__(broker, max_parallel, timeout, pipeline_id, listeners)
        self._dag = DAG()
        self._items: dict[str, Any] = {}
        self._hidden: set[str] = set()
        self._ready: ExecutionEngine | None = None
        for task in tasks or ():
            self.add_dataflow_task(task)

    @classmethod
    def from_tasks(cls, broker: AsyncBroker, tasks: Iterable[Task], **options: Any) -> Self:
        """The same as ``DataflowPipeline(broker, tasks, **options)``."""
        return cls(broker, tasks, **options)

    def add_dataflow_task(self, task: Task, **options: Any) -> Self:
        """Add a task. ``options``: those of a ``DAGNode``, in place of what the task declares."""
        return self._add(declared_node(task, **options))

    def map(
        self,
        task: Task,
        items: str | Iterable[Any],
        output: str,
        *,
        max_parallel: int | None = None,
        param_name: str | None = None,
        chunk_config: Mapping[str, int] | int | None = None,
    ) -> Self:
        """Run a task for each element of a list; the key ``output`` is the list of what it gives.

        ``items``: the key of the list, or the list itself. ``param_name``: the parameter that takes
        the element, the first one if it is left out; the others take the keys of their names.
        ``max_parallel``: how many run at once. ``chunk_config={"chunk_size": 100}``: the task is
        given lists of so many elements, and gives a list for each; these are joined.

        >>> def square(number): return number * number
        >>> pipeline = DataflowPipeline(InMemoryBroker()).map(square, "numbers", "squares")
        >>> pipeline = pipeline.reduce(sum, "squares", "total")
        >>> asyncio.run(pipeline.kiq_map_reduce(numbers=[1, 2, 3]))
        {'squares': [1, 4, 9], 'total': 14}
        """
        size = _chunk_size(chunk_config)
        source = key = _key_of(items, output)
        hidden = []
        if size is not None:
            hidden.append(_chunked(key, output, size))
            key = hidden[-1].task_name
        node = DAGNode(
            task,
            output,
            [key] if param_name is None else {param_name: key},
            map_over=key,
            max_parallel=most_parallel("max_parallel", max_parallel),
            flatten=size is not None,
        )
        if not isinstance(items, str):
            self._items[source] = items
        return self._add(node, hidden)

    def reduce(
        self,
        task: Task,
        input_name: str,
        output: str,
        *,
        initial: Any = NO_INITIAL,
        chunk_size: int | None = None,
    ) -> Self:
        """Run a task once, with the whole list of the key ``input_name``.

        ``initial``: stands before the first element of that list. ``chunk_size``: the task runs for
        each part of so many elements first, side by side, and then for the list of what these gave.
        """
        key = input_name
        hidden: list[DAGNode] = []
        if (size := most_parallel("chunk_size", chunk_size)) is not None:
            chunked = _chunked(key, output, size)
            key = f"{output}.parts"
            name = chunked.task_name
            hidden += [chunked, DAGNode(task, key, [name], map_over=name)]
        if initial is not NO_INITIAL:
            taken, key = key, f"{output}.initial"
            given = {"first": initial}
            hidden.append(ComputedNode(with_first, name=key, inputs=[taken], given=given))
        return self._add(DAGNode(task, output, [key]), hidden)

    # Running

    async def kiq(self, /, **inputs: Any) -> PipelineTask[dict[str, Any]]:
        """Begin a run, and return it as a task of taskiq whose result is that of ``kiq_dataflow``.

        Raises before anything is sent what ``ExecutionEngine.start`` raises.
        """
        return self._begin((), inputs)

    async def kiq_dataflow(self, /, **inputs: Any) -> dict[str, Any]:
        """Run the pipeline to its end, and return all output keys with their values.

        ``inputs``: the keys that no task gives. Raises what ``ExecutionEngine.execute`` raises:
        ``NodeFailedError`` for a task that fails, for example.
        """
        async with (await self.kiq(**inputs)).run as run:
            return self._shown(await run)

    async def kiq_map_reduce(self, /, **inputs: Any) -> dict[str, Any]:
        """The same as ``kiq_dataflow``."""
        return await self.kiq_dataflow(**inputs)

    def stream(self, /, **inputs: Any) -> AsyncGenerator[tuple[str, Any], None]:
        """Run the pipeline and yield ``(task, result)`` as the results arrive.

        Leaving the loop cancels the run; raises what ``ExecutionEngine.execute_async`` does.
        """
        return self._stream((), inputs)

    # Looking at it

    @property
    def dag(self) -> DAG:
        """The graph. Raises what ``DAG.validate`` raises."""
        self._dag.validate()
        return self._dag

    def visualize_dot(self) -> str:
        """The graph in Graphviz's DOT language."""
        return self.dag.to_dot()

    def __repr__(self) -> str:
        return f"<DataflowPipeline of {counted_nodes(self._dag.nodes)}>"

    def _add(self, node: DAGNode, hidden: Iterable[DAGNode] = ()) -> Self:
        """Add a node, and those before it that the user has not asked for.

        The results of the latter are not returned.
        """
        for before in hidden:
            self._dag.add_node(before)
            self._hidden.update(before.outputs)
        self._dag.add_node(node)
        return self._changed("add_dataflow_task")

    def _shown(self, results: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in results.items() if key not in self._hidden}

    def _prepared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Prepared:
        if args:
            raise PipelineError(
                f"a dataflow pipeline was given {len(args)} values by position; give them by their "
                f"keys, which are {', '.join(map(repr, self.dag.external_inputs)) or 'none'}"
            )
        if self._ready is None:
            self._ready = self._engine(self.dag)
        return Prepared(self._ready, self._dag, {**self._items, **kwargs}, self._shown)

    def _forget_engines(self) -> None:
        self._ready = None


def _key_of(items: str | Iterable[Any], output: str) -> str:
    """The key of what is mapped over. A list is an input of all runs."""
    if isinstance(items, str):
        return items
    if isinstance(items, (Iterator, AsyncIterator)) or not isinstance(items, Iterable):
        raise PipelineError(
            f"the items of {output!r} are {items!r}, which cannot be read by each run; give a "
            "list, or the key under which kiq_map_reduce() is given them"
        )
    return f"{output}.items"


def _chunked(key: str, output: str, size: int) -> DAGNode:
    """A node that gives the list of a key, cut into lists."""
    return ComputedNode(chunks, name=f"{output}.chunks", inputs=[key], given={"size": size})


def _chunk_size(config: Mapping[str, int] | int | None) -> int | None:
    if not isinstance(config, Mapping):
        return most_parallel("chunk_config", config)
    if config.keys() != {"chunk_size"}:
        raise ValueError(f"chunk_config is {dict(config)!r}; give {{'chunk_size': 100}}")
    return most_parallel("chunk_size", config["chunk_size"])
