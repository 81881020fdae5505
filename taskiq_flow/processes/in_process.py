"""``in_process``: a function as a task that runs in a child process of its own."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import sys
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from numbers import Integral
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast, overload

from taskiq_flow.errors import ConfigurationError
from taskiq_flow.processes import child_main
from taskiq_flow.processes.awaited import is_awaited_by_taskiq
from taskiq_flow.processes.children import Call, Places, run
from taskiq_flow.suggestions import suggests_keywords

P = ParamSpec("P")
R = TypeVar("R")

when_begun: ContextVar[Callable[[], None] | None] = ContextVar("when_begun", default=None)
"""Called from any thread when the function of the running asyncio task has a thread, or a place."""

_MAINS = (child_main.MAIN, child_main.MAIN_OF_CHILD)


@overload
def in_process(
    function: Callable[P, R], *, limit: int | None = None
) -> Callable[P, Coroutine[Any, Any, R]]: ...
@overload
def in_process(
    function: None = None, *, limit: int | None = None
) -> Callable[[Callable[P, R]], Callable[P, Coroutine[Any, Any, R]]]: ...
@suggests_keywords()
def in_process(function: Callable[..., Any] | None = None, *, limit: int | None = None) -> Any:
    """Make an async function that runs ``function`` in a child process of its own.

    For CPU-bound functions on several cores: a node's task, or the function below ``@broker.task``.
    Also a decorator. Arguments, result and exceptions are pickled. When the call is cancelled or
    exceeds its node's ``timeout``, the process is killed. If the process ends during the call, the
    call raises ``TaskLostError`` with its exit code.

    ``limit``: how many calls of this function run at a time. Functions without a limit share one
    for this process: as many calls as there are usable cores. Waiting for a place is queueing: a
    node's ``timeout`` begins after it, its ``queue_timeout`` ends with it.

    Raises ``ConfigurationError`` for a function that no other process can import: it must be found
    under its own name in a module. A function of the main script has the script imported in each of
    its processes, so the script needs ``if __name__ == "__main__":`` around what it runs.

    >>> from statistics import fmean
    >>> dag = DAGBuilder().node(in_process(fmean, limit=2), inputs=["data"], timeout=30).build()
    >>> ExecutionEngine(InMemoryBroker(), dag).execute_sync({"data": [1, 2, 6]})
    {'fmean': 3.0}
    """
    is_whole = isinstance(limit, Integral) and not isinstance(limit, bool)
    if limit is not None and not (is_whole and limit >= 1):
        raise ValueError(
            f"limit of in_process is {limit!r}; give a whole number from 1 on, or None"
        )
    if function is None:
        return functools.partial(in_process, limit=limit)
    _check(function)
    return _wrapped(function, _shared_places() if limit is None else Places(int(limit)))


def _wrapped(function: Callable[..., Any], places: Places) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        check_importable(call)
        if child_main.MAIN in sys.modules and getattr(
            sys.modules[child_main.MAIN], "is_loading_main", False
        ):
            raise ConfigurationError(
                f"in_process: the main script calls {_name(function)} while a child process "
                'imports it; put what the script runs below: if __name__ == "__main__":'
            )
        named = list(zip(_parameters(function, len(args)), args, strict=True))
        call_of_child = Call(
            function.__module__, function.__qualname__, _main_of(function), named, kwargs
        )
        return await run(call_of_child, places, when_begun.get())

    vars(call)[child_main.FUNCTION] = function
    return call


def runs_in_process(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function that ``in_process`` was given to make this one; ``None`` for any other."""
    return cast("Callable[..., Any] | None", getattr(function, child_main.FUNCTION, None))


def begins_at_once(function: Callable[..., Any]) -> bool:
    """Whether a task's function runs when it is called, without waiting for a thread or a place."""
    return is_awaited_by_taskiq(function) and runs_in_process(function) is None


def check_importable(task: Callable[..., Any]) -> None:
    """Check that a function made by ``in_process`` is found under its name, as its child looks.

    Raises ``ConfigurationError``.
    """
    function = runs_in_process(task)
    if function is None:
        return
    module = sys.modules.get(function.__module__)
    try:
        found = child_main.find(cast("Any", module), function.__qualname__)
    except AttributeError:
        found = None
    if found != function:
        stands_for = "nothing is found" if found is None else f"{found!r} is found"
        raise ConfigurationError(
            f"in_process: {function!r} cannot be imported by another process: {stands_for} under "
            f"its name {_name(function)}; define it under this name at the top of a module"
        )


def _check(function: Any) -> None:
    """Refuse what no child can import and call, as far as that is known at the declaration."""
    kind = None
    if not (inspect.isroutine(function) or inspect.isclass(function)):
        kind = f"is a {type(function).__qualname__}, not a function"
    elif function.__name__ == "<lambda>":
        kind = "is a lambda"
    elif "<locals>" in function.__qualname__:
        kind = "is defined within a function"
    elif inspect.iscoroutinefunction(function):
        kind = "is async, and needs no process: it does not hold the event loop while it waits"
    elif inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        kind = "is a generator function, whose items no process can hand over one by one"
    elif function.__module__ not in sys.modules:
        kind = f"has the module {function.__module__!r}, which is not imported"
    if kind is not None:
        raise ConfigurationError(
            f"in_process: {function!r} {kind}; give it a plain function, defined at the top of a "
            "module, so that another process can import it"
        )
    _main_of(function)


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _main_of(function: Callable[..., Any]) -> tuple[str, str] | None:
    """How a child imports the main module, if the function is defined there."""
    if function.__module__ not in _MAINS:
        return None
    main = sys.modules[child_main.MAIN]
    sys.modules.setdefault(child_main.MAIN_OF_CHILD, main)  # for classes of results
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return _guarded("module", spec.name, spec.origin, function)
    path = getattr(main, "__file__", None)
    if path is None or not Path(path).is_file():
        raise ConfigurationError(
            f"in_process: {_name(function)} is defined in an interactive session or by -c, which "
            "no other process can import; move it to a module"
        )
    return _guarded("path", str(Path(path).absolute()), path, function)


def _guarded(
    kind: str, where: str, path: str | None, function: Callable[..., Any]
) -> tuple[str, str]:
    if path is None or not _has_guard(path):
        raise ConfigurationError(
            f"in_process: {_name(function)} is defined in the main script {where}, which each "
            'child would run again; put what the script runs below: if __name__ == "__main__":'
            " - or move the function to a module that the script imports"
        )
    return kind, where


@functools.cache
def _has_guard(path: str) -> bool:
    """Whether a script has an ``if`` at its top that asks for ``__name__``."""
    return any(
        isinstance(statement, ast.If)
        and any(isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(statement.test))
        for statement in ast.parse(Path(path).read_bytes()).body
    )


def _parameters(function: Callable[..., Any], count: int) -> list[str]:
    """The names of the first ``count`` parameters by position."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # of some built-in functions
        parameters = []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in kinds][:count]
    return names + [f"number {number}" for number in range(len(names) + 1, count + 1)]


@functools.cache
def _shared_places() -> Places:
    """The places of all functions without a limit of their own."""
    if hasattr(os, "sched_getaffinity"):
        return Places(len(os.sched_getaffinity(0)))
    return Places(os.cpu_count() or 1)
