"""Building a graph step by step."""

from __future__ import annotations

from typing import Any, Self

from taskiq_flow.dataflow.dag import DAG, counted_nodes
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.signature import chains_with_arguments_of, takes_arguments_of


class DAGBuilder:
    """Collects nodes and builds a graph of them.

    >>> def words(text): return text.split()
    >>> def count(words): return len(words)
    >>> dag = DAGBuilder().node(words).node(count).build()
    >>> ExecutionEngine(InMemoryBroker(), dag).execute_sync({"text": "ebb and flow"})
    {'words': ['ebb', 'and', 'flow'], 'count': 3}
    """

    def __init__(self) -> None:
        self._dag = DAG()

    @takes_arguments_of(DAGNode)
    def add_task(self, *args: Any, **kwargs: Any) -> DAGNode:
        """Add a node and return it. The arguments are those of ``DAGNode``."""
        node = DAGNode(*args, **kwargs)
        self._dag.add_node(node)
        return node

    @chains_with_arguments_of(DAGNode)
    def node(self, *args: Any, **kwargs: Any) -> Self:
        """Add a node and return the builder, for chaining. Takes the arguments of ``DAGNode``."""
        self.add_task(*args, **kwargs)
        return self

    @property
    def nodes(self) -> list[DAGNode]:
        """The nodes so far, as they were added."""
        return self._dag.nodes

    def __repr__(self) -> str:
        return f"<DAGBuilder of {counted_nodes(self.nodes)}>"

    def build(self) -> DAG:
        """A graph of the nodes so far, validated; raises what ``DAG.validate`` raises."""
        dag = DAG()
        for node in self.nodes:
            dag.add_node(node)
        dag.validate()
        return dag
