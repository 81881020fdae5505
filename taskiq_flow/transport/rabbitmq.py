"""RabbitMQ: notices in an exclusive queue for each engine, revocations in one for each worker.

The only file that knows RabbitMQ's clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

from aio_pika import DeliveryMode, ExchangeType, Message, connect, connect_robust
from aio_pika.abc import (
    AbstractExchange,
    AbstractIncomingMessage,
    AbstractRobustChannel,
    AbstractRobustConnection,
)
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, ChannelNotFoundEntity
from aiormq.abc import AbstractChannel, DeliveredMessage
from taskiq import AsyncBroker, AsyncResultBackend, BrokerMessage

from taskiq_flow.cleanup import until_ended
from taskiq_flow.reconnect import retry_through_outage
from taskiq_flow.transport.deliveries import Deliveries, Delivery, holding_ahead
from taskiq_flow.transport.protocol import (
    REVOCATION_LIFE,
    Backlog,
    Kick,
    SaveAndPublish,
    hear_revoked,
    unnoticed,
)

_OUTAGES = (AMQPError, ChannelInvalidStateError, OSError, asyncio.TimeoutError)

PAUSE = 1.0
"""Seconds of silence after which nothing more is expected of that queue."""

CATCHING_UP = 15.0
"""Seconds within which a worker has to hear of all runs that were revoked before it came."""

GRACE = 1.0
"""Seconds that the notifier's tasks have to end after they were cancelled."""

CONNECT_TIMEOUT = 5
"""Seconds after which one try to connect counts as failed."""


def is_outage(error: BaseException) -> bool:
    """Whether an error says that the server cannot serve now, and may later."""
    return isinstance(error, _OUTAGES)


def is_full(_: BaseException) -> bool:
    """A server without room lets its clients wait, and answers with no error."""
    return False


def notifier_at(url: str, prefix: str) -> RabbitNotifier:
    """A notifier with the settings of a URL: ``amqp://`` or ``amqps://``."""
    return RabbitNotifier(url, prefix)


def notifier_of(broker: AsyncBroker, prefix: str) -> RabbitNotifier:
    """A notifier with a connection like the broker's."""
    rabbit: Any = broker
    settings = rabbit._conn_kwargs  # noqa: SLF001 - kept nowhere else
    return RabbitNotifier(rabbit.url, prefix, **settings)


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
    it drops what comes before that, and says so to nobody.
    """

    async def kick(message: BrokerMessage) -> None:
        channel: Any = vars(broker)["write_channel"]
        if channel is not None:  # otherwise the broker says that it was not started
            channel.on_return_raises = True  # of the channels that it will open
            underlay = await channel.get_underlay_channel()
            underlay.on_return_raises = True
        await broker.kick(message)

    return kick


def steady(broker: AsyncBroker) -> Deliveries:
    """RabbitMQ's client reconnects by itself, and its server keeps what a connection was given."""
    deliveries = Deliveries(broker, give_back=_give_back)
    # Replaced, as taskiq has no hook for it.
    broker.listen = holding_ahead(broker.listen, deliveries)  # type: ignore[method-assign]
    return deliveries


async def _give_back(delivery: Delivery) -> None:
    await delivery.origin.nack(requeue=True)


def steady_results(_: AsyncResultBackend[Any]) -> None:
    """RabbitMQ stores no results."""


class RabbitNotifier:
    """Notices over a connection of its own, which reconnects for as long as it is open.

    An exchange tells workers of revoked runs. A queue of the same name keeps them for a while.
    """

    is_outage = staticmethod(is_outage)

    def __init__(self, url: str, prefix: str, **settings: Any) -> None:
        self.on_unheard: Callable[[str], None] = unnoticed
        self._revoked_name = f"{prefix}_revoked"
        self._url = url
        self._settings = settings
        self._connection: AbstractRobustConnection | None = None
        self._exchange: AbstractExchange | None = None
        self._catching_up: asyncio.Task[None] | None = None
        self._channel: AbstractRobustChannel
        self._revocations: AbstractRobustChannel

    async def open(self) -> None:
        """Connect."""
        await self.aclose()  # of an earlier attempt that failed halfway
        # A robust connection does not report that it could not connect: it tries for ever.
        probe = await connect(self._url, timeout=CONNECT_TIMEOUT, **self._settings)
        await probe.close()
        self._connection = connection = await connect_robust(self._url, **self._settings)
        # Without confirms: a notice is a hint.
        self._channel = await connection.channel(publisher_confirms=False)
        self._revocations = await connection.channel()

    async def publish(self, channel: str, data: bytes) -> None:
        """Send ``data`` to the engine that listens on the channel."""
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
        """Tell every worker that a run is over, also those that are not connected now."""
        exchange = await self._revoked()
        await exchange.publish(Message(run.encode(), delivery_mode=DeliveryMode.PERSISTENT), "")

    async def subscribe_to_revocations(self, hear: Callable[[str], None]) -> None:
        """Call for each run in the queue, and for each that comes from now on."""
        exchange, name = await self._revoked(), f"{self._revoked_name}.{secrets.token_hex(8)}"
        queue = await self._revocations.declare_queue(name, exclusive=True, auto_delete=True)
        await queue.bind(exchange)

        async def handle(message: AbstractIncomingMessage) -> None:
            hear_revoked(hear, message.body)

        await queue.consume(handle, no_ack=True)
        await self._catch_up(hear, CATCHING_UP)

        def catch_up_again(*_: Any) -> None:
            if self._catching_up is not None:
                self._catching_up.cancel()
            self._catching_up = asyncio.create_task(self._catch_up(hear, math.inf))

        if self._connection is not None:
            self._connection.reconnect_callbacks.add(catch_up_again)

    async def aclose(self) -> None:
        """Disconnect."""
        connection, self._connection, self._exchange = self._connection, None, None
        if self._catching_up is not None:
            self._catching_up.cancel()
            await until_ended([self._catching_up], GRACE)
        if connection is not None:
            with contextlib.suppress(*_OUTAGES):
                await connection.close()

    async def _revoked(self) -> AbstractExchange:
        """Declare where revocations go. The client does so again when it reconnects."""
        if self._exchange is None:
            channel = self._revocations
            exchange = await channel.declare_exchange(
                self._revoked_name, ExchangeType.FANOUT, durable=True
            )
            life = {"x-message-ttl": REVOCATION_LIFE * 1000}
            kept = await channel.declare_queue(self._revoked_name, durable=True, arguments=life)
            await kept.bind(exchange)
            self._exchange = exchange
        return self._exchange

    async def _catch_up(self, hear: Callable[[str], None], patience: float) -> None:
        what = "not all revoked runs are known yet"
        await retry_through_outage(partial(self._read_kept, hear), is_outage, what, patience)

    async def _read_kept(self, hear: Callable[[str], None]) -> None:
        """Read the queue without removing anything. One worker at a time does that."""
        channel = await _own_channel(self._connection)
        came: asyncio.Queue[bytes] = asyncio.Queue()

        async def handle(message: DeliveredMessage) -> None:
            came.put_nowait(message.body)

        declared = await channel.queue_declare(self._revoked_name, passive=True)
        await channel.basic_consume(self._revoked_name, handle, exclusive=True)
        with contextlib.suppress(TimeoutError):  # some may have outlived their time
            for _ in range(declared.message_count or 0):
                async with asyncio.timeout(PAUSE):
                    hear_revoked(hear, await came.get())
        await channel.close()  # what was not acknowledged is in its place again


async def _own_channel(connection: Any) -> AbstractChannel:
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
        channel = await _own_channel(self._broker.write_conn)
        try:
            declared = await channel.queue_declare(name, passive=True)
        except ChannelNotFoundEntity:
            return 0
        await channel.close()
        return int(declared.message_count or 0)
