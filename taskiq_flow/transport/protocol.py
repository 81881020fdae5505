"""What carries notices between workers and engines, whichever system does it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from taskiq import AsyncBroker, AsyncResultBackend, BrokerMessage, TaskiqResult

from taskiq_flow.reconnect import Outages
from taskiq_flow.transport.deliveries import Deliveries

logger = logging.getLogger("taskiq_flow")

REVOCATION_LIFE = 24 * 3600
"""Seconds for which it is remembered that a run was revoked, for workers that were away."""

MakeNotice = Callable[[int | None], bytes]
"""Makes the notice of a result from the size in bytes under which it was stored, where known."""

SaveAndPublish = Callable[[str, TaskiqResult[Any], str, MakeNotice], Awaitable[None]]
"""Saves the result of a task id and publishes its notice on a channel."""

Kick = Callable[[BrokerMessage], Coroutine[Any, Any, None]]
"""Hands a message to a broker."""


def hear_revoked(hear: Callable[[str], None], run: bytes) -> None:
    """Hear of a revoked run. A record that names none is ignored, so that others are heard."""
    try:
        hear(run.decode())
    except ValueError:
        logger.warning("%r among the revocations names no run; ignored", run)


class Notifier(Protocol):
    """A connection to the system that carries the notices. It is kept up until it is closed.

    What is published while somebody's connection is away does not reach them: a notice is a hint.
    """

    outages: Outages

    async def open(self) -> None:
        """Connect. Raises one of ``outages``, or what the client says of wrong settings."""

    async def publish(self, channel: str, data: bytes) -> None:
        """Have all who listen on the channel hear ``data``."""

    async def subscribe(self, channel: str, hear: Callable[[bytes], None]) -> None:
        """Listen on a channel from now on until ``aclose``."""

    @property
    def is_listening(self) -> bool:
        """Whether all subscriptions are up, as far as is known."""

    def saver(self, backend: AsyncResultBackend[Any]) -> SaveAndPublish | None:
        """How to save and publish in one go, where the result backend is the same system."""

    async def revoke(self, run: str) -> None:
        """Have every worker hear that a run is over, those that are away now as well.

        ``run``: as of ``ReplyTo.run``, which no other run has.
        """

    async def subscribe_to_revocations(self, hear: Callable[[str], None]) -> None:
        """Hear of all runs that were revoked within ``REVOCATION_LIFE``, and from now on."""

    async def aclose(self) -> None:
        """Disconnect."""


class Backlog(Protocol):
    """How far the workers have come with a broker's queues."""

    async def position(self, queue: str | None) -> tuple[Any, Any]:
        """A mark behind all that stands in a queue, and the last mark that workers have passed.

        They can be compared. A queue that was begun anew may give lower ones than before.
        ``queue``: ``None`` for the broker's own.
        """


class NothingWaits:
    """The backlog of a broker that hands out at once what it is given."""

    async def position(self, queue: str | None) -> tuple[Any, Any]:
        """No message stands anywhere."""
        return 0, 0


class System(Protocol):
    """A module that knows one system and is the only one to import its clients."""

    OUTAGES: Outages
    """How its clients say that the server is away."""

    def notifier_at(self, url: str) -> Notifier:
        """A notifier with the settings of a URL."""

    def notifier_of(self, broker: AsyncBroker) -> Notifier:
        """A notifier with the settings of a broker."""

    def is_started(self, broker: AsyncBroker) -> bool:
        """Whether the broker can send."""

    def backlog_of(self, broker: AsyncBroker) -> Backlog:
        """How to ask for the broker's backlog."""

    def kick_of(self, broker: AsyncBroker) -> Kick:
        """The fastest way to do what the broker's ``kick`` does."""

    def steady(self, broker: AsyncBroker) -> Deliveries:
        """Have a worker's broker keep listening through outages; what it will have been given."""

    def steady_results(self, backend: AsyncResultBackend[Any]) -> None:
        """Have a worker's result backend go on when the server has lost its data."""
