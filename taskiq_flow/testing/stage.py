"""A graph whose tasks are executed on the event loop itself, each when it is its turn."""

from __future__ import annotations

import inspect
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Protocol, get_args

from taskiq import AsyncTaskiqDecoratedTask, InMemoryBroker

from taskiq_flow.dataflow.axes import node_name
from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.tasks import Task, default_name, original_function, task_info
from taskiq_flow.dataflow.type_check import returned_type
from taskiq_flow.dispatch.callables import annotations_of
from taskiq_flow.engine.arguments import check_graph
from taskiq_flow.errors import MissingNodeError
from taskiq_flow.events import Event, NodeStarted
from taskiq_flow.execution_engine import ExecutionEngine
from taskiq_flow.journal import RedisJournal, SqliteJournal
from taskiq_flow.processes.in_process import runs_in_process
from taskiq_flow.suggestions import did_you_mean
from taskiq_flow.testing.brokers import copy_dependencies
from taskiq_flow.values.fitting import Fit, misfit, name_of

executing: ContextVar[NodeStarted] = ContextVar("executing")
"""The attempt that the current asyncio task executes."""


_IN_REAL_TIME = (str, os.PathLike, SqliteJournal, RedisJournal)
"""Journals that wait for threads or connections."""


class Turn(Protocol):
    """Says when an execution goes on: its task is called within the context.

    A generator gives each of its items after such a context.
    """

    def __call__(self, attempt: NodeStarted, /) -> AbstractAsyncContextManager[None]:
        """The context in which an attempt is executed."""


class Call(Protocol):
    """Calls the function of a node's task."""

    def __call__(
        self, node: DAGNode, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Awaitable[Any]:
        """Call the function with these arguments."""


class EventLog:
    """Has the events of a run and the attempts that it sent, and tells each task its attempt."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.sent: list[NodeStarted] = []

    def clear(self) -> None:
        """Begin with the next run."""
        self.events, self.sent = [], []

    def on_event(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    def on_sending(self, sending: NodeStarted) -> Mapping[str, str]:
        """Keep an attempt, and have its task know which it is."""
        self.sent.append(sending)
        executing.set(sending)
        return {}


async def call_directly(
    _node: DAGNode, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """Call the function of a node's task."""
    value = function(*args, **kwargs)
    return await value if inspect.isawaitable(value) else value


class Stage:
    """An engine with a graph like the given one.

    ``log``: of the latest run. ``in_flight``: the names of what is executed.

    Its tasks are executed on the event loop, sync ones too, so that their order depends on nothing
    but the graph and ``turn``. ``replace``: by node, what stands in for its task: a function, an
    exception to be raised, or any other value to be given. Caches are not asked. ``options``: of
    the engine.

    Raises ``MissingNodeError`` for a name that the graph does not have, ``TypeError`` for a
    function that cannot be called as the node's task is and for a journal on a disk or a server,
    and what the engine raises.
    """

    def __init__(
        self,
        dag: DAG,
        replace: Mapping[str, Any],
        turn: Turn,
        call: Call = call_directly,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        check_graph(dag)
        dag.validate()
        if not isinstance(replace, Mapping):
            raise TypeError(f"replace is {replace!r}; give a mapping, as in {{'load': [1, 2]}}")
        if isinstance(options.get("journal"), _IN_REAL_TIME):
            raise TypeError(
                f"journal is {options['journal']!r}, for which a virtual clock does not wait; give "
                "MemoryJournal(), or leave it out"
            )
        self.broker = InMemoryBroker()
        self.dag = DAG()
        self.turn = turn
        self.log = EventLog()
        self.in_flight: dict[str, None] = {}
        self._call = call
        stand_ins = {_node_in(dag, name): stand_in for name, stand_in in replace.items()}
        for node in dag.nodes:
            self.dag.add_node(self._staged(node, stand_ins))
        for node, before in dag.resolved_orderings().items():
            for other in before:
                self.dag.add_edge(other.task_name, node.task_name)
        listeners = [*options.get("listeners", ()), self.log]
        self.engine = ExecutionEngine(self.broker, self.dag, **{**options, "listeners": listeners})

    def _staged(self, node: DAGNode, stand_ins: Mapping[DAGNode, Any]) -> DAGNode:
        if node.is_computed:
            if node in stand_ins:
                raise ValueError(
                    f"replace= has {node.task_name!r}, which the engine makes of what other nodes "
                    "give; replace those"
                )
            return node
        fallback = node.fallback_node
        other = None if fallback is None else self._task(fallback, _own_function(fallback.task))
        if node in stand_ins:
            function = _function_of(node, stand_ins[node])
            staged = node.with_task(self._task(node, function, injects=False), other)
        else:
            staged = node.with_task(self._task(node, _own_function(node.task)), other)
        staged.cache = None
        return staged

    def _task(self, node: DAGNode, function: Callable[..., Any], *, injects: bool = True) -> Task:
        """The task of a node, executed here, with this function in place of its own."""
        call = self._call
        fitting = _as_it_is if injects else _fitting(node)

        async def execute(*args: Any, **kwargs: Any) -> Any:
            with self._executing():
                async with self.turn(executing.get()):
                    return fitting(await call(node, function, *args, **kwargs))

        async def execute_generator(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            with self._executing():
                values = _items(await call(node, function, *args, **kwargs))
                async with aclosing(values) as items:
                    async for item in items:
                        async with self.turn(executing.get()):
                            pass
                        yield fitting(item)

        wrapper: Any = execute_generator if node.is_generator else execute
        own, info = original_function(node.task), task_info(node.task)
        signature = info.signature
        if not injects:
            parameters = signature.parameters.values()
            kept = [p for p in parameters if p.name not in info.parameters[1]]
            signature = signature.replace(parameters=kept)
        wrapper.__name__ = wrapper.__qualname__ = default_name(own)
        wrapper.__module__ = getattr(own, "__module__", None) or __name__
        wrapper.__annotations__ = annotations_of(signature)
        wrapper.__signature__ = signature
        if isinstance(node.task, AsyncTaskiqDecoratedTask):
            return self._registered(node.task, node.task_name, wrapper)
        function_of_node: Task = wrapper
        return function_of_node

    @contextmanager
    def _executing(self) -> Iterator[None]:
        name = executing.get().task_name
        self.in_flight[name] = None
        try:
            yield
        finally:
            self.in_flight.pop(name, None)

    def _registered(
        self, task: AsyncTaskiqDecoratedTask[Any, Any], node: str, wrapper: Any
    ) -> AsyncTaskiqDecoratedTask[Any, Any]:
        """A task as it is on its broker: with its labels, and with what is injected there."""
        copy_dependencies(task.broker, self.broker)
        registry = self.broker.local_task_registry
        name = task.task_name
        while name in registry:  # several nodes have this task
            name = f"{name}#{node}"
        registry[name] = copied = AsyncTaskiqDecoratedTask(
            broker=self.broker,
            original_func=wrapper,
            labels=dict(task.labels),
            task_name=name,
            return_type=task.return_type,
        )
        return copied


def _node_in(dag: DAG, name: str) -> DAGNode:
    """The node of which ``replace=`` has a name. Raises ``MissingNodeError``."""
    names = [node.task_name for node in dag.nodes]
    if name in names:
        return dag.get_node(name)
    whole = node_name(str(name))
    if whole in names:
        raise MissingNodeError(
            f"replace= has {name!r}, an element; replace its node {whole!r}, whose stand-in is "
            "called for each element with its values",
            reference=name,
        )
    raise no_such_node("replace", name, names)


def no_such_node(argument: str, name: str, names: Sequence[str]) -> MissingNodeError:
    """The error of an argument that has a name which none of the nodes has."""
    hint = did_you_mean(str(name), names) or f"; it has {', '.join(map(repr, names)) or 'none'}"
    return MissingNodeError(
        f"{argument}= has {name!r}, and the graph has no such node{hint}", reference=name
    )


def _own_function(task: Task) -> Callable[..., Any]:
    function = original_function(task)
    return runs_in_process(function) or function


def _function_of(node: DAGNode, stand_in: Any) -> Callable[..., Any]:
    """What is called in place of a node's task."""
    if isinstance(stand_in, BaseException) or (
        isinstance(stand_in, type) and issubclass(stand_in, BaseException)
    ):

        def fail(*_: Any, **__: Any) -> Any:
            raise stand_in

        return fail
    if not callable(stand_in):
        return lambda *_, **__: stand_in
    _check_call(node, stand_in)
    function: Callable[..., Any] = stand_in
    return function


def _check_call(node: DAGNode, function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some built-in functions, and of some mocks
        return
    args, kwargs = node.arguments(dict.fromkeys(node.binding.required_keys))
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        by_position, by_name = node.binding.keys_of(len(args))
        shown = [*by_position, *(f"{name}=" for name in by_name if name in kwargs)]
        raise TypeError(
            f"replace= has {function!r} for node {node.task_name!r}, whose task is called with "
            f"({', '.join(shown)}): {error}; give it the task's parameters, or give a value"
        ) from None


def _as_it_is(item: Any) -> Any:
    return item


def _fitting(node: DAGNode) -> Callable[[Any], Any]:
    """Has what a stand-in gives fit the annotation of the task, with all that it contains.

    Of a generator that is each item. What a task itself gives is passed on as everywhere.
    """
    annotation, gives, gave = returned_type(node), "return", "returned"
    if node.is_generator:
        of_list = get_args(annotation)
        annotation, gives, gave = of_list[0] if of_list else Any, "give items of", "gave"
    fit = Fit.of(annotation)
    if fit is None:
        return _as_it_is
    says = f"{node.task_name} is annotated to {gives} {name_of(annotation)}, and {gave}"

    def convert(item: Any) -> Any:
        try:
            return fit.convert_in_full(item)
        except Exception as error:  # whatever pydantic or a class's own code raises
            raise misfit(says, item, error) from error

    return convert


async def _items(values: Any) -> AsyncGenerator[Any, None]:
    """The items of a generator, or of what stands in for it."""
    if isinstance(values, AsyncGenerator):
        async with aclosing(values):
            async for value in values:
                yield value
    else:
        items: Iterable[Any] = values
        for value in items:
            yield value
