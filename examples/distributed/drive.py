"""Takes the census of a directory with the workers of ``broker.py``, and streams its results.

Run it with ``python examples/distributed/drive.py``, or with a directory as its argument. The
README beside it says how to start Redis and the workers.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from broker import broker, dag
from source_census import base_of, chosen_directory, headline

from taskiq_flow import ExecutionEngine, NodeRetried, NodeStarted, ResultHandle
from taskiq_flow.events import Event

BY_REFERENCE = 256 * 1024  # bytes from which on a result does not travel through this process


class Sent:
    """A listener that counts what is sent."""

    def __init__(self) -> None:
        self.tasks = 0
        self.again = 0

    def on_event(self, event: Event) -> None:
        """Take one event of a run."""
        self.tasks += isinstance(event, NodeStarted)
        self.again += isinstance(event, NodeRetried)


async def census(directory: Path) -> str:
    """Run the graph, print each result as it comes, and return the report."""
    sent = Sent()
    engine = ExecutionEngine(broker, dag, listeners=[sent], pass_by=BY_REFERENCE)
    inputs = {"directory": str(directory), "base": str(base_of(directory))}
    started = time.monotonic()
    result: Any = ""
    async for name, result in engine.execute_async(inputs):
        told = "stays in Redis" if isinstance(result, ResultHandle) else headline(result)
        print(f"{time.monotonic() - started:6.2f} s  {name:<24}{told}", flush=True)
    print(f"\n{sent.tasks} tasks sent by this process, {sent.again} of them again")
    return str(await result.get() if isinstance(result, ResultHandle) else result)


async def main(directory: Path) -> None:
    """Take the census and print its report."""
    print(f"Census of {directory}\n")
    await broker.startup()
    try:
        text = await census(directory)
    finally:
        await broker.shutdown()
    print(f"\n{text}")


if __name__ == "__main__":
    asyncio.run(main(chosen_directory()))
