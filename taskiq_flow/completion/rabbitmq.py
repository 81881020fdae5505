"""RabbitMQ: notices in an exclusive queue for each engine, revocations in a stream for all.

The only file that knows RabbitMQ's clients.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from aio_pika import DeliveryMode, Message, connect, connect_robust
from aio_pika.abc import AbstractIncomingMessage, AbstractRobustChannel, AbstractRobustConnection
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError
from taskiq import AsyncBroker, AsyncResultBackend

from taskiq_flow.completion.deliveries import Deliveries, holding_ahead
from taskiq_flow.completion.notifier import REVOCATION_LIFE, Backlog, Kick, SaveAndPublish

OUTAGES = (AMQPError, ChannelInvalidStateError, OSError, asyncio.TimeoutError)

REVOKED = "taskiq_flow_revoked"
"""The stream whose messages are the revoked runs."""

PREFETCH = 1000
"""Revocations that a worker is sent before it has acknowledged the first."""

CONNECT_TIMEOUT = 5
"""Seconds after which one try to connect counts as failed."""


def notifier_at(url: str) -> RabbitNotifier:
    """A notifier with the settings of a URL: ``amqp://`` or ``amqps://``."""
    return RabbitNotifier(url)


def notifier_of(broker: AsyncBroker) -> RabbitNotifier:
    """A notifier with a connection like the broker's."""
    rabbit: Any = broker
    return RabbitNotifier(rabbit.url, **rabbit._conn_kwargs)  # noqa: SLF001 - kept nowhere else


def is_started(broker: AsyncBroker) -> bool:
    """Whether the broker can send."""
    rabbit: Any = broker
    return rabbit.write_channel is not None


def backlog_of(broker: AsyncBroker) -> Backlog | None:
    """The backlog of the broker's queues."""
    return QueueBacklog(broker)


def kick_of(broker: AsyncBroker) -> Kick:
    """The broker's own way."""
    return broker.kick


def steady(broker: AsyncBroker) -> Deliveries:
    """RabbitMQ's client reconnects by itself, and its server keeps what a connection was given."""
    deliveries = Deliveries(broker)
    broker.listen = holding_ahead(broker.listen, deliveries)  # type: ignore[method-assign]
    return deliveries


class RabbitNotifier:
    """Notices over a connection of its own, which reconnects for as long as it is open."""

    outages = OUTAGES

    def __init__(self, url: str, **settings: Any) -> None:
        self._url = url
        self._settings = settings
        self._connection: AbstractRobustConnection | None = None
        self._channel: AbstractRobustChannel
        self._revocations: AbstractRobustChannel

    async def open(self) -> None:
        """Connect."""
        # A robust connection does not say that it could not connect at all: it tries for ever.
        probe = await connect(self._url, timeout=CONNECT_TIMEOUT, **self._settings)
        await probe.close()
        self._connection = connection = await connect_robust(self._url, **self._settings)
        # Without confirms: a notice is a hint.
        self._channel = await connection.channel(publisher_confirms=False)
        self._revocations = await connection.channel()
        await self._revocations.set_qos(prefetch_count=PREFETCH)

    async def publish(self, channel: str, data: bytes) -> None:
        """Have the engine that listens on the channel hear ``data``."""
        message = Message(data, delivery_mode=DeliveryMode.NOT_PERSISTENT)
        await self._channel.default_exchange.publish(message, channel, mandatory=False)

    async def subscribe(self, channel: str, hear: Callable[[bytes], None]) -> None:
        """Listen on a channel from now on until ``aclose``."""
        queue = await self._channel.declare_queue(channel, exclusive=True, auto_delete=True)

        async def handle(message: AbstractIncomingMessage) -> None:
            hear(message.body)

        await queue.consume(handle, no_ack=True)

    @property
    def is_listening(self) -> bool:
        """Whether the connection is up."""
        return self._connection is not None and self._connection.connected.is_set()

    def saver(self, backend: AsyncResultBackend[Any]) -> SaveAndPublish | None:
        """RabbitMQ stores no results."""
        return None

    async def revoke(self, run_id: str) -> None:
        """Have every worker hear that a run is over, those that are away now as well."""
        await self._declare_revoked()
        message = Message(run_id.encode(), delivery_mode=DeliveryMode.PERSISTENT)
        await self._revocations.default_exchange.publish(message, REVOKED)

    async def subscribe_to_revocations(self, hear: Callable[[str], None]) -> None:
        """Hear of all runs in the stream, and of those that come to it."""
        queue = await self._declare_revoked()

        async def handle(message: AbstractIncomingMessage) -> None:
            hear(message.body.decode())
            await message.ack()

        since = datetime.now(UTC) - timedelta(seconds=REVOCATION_LIFE)
        await queue.consume(handle, arguments={"x-stream-offset": since})

    async def aclose(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            with contextlib.suppress(*OUTAGES):
                await self._connection.close()

    async def _declare_revoked(self) -> Any:
        return await self._revocations.declare_queue(
            REVOKED,
            durable=True,
            arguments={"x-queue-type": "stream", "x-max-age": f"{REVOCATION_LIFE}s"},
        )


class QueueBacklog:
    """Queues that do not number what is in them: all is taken, or some is not."""

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker: Any = broker

    async def position(self, queue: str | None) -> tuple[Any, Any]:
        """Whether any message of a queue waits for a worker."""
        broker = self._broker
        own = broker._task_queues  # noqa: SLF001 - kept nowhere else
        names = [queue] if queue else [declared.name for declared in own]
        waiting = 0
        for name in names:
            declared = await broker.write_channel.declare_queue(name, passive=True)
            waiting += declared.declaration_result.message_count
        return 1, int(not waiting)
