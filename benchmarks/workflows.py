"""Recorded workflows, run by the engine: each node sleeps its recorded time, scaled down.

Unlimited, a run is held to its critical path; with 8 nodes at once, to the list schedule on paper
(8 slots, longest remaining path first), with what first come, first served takes on paper beside
it. Times are scaled so that the critical path, or the schedule, takes 3 s. «Timers» is the same
schedule with one timer of the event loop for each node and neither engine nor broker: what of the
excess is the loop's own, since it wakes up to a millisecond late for every node of a path.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping

from taskiq import InMemoryBroker

from benchmarks.measure import timed
from benchmarks.report import CHECKED, Check, Options, print_table
from benchmarks.schedule import critical_path, first_come, longest_first, with_timers
from benchmarks.shapes import drain
from benchmarks.workload import Workflow, workflows
from taskiq_flow import DAG, DAGNode, ExecutionEngine

SECONDS = 3.0
SLOTS = 8
MOST_UNLIMITED = 1.03
MOST_LIMITED = 1.05


async def run(options: Options) -> list[Check]:
    """Run every workflow without a limit and with one."""
    rounds = 1 if options.quick else 3
    found = workflows(options.folder)
    unlimited = [await without_limit(workflow, rounds) for workflow in found]
    limited = [await with_limit(workflow, rounds) for workflow in found]
    print_table(
        f"No limit: wall time by critical path, median of {rounds} rounds",
        ("workflow", "nodes", "edges", "path, s", "scale", "timers", *CHECKED),
        [row for row, _ in unlimited],
    )
    print_table(
        f"{SLOTS} at once: wall time by list schedule, median of {rounds} rounds",
        ("workflow", "schedule, s", "scale", "first come, on paper", "timers", *CHECKED),
        [row for row, _ in limited],
    )
    return [check for _, check in unlimited + limited]


async def without_limit(workflow: Workflow, rounds: int) -> tuple[list[str], Check]:
    """A row of the first table, and what it is held to."""
    path = critical_path(workflow)
    scaled = workflow.scaled(SECONDS / path)
    engine, timers = await side_by_side(scaled, None, rounds)
    check = Check(f"no limit, {workflow.name}", engine, MOST_UNLIMITED, "x path")
    edges = sum(map(len, workflow.predecessors))
    size = [str(len(workflow.nodes)), str(edges), f"{path:.1f}", f"{SECONDS / path:.4f}"]
    return [workflow.name, *size, f"{timers:.3f}", *check.cells()], check


async def with_limit(workflow: Workflow, rounds: int) -> tuple[list[str], Check]:
    """A row of the second table, and what it is held to."""
    schedule = longest_first(workflow, SLOTS)
    scaled = workflow.scaled(SECONDS / schedule)
    engine, timers = await side_by_side(scaled, SLOTS, rounds)
    check = Check(f"{SLOTS} at once, {workflow.name}", engine, MOST_LIMITED, "x schedule")
    paper = [f"{schedule:.1f}", f"{SECONDS / schedule:.4f}"]
    beside = [f"{first_come(workflow, SLOTS) / schedule:.3f}", f"{timers:.3f}"]
    return [workflow.name, *paper, *beside, *check.cells()], check


async def side_by_side(workflow: Workflow, slots: int | None, rounds: int) -> tuple[float, float]:
    """Wall time of the engine and of timers alone, by what is possible."""
    engine, inputs = sleeping(workflow, slots)
    by_engine = []
    by_timers = []
    for _ in range(rounds):
        by_engine.append(await timed(lambda: drain(engine, len(workflow.nodes), inputs)))
        by_timers.append(await with_timers(workflow, slots))
    return statistics.median(by_engine) / SECONDS, statistics.median(by_timers) / SECONDS


def sleeping(workflow: Workflow, slots: int | None) -> tuple[ExecutionEngine, Mapping[str, float]]:
    """An engine with the workflow's graph, validated, and the inputs of its run."""
    broker = InMemoryBroker()

    @broker.task(task_name="sleep")
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)

    dag = DAG()
    inputs: dict[str, float] = {}
    for name, seconds in zip(workflow.nodes, workflow.seconds, strict=True):
        key = f"seconds of {name}"
        inputs[key] = seconds
        dag.add_node(DAGNode(sleep, inputs={"seconds": key}, name=name, expected_seconds=seconds))
    for name, before in zip(workflow.nodes, workflow.predecessors, strict=True):
        for other in before:
            dag.add_edge(workflow.nodes[other], name)
    dag.validate()
    return ExecutionEngine(broker, dag, max_parallel=slots), inputs
