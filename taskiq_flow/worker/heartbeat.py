"""The heartbeat of a worker: it tells engines which of their tasks are here."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from functools import partial

from taskiq_flow.reconnect import IsOutage, text_of
from taskiq_flow.transport.deliveries import Deliveries, Delivery
from taskiq_flow.transport.notice import Kind, Notice, workers_channel
from taskiq_flow.transport.protocol import Notifier
from taskiq_flow.worker.execution import Execution

logger = logging.getLogger("taskiq_flow")

BEAT = 0.5
"""Seconds between two heartbeats. A heartbeat names the tasks that a worker executes or holds."""

PRESENCE_BEATS = 4
"""Every so many heartbeats a worker says that it is there, also if it has no task."""

HEARTBEAT_TIMEOUT = 5.0
"""Seconds that a heartbeat may take: a half-open connection never answers."""

HEARTBEAT_BYTES = 32_768
"""Bytes of one heartbeat at the most. NATS takes no message above a megabyte by default."""


class Heartbeat:
    """Names the tasks that a worker executes or holds, and renews the messages of these.

    ``name``: of the process. ``executions``: those that go on. ``ask_engines``: is awaited with
    each heartbeat. ``prefix``: of channels.
    """

    def __init__(
        self,
        notifier: Notifier,
        is_outage: IsOutage,
        deliveries: Deliveries,
        executions: Collection[Execution],
        ask_engines: Callable[[], Awaitable[None]],
        *,
        name: str,
        prefix: str,
    ) -> None:
        self._notifier = notifier
        self._is_outage = is_outage
        self._deliveries = deliveries
        self._executions = executions
        self._ask_engines = ask_engines
        self._name = name
        self._say_present = partial(notifier.publish, workers_channel(prefix), b"")

    async def run(self) -> None:
        """Renew the claims on held messages and send heartbeats, until cancelled."""
        usual = (self._deliveries.renew, self._send_heartbeat)
        for number in itertools.count():
            beats = usual if number % PRESENCE_BEATS else (*usual, self._say_present)
            await asyncio.sleep(BEAT)
            for beat in beats:
                try:
                    async with asyncio.timeout(HEARTBEAT_TIMEOUT):
                        await beat()
                except Exception as error:  # nothing may end it: healthy tasks would be lost
                    if self._is_outage(error):
                        logger.debug("the heartbeat was not sent: %s", text_of(error))
                    else:
                        logger.exception("the heartbeat failed")

    async def _send_heartbeat(self) -> None:
        """Name to each engine its tasks that are executed or held in this process."""
        here: list[Execution | Delivery] = [*self._executions, *self._deliveries.of_engines()]
        await self._publish_each(Kind.HERE, here)
        begun = [
            e for e in self._executions if e.tells_begin and e.has_begun and not e.is_superseded
        ]
        await self._publish_each(Kind.BEGUN, begun)
        waiting = [e for e in self._executions if e.is_waiting]
        await self._publish_each(Kind.WAITING, waiting)
        await self._ask_engines()

    async def _publish_each(self, kind: Kind, tasks: Iterable[Execution | Delivery]) -> None:
        by_engine: defaultdict[tuple[str, bytes], set[str]] = defaultdict(set)
        for task in tasks:
            if task.reply_to is not None:
                by_engine[task.reply_to.channel, task.reply_to.key].add(task.task_id)
        for (channel, key), task_ids in by_engine.items():
            worker = self._name if kind is Kind.BEGUN else ""
            for some in _in_pieces(task_ids):
                notice = Notice.of_tasks(kind, some, worker)
                await self._notifier.publish(channel, notice.sealed(key))


def _in_pieces(task_ids: Iterable[str]) -> Iterator[list[str]]:
    """The ids in lists whose notices a server takes."""
    piece: list[str] = []
    size = 0
    for task_id in task_ids:
        length = 6 * len(task_id) + 4  # as JSON, which writes some characters as six
        if piece and size + length > HEARTBEAT_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(task_id)
        size += length
    if piece:
        yield piece
