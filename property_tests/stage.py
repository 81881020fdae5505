"""A random graph put on a broker, with a record of what its tasks do and when."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from property_tests.model import BrokenError, GraphSpec, NodeSpec
from property_tests.virtual_clock import virtual_loop
from taskiq import InMemoryBroker, TaskiqMessage, TaskiqMiddleware, TaskiqResult

from taskiq_flow import DAG, DAGNode
from taskiq_flow.completion.in_memory import InMemoryHooks


class Traffic(TaskiqMiddleware):
    """Counts the tasks between being sent and having ended."""

    def __init__(self) -> None:
        super().__init__()
        self.in_flight = 0
        self.most_in_flight = 0

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return message

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self.in_flight -= 1


class Stage:
    """A graph, ready to be run, and what has been seen of its nodes."""

    def __init__(self, graph: GraphSpec) -> None:
        self.traffic = Traffic()
        self.broker = InMemoryBroker().with_middlewares(self.traffic)
        self.forget()
        self.dag = DAG()
        self.nodes = {spec.index: self._added(spec) for spec in graph}
        for spec in graph:
            for index in spec.after:
                self.dag.add_edge(self.nodes[index], self._reference(spec))

    def forget(self) -> None:
        """Begin a new record."""
        self.executions: Counter[str] = Counter()
        self.started: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.cancelled: set[str] = set()

    @property
    def running(self) -> set[str]:
        return {name for name in self.started if name not in self.ended}

    async def check_nothing_is_left(self) -> None:
        """At once, that is without time going by, no trace of any run is there."""
        for _ in range(5):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not InMemoryHooks.of(self.broker).executions
        assert not virtual_loop().pending_timers
        assert not self.running

    def _added(self, spec: NodeSpec) -> DAGNode:
        by_key_of_its_name = spec.outputs == (spec.name,)
        node = DAGNode(
            self._task(spec),
            outputs=None if by_key_of_its_name else spec.outputs,
            inputs=spec.inputs,
            name=spec.given_name if spec.index % 2 else None,
        )
        self.dag.add_node(node)
        return node

    def _reference(self, spec: NodeSpec) -> Any:
        node = self.nodes[spec.index]
        return (node, node.task, node.task_name)[spec.index % 3]

    def _task(self, spec: NodeSpec) -> Callable[..., Awaitable[Any]]:
        async def work(*args: Any, **kwargs: Any) -> Any:
            call = spec.signature.bind(*args, **kwargs)
            call.apply_defaults()
            await self._take_time(spec)
            if spec.fails:
                raise BrokenError(spec.name)
            return spec.result(call.arguments)

        work.__name__ = spec.given_name
        vars(work)["__signature__"] = spec.signature
        return work

    async def _take_time(self, spec: NodeSpec) -> None:
        loop = virtual_loop()
        self.executions[spec.name] += 1
        self.started[spec.name] = loop.time()
        try:
            if spec.seconds:
                await asyncio.sleep(spec.seconds)
        except asyncio.CancelledError:
            self.cancelled.add(spec.name)
            await asyncio.sleep(spec.cleaning)
            raise
        finally:
            self.ended[spec.name] = loop.time()
