"""The task of a node: its function, its default name, and its parameters."""

from __future__ import annotations

import builtins
import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Collection
from functools import partial
from inspect import Parameter
from types import FunctionType, SimpleNamespace
from typing import Annotated, Any, TypeAlias, get_args, get_origin, get_type_hints

from taskiq import AsyncTaskiqDecoratedTask, Context
from taskiq_dependencies.dependency import Dependency

from taskiq_flow.values.call import unwrapped
from taskiq_flow.values.classes import MAIN, script_name

Task = AsyncTaskiqDecoratedTask[Any, Any] | Callable[..., Any]
"""What a node runs: a taskiq task, or a plain callable, sync or async."""

_Parameters: TypeAlias = tuple[tuple[Parameter, ...], frozenset[str]]

# taskiq renames every function that it decorates, once more at each registration.
_RENAMED = "__taskiq_original"


def original_function(task: Task) -> Callable[..., Any]:
    """The callable that a task wraps, or the callable itself."""
    return unwrapped(task.original_func) if isinstance(task, AsyncTaskiqDecoratedTask) else task


def called_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that is executed when a callable is called."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def is_generator_function(function: Callable[..., Any]) -> bool:
    """Whether a callable is a generator function, sync or async."""
    called = called_function(function)
    return inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called)


def identity(task: Task) -> object:
    """The identity of a task. A bound method is a new object each time it is looked up."""
    if inspect.ismethod(task):
        return id(task.__self__), task.__func__
    return id(task)


def is_same_function(task: Task, other: Task) -> bool:
    """Whether two tasks execute the same function, or one that was made of the same code again.

    Those differ that close over variables of their own, whatever these hold now.
    """
    function, others = original_function(task), original_function(other)
    if function is others or identity(function) == identity(others):
        return True
    if not (isinstance(function, FunctionType) and isinstance(others, FunctionType)):
        return False
    return (
        function.__code__ == others.__code__
        and _held(function) == _held(others)
        and _annotations(task) == _annotations(other)
    )


def _held(function: FunctionType) -> list[int]:
    """The identities of what a function works with, apart from its code."""
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return [*map(id, (function.__globals__, *(function.__closure__ or ()), *defaults))]


def _annotations(task: Task) -> list[Any]:
    signature = task_info(task).signature
    return [signature.return_annotation, *(p.annotation for p in signature.parameters.values())]


def default_name(task: Task) -> str:
    """A task's own custom name if it has one, else the bare name of its function."""
    bare = _bare_name(original_function(task))
    if isinstance(task, AsyncTaskiqDecoratedTask) and not _is_generated(task, bare):
        return task.task_name
    return "lambda" if bare == "<lambda>" else bare


def _bare_name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return _as_written(getattr(function, "__name__", type(function).__name__))


def _as_written(name: str) -> str:
    while name.endswith(_RENAMED):
        name = name.removesuffix(_RENAMED)
    return name


def _is_generated(task: AsyncTaskiqDecoratedTask[Any, Any], bare: str) -> bool:
    """Whether taskiq made the task's name from the function's module and name."""
    module, _, function = task.task_name.rpartition(":")
    function = _as_written(function)
    if function != bare and not (bare == "<lambda>" and function.startswith("lambda_")):
        return False
    if module == task.original_func.__module__:
        return True
    return task.original_func.__module__ == MAIN and module == script_name()


def place_of(task: Task) -> str:
    """Where a task is written, as the end of a message; empty if that is unknown."""
    code = getattr(inspect.unwrap(original_function(task)), "__code__", None)
    return "" if code is None else f", at {code.co_filename}:{code.co_firstlineno}"


class TaskInfo:
    """A task and its signature, which is read once and shared by all nodes of the task.

    Only the nodes hold it. Its parameters may refer to the task (a default often does), so a
    longer-lived cache would keep the task alive.
    """

    __slots__ = ("__weakref__", "_parameters", "_signature", "task")

    def __init__(self, task: Task) -> None:
        self.task = task
        self._signature: inspect.Signature | None = None
        self._parameters: _Parameters | None = None

    @property
    def signature(self) -> inspect.Signature:
        """What ``signature_of`` returns for the task's function. Raises ``ValueError`` likewise."""
        if self._signature is None:
            self._signature = signature_of(original_function(self.task))
        return self._signature

    @property
    def parameters(self) -> _Parameters:
        """The parameters that a graph may bind, and the names of those that taskiq injects.

        Raises ``ValueError`` for a callable whose signature cannot be read.
        """
        if self._parameters is None:
            fixed = _fixed_by_partial(original_function(self.task))
            self._parameters = _bindable(self.signature, fixed)
        return self._parameters

    def __reduce__(self) -> tuple[Callable[[Task], TaskInfo], tuple[Task]]:
        return task_info, (self.task,)


# By id, as equal callables differ. An id here is not reused, as its ``TaskInfo`` holds the task.
_infos: weakref.WeakValueDictionary[int, TaskInfo] = weakref.WeakValueDictionary()


def task_info(task: Task) -> TaskInfo:
    """The ``TaskInfo`` that all nodes of a task share."""
    info = _infos.get(id(task))
    if info is None:
        info = _infos[id(task)] = TaskInfo(task)
    return info


def parameters_of(task: Task) -> _Parameters:
    """What ``TaskInfo.parameters`` is, for a callable that belongs to no node."""
    function = original_function(task)
    return _bindable(signature_of(function), _fixed_by_partial(function))


def _fixed_by_partial(function: Any) -> set[str]:
    """The names of parameters whose values a ``functools.partial`` has fixed."""
    names: set[str] = set()
    while isinstance(function, partial):
        names.update(function.keywords)
        function = function.func
    return names


def _bindable(signature: inspect.Signature, fixed: Collection[str]) -> _Parameters:
    parameters = signature.parameters
    injected = frozenset(name for name, parameter in parameters.items() if _is_injected(parameter))
    # taskiq injects by name: *args after such a parameter cannot be passed.
    unreachable = {
        Parameter.VAR_POSITIONAL
        for name in injected
        if parameters[name].kind is Parameter.POSITIONAL_OR_KEYWORD
    }
    bindable = (
        parameter
        for name, parameter in parameters.items()
        if name not in injected and name not in fixed and parameter.kind not in unreachable
    )
    return tuple(bindable), injected


def _is_injected(parameter: Parameter) -> bool:
    annotation = parameter.annotation
    if isinstance(parameter.default, Dependency) or annotation is Context:
        return True
    if get_origin(annotation) is not Annotated:
        return False
    kind, *extras = get_args(annotation)
    return kind is Context or any(isinstance(extra, Dependency) for extra in extras)


def takes(task: Task, name: str) -> bool:
    """Whether a task has a parameter of this name."""
    try:
        parameter = inspect.signature(original_function(task)).parameters.get(name)
    except (TypeError, ValueError):  # its signature cannot be read
        return False
    return parameter is not None and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """A callable's signature, in which each annotation is evaluated by itself.

    An annotation that cannot be evaluated stays a string, as one does with a name that only type
    checkers know. One that is evaluated has no forward references left. Raises ``ValueError`` for
    a callable whose signature cannot be read.
    """
    signature = inspect.signature(function)
    names = Names(function)
    cls = _class_called(function)
    returned = names.evaluated(signature.return_annotation) if cls is None else _made_by(cls)
    return signature.replace(
        parameters=[
            p if p.annotation is p.empty else p.replace(annotation=names.evaluated(p.annotation))
            for p in signature.parameters.values()
        ],
        return_annotation=returned,
    )


def _class_called(function: Callable[..., Any]) -> type | None:
    """The class that a callable makes an object of; ``None`` for one that is no class."""
    found: Any = function
    while isinstance(found := inspect.unwrap(found), partial):
        found = found.func
    return found if isinstance(found, type) else None


def _made_by(cls: type) -> Any:
    """What a call of a class returns. The annotation of its ``__init__``, ``None``, is not that."""
    plain: Any = object.__new__
    makes_own = cls.__new__ is plain and type(cls).__call__ is type.__call__
    return cls if makes_own else Parameter.empty


class Names:
    """The names that a callable's annotations may use: its module's, and those it closes over."""

    def __init__(self, function: Callable[..., Any]) -> None:
        found = function_of(function)
        self._globals: dict[str, Any] = {} if found is None else found.__globals__
        self._locals: dict[str, Any] = {}
        if found is not None and found.__closure__:
            for name, cell in zip(found.__code__.co_freevars, found.__closure__, strict=True):
                with contextlib.suppress(ValueError):  # a variable that has no value yet
                    self._locals[name] = cell.cell_contents

    @property
    def known(self) -> set[str]:
        """All of them, and those that are built in."""
        return {*self._globals, *self._locals, *dir(builtins)}

    def evaluated(self, annotation: Any) -> Any:
        """The annotation's value; as text if it has none."""
        try:
            return self.value(annotation)
        except Exception:  # the annotation's own code may raise anything
            return annotation if isinstance(annotation, str) else repr(annotation)

    def value(self, annotation: Any) -> Any:
        """The annotation's value. Raises whatever evaluating it raises."""
        if annotation is None or annotation is Parameter.empty:
            return annotation
        annotated = SimpleNamespace(__annotations__={"it": annotation})
        hints = get_type_hints(annotated, self._globals, self._locals, include_extras=True)
        return None if hints["it"] is type(None) else hints["it"]


def function_of(function: Callable[..., Any]) -> FunctionType | None:
    """The Python function that a call of a callable begins with; ``None`` if it has none."""
    found: Any = function
    while not isinstance(found := inspect.unwrap(found), FunctionType):
        if isinstance(found, partial):
            found = found.func
        elif inspect.ismethod(found):
            found = found.__func__
        elif isinstance(found, type):
            found = getattr(found, "__new__" if "__new__" in vars(found) else "__init__")
        elif isinstance(type(found).__call__, FunctionType):
            found = type(found).__call__
        else:
            return None
    return found
