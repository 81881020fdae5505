"""The local middleware, added to a broker."""

from __future__ import annotations

from typing import Any

from taskiq import AsyncBroker

from taskiq_flow.testing import LocalFlowMiddleware, LocalNotices


def with_flow(
    broker: AsyncBroker, notices: LocalNotices, inline_limit: int = 65536, **options: Any
) -> LocalFlowMiddleware:
    """Give a broker the middleware, and return it."""
    flow = LocalFlowMiddleware(notices, inline_limit=inline_limit, **options)
    broker.add_middlewares(flow)
    return flow
