"""Finds the engines that no longer listen, for example because their process was killed."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

logger = logging.getLogger("taskiq_flow")

ENGINE_PATIENCE = 60.0
"""Seconds after which the tasks of an engine that does not listen any more are dropped."""

GAP = 2.0
"""Seconds without a notice that nobody heard, after which an absence counts anew.

A worker publishes several notices in this time while it has tasks of the engine.
"""

_ANSWER = (0.0, 0.05, 0.2, 0.75)
"""Seconds between looks for a server's word that nobody has heard a notice."""


@dataclass(slots=True)
class _Absence:
    """``since`` and ``until``: loop times of notices that nobody heard; ``notices``: how many."""

    since: float
    until: float
    notices: int = 0


class AbsentEngines:
    """Counts how long nobody has listened on the channels of engines.

    ``drop``: called with a channel when ``ENGINE_PATIENCE`` is over, until the engine ``is_back``.
    """

    def __init__(self, drop: Callable[[str], None]) -> None:
        self._drop = drop
        self._absences: dict[str, _Absence] = {}  # by channel, the latest notice last

    def note(self, channel: str) -> None:
        """Nobody has heard a notice on a channel."""
        now = asyncio.get_running_loop().time()
        absence = self._absences.pop(channel, None) or _Absence(now, now)
        if now - absence.until > GAP:  # it was heard in between, or had no tasks here
            absence.since = now
        absence.until = now
        absence.notices += 1
        self._absences[channel] = absence
        for oldest in tuple(itertools.islice(self._absences, 2)):  # more go than come
            if now - self._absences[oldest].until > ENGINE_PATIENCE:
                del self._absences[oldest]
        if now - absence.since > ENGINE_PATIENCE:
            self._drop(channel)

    async def is_back(self, channel: str, publish: Callable[[], Awaitable[None]]) -> bool:
        """Whether an engine listens again that was only cut off. ``publish``: a notice to it."""
        before = self._notices(channel)
        await publish()
        for pause in _ANSWER:
            if self._notices(channel) != before:
                return False
            await asyncio.sleep(pause)
        logger.warning("an engine listens on %s again; its tasks are executed", channel)
        self._absences.pop(channel, None)
        return True

    def _notices(self, channel: str) -> int:
        absence = self._absences.get(channel)
        return 0 if absence is None else absence.notices
