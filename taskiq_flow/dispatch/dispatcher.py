"""Sending one node's task to the broker."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from taskiq import (
    AsyncBroker,
    AsyncTaskiqDecoratedTask,
    InMemoryBroker,
    TaskiqMessage,
    TaskiqMiddleware,
)
from taskiq.utils import maybe_awaitable

from taskiq_flow.completion.in_memory import InMemoryHooks
from taskiq_flow.dataflow.binding import Binding, Task
from taskiq_flow.dispatch.callables import as_task
from taskiq_flow.dispatch.encoding import (
    Address,
    encode_unseen,
    explained,
    formats_as_usual,
    plain,
    with_references,
    with_values,
)
from taskiq_flow.errors import ConfigurationError
from taskiq_flow.middleware import FlowMiddleware
from taskiq_flow.transport.protocol import Kick
from taskiq_flow.values.handle import ResultHandle

logger = logging.getLogger("taskiq_flow")


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


class Dispatcher:
    """Sends the tasks of one run to one broker, as taskiq's own kicker does.

    The run calls the middlewares that the broker has when it begins. ``labels`` are added to each
    message, ``kick`` hands it to the broker.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        labels: Mapping[str, str] = MappingProxyType({}),
        kick: Kick | None = None,
    ) -> None:
        self._broker = broker
        self._labels = labels
        self._kick = broker.kick if kick is None else kick
        self._addresses: dict[int, Address] = {}
        own = (InMemoryHooks, FlowMiddleware)
        others = [m for m in broker.middlewares if not isinstance(m, own)]
        base = TaskiqMiddleware
        self._before = [m for m in others if type(m).pre_send is not base.pre_send]
        self._behind = [m for m in reversed(others) if type(m).post_send is not base.post_send]
        self._unseen = not (self._before or self._behind) and formats_as_usual(broker)

    def address(self, node: RunnableNode) -> Address:
        """Where a node's task is sent. A plain callable is registered with the broker first.

        Raises ``ConfigurationError`` if the broker cannot run the task.
        """
        address = self._addresses.get(id(node.task))
        if address is None:
            address = self._addresses[id(node.task)] = Address.of(self._find(node), self._labels)
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
        broker = self._broker
        if any(isinstance(value, ResultHandle) for value in (*args, *kwargs.values())):
            if isinstance(broker, InMemoryBroker):
                args, kwargs = await with_values(args, kwargs)
            else:
                address, args, kwargs = with_references(address, args, kwargs)
        try:
            plain_args = [plain(value) for value in args]
            plain_kwargs = {name: plain(value) for name, value in kwargs.items()}
            if self._unseen:
                encoded = encode_unseen(broker, address, task_id, plain_args, plain_kwargs)
        except Exception as error:  # whatever a value or a serializer raises
            raise explained(broker, node, args, kwargs, error) from error
        if self._unseen:
            await self._kick(encoded)
            return
        message = address.message(task_id, plain_args, plain_kwargs)
        for middleware in self._before:
            message = await maybe_awaitable(middleware.pre_send(message))
        try:
            encoded = broker.formatter.dumps(message)
        except Exception as error:  # whatever a formatter or a serializer raises
            raise explained(broker, node, message.args, message.kwargs, error) from error
        await self._kick(encoded)
        await self._tell_that_it_was_sent(message)

    async def _tell_that_it_was_sent(self, message: TaskiqMessage) -> None:
        for middleware in self._behind:
            try:
                await maybe_awaitable(middleware.post_send(message))
            except Exception:  # the task is on its way, and what comes of it counts
                logger.exception("post_send of %r raised", middleware)

    def _find(self, node: RunnableNode) -> AsyncTaskiqDecoratedTask[Any, Any]:
        """The node's task as the broker knows it."""
        task, broker = node.task, self._broker
        if not isinstance(task, AsyncTaskiqDecoratedTask):
            if isinstance(broker, InMemoryBroker):
                return as_task(broker, task)
            raise ConfigurationError(
                f"node {node.task_name!r} is a plain callable, which the workers of "
                f"{type(broker).__name__} cannot know; decorate it with @broker.task"
            )
        if isinstance(broker, InMemoryBroker) and broker.find_task(task.task_name) is None:
            raise ConfigurationError(
                f"the task {task.task_name!r} of node {node.task_name!r} belongs to another "
                "broker than the engine's; decorate it with that one, or give the engine this one"
            )
        return task
