"""What a node goes through on its way to a result: its attempts, their limits, its fallback.

Nothing here sends or waits. A flight says what is to be sent next, and what an error leads to.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.options import NO_FALLBACK, Cache, Retry
from taskiq_flow.dispatch.dispatcher import RunnableNode
from taskiq_flow.dispatch.encoding import Address
from taskiq_flow.errors import NodeError, NodeTimeoutError
from taskiq_flow.transport.notice import BEGIN_LABEL

N = TypeVar("N", bound=RunnableNode)

FALLBACK = "fallback"
"""In a task's id, in the place of the attempt's number."""

TIMEOUT_GRACE = 1.0
"""Seconds that a worker is given to end an attempt by itself when its time is over."""

_ROUNDING = 0.011
"""Seconds by which taskiq's rounding may make an execution shorter than it was."""

_BY_THE_ENGINE = ("retry_on_error", False)
"""The label by which taskiq's retry middlewares leave a task alone: the engine tries it again."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is asked for a node beyond being sent once, by itself or by its engine."""

    retry: Retry | None = None
    timeout: float | None = None
    queue_timeout: float | None = None
    fallback: Any = NO_FALLBACK
    fallback_node: RunnableNode | None = None
    is_wanted: Callable[[Mapping[str, Any]], bool] | None = None
    cache: Cache | None = None

    def of(self, node: DAGNode) -> Policy:
        """The policy of a node of an engine with this one."""
        return Policy(
            retry=self.retry if node.retry is None else node.retry,
            timeout=self.timeout if node.timeout is None else node.timeout,
            queue_timeout=(
                self.queue_timeout if node.queue_timeout is None else node.queue_timeout
            ),
            fallback=node.fallback,
            fallback_node=node.fallback_node,
            is_wanted=None if node.when is None else node.is_wanted,
            cache=node.cache,
        )

    @property
    def may_send_again(self) -> bool:
        """Whether what a node takes may be needed once more, after it was sent."""
        return self.retry is not None or self.fallback_node is not None

    @property
    def is_timed(self) -> bool:
        """Whether an attempt has a limit in time."""
        return self.timeout is not None or self.queue_timeout is not None


PLAIN = Policy()
"""To be sent once."""


class Flight(Generic[N]):
    """One node from its start to its end."""

    # Defaults of the class, not set for each of them: there is one for every node.
    attempt = 0  # the number of the task that was sent last
    failures = 0  # of attempts of this engine's
    resent = 0  # times that a middleware of the broker's has sent the task again
    is_cleared = False  # to be sent: no condition, and no result from elsewhere, is in the way
    is_expected = False  # its task is about to be sent, or was
    began_at: float | None = None  # as far as was asked and is known
    falls_back = False
    error: BaseException | None = None  # that the last attempt ended with
    taken: Mapping[str, Any] = MappingProxyType({})  # with a policy: the inputs it started with
    cache_key: str | None = None
    has_claim = False  # on the cached result
    pauses: Iterator[float] | None = None  # that it makes for another's claim

    def __init__(self, node: N, policy: Policy) -> None:
        self.node = node
        self.policy = policy
        self.task_id = ""

    @property
    def sends(self) -> RunnableNode:
        """What is sent: the node, or its fallback in its place."""
        fallback = self.policy.fallback_node
        return fallback if self.falls_back and fallback is not None else self.node

    @property
    def attempts(self) -> int:
        """How often the node's task was executed, as far as is known."""
        return self.attempt + self.resent

    def next_attempt(self, run_id: str) -> str:
        """Count one attempt more; its task's id."""
        if self.falls_back:
            which: int | str = FALLBACK
        else:
            which = self.attempt = self.attempt + 1
        self.task_id = task_id = f"{run_id}:{self.node.task_name}:{which}"
        return task_id

    def addressed(self, address: Address) -> Address:
        """The address of an attempt's task, with what its worker is to know of its limits."""
        policy = self.policy
        if policy.timeout is not None:
            address = address.with_label("timeout", policy.timeout)
        if policy.is_timed:
            address = address.with_label(BEGIN_LABEL, "1")
        if policy.retry is not None or self.falls_back:
            address = address.with_label(*_BY_THE_ENGINE)
        return address

    def delay_before_retry(self, error: BaseException) -> float | None:
        """Seconds until the next attempt; ``None`` if there is none."""
        retry = self.policy.retry
        if retry is None or self.falls_back or not self.is_cleared or not retry.covers(error):
            return None
        if self.failures + self.resent >= retry.attempts:
            return None
        return retry.delay(self.failures, random.random())  # noqa: S311 - guards nothing

    def explained(self, error: BaseException, seconds: float) -> BaseException:
        """An attempt's error, or what it means: taskiq's own word for a timeout is any code's."""
        if isinstance(error, NodeError) and not error.task_name:
            error.task_name = self.node.task_name  # only its message has travelled
        timeout = self.policy.timeout
        if timeout is None or not isinstance(error, TimeoutError):
            return error
        if isinstance(error, NodeTimeoutError) or seconds < timeout - _ROUNDING:
            return error
        timed_out = self.timed_out(timeout)
        timed_out.__cause__ = error
        return timed_out

    def timed_out(self, seconds: float, *, waited: bool = False) -> NodeTimeoutError:
        """The error of the present attempt when its time is over."""
        what = "was not begun within" if waited else "did not end within"
        limit = "queue_timeout" if waited else "timeout"
        return NodeTimeoutError(
            f"task {self.task_id!r} {what} {seconds:g} s, its {limit}; give it longer, or have "
            f"{'more workers' if waited else 'it do less'}",
            task_name=self.node.task_name,
            seconds=seconds,
            waited=waited,
        )
