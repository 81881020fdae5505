"""Building a graph step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from taskiq_flow.dataflow.dag import DAG, counted_nodes
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.options import MapOver
from taskiq_flow.dataflow.signature import chains_with_arguments_of, takes_arguments_of
from taskiq_flow.dataflow.subgraph import Subgraph
from taskiq_flow.errors import GraphError
from taskiq_flow.suggestions import suggests_keywords


@suggests_keywords()
class DAGBuilder:
    """Collects nodes and builds a graph of them, called ``name`` where runs are listed.

    >>> def words(text): return text.split()
    >>> def count(words): return len(words)
    >>> dag = DAGBuilder().node(words).node(count).build()
    >>> ExecutionEngine(InMemoryBroker(), dag).execute_sync({"text": "ebb and flow"})
    {'words': ['ebb', 'and', 'flow'], 'count': 3}
    """

    def __init__(self, name: str | None = None) -> None:
        self._dag = DAG(name)
        self._orderings: list[tuple[str, str]] = []

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

    def add_graph(
        self,
        dag: DAG,
        name: str,
        *,
        inputs: Mapping[str, str] | None = None,
        outputs: Mapping[str, str] | None = None,
        map_over: MapOver | None = None,
    ) -> Self:
        """Add the nodes of another graph, named ``name/node``, and return the builder.

        ``inputs``: input of that graph → key of this one; the same key where nothing is said.
        ``outputs``: output of that graph → key of this one, where that is not to be ``name/key``.
        ``map_over``: keys of this graph; all of the other graph runs for each of their elements.

        Raises ``BindingError`` for a key that the graph does not have, and ``GraphError`` for a
        name that is taken.

        >>> clean = DAGBuilder().node(str.strip, name="bare", inputs=["text"])
        >>> clean.node(str.title, name="titled", inputs=["bare"])
        <DAGBuilder of 2 nodes: bare, titled>
        >>> builder = DAGBuilder().add_graph(
        ...     clean.build(), "clean", inputs={"text": "lines"}, map_over="lines"
        ... )
        >>> engine = ExecutionEngine(InMemoryBroker(), builder.build())
        >>> engine.execute_sync({"lines": [" ebb ", "flow"]})
        {'clean/bare': ['ebb', 'flow'], 'clean/titled': ['Ebb', 'Flow']}
        """
        if name == "":
            raise ValueError(
                "name is empty; give the graph a name, with which those of its nodes begin"
            )
        subgraph = Subgraph(dag, name, inputs, outputs, map_over)
        taken = {node.task_name for node in self.nodes}
        nodes = subgraph.nodes()
        if clashes := [node.task_name for node in nodes if node.task_name in taken]:
            raise GraphError(
                f"the graph has a node {clashes[0]!r} already; give the graph that you add another "
                "name"
            )
        for node in nodes:
            self._dag.add_node(node)
        self._orderings += subgraph.orderings()
        return self

    @property
    def nodes(self) -> list[DAGNode]:
        """The nodes so far, as they were added."""
        return self._dag.nodes

    def __repr__(self) -> str:
        return f"<DAGBuilder of {counted_nodes(self.nodes)}>"

    def build(self) -> DAG:
        """A graph of the nodes so far, validated; raises what ``DAG.validate`` raises."""
        dag = DAG(self._dag.name)
        for node in self.nodes:
            dag.add_node(node)
        for earlier, later in self._orderings:
            dag.add_edge(earlier, later)
        dag.validate()
        return dag
