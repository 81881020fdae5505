"""Runs a graph for a command: begins it or goes on with it, and cancels it on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from taskiq import AsyncBroker

from taskiq_flow.cli.exits import Code, CommandError, code_of, report
from taskiq_flow.cli.flows import Flow, broker_at, broker_of
from taskiq_flow.cli.output import Results, say
from taskiq_flow.cli.signals import Signals
from taskiq_flow.engine.run_spec import OnError
from taskiq_flow.engine.started import started
from taskiq_flow.errors import RunCancelledError, RunError, RunNotFoundError, describe
from taskiq_flow.events import Event
from taskiq_flow.execution_engine import ExecutionEngine
from taskiq_flow.journal import Journal, RunReader
from taskiq_flow.listeners.progress import Progress
from taskiq_flow.transport.systems import outages_of, without_secrets
from taskiq_flow.values.handle import ResultHandle

Begin = Callable[[ExecutionEngine], AsyncGenerator[tuple[str, Any], None]]
"""Begins a run, or goes on with one."""

STARTUP_TIMEOUT = 20.0
"""Seconds that a broker is given to connect with its server."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the command line says of the engine. ``None``: as the flow says, or as usual."""

    broker: str | None = None
    journal: str | None = None
    max_parallel: int | None = None
    on_error: OnError | None = None
    timeout: float | None = None
    tags: Sequence[str] = ()

    def engine(self, flow: Flow, *listeners: Any) -> ExecutionEngine:
        """The engine, whose listeners these are as well."""
        options: dict[str, Any] = {"dag": flow.dag, **flow.options}
        if flow.dag.name is None:  # in lists of runs, it is called as here
            flow.dag.name = flow.where
        options["listeners"] = (*options.get("listeners", ()), *listeners)
        if self.broker is not None:
            options["broker"] = broker_at(self.broker)
        elif "broker" not in options:
            options["broker"] = broker_of(flow.dag)
        given = {
            "journal": self.journal,
            "max_parallel": self.max_parallel,
            "on_error": self.on_error,
            "run_timeout": self.timeout,
        }
        options |= {name: value for name, value in given.items() if value is not None}
        options["tags"] = (*options.get("tags", ()), *self.tags)
        try:
            return ExecutionEngine(**options)
        except (TypeError, ValueError) as error:
            raise CommandError(str(error)) from None


async def run_to_its_end(
    flow: Flow,
    options: EngineOptions,
    begin: Begin,
    results: Results,
    *,
    new_run_id: str | None = None,
    quiet: bool,
) -> Code:
    """Write the results of a run until it ends, or until a signal has cancelled it.

    ``new_run_id``: the name of the run, if it is a new one that has a name.
    """
    run = _RunId()
    shown = () if quiet else (Progress(journal=options.journal or flow.options.get("journal")),)
    engine = options.engine(flow, run, *shown)
    journal, signals = engine.options["journal"], Signals()
    code = Code.COMPLETED
    try:
        with signals:
            if journal is not None and new_run_id is not None:
                await _check_is_new(journal, new_run_id, flow, options)
            async with connected(engine.options["broker"]), aclosing(begin(engine)) as pairs:
                signals.stop = engine.cancel
                async for name, result in pairs:
                    is_handle = isinstance(result, ResultHandle)
                    results.write(name, await result.get() if is_handle else result)
    except RunCancelledError as error:
        code = signals.code or Code.CANCELLED
        say(f"run {run.id!r} was cancelled" if run.id else str(error))
    except asyncio.CancelledError:
        if signals.code is None:
            raise
        code = signals.code
        say("cancelled before the run began")
    except RunError as error:
        report(error)
        code = code_of(error) or Code.NODE_FAILED
    finally:
        if journal is not None:
            await journal.aclose()
    if code is Code.COMPLETED:
        return Code.NODE_FAILED if results.failed else code
    if run.id:
        how = f"resume it with: {_resume_command(run.id, flow, options)}"
        say(how if journal is not None else "it cannot be resumed; with --journal runs.db it could")
    return code


async def _check_is_new(journal: Journal, run_id: str, flow: Flow, options: EngineOptions) -> None:
    with contextlib.suppress(RunNotFoundError):
        await RunReader(journal).run(run_id)
        raise CommandError(
            f"run {run_id!r} is in the journal already; continue it with "
            f"{_resume_command(run_id, flow, options)}, or give the new run another --run-id",
            Code.REFUSED,
        )


def _resume_command(run_id: str, flow: Flow, options: EngineOptions) -> str:
    """The command that continues a run with the options that this command was given."""
    given = {
        "--broker": options.broker,
        "--journal": options.journal and without_secrets(options.journal),
        "--max-parallel": options.max_parallel,
        "--on-error": options.on_error,
        "--timeout": options.timeout and f"{options.timeout:g}",
    }
    words = [str(word) for pair in given.items() if pair[1] is not None for word in pair]
    return shlex.join(["taskiq-flow", "resume", run_id, flow.where, *words])


class _RunId:
    """A listener that notes the id of a run that has begun."""

    def __init__(self) -> None:
        self.id = ""

    def on_event(self, event: Event) -> None:
        """Take the id of any event."""
        self.id = event.run_id


@asynccontextmanager
async def connected(broker: AsyncBroker) -> AsyncIterator[None]:
    """Start a broker for a run. Raises ``CommandError`` if its server cannot be reached."""
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(STARTUP_TIMEOUT):
                await stack.enter_async_context(started(broker))
        except Exception as error:
            is_outage = outages_of(broker, broker.result_backend)
            if not (isinstance(error, TimeoutError) or is_outage(error)):
                raise
            raise CommandError(
                f"the server of {type(broker).__name__} cannot be reached: {describe(error)}; "
                "start it, or correct the broker's address",
                Code.UNREACHABLE,
            ) from error
        yield
