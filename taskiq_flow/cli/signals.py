"""What signals do: SIGINT, SIGTERM and SIGHUP, which end a process, and Ctrl-Z."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Self

from taskiq_flow.cli.exits import Code, leave

_CODES: dict[int, Code] = {signal.SIGINT: Code.CANCELLED, signal.SIGTERM: Code.TERMINATED}
if hasattr(signal, "SIGHUP"):
    _CODES[signal.SIGHUP] = Code.HUNG_UP

_SHOW_CURSOR = b"\x1b[?25h"

_Handler = Callable[[int, object], object]


def heed_signals() -> None:
    """Exit at a signal at once, also while a module is imported, which asyncio would wait for.

    A command that has something to stop first uses ``Signals`` for that. At Ctrl-Z, the shell gets
    back the cursor, which progress hides.
    """
    _handle(lambda number, _: leave(_CODES[number]))
    is_job = hasattr(signal, "SIGTSTP") and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL
    if is_job and sys.stderr is not None and sys.stderr.isatty():
        signal.signal(signal.SIGTSTP, _suspend)


def _suspend(number: int, _frame: object) -> None:
    os.write(sys.stderr.fileno(), _SHOW_CURSOR)  # not by the stream, which may be within a write
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)  # returns when the process is continued
    signal.signal(number, _suspend)


class Signals:
    """Calls ``stop`` at the first signal; the next one ends the process at once.

    ``code``: the exit code of the signal that came. Without ``stop``, the task that entered the
    block is cancelled. A signal that is ignored, as below ``nohup``, stays so.
    """

    def __init__(self) -> None:
        self.code: Code | None = None
        self.stop: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        # Not those of the loop: a task that blocks it would keep the second one from its end.
        self._before = _handle(self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, _frame: object) -> None:
        if self.code is not None:
            leave(self.code, at_once=True)
        self.code = _CODES[number]
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self.stop is not None:
            self.stop()
        elif self._task is not None:
            self._task.cancel()


def _handle(handler: _Handler) -> dict[int, Any]:
    """Have the signals handled that are not ignored. Returns what has handled them before."""
    taken = [number for number in _CODES if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in taken}
