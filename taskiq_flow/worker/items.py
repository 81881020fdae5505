"""Sends the items of a generator from a worker to the engine, one by one or in batches."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from taskiq_flow.cleanup import end
from taskiq_flow.errors import ItemsChangedError, SerializationError
from taskiq_flow.generators.grant import NO_ITEMS, Grant
from taskiq_flow.generators.messages import Batch, Receipt
from taskiq_flow.generators.sending import Sending
from taskiq_flow.reconnect import warn_of_outage
from taskiq_flow.transport.notice import Kind, Notice
from taskiq_flow.values.wire import Wire

AGAIN_AFTER = 0.5
"""Seconds after which items are sent again that could not be sent."""

SPACING = 0.005
"""Seconds from one batch to the next while the generator makes items without a pause."""

SEND_TIMEOUT = 5.0
"""Seconds that sending a batch may take: a half-open connection never answers."""

GRACE = 1.0
"""Seconds within which the sending of items ends when it is cancelled."""

SOON, LATER = 4, 4
"""Heartbeats that each ask an engine that is waited for, and then every how many of them do."""

HEAD_BYTES = 1024
"""Bytes of a notice beside the items and the task's id."""

Publish = Callable[[Notice], Awaitable[None]]
"""Sends a notice to the engine. Raises the client's error."""


class SinkToEngine:
    """The ``Sink`` of one execution of a generator on a worker.

    ``grant``: the first one. ``channel``: where the worker hears receipts. ``most_bytes``: of a
    notice. ``name``: of the node, for messages.
    """

    def __init__(
        self,
        task_id: str,
        name: str,
        grant: Grant,
        *,
        wire: Wire,
        channel: str,
        publish: Publish,
        most_bytes: int,
    ) -> None:
        if not grant.have:
            grant = Grant(0, NO_ITEMS, grant.may)  # so that the driver computes digests
        self.grant = grant
        self._task_id = task_id
        self._name = name
        self._wire = wire
        self._channel = channel
        self._publish = publish
        self._most_bytes = most_bytes - HEAD_BYTES - len(task_id.encode())
        self._sending = Sending(grant)
        self._index = grant.have  # of the next item, in the generator's thread
        self._loop = asyncio.get_running_loop()
        self._unsent = asyncio.Event()
        self._sent_at = -math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._beats = 0  # since the engine has told anything new
        self._unanswered = 0  # questions

    # The driver's side

    def taken(self, item: Any) -> bytes:
        """An item as JSON. Raises ``SerializationError`` for one that cannot be sent."""
        index, self._index = self._index, self._index + 1
        try:
            content = self._wire.encode_item(item)
        except SerializationError as error:
            raise SerializationError(
                f"item {index} of node {self._name!r} is not carried: {error}",
                value_type=error.value_type,
            ) from error
        if len(content) > self._most_bytes:
            raise SerializationError(
                f"item {index} of node {self._name!r} has {len(content):,} bytes as JSON, and a "
                f"message to the engine carries {self._most_bytes:,}; yield smaller items, or "
                "write large ones to a file and yield its path",
                value_type=type(item),
            )
        return content

    def push(self, index: int, item: bytes, digest: bytes) -> None:
        """Send an item. Those that are made soon after others travel together."""
        if index != self._sending.made:
            raise AssertionError(f"item {index} came after {self._sending.made} others")
        self._sending.push(item, digest)
        if self._timer is None:
            delay = self._sent_at + SPACING - self._loop.time()
            self._timer = self._loop.call_later(max(delay, 0), self._send_now)
        self._update()

    async def room(self, count: int) -> None:
        """Wait until more than ``count`` items may be made. Others have a turn in any case."""
        await asyncio.sleep(0)
        await self._until(lambda: self._sending.may > count)

    async def finish(self, _: int) -> None:
        """The generator has ended. Wait until the engine has all items."""
        self._sending.end()
        await self._until(lambda: self._sending.is_done)

    def close(self) -> None:
        """Nobody takes the items: a generator in a thread is closed at its next one."""
        self._fail(asyncio.CancelledError())

    async def _until(self, holds: Callable[[], bool]) -> None:
        self._beats = 0
        self._send_now()
        while self._error is None and not holds():
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None:
            raise self._error

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._update()

    def _update(self) -> None:
        may = self._sending.may if self._error is None else -math.inf
        if may != self.grant.may:
            self.grant = Grant(self.grant.have, self.grant.digest, may)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # The engine's side

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Send what is pushed while the block runs. If that fails, the engine has it all before."""
        sender = self._loop.create_task(self._send())
        try:
            yield
        except ItemsChangedError:
            raise
        except Exception:  # of the generator
            self._sending.fail()
            await self._until(lambda: self._sending.is_done)
            raise
        finally:
            self._send_now()  # a timer must not outlive it
            await end([sender], GRACE)

    def _send_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._unsent.set()

    async def _send(self) -> None:
        while True:
            await self._unsent.wait()
            self._unsent.clear()
            while (batch := self._sending.next_batch()) is not None:
                try:
                    async with asyncio.timeout(SEND_TIMEOUT):
                        await self._publish(self.notice_of(batch))
                except Exception as error:  # of the server
                    warn_of_outage("items of generators cannot be sent", error, math.inf)
                    await asyncio.sleep(AGAIN_AFTER)
                    self._sending.send_again()
                self._sent_at = self._loop.time()

    def notice_of(self, batch: Batch) -> Notice:
        """The notice that carries a batch."""
        seal = self._wire.seal_of_items(self._task_id, batch.first, batch.content)
        return Notice(Kind.ITEMS, self._task_id, batch.packed(self._channel, seal))

    def hear(self, receipt: Receipt) -> None:
        """Handle a receipt of the engine."""
        before = self._sending.grant, self._sending.may
        try:
            self._sending.hear(receipt)
        except Exception as error:  # the items have changed
            self._fail(error)
            return
        self._unanswered = 0
        if (self._sending.grant, self._sending.may) != before:
            self._beats = 0
        self._unsent.set()
        self._update()

    def question(self) -> Batch | None:
        """The batch that a heartbeat sends to ask what the engine has and grants.

        ``None`` if the engine owes no answer, or was asked lately.
        """
        if self._error is not None or not (self._sending.is_unanswered or self._waiter):
            return None
        self._beats += 1
        if self._beats == 1 or (self._beats > SOON and self._beats % LATER):
            return None
        return self._sending.ask()

    def note_asked(self) -> int:
        """A question was sent. Returns how many in a row the engine has not answered."""
        self._unanswered += 1
        return self._unanswered
