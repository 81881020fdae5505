"""NATS as a broker: its streams, and how its workers keep listening.

With ``nats.py`` beside it, the only file that knows NATS's clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from nats.errors import (
    ConnectionClosedError,
    ConnectionReconnectingError,
    MaxPayloadError,
    NoRespondersError,
    NoServersError,
    OutboundBufferLimitError,
    StaleConnectionError,
)
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import ConsumerInfo
from nats.js.errors import (
    APIError,
    NoStreamResponseError,
    NotFoundError,
    ServiceUnavailableError,
)
from taskiq import AckableMessage, AsyncBroker, AsyncResultBackend, BrokerMessage, TaskiqResult
from taskiq_nats import NatsBroker, PullBasedJetStreamBroker

from taskiq_flow.errors import SerializationError
from taskiq_flow.reconnect import listen_through_outages, retry_through_outage
from taskiq_flow.transport.deliveries import Deliveries, Delivery, Listen, holding_ahead
from taskiq_flow.transport.protocol import Backlog, Kick, NothingWaits

logger = logging.getLogger("taskiq_flow")

_OUTAGES = (
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

_AWAY = (*(kind for kind in _OUTAGES if kind is not ConnectionClosedError), APIError)

ACK_WAIT = 30.0
"""Seconds after which the server delivers again what was not acknowledged, by its default."""

FETCH_TIMEOUT = 5.0
"""Seconds after which messages are asked for again, by default: a server that was away forgets."""


def is_outage(error: BaseException) -> bool:
    """Whether an error says that the server cannot serve now, and may later."""
    return isinstance(error, _OUTAGES)


def is_away(error: BaseException) -> bool:
    """Whether a client that listens may go on after an error: not if it was closed.

    A server that has just come up answers with errors of its API.
    """
    return isinstance(error, _AWAY)


def is_started(broker: AsyncBroker) -> bool:
    """Whether the broker can send."""
    nats_broker: Any = broker
    connected: bool = nats_broker.client.is_connected or nats_broker.client.is_reconnecting
    return connected


def backlog_of(broker: AsyncBroker) -> Backlog:
    """The backlog of a broker over JetStream; on core subjects, nothing waits."""
    return NothingWaits() if isinstance(broker, NatsBroker) else JetStreamBacklog(broker)


def kick_of(broker: AsyncBroker) -> Kick:
    """The broker's own way; what is too large for the server is said to be so.

    The stream is declared again if the server has come back without it.
    """
    nats_broker: Any = broker

    async def kick(message: BrokerMessage) -> None:
        try:
            await broker.kick(message)
        except NoStreamResponseError:
            await nats_broker._add_or_reuse_stream()  # noqa: SLF001 - as when it starts
            await broker.kick(message)
        except MaxPayloadError as error:
            raise SerializationError(
                f"the message of task {message.task_id!r} has {len(message.message)} bytes, more "
                "than the NATS server takes; pass large values by reference, as with "
                "ExecutionEngine(..., pass_by=65536), or raise the server's max_payload"
            ) from error

    return kick


def steady(broker: AsyncBroker) -> Deliveries:
    """Make the broker listen through outages, and keep its held messages from coming again.

    One over JetStream declares what the server has lost, if it comes back without its data.
    """
    if isinstance(broker, NatsBroker):
        deliveries = Deliveries(broker)
        listen = holding_ahead(broker.listen, deliveries)
        # Replaced, as taskiq has no hook for it.
        broker.listen = listen  # type: ignore[method-assign, assignment]
        return deliveries
    listener = JetStreamListener(broker)
    # Replaced, as taskiq has no hook for it.
    broker.listen = listener.listen  # type: ignore[method-assign]
    return listener.deliveries


def steady_results(backend: AsyncResultBackend[Any]) -> None:
    """Make a worker's result backend create its bucket again if the server has lost it."""
    nats_backend: Any = backend
    set_result = backend.set_result

    async def set_result_somewhere(task_id: str, result: TaskiqResult[Any]) -> None:
        try:
            await set_result(task_id, result)
        except NotFoundError as error:
            logger.warning("the server has lost its results (%s); they are begun anew", error)
            await nats_backend.nats_jetstream.create_object_store(nats_backend.bucket_name)
            await set_result(task_id, result)

    # Replaced, as taskiq has no hook for it.
    backend.set_result = set_result_somewhere  # type: ignore[method-assign]


class JetStreamListener:
    """Keeps a broker listening, whatever the server has lost when it comes back.

    The subscription stays as it is: a consumer of the same name and settings serves it. A server
    that has begun anew numbers from 1 again, and would take the acknowledgement of an old message
    for that of a new one: what was held before is let go.
    """

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        self.deliveries = deliveries = Deliveries(broker, self._renew, _give_back)
        self._renewed_at = -math.inf
        self._listen: Listen = (
            self._pull
            if isinstance(broker, PullBasedJetStreamBroker)
            else holding_ahead(broker.listen, deliveries, _key)
        )
        self._what = f"{type(broker).__name__} cannot listen"
        self._known: ConsumerInfo | None = None
        self._restoring: asyncio.Task[None] | None = None
        self._call_user = broker.connection_kwargs.get("reconnected_cb")
        broker.connection_kwargs["reconnected_cb"] = self._reconnected  # it connects after this

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        """The broker's messages, through outages."""
        try:
            async with aclosing(
                listen_through_outages(self._begin, is_away, self._what)
            ) as messages:
                async for message in messages:
                    yield message
        finally:
            self._stop_restoring()

    async def _begin(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        await self._restore()
        async with aclosing(self._listen()) as messages:
            async for message in messages:
                yield message

    async def _pull(self) -> AsyncGenerator[AckableMessage, None]:
        """What the broker's own ``listen`` does; a batch is held from when it has come."""
        broker = self._broker
        timeout = broker.pull_consume_timeout or FETCH_TIMEOUT
        hold = self.deliveries.hold
        try:
            while True:
                try:
                    batch = await broker.consumer.fetch(broker.pull_consume_batch, timeout)
                except NatsTimeoutError:
                    continue
                # One that is here already comes again only as this process has stood still.
                here = self.deliveries.keys()
                new = [each for each in batch if _key(each) not in here]
                for message in [hold(each.data, each.ack, each, _key(each)) for each in new]:
                    yield self.deliveries.hand_over(message)
        finally:
            await self.deliveries.give_back()

    async def _renew(self, held: list[Delivery]) -> None:
        """Keep the server from delivering held messages to other workers."""
        now = time.monotonic()
        limit = None if self._known is None else self._known.config.ack_wait
        if now - self._renewed_at < (limit or ACK_WAIT) / 4:
            return
        self._renewed_at = now
        for delivery in held:
            await delivery.origin.in_progress()

    async def _reconnected(self) -> None:
        """Nothing else would show the loss to a consumer that is only sent messages."""
        self._stop_restoring()
        # Not awaited: the client goes on only when this returns.
        self._restoring = asyncio.create_task(self._restore_at_last())
        if self._call_user is not None:
            await self._call_user()

    def _stop_restoring(self) -> None:
        if self._restoring is not None:
            self._restoring.cancel()

    async def _restore_at_last(self) -> None:
        with contextlib.suppress(ConnectionClosedError):
            await retry_through_outage(self._restore, is_away, self._what, math.inf)

    async def _restore(self) -> None:
        """Create the stream and the consumer again if the server has lost them."""
        broker, known = self._broker, self._known
        try:
            found = await broker.consumer.consumer_info()
        except NotFoundError as error:
            if known is None:
                raise
            logger.warning("the server has lost its streams (%s); they are begun anew", error)
            await broker._add_or_reuse_stream()  # noqa: SLF001 - as when it starts
            found = await broker.js.add_consumer(known.stream_name, config=known.config)
        self._known = found
        if known is not None and found.created != known.created:
            self.deliveries.clear()


def _key(message: Any) -> int:
    """The message's number in its stream."""
    number: int = message.metadata.sequence.stream
    return number


async def _give_back(delivery: Delivery) -> None:
    await delivery.origin.nak()


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
