"""Tasks that say themselves what they take and give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.tasks import Task, original_function
from taskiq_flow.suggestions import suggests_keywords

F = TypeVar("F", bound=Callable[..., Any])

_DECLARATION = "__taskiq_flow_declaration__"


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a task was declared with; ``None`` where nothing was said."""

    outputs: tuple[str, ...] | None = None
    inputs: tuple[str, ...] | None = None
    description: str | None = None


@suggests_keywords()
def pipeline_task(
    output: str | None = None,
    outputs: Iterable[str] | None = None,
    inputs: Iterable[str] | None = None,
    description: str | None = None,
) -> Callable[[F], F]:
    """Declare the keys that a task gives and takes, for ``DataflowPipeline``.

    It may stand over or under ``@broker.task``. ``output`` and ``outputs`` are those of a
    ``DAGNode``: without either, the key is the task's name. ``inputs``: keys; left out, each
    parameter takes the key of its name.

    Raises ``TypeError`` or ``ValueError`` for what no task can have.

    >>> @pipeline_task(output="words", description="splits at spaces")
    ... def split(text): return text.split()
    >>> @pipeline_task(inputs=["words"])
    ... def count(items): return len(items)
    >>> pipeline = DataflowPipeline(InMemoryBroker(), [count, split])
    >>> asyncio.run(pipeline.kiq_dataflow(text="ebb and flow"))
    {'words': ['ebb', 'and', 'flow'], 'count': 3}
    """
    if callable(output):
        raise TypeError("pipeline_task is used with parentheses: @pipeline_task(output='key')")
    # Lists, for a decorator that is used again. A string or a set is refused by the node.
    keys = list(outputs) if isinstance(outputs, Iterator) else outputs
    taken = list(inputs) if isinstance(inputs, Iterator) else inputs

    def declare(task: F) -> F:
        node = DAGNode(task, output, taken, outputs=keys)  # checks all of it
        declaration = Declaration(
            None if output is None and keys is None else tuple(node.outputs),
            None if taken is None else tuple(taken),
            description,
        )
        setattr(original_function(task), _DECLARATION, declaration)
        return task

    return declare


@suggests_keywords()
def pipeline_task_multi_output(
    outputs: Iterable[str], inputs: Iterable[str] | None = None
) -> Callable[[F], F]:
    """Like ``pipeline_task``, for a task that gives several keys.

    A tuple or a list that it returns is split by position, a mapping by key.

    >>> @pipeline_task_multi_output(["low", "high"])
    ... def ends(numbers): return min(numbers), max(numbers)
    >>> asyncio.run(DataflowPipeline(InMemoryBroker(), [ends]).kiq_dataflow(numbers=[3, 1, 2]))
    {'low': 1, 'high': 3}
    """
    return pipeline_task(outputs=outputs, inputs=inputs)


def is_pipeline_task(task: object) -> bool:
    """Whether a task was declared with ``pipeline_task``.

    >>> @pipeline_task(output="size")
    ... def count(text): return len(text)
    >>> is_pipeline_task(count), is_pipeline_task(len)
    (True, False)
    """
    return callable(task) and _declaration(task) is not None


def get_task_outputs(task: Task) -> list[str]:
    """The keys that a task gives: as declared, else its name.

    >>> @pipeline_task(output="size")
    ... def count(text): return len(text)
    >>> get_task_outputs(count)
    ['size']
    """
    return declared_node(task).outputs


def get_task_inputs(task: Task) -> list[str]:
    """The keys that a task takes: as declared, else the names of its required parameters.

    >>> @pipeline_task(output="size")
    ... def count(text): return len(text)
    >>> get_task_inputs(count)
    ['text']
    """
    return declared_node(task).inputs


def declared_node(task: Task, **options: Any) -> DAGNode:
    """A node of a task as it was declared. ``options``: of a ``DAGNode``, in place of that."""
    if not callable(task):
        raise TypeError(f"{task!r} is no task; give a taskiq task or a callable")
    declaration = _declaration(task) or Declaration()
    if "output" not in options and "outputs" not in options:
        options["outputs"] = declaration.outputs
    options.setdefault("inputs", declaration.inputs)
    if declaration.description is not None:
        given = options.get("metadata") or {}
        options["metadata"] = {"description": declaration.description, **given}
    return DAGNode(task, **options)


def _declaration(task: Task) -> Declaration | None:
    return getattr(original_function(task), _DECLARATION, None)
