"""Finds the tasks in flight that have ended without a notice, and those that are lost.

A notice is a hint and may be lost. Therefore one loop asks the result backend for tasks that have
been silent, and gives up the tasks that are lost.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from taskiq import TaskiqResult

from taskiq_flow.completion.reading import ResultReader
from taskiq_flow.completion.watch import Watch
from taskiq_flow.errors import TaskLostError
from taskiq_flow.reconnect import OUTAGE_TIMEOUT, text_of
from taskiq_flow.transport.protocol import Backlog, Notifier
from taskiq_flow.values.results import failed

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

SUSPENDED_AFTER = 5.0
"""If a check comes this late (seconds), this process was suspended: silence is counted anew."""


class SafetyNet:
    """Checks the tasks that an inbox watches, for as long as there are any.

    ``settle``: called with a task's id and its error when it is lost. ``settle_read``: with its
    result, when the result backend has one. ``on_check``: awaited in each check, with the seconds
    by which it comes too late.
    """

    def __init__(
        self,
        watched: Mapping[str, Watch],
        reader: ResultReader,
        notifier: Notifier,
        backlog: Backlog | None,
        *,
        settle: Callable[[str, TaskiqResult[Any]], None],
        settle_read: Callable[[str, TaskiqResult[Any]], Awaitable[None]],
        on_check: Callable[[float], Awaitable[None]],
    ) -> None:
        self._watched = watched
        self._reader = reader
        self._notifier = notifier
        self.backlog = backlog
        self._on_check = on_check
        self._settle = settle
        self._settle_read = settle_read
        self._loop = asyncio.get_running_loop()
        self._is_watching = asyncio.Event()
        self._earliest_sign: float = math.inf  # lowest number heard of since the last look
        self._latest_sign = -1  # highest number heard of
        self._heard_at = -math.inf  # when the last notice came
        self._silence = SILENCE
        self._interval = CHECK_INTERVAL
        self._deaf_since: float | None = None
        self._asking = asyncio.Lock()  # held while the result backend is asked

    def wake(self) -> None:
        """Begin to check: there are tasks in flight."""
        self._is_watching.set()

    def note_heard(self) -> None:
        """Note that a notice has come."""
        self._silence = SILENCE
        self._heard_at = self._loop.time()

    def note_sign(self, watch: Watch) -> None:
        """Note that a worker has a task, or that it has ended."""
        self._earliest_sign = min(self._earliest_sign, watch.number)
        self._latest_sign = max(self._latest_sign, watch.number)

    async def run(self) -> None:
        """Check the tasks in flight, until cancelled."""
        while True:
            if not self._watched:
                self._is_watching.clear()
                await self._is_watching.wait()
            fell_asleep = self._loop.time()
            await asyncio.sleep(self._interval)
            overslept = self._loop.time() - fell_asleep - self._interval
            async with self._asking:
                await self._check(overslept)

    async def stop_asking(self) -> None:
        """Wait until the backend has answered, and ask it nothing more."""
        await self._asking.acquire()

    async def _check(self, overslept: float) -> None:
        try:
            found = await self._ask_for_silent()
            self._silence = SHORTEST_INTERVAL if found else self._silence
            self._interval = (
                SHORTEST_INTERVAL if found else min(self._interval * 1.5, CHECK_INTERVAL)
            )
            await self._on_check(overslept)
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

    async def _give_up_lost(self, overslept: float) -> None:
        """Settle lost tasks as failures."""
        now = self._loop.time()
        away = overslept > SUSPENDED_AFTER or self._is_deaf(now)
        suspects: dict[str, Watch] = {}
        for task_id, watch in self._watched.items():
            # If the queue cannot be read, workers may still be busy with tasks sent earlier.
            waits_its_turn = not watch.is_taken and watch.number > self._earliest_sign
            if away or watch.is_being_read or (waits_its_turn and self.backlog is None):
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
        if self._notifier.is_listening:
            self._deaf_since = None
            return False
        if self._deaf_since is None:
            self._deaf_since = now
        return now - self._deaf_since < OUTAGE_TIMEOUT

    async def _locate(self, suspects: Iterable[Watch], now: float) -> None:
        """Find out which tasks are still in the broker's queue. No worker reports those."""
        if self.backlog is None:
            return
        watches = [watch for watch in suspects if watch.left_at == -math.inf]
        for queue in {watch.queue for watch in watches}:
            try:
                newest, taken = await self.backlog.position(queue)
            except Exception as error:  # the broker is away; whatever its client makes of that
                logger.debug("the backlog of %r cannot be seen: %s", queue, text_of(error))
                newest = taken = None
            for watch in watches:
                if watch.queue != queue:
                    continue
                if newest is None:
                    watch.is_queued = now - watch.is_alive_at < watch.lost_after + OUTAGE_TIMEOUT
                else:
                    watch.locate(newest, taken, now)

    @staticmethod
    def _is_lost(watch: Watch, now: float) -> bool:
        silent = now - watch.is_alive_at > watch.lost_after
        return silent and now - watch.left_at > watch.lost_after / 2


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
