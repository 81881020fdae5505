"""The results of a run on their way to its reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from taskiq_flow.journal.writer import LogWriter


class ResultStream:
    """Nodes with their values, in order of completion.

    ``log``: where the run has a journal, that has to hold each result before it is read.
    """

    def __init__(self, log: LogWriter[tuple[Any, Any]] | None) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._is_over = False
        self._error: BaseException | None = None
        self._on_end: Callable[[BaseException | None], None] | None = None
        self.unread: deque[tuple[Any, Any]] = deque()
        self.read_ahead = 0
        """Results that the reader has taken for somebody who has not asked for them yet."""
        self.put: Callable[[tuple[Any, Any]], object] = self.unread.append
        """``deliver``, of a pair of a run that is not over."""
        if log is not None:
            self.put = log.deliver_when_durable

    async def more(self) -> bool:
        """Wait until there is something to read, or, with ``False``, nothing to come.

        Raises what ended the run, once all that had arrived before it has been read.
        """
        while not self.unread:
            if self._is_over and not self.held_back:
                if self._error is not None:
                    raise self._error
                return False
            self._reader = self._loop.create_future()
            await self._reader
        return True

    def deliver(self, node: Any, value: Any) -> None:
        """Give the reader a result, unless the run is over.

        With a log, once that has written all that was noted so far.
        """
        if not self._is_over:
            self.put((node, value))

    def release(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Give the reader results that the log has held back."""
        self.unread.extend(results)
        self.wake()

    def drop(self) -> None:
        """Drop all results that have not been read."""
        self.unread.clear()
        self.drop_held_back()

    def drop_held_back(self) -> None:
        """Drop the results that the log has not written yet."""
        if self._log is not None:
            self._log.discard_pairs()

    def end(self, error: BaseException | None) -> None:
        """Nothing more will be delivered, because of ``error`` if there is one."""
        self._is_over, self._error = True, error
        self.wake()
        if self._on_end is not None:
            self._on_end(error)

    def when_over(self, call: Callable[[BaseException | None], None]) -> None:
        """Call a function when the run is over, with its error, and whenever that is replaced."""
        self._on_end = call
        if self._is_over:
            call(self._error)

    def wake(self) -> None:
        """Wake the reader, if it waits."""
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    def __len__(self) -> int:
        # As ``held_back`` without its call: the room of elements asks once for each of them.
        held_back = 0 if self._log is None else self._log.undelivered
        return len(self.unread) + self.read_ahead + held_back

    @property
    def held_back(self) -> int:
        """Results that the log has not written yet."""
        return 0 if self._log is None else self._log.undelivered
