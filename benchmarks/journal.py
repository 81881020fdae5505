"""What a journal adds to a node: no-op nodes with a SQLite journal and without, in turns.

The file is in the system's folder for temporary files. ``kill``: what survives a kill of the
process, the default; ``power``: a loss of power as well (``fsync=True``), at the disk's price.
No pair is read before it is in the file, in either.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from pathlib import Path

from taskiq import InMemoryBroker

from benchmarks.measure import Contestant, interleaved, median_ratio
from benchmarks.report import CHECKED, Check, Options, print_table
from benchmarks.shapes import Shape, by_engine, chain, dag_of, drain, fan, no_op, random_graph
from taskiq_flow import ExecutionEngine, Journal, SqliteJournal

NODES = 1_000
MOST = 1.5


async def run(options: Options) -> list[Check]:
    """Measure three shapes of 1,000 nodes."""
    rounds = 7 if options.quick else 25
    shapes = {
        f"chain of {NODES:,}": chain(NODES),
        f"fan of {NODES:,}": fan(NODES),
        f"random, {NODES:,} nodes, {3 * NODES:,} edges": random_graph(NODES, 3 * NODES),
    }
    checks, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        kill = SqliteJournal(Path(folder) / "kill.db")
        power = SqliteJournal(Path(folder) / "power.db", fsync=True)
        for name, shape in shapes.items():
            contestants = {
                "without": by_engine(shape),
                "kill": with_journal(shape, kill),
                "power": with_journal(shape, power),
            }
            taken = await interleaved(contestants, rounds)
            check = Check(
                f"SQLite journal, {name}",
                median_ratio(taken["kill"], taken["without"]),
                MOST,
                "x without",
            )
            costs = [f"{statistics.median(taken[who]) / NODES * 1e6:.1f}" for who in taken]
            rows.append([name, *costs, *check.cells()])
            checks.append(check)
        await asyncio.gather(kill.aclose(), power.aclose())
    heads = ("no-op nodes, us/node", "without", "kill", "power", *CHECKED)
    print_table(f"Cost per node, median of {rounds} rounds", heads, rows)
    return checks


def with_journal(shape: Shape, journal: Journal) -> Contestant:
    """A run of the shape by the engine that is kept in the journal, as a run of its own."""
    broker = InMemoryBroker()
    dag = dag_of(no_op(broker), shape)
    dag.validate()
    engine = ExecutionEngine(broker, dag, journal=journal)
    return lambda: drain(engine, len(shape))
