"""What a system has to do to be measured: run a small tree, and stream what its nodes return."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Step:
    """A node: the name of the one that it waits for, if any, and the seconds that it sleeps."""

    name: str
    parent: str | None = None
    seconds: float = 0.0


Tree = Sequence[Step]
"""Steps, each behind its parent."""

Stream = Callable[[], AsyncIterator[tuple[str, float]]]
"""Starts a run: node and the time of its end, in the order in which the system tells them."""


class Peer(Protocol):
    """One system."""

    title: str
    """Its name and the call that is measured."""

    streams: bool
    """Whether results can be read while the run goes on."""

    has_servers: bool
    """Whether something of it goes on between runs, which others must not be timed beside."""

    async def prepare(self, tree: Tree, stack: AsyncExitStack) -> Stream:
        """Build the graph, and whatever else a user builds once; ``stack`` takes it down."""


async def sleep(seconds: float) -> float:
    """Sleep, unless the time is zero, and return the moment on the clock of all processes."""
    if seconds:
        await asyncio.sleep(seconds)
    return time.perf_counter()


def sleep_in_thread(seconds: float, *_: object) -> float:
    """``sleep`` for systems whose nodes are plain functions."""
    if seconds:
        time.sleep(seconds)
    return time.perf_counter()
