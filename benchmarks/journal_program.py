"""Prints the CPU time of runs with a SQLite journal, by whichever version is on the path.

A program of its own, so that it takes the shapes and the engine of that version.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from taskiq import InMemoryBroker

from benchmarks.shapes import chain, dag_of, drain, fan, no_op, random_graph
from taskiq_flow import ExecutionEngine, SqliteJournal

NODES, RUNS = 1_000, 15


async def main() -> None:
    """One line for each shape."""
    shapes = {"chain": chain(NODES), "fan": fan(NODES), "random": random_graph(NODES, 3 * NODES)}
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in shapes.items():
            broker = InMemoryBroker()
            dag = dag_of(no_op(broker), shape)
            dag.validate()
            journal = SqliteJournal(Path(folder) / f"{name}.db")
            engine = ExecutionEngine(broker, dag, journal=journal)
            taken = []
            for _ in range(RUNS):
                start = time.process_time()
                await drain(engine, len(shape))
                taken.append(time.process_time() - start)
            print(name, statistics.median(taken))
            await journal.aclose()


if __name__ == "__main__":
    asyncio.run(main())
