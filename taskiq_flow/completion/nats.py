"""NATS: notices on core subjects, revocations in a JetStream key-value bucket.

The only file that knows NATS's clients.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import (
    ConnectionClosedError,
    ConnectionReconnectingError,
    MaxPayloadError,
    NoRespondersError,
    NoServersError,
    OutboundBufferLimitError,
    StaleConnectionError,
)
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import KeyValueConfig
from nats.js.errors import NoStreamResponseError, NotFoundError, ServiceUnavailableError
from nats.js.kv import KeyValue
from taskiq import AckableMessage, AsyncBroker, AsyncResultBackend, BrokerMessage
from taskiq_nats import NatsBroker, PullBasedJetStreamBroker

from taskiq_flow.completion.deliveries import Deliveries, Delivery, holding_ahead
from taskiq_flow.completion.notifier import REVOCATION_LIFE, Backlog, Kick, SaveAndPublish
from taskiq_flow.errors import SerializationError
from taskiq_flow.waiting import until_ended

OUTAGES = (
    ConnectionClosedError,
    ConnectionReconnectingError,
    NatsTimeoutError,
    NoRespondersError,
    NoServersError,
    NoStreamResponseError,
    OutboundBufferLimitError,
    ServiceUnavailableError,
    StaleConnectionError,
    OSError,
)

REVOKED = "taskiq_flow_revoked"
"""The bucket whose keys are the revoked runs."""

CONNECT_TIMEOUT = 2
"""Seconds after which one try to connect counts as failed."""

GRACE = 1.0
"""Seconds that a subscription is given to end when it is cancelled."""


def notifier_at(url: str) -> NatsNotifier:
    """A notifier with the settings of a URL: ``nats://`` or ``tls://``."""
    return NatsNotifier(url)


def notifier_of(broker: AsyncBroker) -> NatsNotifier:
    """A notifier with a connection like the broker's."""
    nats_broker: Any = broker
    return NatsNotifier(nats_broker.servers, **nats_broker.connection_kwargs)


def is_started(broker: AsyncBroker) -> bool:
    """Whether the broker can send."""
    nats_broker: Any = broker
    connected: bool = nats_broker.client.is_connected or nats_broker.client.is_reconnecting
    return connected


def backlog_of(broker: AsyncBroker) -> Backlog | None:
    """The backlog of a broker over JetStream; core subjects have none."""
    return None if isinstance(broker, NatsBroker) else JetStreamBacklog(broker)


def kick_of(broker: AsyncBroker) -> Kick:
    """The broker's own way; what is too large for the server is said to be so."""

    async def kick(message: BrokerMessage) -> None:
        try:
            await broker.kick(message)
        except MaxPayloadError as error:
            raise SerializationError(
                f"the message of task {message.task_id!r} has {len(message.message)} bytes, more "
                "than the NATS server takes; pass large values by reference, as with "
                "ExecutionEngine(..., pass_by=65536), or raise the server's max_payload"
            ) from error

    return kick


def steady(broker: AsyncBroker) -> Deliveries:
    """NATS's client reconnects by itself. What a worker holds is kept from coming again."""
    deliveries = Deliveries(broker, _renew)
    if isinstance(broker, PullBasedJetStreamBroker):
        broker.listen = lambda: _pull(broker, deliveries)  # type: ignore[method-assign]
    elif not isinstance(broker, NatsBroker):  # whose subjects have nothing to acknowledge
        broker.listen = holding_ahead(broker.listen, deliveries)  # type: ignore[method-assign]
    return deliveries


async def _renew(held: list[Delivery]) -> None:
    for delivery in held:
        await delivery.origin.in_progress()


async def _pull(broker: Any, deliveries: Deliveries) -> AsyncGenerator[AckableMessage, None]:
    """What the broker's own ``listen`` does; a batch is held from when it has come."""
    while True:
        try:
            batch = await broker.consumer.fetch(
                batch=broker.pull_consume_batch, timeout=broker.pull_consume_timeout
            )
        except NatsTimeoutError:
            continue
        for message in [deliveries.hold(each.data, each.ack, each) for each in batch]:
            yield message


class NatsNotifier:
    """Notices over a connection of its own, which reconnects for as long as it is open."""

    outages = OUTAGES

    def __init__(self, servers: str | list[str], **settings: Any) -> None:
        self._servers = servers
        self._settings = {"max_reconnect_attempts": -1, **settings}
        self._client: Client | None = None
        self._bucket: KeyValue | None = None
        self._watchers: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connect."""
        once = {"max_reconnect_attempts": 1, "reconnect_time_wait": 0}
        # A client that may reconnect does not say that it could not connect at all.
        probe = await nats.connect(self._servers, **{**self._settings, **once})
        await probe.close()
        self._client = await nats.connect(self._servers, **self._settings)

    @property
    def _connected(self) -> Client:
        if self._client is None:
            raise AssertionError("the notifier was not opened")
        return self._client

    async def publish(self, channel: str, data: bytes) -> None:
        """Have all who listen on the subject hear ``data``."""
        await self._connected.publish(channel, data)

    async def subscribe(self, channel: str, hear: Callable[[bytes], None]) -> None:
        """Listen on a subject from now on until ``aclose``."""

        async def handle(message: Msg) -> None:
            hear(message.data)

        await self._connected.subscribe(channel, cb=handle)
        await self._connected.flush()

    @property
    def is_listening(self) -> bool:
        """Whether the connection is up."""
        return self._connected.is_connected

    def saver(self, backend: AsyncResultBackend[Any]) -> SaveAndPublish | None:
        """A JetStream object is stored in several messages: nothing to gain."""
        return None

    async def revoke(self, run_id: str) -> None:
        """Have every worker hear that a run is over, those that are away now as well."""
        bucket = await self._revoked()
        await bucket.put(run_id.encode().hex(), b"")

    async def subscribe_to_revocations(self, hear: Callable[[str], None]) -> None:
        """Hear of all runs in the bucket, and of those that come to it."""
        bucket = await self._revoked()
        watcher: Any = await bucket.watchall()
        caught_up = asyncio.get_running_loop().create_future()

        async def watch() -> None:
            async for entry in watcher:
                if entry is not None:
                    hear(bytes.fromhex(entry.key).decode())
                elif not caught_up.done():
                    caught_up.set_result(None)

        self._watchers.add(asyncio.create_task(watch()))
        await caught_up

    async def aclose(self) -> None:
        """Disconnect."""
        for task in self._watchers:
            task.cancel()
        await until_ended(self._watchers, GRACE)
        if self._client is not None:
            with contextlib.suppress(NatsError):
                await self._client.close()

    async def _revoked(self) -> KeyValue:
        if self._bucket is None:
            context = self._connected.jetstream()
            try:
                self._bucket = await context.key_value(REVOKED)
            except NotFoundError:
                config = KeyValueConfig(bucket=REVOKED, ttl=REVOCATION_LIFE)
                self._bucket = await context.create_key_value(config)
        return self._bucket


class JetStreamBacklog:
    """A stream, and how far its consumer was given it."""

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker: Any = broker

    async def position(self, queue: str | None) -> tuple[Any, Any]:
        """The sequence numbers of the newest message and of the newest one delivered."""
        broker = self._broker
        stream = broker.stream_config.name or broker.stream_name
        state = await broker.js.stream_info(stream)
        consumer = await broker.consumer.consumer_info()
        return state.state.last_seq, consumer.delivered.stream_seq
