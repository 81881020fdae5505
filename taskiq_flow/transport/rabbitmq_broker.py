"""RabbitMQ's queues of tasks: what a worker receives, holds and gives back; how an engine sends.

The server bounds how long a message may be unacknowledged (``consumer_timeout``), and clients
cannot read that bound. So the message of a long task is parked: a copy goes to a queue of the
worker's own, where the worker receives it at once, and the original is acknowledged. If the worker
dies, the copy returns to that queue, expires, and the server moves it to the queue of tasks.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import (
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)
from taskiq import AckableMessage, AsyncBroker, AsyncResultBackend, BrokerMessage

from taskiq_flow.cleanup import to_the_end
from taskiq_flow.errors import SerializationError
from taskiq_flow.reconnect import listen_through_outages, retry_through_outage, text_of
from taskiq_flow.transport import rabbitmq_errors
from taskiq_flow.transport.deliveries import GIVING_BACK, Deliveries, Delivery
from taskiq_flow.transport.protocol import Begin, Kick, Leftover
from taskiq_flow.transport.rabbitmq import RabbitNotifier, channel_of, revoked_of
from taskiq_flow.transport.rabbitmq_errors import CLIENT_ERRORS

logger = logging.getLogger("taskiq_flow")

PARK_AFTER = 30.0
"""Seconds for which a message is unacknowledged. RabbitMQ advises no lower limit than a minute."""

PARKED_LIFE = 1000
"""Milliseconds after which a parked message that no worker has returns to the queue of tasks."""

PARKING_LIFE = 60_000
"""Milliseconds after which the server removes the queue of a worker that has ended."""

PARKING_TIMEOUT = 2.0
"""Seconds in which a copy has to arrive."""

PATIENCE = 1.0
"""Seconds that a message may wait in a worker before it is given back."""

AT_ONCE = 0.1
"""Seconds in which a worker that has places free asks for the next message."""

REOPENING = 5.0
"""Seconds in which the client opens a channel anew that the server has closed."""

NUMBER = "taskiq_flow_deliveries"
"""The header with the number of deliveries that were in vain."""

_OF_THE_SERVER = ("x-death", "x-first-death", "x-last-death", "x-delivery-count", "x-acquired")
"""Beginnings of headers that a copy does not have: the server drops messages that go in circles."""


# The first functions of a ``System``; the others follow.
is_outage, is_full = rabbitmq_errors.is_outage, rabbitmq_errors.is_full
notifier_at = RabbitNotifier


def notifier_of(broker: AsyncBroker, prefix: str) -> RabbitNotifier:
    """A notifier with a connection like the broker's."""
    rabbit: Any = broker
    settings = rabbit._conn_kwargs  # noqa: SLF001 - kept nowhere else
    return RabbitNotifier(rabbit.url, prefix, **settings)


def is_started(broker: AsyncBroker) -> bool:
    """Whether the broker can send."""
    rabbit: Any = broker
    return rabbit.write_channel is not None


def begin_of(_: AsyncBroker) -> Begin | None:
    """Its client has to be awaited."""
    return None


def kick_of(broker: AsyncBroker) -> Kick:
    """Sends as the broker does. A message that no queue takes is an error.

    An exchange or a queue that is gone is declared anew, once. By default the server drops a
    message that no queue takes, and says so to nobody.
    """
    rabbit: Any = broker

    async def declare() -> None:
        await rabbit._declare_exchanges()  # noqa: SLF001 - no other way
        await rabbit._declare_queues(rabbit.write_channel)  # noqa: SLF001 - as above

    async def send(message: BrokerMessage) -> None:
        channel = rabbit.write_channel
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

    async def kick(message: BrokerMessage) -> None:
        try:
            await send(message)
        except (ChannelNotFoundEntity, PublishError):
            await retry_through_outage(declare, is_outage, "the queue is gone", REOPENING)
            await send(message)

    return kick


def steady(broker: AsyncBroker) -> Deliveries:
    """Make a worker's broker listen as ``QueueListener`` does."""
    listener = QueueListener(broker)
    # Replaced, as taskiq has no hook for it.
    broker.listen = listener.listen  # type: ignore[method-assign]
    return listener.deliveries


def steady_results(_: AsyncResultBackend[Any]) -> None:
    """RabbitMQ stores no results."""


steady_reads = steady_results


class _Held:
    """A message that the worker holds, and the copies of it that came since."""

    def __init__(self, queue: str, message: AbstractIncomingMessage) -> None:
        self.queue = queue
        self.messages = [message]
        self.since = time.monotonic()
        self.has_come = asyncio.Event()

    def add(self, message: AbstractIncomingMessage) -> None:
        """The message came again: the server wants this delivery acknowledged as well."""
        self.messages.append(message)
        self.since = time.monotonic()
        self.has_come.set()

    @property
    def is_here(self) -> bool:
        """Whether a channel of the message is open: else the server has taken it back."""
        return any(_is_open(message) for message in self.messages)

    async def ack(self) -> None:
        """Acknowledge all but those whose channel is closed: the server has taken these back."""
        messages, self.messages = self.messages, []
        for message in messages:
            await _acknowledge(message)

    async def reject(self) -> None:
        """Return the message to its queue; the copies of it that came before are acknowledged."""
        message = self.messages.pop()
        await self.ack()
        await message.reject(requeue=True)


class QueueListener:
    """Receives the messages of a worker, through closed channels and lost connections.

    The client reconnects and consumes again by itself. A message that comes again while it is held
    is acknowledged with the first. While messages wait in the worker for longer than ``PATIENCE``,
    it consumes nothing, and gives them back.
    """

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker: Any = broker
        self.deliveries = Deliveries(broker, self._park_old, self._give_back)
        self._queues: list[tuple[Any, dict[str, Any]]] = []
        self._consumers: list[tuple[Any, str]] = []
        self._is_changing = asyncio.Lock()
        self._has_news = asyncio.Event()
        self._own_channel: Any = None
        self._parkings: dict[str, Any] = {}  # by the queue of tasks
        self._is_declaring = asyncio.Lock()
        self._size = 0
        self._suspect: Delivery | None = None
        self._suspects: list[tuple[AckableMessage, Delivery]] = []  # that wait for it

    def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Yield each message."""
        return listen_through_outages(self._listen, is_outage, "the queues cannot be read")

    async def _listen(self) -> AsyncGenerator[AckableMessage, None]:
        broker = self._broker
        delay = broker._delay_queue  # noqa: SLF001 - kept nowhere else
        declared = await broker._declare_queues(broker.read_channel)  # noqa: SLF001 - as above
        self._queues = [(q, a) for q, a in declared if delay is None or q.name != delay.name]
        if self._own_channel is None:
            self._own_channel = await broker.read_conn.channel()
            self._own_channel.reopen_callbacks.add(self._restore_parkings)
        self._size = broker._qos  # noqa: SLF001 - kept nowhere else
        watching = asyncio.create_task(self._watch())
        handed_over_at = -1.0
        try:
            while True:
                self._has_news.clear()
                if (following := self._next()) is not None:
                    message, delivery = following
                    if delivery.number > 1:
                        await self._count_begin(delivery)
                    handed_over_at = time.monotonic()
                    yield message
                    continue
                await self._consume(is_prompt=time.monotonic() - handed_over_at < AT_ONCE)
                if not self.deliveries.waits():
                    await self._has_news.wait()
        finally:
            watching.cancel()
            await to_the_end(self._leave())

    async def _leave(self) -> None:
        """Consume nothing more, and give back what has not begun. Wait for results to be saved."""
        try:
            async with asyncio.timeout(GIVING_BACK):
                await self._stop()
                for _, delivery in self._suspects:
                    await self._give_back(delivery)
        except CLIENT_ERRORS as error:  # the server takes the messages back when the channel closes
            logger.debug("the worker has left something on the server: %s", text_of(error))
        await self.deliveries.until_saved()

    def _next(self) -> tuple[AckableMessage, Delivery] | None:
        """The next message to begin.

        Of those that were begun twice in vain, one at a time: the others may be innocent.
        """
        if self._suspect is not None and self._suspect.is_acknowledged:
            self._suspect = None
        if self._suspect is None and self._suspects:
            message, self._suspect = self._suspects.pop(0)
            return message, self._suspect
        while (following := self.deliveries.next()) is not None:
            _, delivery = following
            if not delivery.origin.is_here:
                self.deliveries.discard(delivery)
                continue
            if not delivery.is_suspect:
                return following
            if self._suspect is None:
                self._suspect = delivery
                return following
            self._suspects.append(following)
        return None

    async def _consume(self, *, is_prompt: bool) -> None:
        """Have messages delivered: as many as ``qos`` says, few while the worker's places are full.

        ``is_prompt``: the worker has begun the previous message at once, and has places free.
        """
        full = self._broker._qos  # noqa: SLF001 - kept nowhere else
        async with self._is_changing:
            if self._consumers and self._size >= full:
                return
            await self._cancel()
            if self.deliveries.waits():
                return
            self._size = min(2 * self._size, full) if is_prompt else self._size
            await self._broker.read_channel.set_qos(prefetch_count=self._size)
            for queue, arguments in self._queues:
                tag = await queue.consume(partial(self._take, queue.name), **arguments)
                self._consumers.append((queue, tag))

    async def _cancel(self) -> None:
        consumers, self._consumers = self._consumers, []
        for queue, tag in consumers:
            try:
                await queue.cancel(tag)
            except CLIENT_ERRORS as error:  # the server has forgotten the consumer
                logger.debug("a consumer was not cancelled: %s", text_of(error))

    async def _watch(self) -> None:
        """Give back what waits here too long."""
        while True:
            await asyncio.sleep(PATIENCE / 4)
            if self.deliveries.waits(PATIENCE):
                await self._stop()

    async def _stop(self) -> None:
        async with self._is_changing:
            await self._cancel()
            self._size = 1
            await self.deliveries.give_back()

    async def _take(self, queue: str, message: AbstractIncomingMessage) -> None:
        """Hold a message that was delivered. ``queue``: of tasks."""
        # A task that is tried once more has other labels, and so another body.
        if (delivery := self.deliveries.held(message.body)) is not None:
            delivery.origin.add(message)
            return
        in_vain = message.headers.get(NUMBER, int(bool(message.redelivered)))
        held = _Held(queue, message)
        number = int(str(in_vain)) + 1
        self.deliveries.hold(message.body, partial(self._ack, held), held, message.body, number)
        self._has_news.set()

    async def _ack(self, held: _Held) -> None:
        await held.ack()
        self._has_news.set()  # a suspect may have ended

    async def _count_begin(self, delivery: Delivery) -> None:
        try:
            await self._park(delivery, delivery.number)
        except CLIENT_ERRORS as error:
            logger.warning("a delivery is not counted: %s", text_of(error))

    async def _park_old(self, deliveries: list[Delivery]) -> None:
        before = time.monotonic() - PARK_AFTER
        old = [d for d in deliveries if d.origin.since < before]
        await asyncio.gather(*(self._park(d, max(d.number, 1)) for d in old))

    async def _park(self, delivery: Delivery, number: int) -> None:
        """Hold a copy in place of the message. ``number``: of deliveries, should it be in vain."""
        held: _Held = delivery.origin
        originals = tuple(held.messages)
        if not originals:
            return
        held.has_come.clear()
        await self._publish(await self._parking(held.queue), originals[-1], number)
        async with asyncio.timeout(PARKING_TIMEOUT):
            await held.has_come.wait()
        for original in originals:
            if original in held.messages:  # not acknowledged in the meantime
                held.messages.remove(original)
                await _acknowledge(original)

    async def _parking(self, queue: str) -> str:
        """The worker's own queue for messages of a queue. It has the server clean up after it."""
        async with self._is_declaring:
            if (parking := self._parkings.get(queue)) is None:
                parking = await self._own_channel.declare_queue(
                    f"{queue}.held.{secrets.token_hex(8)}",
                    durable=True,
                    arguments={
                        # A quorum queue takes ten seconds more to let go of what has expired.
                        "x-queue-type": "classic",
                        "x-message-ttl": PARKED_LIFE,
                        "x-expires": PARKING_LIFE,
                        "x-dead-letter-exchange": "",
                        "x-dead-letter-routing-key": queue,
                    },
                    robust=False,
                )
                await parking.consume(partial(self._take, queue))
                self._parkings[queue] = parking
        return str(parking.name)

    async def _restore_parkings(self, *_: Any) -> None:
        """Consume the worker's own queues again, on a new channel.

        The client would fail to connect while the node of one of them is down. Such a queue is
        given up: the next message is parked in a new one.
        """
        for queue, parking in tuple(self._parkings.items()):
            if await count_of(self._broker.read_conn, parking.name) is None:
                del self._parkings[queue]
            else:
                await parking.restore()

    async def _give_back(self, delivery: Delivery) -> None:
        """Put a copy at the queue's end: a message that is rejected counts as delivered.

        A queue with a limit on its length may refuse the copy. It takes back the message itself.
        """
        held: _Held = delivery.origin
        if not held.is_here:
            return
        try:
            await self._publish(held.queue, held.messages[-1], delivery.number - 1)
        except DeliveryError as error:
            logger.debug("queue %r refuses a copy: %s", held.queue, text_of(error))
            await held.reject()
        else:
            await held.ack()

    async def _publish(self, queue: str, original: AbstractIncomingMessage, in_vain: int) -> None:
        headers = {k: v for k, v in original.headers.items() if not k.startswith(_OF_THE_SERVER)}
        if in_vain:
            headers[NUMBER] = in_vain
        copy = Message(
            original.body,
            headers=headers,
            delivery_mode=original.delivery_mode,
            priority=original.priority,
        )
        await self._own_channel.default_exchange.publish(copy, queue)


def _is_open(message: AbstractIncomingMessage) -> bool:
    try:
        return not message.channel.is_closed
    except ChannelInvalidStateError:
        return False


async def _acknowledge(message: AbstractIncomingMessage) -> None:
    try:
        await message.ack()
    except CLIENT_ERRORS as error:  # the server delivers it again, which is recognised
        logger.debug("a message was not acknowledged: %s", text_of(error))


async def count_of(connection: Any, name: str) -> int | None:
    """The messages that wait in a queue. ``None`` if it is gone, or its node is down."""
    channel = await channel_of(connection)
    try:
        declared = await channel.queue_declare(name, passive=True)
    except ChannelNotFoundEntity:
        return None
    await channel.close()
    return int(declared.message_count or 0)


async def inventory_of(broker: AsyncBroker, prefix: str) -> list[Leftover]:
    """What a broker and its middleware have on the server, in the order of their names.

    AMQP lists no names: the queues of engines and workers, which end with them, are left out.
    """
    rabbit: Any = broker
    dead = rabbit._dead_letter_queue.name  # noqa: SLF001 - kept nowhere else
    notes = {revoked_of(prefix): "runs that are over, for a day", dead: "rejected messages"}
    notes |= {queue.name: "tasks that wait" for queue in rabbit._task_queues}  # noqa: SLF001
    counts = {name: await count_of(rabbit.write_conn, name) for name in sorted(notes)}
    return [
        Leftover(name, "queue", count, notes[name])
        for name, count in counts.items()
        if count is not None
    ]


class QueueBacklog:
    """Queues without positions: either all messages are taken, or some wait."""

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker: Any = broker

    async def position(self, queue: str | None) -> tuple[Any, Any]:
        """Whether any message of a queue waits for a worker."""
        own = self._broker._task_queues  # noqa: SLF001 - kept nowhere else
        names = [queue] if queue else [declared.name for declared in own]
        # The broker's own channel would answer with what it was told when it began.
        waiting = [await count_of(self._broker.write_conn, name) or 0 for name in names]
        return 1, int(not sum(waiting))


backlog_of = QueueBacklog
