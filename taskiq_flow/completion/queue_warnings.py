"""Warns if tasks wait because there is no worker, or all places of the workers are taken."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from taskiq import AsyncBroker

from taskiq_flow.completion.safety_net import CHECK_INTERVAL
from taskiq_flow.completion.watch import OuterTask, Watch
from taskiq_flow.reconnect import may_pass, text_of
from taskiq_flow.transport.notice import workers_channel
from taskiq_flow.transport.protocol import Notifier
from taskiq_flow.transport.systems import queue_of

logger = logging.getLogger("taskiq_flow")

UNTAKEN = 10.0
"""Seconds after which a warning says that no worker has taken any of the tasks in flight."""

NO_WORKER = 4.5
"""Seconds after which a warning says that no worker was heard of. The first check comes before."""

_PACKAGE = "taskiq_flow"
"""The package that has the functions of tasks that are pipelines."""

_SCRIPT = "__main__"


class QueueWarnings:
    """The warnings of one inbox, each told once. ``prefix``: of its channels."""

    def __init__(
        self,
        broker: AsyncBroker,
        notifier: Notifier,
        watched: Mapping[str, Watch],
        prefix: str,
    ) -> None:
        self._broker = broker
        self._notifier = notifier
        self._watched = watched
        self._loop = asyncio.get_running_loop()
        self._workers_channel = workers_channel(prefix)
        self._alone_since: float | None = None  # listening for workers, and no notice has come
        self.has_heard = False
        """Whether any worker was heard of."""
        self._told_no_worker = False
        # When a task was last taken or ended, by the task whose run it is of.
        self._moved_at: dict[OuterTask | None, float] = {}
        self._stuck: set[OuterTask | None] = set()
        self._waiting: set[str] = set()  # tasks that have told that they wait for others

    def forget(self, task_id: str) -> None:
        """Forget a task that is not in flight any more."""
        self._waiting.discard(task_id)

    def note_moved(self, watch: Watch) -> None:
        """Note that a worker has a task, or that it has ended."""
        self._moved_at[watch.within] = self._loop.time()

    async def check(self, overslept: float) -> None:
        """Warn if there is reason to. ``overslept``: by how many seconds this check is late."""
        await self._note_no_worker(overslept)
        if overslept <= CHECK_INTERVAL:  # else notices may wait to be heard
            self._note_stuck()

    def warn_of_waiting(self, task_ids: Iterable[str]) -> None:
        """Warn of tasks that wait for tasks of their own, which no worker takes."""
        for task_id in task_ids:
            if task_id in self._watched and task_id not in self._waiting:
                self._waiting.add(task_id)
                logger.warning(
                    "task %r runs a graph, and no worker takes the tasks of that: tasks that wait "
                    "for tasks may hold all places of the workers; give them workers of their own",
                    task_id,
                )

    async def _note_no_worker(self, overslept: float) -> None:
        """Warn once if no worker is heard of while tasks wait.

        Workers say from time to time that they are there. An engine listens for that only if it has
        tasks and has not heard of any worker.
        """
        if self.has_heard or self._told_no_worker or not self._watched:
            return
        now = self._loop.time()
        if self._alone_since is None:
            if await self._listens_for_workers():
                self._alone_since = now
        elif not self._notifier.is_listening or overslept > CHECK_INTERVAL:
            self._alone_since = now
        elif now - self._alone_since >= NO_WORKER:
            self._told_no_worker = True
            self._warn_of_no_worker()

    async def _listens_for_workers(self) -> bool:
        """Listen for workers. Returns whether it succeeded: if the server is away, it may later."""
        try:
            await self._notifier.subscribe(self._workers_channel, self._hear_worker)
        except Exception as error:  # whatever the client raises: it is only for a warning
            if not may_pass(error, self._notifier.is_outage):
                self._told_no_worker = True
                logger.warning("it is not known whether there are workers: %s", text_of(error))
            return False
        return True

    def _hear_worker(self, _: bytes) -> None:
        self.has_heard = True

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
            _worker_arguments(self._broker),
        )

    def _note_stuck(self) -> None:
        """Warn if for some time no worker has taken any of the tasks, or of those of one task."""
        earliest = self._loop.time() - UNTAKEN
        groups: defaultdict[OuterTask | None, list[str]] = defaultdict(list)
        if self._notifier.is_listening:
            for task_id, watch in self._watched.items():
                groups[watch.within].append(task_id)
        stuck = {
            within
            for within, task_ids in groups.items()
            if self._moved_at.get(within, 0.0) < earliest
            and all(self._watched[task_id].is_unheard_since(earliest) for task_id in task_ids)
        }
        for within in stuck - self._stuck:
            if within is None and self._told_no_worker and not self.has_heard:
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


def _worker_arguments(broker: AsyncBroker) -> str:
    """What ``taskiq worker`` is given for a broker: ``module:variable`` and modules with tasks.

    A module with tasks comes before one that only has the broker, and all others before the
    script that runs here: a worker that imports it may run it as well.
    """
    with_tasks = dict.fromkeys(
        name
        for task in broker.local_task_registry.values()
        if (name := task.original_func.__module__).partition(".")[0] != _PACKAGE
    )
    variables: dict[str, str] = {}
    for name, module in tuple(sys.modules.items()):
        for variable, value in tuple(getattr(module, "__dict__", {}).items()):
            if value is broker:
                variables.setdefault(name, variable)
    if not variables:
        return "module:broker"
    first = min(variables, key=lambda name: (name == _SCRIPT, name not in with_tasks))
    others = [_importable(name) for name in with_tasks if name != first]
    return " ".join([f"{_importable(first)}:{variables[first]}", *others])


def _importable(name: str) -> str:
    """The name by which another process imports a module."""
    if name != _SCRIPT:
        return name
    return Path(getattr(sys.modules[name], "__file__", None) or name).stem
