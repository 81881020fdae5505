"""How a node's input keys reach its task's parameters: decided once, when the graph is built."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Annotated, Any, TypeAlias, get_args, get_origin

from taskiq import AsyncTaskiqDecoratedTask, Context
from taskiq_dependencies.dependency import Dependency

from taskiq_flow.errors import BindingError

Task = AsyncTaskiqDecoratedTask[Any, Any] | Callable[..., Any]
"""What a node runs: a taskiq task, or a plain callable, sync or async."""

Inputs = Iterable[str] | Mapping[str, str] | None
"""Input keys; or parameter → key; or ``None``: every parameter under its own name."""

_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Binding:
    """The keys that a task's call is made of.

    ``positional``: keys passed by position; ``filled``: (position, default) of the parameters
    between them that no key goes to; ``keyword``: (parameter, key) pairs passed by name.
    ``optional`` pairs are passed by name if the key has a value; ``trailing``: (key, default)
    pairs of parameters by position, passed as far as the last one that has a value, where ``None``
    is no key; ``surplus``: keys passed behind all of these to ``*args``, those that have a value.
    """

    positional: tuple[str, ...] = ()
    filled: tuple[tuple[int, Any], ...] = ()
    keyword: tuple[tuple[str, str], ...] = ()
    optional: tuple[tuple[str, str], ...] = ()
    trailing: tuple[tuple[str | None, Any], ...] = ()
    surplus: tuple[str, ...] = ()

    @property
    def required_keys(self) -> list[str]:
        """The keys without which the task cannot be called, each once."""
        return list(dict.fromkeys((*self.positional, *(key for _, key in self.keyword))))

    @property
    def optional_keys(self) -> list[str]:
        """The keys that are passed if they have a value."""
        trailing = (key for key, _ in self.trailing if key is not None)
        return list(dict.fromkeys((*trailing, *self.surplus, *(key for _, key in self.optional))))

    @property
    def keys(self) -> set[str]:
        """All keys that the task may be given."""
        return {*self.required_keys, *self.optional_keys}

    def keys_of(self, by_position: int) -> tuple[list[str], dict[str, str]]:
        """The keys behind a call's first ``by_position`` arguments, and those behind its names.

        Of surplus arguments it cannot be said which were there: they are named after all of them.
        """
        positional = list(self.positional)
        for position, default in self.filled:
            positional.insert(position, f"(default {default!r})")
        positional += [
            f"(default {default!r})" if key is None else key for key, default in self.trailing
        ]
        surplus = "/".join(self.surplus)
        positional += [surplus] * (by_position - len(positional))
        return positional[:by_position], dict((*self.keyword, *self.optional))

    def arguments(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of the call, taken from ``values``."""
        by_position = [values[key] for key in self.positional]
        by_name = {parameter: values[key] for parameter, key in self.keyword}
        if not (self.filled or self.optional or self.trailing or self.surplus):
            return by_position, by_name
        for position, default in self.filled:
            by_position.insert(position, default)
        for parameter, key in self.optional:
            if key in values:
                by_name[parameter] = values[key]
        surplus = [values[key] for key in self.surplus if key in values]
        given = [i for i, (key, _) in enumerate(self.trailing) if key in values]
        reached = len(self.trailing) if surplus else given[-1] + 1 if given else 0
        by_position += [
            default if key is None else values.get(key, default)
            for key, default in self.trailing[:reached]
        ]
        return by_position + surplus, by_name


def bind(task_name: str, task: Task, inputs: Inputs, *, lenient: bool = False) -> Binding:
    """Bind ``inputs`` to the parameters of ``task``.

    ``lenient``: a key that is declared for a parameter with a default, or for ``*args``, is passed
    only if it has a value.

    Raises ``BindingError`` for a key that finds no parameter and for a parameter bound twice.
    """
    try:
        parameters, injected = task_info(task).parameters
    except ValueError as error:
        raise BindingError(
            f"node {task_name!r}: the parameters of {task!r} cannot be read ({error}); wrap it in "
            "a function of your own",
            task_name=task_name,
        ) from error
    if inputs is None:
        return _undeclared(parameters)
    matching = _Matching(task_name, parameters, injected)
    if isinstance(inputs, Mapping):
        matching.match_spelled_out(inputs)
    else:
        matching.match_listed(list(inputs))
    return matching.binding(lenient=lenient)


class _Matching:
    """The state of matching keys with parameters, for inputs that were declared."""

    def __init__(
        self, task_name: str, parameters: Sequence[Parameter], injected: Collection[str]
    ) -> None:
        self.task_name = task_name
        self.parameters = parameters
        self.injected = injected
        self.plain = {p.name: p for p in parameters if _is_plain(p)}
        self.takes_args = any(p.kind is Parameter.VAR_POSITIONAL for p in parameters)
        self.takes_kwargs = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
        self.bound: dict[str, str] = {}
        self.surplus: list[str] = []

    def match_spelled_out(self, inputs: Mapping[str, str]) -> None:
        for parameter, key in inputs.items():
            if parameter not in self.plain and not self.takes_kwargs:
                raise self.error("has no such parameter", parameter, key)
            self.bind(parameter, key)

    def match_listed(self, keys: list[str]) -> None:
        for key in keys:
            if key in self.plain:
                self.bind(key, key)
        # Left to right, ``*args`` comes before the keyword-only parameters and takes all there is.
        left = [
            name
            for name, parameter in self.plain.items()
            if name not in self.bound
            and not (self.takes_args and parameter.kind is Parameter.KEYWORD_ONLY)
        ]
        for key in (key for key in keys if key not in self.plain):
            if left:
                self.bind(left.pop(0), key)
            elif self.takes_args:
                self.surplus.append(key)
            elif self.takes_kwargs:
                self.bind(key, key)
            else:
                raise self.error("has no parameter left", None, key)

    def bind(self, parameter: str, key: str) -> None:
        if parameter in self.bound:
            raise self.error("binds a parameter twice", parameter, key)
        if parameter in self.injected:
            raise self.error("binds a parameter that taskiq injects", parameter, key)
        self.bound[parameter] = key

    def binding(self, *, lenient: bool) -> Binding:
        """The call; required parameters that nothing has bound are taken by their own name."""
        for name, parameter in self.plain.items():
            if name not in self.bound and parameter.default is Parameter.empty:
                self.bound[name] = name
        call = _lenient_call if lenient else _call
        return call(self.parameters, self.bound, self.surplus)

    def error(self, problem: str, parameter: str | None, key: str) -> BindingError:
        at = f" at parameter {parameter!r}" if parameter else ""
        return BindingError(
            f"node {self.task_name!r} {problem}{at} for input key {key!r}; its task takes "
            f"({', '.join(map(_spelled, self.parameters))}): name as many inputs as that, "
            f"or spell them out as inputs={{parameter: key}}",
            task_name=self.task_name,
            parameter=parameter,
            key=key,
        )


def _call(
    parameters: Sequence[Parameter], bound: Mapping[str, str], surplus: Sequence[str]
) -> Binding:
    """Lay out a declared call: by name, and by position where Python leaves no choice."""
    kinds = [Parameter.POSITIONAL_ONLY, *([Parameter.POSITIONAL_OR_KEYWORD] if surplus else [])]
    by_position = [p for p in parameters if p.kind in kinds]
    while by_position and by_position[-1].name not in bound:
        by_position.pop()  # behind the last that has a key, the defaults fill in by themselves
    names = [p.name for p in by_position]
    return Binding(
        positional=(*(bound[name] for name in names if name in bound), *surplus),
        filled=tuple((i, p.default) for i, p in enumerate(by_position) if p.name not in bound),
        keyword=tuple(item for item in bound.items() if item[0] not in names),
    )


def _lenient_call(
    parameters: Sequence[Parameter], bound: Mapping[str, str], surplus: Sequence[str]
) -> Binding:
    """Lay out a declared call in which only parameters without a default need their keys."""
    kinds = [Parameter.POSITIONAL_ONLY, *([Parameter.POSITIONAL_OR_KEYWORD] if surplus else [])]
    by_position = [p for p in parameters if p.kind in kinds]
    while by_position and not surplus and by_position[-1].name not in bound:
        by_position.pop()
    required = [p for p in by_position if p.default is Parameter.empty]
    defaults = [p for p in by_position if p.default is not Parameter.empty]
    needed = {p.name for p in parameters if _is_plain(p) and p.default is Parameter.empty}
    by_name = bound.keys() - {p.name for p in by_position}
    return Binding(
        positional=tuple(bound[p.name] for p in required),
        trailing=tuple((bound.get(p.name), p.default) for p in defaults),
        surplus=tuple(surplus),
        keyword=tuple((n, key) for n, key in bound.items() if n in by_name & needed),
        optional=tuple((n, key) for n, key in bound.items() if n in by_name - needed),
    )


def _undeclared(parameters: Sequence[Parameter]) -> Binding:
    """The call of a task without declared inputs: each parameter takes the key of its name."""
    plain = [p for p in parameters if _is_plain(p)]
    required = [p for p in plain if p.default is Parameter.empty]
    optional = [p for p in plain if p.default is not Parameter.empty]
    only = Parameter.POSITIONAL_ONLY
    return Binding(
        positional=tuple(p.name for p in required if p.kind is only),
        keyword=tuple((p.name, p.name) for p in required if p.kind is not only),
        optional=tuple((p.name, p.name) for p in optional if p.kind is not only),
        trailing=tuple((p.name, p.default) for p in optional if p.kind is only),
    )


def original_function(task: Task) -> Callable[..., Any]:
    """The callable behind a task."""
    return task.original_func if isinstance(task, AsyncTaskiqDecoratedTask) else task


_Parameters: TypeAlias = tuple[tuple[Parameter, ...], frozenset[str]]


class TaskInfo:
    """A task and its parameters, which are read once.

    Each node of a task holds the same ``TaskInfo``, and nothing else holds it. What stands here may
    refer to the task (a default often does), so it must not live longer than the task's nodes.
    """

    __slots__ = ("__weakref__", "_parameters", "task")

    def __init__(self, task: Task) -> None:
        self.task = task
        self._parameters: _Parameters | None = None

    @property
    def parameters(self) -> _Parameters:
        """What ``parameters_of`` returns."""
        if self._parameters is None:
            self._parameters = parameters_of(self.task)
        return self._parameters

    def __reduce__(self) -> tuple[Callable[[Task], TaskInfo], tuple[Task]]:
        return task_info, (self.task,)


# By identity, as equal callables are not the same. A task that is found here is alive.
_infos: weakref.WeakValueDictionary[int, TaskInfo] = weakref.WeakValueDictionary()


def task_info(task: Task) -> TaskInfo:
    """The ``TaskInfo`` that all nodes of a task share."""
    info = _infos.get(id(task))
    if info is None:
        info = _infos[id(task)] = TaskInfo(task)
    return info


def parameters_of(task: Task) -> _Parameters:
    """The parameters of a task that a graph may bind, and the names of those that taskiq injects.

    Raises ``ValueError`` for a callable that does not tell its parameters.
    """
    parameters = signature_of(original_function(task)).parameters
    injected = frozenset(name for name, parameter in parameters.items() if _is_injected(parameter))
    # taskiq injects by name: with such a parameter among the others, *args is out of reach.
    unreachable = {
        Parameter.VAR_POSITIONAL
        for name in injected
        if parameters[name].kind is Parameter.POSITIONAL_OR_KEYWORD
    }
    bindable = (
        parameter
        for name, parameter in parameters.items()
        if name not in injected and parameter.kind not in unreachable
    )
    return tuple(bindable), injected


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """A callable's signature, with its annotations evaluated if all of them can be."""
    try:
        return inspect.signature(function, eval_str=True)
    except (NameError, SyntaxError):  # a name that only type checkers know
        return inspect.signature(function)


def _is_injected(parameter: Parameter) -> bool:
    annotation = parameter.annotation
    if isinstance(parameter.default, Dependency) or annotation is Context:
        return True
    if get_origin(annotation) is not Annotated:
        return False
    kind, *extras = get_args(annotation)
    return kind is Context or any(isinstance(extra, Dependency) for extra in extras)


def _is_plain(parameter: Parameter) -> bool:
    return parameter.kind not in _VARIADIC


def _spelled(parameter: Parameter) -> str:
    default = "" if parameter.default is Parameter.empty else "=..."
    if parameter.kind is Parameter.VAR_POSITIONAL:
        return f"*{parameter.name}"
    if parameter.kind is Parameter.VAR_KEYWORD:
        return f"**{parameter.name}"
    return f"{parameter.name}{default}"
