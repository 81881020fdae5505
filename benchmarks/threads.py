"""A sync function beside a busy event loop: how long it takes until the run has its result.

The loop is busy with a chain of no-op nodes. The function takes ten short naps, after each of which
it needs the interpreter's lock again, as one does that reads files, asks a database, or works with
arrays. Beside it stands the same graph without the function: what giving way costs the loop.
"""

from __future__ import annotations

import statistics
import time

from taskiq import InMemoryBroker

from benchmarks.report import Check, Options, print_checks
from taskiq_flow import DAG, DAGBuilder, ExecutionEngine

NODES = 10_000
NAPS, NAP = 10, 0.0005
MOST_SECONDS = 0.1
MOST_OF_LOOP = 1.2


async def no_op(value: int = 0) -> int:
    """Do nothing."""
    return value


def naps() -> int:
    """Sleep for some short times."""
    for _ in range(NAPS):
        time.sleep(NAP)
    return NAPS


def graph(*, with_function: bool) -> DAG:
    """A chain of no-ops, and the function if it is asked for."""
    builder = DAGBuilder()
    for number in range(NODES):
        inputs = {"value": f"n{number - 1}"} if number else {}
        builder.node(no_op, name=f"n{number}", inputs=inputs)
    if with_function:
        builder.node(naps)
    return builder.build()


async def run(options: Options) -> list[Check]:
    """Measure both."""
    rounds = 3 if options.quick else 9
    broker = InMemoryBroker()
    graphs = {name: graph(with_function=name == "beside") for name in ("alone", "beside")}
    engines = {name: ExecutionEngine(broker, dag) for name, dag in graphs.items()}
    taken: dict[str, list[float]] = {"alone": [], "beside": [], "naps": []}
    for _ in range(rounds + 1):  # the first one is not counted
        for name, engine in engines.items():
            start = time.perf_counter()
            async for node, _ in engine.execute_async():
                if node == "naps":
                    taken["naps"].append(time.perf_counter() - start)
            taken[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times[1:]) for name, times in taken.items()}
    checks = [
        Check("a function of ten naps has ended after", medians["naps"], MOST_SECONDS, "s"),
        Check("the loop", medians["beside"] / medians["alone"], MOST_OF_LOOP, "x alone"),
    ]
    print_checks(f"Threads beside a busy loop, median of {rounds} rounds", checks)
    return checks
