"""The errors and warnings of this package.

    TaskiqFlowError
    ├── GraphError                 the graph was declared wrongly
    │   ├── CycleError
    │   ├── MissingNodeError
    │   ├── DuplicateOutputError
    │   ├── BindingError
    │   ├── TypeMismatchError      a node returns what no node after it can take
    │   └── GraphChangedError      the run in the journal was started with another graph
    ├── ConfigurationError         the broker or a task cannot do what is asked
    ├── PipelineError              a pipeline or a job of its scheduler is used wrongly
    ├── RunNotFoundError           the journal has no such run
    ├── TrackingError              a stored status of a run cannot be read
    ├── InputError                 the run was given wrong inputs
    │   ├── MissingInputError
    │   └── InputConflictError
    ├── NodeError                  a node failed; found as a cause or in ``.failures``
    │   ├── OutputShapeError
    │   ├── SerializationError
    │   │   └── AnnotationError    a value does not fit an annotation of its task
    │   ├── ResultUnavailableError
    │   ├── NodeTimeoutError       a ``TimeoutError`` as well
    │   ├── TaskLostError
    │   ├── ServerUnreachableError  the broker or the result backend was away for too long
    │   └── ItemsChangedError      a generator was executed again, and gave other items
    └── RunError                   a run ended without all results; has those it reached
        ├── NodeFailedError
        ├── RunFailedError
        ├── RunCancelledError
        ├── RunTimeoutError
        ├── RunLockedError         another engine has the run's lease
        └── JournalError           the journal cannot be written or read

    UserWarning
    ├── UnusedInputWarning
    ├── TypeMismatchWarning
    ├── PollingWarning
    ├── FormatterWarning
    ├── RedefinedTaskWarning
    └── NotCachedWarning

Every class can be constructed from its message alone, so that it can be pickled.
"""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from asyncio import CancelledError
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NODE_ERRORS = (Exception, CancelledError)
"""What the user's code may raise for one node. Anything else stops the process, and its runs."""


class TaskiqFlowError(Exception):
    """Base class of this package's errors."""


class GraphError(TaskiqFlowError):
    """The graph cannot be run as it was declared."""


class CycleError(GraphError):
    """Nodes depend on each other in a cycle. ``cycle``: their names, in order, each once."""

    def __init__(self, message: str, *, cycle: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.cycle = list(cycle)


class MissingNodeError(GraphError):
    """A node, an output key or an end of an edge is not in the graph. ``reference``: its name."""

    def __init__(self, message: str, *, reference: object = None) -> None:
        super().__init__(message)
        self.reference = reference


class DuplicateOutputError(GraphError):
    """Several nodes declare the output key ``key``. ``task_names``: the nodes."""

    def __init__(self, message: str, *, key: str = "", task_names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.key = key
        self.task_names = list(task_names)


class BindingError(GraphError):
    """A node's inputs do not match its task's parameters.

    ``task_name``, ``parameter``, ``key``: the node, parameter and input key; ``None`` if unknown.
    """

    def __init__(
        self,
        message: str,
        *,
        task_name: str | None = None,
        parameter: str | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(message)
        self.task_name = task_name
        self.parameter = parameter
        self.key = key


class TypeMismatchError(GraphError):
    """The annotations of two nodes contradict each other (``type_check="error"``).

    ``producer``, ``key``: the node that gives a value, and its output key; ``consumer``,
    ``parameter``: the node that cannot take it, and the parameter. The message has all mismatches,
    these are of the first.
    """

    def __init__(
        self,
        message: str,
        *,
        producer: str = "",
        key: str = "",
        consumer: str = "",
        parameter: str = "",
    ) -> None:
        super().__init__(message)
        self.producer = producer
        self.key = key
        self.consumer = consumer
        self.parameter = parameter


class GraphChangedError(GraphError):
    """A run in the journal was started with a graph that differs from the engine's.

    ``added``, ``removed``, ``changed``: names of the nodes that only the engine's graph has, that
    only the run's graph had, and whose declarations differ.
    """

    def __init__(
        self,
        message: str,
        *,
        added: Iterable[str] = (),
        removed: Iterable[str] = (),
        changed: Iterable[str] = (),
    ) -> None:
        super().__init__(message)
        self.added = list(added)
        self.removed = list(removed)
        self.changed = list(changed)


class ConfigurationError(TaskiqFlowError):
    """The broker or a task cannot do what is asked of it."""


class PipelineError(TaskiqFlowError):
    """A pipeline, or a job of a ``PipelineScheduler``, cannot do what is asked of it."""


class RunNotFoundError(TaskiqFlowError):
    """The journal has no run ``run_id``."""

    def __init__(self, message: str, *, run_id: str = "") -> None:
        super().__init__(message)
        self.run_id = run_id


class TrackingError(TaskiqFlowError):
    """A storage of statuses has something that is no status."""


class InputError(TaskiqFlowError):
    """The inputs of a run do not fit its graph. ``keys``: the wrong or missing keys."""

    def __init__(self, message: str, *, keys: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.keys = list(keys)


class MissingInputError(InputError):
    """Inputs that the run's nodes need are missing. ``keys``: all of them."""


class InputConflictError(InputError):
    """The run was given inputs under output keys of its own nodes."""


class UnusedInputWarning(UserWarning):
    """The run was given an input that no node takes."""


class TypeMismatchWarning(UserWarning):
    """The annotations of two nodes contradict each other (``type_check="warn"``)."""


class PollingWarning(UserWarning):
    """The broker has no ``FlowMiddleware``: results are polled, and nothing reaches its workers."""


class FormatterWarning(UserWarning):
    """The broker has a formatter of the user's own: values keep only the types that it carries."""


class RedefinedTaskWarning(UserWarning):
    """The broker has another function under the name of a task than the graph was built with."""


class NotCachedWarning(UserWarning):
    """A node with a ``Cache`` is not cached, as its inputs or its result cannot be encoded."""


class NodeError(TaskiqFlowError):
    """A node has no result. ``task_name``: the node."""

    def __init__(self, message: str, *, task_name: str = "") -> None:
        super().__init__(message)
        self.task_name = task_name


class OutputShapeError(NodeError):
    """A node with several outputs returned a value that cannot be split into them."""


class SerializationError(NodeError):
    """An input or a result cannot be serialized.

    ``key``: the input's key, ``None`` for a result; ``value_type``: the value's type, if known.
    """

    def __init__(
        self,
        message: str,
        *,
        task_name: str = "",
        key: str | None = None,
        value_type: type | None = None,
    ) -> None:
        super().__init__(message, task_name=task_name)
        self.key = key
        self.value_type = value_type


class AnnotationError(SerializationError):
    """A value neither fits the annotation of a parameter or of a result, nor can be converted.

    ``key``: the parameter, ``None`` for a result.
    """


class ResultUnavailableError(NodeError):
    """A task has ended, but its result was not stored, or is no longer stored."""


class NodeTimeoutError(NodeError, TimeoutError):
    """An attempt exceeded its time limit of ``seconds``.

    ``waited``: whether no worker had begun it, so that the limit was its ``queue_timeout``.
    """

    def __init__(
        self, message: str, *, task_name: str = "", seconds: float = 0.0, waited: bool = False
    ) -> None:
        super().__init__(message, task_name=task_name)
        self.seconds = seconds
        self.waited = waited


class TaskLostError(NodeError):
    """A task was sent, and nothing will ever report its result or its error."""


class ServerUnreachableError(NodeError):
    """The server of the broker or of the result backend was away for longer than is waited.

    ``__cause__``: what its client raised.
    """


class ItemsChangedError(NodeError):
    """A generator was executed once more, and did not give the items that it had given before."""


class RunError(TaskiqFlowError):
    """A run ended without all of its results.

    ``results``: output key → value, of all completed nodes. ``failures``: node name → exception.
    ``skipped``: names of the nodes that did not run because they depend on a failed node. Of the
    elements of mapped nodes, both have the first 1,000. ``failure_count``: how many failed in all.
    """

    def __init__(
        self,
        message: str,
        *,
        results: Mapping[str, Any] | None = None,
        failures: Mapping[str, BaseException] | None = None,
        skipped: Iterable[str] = (),
        failure_count: int | None = None,
    ) -> None:
        super().__init__(message)
        self.results = dict(results or {})
        self.failures = dict(failures or {})
        self.skipped = list(skipped)
        self.failure_count = len(self.failures) if failure_count is None else failure_count


class NodeFailedError(RunError):
    """A node failed and ended the run (``on_error="raise"``).

    ``__cause__``: the task's exception, or that of its fallback, which then has the task's as a
    ``__context__``. ``task_name``, ``task_id``: the node and its task; ``attempts``: how often the
    task was executed, with the fallback.
    """

    def __init__(
        self,
        message: str,
        *,
        task_name: str = "",
        task_id: str = "",
        attempts: int = 1,
        results: Mapping[str, Any] | None = None,
        failures: Mapping[str, BaseException] | None = None,
        skipped: Iterable[str] = (),
        failure_count: int | None = None,
    ) -> None:
        super().__init__(
            message,
            results=results,
            failures=failures,
            skipped=skipped,
            failure_count=failure_count,
        )
        self.task_name = task_name
        self.task_id = task_id
        self.attempts = attempts


class RunFailedError(RunError):
    """Some nodes failed; all others that could run have run (``on_error="continue"``)."""


class RunCancelledError(RunError):
    """The run was stopped by ``cancel()``."""


class RunTimeoutError(RunError):
    """The run took longer than its ``run_timeout``."""


class RunLockedError(RunError):
    """Another engine has the run's lease, or has taken it over."""


class JournalError(RunError):
    """The journal cannot be written or read. It has everything that was yielded."""


_LONGEST_TEXT = 4_000
"""Characters of an error that are quoted in another one, which has that error as an attribute."""

_LONGEST_ORIGIN = 400
"""Characters of the error because of which a fallback was used, where it is added to a message."""


def describe(error: BaseException, after: BaseException | None = None) -> str:
    """The name of an error's type, and its message if it has one; of a long one, its beginning.

    ``after``: as of ``message_of``.
    """
    text = message_of(error, after)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def message_of(error: BaseException, after: BaseException | None = None) -> str:
    """An error's message; of a long one, its beginning.

    ``after``: the error of a node, if ``error`` is its fallback's. Its first line says so.
    """
    try:
        text = str(error)
    except Exception:  # a user's exception whose __str__ raises
        text = ""
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]}..."
    if after is None:
        return text
    first, line_feed, rest = text.partition("\n")
    origin = " ".join(describe(after).split())[:_LONGEST_ORIGIN]
    return f"{first} (raised by the fallback, after {origin}){line_feed}{rest}".lstrip()


_NOT_THE_USERS = tuple(
    os.path.dirname(file) + os.sep  # noqa: PTH120 - compared with file names in frames
    for file in (__file__, asyncio.__file__)
)


def warn(message: str, category: type[Warning]) -> None:
    """Warn, naming the line of the user's that called into this package.

    A coroutine that an event loop runs has no caller. Its line is then that which runs the loop.
    """
    level, frame = 2, sys._getframe(1)  # noqa: SLF001 - as the warnings module does
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
