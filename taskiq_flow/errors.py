"""What can go wrong, and whose fault it is.

    TaskiqFlowError
    ├── GraphError                 the graph as it was declared
    │   ├── CycleError
    │   ├── MissingNodeError
    │   ├── DuplicateOutputError
    │   ├── BindingError
    │   └── GraphChangedError      not the graph that a run in a journal was begun with
    ├── ConfigurationError         the broker or the task cannot do what is asked
    ├── RunNotFoundError           no such run is in the journal
    ├── InputError                 what this run was given
    │   ├── MissingInputError
    │   └── InputConflictError
    ├── NodeError                  one node; found as a cause or in ``.failures``
    │   ├── OutputShapeError
    │   ├── SerializationError
    │   ├── ResultUnavailableError
    │   ├── NodeTimeoutError       a ``TimeoutError`` as well
    │   └── TaskLostError
    └── RunError                   how a run ended; carries what it had reached
        ├── NodeFailedError
        ├── RunFailedError
        ├── RunCancelledError
        ├── RunTimeoutError
        ├── RunLockedError         another process goes on with it
        └── JournalError           what was to be kept could not be, or cannot be read

    UserWarning
    ├── UnusedInputWarning
    ├── PollingWarning
    └── NotCachedWarning

Every class can be built from its message alone, so that each can be pickled.
"""

from __future__ import annotations

import os
import sys
import warnings
from asyncio import CancelledError
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NODE_ERRORS = (Exception, CancelledError)
"""What the user's code may raise for one node. Anything else stops the process, and its runs."""


class TaskiqFlowError(Exception):
    """Base of every error that this package raises on its own account."""


class GraphError(TaskiqFlowError):
    """A graph that cannot be run as it was declared."""


class CycleError(GraphError):
    """Nodes wait for each other in a circle.

    ``cycle``: the names along it; the last one leads back to the first.
    """

    def __init__(self, message: str, *, cycle: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.cycle = list(cycle)


class MissingNodeError(GraphError):
    """A node, an output key or an edge's end that is not in the graph.

    ``reference``: what was asked for.
    """

    def __init__(self, message: str, *, reference: object = None) -> None:
        super().__init__(message)
        self.reference = reference


class DuplicateOutputError(GraphError):
    """Two nodes declare the same output key.

    ``key``: the key; ``task_names``: the nodes that declare it.
    """

    def __init__(self, message: str, *, key: str = "", task_names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.key = key
        self.task_names = list(task_names)


class BindingError(GraphError):
    """A node's inputs cannot be matched with its task's parameters.

    ``task_name``, ``parameter``, ``key``: where it happened; ``None`` where it does not apply.
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


class GraphChangedError(GraphError):
    """A run in a journal was begun with a graph that is not the engine's.

    ``added``, ``removed``, ``changed``: names of the nodes that only the engine's graph has, that
    only the run had, and that were declared otherwise.
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
    """The broker or a task is not set up for what is asked of it."""


class RunNotFoundError(TaskiqFlowError):
    """The journal knows no run of that id. ``run_id``: the one that was asked for."""

    def __init__(self, message: str, *, run_id: str = "") -> None:
        super().__init__(message)
        self.run_id = run_id


class InputError(TaskiqFlowError):
    """The inputs of a run do not fit its graph. ``keys``: the keys concerned."""

    def __init__(self, message: str, *, keys: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.keys = list(keys)


class MissingInputError(InputError):
    """The run was not given inputs that its nodes need; ``keys`` names all of them."""


class InputConflictError(InputError):
    """The run was given values under keys that its own nodes produce."""


class UnusedInputWarning(UserWarning):
    """The run was given an input that no node takes."""


class PollingWarning(UserWarning):
    """The broker has no ``FlowMiddleware``: results are polled, and nothing reaches its workers."""


class NotCachedWarning(UserWarning):
    """A node has a ``Cache``, and what it takes or gives cannot be told from other values."""


class NodeError(TaskiqFlowError):
    """What kept one node from giving its result. ``task_name``: the node."""

    def __init__(self, message: str, *, task_name: str = "") -> None:
        super().__init__(message)
        self.task_name = task_name


class OutputShapeError(NodeError):
    """A node with several outputs returned something that cannot be split into them."""


class SerializationError(NodeError):
    """A value that cannot be carried to a node, or a result that cannot be stored.

    ``key``: the key it came under; ``value_type``: its type. Both are ``None`` for a result.
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


class ResultUnavailableError(NodeError):
    """A task has ended, and its result could not be stored or is not stored any more."""


class NodeTimeoutError(NodeError, TimeoutError):
    """An attempt took longer than it may. ``seconds``: the limit that it has passed.

    ``waited``: whether it was not begun at all, and the limit that of ``queue_timeout``.
    """

    def __init__(
        self, message: str, *, task_name: str = "", seconds: float = 0.0, waited: bool = False
    ) -> None:
        super().__init__(message, task_name=task_name)
        self.seconds = seconds
        self.waited = waited


class TaskLostError(NodeError):
    """A task was sent, and neither a result nor an error of it will ever come."""


class RunError(TaskiqFlowError):
    """A run that did not end with all of its results.

    ``results``: output key → value, of every node that had completed.
    ``failures``: node name → the exception that it failed with.
    ``skipped``: names of the nodes that did not run because they depend on a failure.
    """

    def __init__(
        self,
        message: str,
        *,
        results: Mapping[str, Any] | None = None,
        failures: Mapping[str, BaseException] | None = None,
        skipped: Iterable[str] = (),
    ) -> None:
        super().__init__(message)
        self.results = dict(results or {})
        self.failures = dict(failures or {})
        self.skipped = list(skipped)


class NodeFailedError(RunError):
    """A node failed and ended the run (``on_error="raise"``).

    ``__cause__`` is the task's own exception. ``task_name``, ``task_id``: whose;
    ``attempts``: how often the task was executed.
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
    ) -> None:
        super().__init__(message, results=results, failures=failures, skipped=skipped)
        self.task_name = task_name
        self.task_id = task_id
        self.attempts = attempts


class RunFailedError(RunError):
    """All that could run has run, and some nodes failed (``on_error="continue"``)."""


class RunCancelledError(RunError):
    """The run was stopped by ``cancel()``."""


class RunTimeoutError(RunError):
    """The run took longer than its ``run_timeout``."""


class RunLockedError(RunError):
    """Another engine goes on with the run, or has taken it over."""


class JournalError(RunError):
    """A journal that cannot be written or read. Nothing was yielded that is not in it."""


def describe(error: BaseException) -> str:
    """An error in words: the name of its type, and its message."""
    try:
        text = str(error)
    except Exception:  # an exception of the user's whose own __str__ raises
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


_PACKAGE = os.path.dirname(__file__) + os.sep  # noqa: PTH120 - compared with the names in frames


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line outside this package by which the caller was called."""
    level, frame = 2, sys._getframe(1)  # noqa: SLF001 - as the warnings module does
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level - 1)
