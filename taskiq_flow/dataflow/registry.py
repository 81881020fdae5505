"""Declaring tasks with their keys, and asking who gives and who takes what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from taskiq_flow.dataflow.binding import Inputs, Task
from taskiq_flow.dataflow.builder import DAGBuilder
from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.options import NO_FALLBACK, Cache, Condition, Retry
from taskiq_flow.dataflow.ready_set import Join

TaskNode = DAGNode
"""The registry's word for what it holds."""


class DataflowRegistry:
    """Tasks under their input and output keys. Two registries know nothing of each other."""

    def __init__(self) -> None:
        self._builder = DAGBuilder()

    def register_task(
        self,
        task: Task,
        output: str | None = None,
        inputs: Inputs = None,
        *,
        outputs: Iterable[str] | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        retry: Retry | None = None,
        timeout: float | None = None,
        queue_timeout: float | None = None,
        fallback: Any = NO_FALLBACK,
        join: Join = "all",
        when: Condition | None = None,
        cache: Cache | None = None,
        expected_seconds: float = 1.0,
    ) -> TaskNode:
        """Register a task and return its node. The arguments are those of ``DAGNode``."""
        return self._builder.add_task(
            task,
            output,
            inputs,
            outputs=outputs,
            name=name,
            metadata=metadata,
            retry=retry,
            timeout=timeout,
            queue_timeout=queue_timeout,
            fallback=fallback,
            join=join,
            when=when,
            cache=cache,
            expected_seconds=expected_seconds,
        )

    def get_tasks(self) -> list[TaskNode]:
        """All registered nodes, in order of registration."""
        return self._builder.nodes

    def get_outputs(self) -> list[str]:
        """All output keys, in order of registration."""
        return [key for node in self.get_tasks() for key in node.outputs]

    def get_external_inputs(self) -> list[str]:
        """The input keys that no task produces; may raise ``BindingError``."""
        produced = set(self.get_outputs())
        return [key for key in dict.fromkeys(self._input_keys()) if key not in produced]

    def get_producer(self, output_key: str) -> TaskNode | None:
        """The node that gives a key, or ``None`` for a key that comes from outside."""
        return next((node for node in self.get_tasks() if output_key in node.outputs), None)

    def get_consumers(self, input_key: str) -> list[TaskNode]:
        """The nodes that take a key; may raise ``BindingError``."""
        return [
            node
            for node in self.get_tasks()
            if input_key in (*node.required_keys, *node.optional_keys)
        ]

    def build_dag(self) -> DAG:
        """A graph of all registered tasks, validated; raises what ``DAG.validate`` raises."""
        return self._builder.build()

    def _input_keys(self) -> Iterable[str]:
        nodes = self.get_tasks()
        for node in nodes:
            yield from node.required_keys
        for node in nodes:
            yield from node.optional_keys
