"""Runs that the application begins. Each has one task, which this file cancels and waits for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.exceptions import HTTPException

from taskiq_flow.errors import (
    JournalError,
    RunCancelledError,
    RunError,
    RunLockedError,
    RunNotFoundError,
    TaskiqFlowError,
    describe,
)
from taskiq_flow.events import Event
from taskiq_flow.execution_engine import ExecutionEngine
from taskiq_flow.journal.history import begun_with, was_begun_otherwise
from taskiq_flow.journal.reader import RunReader
from taskiq_flow.journal.summary import RunSummary
from taskiq_flow.previews import printable

logger = logging.getLogger("taskiq_flow")

MOST_RUNS = 64
"""Runs of the application that are in progress at once."""

_WRITTEN_SECONDS = 2.0

Begin = Callable[[ExecutionEngine], AsyncGenerator[tuple[str, Any], None]]
"""Begins a run, or goes on with one."""


class Runner:
    """Begins and continues runs. ``engines``: those that do, by the names of their graphs.

    A run goes on whether its client stays or not. It is written to the journal that ``reader``
    reads, with the error if it fails. It ends with the application, and can be resumed then.
    """

    def __init__(self, reader: RunReader, engines: Mapping[str, ExecutionEngine]) -> None:
        self.engines = engines
        self._reader = reader
        self._runs: dict[asyncio.Task[None], ExecutionEngine] = {}
        self._is_closed = False

    def graph_of(self, run: RunSummary) -> str | None:
        """The name of the graph whose engine can go on with a run, if there is one.

        A run whose graph has no name belongs to the only graph here that has none.
        """
        if not run.is_resumable:
            return None
        found = [name for name, engine in self.engines.items() if _dag_name(engine) == run.name]
        return found[0] if len(found) == 1 else None

    def engine(self, graph: str | None) -> ExecutionEngine:
        """The engine of a graph, or the only one. Raises ``HTTPException``."""
        if graph is None and len(self.engines) == 1:
            return next(iter(self.engines.values()))
        if graph is None or graph not in self.engines:
            known = ", ".join(map(repr, self.engines)) or "none"
            which = "no graph is named" if graph is None else f"there is no graph {graph!r}"
            raise HTTPException(422, f"{which}; the application can run: {known}")
        return self.engines[graph]

    async def engine_of(self, run_id: str) -> ExecutionEngine:
        """The engine that can go on with a run, as it was begun: with its ``on_error``.

        Raises ``HTTPException``, ``RunNotFoundError``.
        """
        run = await self._reader.run(run_id)
        if not run.is_resumable:
            raise HTTPException(409, f"run {run_id!r} was recorded without its values")
        if (graph := self.graph_of(run)) is None:
            known = ", ".join(map(repr, self.engines)) or "none"
            raise HTTPException(
                422,
                f"run {run_id!r} is of graph {run.name!r}; the application can run: {known}",
            )
        engine = self.engines[graph]
        begun = await begun_with(self._reader.journal, run_id)
        if was_begun_otherwise(begun, engine.options["on_error"]):
            return ExecutionEngine(**engine.options | {"on_error": begun})
        return engine

    async def begin(
        self,
        engine: ExecutionEngine,
        begin: Begin,
        new_id: str | None = None,
        tags: Iterable[str] = (),
    ) -> str:
        """Begin a run, and return its id once it is in the journal. ``new_id``: given to it.

        ``tags``: of this run, beside those of the engine.

        Raises ``HTTPException`` if the run does not begin; nothing was sent then.
        """
        if self._is_closed:
            raise HTTPException(503, "the application stops, and begins no runs")
        if len(self._runs) >= MOST_RUNS:
            raise HTTPException(429, f"{MOST_RUNS} runs are in progress here; wait for one to end")
        beginning = _Beginning()
        listeners = (*engine.options["listeners"], beginning)
        own = {"listeners": listeners, "journal": self._reader.journal}
        try:
            tags = (*engine.options["tags"], *tags)
            one = ExecutionEngine(**engine.options | own | {"tags": tags})
            reading = _run_to_its_end(begin(one), beginning)
            task = asyncio.get_running_loop().create_task(reading)
            self._runs[task] = one
            task.add_done_callback(self._runs.pop)
            run_id = await beginning.run_id
            await self._written(run_id, beginning.seq, task)
        except RunLockedError as error:
            raise HTTPException(409, str(error)) from error
        except RunNotFoundError:
            raise
        except RunCancelledError as error:
            raise HTTPException(503, str(error)) from error
        except JournalError as error:
            if new_id is None or not await self._exists(new_id):
                raise
            raise HTTPException(409, f"there is a run {new_id!r} already") from error
        except (TaskiqFlowError, TypeError, ValueError, RecursionError) as error:
            raise HTTPException(422, f"{type(error).__name__}: {error}") from error
        except Exception as error:  # whatever the broker's client raises
            raise HTTPException(503, f"the run has not begun: {describe(error)}") from error
        return run_id

    async def _written(self, run_id: str, seq: int, task: asyncio.Task[None]) -> None:
        """Wait until the journal has the first event, so that whoever looks sees the run begun."""
        with contextlib.suppress(TimeoutError, JournalError, RunNotFoundError):
            async with asyncio.timeout(_WRITTEN_SECONDS):
                while not task.done() and (await self._reader.run(run_id)).seq < seq:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0.01)

    async def _exists(self, run_id: str) -> bool:
        try:
            await self._reader.run(run_id)
        except RunNotFoundError:
            return False
        return True

    async def close(self) -> None:
        """Cancel all runs, and wait until nothing of them is left."""
        self._is_closed = True
        await asyncio.sleep(0)  # those that were made at last are begun, and so can be cancelled
        for engine in self._runs.values():
            engine.cancel()
        if self._runs:
            await asyncio.wait([*self._runs])


class _Beginning:
    """A listener that tells when the only run of an engine has begun: its id, and the event."""

    def __init__(self) -> None:
        self.seq = 0
        self.run_id: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_event(self, event: Event) -> None:
        if not self.run_id.done():
            self.seq = event.seq
            self.run_id.set_result(event.run_id)


async def _run_to_its_end(
    pairs: AsyncGenerator[tuple[str, Any], None], beginning: _Beginning
) -> None:
    """Drop the results, which the journal has. Tell what is raised before the run has begun."""
    run_id = beginning.run_id
    try:
        async with aclosing(pairs):
            async for _ in pairs:
                pass
    except Exception as error:
        if not run_id.done():
            run_id.set_exception(error)
        elif not isinstance(error, RunError) or isinstance(error, JournalError):
            name = "" if run_id.cancelled() else run_id.result()
            logger.exception("run %r, which was begun over HTTP, cannot go on", name)
    finally:
        run_id.cancel()


def _dag_name(engine: ExecutionEngine) -> str | None:
    """The name of an engine's graph as summaries of runs have it."""
    name: str | None = engine.options["dag"].name
    return None if name is None else printable(name)
