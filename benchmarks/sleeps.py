"""Three functions in a chain that sleep for log-normal times, and what they have really slept."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

LIMIT = 32
STAGES = 3
SIGMA = 0.5


def seconds_of(chance: random.Random, mean: float) -> float:
    """The seconds of one stage of an item: log-normal, with a deviation of 0.5 (sigma)."""
    return chance.lognormvariate(math.log(mean) - SIGMA**2 / 2, SIGMA)


def drawn(seed: int, items: int, mean: float) -> list[list[float]]:
    """The seconds of each item, by stage."""
    chance = random.Random(seed)
    return [[seconds_of(chance, mean) for _ in range(items)] for _ in range(STAGES)]


def bound(chains: Sequence[float]) -> float:
    """The least seconds that chains, of so many seconds each, could have taken together."""
    return max(sum(chains) / LIMIT, *chains)


@dataclass(frozen=True, slots=True)
class Taken:
    """The seconds of a whole, and those to its first finished item, with which one that is."""

    seconds: float
    first_seconds: float
    first: int


@dataclass
class Sleeps:
    """The functions, in one process. ``seconds``: by stage and item."""

    seconds: list[list[float]]
    slept: dict[tuple[int, int], float] = field(default_factory=dict)
    first_end: tuple[float, int] = (math.inf, 0)
    """When the first item was through, on the clock of ``time.perf_counter``, and which it was."""

    def function(self, number: int) -> Callable[[int], int]:
        """A stage as a function that sleeps in its thread."""

        def stage(item: int) -> int:
            start = time.perf_counter()
            time.sleep(self.seconds[number][item])
            return self._note(number, item, start)

        return stage

    def coroutine_function(self, number: int) -> Callable[[int], Coroutine[Any, Any, int]]:
        """A stage as a coroutine function."""

        async def stage(item: int) -> int:
            start = time.perf_counter()
            await asyncio.sleep(self.seconds[number][item])
            return self._note(number, item, start)

        return stage

    def chain(self, item: int) -> float:
        """What the stages of one item have slept."""
        return sum(self.slept[number, item] for number in range(STAGES))

    @property
    def bound(self) -> float:
        """The least time that the stages could have taken together."""
        return bound([self.chain(item) for item in range(len(self.seconds[0]))])

    def taken(self, start: float) -> Taken:
        """What a run took that began at ``start`` and has ended now."""
        ended, item = self.first_end
        return Taken(time.perf_counter() - start, ended - start, item)

    def _note(self, number: int, item: int, start: float) -> int:
        now = time.perf_counter()
        self.slept[number, item] = now - start
        if number == STAGES - 1:
            self.first_end = min(self.first_end, (now, item))
        return item
