"""The messages that a worker was given by its broker and has not acknowledged.

A broker hands out more than a worker can execute at once. What waits there is neither in the queue
nor being executed; only here can it be seen.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anyio
from taskiq import AckableMessage, AsyncBroker
from taskiq.utils import maybe_awaitable

from taskiq_flow.transport.notice import LABEL, ReplyTo

Listen = Callable[[], AsyncGenerator[bytes | AckableMessage, None]]
"""A broker's ``listen``."""


class Delivery:
    """One message. ``origin``: what its system knows it by.

    ``task_id`` and ``reply_to`` are known once it was ``read``.
    """

    __slots__ = ("_ack", "data", "is_acknowledged", "origin", "reply_to", "task_id")

    def __init__(self, data: bytes, ack: Callable[[], Awaitable[None] | None], origin: Any) -> None:
        self.data = data
        self.origin = origin
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
    """Those that a worker holds. ``renew`` keeps some of them from being delivered to others.

    ``on_acknowledged`` is called when taskiq has acknowledged one.
    """

    def __init__(
        self, broker: AsyncBroker, renew: Callable[[list[Delivery]], Awaitable[None]] | None = None
    ) -> None:
        self._broker = broker
        self._renew = renew
        self.on_acknowledged: Callable[[Delivery], None] = _nothing
        self._held: dict[Delivery, None] = {}

    def hold(
        self, data: bytes, ack: Callable[[], Awaitable[None] | None], origin: Any = None
    ) -> AckableMessage:
        """Hold a message from now until it is acknowledged; what to give to taskiq in its place."""
        delivery = Delivery(data, ack, origin)
        self._held[delivery] = None

        async def acknowledge() -> None:
            await self._let_go(delivery)
            self.on_acknowledged(delivery)

        return AckableMessage(data=data, ack=acknowledge)

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

    async def _let_go(self, delivery: Delivery) -> None:
        await delivery.ack()
        self._held.pop(delivery, None)


def holding(listen: Listen, deliveries: Deliveries) -> Listen:
    """A ``listen`` whose messages are held. Those that need no acknowledgement get one."""

    async def listen_and_hold() -> AsyncGenerator[AckableMessage, None]:
        async with aclosing(listen()) as messages:
            async for message in messages:
                yield _held(message, deliveries)

    return listen_and_hold


def holding_ahead(listen: Listen, deliveries: Deliveries) -> Listen:
    """Likewise, where the client takes messages ahead of those who listen: they are held as well.

    The server says how many it gives out unacknowledged.
    """

    async def listen_ahead() -> AsyncGenerator[AckableMessage, None]:
        put, taken = anyio.create_memory_object_stream[AckableMessage](math.inf)

        async def take() -> None:
            async with put, aclosing(listen()) as messages:
                async for message in messages:
                    put.send_nowait(_held(message, deliveries))

        taking = asyncio.create_task(take())
        try:
            async with taken:
                async for message in taken:
                    yield message
            await taking  # raises what has ended it
        finally:
            taking.cancel()

    return listen_ahead


def _held(message: bytes | AckableMessage, deliveries: Deliveries) -> AckableMessage:
    if isinstance(message, AckableMessage):
        return deliveries.hold(message.data, message.ack, getattr(message.ack, "__self__", None))
    return deliveries.hold(message, _nothing)


def _nothing(*_: object) -> None: ...
