"""Map over items in parallel, and reduce the results. Both collect from an engine's stream."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import math
import os
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sized,
)
from contextlib import aclosing
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, TypeVar, overload

import anyio
from aiostream import pipe, stream
from anyio.streams.memory import MemoryObjectSendStream
from taskiq import AsyncBroker, AsyncTaskiqTask, TaskiqResult

from taskiq_flow.cache.key import digest_of
from taskiq_flow.dataflow.binding import Binding, Task
from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.type_check import check_reduction
from taskiq_flow.dispatch.dispatcher import Dispatcher
from taskiq_flow.engine.connection import check_readable
from taskiq_flow.engine.run import new_run_id
from taskiq_flow.engine.run_spec import RunSpec
from taskiq_flow.errors import BindingError, GraphChangedError, RunError, TaskiqFlowError, describe
from taskiq_flow.execution_engine import ExecutionEngine
from taskiq_flow.flow_task import FlowTask, Gathered
from taskiq_flow.journal.history import RestoredRun
from taskiq_flow.journal.protocol import Journal

T = TypeVar("T")

Items = Iterable[Any] | AsyncIterable[Any]

_Generator = Callable[..., Iterator[T] | AsyncIterator[T]]
"""A generator function, whose value as a task is the list of its items."""

_Async = Callable[..., Coroutine[Any, Any, T]]

MOST_IN_FLIGHT = 256
"""Items in flight or unread at most, for a source of unknown length without ``max_parallel``."""

_ITEM = "item"

logger = logging.getLogger("taskiq_flow")


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
        *,
        journal: Journal | str | os.PathLike[str] | None = ...,
        run_id: str | None = ...,
        resume: bool = ...,
    ) -> MapReduceResult[list[T]]: ...
    @overload
    @staticmethod
    async def map(
        broker: AsyncBroker,
        map_func: _Async[T],
        items: Items,
        output: str = ...,
        max_parallel: int | None = ...,
        *,
        journal: Journal | str | os.PathLike[str] | None = ...,
        run_id: str | None = ...,
        resume: bool = ...,
    ) -> MapReduceResult[T]: ...
    @overload
    @staticmethod
    async def map(
        broker: AsyncBroker,
        map_func: Callable[..., T],
        items: Items,
        output: str = ...,
        max_parallel: int | None = ...,
        *,
        journal: Journal | str | os.PathLike[str] | None = ...,
        run_id: str | None = ...,
        resume: bool = ...,
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
    ) -> MapReduceResult[Any]:
        """Run ``map_func`` once for each of ``items``, which may be endless or asynchronous.

        An item is passed to the parameter ``item``, or to the first one. At most ``max_parallel``
        items are in flight. ``None`` means no limit for a sized collection, and at most 256 in
        flight or unread for a source of unknown length. ``output`` names the items' nodes:
        ``mapped[0]``, ``mapped[1]``.

        With ``journal`` the map is written to it like a run. ``resume=True`` continues the map of
        that ``run_id``: ``items`` are read again from the first one, and completed items are not
        run again. If an item differs from the one that was in its place, the map ends with
        ``GraphChangedError``.

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
        node = _map_node(map_func, output)
        _check(broker, node, given=_ITEM)
        window = max_parallel
        if window is None and not isinstance(items, Sized):
            window = MOST_IN_FLIGHT
        if resume and run_id is None:
            raise ValueError("a map is resumed by its run_id; give the one that it was begun with")
        feed = _Feed(node, items, window, new_run_id() if run_id is None else run_id, resume)
        engine = _MapEngine(broker, feed, max_parallel, journal)
        mapped: MapReduceResult[Any] = MapReduceResult(engine, ends=isinstance(items, Sized))
        await asyncio.sleep(0)  # the map has begun, and can be cancelled, when this returns
        return mapped

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
    ) -> FlowTask[Any]:
        """``map``, then ``reduce``. Takes and raises what these do.

        Warns with ``TypeMismatchWarning`` if, by the annotations, no list of the map's results can
        be what ``reduce_func`` takes.
        """
        dag = _reduction(broker, reduce_func, map_output, reduce_output)
        check_reduction(_map_node(map_func, map_output), dag.nodes[0], map_output)
        mapped = await MapReduce.map(broker, map_func, items, map_output, max_parallel)
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

    def __init__(self, engine: _MapEngine, *, ends: bool) -> None:
        self._engine = engine
        self._reading = _Reading(engine, ends=ends)
        super().__init__(engine.feed.run_id, self._reading.collect)
        weakref.finalize(self, self._reading.drop, self._gathered).atexit = False

    async def is_ready(self) -> bool:
        """Whether the map is done. For a source of unknown length, this begins to collect it."""
        if self._reading.ends and not self._gathered.has_begun:
            return self._reading.is_done
        return await super().is_ready()

    async def get_result(self, with_logs: bool = False) -> TaskiqResult[list[T]]:
        """The result of a map that is done. Raises ``ResultGetError`` before that."""
        if self._reading.is_done:
            await asyncio.wait([self._gathered.task()])
        return await super().get_result(with_logs=with_logs)

    def cancel(self) -> None:
        """Stop the map. Its reader, or whoever waits for it, gets ``RunCancelledError``."""
        self._engine.cancel()

    def _state(self) -> str:
        output = self._engine.feed.node.task_name
        return f"output {output!r}, {'done' if self._reading.is_done else 'in progress'}"

    def __aiter__(self) -> AsyncGenerator[tuple[int, T], None]:  # noqa: PYI058 - to be closed
        return self._reading.stream(held_by=self)


class _Reading:
    """The reading end of a map. It holds no reference to the map, so that can be collected."""

    def __init__(self, engine: _MapEngine, *, ends: bool) -> None:
        room = math.inf if ends else 0
        send, self._pairs = anyio.create_memory_object_stream[tuple[int, Any]](room)
        self._loop = asyncio.get_running_loop()
        self._pump = self._loop.create_task(_pump(engine, send, runs_on_unread=ends))
        self._run_id = engine.feed.run_id
        self._output = engine.feed.node.task_name
        self._has_begun = False
        self.ends = ends

    @property
    def is_done(self) -> bool:
        """Whether the run has ended, in whichever way."""
        return self._pump.done()

    async def stream(self, held_by: object) -> AsyncGenerator[tuple[int, Any], None]:
        """The pairs as they come. ``held_by`` is kept for as long as they are read."""
        self._begin()
        async with aclosing(self._read()) as pairs:
            async for pair in pairs:
                yield pair

    async def collect(self) -> list[Any]:
        """The values of all pairs, in the order of items.

        Raises what ended the map. The error has the values so far in ``results``: an exception of
        the source becomes the ``__cause__`` of a ``RunError``.
        """
        self._begin()
        values: dict[int, Any] = {}
        try:
            async with aclosing(self._read()) as pairs:
                async for index, value in pairs:
                    values[index] = value  # noqa: PERF403 - kept when the stream raises
        except RunError as error:
            error.results.update(self._named(values))
            raise
        except TaskiqFlowError:  # the map could not be started or resumed
            raise
        except Exception as error:
            raise RunError(
                f"map {self._run_id!r} ended after {len(values)} results, as its items could not "
                f"be read: {describe(error)}",
                results=self._named(values),
            ) from error
        return [values[index] for index in sorted(values)]

    def _begin(self) -> None:
        if self._has_begun:
            raise RuntimeError(
                f"map {self._run_id!r} is being read already; a map is either streamed once or "
                "waited for"
            )
        self._has_begun = True

    async def _read(self) -> AsyncGenerator[tuple[int, Any], None]:
        try:
            async for pair in self._pairs:
                yield pair
            await self._pump  # raises what ended the run
        finally:
            self._pairs.close()
            self._pump.cancel()
            await asyncio.wait([self._pump])
            if not self._pump.cancelled():
                self._pump.exception()  # seen, though a reader that leaves does not ask for it

    def _named(self, values: Mapping[int, Any]) -> dict[str, Any]:
        return {f"{self._output}[{index}]": value for index, value in values.items()}

    def drop(self, gathered: Gathered[list[Any]]) -> None:
        """Nobody holds the map any more. The garbage collector may call this in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and all on it has ended
            self._loop.call_soon_threadsafe(self._end_unheard, gathered)

    def _end_unheard(self, gathered: Gathered[list[Any]]) -> None:
        if gathered.has_begun:
            gathered.task().cancel()
        self._pairs.close()
        if not self._has_begun:
            self._pump.add_done_callback(self._report)

    def _report(self, pump: asyncio.Task[None]) -> None:
        if not pump.cancelled() and (error := pump.exception()) is not None:
            logger.warning("map %s, which nobody held any more: %s", self._run_id, error)


async def _pump(
    engine: _MapEngine,
    pairs: MemoryObjectSendStream[tuple[int, Any]],
    *,
    runs_on_unread: bool,
) -> None:
    """Move pairs from the engine's stream to the reader's, as fast as that has room.

    ``runs_on_unread``: whether the map goes on when nobody holds it any more.
    """
    prefix = len(engine.feed.node.task_name) + 1
    with pairs:
        async with aclosing(engine.pairs()) as results:
            async for name, value in results:
                try:
                    await pairs.send((int(name[prefix:-1]), value))
                except anyio.BrokenResourceError:
                    if not runs_on_unread:
                        return


async def _closed_at_the_end(items: Generator[Any, Any, Any]) -> AsyncGenerator[Any, None]:
    """The items of a generator, which is closed when the map ends, as an async one is."""
    with contextlib.closing(items):
        for item in items:
            yield item


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    """One item of a map: a node that is made while the run goes on."""

    task: Task
    task_name: str
    binding: Binding
    value: Any
    digest: bytes

    @property
    def index(self) -> None:
        return None

    @property
    def outputs(self) -> list[str]:
        return [self.task_name]

    def store(self, result: Any, values: dict[str, Any]) -> None:
        """Do nothing: no later node needs the result."""

    def arguments(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        return self.binding.arguments({_ITEM: self.value})


@dataclass(frozen=True, slots=True)
class _Feed:
    """What a map runs. ``resumes``: whether it continues an earlier map of this id."""

    node: DAGNode
    items: Items
    window: int | None
    run_id: str
    resumes: bool


class _MapEngine(ExecutionEngine):
    """The engine of one map. Its source makes a node of each item."""

    def __init__(
        self,
        broker: AsyncBroker,
        feed: _Feed,
        max_parallel: int | None,
        journal: Journal | str | os.PathLike[str] | None,
    ) -> None:
        dag = DAG()
        dag.add_node(feed.node)  # stands for all items
        super().__init__(broker, dag, max_parallel, journal=journal)
        self.feed = feed
        self._digests: Mapping[str, bytes] = {}

    def pairs(self) -> AsyncGenerator[tuple[str, Any], None]:
        """The stream of the map."""
        if self.feed.resumes:
            return self.resume(self.feed.run_id)
        return self.execute_async(run_id=self.feed.run_id)

    def _spec(self, inputs: object, outputs: object) -> RunSpec[_Item]:
        items = self.feed.items
        if inspect.isgenerator(items):
            items = _closed_at_the_end(items)
        nodes = stream.iterate(items) | pipe.enumerate() | pipe.map(self._item)
        return RunSpec(source=nodes, window=self.feed.window, digest=attrgetter("digest"))

    def _restored_tasks(self, spec: RunSpec[Any], restored: RestoredRun) -> Mapping[str, Task]:
        self._digests = restored.digests
        return dict.fromkeys(restored.results, self.feed.node.task)

    def _item(self, numbered: tuple[int, Any], *_: object) -> _Item:
        index, value = numbered
        node, name = self.feed.node, f"{self.feed.node.task_name}[{index}]"
        digest = b"" if self._journal is None else digest_of(value)
        before = self._digests.get(name, b"")
        if digest and before and digest != before:
            raise GraphChangedError(
                f"item {index} of map {self.feed.run_id!r} is not the one that it was begun with; "
                "resume it with the same items in the same order, or begin another",
                changed=[name],
            )
        return _Item(node.task, name, node.binding, value, digest)


def _map_node(map_func: Task, output: str) -> DAGNode:
    """The node that stands for all items of a map."""
    return DAGNode(map_func, output=output, inputs=[_ITEM], name=output)


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
