"""Map over items in parallel, and reduce the results. Both collect from an engine's stream."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sized,
)
from contextlib import aclosing
from typing import Any, Generic, TypedDict, TypeVar, Unpack, overload

from taskiq import AsyncBroker, AsyncTaskiqTask, TaskiqResult

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.options import Cache, Retry, Seconds
from taskiq_flow.dataflow.rows import MOST_IN_FLIGHT, Source
from taskiq_flow.dataflow.tasks import Task
from taskiq_flow.dataflow.type_check import check_reduction
from taskiq_flow.dispatch.dispatcher import Dispatcher
from taskiq_flow.engine.arguments import PassBy, new_run_id
from taskiq_flow.engine.connection import check_readable
from taskiq_flow.engine.run_handle import RunHandle
from taskiq_flow.engine.run_spec import OnError
from taskiq_flow.errors import BindingError, ConfigurationError, RunError, TaskiqFlowError, describe
from taskiq_flow.events import Listener
from taskiq_flow.execution_engine import ExecutionEngine
from taskiq_flow.flow_task import FlowTask, Gathered
from taskiq_flow.journal.protocol import Journal
from taskiq_flow.suggestions import check_keywords

T = TypeVar("T")

Items = Iterable[Any] | AsyncIterable[Any]

_Generator = Callable[..., Iterator[T] | AsyncIterator[T]]
"""A generator function, whose value as a task is the list of its items."""

_Async = Callable[..., Coroutine[Any, Any, T]]

_ITEM = "item"


class MapOptions(TypedDict, total=False):
    """What ``MapReduce.map`` takes as a node and an engine do."""

    retry: Retry | int | None
    timeout: Seconds | None
    queue_timeout: Seconds | None
    fallback: Any
    cache: Cache | bool | None
    on_error: OnError
    listeners: Iterable[Listener]
    pass_by: PassBy


class _JournaledMap(MapOptions, total=False):
    """All that ``MapReduce.map`` takes by keyword alone."""

    journal: Journal | str | os.PathLike[str] | None
    run_id: str | None
    resume: bool


_OF_ENGINE = ("on_error", "listeners", "pass_by")


class MapReduce:
    """Parallel map and reduce on a taskiq broker. Each call starts its run and returns at once.

    >>> async def main():
    ...     total = await MapReduce.map_reduce(InMemoryBroker(), abs, [1, -2, 3], sum)
    ...     return (await total.wait_result()).return_value
    >>> asyncio.run(main())
    6
    """

    @overload
    @staticmethod
    async def map(
        broker: AsyncBroker,
        map_func: _Generator[T],
        items: Items,
        output: str = ...,
        max_parallel: int | None = ...,
        **options: Unpack[_JournaledMap],
    ) -> MapReduceResult[list[T]]: ...
    @overload
    @staticmethod
    async def map(
        broker: AsyncBroker,
        map_func: _Async[T],
        items: Items,
        output: str = ...,
        max_parallel: int | None = ...,
        **options: Unpack[_JournaledMap],
    ) -> MapReduceResult[T]: ...
    @overload
    @staticmethod
    async def map(
        broker: AsyncBroker,
        map_func: Callable[..., T],
        items: Items,
        output: str = ...,
        max_parallel: int | None = ...,
        **options: Unpack[_JournaledMap],
    ) -> MapReduceResult[T]: ...
    @staticmethod
    async def map(
        broker: AsyncBroker,
        map_func: Task,
        items: Items,
        output: str = "mapped",
        max_parallel: int | None = None,
        *,
        journal: Journal | str | os.PathLike[str] | None = None,
        run_id: str | None = None,
        resume: bool = False,
        **options: Unpack[MapOptions],
    ) -> MapReduceResult[Any]:
        """Run ``map_func`` once for each of ``items``, which may be endless or asynchronous.

        An item is passed to the parameter ``item``, or to the first one. At most ``max_parallel``
        items are in flight. ``None`` means no limit for a sized collection, and at most 256 in
        flight or unread for a source of unknown length. ``output`` names the items' nodes:
        ``mapped[0]``, ``mapped[1]``.

        With ``journal`` the map is written to it like a run. ``resume=True`` continues the map of
        that ``run_id`` if the journal has it, otherwise begins it: ``items`` are read again from
        the first one, and completed items are not run again. The lease of an engine that was killed
        is waited for. If an item differs from the one that was in its place, the map ends with
        ``GraphChangedError``.

        ``options``: ``retry``, ``timeout``, ``queue_timeout``, ``fallback`` and ``cache`` as a node
        has them, for each item; ``on_error``, ``listeners`` and ``pass_by`` as an engine has them.
        Under ``on_error="collect"`` an item that fails has its ``NodeFailure`` as its value. Maps
        share cached results through their ``journal``; without one, each map has its own.

        Raises ``BindingError``, ``ConfigurationError``, ``TypeError`` or ``ValueError`` before
        anything is sent.

        >>> async def main():
        ...     mapped = await MapReduce.map(InMemoryBroker(), len, ["ebb", "flow"], max_parallel=8)
        ...     return (await mapped.wait_result()).return_value
        >>> asyncio.run(main())
        [3, 4]
        """
        if not isinstance(items, (Iterable, AsyncIterable)):
            raise TypeError(f"items is {items!r}; give an iterable or an async iterable")
        of_node, of_engine = _parted(options)
        node = _map_node(map_func, output, **of_node)
        _check(broker, node, given=_ITEM)
        if resume and run_id is None:
            raise ValueError("a map is resumed by its run_id; give the one that it was begun with")
        if resume and journal is None:
            raise ConfigurationError(
                f"map {run_id!r} has no journal to be resumed from; give MapReduce.map the "
                "journal= that it was begun with"
            )
        is_finite = isinstance(items, Sized)
        window = max_parallel if is_finite or max_parallel is not None else MOST_IN_FLIGHT
        dag = DAG()
        dag.add_node(node)
        dag.validate()
        engine = ExecutionEngine(broker, dag, max_parallel, journal=journal, **of_engine)
        given = {_ITEM: Source(items, window)}
        run = engine.start(given, run_id=run_id, resume=resume, items="only")
        return MapReduceResult(run, output, is_finite=is_finite)

    @overload
    @staticmethod
    async def reduce(
        broker: AsyncBroker,
        reduce_func: _Generator[T],
        mapped_result: AsyncTaskiqTask[Any],
        input_name: str,
        output: str = ...,
    ) -> FlowTask[list[T]]: ...
    @overload
    @staticmethod
    async def reduce(
        broker: AsyncBroker,
        reduce_func: _Async[T],
        mapped_result: AsyncTaskiqTask[Any],
        input_name: str,
        output: str = ...,
    ) -> FlowTask[T]: ...
    @overload
    @staticmethod
    async def reduce(
        broker: AsyncBroker,
        reduce_func: Callable[..., T],
        mapped_result: AsyncTaskiqTask[Any],
        input_name: str,
        output: str = ...,
    ) -> FlowTask[T]: ...
    @staticmethod
    async def reduce(
        broker: AsyncBroker,
        reduce_func: Task,
        mapped_result: AsyncTaskiqTask[Any],
        input_name: str,
        output: str = "reduced",
    ) -> FlowTask[Any]:
        """Run ``reduce_func`` once, with the list of all mapped results as ``input_name``.

        If the map fails, the reduction fails with the same error and ``reduce_func`` is not called.
        Raises ``BindingError`` or ``ConfigurationError`` before anything is sent.
        """
        dag = _reduction(broker, reduce_func, input_name, output)
        run_id = new_run_id()

        async def gather() -> Any:
            mapped = await mapped_result.wait_result()
            values = mapped.raise_for_error().return_value
            results = await ExecutionEngine(broker, dag).execute(
                {input_name: values}, run_id=run_id
            )
            return results[output]

        reduced = FlowTask(run_id, gather)
        await reduced.is_ready()  # begins it
        await asyncio.sleep(0)
        return reduced

    @overload
    @staticmethod
    async def map_reduce(
        broker: AsyncBroker,
        map_func: Task,
        items: Items,
        reduce_func: _Generator[T],
        map_output: str = ...,
        reduce_output: str = ...,
        max_parallel: int | None = ...,
        **options: Unpack[MapOptions],
    ) -> FlowTask[list[T]]: ...
    @overload
    @staticmethod
    async def map_reduce(
        broker: AsyncBroker,
        map_func: Task,
        items: Items,
        reduce_func: _Async[T],
        map_output: str = ...,
        reduce_output: str = ...,
        max_parallel: int | None = ...,
        **options: Unpack[MapOptions],
    ) -> FlowTask[T]: ...
    @overload
    @staticmethod
    async def map_reduce(
        broker: AsyncBroker,
        map_func: Task,
        items: Items,
        reduce_func: Callable[..., T],
        map_output: str = ...,
        reduce_output: str = ...,
        max_parallel: int | None = ...,
        **options: Unpack[MapOptions],
    ) -> FlowTask[T]: ...
    @staticmethod
    async def map_reduce(
        broker: AsyncBroker,
        map_func: Task,
        items: Items,
        reduce_func: Task,
        map_output: str = "mapped",
        reduce_output: str = "final",
        max_parallel: int | None = 10,
        **options: Unpack[MapOptions],
    ) -> FlowTask[Any]:
        """``map``, then ``reduce``. Raises what these do. ``options``: those of ``map``.

        Warns with ``TypeMismatchWarning`` if, by the annotations, no list of the map's results can
        be what ``reduce_func`` takes.
        """
        dag = _reduction(broker, reduce_func, map_output, reduce_output)
        check_reduction(_map_node(map_func, map_output), dag.nodes[0], map_output)
        mapped = await MapReduce.map(broker, map_func, items, map_output, max_parallel, **options)
        return await MapReduce.reduce(broker, reduce_func, mapped, map_output, reduce_output)


class MapReduceResult(FlowTask[list[T]], Generic[T]):
    """A map in progress: a taskiq task whose value is the list of results, in the order of items.

    It can be streamed instead, once: ``async for index, value in mapped``, in order of completion.
    The stream holds only results that have not been read. For a source of unknown length, no more
    items are read while the reader lags. Leaving the loop cancels the rest.

    A failing item ends the map with ``NodeFailedError``. The stream raises it; a result has it as
    its ``error``, with the other items' values in ``.results``. The stream raises what the source
    raises; a result has that as the ``__cause__`` of a ``RunError``.

    >>> async def main():
    ...     mapped = await MapReduce.map(InMemoryBroker(), len, ["ebb", "flow"], max_parallel=1)
    ...     async for index, value in mapped:
    ...         print(index, value)
    >>> asyncio.run(main())
    0 3
    1 4
    """

    def __init__(self, run: RunHandle, output: str, *, is_finite: bool) -> None:
        self._run = run
        self._output = output
        self._is_finite = is_finite
        self._reading = _Reading(run, output)
        super().__init__(run.run_id, self._reading.collect)
        loop = asyncio.get_running_loop()
        weakref.finalize(self, _stop_gathering, loop, self._gathered).atexit = False

    async def is_ready(self) -> bool:
        """Whether the map is done. For a source of unknown length, this begins to collect it."""
        if self._is_finite and not self._gathered.has_begun:
            return await self._run.is_ready()
        return await super().is_ready()

    async def get_result(self, with_logs: bool = False) -> TaskiqResult[list[T]]:
        """The result of a map that is done. Raises ``ResultGetError`` before that."""
        if await self._run.is_ready():
            await asyncio.wait([self._gathered.task()])
        return await super().get_result(with_logs=with_logs)

    def cancel(self) -> None:
        """Stop the map. Its reader, or whoever waits for it, gets ``RunCancelledError``."""
        self._run.cancel()

    def _state(self) -> str:
        state = "in progress" if self._run.status == "running" else "done"
        return f"output {self._output!r}, {state}"

    def __aiter__(self) -> AsyncGenerator[tuple[int, T], None]:  # noqa: PYI058 - to be closed
        return self._reading.stream(held_by=self)


class _Reading:
    """The reading end of a map. It holds no reference to the map, so that can be collected."""

    def __init__(self, run: RunHandle, output: str) -> None:
        self._run = run
        self._output = output
        self._has_begun = False

    async def stream(self, held_by: object) -> AsyncGenerator[tuple[int, Any], None]:
        """The pairs as they come. ``held_by`` is kept for as long as they are read."""
        self._check_unread()
        self._has_begun = True
        async with self._run:
            async for _, item in self._run:
                yield item.index, item.value

    async def collect(self) -> list[Any]:
        """The values of all pairs, in the order of items.

        Raises what ended the map. The error has the values so far in ``results``: an exception of
        the source becomes the ``__cause__`` of a ``RunError``.
        """
        self._check_unread()
        values: dict[int, Any] = {}
        try:
            async with aclosing(self.stream(held_by=None)) as pairs:
                async for index, value in pairs:
                    values[index] = value  # noqa: PERF403 - kept when the stream raises
        except RunError as error:
            error.results.update(self._named(values))
            raise
        except TaskiqFlowError:  # the map could not be started or resumed
            raise
        except Exception as error:
            raise RunError(
                f"map {self._run.run_id!r} ended after {len(values)} results, as its items could "
                f"not be read: {describe(error)}",
                results=self._named(values),
            ) from error
        return [values[index] for index in sorted(values)]

    def _check_unread(self) -> None:
        if self._has_begun:
            raise RuntimeError(
                f"map {self._run.run_id!r} has been read, or is being read; a map is either "
                "streamed once or waited for"
            )

    def _named(self, values: Mapping[int, Any]) -> dict[str, Any]:
        return {f"{self._output}[{index}]": value for index, value in values.items()}


def _stop_gathering(loop: asyncio.AbstractEventLoop, gathered: Gathered[Any]) -> None:
    """Nobody holds a map any more. The garbage collector may call this in any thread."""
    if gathered.has_begun:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and all on it has ended
            loop.call_soon_threadsafe(gathered.task().cancel)


def _parted(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of a map's node, and those of its engine. Raises ``TypeError`` for others."""
    known = MapOptions.__annotations__
    if not known.keys() >= options.keys():
        own = [name for name in inspect.signature(MapReduce.map).parameters if name != "options"]
        check_keywords("MapReduce.map", options, [*own, *known])
    of_engine = {name: value for name, value in options.items() if name in _OF_ENGINE}
    return {n: v for n, v in options.items() if n not in of_engine}, of_engine


def _map_node(map_func: Task, output: str, **options: Any) -> DAGNode:
    """The node that stands for all items of a map."""
    node = DAGNode(map_func, output=output, inputs=[_ITEM], name=output, map_over=_ITEM, **options)
    node.gives_items = False  # of a generator, a value is the list
    return node


def _reduction(broker: AsyncBroker, reduce_func: Task, input_name: str, output: str) -> DAG:
    """The graph of a reduction, checked: a single node."""
    node = DAGNode(reduce_func, output=output, inputs=[input_name])
    _check(broker, node, given=input_name)
    dag = DAG()
    dag.add_node(node)
    dag.validate()
    return dag


def _check(broker: AsyncBroker, node: DAGNode, given: str) -> None:
    """Whether the node can be run, given a value for one key."""
    if missing := [key for key in node.binding.required_keys if key != given]:
        raise BindingError(
            f"the task of {node.task_name!r} is called with one value, and has no other for "
            f"{', '.join(map(repr, missing))}; give these parameters a default",
            task_name=node.task_name,
            parameter=missing[0],
        )
    check_readable(broker)
    Dispatcher(broker).address(node)
