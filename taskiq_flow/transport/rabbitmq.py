"""RabbitMQ: notices by one exchange, revocations by another and in a queue that keeps them.

With ``rabbitmq_broker.py`` beside it, the only file that knows RabbitMQ's clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from aio_pika import DeliveryMode, ExchangeType, Message, connect, connect_robust
from aio_pika.abc import AbstractRobustChannel, AbstractRobustConnection
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused, PublishError
from taskiq import AsyncBroker, AsyncResultBackend

from taskiq_flow.cleanup import until_ended
from taskiq_flow.reconnect import backoff_delays, retry_through_outage, text_of
from taskiq_flow.transport.protocol import (
    REVOCATION_LIFE,
    SaveAndPublish,
    hear_revoked,
    unnoticed,
)
from taskiq_flow.transport.rabbitmq_broker import (
    OUTAGES,
    backlog_of,
    inventory_of,
    is_full,
    is_outage,
    is_started,
    kick_of,
    own_channel,
    revoked_of,
    steady,
    steady_results,
)

__all__ = [
    "RabbitNotifier",
    "backlog_of",
    "inventory_of",
    "is_full",
    "is_outage",
    "is_started",
    "kick_of",
    "notifier_at",
    "notifier_of",
    "steady",
    "steady_results",
]

logger = logging.getLogger("taskiq_flow")

PAUSE = 1.0
"""Seconds of silence after which nothing more is expected of the queue of revocations."""

MOST_KEPT = 20_000
"""Revocations that the queue keeps; the oldest go first."""

TURN = (0.1, 0.5)
"""Seconds between two tries to read that queue: the first, the longest."""

CATCHING_UP = 120.0
"""Seconds within which a worker has to have read it. One worker at a time does so."""

ASKED_EVERY = 0.4
"""Seconds between two notices on a channel of which the server says whether anybody listens."""

GRACE = 1.0
"""Seconds that the notifier's tasks have to end after they were cancelled."""

CONNECT_TIMEOUT = 5
"""Seconds after which one try to connect counts as failed."""


def notifier_at(url: str, prefix: str) -> RabbitNotifier:
    """A notifier with the settings of a URL: ``amqp://`` or ``amqps://``."""
    return RabbitNotifier(url, prefix)


def notifier_of(broker: AsyncBroker, prefix: str) -> RabbitNotifier:
    """A notifier with a connection like the broker's."""
    rabbit: Any = broker
    settings = rabbit._conn_kwargs  # noqa: SLF001 - kept nowhere else
    return RabbitNotifier(rabbit.url, prefix, **settings)


class RabbitNotifier:
    """Notices over a connection of its own, which reconnects for as long as it is open.

    Exchanges carry notices and revocations, to queues that each connection has for itself. A queue
    keeps the revocations for a while.
    """

    is_outage = staticmethod(is_outage)

    def __init__(self, url: str, prefix: str, **settings: Any) -> None:
        self.on_unheard: Callable[[str], None] = unnoticed
        self._notices = f"{prefix}_notices"
        self._revoked = revoked_of(prefix)
        self._url = url
        self._settings = settings
        self._connection: AbstractRobustConnection | None = None
        self._channel: AbstractRobustChannel
        self._confirmed: AbstractRobustChannel
        self._listenings: list[Callable[[], Awaitable[None]]] = []  # at each connection
        self._listening: asyncio.Task[None] | None = None
        self._asked_at: dict[str, float] = {}  # loop time by channel

    async def open(self) -> None:
        """Connect."""
        await self.aclose()  # of an earlier attempt that failed halfway
        # A robust connection does not report that it could not connect: it tries for ever.
        probe = await connect(self._url, timeout=CONNECT_TIMEOUT, **self._settings)
        await probe.close()
        self._connection = connection = await connect_robust(self._url, **self._settings)
        # Without confirms: a notice is a hint.
        self._channel = await connection.channel(publisher_confirms=False)
        self._exchange = await self._channel.declare_exchange(
            self._notices, ExchangeType.DIRECT, durable=True
        )
        self._confirmed = await connection.channel(on_return_raises=True)
        await self._declare_revoked()
        connection.reconnect_callbacks.add(self._listen_again)

    async def publish(self, channel: str, data: bytes) -> None:
        """Send ``data`` to the engine that listens on the channel."""
        message = Message(data, delivery_mode=DeliveryMode.NOT_PERSISTENT)
        now = asyncio.get_running_loop().time()
        if now - self._asked_at.get(channel, -math.inf) < ASKED_EVERY:
            await self._exchange.publish(message, channel, mandatory=False)
            return
        # Now and then with a confirm, which says whether a queue is bound to the channel.
        self._asked_at = {c: at for c, at in self._asked_at.items() if now - at < ASKED_EVERY}
        self._asked_at[channel] = now
        exchange = await self._confirmed.get_exchange(self._notices, ensure=False)
        try:
            await exchange.publish(message, channel, mandatory=True)
        except PublishError:
            self.on_unheard(channel)

    async def subscribe(self, channel: str, hear: Callable[[bytes], None]) -> None:
        """Listen on a channel from now on until ``aclose``."""

        async def handle(message: DeliveredMessage) -> None:
            hear(message.body)

        async def listen() -> None:
            await self._consume(channel, self._notices, channel, handle)

        await self._begin(listen)

    @property
    def is_listening(self) -> bool:
        """Whether the connection is up, and what listens on it."""
        is_connected = self._connection is not None and self._connection.connected.is_set()
        return is_connected and (self._listening is None or self._listening.done())

    def saver(self, backend: AsyncResultBackend[Any]) -> SaveAndPublish | None:
        """RabbitMQ stores no results."""
        return None

    async def revoke(self, run: str) -> None:
        """Tell every worker that a run is over, also those that are not connected now."""
        exchange = await self._confirmed.get_exchange(self._revoked, ensure=False)
        await exchange.publish(Message(run.encode(), delivery_mode=DeliveryMode.PERSISTENT), "")

    async def subscribe_to_revocations(self, hear: Callable[[str], None]) -> None:
        """Call for each run in the queue, and for each that comes from now on."""

        async def handle(message: DeliveredMessage) -> None:
            hear_revoked(hear, message.body)

        async def listen() -> None:
            await self._consume(self._revoked, self._revoked, "", handle)
            for pause in backoff_delays(*TURN):
                try:
                    await self._read_kept(hear)
                except ChannelAccessRefused as error:
                    if "exclusive use" not in str(error):
                        raise
                    await asyncio.sleep(pause)  # another worker reads it
                else:
                    return

        await self._begin(listen)

    async def _consume(
        self, name: str, exchange: str, key: str, handle: Callable[[DeliveredMessage], Any]
    ) -> None:
        """Have a queue of this connection's own, bound to an exchange.

        Its name is new: that of a connection which dropped on this side alone stays locked.
        """
        channel = await own_channel(self._connection)
        queue = f"{name}.{secrets.token_hex(4)}"
        await channel.queue_declare(queue, exclusive=True, auto_delete=True)
        await channel.queue_bind(queue, exchange, routing_key=key)
        await channel.basic_consume(queue, handle, no_ack=True)

    async def _read_kept(self, hear: Callable[[str], None]) -> None:
        """Read the queue without removing anything. One worker at a time does that."""
        channel = await own_channel(self._connection)
        came: asyncio.Queue[bytes] = asyncio.Queue()

        async def handle(message: DeliveredMessage) -> None:
            came.put_nowait(message.body)

        declared = await channel.queue_declare(self._revoked, passive=True)
        await channel.basic_consume(self._revoked, handle, exclusive=True)
        with contextlib.suppress(TimeoutError):  # some may have outlived their time
            for _ in range(declared.message_count or 0):
                async with asyncio.timeout(PAUSE):
                    hear_revoked(hear, await came.get())
        await channel.close()  # what was not acknowledged is in its place again

    async def aclose(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        self._listenings.clear()
        if self._listening is not None:
            self._listening.cancel()
            await until_ended([self._listening], GRACE)
        if connection is not None:
            with contextlib.suppress(*OUTAGES):
                await connection.close()

    async def _begin(self, listen: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with asyncio.timeout(CATCHING_UP):
            await listen()
        self._listenings.append(listen)

    def _listen_again(self, *_: Any) -> None:
        """Begin anew what listened on the connection that broke."""
        if self._listening is not None:
            self._listening.cancel()
        self._listening = asyncio.create_task(self._listen_to_all())

    async def _listen_to_all(self) -> None:
        for listen in (self._declare_revoked, *self._listenings):
            try:
                what = "notices are not heard yet"
                await retry_through_outage(listen, is_outage, what, math.inf)
            except Exception as error:  # refused, say; what is missed is asked for
                logger.warning("%s: %s", what, text_of(error))

    async def _declare_revoked(self) -> None:
        """Declare where revocations go. A server that has lost its data has it no more."""
        channel = await own_channel(self._connection)
        await channel.exchange_declare(self._revoked, exchange_type="fanout", durable=True)
        life: dict[str, Any] = {"x-message-ttl": REVOCATION_LIFE * 1000, "x-max-length": MOST_KEPT}
        await channel.queue_declare(self._revoked, durable=True, arguments=life)
        await channel.queue_bind(self._revoked, self._revoked)
        await channel.close()
