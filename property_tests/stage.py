"""A random graph put on a broker, with a record of what its tasks do and when."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from taskiq import InMemoryBroker, TaskiqMessage, TaskiqMiddleware, TaskiqResult

from property_tests.model import BrokenError, GraphSpec, NodeSpec
from taskiq_flow import DAG, DAGNode
from taskiq_flow.completion.in_memory_hooks import InMemoryHooks
from tests.virtual_clock import virtual_loop


class Traffic(TaskiqMiddleware):
    """Counts the tasks between being sent and having ended; makes sending take its time.

    ``nodes``: those whose sending needs time, by name. ``sent``: when the run began to send each.
    """

    def __init__(self, nodes: Mapping[str, NodeSpec]) -> None:
        super().__init__()
        self.nodes = nodes
        self.sent: dict[str, float] = {}
        self.in_flight = 0
        self.most_in_flight = 0

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        _, name, _ = message.task_id.split(":")
        self.sent[name] = virtual_loop().time()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if (node := self.nodes.get(name)) is not None:
            await _take_time(node.sending, node.cleaning)
        return message

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self.in_flight -= 1


async def _take_time(seconds: int, cleaning: int) -> None:
    """No time at all means not to wait at all; a cancellation needs its own time to be heeded."""
    try:
        if seconds:
            await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        await asyncio.sleep(cleaning)
        raise


def check_nothing_is_left(broker: InMemoryBroker) -> None:
    """No trace of any run is there, now and without waiting for anything."""
    hooks = InMemoryHooks.of(broker)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not hooks.executions
    assert not hooks.run_ids
    assert not virtual_loop().pending_timers


class Stage:
    """A graph, ready to be run, and what has been seen of its nodes."""

    def __init__(
        self,
        graph: GraphSpec,
        traffic: Traffic | None = None,
        broker: InMemoryBroker | None = None,
    ) -> None:
        slow = {node.name: node for node in graph if node.sending}
        self.traffic = Traffic(slow) if traffic is None else traffic
        self.broker = (broker or InMemoryBroker()).with_middlewares(self.traffic)
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

    def check_nothing_is_left(self) -> None:
        check_nothing_is_left(self.broker)
        assert not self.running

    def check_stopped(self, moment: float) -> None:
        """Nothing began after that moment, and what was running then has been cancelled."""
        assert all(start <= moment for start in self.started.values())
        assert {name for name, end in self.ended.items() if end > moment} <= self.cancelled

    def _added(self, spec: NodeSpec) -> DAGNode:
        by_key_of_its_name = spec.outputs == (spec.name,)
        node = DAGNode(
            self.task(spec),
            outputs=None if by_key_of_its_name else spec.outputs,
            inputs=spec.inputs,
            name=spec.given_name if spec.index % 2 else None,
            **self.policies(spec),
        )
        self.dag.add_node(node)
        return node

    def policies(self, spec: NodeSpec) -> dict[str, Any]:
        """What else is asked for a node."""
        return {}

    def _reference(self, spec: NodeSpec) -> Any:
        node = self.nodes[spec.index]
        return (node, node.task, node.task_name)[spec.index % 3]

    def task(self, spec: NodeSpec) -> Callable[..., Awaitable[Any]]:
        async def work(*args: Any, **kwargs: Any) -> Any:
            call = spec.signature.bind(*args, **kwargs)
            call.apply_defaults()
            return await self.perform(spec, call.arguments)

        work.__name__ = spec.given_name
        vars(work)["__signature__"] = spec.signature
        return work

    async def perform(self, spec: NodeSpec, arguments: Mapping[str, Any]) -> Any:
        """What the task of a node does when it is executed."""
        await self._live_through(spec)
        if spec.fails:
            raise BrokenError(spec.name)
        return spec.result(arguments)

    async def _live_through(self, spec: NodeSpec) -> None:
        loop = virtual_loop()
        self.executions[spec.name] += 1
        self.started[spec.name] = loop.time()
        try:
            await _take_time(spec.seconds, spec.cleaning)
        except asyncio.CancelledError:
            self.cancelled.add(spec.name)
            raise
        finally:
            self.ended[spec.name] = loop.time()
