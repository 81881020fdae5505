"""What the signals do that end a process: SIGINT, SIGTERM, and SIGHUP of a closed terminal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any, Self

from taskiq_flow.cli.exits import Code, leave

_CODES: dict[int, Code] = {signal.SIGINT: Code.CANCELLED, signal.SIGTERM: Code.TERMINATED}
if hasattr(signal, "SIGHUP"):
    _CODES[signal.SIGHUP] = Code.HUNG_UP

_Handler = Callable[[int, object], object]


def leave_at_signals() -> None:
    """Exit at a signal at once, also while a module is imported, which asyncio would wait for.

    A command that has something to stop first uses ``Signals`` for that.
    """
    _handle(lambda number, _: leave(_CODES[number]))


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
