"""What users may rely on: the public names, where they are found, and how they are called."""

import importlib
import importlib.metadata
import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
from taskiq import AsyncTaskiqTask, InMemoryBroker

import taskiq_flow
import taskiq_flow.testing
from taskiq_flow import (
    DAG,
    Cache,
    DAGBuilder,
    DAGNode,
    DataflowRegistry,
    EventFilter,
    ExecutionEngine,
    FlowMiddleware,
    HookManager,
    InMemoryPipelineStorage,
    MapReduce,
    MapReduceResult,
    PipelineTrackingManager,
    Progress,
    RedisJournal,
    RedisPipelineStorage,
    Retry,
    RunHandle,
    RunView,
    SqliteJournal,
    Tracing,
    TrackingEventBroadcaster,
    in_process,
    inventory,
)

NAMES = [
    "AnnotationError",
    "BatchListener",
    "BindingError",
    "Cache",
    "ConfigurationError",
    "CycleError",
    "DAG",
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
    "NO_FALLBACK",
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

PLACES = [
    ("taskiq_flow.execution_engine", "ExecutionEngine"),
    ("taskiq_flow.dataflow", "DAG"),
    ("taskiq_flow.dataflow", "DAGNode"),
    ("taskiq_flow.dataflow", "DAGBuilder"),
    ("taskiq_flow.dataflow", "DataflowRegistry"),
    ("taskiq_flow.dataflow", "TaskNode"),
    ("taskiq_flow.dataflow.dag", "DAG"),
    ("taskiq_flow.dataflow.dag", "DAGNode"),
    ("taskiq_flow.map_reduce", "MapReduce"),
    ("taskiq_flow.map_reduce", "MapReduceResult"),
]

NODE = (
    "task, output=None, inputs=None, *, outputs=None, name=None, given=None, metadata=None, "
    "retry=None, timeout=None, queue_timeout=None, fallback=NO_FALLBACK, join='all', when=None, "
    "cache=None, map_over=None, flatten=False, filter=False, max_parallel=None, window=None, "
    "expected_seconds=1.0"
)
MAP = (
    "broker, map_func, items, output='mapped', max_parallel=None, *, journal=None, run_id=None, "
    "resume=False, **options"
)
MAP_REDUCE = (
    "broker, map_func, items, reduce_func, map_output='mapped', reduce_output='final', "
    "max_parallel=10, **options"
)
ENGINE = (
    "broker, dag, max_parallel=None, on_step_complete=None, *, on_error='raise', listeners=(), "
    "pass_by='value', lost_after=60.0, retry=None, timeout=None, queue_timeout=None, "
    "run_timeout=None, journal=None, values='isolated', order='critical_path', type_check='warn', "
    "tags=()"
)
RETRY = "attempts=3, wait=0.1, factor=2.0, max_wait=60.0, jitter=0.1, on=(<class 'Exception'>,)"
RUN = "inputs=None, *, outputs=None, run_id=None, resume=False, replay=True"
RESUME = "run_id, *, replay=True, allow_changed=False, wait=0.0, inputs=None, items=False"
RERUN = (
    "run_id, from_, *, replay=True, allow_changed=False, new_run_id=None, inputs=None, items=False"
)

SIGNATURES: list[tuple[Callable[..., Any], str]] = [
    (DAGNode, NODE),
    (DataflowRegistry, ""),
    (DataflowRegistry().register_task, NODE),
    (DataflowRegistry().get_tasks, ""),
    (DataflowRegistry().get_outputs, ""),
    (DataflowRegistry().get_external_inputs, ""),
    (DataflowRegistry().get_producer, "output_key"),
    (DataflowRegistry().get_consumers, "input_key"),
    (DataflowRegistry().build_dag, ""),
    (DAGBuilder, "name=None"),
    (DAGBuilder().add_task, NODE),
    (DAGBuilder().node, NODE),
    (DAGBuilder().build, ""),
    (DAG, "name=None"),
    (DAG().add_node, "node"),
    (DAG().add_edge, "from_task, to_task"),
    (DAG().topological_sort, ""),
    (DAG().get_parallel_levels, ""),
    (DAG().validate, ""),
    (DAG().print, "file=None"),
    (DAG().to_mermaid, "orientation='LR'"),
    (DAG().to_dot, ""),
    (DAG().to_json, ""),
    (DAG().to_svg, "run=None, *, fold=None, orientation=None"),
    (RunView().to_svg, "*, fold=None"),
    (DAG().get_node, "name"),
    (
        ExecutionEngine,
        ENGINE,
    ),
    (
        FlowMiddleware,
        (
            "url=None, *, inline_limit=65536, prefix='taskiq_flow', max_deliveries=3, codec=None, "
            "secret=None, classes='known', store=None, store_above=524288, store_ttl=604800.0"
        ),
    ),
    (in_process, "function=None, *, limit=None"),
    (inventory, "broker"),
    (Progress, "file=None, *, journal=None"),
    (EventFilter, "pipeline_ids=None, event_types=None"),
    (HookManager, ""),
    (HookManager().add_hook, "hook, event_filter=None"),
    (HookManager().add_filter, "event_filter"),
    (PipelineTrackingManager, "storage=None, max_history=1000, auto_cleanup=True"),
    (PipelineTrackingManager().with_storage, "storage"),
    (PipelineTrackingManager().with_auto_storage, "broker"),
    (PipelineTrackingManager().get_status, "pipeline_id"),
    (PipelineTrackingManager().list_pipelines, "status_filter=None, limit=100"),
    (PipelineTrackingManager().get_history, "since=None, until=None, limit=100"),
    (PipelineTrackingManager().delete_pipeline, "pipeline_id"),
    (PipelineTrackingManager().cleanup_older_than, "days=30"),
    (PipelineTrackingManager().get_metrics, "days=7"),
    (PipelineTrackingManager().add_listener, "listener"),
    (TrackingEventBroadcaster, "tracking, hooks"),
    (InMemoryPipelineStorage, "max_records=1000"),
    (
        RedisPipelineStorage,
        (
            "redis_client, key_prefix='taskiq_flow:tracking:', ttl_seconds=604800, "
            f"serializer={json.dumps!r}"
        ),
    ),
    (Tracing, "tracer_provider=None, meter_provider=None"),
    (ExecutionEngine(InMemoryBroker(), DAG()).execute, RUN),
    (ExecutionEngine(InMemoryBroker(), DAG()).execute_async, f"{RUN}, items=False"),
    (ExecutionEngine(InMemoryBroker(), DAG()).start, f"{RUN}, items=False"),
    (ExecutionEngine(InMemoryBroker(), DAG()).stream, f"{RUN}, items=False"),
    (ExecutionEngine(InMemoryBroker(), DAG()).cancel, ""),
    (ExecutionEngine(InMemoryBroker(), DAG()).resume, RESUME),
    (ExecutionEngine(InMemoryBroker(), DAG()).start_resume, RESUME),
    (ExecutionEngine(InMemoryBroker(), DAG()).rerun, RERUN),
    (ExecutionEngine(InMemoryBroker(), DAG()).start_rerun, RERUN),
    (Retry, RETRY),
    (Cache, "ttl=None"),
    (SqliteJournal, "path, *, fsync=False, serializer=None"),
    (RedisJournal, "url, *, prefix='taskiq_flow:journal', serializer=None"),
    (MapReduce.map, MAP),
    (MapReduce.reduce, "broker, reduce_func, mapped_result, input_name, output='reduced'"),
    (MapReduce.map_reduce, MAP_REDUCE),
]


def bare(signature: inspect.Signature) -> str:
    """A signature without its annotations."""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(parameters))[1:-1]


def test_the_public_names_are_these() -> None:
    assert sorted(taskiq_flow.__all__) == NAMES
    assert len(set(taskiq_flow.__all__)) == len(taskiq_flow.__all__)


def test_the_public_names_for_tests_are_these() -> None:
    assert taskiq_flow.testing.__all__ == [
        "HangingError",
        "LocalBroker",
        "LocalFlowMiddleware",
        "LocalNotices",
        "LocalNotifier",
        "LocalResults",
        "OrderError",
        "OrdersChecked",
        "ReplayError",
        "RunOutcome",
        "ValueChangedError",
        "VirtualClockLoop",
        "check_orders",
        "in_memory",
        "record",
        "replay",
        "run",
        "run_virtually",
    ]


def test_nothing_else_looks_public() -> None:
    found = {
        name
        for name, item in vars(taskiq_flow).items()
        if not name.startswith("_") and not inspect.ismodule(item)
    }
    assert found == set(NAMES)


@pytest.mark.parametrize(("module", "name"), PLACES)
def test_a_name_is_the_same_wherever_it_is_imported_from(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) is getattr(taskiq_flow, name)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"Event", "Join", "NO_FALLBACK"}))
def test_every_public_name_says_what_it_is(name: str) -> None:
    item = getattr(taskiq_flow, name)
    assert inspect.isclass(item) or inspect.isfunction(item)
    assert item.__doc__
    assert not item.__doc__.startswith(f"{name}(")  # what a dataclass writes by itself


@pytest.mark.parametrize(
    ("function", "signature"), SIGNATURES, ids=[f.__qualname__ for f, _ in SIGNATURES]
)
def test_a_public_callable_is_called_like_this(
    function: Callable[..., Any], signature: str
) -> None:
    assert bare(inspect.signature(function)) == signature


def test_calls_are_awaited_iterated_or_plain_as_documented() -> None:
    engine = ExecutionEngine(InMemoryBroker(), DAG())
    assert inspect.isasyncgen(engine.execute_async())
    assert inspect.iscoroutinefunction(engine.execute)
    assert not inspect.iscoroutinefunction(engine.cancel)
    for function in (MapReduce.map, MapReduce.reduce, MapReduce.map_reduce):
        assert inspect.iscoroutinefunction(function)


@pytest.mark.parametrize("returned", [MapReduceResult, RunHandle])
def test_what_a_map_or_start_returns_is_a_task_of_taskiq(
    returned: type[AsyncTaskiqTask[Any]],
) -> None:
    assert issubclass(returned, AsyncTaskiqTask)
    assert {"check_interval", "timeout"} <= set(inspect.signature(returned.wait_result).parameters)
    taskiqs, ours = (
        bare(inspect.signature(kind.wait_result)) for kind in (AsyncTaskiqTask, returned)
    )
    assert ours == taskiqs


def test_the_version_is_that_of_the_installed_package() -> None:
    assert taskiq_flow.__version__ == importlib.metadata.version("taskiq-flow")
