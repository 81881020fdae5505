"""How a command ends: its exit code, and what it says about an error."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import errno
import os
import re
import sys
from collections.abc import Coroutine, Iterator
from enum import IntEnum
from typing import NoReturn

from taskiq_flow import errors
from taskiq_flow.cli.output import OutputError, close_quietly, keep_results_apart, not_written, say
from taskiq_flow.listeners.texts import failed_elements
from taskiq_flow.previews import of_the_users, shown_error, without_python
from taskiq_flow.views.run_view import RunView

MOST_TRACEBACKS = 3
"""Failed nodes of which the traceback is shown. The others are only named."""


GRACE = 1.0
"""Seconds that asyncio tasks are given to end which the command has left."""


class Code(IntEnum):
    """The exit codes. Those from 124 on are the ones that shells give to such ends."""

    COMPLETED = 0
    NODE_FAILED = 1
    USAGE = 2
    REFUSED = 3
    NO_SUCH_RUN = 4
    UNREACHABLE = 5
    TIMEOUT = 124
    HUNG_UP = 129
    CANCELLED = 130
    CLOSED_PIPE = 141
    TERMINATED = 143


class CommandError(Exception):
    """A command cannot be done. ``code``: what it exits with."""

    def __init__(self, message: str, code: Code = Code.USAGE) -> None:
        super().__init__(message)
        self.code = code


_CODES: tuple[tuple[type[Exception], Code], ...] = (
    (errors.RunNotFoundError, Code.NO_SUCH_RUN),
    (errors.RunTimeoutError, Code.TIMEOUT),
    (errors.RunCancelledError, Code.CANCELLED),
    (errors.NodeFailedError, Code.NODE_FAILED),
    (errors.RunFailedError, Code.NODE_FAILED),
    (errors.RunLockedError, Code.UNREACHABLE),
    (errors.JournalError, Code.UNREACHABLE),
    # The node errors among these are of inputs; those of a node that failed are causes.
    (errors.GraphError, Code.REFUSED),
    (errors.InputError, Code.REFUSED),
    (errors.ConfigurationError, Code.REFUSED),
    (errors.PipelineError, Code.REFUSED),
    (errors.NodeError, Code.REFUSED),
    (OutputError, Code.UNREACHABLE),
)


def code_of(error: Exception) -> Code | None:
    """The exit code for an error; ``None`` for one that nobody expects."""
    if isinstance(error, CommandError):
        return error.code
    failures = error.failures.values() if isinstance(error, errors.RunError) else ()
    if any(isinstance(failure, errors.ServerUnreachableError) for failure in failures):
        return Code.UNREACHABLE
    return next((code for kind, code in _CODES if isinstance(error, kind)), None)


_AWAY = errors.ServerUnreachableError.__name__


def _errors_of(view: RunView) -> Iterator[dict[str, str]]:
    for node in view.nodes.values():
        yield from (each.error for each in (node, *failed_elements(node)) if each.error)


def code_of_run(view: RunView) -> Code:
    """The exit code of a run that another process executes, or has executed."""
    ended_with = {kind.__name__: code for kind, code in _CODES if issubclass(kind, errors.RunError)}
    if view.status == "failed":
        kind = view.error["type"] if view.error else ""
        if any(error["type"] == _AWAY for error in _errors_of(view)):
            return Code.UNREACHABLE
        return ended_with.get(kind, Code.NODE_FAILED)
    if view.status == "completed":
        return Code.NODE_FAILED if view.counts.get("failed") else Code.COMPLETED
    return Code.CANCELLED if view.status == "cancelled" else Code.UNREACHABLE


def exit_with(command: Coroutine[object, object, Code]) -> NoReturn:
    """Execute a command on an event loop of its own, and exit with its code."""
    keep_results_apart()
    try:
        code = asyncio.run(_to_its_end(command))
    except KeyboardInterrupt:
        code = Code.CANCELLED
    leave(code)


async def _to_its_end(command: Coroutine[object, object, Code]) -> Code:
    try:
        code = await command
    except BrokenPipeError:
        code = Code.CLOSED_PIPE
    except Exception as error:
        found = code_of(error)
        if found is None:
            raise
        code = found
        report(error)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    going_on = others
    with contextlib.suppress(asyncio.CancelledError):  # by Ctrl-C
        going_on = (await asyncio.wait(others, timeout=GRACE))[1] if others else set()
    if going_on:
        leave(code, at_once=True)  # asyncio would wait for them without end
    return code


@contextlib.contextmanager
def texts_of_typer() -> Iterator[None]:
    """Exit as commands do where help and the like, which typer writes, cannot be written."""
    stdout = sys.stdout
    try:
        yield
    except SystemExit:
        if sys.stdout is stdout:
            raise
        sys.stdout = stdout  # typer has replaced it, as its pipe is closed
        leave(Code.CLOSED_PIPE)
    except BrokenPipeError:  # of standard error, where it says what is wrong
        leave(Code.USAGE)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        say(f"error: {not_written(error)}", style="bold red")
        leave(Code.UNREACHABLE)


def report(error: Exception) -> None:
    """Say what went wrong. Of the user's own exceptions, show where they were raised."""
    say(f"error: {_message(error)}", style="bold red")
    failed = error.failures if isinstance(error, errors.RunError) else {}
    failures = {
        name: failure
        for name, failure in failed.items()
        if not isinstance(failure, errors.ServerUnreachableError)  # raised in no code of the user's
    }
    for name, failure in list(failures.items())[:MOST_TRACEBACKS]:
        has_frames = failure.__traceback__ is not None or hasattr(failure, "__notes__")
        if has_frames or failure.__cause__ is not None:
            heading = f"\nnode {name!r}:" if len(failures) > 1 else ""
            shown = shown_error(failure)
            if shown is not None:
                say(f"{heading}\n{of_the_users(shown['traceback'])}", style="dim")


_IN_PYTHON = re.compile(r"engine\.resume\([^)]*\) and (taskiq-flow resume .*)wait")

_AS_INPUT = re.compile(r"; pass it as an input, or(?= add a node with output='([^']*)')")


def _message(error: Exception) -> str:
    """What an error says to somebody at a command line."""
    if isinstance(error, errors.RunNotFoundError):
        return f"the journal has no run {error.run_id!r}; taskiq-flow runs lists those that it has"
    if isinstance(error, errors.GraphChangedError):
        return str(error).replace("allow_changed=True", "--allow-changed")
    if isinstance(error, errors.RunLockedError):
        return _IN_PYTHON.sub(r"\1waits", str(error))
    if isinstance(error, errors.MissingInputError):
        return _AS_INPUT.sub(r"; give it with --input \1=..., or", str(error))
    return without_python(str(error))


def leave(code: Code, *, at_once: bool = False) -> NoReturn:
    """Exit. Threads in which sync tasks of a stopped run go on are not waited for.

    ``at_once``: nor is anything else.
    """
    try:
        if not close_quietly():
            code = Code.CLOSED_PIPE
    except RuntimeError:  # a signal came while it was written
        at_once = True
    if code < Code.TIMEOUT and not at_once:
        sys.exit(code)
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()  # noqa: SLF001 - what else would be skipped by ``_exit``
    os._exit(code)
