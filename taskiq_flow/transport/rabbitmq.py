"""Notices and revocations over RabbitMQ, each by an exchange."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aio_pika import DeliveryMode, ExchangeType, Message, connect, connect_robust
from aio_pika.abc import AbstractExchange, AbstractRobustConnection
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity, PublishError
from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused
from pamqp.commands import Basic
from taskiq import AsyncResultBackend

from taskiq_flow.cleanup import end
from taskiq_flow.errors import ConfigurationError
from taskiq_flow.reconnect import backoff_delays, retry_through_outage, text_of
from taskiq_flow.transport.protocol import (
    MOST_BYTES,
    REVOCATION_LIFE,
    SaveAndPublish,
    hear_revoked,
    unnoticed,
)
from taskiq_flow.transport.rabbitmq_errors import CLIENT_ERRORS, is_outage, is_outage_or_gone

logger = logging.getLogger("taskiq_flow")

RECONNECT_INTERVAL = 0.5
"""Seconds between attempts to connect again. The client's own 5 s would outlast the patience of an
engine that tells workers of a run's end."""

PAUSE = 5.0
"""Seconds in which the next stored revocation has to arrive."""

CATCHING_UP = 3.0
"""Seconds that a worker's start may take longer to hear of runs that were revoked before."""

MOST_REVOCATIONS = 10_000
"""Revocations that the server stores. The oldest are dropped."""

TURN, LONGEST_TURN = 0.1, 1.0
"""Seconds after which a worker tries again to read that queue while another one reads it.

The pauses grow: each try costs the server a channel, and many workers may wait.
"""

GRACE = 1.0
"""Seconds that the notifier's tasks have to end after they were cancelled."""

CONNECT_TIMEOUT = 5
"""Seconds after which one try to connect counts as failed."""


class RabbitNotifier:
    """Notices over a connection of its own, which reconnects for as long as it is open.

    One exchange routes notices to engines, another tells all workers of revoked runs. Each listener
    has a queue with a new name for each connection: a queue of a fixed name stays locked until the
    server has noticed that the connection before was lost. A queue of the name of the second
    exchange stores revoked runs for workers that start later.
    """

    is_outage = staticmethod(is_outage)
    most_bytes = MOST_BYTES

    def __init__(self, url: str, prefix: str, **settings: Any) -> None:
        self.on_unheard: Callable[[str], None] = unnoticed
        self._notices_name = f"{prefix}_notices"
        self._revoked_name = revoked_of(prefix)
        self._url = url
        self._settings = settings
        self._connection: AbstractRobustConnection | None = None
        self._subscriptions: list[Callable[[], Awaitable[None]]] = []
        self._subscribed_on: object = None
        self._subscribing: asyncio.Task[None] | None = None
        self._catching_up: asyncio.Task[None] | None = None
        self._notices: AbstractExchange
        self._revoked: AbstractExchange

    async def open(self) -> None:
        """Connect."""
        await self.aclose()  # of an earlier attempt that failed halfway
        # A robust connection does not report that it could not connect: it tries for ever.
        try:
            probe = await connect(self._url, timeout=CONNECT_TIMEOUT, **self._settings)
        except AMQPError as error:
            if is_outage(error):
                raise
            # The client's error is an OSError, which counts as an outage elsewhere.
            raise ConfigurationError(f"RabbitMQ refuses the connection: {text_of(error)}") from None
        await probe.close()
        settings = {"reconnect_interval": RECONNECT_INTERVAL, **self._settings}
        self._connection = connection = await connect_robust(self._url, **settings)
        # The client declares again when it reconnects.
        notices = await connection.channel(on_return_raises=True)
        self._notices = await notices.declare_exchange(
            self._notices_name, ExchangeType.DIRECT, durable=True
        )
        revocations = await connection.channel()
        self._revoked = await revocations.declare_exchange(
            self._revoked_name, ExchangeType.FANOUT, durable=True
        )
        await self._subscribe(self._store)
        self._subscribed_on = connection.transport
        connection.reconnect_callbacks.add(self._subscribe_again)

    async def publish(self, channel: str, data: bytes) -> None:
        """Send ``data`` to the engine that listens on the channel."""
        message = Message(data, delivery_mode=DeliveryMode.NOT_PERSISTENT)
        try:
            await self._notices.publish(message, channel)
        except PublishError:  # no queue takes it
            self.on_unheard(channel)

    async def subscribe(self, channel: str, hear: Callable[[bytes], None]) -> None:
        """Listen on a channel from now on until ``aclose``."""
        await self._subscribe(partial(self._consume, self._notices_name, channel, hear))

    @property
    def is_listening(self) -> bool:
        """Whether the connection is up, with all subscriptions."""
        connection = self._connection
        return (
            connection is not None
            and connection.connected.is_set()
            and connection.transport is self._subscribed_on
        )

    def saver(self, backend: AsyncResultBackend[Any]) -> SaveAndPublish | None:
        """RabbitMQ stores no results."""
        return None

    async def revoke(self, run: str) -> None:
        """Tell every worker that a run is over, also those that are not connected now."""
        message = Message(run.encode(), delivery_mode=DeliveryMode.PERSISTENT)
        await self._revoked.publish(message, "")

    async def subscribe_to_revocations(self, hear: Callable[[str], None]) -> None:
        """Call for each run in the queue, and for each that comes from now on.

        Workers read the queue one after another. This returns after ``CATCHING_UP`` seconds at the
        latest; the rest is read while the worker works.
        """
        hear_run = partial(hear_revoked, hear)

        async def listen_and_read() -> None:
            await self._consume(self._revoked_name, "", hear_run)
            if self._catching_up is not None:
                self._catching_up.cancel()
            what = "not all revoked runs are known yet"
            read = partial(self._read_stored, hear_run)
            reading = retry_through_outage(read, is_outage_or_gone, what, math.inf)
            self._catching_up = asyncio.create_task(reading)

        await self._subscribe(listen_and_read)
        if self._catching_up is not None:
            await asyncio.wait([self._catching_up], timeout=CATCHING_UP)

    async def aclose(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        self._subscriptions.clear()
        tasks = (self._subscribing, self._catching_up)
        await end([task for task in tasks if task is not None], GRACE)
        if connection is not None:
            with contextlib.suppress(*CLIENT_ERRORS):
                await connection.close()

    async def _store(self) -> None:
        """Have the server store revoked runs.

        The node of the queue may be down, for good even. All else goes on without it: the client,
        which would declare the queue again, could not connect meanwhile.
        """
        channel = await channel_of(self._connection)
        try:
            await channel.queue_declare(
                self._revoked_name,
                durable=True,
                arguments={
                    # A quorum queue may drop what was returned to it often, as by each reader.
                    "x-queue-type": "classic",
                    "x-message-ttl": REVOCATION_LIFE * 1000,
                    "x-max-length": MOST_REVOCATIONS,
                },
            )
        except ChannelNotFoundEntity as error:
            logger.warning("revoked runs are not stored: %s", text_of(error))
            return
        await channel.queue_bind(self._revoked_name, self._revoked_name)
        await channel.close()

    async def _subscribe(self, subscription: Callable[[], Awaitable[None]]) -> None:
        await subscription()
        self._subscriptions.append(subscription)

    def _subscribe_again(self, *_: Any) -> None:
        """The client has reconnected."""
        if self._subscribing is not None:
            self._subscribing.cancel()
        self._subscribing = asyncio.create_task(self._subscribe_to_all())

    async def _subscribe_to_all(self) -> None:
        transport = None if self._connection is None else self._connection.transport
        for subscription in tuple(self._subscriptions):
            await retry_through_outage(
                subscription, is_outage_or_gone, "notices cannot be heard yet", math.inf
            )
        self._subscribed_on = transport

    async def _consume(self, exchange: str, key: str, hear: Callable[[bytes], None]) -> None:
        channel = await channel_of(self._connection)

        async def handle(message: DeliveredMessage) -> None:
            hear(message.body)

        queue = f"{exchange}.{secrets.token_hex(8)}"
        await channel.queue_declare(queue, exclusive=True, auto_delete=True)
        await channel.queue_bind(queue, exchange, key)
        await channel.basic_consume(queue, handle, no_ack=True)

    async def _read_stored(self, hear: Callable[[bytes], None]) -> None:
        """Read the queue without removing anything. One worker at a time does that."""
        for pause in backoff_delays(TURN, LONGEST_TURN):
            if await self._has_read(hear):
                return
            await asyncio.sleep(pause)

    async def _has_read(self, hear: Callable[[bytes], None]) -> bool:
        """Read the queue up to a message of our own, unless another worker reads it."""
        channel = await channel_of(self._connection)
        came: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
        try:
            await channel.basic_consume(self._revoked_name, came.put, exclusive=True)
        except ChannelAccessRefused as error:
            if "in exclusive use" in str(error):
                return False
            raise
        end = secrets.token_hex(16).encode()
        properties = Basic.Properties(expiration=str(int(PAUSE * 1000)))
        await channel.basic_publish(end, routing_key=self._revoked_name, properties=properties)
        while True:
            async with asyncio.timeout(PAUSE):
                message = await came.get()
            if message.body == end:
                break
            hear(message.body)
        await channel.basic_ack(message.delivery_tag or 0)
        await channel.close()  # the others, not acknowledged, are in their places again
        return True


def revoked_of(prefix: str) -> str:
    """The exchange that tells workers of revoked runs, and the queue that stores them."""
    return f"{prefix}_revocations"


async def channel_of(connection: Any) -> AbstractChannel:
    """A new channel: an error on it closes no other. ``ConnectionError`` while there is none."""
    transport = connection.transport
    if transport is None or transport.connection.is_closed:  # the client raises a RuntimeError
        raise ConnectionError("the connection to RabbitMQ is closed until the client reconnects")
    channel: AbstractChannel = await transport.connection.channel()
    return channel
