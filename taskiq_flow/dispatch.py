"""Sending one node's task to the broker: its name and labels, its arguments, its message."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Protocol

from pydantic import BaseModel
from taskiq import (
    AsyncBroker,
    AsyncTaskiqDecoratedTask,
    BrokerMessage,
    TaskiqMessage,
    TaskiqMiddleware,
)
from taskiq.labels import prepare_label
from taskiq.utils import maybe_awaitable

from taskiq_flow.completion import runs_in_process
from taskiq_flow.completion.in_memory import InMemoryHooks
from taskiq_flow.dataflow.binding import Binding, Task, signature_of
from taskiq_flow.dataflow.node import default_name
from taskiq_flow.errors import ConfigurationError, SerializationError


class RunnableNode(Hashable, Protocol):
    """What a run needs of a node."""

    @property
    def task(self) -> Task:
        """What is sent to the broker."""

    @property
    def task_name(self) -> str:
        """The node's name, unique within its run."""

    @property
    def binding(self) -> Binding:
        """How keys reach the task's parameters."""

    @property
    def outputs(self) -> list[str]:
        """The output keys."""

    def store(self, result: Any, values: dict[str, Any]) -> None:
        """Put what the task returned under the output keys; may raise ``OutputShapeError``."""

    def arguments(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of the task's call."""


@dataclass(frozen=True, slots=True)
class Address:
    """What is the same in all messages of one task."""

    task_name: str
    labels: dict[str, str]
    labels_types: dict[str, int]
    return_type: Any


class Dispatcher:
    """Sends the tasks of one run to one broker, as taskiq's own kicker does.

    The run calls the middlewares that the broker has when it begins.
    """

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker = broker
        self._addresses: dict[int, Address] = {}
        others = [m for m in broker.middlewares if not isinstance(m, InMemoryHooks)]
        base = TaskiqMiddleware
        self._before = [m for m in others if type(m).pre_send is not base.pre_send]
        self._behind = [m for m in reversed(others) if type(m).post_send is not base.post_send]

    def address(self, node: RunnableNode) -> Address:
        """Where a node's task is sent. A plain callable is registered with the broker first.

        Raises ``ConfigurationError`` if the broker cannot run the task.
        """
        address = self._addresses.get(id(node.task))
        if address is None:
            address = self._addresses[id(node.task)] = self._find(node)
        return address

    async def send(
        self,
        node: RunnableNode,
        address: Address,
        task_id: str,
        args: list[Any],
        kwargs: dict[str, Any],
    ) -> None:
        """Send one call of a node's task.

        Raises ``SerializationError``, or whatever the broker and its middlewares raise.
        """
        message = TaskiqMessage(
            task_id=task_id,
            task_name=address.task_name,
            labels=address.labels,
            labels_types=address.labels_types,
            args=[_plain(value) for value in args],
            kwargs={name: _plain(value) for name, value in kwargs.items()},
        )
        for middleware in self._before:
            message = await maybe_awaitable(middleware.pre_send(message))
        await self._broker.kick(self._encode(node, message))
        for middleware in self._behind:
            await maybe_awaitable(middleware.post_send(message))

    def _find(self, node: RunnableNode) -> Address:
        task = node.task
        if not isinstance(task, AsyncTaskiqDecoratedTask):
            if not runs_in_process(self._broker):
                raise ConfigurationError(
                    f"node {node.task_name!r} is a plain callable, which the workers of "
                    f"{type(self._broker).__name__} cannot know; decorate it with @broker.task"
                )
            task = _registered(self._broker, task)
        elif runs_in_process(self._broker) and self._broker.find_task(task.task_name) is None:
            raise ConfigurationError(
                f"the task {task.task_name!r} of node {node.task_name!r} belongs to another "
                "broker than the engine's; decorate it with that one, or give the engine this one"
            )
        prepared = {
            label: prepare_label(value)
            for label, value in task.labels.items()
            if label != "types_of_exceptions"  # exception classes, which taskiq keeps at home too
        }
        return Address(
            task_name=task.task_name,
            labels={label: value for label, (value, _) in prepared.items()},
            labels_types={label: kind for label, (_, kind) in prepared.items()},
            return_type=task.return_type,
        )

    def _encode(self, node: RunnableNode, message: TaskiqMessage) -> BrokerMessage:
        try:
            return self._broker.formatter.dumps(message)
        except Exception as error:  # whatever a formatter or a serializer raises
            raise self._explained(node, message, error) from error

    def _explained(
        self, node: RunnableNode, message: TaskiqMessage, error: Exception
    ) -> SerializationError:
        """Name the value that does not pass: the first that cannot be sent alone."""
        keys, names = node.binding.keys_of(len(message.args))
        passed = [*zip(keys, message.args, strict=True)]
        passed += [(names.get(name, name), value) for name, value in message.kwargs.items()]
        for key, value in passed:
            alone = message.model_copy(update={"args": [value], "kwargs": {}})
            try:
                self._broker.formatter.dumps(alone)
            except Exception:  # this is the one
                return SerializationError(
                    f"node {node.task_name!r} cannot be sent the value of {key!r}, a "
                    f"{_type_name(value)}: {type(self._broker.formatter).__name__} with "
                    f"{type(self._broker.serializer).__name__} cannot carry it ({error}); have "
                    "the task that makes it return plain data (numbers, strings, lists, dicts, "
                    "models), or give the broker a formatter that can",
                    task_name=node.task_name,
                    key=key,
                    value_type=type(value),
                )
        return SerializationError(
            f"the message of node {node.task_name!r} cannot be encoded: {error}",
            task_name=node.task_name,
        )


def _registered(
    broker: AsyncBroker, function: Callable[..., Any]
) -> AsyncTaskiqDecoratedTask[Any, Any]:
    """A plain callable as a task of the broker, registered once for as long as the broker lives."""
    module = getattr(function, "__module__", None) or __name__
    first_name = name = f"{module}:{default_name(function)}"
    for number in itertools.count(2):
        task = broker.find_task(name)
        if task is None:
            return broker.register_task(_stand_in(function), task_name=name)
        stands_for = getattr(task.original_func, "stands_for", None)
        # A bound method is a new object each time it is looked up.
        if stands_for is function or (inspect.ismethod(function) and stands_for == function):
            return task
        name = f"{first_name}#{number}"
    raise AssertionError("itertools.count does not end")


def _stand_in(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the same signature, for taskiq to rename instead of the user's own."""

    async def call_async(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    stand_in = functools.wraps(function)(call_async if _is_async(function) else call)
    stand_in.__annotations__ = _annotations(function)
    stand_in.__module__ = __name__  # where taskiq leaves the renamed function as an attribute
    vars(stand_in)["stands_for"] = function
    return stand_in


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """What taskiq reads to parse arguments and to inject; it fails on one it cannot evaluate."""
    signature = signature_of(function)
    hints = {name: p.annotation for name, p in signature.parameters.items()}
    hints["return"] = signature.return_annotation
    return {
        name: hint
        for name, hint in hints.items()
        if hint is not inspect.Signature.empty and not isinstance(hint, str)
    }


def _is_async(function: Callable[..., Any]) -> bool:
    if inspect.iscoroutinefunction(function):
        return True
    return inspect.iscoroutinefunction(type(function).__call__)


_ALREADY_PLAIN = frozenset({type(None), bool, int, float, str, list, dict, tuple})


def _plain(value: Any) -> Any:
    """Models and dataclasses as plain data, as taskiq's kicker passes them on."""
    if type(value) in _ALREADY_PLAIN:  # spares the common values two slow questions
        return value
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value


def _type_name(value: Any) -> str:
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
