"""NATS as a system: its streams, how its workers keep listening, and its notices of ``nats.py``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Any

from nats.errors import ConnectionClosedError, MaxPayloadError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import ConsumerInfo, RetentionPolicy, StreamConfig
from nats.js.errors import NoStreamResponseError, NotFoundError, ObjectNotFoundError
from taskiq import AckableMessage, AsyncBroker, AsyncResultBackend, BrokerMessage, TaskiqResult
from taskiq_nats import NatsBroker, PullBasedJetStreamBroker

from taskiq_flow.cleanup import end
from taskiq_flow.errors import SerializationError
from taskiq_flow.reconnect import listen_through_outages, retry_through_outage, text_of
from taskiq_flow.transport import nats_errors
from taskiq_flow.transport.deliveries import Deliveries, Delivery, Listen, holding_ahead
from taskiq_flow.transport.nats import NatsNotifier, bucket_of
from taskiq_flow.transport.nats_acknowledged import remove_acknowledged
from taskiq_flow.transport.nats_errors import is_away, naming_refusals
from taskiq_flow.transport.protocol import Backlog, Begin, Kick, Leftover, NothingWaits

logger = logging.getLogger("taskiq_flow")

ACK_WAIT = 30.0
"""Seconds after which the server delivers again what was not acknowledged, by its default."""

GRACE = 1.0
"""Seconds that the listener's own task has to end after it was cancelled."""

HELD_BACK = 1.0
"""Seconds after which other workers are given what this one has fetched and not begun."""

READ_TIMEOUT, SLOWEST = 5.0, 100_000
"""Seconds that reading a result may take, and one more for so many bytes of it."""

FETCH_TIMEOUT = 5.0
"""Seconds after which messages are asked for again, by default: a server that was away forgets."""


# The first functions of a ``System``; the others follow.
is_outage, is_full, notifier_at = nats_errors.is_outage, nats_errors.is_full, NatsNotifier


def notifier_of(broker: AsyncBroker, prefix: str) -> NatsNotifier:
    """A notifier with a connection like the broker's."""
    nats_broker: Any = broker
    return NatsNotifier(nats_broker.servers, prefix, **nats_broker.connection_kwargs)


def is_started(broker: AsyncBroker) -> bool:
    """Whether the broker can send."""
    nats_broker: Any = broker
    connected: bool = nats_broker.client.is_connected or nats_broker.client.is_reconnecting
    return connected


def backlog_of(broker: AsyncBroker) -> Backlog:
    """The backlog of a broker over JetStream; on core subjects, nothing waits."""
    return NothingWaits() if isinstance(broker, NatsBroker) else JetStreamBacklog(broker)


def begin_of(_: AsyncBroker) -> Begin | None:
    """Its client has to be awaited."""
    return None


def kick_of(broker: AsyncBroker) -> Kick:
    """The broker's own way; what is too large for the server is said to be so.

    The stream is declared again if the server has come back without it.
    """
    nats_broker: Any = broker

    async def kick(message: BrokerMessage) -> None:
        try:
            with naming_refusals(nats_broker.client):
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
    listen: Any
    if isinstance(broker, NatsBroker):
        deliveries = Deliveries(broker)
        listen = holding_ahead(broker.listen, deliveries)
    else:
        listener = JetStreamListener(broker)
        listen, deliveries = listener.listen, listener.deliveries
    broker.listen = listen  # type: ignore[method-assign]  # taskiq has no hook for it
    return deliveries


def steady_results(backend: AsyncResultBackend[Any]) -> None:
    """Make a worker's result backend create its bucket again if the server has lost it."""
    nats_backend: Any = backend
    set_result = backend.set_result
    looking: asyncio.Task[StreamConfig | None] | None = None

    async def set_result_somewhere(task_id: str, result: TaskiqResult[Any]) -> None:
        nonlocal looking
        if looking is None:
            looking = asyncio.create_task(_config_of_results(nats_backend))
        config = await asyncio.shield(looking)
        try:
            with naming_refusals(nats_backend.nats_client):
                await set_result(task_id, result)
        except NotFoundError as error:
            logger.warning(
                "the server has lost its results (%s); the bucket is created again", error
            )
            if config is None:
                await nats_backend.nats_jetstream.create_object_store(nats_backend.bucket_name)
            else:
                await nats_backend.nats_jetstream.add_stream(config)
            await set_result(task_id, result)

    # Replaced, as taskiq has no hook for it.
    backend.set_result = set_result_somewhere  # type: ignore[method-assign]


def steady_reads(backend: AsyncResultBackend[Any]) -> None:
    """Have each read of a result end, and have a look at whether there is one read nothing.

    An object is looked up, and then waited for, without a limit. In between it may be stored anew,
    as by a worker that executes its task once more, or a server that was killed may have come back
    without it: it would be waited for in vain. Each read leaves a consumer for 5 s.
    """
    if "get_result" in vars(backend):  # the broker is started once more
        return
    nats_backend: Any = backend
    get_result = backend.get_result

    async def size_of(task_id: str) -> int | None:
        """The size of a result, ``None`` if it is not there."""
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                return (await nats_backend.object_store.get_info(task_id)).size or 0
        except ObjectNotFoundError:
            return None

    async def is_there(task_id: str) -> bool:
        return await size_of(task_id) is not None

    async def get_in_time(task_id: str, *args: Any, **options: Any) -> TaskiqResult[Any]:
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                return await get_result(task_id, *args, **options)
        except TimeoutError:  # now with as much time as a result of its size may take
            size = await size_of(task_id) or 0
        async with asyncio.timeout(READ_TIMEOUT + size / SLOWEST):
            return await get_result(task_id, *args, **options)

    # Replaced, as taskiq has no hook for it.
    nats_backend.is_result_ready, nats_backend.get_result = is_there, get_in_time


async def _config_of_results(backend: Any) -> StreamConfig | None:
    """How the bucket of results was created. Warns if its objects never expire."""
    try:
        info = await backend.nats_jetstream.stream_info(f"OBJ_{backend.bucket_name}")
    except Exception as error:  # of the server; saving the result will say more
        logger.debug("bucket %r cannot be looked at: %s", backend.bucket_name, text_of(error))
        return None
    config: StreamConfig = info.config
    if not config.max_age:
        logger.warning(
            "results in bucket %r never expire; create it with a time to live before the first "
            "worker starts, as in jetstream.create_object_store(%r, ObjectStoreConfig(ttl=3600))",
            backend.bucket_name,
            backend.bucket_name,
        )
    return config


async def inventory_of(broker: AsyncBroker, prefix: str) -> list[Leftover]:
    """The broker's stream and consumer, the results, and the bucket of revocations."""
    nats_broker: Any = broker
    found: list[Leftover] = []
    if isinstance(broker, NatsBroker):
        return found
    stream = nats_broker.stream_config.name or nats_broker.stream_name
    names = {stream: "messages", f"KV_{bucket_of(prefix)}": "revoked runs"}
    bucket = getattr(broker.result_backend, "bucket_name", None)
    if bucket is not None:
        names[f"OBJ_{bucket}"] = "results, in pieces"
    for name, note in names.items():
        try:
            info = await nats_broker.js.stream_info(name)
        except NotFoundError:
            continue
        found.append(Leftover(name, "stream", info.state.messages, note))
        for consumer in await nats_broker.js.consumers_info(name) if name == stream else []:
            waiting = f"messages are with workers; {consumer.num_pending} wait"
            found.append(
                Leftover(f"{name} {consumer.name}", "consumer", consumer.num_ack_pending, waiting)
            )
    return sorted(found, key=lambda leftover: leftover.name)


class JetStreamListener:
    """Keeps a broker listening, whatever the server has lost when it comes back.

    The subscription stays as it is: a consumer of the same name and settings serves it. A server
    that has lost its data numbers messages from 1 again, and would take the acknowledgement of an
    old message for that of a new one: messages that were held before are dropped.
    """

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        self.deliveries = deliveries = Deliveries(broker, self._renew, self._give_back)
        self._renewed_at = -math.inf
        self._listen: Listen = (
            self._pull
            if isinstance(broker, PullBasedJetStreamBroker)
            else holding_ahead(broker.listen, deliveries, _key, _number)
        )
        self._what = f"{type(broker).__name__} cannot listen"
        self._known: ConsumerInfo | None = None
        self._restoring: asyncio.Task[None] | None = None
        broker.connection_kwargs.setdefault("max_reconnect_attempts", -1)  # it outlives outages
        self._call_user = broker.connection_kwargs.get("reconnected_cb")
        broker.connection_kwargs["reconnected_cb"] = self._reconnected  # it connects after this

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        """The broker's messages, through outages."""
        removing = asyncio.create_task(remove_acknowledged(self._broker))
        try:
            async with aclosing(
                listen_through_outages(self._begin, is_away, self._what)
            ) as messages:
                async for message in messages:
                    yield message
        finally:
            others = [removing] if self._restoring is None else [removing, self._restoring]
            await end(others, GRACE)

    async def _begin(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        with naming_refusals(self._broker.client):
            await self._restore()
        async with aclosing(self._listen()) as messages:
            async for message in messages:
                yield message

    async def _pull(self) -> AsyncGenerator[AckableMessage, None]:
        """What the broker's own ``listen`` does. A batch is held from when it has come."""
        broker = self._broker
        timeout = broker.pull_consume_timeout or FETCH_TIMEOUT
        hold = self.deliveries.hold
        try:
            while True:
                try:
                    with naming_refusals(broker.client):
                        batch = await broker.consumer.fetch(broker.pull_consume_batch, timeout)
                except NatsTimeoutError:
                    continue
                # A message that is held already is delivered again if this process was suspended.
                here = self.deliveries.keys()
                new = [each for each in batch if _key(each) not in here]
                for each in new:
                    hold(each.data, each.ack, each, _key(each), _number(each))
                while (following := self.deliveries.next(_is_innocent)) is not None:
                    yield following[0]
                following = self.deliveries.next(self.deliveries.may_begin)
                # Whatever is here when a suspect kills this process counts as begun in vain.
                others = await self.deliveries.give_back()
                if others:
                    await broker.client.flush()
                if following is not None:
                    yield following[0]
                if others:
                    await asyncio.sleep(HELD_BACK)
        finally:
            await self.deliveries.give_back_at_the_end()

    async def _renew(self, held: list[Delivery]) -> None:
        """Keep the server from delivering held messages to other workers.

        Those of a batch that this worker has not begun for a while are given to others.
        """
        if isinstance(self._broker, PullBasedJetStreamBroker):
            await self.deliveries.give_back(HELD_BACK)
        now = time.monotonic()
        limit = None if self._known is None else self._known.config.ack_wait
        if now - self._renewed_at < (limit or ACK_WAIT) / 4:
            return
        self._renewed_at = now
        for delivery in held:
            await delivery.origin.in_progress()

    async def _give_back(self, delivery: Delivery) -> None:
        """Have a copy delivered to another worker: a refusal would count as a delivery."""
        headers = {_IN_VAIN: str(delivery.number - 1)}
        await self._broker.js.publish(delivery.origin.subject, delivery.data, headers=headers)
        await delivery.ack()

    async def _reconnected(self) -> None:
        """Nothing else would show the loss to a consumer that is only sent messages."""
        if self._restoring is not None:
            self._restoring.cancel()
        # Not awaited: the client continues only when this returns.
        self._restoring = asyncio.create_task(self._restore_at_last())
        if self._call_user is not None:
            await self._call_user()

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
            logger.warning("the server has lost its streams (%s); they are created again", error)
            await broker._add_or_reuse_stream()  # noqa: SLF001 - as when it starts
            found = await broker.js.add_consumer(known.stream_name, config=known.config)
        if known is None:
            await self._warn_of_what_stays(found.stream_name)
        self._known = found
        if known is not None and found.created != known.created:
            self.deliveries.clear()

    async def _warn_of_what_stays(self, stream: str) -> None:
        """Warn of a stream that keeps messages for ever after they were acknowledged."""
        config = (await self._broker.js.stream_info(stream)).config
        limits = (config.max_age, config.max_msgs, config.max_bytes)  # -1 stands for none
        if config.retention == RetentionPolicy.LIMITS and not any((n or 0) > 0 for n in limits):
            logger.warning(
                "stream %r keeps each message for ever, also when its task has ended; create it "
                "with StreamConfig(retention=RetentionPolicy.WORK_QUEUE)",
                stream,
            )


def _is_innocent(delivery: Delivery) -> bool:
    return not delivery.is_suspect


def _key(message: Any) -> tuple[int, datetime]:
    """The message's number in its stream, and when it came there.

    A server that has lost its messages gives their numbers to others.
    """
    metadata = message.metadata
    return metadata.sequence.stream, metadata.timestamp


def _number(message: Any) -> int:
    """Which delivery of the message it is, with those of what it is a copy of."""
    before = (message.headers or {}).get(_IN_VAIN, "0")
    return int(message.metadata.num_delivered or 1) + int(before)


_IN_VAIN = "taskiq-flow-deliveries"
"""The header of a copy with the number of times that the message was delivered in vain."""


class JetStreamBacklog:
    """A stream, and how far its consumer was given it."""

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker: Any = broker

    async def position(self, queue: str | None) -> tuple[Any, Any]:
        """The sequence numbers of the newest message and of the newest one delivered.

        The stream may have subjects of other consumers. Where no message waits to be delivered by
        this one, it has passed all that ever were.
        """
        broker = self._broker
        stream = broker.stream_config.name or broker.stream_name
        state = await broker.js.stream_info(stream)
        consumer = await broker.consumer.consumer_info()
        newest = state.state.last_seq
        return newest, consumer.delivered.stream_seq if consumer.num_pending else newest
