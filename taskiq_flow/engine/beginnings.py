"""The ways in which a run of one engine begins: anew, continued, run again, for many inputs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, Iterable, Mapping
from functools import partial
from typing import Any

from taskiq import AsyncBroker

from taskiq_flow.dataflow.inputs import as_inputs
from taskiq_flow.dataflow.many import SOURCE
from taskiq_flow.dataflow.options import Seconds, in_seconds
from taskiq_flow.dataflow.rows import Source
from taskiq_flow.engine.arguments import check_items, checked_id, id_or_new, listed
from taskiq_flow.engine.listeners import Listeners
from taskiq_flow.engine.many import HeldBack
from taskiq_flow.engine.planning import Planner
from taskiq_flow.engine.resuming import Resumer
from taskiq_flow.engine.run import Run
from taskiq_flow.engine.run_in_progress import Begin
from taskiq_flow.engine.run_spec import Items
from taskiq_flow.engine.starting import Starter
from taskiq_flow.errors import RunNotFoundError
from taskiq_flow.journal.protocol import LEASE_WAIT
from taskiq_flow.journal.runs import JournaledRuns
from taskiq_flow.values.stored import StoredValues


class Beginnings:
    """Makes, for each kind of run, the function that begins it once it is read or held.

    ``planned``, ``resumed`` and ``rerun`` raise at once what can be seen without the journal.
    """

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
        name: str,
        inputs: Mapping[str, Any] | None,
        outputs: list[str] | None,
        *,
        resume: bool,
        replay: bool,
        items: Items,
        is_named: bool,
    ) -> Begin:
        """A run of the graph. With ``resume`` it is continued if the journal has it."""

        async def begin(listeners: Listeners) -> Run[Any]:
            if resume:
                with contextlib.suppress(RunNotFoundError):
                    return await self._resumer.resume(
                        listeners,
                        name,
                        replay=replay,
                        passes_over=not replay and items == "only",
                        wait=LEASE_WAIT,
                        inputs=inputs,
                        outputs=outputs,
                        items=items,
                    )
            begin_new, _ = self.planned(name, inputs, outputs, items=items, is_named=is_named)
            return await begin_new(listeners)

        return begin

    def planned(
        self,
        name: str,
        inputs: Mapping[str, Any] | None,
        outputs: list[str] | None,
        *,
        items: Items,
        is_named: bool,
    ) -> tuple[Begin, Mapping[str, Source]]:
        """A run of the graph that is planned at once, and the inputs that it maps over."""
        spec = self._planner.spec(inputs, outputs, items)
        log = self._runs.new_log(name, spec.inputs, outputs)
        begin = partial(self._starter.begin, run_id=name, spec=spec, log=log, is_named=is_named)
        return begin, spec.sources

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
    ) -> Begin:
        """A run of the graph for each mapping of a source, ``limit`` at once."""

        async def begin(listeners: Listeners) -> Run[Any]:
            planner = self._planner.of_many(outputs, held, shows_failures=whole)
            runs = self._runs.of_many(planner.dag)
            sources = {SOURCE: Source(source, limit)}
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

        return begin

    def resumed(
        self,
        run_id: str,
        *,
        replay: bool,
        allow_changed: bool,
        wait: Seconds,
        inputs: Mapping[str, Any] | None,
        items: Items,
    ) -> Begin:
        """A run of the journal that is continued."""
        checked_id("run_id", run_id)
        check_items(items)
        return partial(
            self._resumer.resume,
            run_id=run_id,
            replay=replay,
            passes_over=not replay and items == "only",
            allow_changed=allow_changed,
            wait=in_seconds("wait", wait),
            sources=as_inputs(inputs),
            items=items,
        )

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
    ) -> tuple[str, Begin]:
        """The name of a run that runs nodes of another again, and what begins it."""
        asked = listed("from_", from_)
        checked_id("run_id", run_id)
        check_items(items)
        name = id_or_new("new_run_id", new_run_id)
        return name, partial(
            self._resumer.rerun,
            run_id=run_id,
            new_run_id=name,
            from_=asked,
            replay=replay,
            allow_changed=allow_changed,
            is_named=new_run_id is not None,
            sources=as_inputs(inputs),
            items=items,
        )
