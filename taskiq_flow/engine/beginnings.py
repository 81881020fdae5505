"""The ways in which a run of one engine begins: anew, continued, run again, for many inputs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

from taskiq import AsyncBroker

from taskiq_flow.dataflow.inputs import as_inputs
from taskiq_flow.dataflow.many import SOURCE
from taskiq_flow.dataflow.options import Seconds, in_seconds
from taskiq_flow.dataflow.rows import Source
from taskiq_flow.engine.arguments import (
    check_items,
    check_resume,
    checked_id,
    id_or_new,
    listed,
    wanted_outputs,
)
from taskiq_flow.engine.connection import check_readable
from taskiq_flow.engine.listeners import Listeners
from taskiq_flow.engine.many import HeldBack
from taskiq_flow.engine.planning import Planner
from taskiq_flow.engine.resuming import Resumer
from taskiq_flow.engine.run import Run
from taskiq_flow.engine.run_in_progress import Begin
from taskiq_flow.engine.run_spec import Items, RunSpec
from taskiq_flow.engine.starting import Starter
from taskiq_flow.errors import RunNotFoundError
from taskiq_flow.journal.protocol import LEASE_WAIT
from taskiq_flow.journal.runs import JournaledRuns
from taskiq_flow.journal.writer import LogWriter
from taskiq_flow.values.stored import StoredValues


class Beginning(NamedTuple):
    """A run that is to begin once it is read or held.

    ``items``: whether elements are yielded. ``sources``: called where the run's user holds it, for
    the inputs that it reads while it goes on. Raises what can be seen without asking the broker or
    the journal.
    """

    run_id: str
    begin: Begin
    items: Items
    sources: Callable[[], Mapping[str, Source]]


class Beginnings:
    """Makes the beginning of each kind of run."""

    def __init__(
        self,
        broker: AsyncBroker,
        planner: Planner,
        starter: Starter,
        runs: JournaledRuns,
        values: StoredValues,
    ) -> None:
        self._broker = broker
        self._planner = planner
        self._starter = starter
        self._runs = runs
        self._values = values
        self._resumer = Resumer(broker, planner, starter, runs, values)

    def begun(
        self,
        inputs: Mapping[str, Any] | None,
        outputs: Iterable[str] | None,
        run_id: str | None,
        *,
        resume: bool,
        replay: bool,
        items: Items,
    ) -> Beginning:
        """A run of the graph. With ``resume`` it is continued if the journal has it."""
        wanted, name = wanted_outputs(outputs), id_or_new("run_id", run_id)
        check_resume(run_id, resume=resume, replay=replay)
        check_items(items)
        given = None if inputs is None else as_inputs(inputs)

        @cache
        def planned() -> tuple[RunSpec, LogWriter[Any] | None]:
            spec = self._planner.spec(given, wanted, items)
            return spec, self._runs.new_log(name, spec.inputs, wanted)

        async def begin(listeners: Listeners) -> Run:
            if resume:
                with contextlib.suppress(RunNotFoundError):
                    return await self._resumer.resume(
                        listeners,
                        name,
                        replay=replay,
                        passes_over=not replay and items == "only",
                        wait=LEASE_WAIT,  # it may have been killed: nobody else is to tell so
                        inputs=given,
                        outputs=wanted,
                        items=items,
                    )
            is_named = run_id is not None
            return await self._starter.begin(listeners, name, *planned(), is_named=is_named)

        def sources() -> Mapping[str, Source]:
            check_readable(self._broker)
            return planned()[0].sources

        return Beginning(name, begin, items, partial(self._sources, given) if resume else sources)

    def many(
        self,
        name: str,
        source: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        limit: int,
        held: HeldBack,
        outputs: list[str] | None,
        *,
        whole: bool,
        items: bool,
        resume: bool,
        replay: bool,
        allow_changed: bool,
        wait: float,
        is_named: bool,
    ) -> Beginning:
        """A run of the graph for each mapping of a source, ``limit`` at once."""
        sources = {SOURCE: Source(source, limit)}

        async def begin(listeners: Listeners) -> Run:
            planner = self._planner.of_many(outputs, held, shows_failures=whole)
            runs = self._runs.of_many(planner.dag)
            if resume:
                resumer = Resumer(self._broker, planner, self._starter, runs, self._values)
                with contextlib.suppress(RunNotFoundError):
                    return await resumer.resume(
                        listeners,
                        name,
                        replay=replay or whole,  # the results of an input come together
                        passes_over=not replay,
                        allow_changed=allow_changed,
                        wait=wait,
                        inputs=sources,
                        outputs=outputs,
                        items=items,
                    )
            spec = planner.spec(sources, outputs, items)
            log = runs.new_log(name, spec.inputs, outputs)
            return await self._starter.begin(listeners, name, spec, log, is_named=is_named)

        return Beginning(name, begin, items, lambda: sources)

    def resumed(
        self,
        run_id: str,
        inputs: Mapping[str, Any] | None,
        *,
        replay: bool,
        allow_changed: bool,
        wait: Seconds,
        items: Items,
    ) -> Beginning:
        """A run of the journal that is continued."""
        checked_id("run_id", run_id)
        check_items(items)
        given = as_inputs(inputs)
        begin = partial(
            self._resumer.resume,
            run_id=run_id,
            replay=replay,
            passes_over=not replay and items == "only",
            allow_changed=allow_changed,
            wait=in_seconds("wait", wait),
            sources=given,
            items=items,
        )
        return Beginning(run_id, begin, items, partial(self._sources, given))

    def rerun(
        self,
        run_id: str,
        from_: Iterable[str],
        *,
        replay: bool,
        allow_changed: bool,
        new_run_id: str | None,
        inputs: Mapping[str, Any] | None,
        items: Items,
    ) -> Beginning:
        """A run that runs nodes of another one of the journal again."""
        given, asked = as_inputs(inputs), listed("from_", from_)
        checked_id("run_id", run_id)
        check_items(items)
        name = id_or_new("new_run_id", new_run_id)
        begin = partial(
            self._resumer.rerun,
            run_id=run_id,
            new_run_id=name,
            from_=asked,
            replay=replay,
            allow_changed=allow_changed,
            is_named=new_run_id is not None,
            sources=given,
            items=items,
        )
        return Beginning(name, begin, items, partial(self._sources, given))

    def _sources(self, inputs: Mapping[str, Any] | None) -> Mapping[str, Source]:
        """The sources of a run of the journal. ``ConfigurationError`` if none can be continued."""
        check_readable(self._broker)
        _ = self._runs.journal
        return self._planner.sources(inputs or {})
