"""How the execution of a task has ended, for the log."""

from __future__ import annotations

import inspect
import os
import re
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

from taskiq_flow.errors import describe

_NOT_THE_USERS = (
    f"{sysconfig.get_path('stdlib')}{os.sep}",
    f"{Path(__file__).parents[1]}{os.sep}",
    "<frozen ",
)

_INSTALLED = re.compile(r".*[/\\](?:site|dist)-packages[/\\][^/\\]+", re.DOTALL)
"""The path of an installed package, with what comes before it."""

_LIMITS = inspect.unwrap(anyio.fail_after).__code__.co_filename
"""The file that raises the error of a task that taskiq ends at its time limit."""


def how_ended(
    error: BaseException, function: Callable[..., Any] | None, timeout: float | str | None
) -> str:
    """How a task has ended: with an error, and where in the user's code it was raised.

    ``function``: the task's, ``None`` if it was not called. ``timeout``: its label.
    """
    place = _place(error, function)
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    if timeout is not None and place is None and last.f_code.co_filename == _LIMITS:
        return f"did not end within {float(timeout):g} s, its timeout"
    return f"ended with {describe(error)}{f' ({place})' if place else ''}"


def _place(error: BaseException, function: Callable[..., Any] | None) -> str | None:
    """The last line of the user's own code in a traceback. ``None`` if it has none.

    An installed package is the user's own if it has the task's function.
    """
    code = getattr(inspect.unwrap(function or _place), "__code__", None)
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
