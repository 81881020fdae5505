"""Building a graph step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from taskiq_flow.dataflow.binding import Inputs, Task
from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.options import NO_FALLBACK, Cache, Condition, Retry
from taskiq_flow.dataflow.ready_set import Join


class DAGBuilder:
    """Collects nodes and builds a graph of them."""

    def __init__(self) -> None:
        self._dag = DAG()

    def add_task(
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
    ) -> DAGNode:
        """Add a node and return it. The arguments are those of ``DAGNode``."""
        node = DAGNode(
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
        self._dag.add_node(node)
        return node

    def node(
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
    ) -> Self:
        """Add a node and return the builder, for chaining."""
        self.add_task(
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
        return self

    @property
    def nodes(self) -> list[DAGNode]:
        """The nodes so far, as they were added."""
        return self._dag.nodes

    def build(self) -> DAG:
        """A graph of the nodes so far, validated; raises what ``DAG.validate`` raises."""
        dag = DAG()
        for node in self.nodes:
            dag.add_node(node)
        dag.validate()
        return dag
