"""What a run tells its listeners.

Every event carries ``run_id`` and ``at``, seconds of the event loop's monotonic clock. The union
``Event`` is closed: a listener that matches all of its members has seen everything there is.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Source = Literal["task", "fallback", "cache", "journal"]
"""What a result came from: the node's task, its fallback, its cache, or an earlier process."""


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run begins. ``task_names``: the nodes known at that moment."""

    run_id: str
    at: float
    task_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """A node's task is handed to the broker."""

    run_id: str
    at: float
    task_name: str
    task_id: str


@dataclass(frozen=True, slots=True)
class NodeRetried:
    """A node's task is sent once more. ``attempt``: the number of the attempt now on its way.

    ``error``: what the attempt before ended with; ``None`` where a middleware of the broker's has
    sent the task again, or an engine goes on with what another had sent.
    """

    run_id: str
    at: float
    task_name: str
    task_id: str
    attempt: int
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class NodeFellBack:
    """A node failed for good, and its fallback stands in. ``attempts``: how often it was tried."""

    run_id: str
    at: float
    task_name: str
    task_id: str
    error: BaseException
    attempts: int


@dataclass(frozen=True, slots=True)
class NodeCompleted:
    """A node has its result. ``source``: what gave it."""

    run_id: str
    at: float
    task_name: str
    task_id: str
    result: Any
    source: Source = "task"


@dataclass(frozen=True, slots=True)
class NodeFailed:
    """A node failed for good. ``attempts``: how often its task was executed."""

    run_id: str
    at: float
    task_name: str
    task_id: str
    error: BaseException
    attempts: int


@dataclass(frozen=True, slots=True)
class NodeSkipped:
    """A node did not run: it depends on a failure, or a condition has it skipped.

    The event, and under ``on_error="collect"`` also the node's value in the stream.
    ``because_of``: the dependencies that failed or were skipped themselves; none for a node whose
    own condition says no. ``reason``: a skip by condition is not a failure, nor is one behind it.
    """

    run_id: str
    at: float
    task_name: str
    because_of: tuple[str, ...]
    reason: Literal["failure", "condition"] = "failure"


@dataclass(frozen=True, slots=True)
class RunFinished:
    """A run ended, once. ``error``: what its reader gets, where it gets one."""

    run_id: str
    at: float
    outcome: Literal["completed", "failed", "cancelled"]
    error: BaseException | None


Event = (
    RunStarted
    | NodeStarted
    | NodeRetried
    | NodeFellBack
    | NodeCompleted
    | NodeFailed
    | NodeSkipped
    | RunFinished
)


class Listener(Protocol):
    """Is told what runs do. May be sync or async; one that raises is dropped for that run."""

    def on_event(self, event: Event, /) -> Awaitable[None] | None:
        """Take one event. Events of one run come one at a time and in order."""


@dataclass(frozen=True, slots=True)
class NodeFailure:
    """The value of a failed node in the stream, under ``on_error="collect"``."""

    task_name: str
    task_id: str
    error: BaseException
    attempts: int
