"""The messages that a worker has received from its broker and not acknowledged.

A broker delivers more messages than a worker executes at once. Those that wait in the worker are
neither in the queue nor being executed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import anyio
from taskiq import AckableMessage, AsyncBroker, TaskiqMessage
from taskiq.utils import maybe_awaitable

from taskiq_flow.cleanup import to_the_end
from taskiq_flow.reconnect import text_of
from taskiq_flow.transport.notice import LABEL, ReplyTo

logger = logging.getLogger("taskiq_flow")

SUSPECT = 2
"""Deliveries without an end after which a message is executed alone."""

GIVING_BACK = 5.0
"""Seconds that the server has to take messages back."""

Listen = Callable[[], AsyncGenerator[bytes | AckableMessage, None]]
"""A broker's ``listen``."""


@dataclass(slots=True, eq=False)
class Delivery:
    """One message. ``origin``: the client's own object for it.

    ``key``: tells the message from others on its server, however often it is delivered.
    ``number``: which delivery of the message it is, 1 for the first. ``came_at``: the time of the
    monotonic clock. ``task_id`` and ``reply_to`` are known once it was ``read``; ``reply_to`` is
    ``None`` if no engine has sent the message.
    """

    data: bytes
    _ack: Callable[[], Awaitable[None] | None]
    origin: Any
    key: Any
    number: int
    came_at: float = field(default_factory=time.monotonic)
    task_id: str = ""
    reply_to: ReplyTo | None = None
    is_acknowledged: bool = False
    is_read: bool = False

    @property
    def is_suspect(self) -> bool:
        """Whether it was delivered so often without an end that it may kill its worker."""
        return self.number > SUSPECT

    async def ack(self) -> None:
        """Acknowledge the message, unless that is done."""
        if not self.is_acknowledged:
            await maybe_awaitable(self._ack())
            self.is_acknowledged = True

    def come_again(self, ack: Callable[[], Awaitable[None] | None], origin: Any) -> None:
        """The server has delivered the message again, and forgotten the earlier delivery."""
        self._ack, self.origin = ack, origin
        self.is_acknowledged = False

    def read(self, broker: AsyncBroker) -> ReplyTo | None:
        """The address to which the task is reported. ``None`` if no engine has sent it."""
        if self.is_read:
            return self.reply_to
        self.is_read = True
        try:
            message = broker.formatter.loads(self.data)
            self.task_id = message.task_id
            self.reply_to = ReplyTo.of(message.labels[LABEL])
        except Exception:  # noqa: S110 - no task, or none of an engine: taskiq's own affair
            pass
        return self.reply_to


_executed: ContextVar[Delivery | None] = ContextVar("executed", default=None)


class Deliveries:
    """The messages that a worker holds.

    ``renew`` keeps some of them from being delivered to others. ``give_back`` has one delivered to
    another worker at once. ``leave`` is called when the worker ends. ``on_acknowledged`` is called
    when taskiq has acknowledged one, with the error if that failed: taskiq does not try again.
    ``redelivered``: those held that were delivered before. ``saving``: those that taskiq is done
    with, while the results of their tasks are saved.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        renew: Callable[[list[Delivery]], Awaitable[None]] | None = None,
        give_back: Callable[[Delivery], Awaitable[None]] | None = None,
        leave: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._broker = broker
        self._renew = renew
        self._give_back = give_back
        self._leave = leave
        self._fetched: dict[int, tuple[AckableMessage, Delivery]] = {}  # not handed to taskiq yet
        self.on_acknowledged: Callable[[Delivery, Exception | None], None] = _raise
        self._held: dict[Delivery, None] = {}
        self.redelivered: dict[Delivery, None] = {}
        self.saving: dict[Delivery, asyncio.Task[None]] = {}
        self._by_data: dict[int, Delivery] = {}  # those held, by the identity of their bytes
        self._loads: Any = broker.formatter.loads

    def trace(self) -> None:
        """Until ``aclose``, note which message is executed by each asyncio task.

        taskiq tells middlewares what a message says, and not which one of the broker's it is. The
        formatter's ``loads`` is replaced: taskiq calls it in the task that executes the message,
        before any middleware. What is read there while that message is held is another one.
        """

        def loads_and_notes(message: bytes) -> TaskiqMessage:
            if _executed.get() not in self._held:
                _executed.set(self._by_data.get(id(message)))
            loaded: TaskiqMessage = self._loads(message)
            return loaded

        self._broker.formatter.loads = loads_and_notes  # type: ignore[method-assign]

    @staticmethod
    def executed() -> Delivery | None:
        """The message that the current asyncio task executes, if it is held."""
        return _executed.get()

    def hold(
        self,
        data: bytes,
        ack: Callable[[], Awaitable[None] | None],
        origin: Any = None,
        key: Any = None,
        number: int = 1,
    ) -> AckableMessage:
        """Hold a message until it is acknowledged. Returns the message to give to taskiq."""
        delivery = Delivery(data, ack, origin, key, number)
        self._held[delivery] = None
        self._by_data[id(data)] = delivery
        if number > 1:
            self.redelivered[delivery] = None

        async def acknowledge() -> None:
            if delivery in self.saving:
                return
            try:
                await self.let_go(delivery)
            except Exception as error:  # whatever the client raises
                self.on_acknowledged(delivery, error)
            else:
                self.on_acknowledged(delivery, None)

        message = AckableMessage(data=data, ack=acknowledge)
        self._fetched[id(message)] = message, delivery
        return message

    def hand_over(self, message: AckableMessage) -> AckableMessage:
        """Note that taskiq has the message from now on."""
        self._fetched.pop(id(message), None)
        return message

    def acknowledged_behind(self, delivery: Delivery, saving: asyncio.Task[None]) -> None:
        """Note that ``saving`` acknowledges a message. Until then taskiq cannot."""
        self.saving[delivery] = saving
        saving.add_done_callback(lambda _: self.saving.pop(delivery))

    def next(
        self, may_begin: Callable[[Delivery], bool] = lambda _: True
    ) -> tuple[AckableMessage, Delivery] | None:
        """The next message for taskiq that may be executed now. taskiq has it from now on."""
        for message, delivery in self._fetched.values():
            if may_begin(delivery):
                return self.hand_over(message), delivery
        return None

    def may_begin(self, delivery: Delivery) -> bool:
        """Whether a message may be executed now. One that is suspect waits for another to end."""
        return not delivery.is_suspect or not any(
            other.is_suspect and not self.is_fetched(other) for other in self.redelivered
        )

    def is_fetched(self, delivery: Delivery) -> bool:
        """Whether taskiq has not got a message yet."""
        return any(other is delivery for _, other in self._fetched.values())

    def waits(self, seconds: float = 0.0) -> bool:
        """Whether a message waits to be handed to taskiq, and has done so for so many seconds."""
        latest = time.monotonic() - seconds
        return any(delivery.came_at <= latest for _, delivery in self._fetched.values())

    async def give_back(self, after: float = 0.0) -> int:
        """Have messages that taskiq has not got yet delivered to other workers.

        ``after``: seconds for which they have been here. A broker that cannot do that delivers them
        again when its own time is over. Returns how many.
        """
        latest = time.monotonic() - after
        fetched = [d for _, d in self._fetched.values() if d.came_at <= latest]
        self._fetched = {k: v for k, v in self._fetched.items() if v[1].came_at > latest}
        for delivery in fetched:
            self.discard(delivery)
        if self._give_back is None:
            return len(fetched)
        deadline = asyncio.get_running_loop().time() + GIVING_BACK
        errors: list[Exception] = []
        for delivery in fetched:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._give_back(delivery)
            except Exception as error:  # whatever the client raises
                errors.append(error)
        if errors:
            logger.warning(
                "messages were not given back: %d, the first for %s; they are delivered later",
                len(errors),
                text_of(errors[0]),
            )
        return len(fetched)

    async def give_back_at_the_end(self) -> None:
        """``give_back`` when the listening ends, however often it is cancelled meanwhile."""

        async def leave() -> None:
            await self.give_back()
            await self.until_saved()

        await to_the_end(leave())

    async def until_saved(self) -> None:
        """Wait for results that are being saved when the listening ends, however long that takes.

        taskiq waits so for those of running tasks. Their tasks would be executed once more.
        """
        if self.saving:
            await asyncio.wait(self.saving.values())

    async def aclose(self) -> None:
        """The worker ends. Messages that it holds are delivered to others in time."""
        self._broker.formatter.loads = self._loads  # type: ignore[method-assign]
        if self._leave is not None:
            await self._leave()

    def redelivery_of(self, task_id: str) -> Delivery | None:
        """The held message of a task, if it was delivered before."""
        return self._of_task(task_id, self.redelivered)

    def keys(self) -> set[Any]:
        """The keys of all messages that are held."""
        return {delivery.key for delivery in self._held}

    def held(self, key: Any) -> Delivery | None:
        """The held message of this key."""
        return next((delivery for delivery in self._held if delivery.key == key), None)

    def of_engines(self) -> list[Delivery]:
        """The messages that engines have sent."""
        return [delivery for delivery in self._held if delivery.read(self._broker) is not None]

    async def renew(self) -> None:
        """Keep the messages from being delivered to other workers, whoever has sent them."""
        if self._renew is not None:
            await self._renew(list(self._held))

    async def acknowledge(self, task_id: str) -> None:
        """Acknowledge a task that has ended if taskiq has not done so."""
        if (delivery := self._of_task(task_id, self._held)) is not None:
            await self.let_go(delivery)

    def drop_task(self, task_id: str) -> None:
        """Drop the message of a task that ended unacknowledged. It will be delivered again."""
        if (delivery := self._of_task(task_id, self._held)) is not None:
            self.discard(delivery)

    def clear(self) -> None:
        """Drop all messages: the server has lost them."""
        self._held.clear()
        self._by_data.clear()
        self.redelivered.clear()
        self._fetched.clear()

    async def let_go(self, delivery: Delivery) -> None:
        """Acknowledge a message, and hold it no more. Raises what the client raises."""
        await delivery.ack()
        self.discard(delivery)

    def _of_task(self, task_id: str, deliveries: Iterable[Delivery]) -> Delivery | None:
        for delivery in deliveries:
            delivery.read(self._broker)
            if delivery.task_id == task_id:
                return delivery
        return None

    def discard(self, delivery: Delivery) -> None:
        """Hold a message no more, without an acknowledgement."""
        self._held.pop(delivery, None)
        self._by_data.pop(id(delivery.data), None)
        self.redelivered.pop(delivery, None)


def holding(listen: Listen, deliveries: Deliveries) -> Listen:
    """Wrap a ``listen`` so that its messages are held until they are acknowledged."""

    async def listen_and_hold() -> AsyncGenerator[AckableMessage, None]:
        async with aclosing(listen()) as messages:
            async for message in messages:
                yield deliveries.hand_over(_held(message, deliveries))

    return listen_and_hold


def holding_ahead(
    listen: Listen,
    deliveries: Deliveries,
    key_of: Callable[[Any], Any] | None = None,
    number_of: Callable[[Any], int] | None = None,
) -> Listen:
    """Like ``holding``, for a client that fetches messages in advance: these are held as well.

    The server limits how many messages are unacknowledged. ``key_of``: the key of a client's
    message; ``number_of``: which delivery of it this is. A message whose key is held already
    is not handed over again; that one is acknowledged by what has come last.
    """

    async def listen_ahead() -> AsyncGenerator[AckableMessage, None]:
        put, taken = anyio.create_memory_object_stream[AckableMessage](math.inf)

        async def take() -> None:
            async with put, aclosing(listen()) as messages:
                async for message in messages:
                    origin, ack = _origin(message), getattr(message, "ack", _nothing)
                    key = None if key_of is None else key_of(origin)
                    held = None if key is None else deliveries.held(key)
                    if held is not None:
                        held.come_again(ack, origin)
                        continue
                    number = 1 if number_of is None else number_of(origin)
                    put.send_nowait(_held(message, deliveries, key, number))

        taking = asyncio.create_task(take())
        try:
            async with taken:
                async for message in taken:
                    yield deliveries.hand_over(message)
            await taking  # raises what has ended it
        finally:
            taking.cancel()
            await deliveries.give_back_at_the_end()

    return listen_ahead


def _held(
    message: bytes | AckableMessage, deliveries: Deliveries, key: Any = None, number: int = 1
) -> AckableMessage:
    if isinstance(message, AckableMessage):
        return deliveries.hold(message.data, message.ack, _origin(message), key, number)
    return deliveries.hold(message, _nothing)


def _origin(message: bytes | AckableMessage) -> Any:
    """The client's own object for a message."""
    return getattr(getattr(message, "ack", None), "__self__", None)


def _nothing(*_: object) -> None: ...


def _raise(_: Delivery, error: Exception | None) -> None:
    if error is not None:
        raise error
