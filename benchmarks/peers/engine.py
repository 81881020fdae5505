"""This engine in the place of a peer."""

from __future__ import annotations

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
        inputs = {f"seconds of {step.name}": step.seconds for step in tree}
        for key, step in zip(inputs, tree, strict=True):
            keys = [key] if step.parent is None else [key, step.parent]
            dag.add_node(DAGNode(work, output=step.name, inputs=keys, name=step.name))
        dag.validate()
        engine = ExecutionEngine(broker, dag)

        return lambda: engine.execute_async(inputs)
