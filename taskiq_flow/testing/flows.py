"""What can be run in a test: a graph, or a pipeline, whose runs have options of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.engine.arguments import check_graph
from taskiq_flow.execution_engine import ExecutionEngine


class HasEngine(Protocol):
    """A ``Pipeline`` or a ``DataflowPipeline``."""

    @property
    def engine(self) -> ExecutionEngine:
        """An engine for its graph, with the options of its runs."""


Flow: TypeAlias = DAG | HasEngine


def parts_of(flow: Flow, options: Mapping[str, Any]) -> tuple[DAG, dict[str, Any]]:
    """The graph to run, and the options of an engine for it.

    ``options`` come before those of a pipeline; the listeners of both are kept. Raises
    ``TypeError`` for what is neither a graph nor a pipeline.
    """
    engine = getattr(flow, "engine", None)
    if not isinstance(engine, ExecutionEngine):
        check_graph(flow)
        return flow, dict(options)  # type: ignore[return-value]  # checked to be a graph
    own = engine.options
    del own["broker"]
    dag: DAG = own.pop("dag")
    listeners = [*own["listeners"], *options.get("listeners", ())]
    return dag, {**own, **options, "listeners": listeners}
