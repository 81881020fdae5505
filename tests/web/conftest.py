"""A real server on a free port, in the test's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx2
import pytest
from starlette.applications import Starlette

from tests.waiting import LONGEST
from tests.web.site import Serve, Site, serving


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serves applications until the test ends."""
    async with AsyncExitStack() as stack:

        async def start(app: Starlette) -> Site:
            base = await stack.enter_async_context(serving(app))
            client = await stack.enter_async_context(
                httpx2.AsyncClient(base_url=base, timeout=LONGEST)
            )
            return Site(base, client)

        yield start
