"""A streaming dataflow engine on taskiq: declare tasks with inputs and outputs, read results as
they come."""

from taskiq_flow.dataflow import DAG, DAGBuilder, DAGNode, DataflowRegistry, TaskNode
from taskiq_flow.execution_engine import ExecutionEngine
