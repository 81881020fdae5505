"""Decides what becomes of a node once it is ready.

The run calls an ``on_…`` method when something has happened, and carries out the verdict that it
returns. Nothing here sends, waits or reads a clock. ``dataflow/ready_set.py`` decides which nodes
become ready, and which are skipped because a dependency failed or was skipped.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Mapping, Sequence
from contextvars import copy_context
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from taskiq import TaskiqResult

from taskiq_flow.cache.results import Claim, Hit, PendingResult
from taskiq_flow.dataflow.node import ERROR
from taskiq_flow.dataflow.options import NO_FALLBACK
from taskiq_flow.dispatch.encoding import RunnableNode
from taskiq_flow.engine.error_chain import follows
from taskiq_flow.engine.list_hint import explain_list
from taskiq_flow.engine.run_spec import EarlierSessions, NodeOptions
from taskiq_flow.errors import NODE_ERRORS, AnnotationError, NodeError, NodeTimeoutError
from taskiq_flow.events import Source
from taskiq_flow.generators.grant import Grant
from taskiq_flow.notes import Attempt
from taskiq_flow.values.isolation import isolated

if TYPE_CHECKING:
    from taskiq_flow.engine.run import Run

FALLBACK = "fallback"
"""Stands before the number in the id of a fallback's task."""

TIMEOUT_GRACE = 1.0
"""Seconds that a worker has after the time limit to end an attempt by itself."""

NO_LIMIT = math.inf
"""Seconds of a time limit that never comes."""

_ROUNDING = 0.011
"""taskiq rounds ``execution_time``, which may be too small by this many seconds."""


class Send(NamedTuple):
    """Send the node's task."""


class Ask(NamedTuple):
    """Await the answer of the node's condition."""

    answer: Awaitable[object]


class PickUp(NamedTuple):
    """Ask the result backend how an earlier engine's attempt has ended."""


class MakeItems(NamedTuple):
    """Let the node's generator make more items."""


class LookUp(NamedTuple):
    """Ask the cache for the node's result."""


class Wait(NamedTuple):
    """Start the node again after ``seconds``."""

    seconds: float


class WaitFor(NamedTuple):
    """Start the node again when ``pending.future`` is done."""

    pending: PendingResult


class Skip(NamedTuple):
    """Do not run the node: its condition is false."""


class Use(NamedTuple):
    """The node has completed with ``value``."""

    value: Any
    source: Source


class FallBack(NamedTuple):
    """The node's task has failed for good. Carry out ``then`` to get the fallback's value."""

    error: BaseException
    then: Wait | Use


class Fail(NamedTuple):
    """The node has failed for good."""

    error: BaseException


Verdict = Send | Ask | PickUp | MakeItems | LookUp | Wait | WaitFor | Skip | Use | FallBack | Fail

_SEND, _PICK_UP, _MAKE_ITEMS, _LOOK_UP, _SKIP = Send(), PickUp(), MakeItems(), LookUp(), Skip()


class Phase(Enum):
    """What a node run does when its node may start."""

    NEW = "new"
    """Take the inputs, and ask the node's condition."""

    ASKED = "asked"
    """Ask the cache. The node is wanted, as far as that is known."""

    SENDABLE = "sendable"
    """Send the task."""

    BLOCKED = "blocked"
    """Let the generator make more items: it is in flight, and has given up its place."""


NEW, ASKED, SENDABLE, BLOCKED = Phase  # a name is looked up faster than a member


class NodeRun:
    """One node of one run, from ready to ended. The run and the transports hold it.

    ``inputs``: the values, by key, of which the task's arguments are made. ``sent_node``: the node
    whose task is sent, which is the node itself, and later its fallback.

    Attempts are counted by who sends them: ``attempt`` has those of this engine and of earlier
    ones, ``times_resent`` those of middlewares. A fallback is one more in the journal
    (``log_number``), and in events, which count all (``number``).
    """

    # Defaults of the class save time and memory: every node in flight has a node run. An attribute
    # that only some objects have gives these a dict of their own. So few nodes set the ones below
    # ``error``.
    task_id = ""
    phase = SENDABLE
    attempt = 0  # number of the attempt that was sent last
    failures = 0  # of attempts that this engine has sent
    times_resent = 0  # by a middleware of the broker
    is_expected = False  # an attempt is about to be sent, or was sent and has not ended
    is_being_sent = False  # the broker has not taken the task yet; the sender says so
    began_at: float | None = None  # where the time limits need it
    suspended_at: float | None = None  # when it began to wait for its next attempt
    falls_back = False
    error: BaseException | None = None  # of the last attempt
    fell_back_after: BaseException | None = None  # of the task, once its fallback has failed too
    cache_key: str | None = None
    claim: Claim | None = None  # on the cached result
    waited_for: PendingResult | None = None  # the same result, which another node computes
    gives_items = False  # it is a generator whose items are taken one by one
    grant: Grant | None = None  # of such a one
    is_begun_anew = False  # by a further worker, while there was no room for items

    def __init__(
        self,
        node: RunnableNode,
        run: Run,
        options: NodeOptions,
        inputs: Mapping[str, Any],
        earlier: EarlierSessions,
    ) -> None:
        self.node = node
        self.sent_node: RunnableNode = node
        self.options = options
        self.inputs = inputs
        if options.keeps_inputs or earlier.attempts:
            self.phase = NEW
        self._run = run
        self._earlier = earlier
        self.told: Attempt | None = None  # what listeners know of the last attempt

    # What transports call. Of what they say of earlier attempts, the run hears nothing

    def settle(self, task_id: str, result: TaskiqResult[Any]) -> None:
        """The task has ended for good."""
        if task_id == self.task_id:
            self.is_expected = False
            self._run.settle(self, result)

    def began(self, task_id: str, worker: str) -> None:
        """A worker executes the task."""
        if self.is_expected and task_id == self.task_id:
            self._run.began(self, worker)

    def resent(self, task_id: str) -> None:
        """Somebody other than the run has sent the task once more."""
        self._run.resent(self)

    def interrupted(self, error: BaseException) -> None:
        """``KeyboardInterrupt`` or ``SystemExit`` was raised in this process."""
        self._run.end_unless_over(error)

    def items(self, task_id: str, first: int, items: Sequence[Any], digest: bytes) -> None:
        """The task is a generator, and has given items."""
        if self.is_expected and task_id == self.task_id:
            self._run.items(self, first, items, digest)

    # Verdicts

    def on_ready(self) -> Verdict:
        """The node may start, for the first time or once more."""
        if self.phase is SENDABLE:
            return _SEND
        if self.phase is BLOCKED:
            self.phase = SENDABLE
            return _MAKE_ITEMS
        if self.phase is ASKED:
            return self._unless_cached()
        self.phase = ASKED
        values, condition = self.inputs, self.options.condition
        # A retry gets the inputs of the first attempt, also if more values have arrived.
        self.inputs = {key: values[key] for key in self.node.binding.keys if key in values}
        if condition is None:
            return self._first_attempt()
        try:
            # In a context of its own: what it sets must not reach the nodes behind it.
            answer = copy_context().run(condition, values)
        except NODE_ERRORS as error:  # of the condition
            return self.on_error(error)
        return self.on_answer(is_wanted=answer) if isinstance(answer, bool) else Ask(answer)

    def on_answer(self, *, is_wanted: bool) -> Verdict:
        """The node's condition has answered."""
        return self._first_attempt() if is_wanted else _SKIP

    def _first_attempt(self) -> Verdict:
        if self.options.compute is not None:
            try:
                return Use(self.options.compute(self.inputs), "task")
            except NODE_ERRORS as error:  # of a value that it cannot take
                return Fail(error)
        self.attempt = self._earlier.attempts.get(self.node.task_name, 0)
        if self.node.task_name in self._earlier.in_flight and not self.gives_items:
            return _PICK_UP
        return self._unless_cached()

    @property
    def computes_anew(self) -> bool:
        """Whether a cached result is overwritten, and not used: ``rerun`` asks for that."""
        return self.node.task_name in self._earlier.rerun

    def on_looked_up(self, found: Hit | Claim | PendingResult | None) -> Verdict:
        """The cache has answered. ``None``: it cannot be used."""
        match found:
            case Hit(value):
                return Use(value, "cache")
            case PendingResult():
                self.waited_for = found
                return WaitFor(found)
            case Claim():
                self.claim = found
        self.phase = SENDABLE
        return _SEND

    def _unless_cached(self) -> Verdict:
        if self.options.cache is not None:
            return _LOOK_UP
        self.phase = SENDABLE
        return _SEND

    def on_error(self, error: BaseException, seconds: float = 0.0) -> Verdict:
        """An attempt has failed after ``seconds``, or the condition has, before any attempt."""
        options = self.options
        self.failures += 1
        error = self._explained(error, seconds)
        if self.falls_back and self.error is not None and follows(error, self.error):
            self.fell_back_after = self.error
        self.error = error
        self.began_at = None
        self.phase = SENDABLE
        delay = self._retry_delay(error)
        if delay is not None:
            return Wait(delay)
        if options.fallback is NO_FALLBACK:
            return Fail(error)
        self.falls_back = True
        self.options = options.of_fallback()
        if options.fallback_node is None:
            return FallBack(error, Use(isolated(options.fallback), "fallback"))
        self.sent_node = options.fallback_node
        if ERROR not in self.node.binding.keys:
            self.inputs = {**self.inputs, ERROR: error}
        return FallBack(error, Wait(0.0))

    def on_timeout(self) -> Verdict:
        """The time limit of the present attempt is over."""
        return self.on_error(self.timed_out())

    def timed_out(self) -> NodeTimeoutError:
        """The error of the present attempt, which is not waited for any more."""
        self.is_expected = False
        waited = self.began_at is None and self.options.queue_timeout is not None
        return self._timed_out(waited=waited)

    # Each returns the seconds of a new time limit, or ``None`` to keep the present one

    def on_sent(self, now: float, *, tells_begin: bool) -> float | None:
        """The broker has taken the task. ``tells_begin``: ``on_began`` is called when it begins."""
        options = self.options
        if not self.is_expected or self.began_at is not None:  # ended or begun already
            return None
        if options.queue_timeout is not None:
            return options.queue_timeout
        if options.timeout is not None and not tells_begin:
            self.began_at = now  # its begin is not told: the time counts from the sending
            return self._time_to_begin(options.timeout)
        return None

    def on_began(self, now: float, *, ends_by_itself: bool) -> float | None:
        """A worker has begun an attempt. ``ends_by_itself``: the worker ends it in time."""
        if self.began_at is not None:
            return None
        self.began_at = now
        if self.options.timeout is None:
            return NO_LIMIT
        seconds = self._time_to_begin(self.options.timeout)
        return seconds + (TIMEOUT_GRACE if ends_by_itself else 0.0)

    def _time_to_begin(self, timeout: float) -> float:
        """The seconds until an attempt has to end or, of a generator, to give its first new item.

        It makes those once more that the engine has, and says nothing of them.
        """
        return timeout if self.grant is None else timeout * (1 + self.grant.have)

    def begin_anew(self) -> None:
        """A further worker begins the task: the time of an attempt begins once more.

        While a generator waits for room no time counts: it begins with the next item's.
        """
        if self.is_blocked:
            self.is_begun_anew = True
        else:
            self.began_at = None

    def on_items(self, now: float) -> float | None:
        """A generator has given items, or may go on: the time of the next one begins."""
        if self.began_at is None or self.options.timeout is None:
            return None
        self.began_at = now
        is_anew, self.is_begun_anew = self.is_begun_anew, False
        timeout = self.options.timeout
        return self._time_to_begin(timeout) if is_anew else timeout

    def on_resent(self) -> float:
        """A middleware has sent the task again, which waits for a worker once more."""
        self.times_resent += 1
        self.began_at = None
        return NO_LIMIT if self.options.queue_timeout is None else self.options.queue_timeout

    # A generator

    def block(self) -> None:
        """It may make no more items, and gives up its place."""
        self.phase = BLOCKED

    @property
    def is_blocked(self) -> bool:
        """Whether it waits for its place."""
        return self.phase is BLOCKED

    # An attempt

    def begin_attempt(self, run_id: str, task_suffix: str) -> str:
        """Count one more attempt. Returns the id of its task."""
        which: int | str
        if self.falls_back:
            which = f"{FALLBACK}-{self.log_number}"
        else:
            which = self.attempt = self.attempt + 1
        self.is_expected = True
        self.task_id = task_id = f"{run_id}:{self.node.task_name}:{which}{task_suffix}"
        return task_id

    def continue_attempt(self, run_id: str) -> str:
        """Wait for an earlier engine's attempt, as ``PickUp`` asks. Returns the id of its task."""
        name = self.node.task_name
        self.is_expected = True
        self.task_id = f"{run_id}:{name}:{self.attempt}{self._earlier.in_flight[name]}"
        return self.task_id

    @property
    def log_number(self) -> int:
        """The number under which the journal has what was sent last.

        A fallback has the number behind the last attempt's. So no session of a run sends two tasks
        under one id.
        """
        return self.attempt + self.falls_back

    @property
    def number(self) -> int:
        """That of the last attempt, as events have it: those of middlewares and fallbacks count."""
        return self.attempt + self.times_resent + self.falls_back

    @property
    def attempts(self) -> int:
        """How often the node's task was sent, by this engine, earlier ones and middlewares."""
        return self.attempt + self.times_resent

    def running_for(self, now: float) -> float:
        """Seconds for which the attempt has run, as far as that is known."""
        return 0.0 if self.began_at is None else now - self.began_at

    def _retry_delay(self, error: BaseException) -> float | None:
        """Whether the node is tried again: the seconds until then, or ``None`` if it is not."""
        retry, was_sent = self.options.retry, bool(self.task_id)  # a condition is asked once
        if retry is None or not was_sent or not retry.covers(error):
            return None
        if self.failures + self.times_resent >= retry.attempts:
            return None
        return retry.delay(self.failures, random.random())  # noqa: S311 - guards nothing

    def _explained(self, error: BaseException, seconds: float) -> BaseException:
        """The error. It is a ``NodeTimeoutError`` if taskiq ended the task at its time limit."""
        if isinstance(error, NodeError) and not error.task_name:
            error.task_name = self.node.task_name  # only its message has travelled
        if isinstance(error, AnnotationError) and not self.falls_back:
            explain_list(error, self.node, self.inputs)
        timeout = self.options.timeout
        if timeout is None or not isinstance(error, TimeoutError):
            return error
        if isinstance(error, NodeTimeoutError) or seconds < timeout - _ROUNDING:
            return error
        timed_out = self._timed_out(waited=False)
        timed_out.__cause__ = error
        return timed_out

    def _timed_out(self, *, waited: bool) -> NodeTimeoutError:
        """The error of an attempt whose time limit is over."""
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
