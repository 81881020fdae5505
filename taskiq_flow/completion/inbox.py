"""Receives the notices that workers send about the tasks of this process's runs.

One subscription serves all runs on a broker. A notice is a hint and may be lost. Therefore one loop
asks the result backend for tasks that have been silent, and gives up the tasks that are lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import math
import secrets
import sys
from collections import defaultdict
from collections.abc import Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from taskiq import AsyncBroker, NoResultError, TaskiqResult

from taskiq_flow.cleanup import until_ended
from taskiq_flow.completion.items import ReceivedItems
from taskiq_flow.completion.protocol import InFlight
from taskiq_flow.completion.reading import ASKED_AT_ONCE, ResultReader
from taskiq_flow.errors import (
    ItemsChangedError,
    ResultUnavailableError,
    SerializationError,
    TaskLostError,
)
from taskiq_flow.reconnect import OUTAGE_TIMEOUT, backoff_delays
from taskiq_flow.transport.notice import Kind, Notice, ReplyTo, workers_channel
from taskiq_flow.transport.protocol import Backlog, Notifier
from taskiq_flow.transport.systems import queue_of
from taskiq_flow.values.arguments import StoredArguments
from taskiq_flow.values.references import handle_of, refers
from taskiq_flow.values.results import arrived, failed, restored
from taskiq_flow.values.wire import Wire, stored_size

logger = logging.getLogger("taskiq_flow")

CHECK_INTERVAL = 0.5
"""Seconds between two checks of the tasks in flight while notices arrive."""

SHORTEST_INTERVAL = 0.005
"""Seconds between two checks while they find results that came without a notice."""

SILENCE = 1.0
"""Seconds without a notice after which the result backend is asked for a task's result."""

QUEUED_SILENCE = 5.0
"""The same for a task that was sent after all tasks that notices have named lately.

It waits in the queue, as far as is known.
"""

ASKED_PER_CHECK = 128
"""Silent tasks for which one check asks the result backend; the next check takes the next ones."""

SAVED_GRACE = 2.0
"""Seconds after which a result that its worker has saved counts as gone if it cannot be read."""

SUSPENDED_AFTER = 5.0
"""If a check comes this late (seconds), this process was suspended: silence is counted anew."""

UNTAKEN = 10.0
"""Seconds after which a warning says that no worker has taken any of the tasks in flight."""

NO_WORKER = 4.5
"""Seconds after which a warning says that no worker was heard of. The first check comes before."""

GRACE = 1.0
"""Seconds that the inbox's own tasks have to end after they were cancelled."""


_MAY_RUN_ON = (TaskLostError, ItemsChangedError)
"""Errors of tasks of which an execution may run all the same."""


class OuterTask(Protocol):
    """A task of a worker that waits for tasks of its own."""

    task_id: str
    is_waiting: bool


class Watch:
    """One task in flight, and when it last gave a sign of life."""

    __slots__ = (
        "arguments",
        "asked_at",
        "expected",
        "heard_at",
        "in_flight",
        "is_alive_at",
        "is_being_read",
        "is_queued",
        "is_taken",
        "left_at",
        "limit",
        "lost_after",
        "mark",
        "number",
        "queue",
        "return_type",
        "within",
    )

    def __init__(
        self,
        in_flight: InFlight,
        expected: set[str],
        return_type: Any,
        queue: str | None,
        *,
        lost_after: float,
        limit: int | None,
        within: OuterTask | None,
        arguments: StoredArguments | None = None,
    ) -> None:
        self.in_flight = in_flight
        self.expected = expected  # the ids of its run's tasks in flight
        self.return_type = return_type
        self.queue = queue
        self.lost_after = lost_after
        self.limit = limit  # bytes above which its result is passed by reference
        self.within = within  # the task whose run this one is of
        self.arguments = arguments  # of its run
        self.is_being_read = False  # its result, from the store

    def enqueue(self, number: int, now: float) -> None:
        """The task was sent, after all tasks with a lower number."""
        self.number = number
        self.asked_at = now
        self.take(now)
        self.is_taken = False  # by a worker, as far as notices tell

    def take(self, now: float) -> None:
        """A worker has the task. If it falls silent later, the task may be in the queue again."""
        self.is_taken = True
        self.heard_at = self.is_alive_at = now
        self.is_queued = False  # as far as is known
        self.mark: Any = None  # a position in the queue behind the task
        self.left_at = -math.inf  # when it was found that the task had left the queue

    def is_untaken_since(self, moment: float) -> bool:
        """Whether no worker has the task, as far as is known, and it was sent before a moment."""
        return not self.is_taken and self.heard_at < moment


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
        self._backlog = backlog
        self._wire = wire
        self._reader = ResultReader(broker.result_backend)
        self._reading_at_once = asyncio.Semaphore(ASKED_AT_ONCE)
        self._watched: dict[str, Watch] = {}  # in the order in which they were sent
        self._is_watching = asyncio.Event()
        self._numbers = itertools.count()
        self._earliest_sign: float = math.inf  # lowest number heard of since the last look
        self._latest_sign = -1  # highest number heard of
        self._heard_at = -math.inf  # when the last notice came
        self._silence = SILENCE
        self._interval = CHECK_INTERVAL
        self._loop = asyncio.get_running_loop()
        self._deaf_since: float | None = None
        self._workers_channel = workers_channel(prefix)
        self._alone_since: float | None = None  # listening for workers, and no notice has come
        self._has_heard = False  # of any worker
        self._told_no_worker = False
        # When a task was last taken or ended, by the task whose run it is of.
        self._moved_at: dict[OuterTask | None, float] = {}
        self._stuck: set[OuterTask | None] = set()
        self._waiting: set[str] = set()  # tasks that have told that they wait for others
        self._checker: asyncio.Task[None] | None = None
        self._readings: set[asyncio.Task[None]] = set()
        self._asking = asyncio.Lock()  # held while the result backend is asked
        self.items = ReceivedItems(notifier, self.key, wire)

    async def open(self) -> None:
        """Begin to listen. Raises what the notifier raises if it cannot connect."""
        await self.notifier.open()
        await self.notifier.subscribe(self.channel, self._hear)
        self._checker = asyncio.create_task(self._check_regularly())

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
                await self._asking.acquire()
                if self._readings:
                    await asyncio.wait(tuple(self._readings))
        for task in tasks:
            task.cancel()
        await until_ended(tasks, GRACE)
        await self.items.aclose()
        await self.notifier.aclose()

    def watch(self, task_id: str, watch: Watch) -> None:
        """Watch a task that is about to be sent."""
        watch.enqueue(next(self._numbers), self._loop.time())
        watch.expected.add(task_id)
        self._watched[task_id] = watch
        self._is_watching.set()
        if self.is_closed:
            self._loop.call_soon(self._give_up, task_id)

    def forget(self, task_id: str) -> bool:
        """Stop watching a task. Returns whether it was watched."""
        self._reader.forget(task_id)
        self.items.forget(task_id)
        self._waiting.discard(task_id)
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
            self._silence = SILENCE
            self._has_heard = True
            self._heard_at = self._loop.time()
            self._handle(notice)
        except Exception:  # of one notice, which must not stop the others
            logger.exception("a notice on %s could not be handled", self.channel)

    def _handle(self, notice: Notice) -> None:
        match notice.kind:
            case Kind.WAITING:
                self._warn_of_waiting(notice.task_ids())
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
        else:
            self._watched[task_id] = self._watched.pop(task_id)  # the one that was sent last
            watch.enqueue(next(self._numbers), self._loop.time())
            watch.in_flight.resent(task_id)

    def _note_alive(self, task_id: str, worker: str | None) -> None:
        """A worker has a task. ``worker``: who executes it, if that has begun."""
        watch = self._watched.get(task_id)
        if watch is not None:
            if worker is not None:
                watch.in_flight.began(task_id, worker)
            self._moved_at[watch.within] = now = self._loop.time()
            watch.take(now)
            self._note_sign(watch)

    def _take_items(self, notice: Notice) -> None:
        task_id = notice.task_id
        self._note_alive(task_id, None)
        try:
            self.items.take(notice)
        except (ItemsChangedError, SerializationError) as error:
            self._settle(task_id, failed(error), may_run_on=True)

    def _note_sign(self, watch: Watch) -> None:
        self._earliest_sign = min(self._earliest_sign, watch.number)
        self._latest_sign = max(self._latest_sign, watch.number)

    def _settle(self, task_id: str, result: TaskiqResult[Any], *, may_run_on: bool = False) -> None:
        watch = self._watched[task_id]
        self._moved_at[watch.within] = self._loop.time()
        result = self.items.checked(task_id, result)
        self.forget(task_id)
        if may_run_on or isinstance(result.error, _MAY_RUN_ON):
            watch.expected.add(task_id)  # the run revokes it at its end
        self._note_sign(watch)
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

    # The safety net

    async def _check_regularly(self) -> None:
        """Check the tasks in flight, for as long as there are any."""
        while True:
            if not self._watched:
                self._is_watching.clear()
                await self._is_watching.wait()
            fell_asleep = self._loop.time()
            await asyncio.sleep(self._interval)
            overslept = self._loop.time() - fell_asleep - self._interval
            async with self._asking:
                await self._check(overslept)

    async def _check(self, overslept: float) -> None:
        try:
            found = await self._ask_for_silent()
            self._silence = SHORTEST_INTERVAL if found else self._silence
            self._interval = (
                SHORTEST_INTERVAL if found else min(self._interval * 1.5, CHECK_INTERVAL)
            )
            await self._note_no_worker(overslept)
            self._note_stuck()
            await self._give_up_lost(overslept)
        except Exception:  # a bug of ours must not end this loop: runs would hang
            logger.exception("a check of the tasks in flight failed")
            self._interval = CHECK_INTERVAL

    async def _ask_for_silent(self) -> bool:
        """Ask the result backend for silent tasks. Returns whether it had a result."""
        now = self._loop.time()
        silent = self._silent(now)
        asked_at = {task_id: self._watched[task_id].asked_at for task_id in silent}
        asked = heapq.nsmallest(ASKED_PER_CHECK, asked_at, asked_at.__getitem__)
        for task_id in asked:
            self._watched[task_id].asked_at = now
        return bool(await self._ask(asked))

    async def _ask(self, task_ids: Sequence[str]) -> int:
        """Ask for the results of tasks, and settle those that have one. Returns how many."""
        found = 0
        if task_ids:
            async with self._reader.answers(task_ids) as answers:
                async for task_id, result in answers:
                    if result is None or task_id not in self._watched:
                        continue
                    found += 1
                    await self._settle_read(task_id, result)
        return found

    def _silent(self, now: float) -> Iterable[str]:
        """Tasks that may have ended without a notice.

        While notices come, those that stand in the queue are asked for less often: there may be
        thousands.
        """
        hears = now - self._heard_at < SILENCE
        for task_id, watch in self._watched.items():
            is_queued = hears and watch.number > self._latest_sign
            moment = now - (QUEUED_SILENCE if is_queued else self._silence)
            is_silent = watch.heard_at < moment and watch.asked_at < moment
            if is_silent and not watch.is_being_read:
                yield task_id

    async def _note_no_worker(self, overslept: float) -> None:
        """Warn once if no worker is heard of while tasks wait.

        Workers say from time to time that they are there. An engine listens for that only if it has
        tasks and has not heard of any worker.
        """
        if self._has_heard or self._told_no_worker or not self._watched:
            return
        now = self._loop.time()
        if self._alone_since is None:
            await self.notifier.subscribe(self._workers_channel, self._hear_worker)
            self._alone_since = now
        elif not self.notifier.is_listening or overslept > CHECK_INTERVAL:
            self._alone_since = now
        elif now - self._alone_since >= NO_WORKER:
            self._told_no_worker = True
            self._warn_of_no_worker()

    def _hear_worker(self, _: bytes) -> None:
        self._has_heard = True

    def _warn_of_no_worker(self) -> None:
        task_id, watch = next(iter(self._watched.items()))
        queue = watch.queue or queue_of(self._broker)
        logger.warning(
            "no worker was heard of for 5 s, and %s%s, of which %r is the first; start one, as "
            "with 'taskiq worker %s', and if there are some, give their broker a FlowMiddleware as "
            "the engine's has",
            "1 task waits" if len(self._watched) == 1 else f"{len(self._watched)} tasks wait",
            "" if queue is None else f" in queue {queue!r}",
            task_id,
            _import_path(self._broker),
        )

    def _note_stuck(self) -> None:
        """Warn if for some time no worker has taken any of the tasks, or of those of one task."""
        earliest = self._loop.time() - UNTAKEN
        groups: defaultdict[OuterTask | None, list[str]] = defaultdict(list)
        if self.notifier.is_listening:
            for task_id, watch in self._watched.items():
                groups[watch.within].append(task_id)
        stuck = {
            within
            for within, task_ids in groups.items()
            if self._moved_at.get(within, 0.0) < earliest
            and all(self._watched[task_id].is_untaken_since(earliest) for task_id in task_ids)
        }
        for within in stuck - self._stuck:
            if within is None and self._told_no_worker and not self._has_heard:
                continue  # that says more
            self._warn_of_stuck(groups[within], within)
        for within in stuck ^ self._stuck:
            if within is not None:
                within.is_waiting = within in stuck
        self._stuck = stuck
        self._moved_at = {w: at for w, at in self._moved_at.items() if at >= earliest}

    @staticmethod
    def _warn_of_stuck(task_ids: Sequence[str], within: OuterTask | None) -> None:
        holder = (
            ""
            if within is None
            else f"; {within.task_id!r} waits for them and holds a place: give such tasks, or the "
            "tasks that they wait for, workers of their own"
        )
        logger.warning(
            "no worker has reported any of %d tasks for %g s, %r is the first: no worker reads "
            "their queue, all places of the workers are taken, or a worker was killed and its "
            "tasks wait until they are delivered again%s",
            len(task_ids),
            UNTAKEN,
            task_ids[0],
            holder,
        )

    def _warn_of_waiting(self, task_ids: Iterable[str]) -> None:
        for task_id in task_ids:
            if task_id in self._watched and task_id not in self._waiting:
                self._waiting.add(task_id)
                logger.warning(
                    "task %r runs a graph, and no worker takes the tasks of that: tasks that wait "
                    "for tasks may hold all places of the workers; give them workers of their own",
                    task_id,
                )

    async def _give_up_lost(self, overslept: float) -> None:
        """Fail the tasks of which no notice will come any more."""
        now = self._loop.time()
        away = overslept > SUSPENDED_AFTER or self._is_deaf(now)
        suspects: dict[str, Watch] = {}
        for task_id, watch in self._watched.items():
            # If the queue cannot be read, workers may still be busy with tasks sent earlier.
            waits_its_turn = not watch.is_taken and watch.number > self._earliest_sign
            if away or watch.is_being_read or (waits_its_turn and self._backlog is None):
                watch.is_alive_at = now
            elif now - watch.is_alive_at > watch.lost_after / 2:
                suspects[task_id] = watch
        self._earliest_sign = math.inf
        await self._locate(suspects.values(), now)
        lost = {t: w for t, w in suspects.items() if not w.is_queued and self._is_lost(w, now)}
        await self._ask([task_id for task_id in lost if task_id in self._watched])
        for task_id, watch in lost.items():
            if self._watched.get(task_id) is watch and self._is_lost(watch, now):
                self._settle(task_id, failed(_lost(task_id, watch)))

    def _is_deaf(self, now: float) -> bool:
        if self.notifier.is_listening:
            self._deaf_since = None
            return False
        if self._deaf_since is None:
            self._deaf_since = now
        return now - self._deaf_since < OUTAGE_TIMEOUT

    async def _locate(self, suspects: Iterable[Watch], now: float) -> None:
        """Find out which tasks stand in the broker's queue: no worker can tell of them."""
        if self._backlog is None:
            return
        watches = [watch for watch in suspects if watch.left_at == -math.inf]
        for queue in {watch.queue for watch in watches}:
            try:
                newest, taken = await self._backlog.position(queue)
            except Exception as error:  # the broker is away; whatever its client makes of that
                logger.debug("the backlog of %r cannot be seen: %r", queue, error)
                newest = taken = None
            for watch in watches:
                if watch.queue != queue:
                    continue
                if newest is None:
                    watch.is_queued = now - watch.is_alive_at < watch.lost_after + OUTAGE_TIMEOUT
                    continue
                if watch.mark is None or newest < watch.mark:  # the queue was begun anew
                    watch.mark = newest
                watch.is_queued = taken < watch.mark
                if not watch.is_queued:
                    watch.left_at = now

    @staticmethod
    def _is_lost(watch: Watch, now: float) -> bool:
        silent = now - watch.is_alive_at > watch.lost_after
        return silent and now - watch.left_at > watch.lost_after / 2


def _import_path(broker: AsyncBroker) -> str:
    """Where a worker finds a broker, as ``module:variable``."""
    for name, module in tuple(sys.modules.items()):
        for variable, value in tuple(getattr(module, "__dict__", {}).items()):
            if value is broker:
                own = sys.modules[name]
                stem = Path(getattr(own, "__file__", None) or name).stem
                return f"{stem if name == '__main__' else name}:{variable}"
    return "module:broker"


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


def _lost(task_id: str, watch: Watch) -> TaskLostError:
    what = (
        "its worker has stopped reporting it: it was killed, or a task blocks its event loop"
        if watch.is_taken
        else "no worker has reported it: its message was lost, the workers do not know the task, "
        "its worker was killed or blocked at once, or the workers have no FlowMiddleware"
    )
    return TaskLostError(
        f"nothing was heard of task {task_id!r} for {watch.lost_after:g} s: {what}; "
        "lost_after= of the engine says how long to wait"
    )
