"""A streaming dataflow engine on taskiq: declare tasks, read their results as they come.

    >>> from taskiq import InMemoryBroker
    >>> from taskiq_flow import DAGBuilder, ExecutionEngine
    >>> def words(text: str) -> list[str]:
    ...     return text.split()
    >>> def count(words: list[str]) -> int:
    ...     return len(words)
    >>> dag = DAGBuilder().node(words).node(count).build()
    >>> engine = ExecutionEngine(InMemoryBroker(), dag)
    >>> engine.execute_sync({"text": "ebb and flow"})
    {'words': ['ebb', 'and', 'flow'], 'count': 3}

``words`` takes the run's input ``text``, and ``count`` takes what ``words`` gives: edges follow
from the names. In a coroutine, ``async for name, result in engine.execute_async(inputs)`` gives
each result when it is there, and ``await engine.execute(inputs)`` all of them.

Where to look:

- ``DAGBuilder``, ``DataflowRegistry``, ``DAG``, ``DAGNode``: declare a graph
- ``ExecutionEngine``: run it, cancel it, resume it
- ``RunHandle``: a run that is held, awaited, watched and cancelled by itself
- ``MapReduce``: one function over many items
- ``Pipeline``, ``DataflowPipeline``: graphs as steps; ``PipelineScheduler`` runs them at times
- ``Retry``, ``Cache``, ``Product``, and the other options of ``DAGNode``: what a node does
- ``SqliteJournal``, ``RedisJournal``: runs that another process resumes
- ``broker_for``, ``FlowMiddleware``: workers on other machines
- ``in_process``: functions that use all cores
- ``Progress``: shows how far a run is; ``Tracing``: spans and metrics for OpenTelemetry
- ``HookManager``: calls methods such as ``on_step_complete``; ``PipelineTrackingManager``: stores
  how far runs are
- ``Listener``: events of a run; ``taskiq_flow.events`` has all of them
- ``TaskiqFlowError``: the base of all errors; ``taskiq_flow.errors`` draws the tree
- ``taskiq_flow.testing``: for your tests: runs on a virtual clock, orders, recorded runs

``docs/index.md`` in the repository lists the pages of the documentation.
"""

from taskiq_flow.dataflow import (
    DAG,
    NO_FALLBACK,
    Cache,
    DAGBuilder,
    DAGNode,
    DataflowRegistry,
    Join,
    Product,
    Retry,
    TaskNode,
)
from taskiq_flow.engine.run_handle import RunHandle
from taskiq_flow.errors import (
    AnnotationError,
    BindingError,
    ConfigurationError,
    CycleError,
    DuplicateOutputError,
    FormatterWarning,
    GraphChangedError,
    GraphError,
    InputConflictError,
    InputError,
    ItemsChangedError,
    JournalError,
    MissingInputError,
    MissingNodeError,
    NodeError,
    NodeFailedError,
    NodeTimeoutError,
    NotCachedWarning,
    OutputShapeError,
    PipelineError,
    PollingWarning,
    RedefinedTaskWarning,
    ResultUnavailableError,
    RunCancelledError,
    RunError,
    RunFailedError,
    RunLockedError,
    RunNotFoundError,
    RunTimeoutError,
    SerializationError,
    ServerUnreachableError,
    TaskiqFlowError,
    TaskLostError,
    TrackingError,
    TypeMismatchError,
    TypeMismatchWarning,
    UnusedInputWarning,
)
from taskiq_flow.events import (
    BatchListener,
    ElementsKnown,
    Event,
    Failure,
    Gap,
    Item,
    Listener,
    NodeBegan,
    NodeCompleted,
    NodeFailed,
    NodeFailure,
    NodeFellBack,
    NodeRetried,
    NodeSkipped,
    NodeStarted,
    RunFinished,
    RunStarted,
    SendingListener,
)
from taskiq_flow.execution_engine import ExecutionEngine
from taskiq_flow.flow_task import FlowTask
from taskiq_flow.journal import (
    EventBatch,
    EventJournal,
    Journal,
    Lease,
    MemoryJournal,
    RedisJournal,
    RunReader,
    RunSummary,
    SqliteJournal,
)
from taskiq_flow.listeners.broadcaster import TrackingEventBroadcaster
from taskiq_flow.listeners.hook_events import (
    EventFilter,
    PipelineCompleteEvent,
    PipelineErrorEvent,
    PipelineStartEvent,
    StepCompleteEvent,
    StepErrorEvent,
    StepStartEvent,
)
from taskiq_flow.listeners.hooks import HookManager
from taskiq_flow.listeners.progress import Progress
from taskiq_flow.listeners.recorder import Recorder
from taskiq_flow.listeners.tracing import Tracing
from taskiq_flow.listeners.tracking import PipelineTrackingManager
from taskiq_flow.listeners.tracking_storage import (
    InMemoryPipelineStorage,
    RedisPipelineStorage,
    TrackingStorage,
)
from taskiq_flow.map_reduce import MapReduce, MapReduceResult
from taskiq_flow.middleware import FlowMiddleware, inventory
from taskiq_flow.pipelines.context import PipelineContext
from taskiq_flow.pipelines.dataflow_pipeline import DataflowPipeline
from taskiq_flow.pipelines.declared import (
    get_task_inputs,
    get_task_outputs,
    is_pipeline_task,
    pipeline_task,
    pipeline_task_multi_output,
)
from taskiq_flow.pipelines.jobs import PipelineJob
from taskiq_flow.pipelines.middleware import PipelineMiddleware
from taskiq_flow.pipelines.pipeline import Pipeline
from taskiq_flow.pipelines.pipeline_task import PipelineTask
from taskiq_flow.pipelines.scheduler import PipelineScheduler
from taskiq_flow.pipelines.visualizer import DAGVisualizer, MermaidGenerator
from taskiq_flow.previews import Preview, ReportedError
from taskiq_flow.processes.in_process import in_process
from taskiq_flow.recommended import broker_for
from taskiq_flow.transport.protocol import Leftover
from taskiq_flow.values.codec import ValueCodec
from taskiq_flow.values.handle import ResultHandle
from taskiq_flow.version import __version__ as __version__
from taskiq_flow.views.node_view import NodeView
from taskiq_flow.views.pipeline_status import PipelineStatus, StepStatus, TrackingMetrics
from taskiq_flow.views.report import RunReport
from taskiq_flow.views.run_view import RunView

__all__ = [
    "DAG",
    "NO_FALLBACK",
    "AnnotationError",
    "BatchListener",
    "BindingError",
    "Cache",
    "ConfigurationError",
    "CycleError",
    "DAGBuilder",
    "DAGNode",
    "DAGVisualizer",
    "DataflowPipeline",
    "DataflowRegistry",
    "DuplicateOutputError",
    "ElementsKnown",
    "Event",
    "EventBatch",
    "EventFilter",
    "EventJournal",
    "ExecutionEngine",
    "Failure",
    "FlowMiddleware",
    "FlowTask",
    "FormatterWarning",
    "Gap",
    "GraphChangedError",
    "GraphError",
    "HookManager",
    "InMemoryPipelineStorage",
    "InputConflictError",
    "InputError",
    "Item",
    "ItemsChangedError",
    "Join",
    "Journal",
    "JournalError",
    "Lease",
    "Leftover",
    "Listener",
    "MapReduce",
    "MapReduceResult",
    "MemoryJournal",
    "MermaidGenerator",
    "MissingInputError",
    "MissingNodeError",
    "NodeBegan",
    "NodeCompleted",
    "NodeError",
    "NodeFailed",
    "NodeFailedError",
    "NodeFailure",
    "NodeFellBack",
    "NodeRetried",
    "NodeSkipped",
    "NodeStarted",
    "NodeTimeoutError",
    "NodeView",
    "NotCachedWarning",
    "OutputShapeError",
    "Pipeline",
    "PipelineCompleteEvent",
    "PipelineContext",
    "PipelineError",
    "PipelineErrorEvent",
    "PipelineJob",
    "PipelineMiddleware",
    "PipelineScheduler",
    "PipelineStartEvent",
    "PipelineStatus",
    "PipelineTask",
    "PipelineTrackingManager",
    "PollingWarning",
    "Preview",
    "Product",
    "Progress",
    "Recorder",
    "RedefinedTaskWarning",
    "RedisJournal",
    "RedisPipelineStorage",
    "ReportedError",
    "ResultHandle",
    "ResultUnavailableError",
    "Retry",
    "RunCancelledError",
    "RunError",
    "RunFailedError",
    "RunFinished",
    "RunHandle",
    "RunLockedError",
    "RunNotFoundError",
    "RunReader",
    "RunReport",
    "RunStarted",
    "RunSummary",
    "RunTimeoutError",
    "RunView",
    "SendingListener",
    "SerializationError",
    "ServerUnreachableError",
    "SqliteJournal",
    "StepCompleteEvent",
    "StepErrorEvent",
    "StepStartEvent",
    "StepStatus",
    "TaskLostError",
    "TaskNode",
    "TaskiqFlowError",
    "Tracing",
    "TrackingError",
    "TrackingEventBroadcaster",
    "TrackingMetrics",
    "TrackingStorage",
    "TypeMismatchError",
    "TypeMismatchWarning",
    "UnusedInputWarning",
    "ValueCodec",
    "broker_for",
    "get_task_inputs",
    "get_task_outputs",
    "in_process",
    "inventory",
    "is_pipeline_task",
    "pipeline_task",
    "pipeline_task_multi_output",
]
