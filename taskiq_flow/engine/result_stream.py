"""The pairs of a run on their way to its reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from taskiq_flow.journal.writer import RunLog

N = TypeVar("N")


class Pairs(Generic[N]):
    """Nodes with their values, in order of completion. ``log``: has each before it may be read."""

    def __init__(self, log: RunLog[tuple[N, Any]] | None) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._is_over = False
        self._error: BaseException | None = None
        self.unread: deque[tuple[N, Any]] = deque()

    async def more(self) -> bool:
        """Wait until there is something to read, or, with ``False``, nothing to come.

        Raises what ended the run, once all that had arrived before it has been read.
        """
        while not self.unread:
            if self._is_over and not self._held_back:
                if self._error is not None:
                    raise self._error
                return False
            self._reader = self._loop.create_future()
            await self._reader
        return True

    def deliver(self, node: N, value: Any) -> None:
        """Let the reader have a pair, with a log once that has all that was noted so far."""
        if self._log is None:
            self.unread.append((node, value))
        else:
            self._log.hand_over((node, value))

    def release(self, pairs: Sequence[tuple[N, Any]]) -> None:
        """Let the reader have pairs that the log has held back."""
        self.unread.extend(pairs)
        self.wake()

    def drop(self) -> None:
        """Nobody is to read what has not been read."""
        self.unread.clear()
        if self._log is not None:
            self._log.drop_pairs()

    def end(self, error: BaseException | None) -> None:
        """Nothing more will be delivered, because of ``error`` if there is one."""
        self._is_over, self._error = True, error
        self.wake()

    def wake(self) -> None:
        """Have a reader that waits look again."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def __len__(self) -> int:
        return len(self.unread) + self._held_back

    @property
    def _held_back(self) -> int:
        return 0 if self._log is None else self._log.pairs_held
