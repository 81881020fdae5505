"""The generators that a worker executes whose items engines take one by one."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import defaultdict

from taskiq import TaskiqMessage

from taskiq_flow.generators.grant import ITEMS_LABEL, Grant
from taskiq_flow.generators.messages import Receipt
from taskiq_flow.reconnect import IsOutage, retry_through_outage
from taskiq_flow.transport.notice import Kind, Notice, receipts_channel
from taskiq_flow.transport.protocol import Notifier
from taskiq_flow.values.wire import Wire
from taskiq_flow.worker import absence
from taskiq_flow.worker.execution import Execution
from taskiq_flow.worker.heartbeat import BEAT
from taskiq_flow.worker.items import LATER, SOON, SinkToEngine

logger = logging.getLogger("taskiq_flow")


class Generators:
    """Hears what engines say of items, and asks those that say nothing.

    ``is_outage``: whether an error says that a server cannot serve now. ``prefix``: of channels.
    """

    def __init__(self, notifier: Notifier, is_outage: IsOutage, wire: Wire, prefix: str) -> None:
        self._notifier = notifier
        self._is_outage = is_outage
        self._wire = wire
        self._channel = receipts_channel(prefix)
        self._is_listening = False
        self._subscribing = asyncio.Lock()
        self._executions: defaultdict[str, set[Execution]] = defaultdict(set)  # by task id

    async def send_items(self, execution: Execution, message: TaskiqMessage) -> None:
        """Have the items of a task that is a generator sent one by one."""
        async with self._subscribing:
            if not self._is_listening:
                await retry_through_outage(
                    lambda: self._notifier.subscribe(self._channel, self._hear),
                    self._is_outage,
                    "what engines have of generators' items cannot be heard yet",
                    math.inf,
                )
                self._is_listening = True
        reply_to, task_id = execution.reply_to, execution.task_id
        execution.sink = SinkToEngine(
            task_id,
            execution.node_name,
            Grant.of(message.labels[ITEMS_LABEL]),
            wire=self._wire,
            channel=self._channel,
            publish=lambda notice: self._notifier.publish(
                reply_to.channel, notice.sealed(reply_to.key)
            ),
            most_bytes=self._notifier.most_bytes,
        )
        message.labels.pop("timeout", None)  # the engine counts the time of each item
        self._executions[task_id].add(execution)

    def forget(self, execution: Execution) -> None:
        """An execution has ended."""
        self._executions[execution.task_id].discard(execution)
        if not self._executions[execution.task_id]:
            del self._executions[execution.task_id]

    def _hear(self, data: bytes) -> None:
        """Handle what an engine says of a generator's items. What is invalid is ignored."""
        try:
            for execution in tuple(self._executions.get(Notice.task_named_in(data), ())):
                notice = Notice.opened(data, execution.reply_to.key)
                if notice is None or execution.sink is None:
                    logger.warning(
                        "a notice on %s is not sealed with its key; ignored",
                        self._channel,
                    )
                elif notice.kind is Kind.RECEIPT:
                    execution.sink.hear(Receipt.unpacked(notice.body))
                elif notice.kind is Kind.UNWANTED:
                    execution.revoke()
        except Exception:  # of one receipt, which must not stop the others
            logger.exception("a notice on %s could not be handled", self._channel)

    async def ask_engines(self) -> None:
        """Ask the engines of generators that wait, or whose items may have been lost."""
        for execution in [e for some in self._executions.values() for e in some]:
            sink = execution.sink
            if sink is None or (question := sink.question()) is None:
                continue
            reply_to, notice = execution.reply_to, sink.notice_of(question)
            await self._notifier.publish(reply_to.channel, notice.sealed(reply_to.key))
            silence = (sink.note_asked() - SOON) * LATER * BEAT
            if silence > absence.ENGINE_PATIENCE:
                logger.warning(
                    "no engine has answered generator %r for %g s; it is closed",
                    execution.task_id,
                    absence.ENGINE_PATIENCE,
                )
                execution.revoke()
