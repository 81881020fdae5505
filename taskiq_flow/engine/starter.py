"""Only this file sends a node's task to the broker, and asks for results that are there already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

import anyio
from taskiq import AsyncBroker

from taskiq_flow.cache.key import cache_key, is_large
from taskiq_flow.cache.results import Claim, Hit, ResultCache
from taskiq_flow.completion.protocol import Completions
from taskiq_flow.completion.reading import pick_up
from taskiq_flow.dispatch.dispatcher import Dispatcher, RunnableNode, Sending
from taskiq_flow.engine.listeners import Listeners
from taskiq_flow.engine.node_run import NODE_ERRORS, NodeRun, Verdict
from taskiq_flow.engine.run_spec import TIMEOUT_LABEL
from taskiq_flow.errors import NotCachedWarning, SerializationError, warn
from taskiq_flow.events import NodeRetried, NodeStarted
from taskiq_flow.journal.records import SENT, record
from taskiq_flow.journal.writer import RunLog
from taskiq_flow.values.results import as_annotated, failed

N = TypeVar("N", bound=RunnableNode)

Waiting = Coroutine[Any, Any, None]
"""What is left to be awaited of a node's start."""


class Starter(Generic[N]):
    """Carries out the verdicts of one run's nodes that are about their start.

    ``decide``: carries out any verdict. ``sent``: told when the broker has taken a task. ``limit``:
    bytes above which results are passed by reference. ``digest``: as of ``RunSpec``.
    """

    def __init__(
        self,
        run_id: str,
        broker: AsyncBroker,
        dispatcher: Dispatcher,
        completions: Completions,
        listeners: Listeners,
        log: RunLog[Any] | None,
        cache: ResultCache | None,
        *,
        decide: Callable[[NodeRun[N], Verdict], Waiting | None],
        sent: Callable[[NodeRun[N]], None],
        limit: int | None,
        digest: Callable[[N], bytes] | None,
    ) -> None:
        self._run_id = run_id
        self._broker = broker
        self._dispatcher = dispatcher
        self._completions = completions
        self._listeners = listeners
        self._log = log
        self._cache = cache
        self._decide = decide
        self._sent = sent
        self._limit = limit
        self._digest = digest
        self._loop = asyncio.get_running_loop()
        self._is_listened_to = bool(listeners)
        self._is_over = False
        self.unsent: dict[N, NodeRun[N]] = {}
        """Nodes that have started, and whose inputs are still to be encoded, or may be again."""

    def stop(self) -> None:
        """From now on, a cancellation is meant for whoever waits."""
        self._is_over = True

    def send(self, node_run: NodeRun[N]) -> Waiting | None:
        """Send the next attempt of a node."""
        task_id = node_run.next_attempt(self._run_id)
        sends, options = node_run.sends, node_run.options
        try:
            address = self._dispatcher.address(sends)
            for label in options.labels:
                if address.is_async or label[0] != TIMEOUT_LABEL:
                    address = address.with_label(*label)
            args, kwargs = sends.arguments(node_run.inputs)
        except Exception as error:  # of a value of the user's
            node_run.settle(task_id, failed(error))
            return None
        if self._log is not None:
            self._note(node_run, self._log)
        if self._is_listened_to:
            self._tell(node_run)
        self._completions.expect(
            task_id, node_run, address.return_type, address.queue, tell_begin=options.is_timed
        )
        try:
            sending = self._dispatcher.send(sends, address, task_id, args, kwargs)
        except Exception as error:  # of a value, of its encoding, of the broker
            self._has_failed(node_run, task_id, error)
            return None
        if sending is not None:
            node_run.is_being_sent = True
            self.unsent[node_run.node] = node_run
            return self._finish_sending(node_run, task_id, sending)
        if options.is_timed:
            self._sent(node_run)
        if self.unsent and not options.asks_first:
            self.unsent.pop(node_run.node, None)
        return None

    async def _finish_sending(self, node_run: NodeRun[N], task_id: str, sending: Sending) -> None:
        try:
            await sending()
        except NODE_ERRORS as error:
            # Whatever the broker or its middlewares raise, unless it is the run that ends the send.
            if self._is_over:
                raise
            self._has_failed(node_run, task_id, error)
        else:
            if node_run.task_id == task_id and node_run.options.is_timed:
                self._sent(node_run)
        finally:
            if node_run.task_id == task_id:  # else it is the next attempt that is being sent
                node_run.is_being_sent = False
                if not node_run.options.asks_first:
                    self.unsent.pop(node_run.node, None)

    def _has_failed(self, node_run: NodeRun[N], task_id: str, error: BaseException) -> None:
        """A task could not be sent, which is its outcome unless that is known already."""
        if self._completions.forget(task_id):
            if not isinstance(error, SerializationError):  # the broker may have taken it
                self._completions.revoke_task(task_id)
            node_run.settle(task_id, failed(error))

    async def pick_up(self, node_run: NodeRun[N]) -> None:
        """Ask the result backend for the outcome of the attempt that an earlier engine has sent."""
        node_run.attempt -= 1  # it is the same attempt
        task_id = node_run.next_attempt(self._run_id)
        backend, return_type = self._broker.result_backend, self._return_type(node_run)
        result = await pick_up(backend, self._limit, task_id, return_type)
        if result is None:
            await self._go_on(node_run, node_run.on_unknown_outcome())
        else:
            node_run.is_cleared = True
            node_run.settle(task_id, result)

    async def look_up(self, node_run: NodeRun[N]) -> None:
        """Ask the cache for a node's result."""
        found = None if self._cache is None else await self._found(node_run, self._cache)
        if isinstance(found, Hit):
            found = Hit(as_annotated(found.value, self._return_type(node_run)))
        await self._go_on(node_run, node_run.on_looked_up(found))

    async def _found(self, node_run: NodeRun[N], cache: ResultCache) -> Any:
        node, options = node_run.node, node_run.options
        if node_run.cache_key is None:
            args, kwargs = node.arguments(node_run.inputs)
            try:
                if is_large((args, kwargs)):
                    key = await anyio.to_thread.run_sync(cache_key, node.task, args, kwargs)
                else:
                    key = cache_key(node.task, args, kwargs)
            except Exception as error:  # of a type that cannot be hashed, nested too deeply, ...
                warn_not_cached(node.task_name, error)
                return None
            node_run.cache_key = key
        ttl = None if options.cache is None else options.cache.ttl
        found = await cache.look_up(node_run.cache_key, ttl, node_run.waited_for)
        if self._is_over and isinstance(found, Claim):
            cache.release(found)
        return found

    async def _go_on(self, node_run: NodeRun[N], verdict: Verdict) -> None:
        if self._is_over:
            return
        waiting = self._decide(node_run, verdict)
        if waiting is not None:
            await waiting

    def ends_by_itself(self, node_run: NodeRun[N]) -> bool:
        """Whether a worker ends the node's attempt when its time limit is over."""
        return self._dispatcher.address(node_run.sends).is_async

    def _return_type(self, node_run: NodeRun[N]) -> Any:
        return self._dispatcher.address(node_run.sends).return_type

    def _note(self, node_run: NodeRun[N], log: RunLog[Any]) -> None:
        digest = b"" if self._digest is None else self._digest(node_run.node)
        log.note(record(SENT, node_run.node.task_name, node_run.attempt, digest))

    def _tell(self, node_run: NodeRun[N]) -> None:
        if node_run.falls_back:  # ``NodeFellBack`` has told it
            return
        at, name, task_id = self._loop.time(), node_run.node.task_name, node_run.task_id
        attempt, error = node_run.attempt, node_run.error
        if attempt == 1:
            self._listeners.tell(lambda: NodeStarted(self._run_id, at, name, task_id))
        else:
            self._listeners.tell(
                lambda: NodeRetried(self._run_id, at, name, task_id, attempt, error)
            )


def warn_not_cached(task_name: str, error: Exception) -> None:
    """Say once why a node is run as if it had no cache."""
    warn(
        f"node {task_name!r} is not cached: {error}; give it plain data, or take its cache away",
        NotCachedWarning,
    )
