"""One task in flight, as an inbox watches it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from taskiq_flow.completion.protocol import InFlight
from taskiq_flow.values.arguments import StoredArguments


class OuterTask(Protocol):
    """A task of a worker that waits for tasks of its own."""

    task_id: str
    is_waiting: bool


@dataclass(slots=True, eq=False)
class Watch:
    """One task in flight, and when it last gave a sign of life.

    ``expected``: the ids of its run's tasks in flight. ``limit``: bytes above which its result is
    passed by reference. ``within``: the task whose run this one is of. ``arguments``: those of its
    run in the broker's store. ``mark``: a position in the queue behind the task. ``left_at``: when
    it was found that the task had left the queue.
    """

    in_flight: InFlight
    expected: set[str]
    return_type: Any
    queue: str | None
    lost_after: float
    limit: int | None
    within: OuterTask | None
    arguments: StoredArguments | None
    is_being_read: bool = False  # its result, from the store
    number: int = field(init=False)
    asked_at: float = field(init=False)
    heard_at: float = field(init=False)
    is_alive_at: float = field(init=False)
    is_taken: bool = field(init=False)  # by a worker, as far as notices tell
    is_queued: bool = field(init=False)  # as far as is known
    mark: Any = field(init=False)
    left_at: float = field(init=False)

    def enqueue(self, number: int, now: float) -> None:
        """Note that the task was sent, after all tasks with a lower number."""
        self.number = number
        self.asked_at = now
        self.take(now)
        self.is_taken = False

    def take(self, now: float) -> None:
        """Note that a worker has the task. If it falls silent, the task may be queued again."""
        self.is_taken = True
        self.heard_at = self.is_alive_at = now
        self.is_queued = False
        self.mark = None
        self.left_at = -math.inf

    def locate(self, newest: Any, taken: Any, now: float) -> None:
        """Note how far workers have ``taken`` the task's queue, which reaches up to ``newest``."""
        if self.mark is None or newest < self.mark:  # the queue was begun anew
            self.mark = newest
        self.is_queued = taken < self.mark
        if not self.is_queued:
            self.left_at = now

    def is_unheard_since(self, moment: float) -> bool:
        """Whether no worker has reported the task since a moment, and it was sent before that.

        A worker may have had it, and given it back as all of its places were taken.
        """
        return self.heard_at < moment
