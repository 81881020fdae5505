"""How a node's input keys reach its task's parameters: decided once, when the graph is built."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Annotated, Any, get_args, get_origin, get_type_hints

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

    ``positional``: keys passed by position; ``keyword``: (parameter, key) pairs passed by name.
    ``optional`` pairs are passed by name if the key has a value; ``trailing``: (key, default)
    pairs of positional-only parameters, passed as far as the last one that has a value.
    """

    positional: tuple[str, ...] = ()
    keyword: tuple[tuple[str, str], ...] = ()
    optional: tuple[tuple[str, str], ...] = ()
    trailing: tuple[tuple[str, Any], ...] = ()

    @property
    def required_keys(self) -> list[str]:
        """The keys without which the task cannot be called, each once."""
        return list(dict.fromkeys((*self.positional, *(key for _, key in self.keyword))))

    @property
    def optional_keys(self) -> list[str]:
        """The keys that are passed if they have a value."""
        return [*(key for key, _ in self.trailing), *(key for _, key in self.optional)]

    @property
    def keys(self) -> set[str]:
        """All keys that the task may be given."""
        return {*self.required_keys, *self.optional_keys}

    def keys_of(self, by_position: int) -> tuple[list[str], dict[str, str]]:
        """The keys behind a call's first ``by_position`` arguments, and those behind its names."""
        positional = [*self.positional, *(key for key, _ in self.trailing)]
        return positional[:by_position], dict((*self.keyword, *self.optional))

    def arguments(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of the call, taken from ``values``."""
        by_position = [values[key] for key in self.positional]
        by_name = {parameter: values[key] for parameter, key in self.keyword}
        for parameter, key in self.optional:
            if key in values:
                by_name[parameter] = values[key]
        if self.trailing:
            given = [index for index, (key, _) in enumerate(self.trailing) if key in values]
            for key, default in self.trailing[: given[-1] + 1 if given else 0]:
                by_position.append(values.get(key, default))
        return by_position, by_name


def bind(task_name: str, task: Task, inputs: Inputs) -> Binding:
    """Bind ``inputs`` to the parameters of ``task``.

    Raises ``BindingError`` for a key that finds no parameter and for a parameter bound twice.
    """
    parameters = parameters_of(task)
    if inputs is None:
        return _undeclared(parameters)
    matching = _Matching(task_name, parameters)
    if isinstance(inputs, Mapping):
        matching.match_spelled_out(inputs)
    else:
        matching.match_listed(list(inputs))
    return matching.binding()


class _Matching:
    """The state of matching keys with parameters, for inputs that were declared."""

    def __init__(self, task_name: str, parameters: Sequence[Parameter]) -> None:
        self.task_name = task_name
        self.parameters = parameters
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
        self.bound[parameter] = key

    def binding(self) -> Binding:
        """The call; required parameters that nothing has bound are taken by their own name."""
        for name, parameter in self.plain.items():
            if name not in self.bound and parameter.default is Parameter.empty:
                self.bound[name] = name
        return _call(self.parameters, self.bound, self.surplus)

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
    by_position = [p.name for p in parameters if p.kind in kinds and p.name in bound]
    return Binding(
        positional=(*(bound[name] for name in by_position), *surplus),
        keyword=tuple(item for item in bound.items() if item[0] not in by_position),
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


_parameters_seen: weakref.WeakKeyDictionary[Callable[..., Any], tuple[Parameter, ...]] = (
    weakref.WeakKeyDictionary()
)


def parameters_of(task: Task) -> tuple[Parameter, ...]:
    """The parameters of a task that a graph may bind: all but those that taskiq injects."""
    function = original_function(task)
    try:
        if (seen := _parameters_seen.get(function)) is not None:
            return seen
        _parameters_seen[function] = parameters = _read_parameters(function)
    except TypeError:  # a callable that cannot be hashed or referenced weakly
        return _read_parameters(function)
    return parameters


def _read_parameters(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    try:
        signature = inspect.signature(function)
    except ValueError as error:
        raise BindingError(
            f"the parameters of {function!r} cannot be read; wrap it in a function of your own"
        ) from error
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # a name known to type checkers only, or not a function
        hints = {}
    injected = {
        name
        for name, parameter in signature.parameters.items()
        if _is_injected(parameter, hints.get(name, parameter.annotation))
    }
    # taskiq injects by name: with such a parameter among the others, *args is out of reach.
    unreachable = {
        Parameter.VAR_POSITIONAL
        for name in injected
        if signature.parameters[name].kind is Parameter.POSITIONAL_OR_KEYWORD
    }
    return tuple(
        parameter
        for name, parameter in signature.parameters.items()
        if name not in injected and parameter.kind not in unreachable
    )


def _is_injected(parameter: Parameter, annotation: object) -> bool:
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
