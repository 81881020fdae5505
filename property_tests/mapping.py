"""Random items on their way through a map: the source that gives them, and what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from taskiq import InMemoryBroker

from property_tests.model import BrokenError
from property_tests.stage import Traffic
from taskiq_flow.map_reduce import Items
from tests.virtual_clock import virtual_loop

SourceKind = Literal["list", "generator", "async generator"]


@dataclass(frozen=True)
class ItemSpec:
    """``seconds``: how long its task takes."""

    seconds: int
    fails: bool = False


@dataclass(frozen=True)
class MapSpec:
    """``reading``: seconds that an asynchronous source needs for each item."""

    items: tuple[ItemSpec, ...]
    kind: SourceKind
    reading: int
    limit: int | None

    @property
    def window(self) -> int:
        """How many items may be on their way."""
        return self.limit or max(1, len(self.items))

    def value(self, index: int) -> list[Any]:
        return ["done", index]

    def spans(self) -> list[tuple[int, int]]:
        """When each item starts and ends, in seconds, if every result is taken at once."""
        spans: list[tuple[int, int]] = []
        before = 0
        for index, item in enumerate(self.items):
            has_room = 0
            if index >= self.window:
                has_room = sorted(end for _, end in spans)[index - self.window]
            delay = self.reading if self.kind == "async generator" else 0
            before = max(before, has_room) + delay
            spans.append((before, before + item.seconds))
        return spans


class Mapping:
    """One map's broker, its task and its source, and what is seen of them."""

    def __init__(self, spec: MapSpec) -> None:
        self.spec = spec
        self.traffic = Traffic({})
        self.broker = InMemoryBroker().with_middlewares(self.traffic)
        self.read = 0
        self.taken = 0
        self.started: dict[int, float] = {}
        self.ended: dict[int, float] = {}
        self.most_ahead_of_tasks = 0
        self.most_ahead_of_reader = 0
        self.source_is_open = False
        self.source_error: Exception | None = None

    def items(self) -> Items:
        if self.spec.kind == "list":
            return [[index] for index in range(len(self.spec.items))]
        return self._read() if self.spec.kind == "generator" else self._read_slowly()

    def task(self) -> Callable[..., Awaitable[Any]]:
        async def work(item: list[int]) -> Any:
            (index,) = item
            assert index not in self.started
            self.started[index] = virtual_loop().time()
            try:
                await asyncio.sleep(self.spec.items[index].seconds)
                if self.spec.items[index].fails:
                    raise BrokenError(index)
                return self.spec.value(index)
            finally:
                self.ended[index] = virtual_loop().time()

        return work

    def _read(self) -> Iterator[list[int]]:
        for index in range(len(self.spec.items)):
            self._count()
            yield [index]
        if self.source_error is not None:
            raise self.source_error

    async def _read_slowly(self) -> AsyncIterator[list[int]]:
        self.source_is_open = True
        try:
            for index in range(len(self.spec.items)):
                self._count()
                await asyncio.sleep(self.spec.reading)
                yield [index]
            if self.source_error is not None:
                raise self.source_error
        finally:
            self.source_is_open = False

    def _count(self) -> None:
        self.read += 1
        self.most_ahead_of_tasks = max(self.most_ahead_of_tasks, self.read - len(self.ended))
        self.most_ahead_of_reader = max(self.most_ahead_of_reader, self.read - self.taken)
