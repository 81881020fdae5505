"""Sending one node's task to the broker."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Coroutine, Hashable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

from taskiq import (
    AsyncBroker,
    AsyncTaskiqDecoratedTask,
    BrokerMessage,
    InMemoryBroker,
    TaskiqMiddleware,
)
from taskiq.utils import maybe_awaitable

from taskiq_flow.completion.in_memory import InMemoryHooks
from taskiq_flow.dataflow.binding import Binding, Task, original_function, task_info
from taskiq_flow.dispatch.callables import as_task, embedded
from taskiq_flow.dispatch.encoding import (
    ALREADY_PLAIN,
    Address,
    encode_call,
    encode_unseen,
    explained,
    formats_as_usual,
    passed,
    plain,
    with_values,
)
from taskiq_flow.errors import ConfigurationError, SerializationError
from taskiq_flow.events import Index
from taskiq_flow.middleware import FlowMiddleware, may_repeat, wire_of
from taskiq_flow.transport.protocol import Kick
from taskiq_flow.values.arguments import StoredArguments
from taskiq_flow.values.call import Call, with_each
from taskiq_flow.values.handle import ResultHandle
from taskiq_flow.values.isolation import NEVER_CHANGE, Take, isolated
from taskiq_flow.values.plain import is_plain

logger = logging.getLogger("taskiq_flow")

Sending = Callable[[], Coroutine[Any, Any, None]]
"""The rest of a send, which is awaited where it may wait for the broker."""


class RunnableNode(Hashable, Protocol):
    """What a run needs of a node."""

    @property
    def task(self) -> Task:
        """What is sent to the broker."""

    @property
    def task_name(self) -> str:
        """The node's name, unique within its run."""

    @property
    def index(self) -> Index | None:
        """The place of an element among those of its node; ``None`` for a node that runs once."""

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


Prepare = Callable[[RunnableNode, list[Any], dict[str, Any]], tuple[list[Any], dict[str, Any]]]
"""Makes of the values of a call what middlewares see and tasks are given."""


class Dispatcher:
    """Sends the tasks of one run to one broker, as taskiq's own kicker does.

    The run calls the middlewares that the broker has when it begins. ``labels`` are added to each
    message, ``kick`` hands it to the broker. ``take``: makes of a value what a task of this process
    is given. ``arguments``: stores large arguments, where the broker has a store.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        labels: Mapping[str, str] = MappingProxyType({}),
        kick: Kick | None = None,
        take: Take = isolated,
        arguments: StoredArguments | None = None,
    ) -> None:
        self._arguments = arguments
        self._broker = broker
        self._take = take
        self._prepared: Prepare
        if isinstance(broker, InMemoryBroker):
            self._hooks: InMemoryHooks | None = InMemoryHooks.of(broker)
            self._as_they_are, self._prepared = NEVER_CHANGE, self._taken
        else:
            self._hooks = None
            self._as_they_are, self._prepared = ALREADY_PLAIN, self._plain
        self._wire = wire_of(broker) if formats_as_usual(broker) else None
        if self._hooks is None and self._wire is not None:
            self._prepared = _unchanged
        self._converts = self._hooks is None and self._wire is None
        self._labels = labels
        self._kick = broker.kick if kick is None else kick
        self._addresses: dict[int, Address] = {}
        own = (InMemoryHooks, FlowMiddleware)
        others = [m for m in broker.middlewares if not isinstance(m, own)]
        base = TaskiqMiddleware
        self._before = [m for m in others if type(m).pre_send is not base.pre_send]
        self._after = [m for m in reversed(others) if type(m).post_send is not base.post_send]
        self._unseen = not (self._before or self._after) and formats_as_usual(broker)
        self._never_waits = _never_waits(broker)
        self._others_may_repeat = may_repeat(others)

    def address(self, node: RunnableNode) -> Address:
        """Where a node's task is sent. A plain callable is registered with the broker first.

        Raises ``ConfigurationError`` if the broker cannot run the task.
        """
        address = self._addresses.get(id(node.task))
        if address is None:
            address = self._addresses[id(node.task)] = Address.of(self._find(node), self._labels)
        return address

    def send(
        self,
        node: RunnableNode,
        address: Address,
        task_id: str,
        args: list[Any],
        kwargs: dict[str, Any],
    ) -> Sending | None:
        """Send one call of a node's task. Returns what is left to be done, if anything is.

        Raises ``SerializationError``, or whatever the broker and its middlewares raise, at once or
        when what is left is awaited.
        """
        stores = self._arguments
        if stores is not None and stores.may_store((*args, *kwargs.values())):
            return partial(self._send_stored, stores, node, address, task_id, args, kwargs)
        return self._send_now(node, address, task_id, args, kwargs)

    def _send_now(
        self,
        node: RunnableNode,
        address: Address,
        task_id: str,
        args: list[Any],
        kwargs: dict[str, Any],
    ) -> Sending | None:
        if not (
            self._as_they_are.issuperset(map(type, args))
            and self._as_they_are.issuperset(map(type, kwargs.values()))
        ):
            if self._hooks is not None and _has_handles(args, kwargs):
                return partial(self._send_values, node, address, task_id, args, kwargs)
            args, kwargs = self._prepared(node, args, kwargs)
        if not self._unseen:
            return partial(self._send_message, node, address, task_id, args, kwargs)
        dumps = partial(encode_unseen, self._broker, address, task_id, converts=self._converts)
        encoded = self._encoded(node, address, task_id, args, kwargs, dumps)
        if not self._never_waits:
            return partial(self._kick, encoded)
        try:
            self._kick(encoded).send(None)
        except StopIteration:
            return None
        raise AssertionError(f"{type(self._broker).__name__}.kick has waited")

    def _encoded(
        self,
        node: RunnableNode,
        address: Address,
        task_id: str,
        args: list[Any],
        kwargs: dict[str, Any],
        dumps: Callable[[list[Any], dict[str, Any]], BrokerMessage],
    ) -> BrokerMessage:
        """What the broker is given. ``dumps``: makes it of the call that stands in the message.

        Raises ``SerializationError``.
        """
        if self._hooks is not None:
            self._hand_over(node, address, task_id, args, kwargs)
            return dumps([], {})
        wire = self._wire
        try:
            if wire is None:
                return dumps(args, kwargs)
            if is_plain(args) and is_plain(kwargs):
                with contextlib.suppress(Exception):  # of a serializer that is stricter than JSON
                    return dumps(args, kwargs)
            return dumps([], encode_call(wire, task_id, args, kwargs))
        except Exception as error:  # whatever a value or a serializer raises
            raise explained(self._broker, node, args, kwargs, error, wire) from error

    def _hand_over(
        self,
        node: RunnableNode,
        address: Address,
        task_id: str,
        args: list[Any],
        kwargs: dict[str, Any],
    ) -> None:
        """Leave the values of a call to the task in this process. Its message has none."""
        execution = None if self._hooks is None else self._hooks.executions.get(task_id)
        if execution is not None:
            may_come_again = self._others_may_repeat or bool(task_info(node.task).parameters[1])
            take = self._take if may_come_again else None
            execution.call = Call(address.task_name, args, kwargs, take)

    def _taken(
        self, node: RunnableNode, args: list[Any], kwargs: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """What the node's task is given. Raises ``SerializationError``, naming the key."""
        try:
            return with_each(self._take, args, kwargs)
        except SerializationError:
            for key, value in passed(node.binding, args, kwargs):
                try:
                    self._take(value)
                except SerializationError as error:  # this is the one
                    raise SerializationError(
                        f"node {node.task_name!r} cannot be given the value of {key!r}: {error}",
                        task_name=node.task_name,
                        key=key,
                        value_type=type(value),
                    ) from error
            raise

    def _plain(
        self, node: RunnableNode, args: list[Any], kwargs: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        try:
            return with_each(plain, args, kwargs)
        except Exception as error:  # whatever a value's own code raises
            raise explained(self._broker, node, args, kwargs, error) from error

    async def _send_values(
        self,
        node: RunnableNode,
        address: Address,
        task_id: str,
        args: list[Any],
        kwargs: dict[str, Any],
    ) -> None:
        """Send a call that holds handles to a task of this process, which is given the values."""
        args, kwargs = await with_values(args, kwargs)
        sending = self.send(node, address, task_id, args, kwargs)
        if sending is not None:
            await sending()

    async def _send_stored(
        self,
        stores: StoredArguments,
        node: RunnableNode,
        address: Address,
        task_id: str,
        args: list[Any],
        kwargs: dict[str, Any],
    ) -> None:
        """Send a call whose large arguments are stored first. Each is stored for all its takers."""
        named = list(passed(node.binding, args, kwargs))
        found = [
            await stores.handle_for(f"the value of {key!r} for node {node.task_name!r}", value)
            for key, value in named
        ]
        own_args, own_kwargs = (
            found[: len(args)],
            dict(zip(kwargs, found[len(args) :], strict=True)),
        )
        sending = self._send_now(node, address, task_id, own_args, own_kwargs)
        if sending is not None:
            await sending()

    async def _send_message(
        self,
        node: RunnableNode,
        address: Address,
        task_id: str,
        args: list[Any],
        kwargs: dict[str, Any],
    ) -> None:
        """Send a call whose message middlewares see, or a formatter of the user's encodes."""
        message = address.message(task_id, args, kwargs)
        for middleware in self._before:
            message = await maybe_awaitable(middleware.pre_send(message))

        def dumps(args: list[Any], kwargs: dict[str, Any]) -> BrokerMessage:
            sent = message.model_copy(update={"args": args, "kwargs": kwargs})
            return self._broker.formatter.dumps(sent)

        own_args, own_kwargs = message.args, message.kwargs
        encoded = self._encoded(node, address, task_id, own_args, own_kwargs, dumps)
        await self._kick(encoded)
        for middleware in self._after:
            try:
                await maybe_awaitable(middleware.post_send(message))
            except Exception:  # the task is on its way, and its outcome counts
                logger.exception("post_send of %r raised", middleware)

    def _find(self, node: RunnableNode) -> AsyncTaskiqDecoratedTask[Any, Any]:
        """The node's task as the broker knows it."""
        task, broker = node.task, self._broker
        if not isinstance(task, AsyncTaskiqDecoratedTask):
            if isinstance(broker, InMemoryBroker):
                return embedded(broker, as_task(broker, task), task)
            raise ConfigurationError(
                f"node {node.task_name!r} is a plain callable, which the workers of "
                f"{type(broker).__name__} cannot know; decorate it with @broker.task"
            )
        if not isinstance(broker, InMemoryBroker):
            return task
        own = broker.find_task(task.task_name)
        if own is None:
            raise ConfigurationError(
                f"the task {task.task_name!r} of node {node.task_name!r} belongs to another "
                "broker than the engine's; decorate it with that one, or give the engine this one, "
                "or taskiq_flow.testing.in_memory(broker) in a test"
            )
        return embedded(broker, own, original_function(own))


def _unchanged(
    _: RunnableNode, args: list[Any], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    return args, kwargs


def _has_handles(args: list[Any], kwargs: dict[str, Any]) -> bool:
    return any(isinstance(value, ResultHandle) for value in (*args, *kwargs.values()))


def _never_waits(broker: AsyncBroker) -> bool:
    """Whether the broker's ``kick`` only starts an asyncio task, so that it need not be awaited."""
    return (
        isinstance(broker, InMemoryBroker)
        and not broker.await_inplace
        and type(broker).kick is InMemoryBroker.kick
        and "kick" not in vars(broker)
    )
