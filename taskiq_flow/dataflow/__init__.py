"""Declaring a graph: nodes and their keys, edges, order, drawing."""

from taskiq_flow.dataflow.builder import DAGBuilder
from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.options import NO_FALLBACK, Cache, Product, Retry
from taskiq_flow.dataflow.ready_set import Join
from taskiq_flow.dataflow.registry import DataflowRegistry, TaskNode

__all__ = [
    "DAG",
    "NO_FALLBACK",
    "Cache",
    "DAGBuilder",
    "DAGNode",
    "DataflowRegistry",
    "Join",
    "Product",
    "Retry",
    "TaskNode",
]
