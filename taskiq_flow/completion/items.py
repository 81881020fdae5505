"""Receives the items of generators from workers, and sends the workers receipts."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from taskiq import TaskiqResult

from taskiq_flow.cleanup import end
from taskiq_flow.completion.protocol import InFlight
from taskiq_flow.errors import ItemsChangedError, TaskLostError
from taskiq_flow.generators.grant import Grant
from taskiq_flow.generators.messages import Batch
from taskiq_flow.generators.receiving import Receiving
from taskiq_flow.reconnect import text_of
from taskiq_flow.transport.notice import Kind, Notice
from taskiq_flow.transport.protocol import Notifier
from taskiq_flow.values.results import failed
from taskiq_flow.values.wire import Wire

logger = logging.getLogger("taskiq_flow")

MOST_WORKERS = 4
"""Workers that are told of one generator, should it run on several: the last ones heard of."""

AT_ONCE = 64
"""Receipts that are sent at the same time."""

SEND_TIMEOUT = 5.0
"""Seconds that sending a receipt may take. A worker that has none asks for it."""

GRACE = 1.0
"""Seconds within which the sending of receipts ends when it is cancelled."""


class _Generator:
    """One task in flight that is a generator."""

    __slots__ = ("in_flight", "receiving", "workers")

    def __init__(self, in_flight: InFlight, grant: Grant) -> None:
        self.in_flight = in_flight
        self.receiving = Receiving(grant)
        self.workers: dict[str, None] = {}  # the channels of those heard of, the latest last

    def note(self, worker: str) -> None:
        self.workers.pop(worker, None)
        self.workers[worker] = None
        if len(self.workers) > MOST_WORKERS:
            del self.workers[next(iter(self.workers))]


class ReceivedItems:
    """The items of all generators of one inbox. ``key``: seals what workers are told."""

    def __init__(self, notifier: Notifier, key: bytes, wire: Wire) -> None:
        self._notifier = notifier
        self._key = key
        self._wire = wire
        self._generators: dict[str, _Generator] = {}  # by task id
        # What is to be sent: by task and worker, whether that has asked.
        self._due: dict[tuple[str, str], bool] = {}
        self._telling: asyncio.Task[None] | None = None

    def expect(self, task_id: str, in_flight: InFlight, grant: Grant) -> None:
        """A generator is about to be sent. ``in_flight`` is given its items."""
        self._generators[task_id] = _Generator(in_flight, grant)

    def forget(self, task_id: str) -> None:
        """Nobody wants the items of a task any more."""
        self._generators.pop(task_id, None)

    def grant(self, task_id: str, grant: Grant) -> None:
        """Allow a generator more items, or note that its items are stored."""
        generator = self._generators.get(task_id)
        if generator is not None:
            generator.receiving.allow(grant)
            self._tell_if_due(task_id, generator)

    def take(self, notice: Notice) -> None:
        """Handle a notice with items.

        Raises ``ItemsChangedError`` if they are not those of an earlier execution, and
        ``SerializationError`` if they cannot be decoded.
        """
        task_id = notice.task_id
        batch, worker, seal = Batch.unpacked(notice.body)
        generator = self._generators.get(task_id)
        if generator is None:
            self._tell(task_id, worker)
            return
        generator.note(worker)
        receiving = generator.receiving
        if batch.asks:
            self._tell(task_id, worker, has_asked=True)
        if new := receiving.take(batch):
            content, first = batch.content, batch.first
            items = self._wire.decode_items(task_id, first, content, seal, new)
            generator.in_flight.items(task_id, receiving.next - new, items, receiving.digest)
        self._tell_if_due(task_id, generator)

    def checked(self, task_id: str, result: TaskiqResult[Any]) -> TaskiqResult[Any]:
        """The result of a task, or a failure if it says another number of items than were taken."""
        generator = self._generators.get(task_id)
        if generator is None or result.is_err:
            return result
        count = result.return_value
        if type(count) is not int:
            return failed(_sent_as_a_whole(task_id))
        try:
            generator.receiving.check_count(count)
        except ItemsChangedError as error:
            return failed(error)
        return result

    async def aclose(self) -> None:
        """Stop sending receipts."""
        if self._telling is not None:
            await end([self._telling], GRACE)

    def _tell_if_due(self, task_id: str, generator: _Generator) -> None:
        if generator.receiving.is_due:
            for worker in generator.workers:
                self._tell(task_id, worker)

    def _tell(self, task_id: str, worker: str, *, has_asked: bool = False) -> None:
        """Send a worker a receipt of a task. It has the state at the time when it is sent."""
        key = task_id, worker
        self._due[key] = has_asked or self._due.get(key, False)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell_all())

    async def _tell_all(self) -> None:
        while self._due:
            some = [self._due.popitem() for _ in range(min(AT_ONCE, len(self._due)))]
            sending = [
                self._send(worker, self._notice(task_id, has_asked=has_asked))
                for (task_id, worker), has_asked in some
            ]
            await asyncio.gather(*sending)

    def _notice(self, task_id: str, *, has_asked: bool) -> Notice:
        generator = self._generators.get(task_id)
        if generator is None:
            return Notice(Kind.UNWANTED, task_id)
        receipt = generator.receiving.receipt(answers=has_asked)
        return Notice(Kind.RECEIPT, task_id, receipt.packed())

    async def _send(self, worker: str, notice: Notice) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                await self._notifier.publish(worker, notice.sealed(self._key))
        except Exception as error:  # of the server; the worker asks
            logger.debug("the receipt of %s was not sent: %s", notice.task_id, text_of(error))


def _sent_as_a_whole(task_id: str) -> TaskLostError:
    return TaskLostError(
        f"the worker of generator {task_id!r} did not send its items one by one: its taskiq_flow "
        "is older than the engine's; upgrade workers before engines. While its workers are being "
        "replaced, a retry= of the node may reach a newer one"
    )
