"""This engine in the place of a peer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from taskiq import InMemoryBroker

from benchmarks.peers.protocol import Stream, Tree, sleep
from taskiq_flow import DAG, DAGNode, ExecutionEngine


class Peer:
    """``execute_async`` over an ``InMemoryBroker``."""

    title = "this engine, execute_async"
    streams = True
    has_servers = False

    async def prepare(self, tree: Tree, stack: AsyncExitStack) -> Stream:
        """Give each node its seconds as an input of the run, and its parent's result."""
        del stack
        broker = InMemoryBroker()

        @broker.task(task_name="sleep")
        async def work(seconds: float, *_: float) -> float:
            return await sleep(seconds)

        dag = DAG()
        numbers = {f"node_{number}": number for number in range(len(tree.parents))}
        inputs = {f"seconds_{n}": seconds for n, seconds in enumerate(tree.seconds)}
        for (name, number), parent in zip(numbers.items(), tree.parents, strict=True):
            keys = [f"seconds_{number}", *([] if parent is None else [f"node_{parent}"])]
            dag.add_node(DAGNode(work, output=name, inputs=keys, name=name))
        dag.validate()
        engine = ExecutionEngine(broker, dag)

        async def stream() -> AsyncIterator[tuple[int, float]]:
            async for name, ended in engine.execute_async(inputs):
                yield numbers[name], ended

        return stream
