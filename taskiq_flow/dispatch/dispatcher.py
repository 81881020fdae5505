"""Sending one node's task to the broker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from taskiq import (
    AsyncBroker,
    AsyncTaskiqDecoratedTask,
    BrokerMessage,
    InMemoryBroker,
    TaskiqMiddleware,
)
from taskiq.utils import maybe_awaitable

from taskiq_flow.completion.in_memory_hooks import InMemoryHooks
from taskiq_flow.dataflow.binding import takes_calls_of, task_text
from taskiq_flow.dataflow.tasks import Task, is_same_function, task_info
from taskiq_flow.dispatch.callables import embedded
from taskiq_flow.dispatch.encoding import (
    ALREADY_PLAIN,
    Address,
    Invocation,
    RunnableNode,
    encode_call,
    encode_unseen,
    explained,
    formats_as_usual,
    plain,
)
from taskiq_flow.errors import ConfigurationError, RedefinedTaskWarning, SerializationError, warn
from taskiq_flow.middleware import FlowMiddleware, may_repeat, wire_of
from taskiq_flow.transport.protocol import Begin, Kick
from taskiq_flow.values.arguments import StoredArguments
from taskiq_flow.values.call import Call
from taskiq_flow.values.handle import ResultHandle, holds_handles
from taskiq_flow.values.inspection import NEVER_CHANGE
from taskiq_flow.values.isolation import Take, isolated, shared
from taskiq_flow.values.plain import is_plain

logger = logging.getLogger("taskiq_flow")

RestOfSend = Callable[[], Coroutine[Any, Any, None]]
"""The rest of a send, which is awaited where it may wait for the broker."""


class Begun(NamedTuple):
    """A send that goes on by itself until the broker has answered.

    ``repeat``: awaited if ``taken`` fails. It sends once more, or raises what the broker raises.
    """

    taken: asyncio.Future[Any]
    repeat: RestOfSend


Sending = RestOfSend | Begun
"""A send that is not over yet."""


Send = Callable[[Invocation], Sending | None]

Prepare = Callable[[Invocation], Invocation]
"""Makes of the values of a call what middlewares see and tasks are given."""

Encode = Callable[[Invocation, list[Any], dict[str, Any]], BrokerMessage]
"""Makes the message of a call of the arguments that stand in it."""

Encoded = Callable[[Invocation, Encode], BrokerMessage]
"""Makes what the broker is given of a call."""


class Dispatcher:
    """Sends the tasks of one run to one broker, as taskiq's own kicker does.

    The run calls the middlewares that the broker has when it begins. ``labels`` are added to each
    message, ``labels_by_value`` to that of a task whose result is passed by value in any case.
    ``kick`` hands a message to the broker, ``begin`` does so at once where it can. ``take``: makes
    of a value what a task of this process is given. ``arguments``: stores large arguments, where
    the broker has a store. ``refers``: whether there may be handles within the lists of a call.

    ``send``: sends one call. Returns what is left to be done, if anything is. Raises
    ``SerializationError``, or whatever the broker and its middlewares raise, at once or when what
    is left is awaited.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        labels: Mapping[str, str] = MappingProxyType({}),
        labels_by_value: Mapping[str, str] = MappingProxyType({}),
        kick: Kick | None = None,
        take: Take = isolated,
        arguments: StoredArguments | None = None,
        *,
        begin: Begin | None = None,
        refers: bool = False,
    ) -> None:
        self._broker = broker
        self.send: Send = self._send
        if arguments is not None:
            self.send = partial(self._send_or_store, arguments)
        self._take = take
        self._prepared: Prepare
        self._encoded: Encoded
        if isinstance(broker, InMemoryBroker):
            self._hooks: InMemoryHooks | None = (hooks := InMemoryHooks.of(broker))
            self._as_they_are = NEVER_CHANGE
            self._prepared = _unchanged if take is shared else self._taken
            self._encoded = partial(self._handed_over, hooks)
        else:
            self._hooks = None
            self._as_they_are, self._prepared = ALREADY_PLAIN, self._plain
            self._encoded = self._encoded_for_workers
        self._wire = wire_of(broker) if formats_as_usual(broker) else None
        if self._hooks is None and self._wire is not None:
            self._prepared = _unchanged
        converts = self._hooks is None and self._wire is None
        self._encode: Encode = partial(encode_unseen, broker, converts=converts)
        self._labels = labels, labels_by_value
        self._is_referring = holds_handles if refers else _is_handle
        self._kick = broker.kick if kick is None else kick
        self._begin = begin
        self._addresses: tuple[dict[int, Address], dict[int, Address]] = ({}, {})
        own = (InMemoryHooks, FlowMiddleware)
        others = [m for m in broker.middlewares if not isinstance(m, own)]
        base = TaskiqMiddleware
        self._before = [m for m in others if type(m).pre_send is not base.pre_send]
        self._after = [m for m in reversed(others) if type(m).post_send is not base.post_send]
        is_unseen = not (self._before or self._after) and formats_as_usual(broker)
        self._send_prepared: Send = self._send_unseen if is_unseen else self._send_seen
        self._never_waits = _never_waits(broker)
        others_may_repeat = may_repeat(others)
        self._take_if_repeated = take if others_may_repeat else None
        self.may_repeat = others_may_repeat or self._hooks is None
        """Whether a task may be executed more often than a run has it sent."""
        self.is_elsewhere = self._hooks is None
        """Whether tasks are executed by workers, not in this process."""

    def address(self, node: RunnableNode, *, by_value: bool = False) -> Address:
        """Where a node's task is sent. A plain callable is registered with the broker first.

        ``by_value``: whether its result is passed by value in any case. Raises
        ``ConfigurationError`` if the broker cannot run the task.
        """
        task, known = node.task, self._addresses[by_value]
        address = known.get(id(task))
        if address is None:
            own = self._find(node)
            executed = task
            if _is_redefined(task, own):
                _check_redefined(node, own)
                executed = own
            injects = bool(task_info(executed).parameters[1])
            address = Address.of(own, self._labels[by_value], executed=executed, injects=injects)
            known[id(task)] = address
        return address

    def _send_or_store(self, stores: StoredArguments, call: Invocation) -> Sending | None:
        if stores.may_store(call.values()):
            return partial(self._send_stored, stores, call)
        return self._send(call)

    def _send(self, call: Invocation) -> Sending | None:
        args, kwargs, as_they_are = call.args, call.kwargs, self._as_they_are
        if not as_they_are.issuperset(map(type, args)) or (
            kwargs and not as_they_are.issuperset(map(type, kwargs.values()))
        ):
            if self._hooks is not None and any(map(self._is_referring, call.values())):
                return partial(self._send_values, call)
            call = self._prepared(call)
        return self._send_prepared(call)

    def _send_seen(self, call: Invocation) -> Sending:
        return partial(self._send_message, call)

    def _send_unseen(self, call: Invocation) -> Sending | None:
        encoded = self._encoded(call, self._encode)
        if not self._never_waits:
            repeat = partial(self._kick, encoded)
            taken = None if self._begin is None else self._begin(encoded)
            return repeat if taken is None else Begun(taken, repeat)
        try:
            self._kick(encoded).send(None)
        except StopIteration:
            return None
        raise AssertionError(f"{type(self._broker).__name__}.kick has waited")

    def _encoded_for_workers(self, call: Invocation, encode: Encode) -> BrokerMessage:
        """A message that has the values of the call. Raises ``SerializationError``."""
        wire, args, kwargs = self._wire, call.args, call.kwargs
        try:
            if wire is None:
                return encode(call, args, kwargs)
            if (not args or is_plain(args)) and (not kwargs or is_plain(kwargs)):
                with contextlib.suppress(Exception):  # of a serializer that is stricter than JSON
                    return encode(call, args, kwargs)
            return encode(call, [], encode_call(wire, call.task_id, args, kwargs))
        except Exception as error:  # whatever a value or a serializer raises
            raise explained(self._broker, call, error, wire) from error

    def _handed_over(self, hooks: InMemoryHooks, call: Invocation, encode: Encode) -> BrokerMessage:
        """A message without values, which are left to the task in this process."""
        task_id = call.task_id
        execution = hooks.executions.get(task_id)
        if execution is not None:
            address = call.address
            take = self._take if address.injects else self._take_if_repeated
            execution.call = Call(
                address.task_name, call.args, call.kwargs, take, execution.sink, task_id
            )
        return encode(call, [], {})

    def _taken(self, call: Invocation) -> Invocation:
        """What the node's task is given. Raises ``SerializationError``, naming the key."""
        try:
            return call.with_each(self._take)
        except SerializationError:
            name = call.node.task_name
            for key, value in call.by_key():
                try:
                    self._take(value)
                except SerializationError as error:  # this is the one
                    raise SerializationError(
                        f"node {name!r} cannot be given the value of {key!r}: {error}",
                        task_name=name,
                        key=key,
                        value_type=type(value),
                    ) from error
            raise

    def _plain(self, call: Invocation) -> Invocation:
        try:
            return call.with_each(plain)
        except Exception as error:  # whatever a value's own code raises
            raise explained(self._broker, call, error) from error

    async def _send_values(self, call: Invocation) -> None:
        """Send a call that holds handles to a task of this process, which is given the values."""
        await _whole(self.send(await call.with_values()))

    async def _send_stored(self, stores: StoredArguments, call: Invocation) -> None:
        """Send a call whose large arguments are stored first. Each is stored for all its takers."""
        name = call.node.task_name
        stored = [
            await stores.handle_for(f"the value of {key!r} for node {name!r}", value)
            for key, value in call.by_key()
        ]
        await _whole(self._send(call.with_arguments(stored)))

    async def _send_message(self, call: Invocation) -> None:
        """Send a call whose message middlewares see, or a formatter of the user's encodes."""
        message = call.address.message(call.task_id, call.args, call.kwargs)
        for middleware in self._before:
            message = await maybe_awaitable(middleware.pre_send(message))

        def encode(_: Invocation, args: list[Any], kwargs: dict[str, Any]) -> BrokerMessage:
            sent = message.model_copy(update={"args": args, "kwargs": kwargs})
            return self._broker.formatter.dumps(sent)

        encoded = self._encoded(call._replace(args=message.args, kwargs=message.kwargs), encode)
        await self._kick(encoded)
        for middleware in self._after:
            try:
                await maybe_awaitable(middleware.post_send(message))
            except Exception:  # the task is on its way, and its outcome counts
                logger.exception("post_send of %r raised", middleware)

    def _find(self, node: RunnableNode) -> AsyncTaskiqDecoratedTask[Any, Any]:
        """The node's task as the broker knows it."""
        task, broker = node.task, self._broker
        if isinstance(broker, InMemoryBroker) and (own := embedded(broker, task)) is not None:
            return own
        if not isinstance(task, AsyncTaskiqDecoratedTask):
            raise ConfigurationError(
                f"node {node.task_name!r} is a plain callable, which the workers of "
                f"{type(broker).__name__} cannot know; decorate it with @broker.task"
            )
        if isinstance(broker, InMemoryBroker):
            raise ConfigurationError(
                f"the task {task.task_name!r} of node {node.task_name!r} belongs to another "
                "broker than the engine's; decorate it with that one, or give the engine this one, "
                "or taskiq_flow.testing.in_memory(broker) in a test"
            )
        return task


def _is_redefined(task: Task, own: Task) -> bool:
    """Whether a broker's own task is another one than the graph has under that name."""
    has_name = isinstance(task, AsyncTaskiqDecoratedTask)
    return own is not task and has_name and not is_same_function(task, own)


def _check_redefined(node: RunnableNode, own: Task) -> None:
    """Warn that another task is executed than the graph was built with.

    Raises ``ConfigurationError`` if that one cannot be called as the graph has its task called.
    """
    task = node.task
    remedy = (
        "build the graph anew, or give each of them a name of its own, as in "
        "@broker.task(task_name=...)"
    )
    name = f"node {node.task_name!r}"
    if not takes_calls_of(own, task):
        raise ConfigurationError(
            f"{name} has its task called as {task_text(task)}, and the broker has another one of "
            f"that name now: {task_text(own)}; {remedy}"
        )
    warn(
        f"{name} runs {task_text(own)}, which the broker has under that name now; its graph was "
        f"built with {task_text(task)}; {remedy}",
        RedefinedTaskWarning,
    )


async def _whole(sending: Sending | None) -> None:
    """Await a send to its end."""
    if isinstance(sending, Begun):
        try:
            await sending.taken
        except Exception:  # whatever it was: either it does not come again, or it is raised
            await sending.repeat()
    elif sending is not None:
        await sending()


def _unchanged(call: Invocation) -> Invocation:
    return call


def _is_handle(value: Any) -> bool:
    return isinstance(value, ResultHandle)


def _never_waits(broker: AsyncBroker) -> bool:
    """Whether the broker's ``kick`` only starts an asyncio task, so that it need not be awaited."""
    return (
        isinstance(broker, InMemoryBroker)
        and not broker.await_inplace
        and type(broker).kick is InMemoryBroker.kick
        and "kick" not in vars(broker)
    )
