"""The cached results of one run: which nodes use them, and which store theirs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from taskiq_flow.cache.key import cache_key
from taskiq_flow.cache.results import Claim, Hit, PendingResult, ValueCache
from taskiq_flow.dispatch.dispatcher import Dispatcher
from taskiq_flow.dispatch.encoding import RunnableNode
from taskiq_flow.engine.node_run import NodeRun
from taskiq_flow.engine.run_state import as_whole
from taskiq_flow.errors import NotCachedWarning, warn
from taskiq_flow.values.results import fitting
from taskiq_flow.values.size import read_off_loop

NOTHING = -math.inf
"""Seconds for which no cached result is fresh enough."""


class CachedResults:
    """Asks a cache for the results of nodes, and gives it those that the run has computed.

    A node that finds none has a claim: it is to compute the result, and others wait for it.
    """

    def __init__(self, cache: ValueCache, dispatcher: Dispatcher) -> None:
        self._cache = cache
        self._dispatcher = dispatcher
        self._is_stopped = False

    async def look_up(self, node_run: NodeRun) -> Hit | Claim | PendingResult | None:
        """Ask for a node's result. ``None`` if the cache cannot be used for it."""
        node, options = node_run.node, node_run.options
        if node_run.cache_key is None:
            args, kwargs = node.arguments(node_run.inputs)
            task = self._dispatcher.address(node).executed or node.task
            try:
                key = await read_off_loop((args, kwargs), cache_key, task, args, kwargs)
            except Exception as error:  # of a type that cannot be hashed, nested too deeply, ...
                _warn_not_cached(node, error)
                return None
            node_run.cache_key = key
        ttl = None if options.cache is None else options.cache.seconds
        if node_run.computes_anew:
            ttl = NOTHING
        return_type = self._dispatcher.address(node_run.sent_node).return_type

        def convert(value: Any) -> Any:
            try:
                return fitting(value, return_type)
            except ValidationError:  # the type was changed since
                raise
            except Exception:  # of a type that pydantic does not know
                return value

        found = await self._cache.look_up(node_run.cache_key, ttl, convert, node_run.waited_for)
        if self._is_stopped and isinstance(found, Claim):
            self._cache.release(found)
            return None
        return found

    def put(self, node_run: NodeRun, value: Any) -> None:
        """Store a result that the run had the claim to compute."""
        claim, options = node_run.claim, node_run.options.cache
        if claim is None or options is None:
            return
        try:
            self._cache.put(claim, value, options.seconds)
            node_run.claim = None
        except Exception as error:  # whatever a value or a serializer raises
            _warn_not_cached(node_run.node, error)

    def release(self, node_run: NodeRun) -> None:
        """Give up a node's claim, if it has one: it has ended without a result to store."""
        if node_run.claim is not None:
            self._cache.release(node_run.claim)
            node_run.claim = None

    def stop(self, node_runs: Iterable[NodeRun]) -> None:
        """The run is over. Its claims are given up, and any that is found from now on.

        Others may wait for them, before this run is read to its end, or instead.
        """
        self._is_stopped = True
        for node_run in node_runs:
            self.release(node_run)

    async def aclose(self) -> None:
        """Wait until the cache has stored what it was given, for a bounded time."""
        await self._cache.aclose()


def _warn_not_cached(node: RunnableNode, error: Exception) -> None:
    """Warn once that a node is run without its cache, and say why."""
    name = as_whole(node).task_name
    warn(
        f"node {name!r} is not cached: {error}; give it plain data as inputs, or take "
        "its cache away",
        NotCachedWarning,
    )
