"""Shortens what taskiq's receiver logs when the task of an engine fails."""

from __future__ import annotations

import inspect
import logging
import os
import re
import sysconfig
import traceback
from pathlib import Path

import anyio

from taskiq_flow.errors import describe
from taskiq_flow.worker.execution import Execution, current

receiver_logger = logging.getLogger("taskiq.receiver.receiver")

_NOT_THE_USERS = (
    f"{sysconfig.get_path('stdlib')}{os.sep}",
    f"{Path(__file__).parents[1]}{os.sep}",
    "<frozen ",
)

_INSTALLED = re.compile(r".*[/\\](?:site|dist)-packages[/\\][^/\\]+", re.DOTALL)
"""The path of an installed package, with what comes before it."""

_LIMITS = inspect.unwrap(anyio.fail_after).__code__.co_filename
"""The file that raises the error of a task that taskiq ends at its time limit."""


class _ErrorsOfTasks(logging.Filter):
    """Replaces the traceback that taskiq logs at ERROR when a task raises by one line.

    The engine may retry the task, and reports the final error itself, so the line is a WARNING.
    For a task that its engine has cancelled it is DEBUG. If DEBUG is enabled for the logger, the
    traceback is logged as well.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        execution = current.get()
        if execution is None or execution.is_reported or record.levelno < logging.WARNING:
            return True
        error = record.exc_info[1] if record.exc_info else None
        if execution.is_revoked:
            record.levelno = logging.DEBUG
        elif error is not None:
            record.levelno = logging.WARNING
        record.levelname = logging.getLevelName(record.levelno)
        if error is not None:
            record.msg, record.args = "task %r %s", (execution.task_id, _how(error, execution))
            if not receiver_logger.isEnabledFor(logging.DEBUG):
                record.exc_info = None
        return receiver_logger.isEnabledFor(record.levelno)


def _how(error: BaseException, execution: Execution) -> str:
    """How a task has ended: with an error, and where in the user's code it was raised."""
    place = _place(error, execution)
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    if execution.timeout is not None and place is None and last.f_code.co_filename == _LIMITS:
        return f"did not end within {float(execution.timeout):g} s, its timeout"
    return f"ended with {describe(error)}{f' ({place})' if place else ''}"


def _place(error: BaseException, execution: Execution) -> str | None:
    """The last line of the user's own code in a traceback. ``None`` if it has none.

    An installed package is the user's own if it has the task's function.
    """
    code = getattr(inspect.unwrap(execution.function or _place), "__code__", None)
    home = None if code is None else _INSTALLED.match(code.co_filename)
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        installed = _INSTALLED.match(file)
        if installed is None:
            is_own = not file.startswith(_NOT_THE_USERS)
        else:
            is_own = home is not None and installed[0] == home[0]
        if is_own:
            place = f"{file}:{line}"
    return place


_filter = _ErrorsOfTasks()


def shorten_errors_of_tasks() -> None:
    """Add the filter to taskiq's logger, for all workers of this process."""
    receiver_logger.addFilter(_filter)
