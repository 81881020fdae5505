"""The messages that a worker was given by its broker and has not acknowledged.

A broker hands out more than a worker can execute at once. What waits there is neither in the queue
nor being executed; only here can it be seen.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anyio
from taskiq import AckableMessage, AsyncBroker
from taskiq.utils import maybe_awaitable

from taskiq_flow.transport.notice import LABEL, ReplyTo

logger = logging.getLogger("taskiq_flow")

GIVING_BACK = 5.0
"""Seconds that the server may take for one message that is given back."""

Listen = Callable[[], AsyncGenerator[bytes | AckableMessage, None]]
"""A broker's ``listen``."""


class Delivery:
    """One message. ``origin``: what its client has given out.

    ``key``: tells the message from others on its server, however often it is delivered.
    ``task_id`` and ``reply_to`` are known once it was ``read``.
    """

    __slots__ = ("_ack", "data", "is_acknowledged", "key", "origin", "reply_to", "task_id")

    def __init__(
        self, data: bytes, ack: Callable[[], Awaitable[None] | None], origin: Any, key: Any
    ) -> None:
        self.data = data
        self.origin = origin
        self.key = key
        self.task_id = ""
        self.reply_to: ReplyTo | None = None
        self.is_acknowledged = False
        self._ack = ack

    async def ack(self) -> None:
        """Acknowledge the message, once."""
        if not self.is_acknowledged:
            await maybe_awaitable(self._ack())
            self.is_acknowledged = True

    def read(self, broker: AsyncBroker) -> ReplyTo | None:
        """Whom to tell about the task; ``None`` if no engine has sent it."""
        try:
            message = broker.formatter.loads(self.data)
            self.task_id = message.task_id
            self.reply_to = ReplyTo.of(message.labels[LABEL])
        except Exception:  # noqa: S110 - no task, or none of an engine: taskiq's own affair
            pass
        return self.reply_to


class Deliveries:
    """The messages that a worker holds.

    ``renew`` keeps some of them from being delivered to others. ``give_back`` has one delivered to
    another worker at once. ``on_acknowledged`` is called when taskiq has acknowledged one.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        renew: Callable[[list[Delivery]], Awaitable[None]] | None = None,
        give_back: Callable[[Delivery], Awaitable[None]] | None = None,
    ) -> None:
        self._broker = broker
        self._renew = renew
        self._give_back = give_back
        self._fetched: dict[int, tuple[AckableMessage, Delivery]] = {}  # not handed to taskiq yet
        self.on_acknowledged: Callable[[Delivery], None] = _nothing
        self._held: dict[Delivery, None] = {}

    def hold(
        self,
        data: bytes,
        ack: Callable[[], Awaitable[None] | None],
        origin: Any = None,
        key: Any = None,
    ) -> AckableMessage:
        """Hold a message from now until it is acknowledged; what to give to taskiq in its place."""
        delivery = Delivery(data, ack, origin, key)
        self._held[delivery] = None

        async def acknowledge() -> None:
            await self._let_go(delivery)
            self.on_acknowledged(delivery)

        message = AckableMessage(data=data, ack=acknowledge)
        self._fetched[id(message)] = message, delivery
        return message

    def hand_over(self, message: AckableMessage) -> AckableMessage:
        """Note that taskiq is given a message, and sees to it from now on."""
        self._fetched.pop(id(message), None)
        return message

    async def give_back(self) -> None:
        """Have what was fetched and not handed over delivered to others: nobody listens here now.

        A broker that cannot do that delivers it again when its own time is over.
        """
        fetched, self._fetched = [delivery for _, delivery in self._fetched.values()], {}
        for delivery in fetched:
            self._held.pop(delivery, None)
            if self._give_back is not None:
                try:
                    async with asyncio.timeout(GIVING_BACK):
                        await self._give_back(delivery)
                except Exception as error:  # whatever the client raises
                    logger.warning("a message was not given back: %r; it comes again later", error)

    def keys(self) -> set[Any]:
        """The keys of all messages that are held."""
        return {delivery.key for delivery in self._held}

    def holds(self, key: Any) -> bool:
        """Whether a message of this key is held."""
        return any(delivery.key == key for delivery in self._held)

    def of_engines(self) -> list[Delivery]:
        """Those that engines have sent. The others are taskiq's to look after, and forgotten."""
        for delivery in tuple(self._held):
            if delivery.reply_to is None and delivery.read(self._broker) is None:
                del self._held[delivery]
        return list(self._held)

    async def renew(self) -> None:
        """Keep those of engines from being delivered to others."""
        if self._renew is not None:
            await self._renew(self.of_engines())

    async def acknowledge(self, task_id: str) -> None:
        """Acknowledge a task that has ended and that taskiq has left unacknowledged."""
        for delivery in self.of_engines():
            if delivery.task_id == task_id:
                await self._let_go(delivery)

    def clear(self) -> None:
        """Hold nothing any more: the server has forgotten all of it."""
        self._held.clear()
        self._fetched.clear()

    async def _let_go(self, delivery: Delivery) -> None:
        await delivery.ack()
        self._held.pop(delivery, None)


def holding(listen: Listen, deliveries: Deliveries) -> Listen:
    """A ``listen`` whose messages are held. Those that need no acknowledgement get one."""

    async def listen_and_hold() -> AsyncGenerator[AckableMessage, None]:
        async with aclosing(listen()) as messages:
            async for message in messages:
                yield deliveries.hand_over(_held(message, deliveries))

    return listen_and_hold


def holding_ahead(
    listen: Listen, deliveries: Deliveries, key_of: Callable[[Any], Any] | None = None
) -> Listen:
    """Likewise, where the client takes messages ahead of those who listen: they are held as well.

    The server says how many it gives out unacknowledged. ``key_of``: the key of what the client has
    given out; what is held already is left out.
    """

    async def listen_ahead() -> AsyncGenerator[AckableMessage, None]:
        put, taken = anyio.create_memory_object_stream[AckableMessage](math.inf)

        async def take() -> None:
            async with put, aclosing(listen()) as messages:
                async for message in messages:
                    key = None if key_of is None else key_of(_origin(message))
                    if key is None or not deliveries.holds(key):
                        put.send_nowait(_held(message, deliveries, key))

        taking = asyncio.create_task(take())
        try:
            async with taken:
                async for message in taken:
                    yield deliveries.hand_over(message)
            await taking  # raises what has ended it
        finally:
            taking.cancel()
            await deliveries.give_back()

    return listen_ahead


def _held(
    message: bytes | AckableMessage, deliveries: Deliveries, key: Any = None
) -> AckableMessage:
    if isinstance(message, AckableMessage):
        return deliveries.hold(message.data, message.ack, _origin(message), key)
    return deliveries.hold(message, _nothing)


def _origin(message: bytes | AckableMessage) -> Any:
    """What the client has given out, of which taskiq's message has the acknowledging method."""
    return getattr(getattr(message, "ack", None), "__self__", None)


def _nothing(*_: object) -> None: ...
