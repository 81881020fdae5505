"""Only this file decides what becomes of a node: sent, retried, skipped, replaced or failed.

A node run is told what has happened, by one of its ``on_…`` methods, and returns a verdict, which
the run carries out. Nothing here sends, waits or reads a clock.
"""

from __future__ import annotations

import math
import random
from asyncio import CancelledError
from collections.abc import Mapping
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from taskiq import TaskiqResult

from taskiq_flow.cache.results import Claim, Hit, Waiting
from taskiq_flow.dataflow.options import NO_FALLBACK
from taskiq_flow.dispatch.dispatcher import RunnableNode
from taskiq_flow.engine.run_spec import EarlierSessions, NodeOptions
from taskiq_flow.errors import NodeError, NodeTimeoutError
from taskiq_flow.events import Source
from taskiq_flow.values.copying import copied

N = TypeVar("N", bound=RunnableNode)

FALLBACK = "fallback"
"""In a task's id, in the place of the attempt's number."""

TIMEOUT_GRACE = 1.0
"""Seconds that a worker is given to end an attempt by itself when its time is over."""

NO_LIMIT = math.inf
"""Seconds of a time limit that there is not."""

NODE_ERRORS = (Exception, CancelledError)
"""What the user's code may raise for one node. Anything else stops the process, and its runs."""

_ROUNDING = 0.011
"""Seconds by which taskiq's rounding may make an execution shorter than it was."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send the node's task."""


@dataclass(frozen=True, slots=True)
class PickUp:
    """Ask the result backend how the attempt has ended that an earlier engine has sent."""


@dataclass(frozen=True, slots=True)
class LookUp:
    """Ask the cache for the node's result."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Start the node again after ``seconds``."""

    seconds: float


@dataclass(frozen=True, slots=True)
class WaitFor:
    """Start the node again when ``waiting.future`` is done."""

    waiting: Waiting


@dataclass(frozen=True, slots=True)
class Skip:
    """Do not run the node: its condition is false."""


@dataclass(frozen=True, slots=True)
class Use:
    """The node has completed with ``value``."""

    value: Any
    source: Source


@dataclass(frozen=True, slots=True)
class FallBack:
    """The node's task has failed for good with ``error``; its fallback comes by ``then``."""

    error: BaseException
    then: Wait | Use


@dataclass(frozen=True, slots=True)
class Fail:
    """The node has failed for good."""

    error: BaseException


Verdict = Send | PickUp | LookUp | Wait | WaitFor | Skip | Use | FallBack | Fail

_SEND, _PICK_UP, _LOOK_UP, _SKIP = Send(), PickUp(), LookUp(), Skip()


class Reports(Protocol):
    """The run, to which a node run passes on what transports tell it."""

    def settle(self, node_run: NodeRun[Any], task_id: str, result: TaskiqResult[Any]) -> None:
        """An attempt has ended."""

    def began(self, node_run: NodeRun[Any], task_id: str) -> None:
        """A worker has begun to execute an attempt."""

    def resent(self, node_run: NodeRun[Any], task_id: str) -> None:
        """A middleware of the broker has sent an attempt's task once more."""

    def interrupted(self, error: BaseException) -> None:
        """The process was told to stop."""


class NodeRun(Generic[N]):
    """One node of one run, from ready to ended: what the run and the transports hold of it.

    ``inputs``: values by key, of which the task's arguments are made. ``sends``: the node, or its
    fallback once that stands in.
    """

    # Defaults of the class, not set for each node run: there is one for every node in flight.
    task_id = ""
    attempt = 0  # number of the attempt that was sent last
    failures = 0  # of attempts that this engine has sent
    times_resent = 0  # by a middleware of the broker
    is_checked = False  # its condition holds, and what an earlier engine has sent was picked up
    is_expected = False  # its task is about to be sent, or was sent and has not ended
    is_being_sent = False  # the broker has not taken the task yet, and may keep its sender waiting
    began_at: float | None = None  # where the time limits need it
    falls_back = False
    error: BaseException | None = None  # of the last attempt
    cache_key: str | None = None
    claim: Claim | None = None  # on the cached result
    waited_for: Waiting | None = None  # for somebody else's

    def __init__(
        self,
        node: N,
        run: Reports,
        options: NodeOptions,
        inputs: Mapping[str, Any],
        earlier: EarlierSessions,
    ) -> None:
        self.node = node
        self.sends: RunnableNode = node
        self.options = options
        self.inputs = inputs
        self.is_cleared = not options.asks_first and not earlier.attempts
        self._run = run
        self._earlier = earlier

    # What transports call

    def settle(self, task_id: str, result: TaskiqResult[Any]) -> None:
        """The task has ended for good."""
        self._run.settle(self, task_id, result)

    def began(self, task_id: str) -> None:
        """A worker executes the task."""
        self._run.began(self, task_id)

    def resent(self, task_id: str) -> None:
        """Somebody other than the run has sent the task once more."""
        self._run.resent(self, task_id)

    def interrupted(self, error: BaseException) -> None:
        """``KeyboardInterrupt`` or ``SystemExit`` was raised in this process."""
        self._run.interrupted(error)

    # Verdicts

    def on_ready(self) -> Verdict:
        """The node may start, for the first time or once more."""
        if self.is_cleared:
            return _SEND
        if not self.is_checked:
            self.is_checked = True
            values, condition = self.inputs, self.options.condition
            # Attempts are given the same inputs, also if further ones arrive between them.
            self.inputs = {key: values[key] for key in self.node.binding.keys if key in values}
            try:
                # In a context of its own: what it sets must not reach the nodes behind it.
                if condition is not None and not copy_context().run(condition, values):
                    return _SKIP
            except NODE_ERRORS as error:  # whatever the condition raises
                return self.on_error(error)
            self.attempt = self._earlier.attempts.get(self.node.task_name, 0)
            if self.node.task_name in self._earlier.in_flight:
                return _PICK_UP
        return self._unless_cached()

    def on_unknown_outcome(self) -> Verdict:
        """The outcome of the attempt that an earlier engine has sent is not known."""
        return self._unless_cached()

    def on_looked_up(self, found: Hit | Claim | Waiting | None) -> Verdict:
        """The cache has answered; ``None``: it cannot be used."""
        match found:
            case Hit(value):
                return Use(value, "cache")
            case Waiting():
                self.waited_for = found
                return WaitFor(found)
            case Claim():
                self.claim = found
        self.is_cleared = True
        return _SEND

    def _unless_cached(self) -> Verdict:
        if self.options.cache is not None:
            return _LOOK_UP
        self.is_cleared = True
        return _SEND

    def on_error(self, error: BaseException, seconds: float = 0.0, now: float = 0.0) -> Verdict:
        """An attempt has failed after ``seconds``, or the node has before its first attempt."""
        options = self.options
        self.failures += 1
        self.error = error = self._explained(error, max(seconds, self._lasted(now)))
        self.began_at = None
        delay = self._delay_before_retry(error)
        if delay is not None:
            return Wait(delay)
        if options.fallback is NO_FALLBACK:
            return Fail(error)
        self.falls_back = self.is_cleared = True
        self.options = options.of_fallback()
        if options.fallback_node is None:
            return FallBack(error, Use(copied(options.fallback), "fallback"))
        self.sends = options.fallback_node
        return FallBack(error, Wait(0.0))

    def on_timeout(self) -> Verdict:
        """A time limit of the present attempt is over."""
        waited = self.began_at is None and self.options.queue_timeout is not None
        return self.on_error(self._timed_out(waited=waited))

    # Time limits, in seconds from now; ``None``: the present one stays

    def on_sent(self, now: float, *, tells_begin: bool) -> float | None:
        """The broker has taken the attempt's task. ``tells_begin``: ``on_began`` will follow."""
        options = self.options
        if not self.is_expected or self.began_at is not None:  # it has ended or begun already
            return None
        if options.queue_timeout is not None:
            return options.queue_timeout
        if options.timeout is not None and not tells_begin:
            self.began_at = now  # for all that can be known
            return options.timeout
        return None

    def on_began(self, now: float, *, ends_by_itself: bool) -> float | None:
        """A worker has begun an attempt. ``ends_by_itself``: its worker keeps the time limit."""
        if self.began_at is not None:
            return None
        self.began_at = now
        if self.options.timeout is None:
            return NO_LIMIT
        return self.options.timeout + (TIMEOUT_GRACE if ends_by_itself else 0.0)

    def on_resent(self) -> float:
        """The attempt's task waits for a worker once more."""
        self.times_resent += 1
        self.began_at = None
        return NO_LIMIT if self.options.queue_timeout is None else self.options.queue_timeout

    # An attempt

    def next_attempt(self, run_id: str) -> str:
        """Begin one more attempt. Returns its task's id."""
        which: int | str
        if self.falls_back:
            which = FALLBACK
        else:
            which = self.attempt = self.attempt + 1
        self.is_expected = True
        self.task_id = task_id = f"{run_id}:{self.node.task_name}:{which}"
        return task_id

    @property
    def attempts(self) -> int:
        """How often the node's task was executed, as far as is known."""
        return self.attempt + self.times_resent

    def _lasted(self, now: float) -> float:
        return 0.0 if self.began_at is None else now - self.began_at

    def _delay_before_retry(self, error: BaseException) -> float | None:
        """Seconds until the next attempt; ``None`` if there is none."""
        retry = self.options.retry
        if retry is None or not self.is_cleared or not retry.covers(error):
            return None
        if self.failures + self.times_resent >= retry.attempts:
            return None
        return retry.delay(self.failures, random.random())  # noqa: S311 - guards nothing

    def _explained(self, error: BaseException, seconds: float) -> BaseException:
        """The error, or ``NodeTimeoutError`` if taskiq has ended the task at its time limit."""
        if isinstance(error, NodeError) and not error.task_name:
            error.task_name = self.node.task_name  # only its message has travelled
        timeout = self.options.timeout
        if timeout is None or not isinstance(error, TimeoutError):
            return error
        if isinstance(error, NodeTimeoutError) or seconds < timeout - _ROUNDING:
            return error
        timed_out = self._timed_out(waited=False)
        timed_out.__cause__ = error
        return timed_out

    def _timed_out(self, *, waited: bool) -> NodeTimeoutError:
        """The error of the present attempt when its time is over."""
        limit = "queue_timeout" if waited else "timeout"
        seconds = getattr(self.options, limit)
        return NodeTimeoutError(
            f"task {self.task_id!r} {'was not begun' if waited else 'did not end'} within "
            f"{seconds:g} s, its {limit}; give it longer, or have "
            f"{'more workers' if waited else 'it do less'}",
            task_name=self.node.task_name,
            seconds=seconds,
            waited=waited,
        )
