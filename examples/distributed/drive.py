"""Takes the census of a directory with the workers of ``broker.py``, and streams its results.

Run it with ``python examples/distributed/drive.py``, or with a directory as its argument. The
README beside it says how to start Redis and the workers.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from broker import broker, dag
from source_census import census, command_line

from taskiq_flow import ExecutionEngine, NodeBegan
from taskiq_flow.events import Event


class Work:
    """A listener that counts what each worker process executes."""

    def __init__(self) -> None:
        self.executed: Counter[str] = Counter()

    def on_event(self, event: Event) -> None:
        """Take one event of a run."""
        if isinstance(event, NodeBegan):
            self.executed[event.worker] += 1


async def main(directory: Path) -> None:
    """Take the census and print its report."""
    print(f"Census of {directory}\n")
    work = Work()
    engine = ExecutionEngine(broker, dag, listeners=[work])
    await broker.startup()
    try:
        text = await census(engine, directory)
    finally:
        await broker.shutdown()
    print()
    for worker, count in sorted(work.executed.items()):
        print(f"{count} tasks were executed by {worker}")
    print(f"\n{text}")


if __name__ == "__main__":
    asyncio.run(main(command_line().parse_args().directory))
