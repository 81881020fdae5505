"""How a run of an engine begins: it connects, opens its log and sends its first nodes."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from taskiq import AsyncBroker, InMemoryBroker

from taskiq_flow.cache.results import ResultCache, ValueCache
from taskiq_flow.cache.store import CacheStore
from taskiq_flow.cleanup import to_the_end
from taskiq_flow.dispatch.dispatcher import Dispatcher
from taskiq_flow.engine.connection import check_outlives, check_readable, connect
from taskiq_flow.engine.generating_run import GeneratingRun
from taskiq_flow.engine.listeners import Listeners
from taskiq_flow.engine.mapped_run import MappedRun
from taskiq_flow.engine.run import Run
from taskiq_flow.engine.run_spec import RunSettings, RunSpec
from taskiq_flow.errors import ConfigurationError
from taskiq_flow.journal.writer import LogWriter
from taskiq_flow.middleware import wire_of
from taskiq_flow.transport.systems import any_of, fullness_of, outages_of
from taskiq_flow.values.handle import holds_handles
from taskiq_flow.values.references import store_large_inputs
from taskiq_flow.values.store import folder_of
from taskiq_flow.values.stored import StoredValues


def new_task_suffix() -> str:
    """What tells the tasks of a run from those of another run of the same name."""
    return f".{secrets.token_hex(4)}"


class Starter:
    """Starts the runs of one engine. ``values``: how the cache stores them."""

    def __init__(
        self,
        broker: AsyncBroker,
        settings: RunSettings,
        lost_after: float,
        values: StoredValues,
        cache_store: CacheStore,
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._lost_after = lost_after
        self._values = values
        self._cache_store = cache_store

    async def begin(
        self,
        listeners: Listeners,
        run_id: str,
        spec: RunSpec,
        log: LogWriter[Any] | None,
        earlier_sessions: Iterable[str] = (),
        *,
        is_named: bool,
    ) -> Run:
        """Connect, open the log, and start the run. Closes what was opened if that fails.

        ``listeners``: of this run; those of the engine are added. ``is_named``: whether another run
        may have had this run id, as its user gave it.
        """
        broker = self._broker
        suffix = new_task_suffix() if is_named else ""
        run: Run | None = None
        try:
            check_readable(broker)
            if log is not None and self._settings.reference_above is not None:
                check_outlives(broker)
            connection = await connect(
                broker,
                run_id,
                spec,
                self._settings,
                lost_after=self._lost_after,
                is_journaled=log is not None,
            )
            dispatcher = Dispatcher(
                broker,
                connection.labels,
                connection.labels_by_value,
                connection.kick,
                spec.take,
                connection.arguments,
                begin=connection.begin,
                refers=self._refers(spec),
            )
            self._check(spec, dispatcher, tells_begin=connection.tells_begin)
            stored = await self._stored_inputs(spec, run_id, connection.session)
            if log is not None:
                await log.begin(connection.session, suffix)
                listeners.begin_after(log.seq)
                if log.batcher is not None:
                    listeners.keep_for(log.batcher)
            if connection.revoke is not None:
                for session in earlier_sessions:
                    await connection.revoke(session)
            completions, cache = connection.completions(), self._cache(spec)
            for listener in self._settings.listeners:
                listeners.add(listener)
            run = _kind_of(spec)(
                run_id,
                replace(spec, task_suffix=suffix, stored_inputs=stored),
                self._settings,
                broker,
                completions,
                dispatcher,
                listeners,
                log=log,
                cache=cache,
            )
            run.start()
        except BaseException:  # a cancellation too
            if run is not None:
                await run.aclose()
            elif log is not None:
                await to_the_end(log.release())
            raise
        return run

    def _check(self, spec: RunSpec, dispatcher: Dispatcher, *, tells_begin: bool) -> None:
        """Raise ``ConfigurationError`` if the broker cannot do what a node's options ask for."""
        if spec.elements is not None and spec.has_generators and not tells_begin:
            node = next(iter(spec.elements.generators))
            raise ConfigurationError(
                f"the items of node {node.task_name!r}, a generator, are taken one by one, and the "
                f"workers of {type(self._broker).__name__} cannot send them; add a FlowMiddleware "
                "to it, here and where its workers run, or have the task return a list"
            )
        for node in spec.of_each_task:
            dispatcher.address(node)
        for node, options in spec.options.items():
            if options.fallback_node is not None:
                dispatcher.address(options.fallback_node)
            if options.queue_timeout is not None and not tells_begin:
                raise ConfigurationError(
                    f"node {node.task_name!r} has a queue_timeout, and "
                    f"{type(self._broker).__name__} does not tell when a task begins; add a "
                    "FlowMiddleware to it, here and where its workers run"
                )

    def _refers(self, spec: RunSpec) -> bool:
        """Whether there may be handles among the values of a run, and within its lists."""
        is_limited = self._settings.reference_above is not None
        return is_limited or any(map(holds_handles, spec.inputs.values()))

    async def _stored_inputs(self, spec: RunSpec, run_id: str, session: str) -> Mapping[str, Any]:
        """Handles of the run's large inputs, if these are to go by reference.

        A list of which nodes only take the elements is not stored.
        """
        broker, limit = self._broker, self._settings.reference_above
        if limit is None or isinstance(broker, InMemoryBroker):
            return {}
        backend = broker.result_backend
        is_outage = any_of(outages_of(backend), fullness_of(backend))
        wire = wire_of(broker)
        if wire is None:  # refused when the run connects
            return {}
        folder = folder_of(session)
        taken = {key for n in spec.nodes for key in n.binding.keys if key not in n.map_over}
        inputs = {key: value for key, value in spec.inputs.items() if key in taken}
        return await store_large_inputs(backend, inputs, limit, run_id, is_outage, wire, folder)

    def _cache(self, spec: RunSpec) -> ValueCache | None:
        if all(options.cache is None for options in spec.options.values()):
            return None
        return ValueCache(ResultCache.of(self._cache_store), self._values)


def _kind_of(spec: RunSpec) -> type[Run]:
    """The class of a run, by whether it has mapped nodes, and generators among these."""
    if spec.elements is None:
        return Run
    return GeneratingRun if spec.has_generators else MappedRun
