"""Graphs of no-op nodes, as shapes: for each node the numbers of the nodes that it waits for."""

from __future__ import annotations

import random
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask, InMemoryBroker

from benchmarks.measure import Contestant
from taskiq_flow import DAG, DAGNode, ExecutionEngine, Listener

Shape = Sequence[Sequence[int]]
NoOp = AsyncTaskiqDecoratedTask[..., Coroutine[Any, Any, int]]


def chains(nodes: int, length: int) -> Shape:
    """Chains of ``length`` nodes, beside each other."""
    return [[node - 1] if node % length else [] for node in range(nodes)]


def chain(nodes: int) -> Shape:
    """Each node behind the one before."""
    return chains(nodes, nodes)


def fan(nodes: int) -> Shape:
    """One node, and all others behind it."""
    return [[0] if node else [] for node in range(nodes)]


def fan_in(nodes: int) -> Shape:
    """All nodes but one, and that one behind them."""
    return [*([] for _ in range(nodes - 1)), range(nodes - 1)]


def random_graph(nodes: int, edges: int, seed: int = 1) -> Shape:
    """Any two nodes are as likely as any other two to have an edge, from lower to higher."""
    chance = random.Random(seed)
    drawn: set[tuple[int, int]] = set()
    while len(drawn) < edges:
        before, after = sorted(chance.sample(range(nodes), 2))
        drawn.add((before, after))
    shape: list[list[int]] = [[] for _ in range(nodes)]
    for before, after in sorted(drawn):
        shape[after].append(before)
    return shape


def three_shapes(nodes: int) -> dict[str, Shape]:
    """By name: a chain, a fan, and a random graph of three times as many edges."""
    return {
        f"chain of {nodes:,}": chain(nodes),
        f"fan of {nodes:,}": fan(nodes),
        f"random, {nodes:,} nodes, {3 * nodes:,} edges": random_graph(nodes, 3 * nodes),
    }


def no_op(broker: AsyncBroker) -> NoOp:
    """A task that takes anything, does nothing and returns the same small number."""

    async def work(*_: int) -> int:
        return 1

    return broker.register_task(work, task_name="no_op")


def dag_of(task: NoOp, shape: Shape) -> DAG:
    """The graph of a shape, each node given what its predecessors return."""
    dag = DAG()
    names = [f"node_{number}" for number in range(len(shape))]
    for name, before in zip(names, shape, strict=True):
        dag.add_node(DAGNode(task, output=name, inputs=[names[n] for n in before], name=name))
    return dag


async def drain(
    engine: ExecutionEngine, expected: int, inputs: Mapping[str, float] | None = None
) -> None:
    """Read a run to its end as a user would, and see that nothing is missing."""
    count = 0
    async for _ in engine.execute_async(inputs):
        count += 1
    if count != expected:
        raise AssertionError(f"{count} pairs of {expected}")


def by_engine(shape: Shape, listeners: Sequence[Listener] = ()) -> Contestant:
    """A run of the shape by the engine, the graph built and validated beforehand."""
    broker = InMemoryBroker()
    dag = dag_of(no_op(broker), shape)
    dag.validate()
    engine = ExecutionEngine(broker, dag, listeners=listeners)
    return lambda: drain(engine, len(shape))
