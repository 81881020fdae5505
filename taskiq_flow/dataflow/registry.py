"""Declaring tasks with their keys, and asking who gives and who takes what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from taskiq_flow.dataflow.builder import DAGBuilder
from taskiq_flow.dataflow.dag import DAG, counted_nodes
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.signature import takes_arguments_of

TaskNode = DAGNode
"""Another name of ``DAGNode``: a node as a registry holds it."""


class DataflowRegistry:
    """Tasks under their input and output keys. Two registries know nothing of each other.

    >>> registry = DataflowRegistry()
    >>> def words(text): return text.split()
    >>> registry.register_task(words, output="words")
    <DAGNode words: its parameters -> ['words']>
    >>> registry.register_task(len, output="count", inputs=["words"])
    <DAGNode len: ['words'] -> ['count']>
    >>> registry.get_external_inputs(), registry.get_consumers("words")
    (['text'], [<DAGNode len: ['words'] -> ['count']>])
    >>> registry.build_dag()
    <DAG of 2 nodes: words, len>
    """

    def __init__(self) -> None:
        self._builder = DAGBuilder()

    @takes_arguments_of(DAGNode)
    def register_task(self, *args: Any, **kwargs: Any) -> TaskNode:
        """Register a task and return its node. The arguments are those of ``DAGNode``."""
        return self._builder.add_task(*args, **kwargs)

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

    def __repr__(self) -> str:
        return f"<DataflowRegistry of {counted_nodes(self.get_tasks())}>"

    def build_dag(self) -> DAG:
        """A graph of all registered tasks, validated; raises what ``DAG.validate`` raises."""
        return self._builder.build()

    def _input_keys(self) -> Iterable[str]:
        nodes = self.get_tasks()
        for node in nodes:
            yield from node.required_keys
        for node in nodes:
            yield from node.optional_keys
