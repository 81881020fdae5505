"""Receives the notices that workers send about the tasks of this process's runs.

One subscription serves all runs on a broker. A notice may be lost: ``safety_net.py`` finds out.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Coroutine
from typing import Any

from taskiq import AsyncBroker, NoResultError, TaskiqResult

from taskiq_flow.cleanup import end
from taskiq_flow.completion.items import ReceivedItems
from taskiq_flow.completion.queue_warnings import QueueWarnings
from taskiq_flow.completion.reading import ASKED_AT_ONCE, ResultReader
from taskiq_flow.completion.safety_net import SafetyNet
from taskiq_flow.completion.watch import Watch
from taskiq_flow.errors import (
    ItemsChangedError,
    ResultUnavailableError,
    SerializationError,
    TaskLostError,
)
from taskiq_flow.reconnect import backoff_delays
from taskiq_flow.transport.notice import Kind, Notice, ReplyTo
from taskiq_flow.transport.protocol import Backlog, Notifier
from taskiq_flow.values.references import handle_of, refers
from taskiq_flow.values.results import arrived, failed, restored
from taskiq_flow.values.wire import Wire, stored_size

logger = logging.getLogger("taskiq_flow")

SAVED_GRACE = 2.0
"""Seconds after which a result that its worker has saved counts as gone if it cannot be read."""

GRACE = 1.0
"""Seconds that the inbox's own tasks have to end after they were cancelled."""


_MAY_RUN_ON = (TaskLostError, ItemsChangedError)
"""Errors of tasks of which an execution may run all the same."""


class Inbox:
    """The engine's side of a ``FlowMiddleware``, on one event loop. ``prefix``: of its channel."""

    def __init__(
        self,
        broker: AsyncBroker,
        notifier: Notifier,
        backlog: Backlog | None,
        prefix: str,
        wire: Wire,
    ) -> None:
        self.channel = f"{prefix}.{secrets.token_hex(8)}"
        self.key = secrets.token_bytes(16)
        self.run_ids: set[str] = set()
        self.is_closed = False
        self.notifier = notifier
        self._broker = broker
        self._wire = wire
        self._reader = ResultReader(broker.result_backend)
        self._reading_at_once = asyncio.Semaphore(ASKED_AT_ONCE)
        self._watched: dict[str, Watch] = {}  # in the order in which they were sent
        self._numbers = itertools.count()
        self._loop = asyncio.get_running_loop()
        self._checker: asyncio.Task[None] | None = None
        self._readings: set[asyncio.Task[None]] = set()
        self._warnings = QueueWarnings(broker, notifier, self._watched, prefix)
        self.safety_net = SafetyNet(
            self._watched,
            self._reader,
            notifier,
            backlog,
            settle=self._settle,
            settle_read=self._settle_read,
            on_check=self._warnings.check,
        )
        self.items = ReceivedItems(notifier, self.key, wire)

    async def open(self) -> None:
        """Begin to listen. Raises what the notifier raises if it cannot connect."""
        await self.notifier.open()
        await self.notifier.subscribe(self.channel, self._hear)
        self._checker = asyncio.create_task(self.safety_net.run())

    def reply_to(self, run_id: str, limit: int | None = None) -> ReplyTo:
        """The label of a run's messages, which tells workers where to report."""
        return ReplyTo(self.channel, self.key, run_id, limit, secrets.token_hex(4))

    async def aclose(self) -> None:
        """Stop listening. Tasks that are still watched fail with ``TaskLostError``."""
        self.is_closed = True
        for task_id in tuple(self._watched):
            self._give_up(task_id)
        tasks = [*self._readings, *([] if self._checker is None else [self._checker])]
        # A read that is cancelled halfway leaves tasks of some clients behind.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self.safety_net.stop_asking()
                if self._readings:
                    await asyncio.wait(tuple(self._readings))
        await end(tasks, GRACE)
        await self.items.aclose()
        await self.notifier.aclose()

    def watch(self, task_id: str, watch: Watch) -> None:
        """Watch a task that is about to be sent."""
        watch.enqueue(next(self._numbers), self._loop.time())
        watch.expected.add(task_id)
        self._watched[task_id] = watch
        self.safety_net.wake()
        if self.is_closed:
            self._loop.call_soon(self._give_up, task_id)

    def forget(self, task_id: str) -> bool:
        """Stop watching a task. Returns whether it was watched."""
        self._reader.forget(task_id)
        self.items.forget(task_id)
        self._warnings.forget(task_id)
        watch = self._watched.pop(task_id, None)
        if watch is not None:
            watch.expected.discard(task_id)
        return watch is not None

    def _give_up(self, task_id: str) -> None:
        if task_id in self._watched:
            self._settle(task_id, failed(_deaf(task_id)))

    # Notices

    def _hear(self, data: bytes) -> None:
        """Handle a notice. An invalid one is logged and ignored."""
        try:
            notice = Notice.opened(data, self.key)
            if notice is None:
                logger.warning("a notice on %s is not sealed with its key; ignored", self.channel)
                return
            self._warnings.has_heard = True
            self.safety_net.note_heard()
            self._handle(notice)
        except Exception:  # of one notice, which must not stop the others
            logger.exception("a notice on %s could not be handled", self.channel)

    def _handle(self, notice: Notice) -> None:
        match notice.kind:
            case Kind.WAITING:
                self._warnings.warn_of_waiting(notice.task_ids())
            case Kind.HERE | Kind.BEGUN:
                for task_id in notice.task_ids():
                    self._note_alive(task_id, notice.worker)
            case Kind.ITEMS:
                self._take_items(notice)
            case _:
                self._handle_end(notice)

    def _handle_end(self, notice: Notice) -> None:
        """Handle a notice of how a task has ended, or that it is tried once more."""
        task_id = notice.task_id
        watch = self._watched.get(task_id)
        if watch is None:  # the notice came twice, or too late
            return
        if notice.kind is Kind.RESULT:
            result: TaskiqResult[Any] = TaskiqResult.model_validate_json(notice.body)
            if stored_size(result) is not None:
                self._start_to_read(task_id, result)
                return
            self._settle(task_id, restored(task_id, result, watch.return_type, self._wire))
        elif notice.kind is Kind.NO_RESULT:
            self._settle(task_id, failed(NoResultError()))
        elif notice.kind is Kind.REFERENCE:
            handle = handle_of(self._broker.result_backend, task_id, watch.return_type, self._wire)
            self._settle(
                task_id, TaskiqResult(is_err=False, return_value=handle, execution_time=0.0)
            )
        elif notice.kind is Kind.SAVED:
            watch.heard_at = watch.is_alive_at = self._loop.time()
            self._start(self._read(task_id))
        elif notice.kind is Kind.AGAIN:
            self._watched[task_id] = self._watched.pop(task_id)  # the one that was sent last
            watch.enqueue(next(self._numbers), self._loop.time())
            watch.in_flight.resent(task_id)

    def _note_alive(self, task_id: str, worker: str | None) -> None:
        """A worker has a task. ``worker``: who executes it, if that has begun."""
        watch = self._watched.get(task_id)
        if watch is not None:
            if worker is not None:
                watch.in_flight.began(task_id, worker)
            watch.take(self._loop.time())
            self._note_moved(watch)

    def _take_items(self, notice: Notice) -> None:
        task_id = notice.task_id
        self._note_alive(task_id, None)
        try:
            self.items.take(notice)
        except (ItemsChangedError, SerializationError) as error:
            self._settle(task_id, failed(error), may_run_on=True)

    def _note_moved(self, watch: Watch) -> None:
        self._warnings.note_moved(watch)
        self.safety_net.note_sign(watch)

    def _settle(self, task_id: str, result: TaskiqResult[Any], *, may_run_on: bool = False) -> None:
        watch = self._watched[task_id]
        result = self.items.checked(task_id, result)
        self.forget(task_id)
        if may_run_on or isinstance(result.error, _MAY_RUN_ON):
            watch.expected.add(task_id)  # the run revokes it at its end
        self._note_moved(watch)
        watch.in_flight.settle(task_id, result)

    # Results in the result backend

    async def _read(self, task_id: str) -> None:
        """Read a result that its worker has saved."""
        saved_at = self._loop.time()
        for pause in backoff_delays():
            async with self._reading_at_once:
                _, result = await self._reader.ask(task_id)
            if task_id not in self._watched:
                return
            gone = self._loop.time() - saved_at > SAVED_GRACE
            if result is None and gone and not self._reader.has_no_answer(task_id):
                result = failed(_gone(task_id))
            if result is not None:
                await self._settle_read(task_id, result)
                return
            await asyncio.sleep(pause)

    async def _settle_read(self, task_id: str, result: TaskiqResult[Any]) -> None:
        watch = self._watched[task_id]
        return_type, wire = watch.return_type, self._wire
        if await refers(result, watch.limit):
            result.return_value = handle_of(self._broker.result_backend, task_id, return_type, wire)
        elif stored_size(result) is not None:
            self._start_to_read(task_id, result)
            return
        else:
            result = await arrived(task_id, result, return_type, wire)
        if self._watched.get(task_id) is watch:  # else it was settled meanwhile
            self._settle(task_id, result)

    def _start_to_read(self, task_id: str, result: TaskiqResult[Any]) -> None:
        """Read a result from the store, unless that is done already."""
        watch = self._watched.get(task_id)
        if watch is not None and not watch.is_being_read:
            watch.is_being_read = True
            self._start(self._read_object(task_id, watch, result))

    async def _read_object(self, task_id: str, watch: Watch, result: TaskiqResult[Any]) -> None:
        result = await arrived(task_id, result, watch.return_type, self._wire)
        if self._watched.get(task_id) is not watch:  # it was settled meanwhile
            return
        if watch.arguments is not None and not result.is_err:
            watch.arguments.note_result(task_id, result.return_value)
        self._settle(task_id, result)

    def _start(self, reading: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(reading)
        self._readings.add(task)
        task.add_done_callback(self._readings.discard)


def _gone(task_id: str) -> ResultUnavailableError:
    return ResultUnavailableError(
        f"task {task_id!r} has ended, and its result is not in the result backend any more: it "
        "has expired or was deleted; keep results for longer than a run takes"
    )


def _deaf(task_id: str) -> TaskLostError:
    return TaskLostError(
        f"nothing will be heard of task {task_id!r}: the broker was shut down while it was in "
        "flight; shut it down when its runs have ended, or after engine.cancel()"
    )
