"""RabbitMQ: notices in an exclusive queue for each engine, revocations in a stream for all.

The only file that knows RabbitMQ's clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from aio_pika import DeliveryMode, Message, connect, connect_robust
from aio_pika.abc import AbstractIncomingMessage, AbstractRobustChannel, AbstractRobustConnection
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, ChannelNotFoundEntity
from taskiq import AsyncBroker, AsyncResultBackend

from taskiq_flow.completion.deliveries import Deliveries, holding_ahead
from taskiq_flow.completion.notifier import REVOCATION_LIFE, Backlog, Kick, SaveAndPublish

logger = logging.getLogger("taskiq_flow")

OUTAGES = (AMQPError, ChannelInvalidStateError, OSError, asyncio.TimeoutError)

REVOKED = "taskiq_flow_revoked"
"""The stream whose messages are the revoked runs."""

MARK = b"\0"
"""What begins a message in it that is no run."""

PREFETCH = 1000
"""Revocations that a worker is sent before it has acknowledged the first."""

CATCHING_UP = 15.0
"""Seconds that a worker waits at the most to hear of all runs that were revoked before."""

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


def backlog_of(broker: AsyncBroker) -> Backlog:
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


def steady_results(_: AsyncResultBackend[Any]) -> None:
    """RabbitMQ stores no results."""


class RabbitNotifier:
    """Notices over a connection of its own, which reconnects for as long as it is open."""

    outages = OUTAGES

    def __init__(self, url: str, **settings: Any) -> None:
        self._url = url
        self._settings = settings
        self._connection: AbstractRobustConnection | None = None
        self._revoked: Any = None
        self._channel: AbstractRobustChannel
        self._revocations: AbstractRobustChannel

    async def open(self) -> None:
        """Connect."""
        await self.aclose()  # where an earlier try came half way
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

    async def revoke(self, run: str) -> None:
        """Have every worker hear that a run is over, those that are away now as well."""
        await self._add_to_revoked(run.encode())

    async def subscribe_to_revocations(self, hear: Callable[[str], None]) -> None:
        """Hear of all runs in the stream, and of those that come to it."""
        queue = await self._declare_revoked()
        mark = MARK + secrets.token_bytes(8)
        caught_up = asyncio.Event()

        async def handle(message: AbstractIncomingMessage) -> None:
            if message.body == mark:
                caught_up.set()
            elif not message.body.startswith(MARK):
                hear(message.body.decode(errors="replace"))
            await message.ack()

        since = datetime.now(UTC) - timedelta(seconds=REVOCATION_LIFE)
        await queue.consume(handle, arguments={"x-stream-offset": since})
        # The stream does not say where its end is; what comes back says that all before it came.
        await self._add_to_revoked(mark)
        try:
            async with asyncio.timeout(CATCHING_UP):
                await caught_up.wait()
        except TimeoutError:
            logger.warning("not all revoked runs were heard of within %g s", CATCHING_UP)

    async def aclose(self) -> None:
        """Disconnect."""
        connection, self._connection, self._revoked = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(*OUTAGES):
                await connection.close()

    async def _add_to_revoked(self, body: bytes) -> None:
        await self._declare_revoked()
        message = Message(body, delivery_mode=DeliveryMode.PERSISTENT)
        await self._revocations.default_exchange.publish(message, REVOKED)

    async def _declare_revoked(self) -> Any:
        """The stream, declared once: the client does so again at each new connection."""
        if self._revoked is None:
            self._revoked = await self._revocations.declare_queue(
                REVOKED,
                durable=True,
                arguments={"x-queue-type": "stream", "x-max-age": f"{REVOCATION_LIFE}s"},
            )
        return self._revoked


class QueueBacklog:
    """Queues that do not number what is in them: all is taken, or some is not."""

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker: Any = broker

    async def position(self, queue: str | None) -> tuple[Any, Any]:
        """Whether any message of a queue waits for a worker."""
        own = self._broker._task_queues  # noqa: SLF001 - kept nowhere else
        names = [queue] if queue else [declared.name for declared in own]
        waiting = [await self._count(name) for name in names]
        return 1, int(not sum(waiting))

    async def _count(self, name: str) -> int:
        # The broker's own channel would answer with what it was told when it began, and is closed
        # by a question for a queue that is not there.
        channel = await self._broker.write_conn.transport.connection.channel()
        try:
            declared = await channel.queue_declare(name, passive=True)
        except ChannelNotFoundEntity:
            return 0
        await channel.close()
        return int(declared.message_count)
