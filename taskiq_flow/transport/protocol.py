"""The protocols of a system that carries tasks and notices: Redis, NATS or RabbitMQ."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from taskiq import AsyncBroker, AsyncResultBackend, BrokerMessage, TaskiqResult

from taskiq_flow.reconnect import IsOutage
from taskiq_flow.transport.deliveries import Deliveries, Delivery

logger = logging.getLogger("taskiq_flow")

REVOCATION_LIFE = 24 * 3600
"""Seconds for which a revocation is stored, for workers that are not connected."""

MOST_BYTES = 16_777_216
"""Bytes of a notice where the system itself sets no lower limit by default."""

MakeNotice = Callable[[int | None], bytes]
"""Makes the notice of a result, given the size of the stored result in bytes, where known."""


class SaveAndPublish(Protocol):
    """Saves the result of a task id and publishes its notice on a channel."""

    async def __call__(
        self,
        task_id: str,
        result: TaskiqResult[Any],
        channel: str,
        make_notice: MakeNotice,
        delivery: Delivery | None = None,
    ) -> None:
        """Acknowledges ``delivery``, the task's message, in the same step where that is possible.

        It sets the delivery's ``is_acknowledged`` then.
        """


Kick = Callable[[BrokerMessage], Coroutine[Any, Any, None]]
"""Hands a message to a broker."""

Begin = Callable[[BrokerMessage], asyncio.Future[Any] | None]
"""Begins to hand a message to a broker, without waiting. The future is done when the broker has it.

``None``: this message has to be handed over by ``Kick``.
"""


def hear_revoked(hear: Callable[[str], None], run: bytes) -> None:
    """Handle a revoked run. A record that names no run is ignored, with a warning."""
    try:
        hear(run.decode())
    except ValueError:
        logger.warning("%r among the revocations names no run; ignored", run)


class Notifier(Protocol):
    """A connection to the system that carries the notices. It is kept up until it is closed.

    What is published while somebody's connection is away does not reach them: a notice is a hint.
    """

    @property
    def is_outage(self) -> IsOutage:
        """Whether an error of its client says that the server cannot serve now, and may later."""

    on_unheard: Callable[[str], None]
    """Called with a channel when something was published on it and nobody listened.

    Never called by a system that cannot know. Does nothing until somebody sets it.
    """

    @property
    def most_bytes(self) -> int:
        """Bytes of the largest notice that it carries. Known once it is open."""

    async def open(self) -> None:
        """Connect. Raises the client's error."""

    async def publish(self, channel: str, data: bytes) -> None:
        """Send ``data`` to all who listen on the channel."""

    async def subscribe(self, channel: str, hear: Callable[[bytes], None]) -> None:
        """Listen on a channel from now on until ``aclose``."""

    @property
    def is_listening(self) -> bool:
        """Whether all subscriptions are up, as far as is known."""

    def saver(self, backend: AsyncResultBackend[Any]) -> SaveAndPublish | None:
        """Saves and publishes in one step, if the result backend is on the same server."""

    async def revoke(self, run: str) -> None:
        """Tell every worker that a run is over, also those that are not connected now.

        ``run``: as of ``ReplyTo.run``, which no other run has.
        """

    async def subscribe_to_revocations(self, hear: Callable[[str], None]) -> None:
        """Call for each run that was revoked within ``REVOCATION_LIFE``, or is from now on."""

    async def aclose(self) -> None:
        """Disconnect."""


def unnoticed(_: str) -> None:
    """The ``on_unheard`` of a notifier as long as nobody has set one."""


class Backlog(Protocol):
    """Tells how far workers have read a broker's queues."""

    async def position(self, queue: str | None) -> tuple[Any, Any]:
        """The position after the last message of a queue, and the last one that workers have read.

        They can be compared. A queue that was created again may give lower ones than before.
        ``queue``: ``None`` for the broker's own.
        """


class NothingWaits:
    """The backlog of a broker that delivers each message at once."""

    async def position(self, queue: str | None) -> tuple[Any, Any]:
        """No message waits."""
        return 0, 0


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that a broker or its ``FlowMiddleware`` has put on a server.

    ``kind``: what the server calls it, such as ``"stream"`` or ``"queue"``. ``count``: its entries,
    messages or members. ``note``: what it is for.
    """

    name: str
    kind: str
    count: int
    note: str


class System(Protocol):
    """A module that serves one system. Only it, and its parts, import the system's client."""

    is_outage: IsOutage
    """Whether an error of its clients says that the server cannot serve now, and may later."""

    def is_full(self, error: BaseException) -> bool:
        """Whether an error says that the server has no room, which it may have later."""

    def notifier_at(self, url: str, prefix: str) -> Notifier:
        """A notifier with the settings of a URL. ``prefix``: of all names on the server."""

    def notifier_of(self, broker: AsyncBroker, prefix: str) -> Notifier:
        """A notifier with the settings of a broker."""

    def is_started(self, broker: AsyncBroker) -> bool:
        """Whether the broker can send."""

    def backlog_of(self, broker: AsyncBroker) -> Backlog:
        """How to ask for the broker's backlog."""

    async def inventory_of(self, broker: AsyncBroker, prefix: str) -> list[Leftover]:
        """What a broker and its middleware have on the server, in the order of their names."""

    def kick_of(self, broker: AsyncBroker) -> Kick:
        """Sends a message, as the broker's ``kick`` does."""

    def begin_of(self, broker: AsyncBroker) -> Begin | None:
        """Sends a message without waiting, if that is possible. A send that fails is repeated."""

    def steady(self, broker: AsyncBroker) -> Deliveries:
        """Make a worker's broker listen through outages. Returns the messages that it holds."""

    def steady_reads(self, backend: AsyncResultBackend[Any]) -> None:
        """Have each read of a result end. May be called more than once."""

    def steady_results(self, backend: AsyncResultBackend[Any]) -> None:
        """Prepare a worker's result backend for what its server does.

        NATS may have lost the bucket, which is made again; Redis closes the connection where a
        result is too large, which the error then says.
        """
