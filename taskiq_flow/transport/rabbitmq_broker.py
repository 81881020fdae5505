"""RabbitMQ as a broker: its queues, and how its workers hold what they are given.

With ``rabbitmq.py`` beside it, the only file that knows RabbitMQ's clients.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage
from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    IncompatibleProtocolError,
    ProbableAuthenticationError,
)
from taskiq import AsyncBroker, AsyncResultBackend, BrokerMessage

from taskiq_flow.errors import SerializationError
from taskiq_flow.transport.deliveries import Deliveries, Delivery, holding_ahead
from taskiq_flow.transport.protocol import Backlog, Kick, Leftover

logger = logging.getLogger("taskiq_flow")

OUTAGES = (AMQPError, ChannelInvalidStateError, OSError, asyncio.TimeoutError)

# The server refuses these, and would do so again.
_FOR_GOOD = (
    AuthenticationError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    IncompatibleProtocolError,
    ProbableAuthenticationError,
)

LONGEST_UNACKNOWLEDGED = 20 * 60.0
"""Seconds after which a message is acknowledged though its task has not ended.

By default a server closes the channel of a consumer that leaves a message unacknowledged for 30
minutes, and delivers it again. From then on the worker's heartbeat alone stands for the task.
"""

DELIVERIES = "taskiq_flow_deliveries"
"""The header of a copy of a message: how often the message was delivered before."""

_COUNTED = "x-delivery-count"  # a quorum queue's own header: how often it was delivered before


def is_outage(error: BaseException) -> bool:
    """Whether an error says that the server cannot serve now, and may later."""
    if isinstance(error, ChannelNotFoundEntity):  # which a server that has just come up answers
        return "down or inaccessible" in str(error)
    return isinstance(error, OUTAGES) and not isinstance(error, _FOR_GOOD)


def is_full(_: BaseException) -> bool:
    """A server without room lets its clients wait, and answers with no error."""
    return False


def is_started(broker: AsyncBroker) -> bool:
    """Whether the broker can send."""
    rabbit: Any = broker
    return rabbit.write_channel is not None


def backlog_of(broker: AsyncBroker) -> Backlog:
    """The backlog of the broker's queues."""
    return QueueBacklog(broker)


def kick_of(broker: AsyncBroker) -> Kick:
    """The broker's own way. A message that no queue takes counts as an outage, and is sent again.

    A server that has lost its data has no queues until a client has declared them anew. By default
    it drops what comes before that, and says so to nobody. An exchange that is gone is declared as
    when the broker starts.
    """
    rabbit: Any = broker

    async def kick(message: BrokerMessage) -> None:
        channel: Any = vars(broker)["write_channel"]
        if channel is not None:  # otherwise the broker says that it was not started
            channel.on_return_raises = True  # of the channels that it will open
            underlay = await channel.get_underlay_channel()
            underlay.on_return_raises = True
        try:
            await broker.kick(message)
        except ChannelPreconditionFailed as error:
            raise SerializationError(
                f"RabbitMQ refuses the message of task {message.task_id!r}, which has "
                f"{len(message.message)} bytes: {error}; pass large values by reference, as with "
                "ExecutionEngine(..., pass_by=65536), or raise the server's max_message_size"
            ) from error

    async def kick_anew(message: BrokerMessage) -> None:
        try:
            await kick(message)
        except ChannelNotFoundEntity as error:
            logger.warning("RabbitMQ has lost an exchange (%s); it is declared anew", error)
            await rabbit._declare_exchanges()  # noqa: SLF001 - as when it starts
            await rabbit._declare_queues(rabbit.write_channel)  # noqa: SLF001
            await kick(message)

    return kick_anew


def steady(broker: AsyncBroker) -> Deliveries:
    """Hold what the client fetches, count its deliveries, and acknowledge it in time.

    RabbitMQ's client reconnects by itself, and its server keeps what a connection was given.
    """
    rabbit: Any = broker

    async def renew(held: list[Delivery]) -> None:
        """Acknowledge what the server would deliver again though it is being executed."""
        latest = time.monotonic() - LONGEST_UNACKNOWLEDGED
        for delivery in held:
            if delivery.came_at < latest and not delivery.is_acknowledged:
                logger.info(
                    "task %s is acknowledged before its end: RabbitMQ would deliver it again",
                    delivery.task_id,
                )
                await delivery.ack()

    async def send_copy(message: AbstractIncomingMessage, deliveries: int) -> None:
        """Put a copy of a message at the end of its queue, in its place."""
        copy = Message(
            message.body,
            headers={**message.headers, DELIVERIES: deliveries},
            delivery_mode=message.delivery_mode,
            priority=message.priority,
        )
        exchange = await rabbit.write_channel.get_exchange(message.exchange or "", ensure=False)
        await exchange.publish(copy, routing_key=message.routing_key or "")
        await message.ack()

    async def number_of(message: AbstractIncomingMessage) -> int | None:
        """Which delivery of the message it is. ``None`` if a copy that counts it takes its place.

        A classic queue says only that it was delivered before.
        """
        before = message.headers.get(_COUNTED, message.headers.get(DELIVERIES, 0))
        before = before if isinstance(before, int) else 0
        if message.redelivered and _COUNTED not in message.headers:
            await send_copy(message, before + 1)
            return None
        return before + 1

    async def give_back(delivery: Delivery) -> None:
        """Have a copy delivered to another worker: a refusal would count as a delivery."""
        await send_copy(delivery.origin, delivery.number - 1)

    deliveries = Deliveries(broker, renew, give_back)
    # Replaced, as taskiq has no hook for it.
    broker.listen = holding_ahead(broker.listen, deliveries, _key, number_of)  # type: ignore[method-assign]
    return deliveries


def _key(message: AbstractIncomingMessage) -> tuple[Any, bytes]:
    """What a message has in common with itself when it is delivered again, and no other has."""
    return message.headers.get("task_id"), message.body


def steady_results(_: AsyncResultBackend[Any]) -> None:
    """RabbitMQ stores no results."""


async def inventory_of(broker: AsyncBroker, prefix: str) -> list[Leftover]:
    """The broker's queues, and the one that keeps revocations."""
    rabbit: Any = broker
    notes = {queue.name: "messages that wait" for queue in rabbit._task_queues}  # noqa: SLF001
    notes[rabbit._dead_letter_queue.name] = "messages that were refused"  # noqa: SLF001
    notes[revoked_of(prefix)] = "revoked runs"
    found = []
    for name, note in sorted(notes.items()):
        channel = await own_channel(rabbit.write_conn)
        try:
            declared = await channel.queue_declare(name, passive=True)
        except ChannelNotFoundEntity:
            continue
        found.append(Leftover(name, "queue", int(declared.message_count or 0), note))
        await channel.close()
    return found


def revoked_of(prefix: str) -> str:
    """The queue that keeps revoked runs for a while, and the exchange that tells of them."""
    return f"{prefix}_revocations"


async def own_channel(connection: Any) -> AbstractChannel:
    """A channel of its own: an error on it closes no other."""
    channel: AbstractChannel = await connection.transport.connection.channel()
    return channel


class QueueBacklog:
    """Queues without positions: either all messages are taken, or some wait."""

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker: Any = broker

    async def position(self, queue: str | None) -> tuple[Any, Any]:
        """Whether any message of a queue waits for a worker."""
        own = self._broker._task_queues  # noqa: SLF001 - kept nowhere else
        names = [queue] if queue else [declared.name for declared in own]
        waiting = [await self._count(name) for name in names]
        return 1, int(not sum(waiting))

    async def _count(self, name: str) -> int:
        # The broker's own channel would answer with what it was told when it began.
        channel = await own_channel(self._broker.write_conn)
        try:
            declared = await channel.queue_declare(name, passive=True)
        except ChannelNotFoundEntity:
            return 0
        await channel.close()
        return int(declared.message_count or 0)
