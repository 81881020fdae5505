"""Finds what a command is given as ``module:attribute``: a graph or an engine, and a broker."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask, InMemoryBroker

from taskiq_flow.cli.exits import CommandError
from taskiq_flow.dataflow import DAG, DAGBuilder, DataflowRegistry
from taskiq_flow.errors import GraphError, TaskiqFlowError, describe
from taskiq_flow.execution_engine import ExecutionEngine
from taskiq_flow.pipelines.base import RunnablePipeline
from taskiq_flow.suggestions import did_you_mean


@dataclass(frozen=True, slots=True)
class Flow:
    """A graph, and the options of the engine that runs it. ``where``: as the user has named it.

    ``run_id``: of its runs, if it says so itself.
    """

    where: str
    dag: DAG
    options: Mapping[str, Any]
    run_id: str | None = None


_Parts = tuple[DAG, Mapping[str, Any], str | None]


def _of_engine(engine: ExecutionEngine, run_id: str | None = None) -> _Parts:
    return engine.options["dag"], engine.options, run_id


_KINDS: Mapping[type, Callable[[Any], _Parts]] = {
    DAG: lambda dag: (dag, {}, None),
    DAGBuilder: lambda builder: (builder.build(), {}, None),
    DataflowRegistry: lambda registry: (registry.build_dag(), {}, None),
    ExecutionEngine: _of_engine,
    RunnablePipeline: lambda pipeline: _of_engine(pipeline.engine, pipeline.pipeline_id),
}
"""What a flow may be."""


def flow_at(where: str) -> Flow:
    """The flow at ``module:attribute``, which may also be a function that returns one.

    Raises ``CommandError`` if there is none, and ``GraphError`` for one that is wrong.
    """
    found = _at(where, "a graph", tuple(_KINDS))
    if inspect.isfunction(found) and not _required_parameters(found):
        with _told_as_broken(f"{where}() fails", TaskiqFlowError):
            found = found()
    for kind, parts in _KINDS.items():
        if isinstance(found, kind):
            flow = Flow(where, *parts(found))
            flow.dag.origin = where
            return flow
    raise CommandError(
        f"{where} is {_described(found)}; name a DAG, a DAGBuilder, a DataflowRegistry, an "
        "ExecutionEngine, a pipeline, or a function without parameters that returns one"
    )


def broker_at(where: str) -> AsyncBroker:
    """The broker at ``module:attribute``. Raises ``CommandError`` if there is none."""
    found = _at(where, "a broker", (AsyncBroker,))
    if not isinstance(found, AsyncBroker):
        raise CommandError(f"{where} is {_described(found)}; name a taskiq broker")
    return found


def broker_of(dag: DAG) -> AsyncBroker:
    """The broker of a graph's tasks; one in this process if they are plain functions."""
    tasks = (node.task for node in dag.nodes)
    brokers = {
        id(task.broker): task.broker for task in tasks if isinstance(task, AsyncTaskiqDecoratedTask)
    }
    if len(brokers) > 1:
        raise CommandError(
            f"the tasks of the graph belong to {len(brokers)} brokers; say which one runs it with "
            "--broker module:broker"
        )
    return next(iter(brokers.values()), None) or InMemoryBroker()


def _at(where: str, what: str, kinds: tuple[type, ...]) -> Any:
    name, colon, path = where.partition(":")
    if not (colon and name and path):
        raise CommandError(
            f"{where!r} does not name {what}; write module:name, as in flows:nightly"
        )
    if name.endswith(".py") or "/" in name:
        module = name.removesuffix(".py").replace("/", ".")
        raise CommandError(f"{name!r} is no module; write its name, as in {module}:{path}")
    found: Any = _module(name)
    for part in path.split("."):
        if not hasattr(found, part):
            known = [key for key, value in vars(found).items() if isinstance(value, kinds)]
            listed = ", ".join(known)
            hint = did_you_mean(part, known) or (f"; it has {listed}" if listed else "")
            raise CommandError(f"{name} has no {part!r}{hint}")
        found = getattr(found, part)
    return found


def _module(name: str) -> ModuleType:
    """Import a module, also from the working directory."""
    try:
        here = str(Path.cwd())
    except FileNotFoundError:
        raise CommandError("the working directory is gone; change to another one") from None
    if here not in sys.path:
        sys.path.insert(0, here)
    with _told_as_broken(f"{name} cannot be imported", GraphError):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if name != missing and not name.startswith(f"{missing}."):
                raise
            known = [path.stem for path in Path(here).glob("*.py")]
            hint = did_you_mean(name, known)
            raise CommandError(f"there is no module {missing!r} in {here}{hint}") from None


@contextmanager
def _told_as_broken(what: str, unless: type[Exception]) -> Iterator[None]:
    """Raise ``CommandError`` for what the user's own code raises, with where it does."""
    try:
        yield
    except (unless, CommandError):
        raise
    except (Exception, SystemExit) as error:  # a script without a main guard may call sys.exit()
        lines = "".join(traceback.format_exception(error.with_traceback(_users_frames(error))))
        raise CommandError(f"{what}: {describe(error)}\n\n{lines.rstrip()}") from error


def _users_frames(error: BaseException) -> TracebackType | None:
    """The traceback from the user's own module on. A syntax error has none."""
    frames = error.__traceback__
    skipped = (__file__, importlib.__file__, "<frozen importlib")
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(skipped):
        frames = frames.tb_next
    return frames


def _required_parameters(function: Callable[..., Any]) -> list[str]:
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _described(thing: object) -> str:
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    if inspect.isfunction(thing):
        return f"the function {thing.__name__}({', '.join(_required_parameters(thing))})"
    return f"an object of type {type(thing).__name__}"
