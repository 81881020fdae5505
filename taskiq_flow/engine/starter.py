"""From a node that may start to its task at the broker, once and as often as it is tried again."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from taskiq import TaskiqResult

from taskiq_flow.cache.key import cache_key
from taskiq_flow.cache.results import CachedResults, Claim
from taskiq_flow.completion.protocol import Completions
from taskiq_flow.dataflow.options import Cache
from taskiq_flow.dataflow.ready_set import ReadySet
from taskiq_flow.dispatch.dispatcher import Dispatcher, RunnableNode
from taskiq_flow.dispatch.encoding import Address
from taskiq_flow.engine.node_run import PLAIN, TIMEOUT_GRACE, Flight
from taskiq_flow.engine.run_spec import Work
from taskiq_flow.errors import NotCachedWarning, SerializationError
from taskiq_flow.events import Event, NodeFellBack, NodeRetried, NodeStarted
from taskiq_flow.journal.records import SENT, record
from taskiq_flow.journal.writer import RunLog
from taskiq_flow.reconnect import growing_pauses
from taskiq_flow.values.results import as_annotated, failed

N = TypeVar("N", bound=RunnableNode)

_PAUSES = (0.01, 0.25)  # seconds between two looks at another's claim: the first, the longest


class Outcomes(Protocol[N]):
    """The run, as seen by what starts its nodes."""

    is_listened_to: bool

    def settle(self, flight: Flight[N], task_id: str, result: TaskiqResult[Any]) -> None:
        """A node's attempt has ended."""

    def take_cached(self, flight: Flight[N], value: Any) -> None:
        """A node's result was kept from another time."""

    def pass_over(self, flight: Flight[N]) -> None:
        """A node is not to run: its condition says no."""

    def tell(self, make_event: Callable[[], Event]) -> None:
        """Have listeners told."""

    def advance(self) -> None:
        """See to what has become possible."""


class Attempts(Generic[N]):
    """Starts the nodes of one run, and those again that are to be tried once more.

    ``values``: the run's, by key, as they come.
    """

    def __init__(
        self,
        run_id: str,
        work: Work[N],
        ready: ReadySet[N],
        dispatcher: Dispatcher,
        completions: Completions[Flight[N]],
        values: Mapping[str, Any],
        log: RunLog[Any] | None,
        cache: CachedResults | None,
        outcomes: Outcomes[N],
    ) -> None:
        self._run_id = run_id
        self._work = work
        self._ready = ready
        self._dispatcher = dispatcher
        self._completions = completions
        self._values = values
        self._log = log
        self._cache = cache
        self._outcomes = outcomes
        self._loop = asyncio.get_running_loop()
        self._suspended: dict[N, Flight[N]] = {}
        self._timers: dict[Flight[N], asyncio.TimerHandle] = {}
        self._policies = work.policies
        self._has_past = bool(work.before.attempts)
        self._is_over = False
        self._being_sent: dict[N, str] = {}  # with the task's id
        self._repeatable: set[N] = set()  # those that may be sent once more

    async def start(self, node: N) -> None:
        """Send a node that the ready set has given. Raises nothing while the run goes on."""
        flight = self._suspended.pop(node, None) if self._suspended else None
        if flight is None:
            flight = Flight(node, self._policies.get(node, PLAIN))
        is_plain = flight.policy is PLAIN and not self._has_past
        task_id = self._being_sent[node] = ""  # until it has one
        try:
            if is_plain or flight.is_cleared or await self._is_to_be_sent(flight):
                call = self._expected(flight)
                task_id = self._being_sent[node] = flight.task_id
                await self._dispatcher.send(*call)
                if flight.policy is not PLAIN:
                    self._limit_from_sending(flight, task_id)
        except (Exception, asyncio.CancelledError) as error:
            # Whatever the broker or its middlewares raise, unless it is the run that ends the send.
            if self._is_over:
                raise
            if not task_id or self._completions.forget(task_id):
                if task_id and not isinstance(error, SerializationError):  # it may have been taken
                    self._completions.revoke_task(task_id)
                self._outcomes.settle(flight, task_id or flight.task_id, failed(error))
        finally:
            if self._being_sent.get(node) == task_id:  # and it is not the next attempt that is
                del self._being_sent[node]

    def again(self, flight: Flight[N], error: BaseException) -> bool:
        """Have a node whose attempt has failed sent again, or its fallback; whether that is so."""
        delay = flight.delay_before_retry(error)
        if delay is None:
            if flight.policy.fallback_node is None or flight.falls_back:
                return False
            self.fall_back(flight, error)
            delay = 0.0
        flight.error, flight.began_at = error, None
        self._suspend(flight, delay)
        return True

    def _suspend(self, flight: Flight[N], seconds: float) -> None:
        self._ready.suspend(flight.node)
        self._suspended[flight.node] = flight
        self._start_timer(flight, seconds, partial(self._requeue, flight))

    def fall_back(self, flight: Flight[N], error: BaseException) -> None:
        """Note that a node has failed for good, and that its fallback stands in from now on."""
        flight.falls_back = flight.is_cleared = True
        name, task_id, attempts = flight.node.task_name, flight.task_id, flight.attempts
        at = self._loop.time()
        self._outcomes.tell(lambda: NodeFellBack(self._run_id, at, name, task_id, error, attempts))

    def began(self, flight: Flight[N], task_id: str) -> None:
        """A worker has begun to execute an attempt."""
        if task_id != flight.task_id or flight.began_at is not None:
            return
        flight.began_at = self._loop.time()
        self._cancel_timer(flight)
        timeout = flight.policy.timeout
        if timeout is not None:  # which its worker keeps by itself, where it can
            self._limit(flight, timeout + TIMEOUT_GRACE, timeout)

    def lasted(self, flight: Flight[N]) -> float:
        """Seconds since an attempt has begun, as far as is known."""
        return 0.0 if flight.began_at is None else self._loop.time() - flight.began_at

    def ended(self, flight: Flight[N]) -> None:
        """An attempt of a node with a policy has ended, whichever way."""
        flight.is_expected = False
        self._cancel_timer(flight)

    def finish(self, flight: Flight[N]) -> None:
        """A node with a policy has ended: nothing more of it will be sent."""
        self._repeatable.discard(flight.node)
        if self._cache is not None:
            self._cache.release(flight)

    def keep(self, flight: Flight[N], value: Any) -> None:
        """Keep what a node's task has given for another time, if it was claimed for that."""
        if not flight.has_claim or self._cache is None:
            return
        try:
            self._cache.keep(flight, value)
        except Exception as error:  # whatever a value or a serializer raises
            warn_not_cached(flight.node.task_name, error)

    def is_being_sent(self, node: N) -> bool:
        """Whether the broker has not taken a node's task yet."""
        return node in self._being_sent

    def is_still_needed(self, node: N) -> bool:
        """Whether a later node is still to be sent what a node has given."""
        return any(
            self._needs_inputs(later) and not later.binding.keys.isdisjoint(node.outputs)
            for later in self._work.successors.get(node, ())
        )

    def _needs_inputs(self, node: N) -> bool:
        sent = self._ready.has_started(node) and node not in self._being_sent
        return not sent or node in self._repeatable

    def stop(self) -> None:
        """Start nothing more, and wait for nothing more."""
        self._is_over = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    # A node that has not been sent yet

    async def _is_to_be_sent(self, flight: Flight[N]) -> bool:
        policy, node, before = flight.policy, flight.node, self._work.before
        if policy is not PLAIN:
            if policy.may_send_again:
                self._repeatable.add(node)
            values = self._values
            flight.taken = {key: values[key] for key in node.binding.keys if key in values}
            if policy.is_wanted is not None and not policy.is_wanted(values):
                self._outcomes.pass_over(flight)
                return False
        if before.attempts:
            flight.attempt = before.attempts.get(node.task_name, 0)
            if node.task_name in before.in_flight and before.pick_up is not None:
                flight.attempt -= 1  # it is the same one
                task_id = flight.next_attempt(self._run_id)
                return_type = self._dispatcher.address(node).return_type
                result = await before.pick_up(task_id, return_type)
                if result is not None:
                    flight.is_cleared = True
                    self._outcomes.settle(flight, task_id, result)
                    return False
        if policy.cache is not None and await self._is_cached(flight, policy.cache):
            return False
        flight.is_cleared = True
        return True

    async def _is_cached(self, flight: Flight[N], cache: Cache) -> bool:
        """Whether a node has its result without being sent, or somebody else computes it."""
        if self._cache is None:
            return False
        node = flight.node
        if flight.cache_key is None:
            try:
                flight.cache_key = cache_key(node.task, *node.arguments(flight.taken))
            except Exception as error:  # of a type that cannot be hashed, nested too deeply, ...
                warn_not_cached(node.task_name, error)
                return False
        found = await self._cache.look_up(flight.cache_key, cache.ttl, flight)
        if found is None:
            # Without the place that others may need to be able to compute it.
            flight.pauses = flight.pauses or growing_pauses(*_PAUSES)
            self._suspend(flight, next(flight.pauses))
            return True
        if isinstance(found, Claim):
            flight.has_claim = True
            return False
        return_type = self._dispatcher.address(node).return_type
        self._outcomes.take_cached(flight, as_annotated(found.value, return_type))
        return True

    # An attempt

    def _expected(
        self, flight: Flight[N]
    ) -> tuple[RunnableNode, Address, str, list[Any], dict[str, Any]]:
        """Have an attempt's end expected; what to send, as ``Dispatcher.send`` takes it."""
        node, policy = flight.node, flight.policy
        task_id = flight.next_attempt(self._run_id)
        sends: RunnableNode = node
        values, is_timed = self._values, False
        if policy is not PLAIN:
            sends, values, is_timed = flight.sends, flight.taken, policy.is_timed
        address = self._dispatcher.address(sends)
        if policy is not PLAIN:
            address = flight.addressed(address)
        args, kwargs = sends.arguments(values)
        if self._log is not None:
            digest = b"" if self._work.digest is None else self._work.digest(node)
            self._log.note(record(SENT, node.task_name, flight.attempt, digest))
        if self._outcomes.is_listened_to:
            self._tell_that_it_is_sent(flight)
        flight.is_expected = True
        self._completions.expect(
            task_id, flight, address.return_type, address.queue, tell_begin=is_timed
        )
        return sends, address, task_id, args, kwargs

    def _limit_from_sending(self, flight: Flight[N], task_id: str) -> None:
        policy = flight.policy
        is_under_way = flight.is_expected and flight.task_id == task_id
        if not is_under_way or flight.began_at is not None:  # it was faster
            return
        if policy.queue_timeout is not None:
            self._limit(flight, policy.queue_timeout, policy.queue_timeout, waited=True)
        elif policy.timeout is not None and not self._completions.tells_begin:
            flight.began_at = self._loop.time()  # for all that can be told
            self._limit(flight, policy.timeout, policy.timeout)

    def _tell_that_it_is_sent(self, flight: Flight[N]) -> None:
        at, name, task_id = self._loop.time(), flight.node.task_name, flight.task_id
        attempt, error = flight.attempt, flight.error
        if flight.falls_back:
            return
        if attempt == 1:
            self._outcomes.tell(lambda: NodeStarted(self._run_id, at, name, task_id))
        else:
            self._outcomes.tell(
                lambda: NodeRetried(self._run_id, at, name, task_id, attempt, error)
            )

    def _requeue(self, flight: Flight[N]) -> None:
        self._timers.pop(flight, None)
        self._ready.requeue(flight.node)
        self._outcomes.advance()

    # Limits in time

    def _limit(
        self, flight: Flight[N], after: float, seconds: float, *, waited: bool = False
    ) -> None:
        self._start_timer(flight, after, partial(self._time_out, flight, seconds, waited=waited))

    def _time_out(self, flight: Flight[N], seconds: float, *, waited: bool) -> None:
        self._timers.pop(flight, None)
        self._completions.revoke_task(flight.task_id)
        error = flight.timed_out(seconds, waited=waited)
        self._outcomes.settle(flight, flight.task_id, failed(error))

    def _start_timer(self, flight: Flight[N], seconds: float, call: Callable[[], None]) -> None:
        self._timers[flight] = self._loop.call_later(seconds, call)

    def _cancel_timer(self, flight: Flight[N]) -> None:
        timer = self._timers.pop(flight, None)
        if timer is not None:
            timer.cancel()


def warn_not_cached(task_name: str, error: Exception) -> None:
    """Say once why a node is run as if it had no cache."""
    warnings.warn(
        f"node {task_name!r} is not cached: {error}; give it plain data, or take its cache away",
        NotCachedWarning,
        stacklevel=2,
    )
