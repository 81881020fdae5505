"""Serves runs to be asked for as the OpenAPI document says: ``python -m tests.web.described``.

With ``--control`` runs can be begun, continued and deleted. It writes its address, and serves until
it is ended.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from taskiq import InMemoryBroker

from taskiq_flow import ExecutionEngine, MemoryJournal
from taskiq_flow.web import runs_app
from taskiq_flow.web.server import serve_async
from tests.journal.nightly import graph
from tests.web.site import INPUTS


async def main(*, control: bool) -> None:
    dag = graph().build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=MemoryJournal(), on_error="collect")
    for run_id in ("r1", "r2"):
        await engine.execute(INPUTS, run_id=run_id)
    app = runs_app(engine, control=control)
    await serve_async(app, port=0, on_ready=lambda address: print(address, flush=True))  # noqa: T201


if __name__ == "__main__":
    logging.disable()
    asyncio.run(main(control="--control" in sys.argv))
