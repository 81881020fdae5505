"""Binds a node's input keys to its task's parameters, once, when the graph is built."""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter
from types import FunctionType, MappingProxyType, SimpleNamespace
from typing import Annotated, Any, TypeAlias, get_args, get_origin, get_type_hints

from taskiq import AsyncTaskiqDecoratedTask, Context
from taskiq_dependencies.dependency import Dependency

from taskiq_flow.errors import BindingError
from taskiq_flow.suggestions import did_you_mean
from taskiq_flow.values.call import unwrapped

Task = AsyncTaskiqDecoratedTask[Any, Any] | Callable[..., Any]
"""What a node runs: a taskiq task, or a plain callable, sync or async."""

Inputs = Iterable[str] | Mapping[str, str] | None
"""Input keys, or parameter → key; ``None``: each parameter takes the key of its name."""


@dataclass(frozen=True, slots=True)
class Binding:
    """From which keys a task's arguments are taken.

    ``positional``: keys of arguments by position. ``fixed``: (position, default) of positional
    parameters between them that have no key. ``keyword``: (parameter, key) of arguments by name.

    The others are passed only if their key has a value. ``optional_keyword``: (parameter, key).
    ``optional_positional``: (key, default) of parameters by position, up to the last that has a
    value; those before it get their default, as do those whose key is ``None``. ``var_args``: keys
    for ``*args``, after all of these. ``given``: (parameter, value) of arguments by name that are
    the same in every run.
    """

    positional: tuple[str, ...] = ()
    fixed: tuple[tuple[int, Any], ...] = ()
    keyword: tuple[tuple[str, str], ...] = ()
    optional_keyword: tuple[tuple[str, str], ...] = ()
    optional_positional: tuple[tuple[str | None, Any], ...] = ()
    var_args: tuple[str, ...] = ()
    given: tuple[tuple[str, Any], ...] = ()

    @property
    def required_keys(self) -> list[str]:
        """The keys that must have a value before the task can be called."""
        return list(dict.fromkeys((*self.positional, *(key for _, key in self.keyword))))

    @property
    def optional_keys(self) -> list[str]:
        """The keys that are passed if they have a value."""
        positional = (key for key, _ in self.optional_positional if key is not None)
        keyword = (key for _, key in self.optional_keyword)
        return list(dict.fromkeys((*positional, *self.var_args, *keyword)))

    @property
    def keys(self) -> set[str]:
        """All keys that the task may be given."""
        return {*self.required_keys, *self.optional_keys}

    def renamed(self, keys: Mapping[str, str]) -> Binding:
        """The same binding to other keys. Those that are not named stay."""

        def new(key: str) -> str:
            return keys.get(key, key)

        return Binding(
            tuple(map(new, self.positional)),
            self.fixed,
            tuple((parameter, new(key)) for parameter, key in self.keyword),
            tuple((parameter, new(key)) for parameter, key in self.optional_keyword),
            tuple(
                (None if key is None else new(key), default)
                for key, default in self.optional_positional
            ),
            tuple(map(new, self.var_args)),
            self.given,
        )

    def keys_of(self, by_position: int) -> tuple[list[str], dict[str, str]]:
        """The keys of a call's ``by_position`` positional arguments, and key by keyword argument.

        Which keys of ``*args`` had a value is unknown here: each of them is named after all.
        """
        positional = list(self.positional)
        for position, default in self.fixed:
            positional.insert(position, f"(default {default!r})")
        positional += [
            f"(default {value!r})" if key is None else key
            for key, value in self.optional_positional
        ]
        var_args = "/".join(self.var_args)
        positional += [var_args] * (by_position - len(positional))
        return positional[:by_position], dict((*self.keyword, *self.optional_keyword))

    def arguments(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The positional and keyword arguments of the call. ``values``: by key."""
        by_position = list(map(values.__getitem__, self.positional))
        by_name = {}
        for parameter, key in self.keyword:
            by_name[parameter] = values[key]
        if self.given:
            by_name.update(self.given)
        if not (self.fixed or self.optional_keyword or self.optional_positional or self.var_args):
            return by_position, by_name
        for position, default in self.fixed:
            by_position.insert(position, default)
        for parameter, key in self.optional_keyword:
            if key in values:
                by_name[parameter] = values[key]
        var_args = [values[key] for key in self.var_args if key in values]
        given = [i for i, (key, _) in enumerate(self.optional_positional) if key in values]
        reached = len(self.optional_positional) if var_args else given[-1] + 1 if given else 0
        by_position += [
            default if key is None else values.get(key, default)
            for key, default in self.optional_positional[:reached]
        ]
        return by_position + var_args, by_name


def bind(
    task_name: str,
    task: Task,
    inputs: Inputs,
    given: Mapping[str, Any] = MappingProxyType({}),
    *,
    lenient: bool = False,
) -> Binding:
    """Bind ``inputs`` to the parameters of ``task``.

    In a list, each key is bound to the parameter of its name. The other keys are bound to the
    remaining parameters from left to right, then to ``*args``, then to ``**kwargs``. ``given``:
    values of parameters that no key is bound to. ``lenient``:
    keys of parameters with a default and of ``*args`` need not have a value.

    Raises ``BindingError`` for a key without a parameter and for a parameter bound twice.
    """
    try:
        parameters, injected = task_info(task).parameters
    except ValueError as error:
        raise BindingError(
            f"node {task_name!r}: the parameters of {task!r} cannot be read ({error}); wrap it in "
            "a function of your own",
            task_name=task_name,
        ) from error
    if given:
        parameters = tuple(_with_given(task_name, parameters, given))
    if inputs is None:
        own = original_function(task)
        is_lambda = getattr(own, "__name__", "") == "<lambda>"
        return _bind_by_name(parameters, given, fixes_defaults=is_lambda and not lenient)
    matching = _Matching(task_name, parameters, injected, given, partial(_place_of, task))
    if isinstance(inputs, Mapping):
        matching.match_mapping(inputs)
    else:
        matching.match_list(list(inputs))
    return matching.binding(lenient=lenient)


class _Matching:
    """Matches declared keys with parameters. ``single``: all but ``*args`` and ``**kwargs``."""

    def __init__(
        self,
        task_name: str,
        parameters: Sequence[Parameter],
        injected: Collection[str],
        given: Mapping[str, Any],
        place: Callable[[], str],
    ) -> None:
        self.task_name = task_name
        self.place = place
        self.parameters = parameters
        self.injected = injected
        self.given = given
        self.single = {p.name: p for p in parameters if _is_single(p) and p.name not in given}
        self.takes_args = any(p.kind is Parameter.VAR_POSITIONAL for p in parameters)
        self.takes_kwargs = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
        self.bound: dict[str, str] = {}
        self.var_args: list[str] = []

    def match_mapping(self, inputs: Mapping[str, str]) -> None:
        for parameter, key in inputs.items():
            if parameter in self.given:
                raise self.error(
                    f"inputs= gives {key!r} to parameter {parameter!r}, which has a value in "
                    "given=",
                    parameter,
                    key,
                )
            if parameter not in self.single and not self.takes_kwargs:
                hint = did_you_mean(parameter, self.single)
                raise self.error(
                    f"inputs= gives {key!r} to parameter {parameter!r}, which the task does not "
                    f"have{hint}",
                    parameter,
                    key,
                )
            self.bind(parameter, key)

    def match_list(self, keys: list[str]) -> None:
        for key in keys:
            if key in self.single:
                self.bind(key, key)
        # *args takes all remaining keys, which leaves none for the keyword-only parameters.
        left = [
            name
            for name, parameter in self.single.items()
            if name not in self.bound
            and not (self.takes_args and parameter.kind is Parameter.KEYWORD_ONLY)
        ]
        for key in (key for key in keys if key not in self.single):
            if left:
                self.bind(left.pop(0), key)
            elif self.takes_args:
                self.var_args.append(key)
            elif self.takes_kwargs:
                self.bind(key, key)
            else:
                raise self.error(
                    f"inputs= has {key!r}, and the task has no parameter left for it"
                    f"{did_you_mean(key, self.single)}",
                    None,
                    key,
                )

    def bind(self, parameter: str, key: str) -> None:
        if parameter in self.bound:
            raise self.error(
                f"inputs= gives parameter {parameter!r} two keys, {self.bound[parameter]!r} and "
                f"{key!r}",
                parameter,
                key,
            )
        if parameter in self.injected:
            raise self.error(
                f"inputs= gives {key!r} to parameter {parameter!r}, which taskiq injects",
                parameter,
                key,
            )
        self.bound[parameter] = key

    def binding(self, *, lenient: bool) -> Binding:
        """The binding. A required parameter that is not bound yet takes the key of its name."""
        for name, parameter in self.single.items():
            if name not in self.bound and parameter.default is Parameter.empty:
                self.bound[name] = name
        if lenient and self.var_args and self.given:
            raise self.error("given= and keys of *args stand with join='all' only", None, "")
        make = _lenient_binding if lenient else _strict_binding
        return make(self.parameters, self.bound, self.var_args, self.given)

    def error(self, problem: str, parameter: str | None, key: str) -> BindingError:
        return BindingError(
            f"node {self.task_name!r}: {problem}; its task takes "
            f"({', '.join(map(_parameter_text, self.parameters))}){self.place()}",
            task_name=self.task_name,
            parameter=parameter,
            key=key,
        )


def _strict_binding(
    parameters: Sequence[Parameter],
    bound: Mapping[str, str],
    var_args: Sequence[str],
    given: Mapping[str, Any],
) -> Binding:
    """A binding whose keys all need a value; by position only where Python allows no name."""
    kinds = [Parameter.POSITIONAL_ONLY, *([Parameter.POSITIONAL_OR_KEYWORD] if var_args else [])]
    by_position = [p for p in parameters if p.kind in kinds]
    while by_position and by_position[-1].name not in {*bound, *given}:
        by_position.pop()  # Python fills in the defaults after the last key
    names = [p.name for p in by_position]
    return Binding(
        positional=(*(bound[name] for name in names if name in bound), *var_args),
        fixed=tuple((i, p.default) for i, p in enumerate(by_position) if p.name not in bound),
        keyword=tuple(item for item in bound.items() if item[0] not in names),
        given=tuple(item for item in given.items() if item[0] not in names),
    )


def _lenient_binding(
    parameters: Sequence[Parameter],
    bound: Mapping[str, str],
    var_args: Sequence[str],
    given: Mapping[str, Any],
) -> Binding:
    """A binding in which only parameters without a default need a value."""
    kinds = [Parameter.POSITIONAL_ONLY, *([Parameter.POSITIONAL_OR_KEYWORD] if var_args else [])]
    by_position = [p for p in parameters if p.kind in kinds]
    while by_position and not var_args and by_position[-1].name not in bound:
        by_position.pop()
    required = [p for p in by_position if p.default is Parameter.empty]
    defaults = [p for p in by_position if p.default is not Parameter.empty]
    needed = {p.name for p in parameters if _is_single(p) and p.default is Parameter.empty}
    positions = {p.name for p in by_position}
    by_name = bound.keys() - positions
    return Binding(
        positional=tuple(bound[p.name] for p in required),
        optional_positional=tuple((bound.get(p.name), p.default) for p in defaults),
        var_args=tuple(var_args),
        keyword=tuple((n, key) for n, key in bound.items() if n in by_name & needed),
        optional_keyword=tuple((n, key) for n, key in bound.items() if n in by_name - needed),
        given=tuple(item for item in given.items() if item[0] not in positions),
    )


def _bind_by_name(
    parameters: Sequence[Parameter], given: Mapping[str, Any], *, fixes_defaults: bool
) -> Binding:
    """The binding of undeclared inputs: each parameter takes the key of its name.

    ``fixes_defaults``: the defaults are values that the user has fixed, as in
    ``lambda x, model=model: model(x)``.
    """
    single = [p for p in parameters if _is_single(p) and p.name not in given]
    required = [p for p in single if p.default is Parameter.empty]
    optional = [p for p in single if p.default is not Parameter.empty and not fixes_defaults]
    only = Parameter.POSITIONAL_ONLY
    return Binding(
        positional=tuple(p.name for p in required if p.kind is only),
        keyword=tuple((p.name, p.name) for p in required if p.kind is not only),
        optional_keyword=tuple((p.name, p.name) for p in optional if p.kind is not only),
        optional_positional=tuple((p.name, p.default) for p in optional if p.kind is only),
        given=tuple(given.items()),
    )


def _with_given(
    task_name: str, parameters: Sequence[Parameter], given: Mapping[str, Any]
) -> list[Parameter]:
    """The parameters, with the values of ``given`` as defaults. Raises ``BindingError``."""
    names = {p.name for p in parameters if _is_single(p) and p.kind is not p.POSITIONAL_ONLY}
    takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    for name in given:
        if name not in names and not takes_any:
            raise BindingError(
                f"given= of node {task_name!r} has a value for {name!r}{did_you_mean(name, names)}"
                f"; its task takes ({', '.join(map(_parameter_text, parameters))}); name a "
                "parameter that can be passed by name",
                task_name=task_name,
                parameter=name,
            )
    return [p.replace(default=given[p.name]) if p.name in given else p for p in parameters]


def original_function(task: Task) -> Callable[..., Any]:
    """The callable that a task wraps, or the callable itself."""
    return unwrapped(task.original_func) if isinstance(task, AsyncTaskiqDecoratedTask) else task


def is_generator_function(function: Callable[..., Any]) -> bool:
    """Whether a callable is a generator function, sync or async."""
    called = called_function(function)
    return inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called)


def called_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that is executed when a callable is called."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


_Parameters: TypeAlias = tuple[tuple[Parameter, ...], frozenset[str]]


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


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """A callable's signature, in which each annotation is evaluated by itself.

    An annotation that cannot be evaluated stays a string, as one does with a name that only type
    checkers know. One that is evaluated has no forward references left. Raises ``ValueError`` for
    a callable whose signature cannot be read.
    """
    signature = inspect.signature(function)
    names = _Names(function)
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


class _Names:
    """The names that a callable's annotations may use: its module's, and those it closes over."""

    def __init__(self, function: Callable[..., Any]) -> None:
        found = function_of(function)
        self._globals: dict[str, Any] = {} if found is None else found.__globals__
        self._locals: dict[str, Any] = {}
        if found is not None and found.__closure__:
            for name, cell in zip(found.__code__.co_freevars, found.__closure__, strict=True):
                with contextlib.suppress(ValueError):  # a variable that has no value yet
                    self._locals[name] = cell.cell_contents

    def evaluated(self, annotation: Any) -> Any:
        """The annotation's value; as text if it has none."""
        if annotation is None or annotation is Parameter.empty:
            return annotation
        annotated = SimpleNamespace(__annotations__={"it": annotation})
        try:
            hints = get_type_hints(annotated, self._globals, self._locals, include_extras=True)
        except Exception:  # the annotation's own code may raise anything
            return annotation if isinstance(annotation, str) else repr(annotation)
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


def _place_of(task: Task) -> str:
    """Where a task is written, as the end of a message; empty if that is unknown."""
    code = getattr(inspect.unwrap(original_function(task)), "__code__", None)
    return "" if code is None else f", at {code.co_filename}:{code.co_firstlineno}"


def _is_injected(parameter: Parameter) -> bool:
    annotation = parameter.annotation
    if isinstance(parameter.default, Dependency) or annotation is Context:
        return True
    if get_origin(annotation) is not Annotated:
        return False
    kind, *extras = get_args(annotation)
    return kind is Context or any(isinstance(extra, Dependency) for extra in extras)


def _is_single(parameter: Parameter) -> bool:
    return parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def _parameter_text(parameter: Parameter) -> str:
    default = "" if parameter.default is Parameter.empty else "=..."
    if parameter.kind is Parameter.VAR_POSITIONAL:
        return f"*{parameter.name}"
    if parameter.kind is Parameter.VAR_KEYWORD:
        return f"**{parameter.name}"
    return f"{parameter.name}{default}"
