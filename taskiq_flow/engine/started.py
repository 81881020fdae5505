"""A broker that is started for one run, for code that has no event loop of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

from taskiq import AsyncBroker, InMemoryBroker

from taskiq_flow.completion.in_memory_hooks import InMemoryHooks
from taskiq_flow.middleware import FlowMiddleware


@asynccontextmanager
async def started(broker: AsyncBroker) -> AsyncIterator[None]:
    """Start a broker, and shut it down behind the block, unless it is started already."""
    own = [m for m in broker.middlewares if isinstance(m, (InMemoryHooks, FlowMiddleware))]
    if any(middleware.is_started for middleware in own):
        yield
        return
    await broker.startup()
    try:
        yield
    finally:
        await _shut_down(broker)


async def _shut_down(broker: AsyncBroker) -> None:
    if not isinstance(broker, InMemoryBroker):
        await broker.shutdown()
        return
    # Its shutdown ends its threads for good, and a broker cannot be given new ones.
    executor = broker.executor
    broker.executor = SimpleNamespace(shutdown=lambda: None)  # type: ignore[assignment]
    try:
        await broker.shutdown()
    finally:
        broker.executor = executor
