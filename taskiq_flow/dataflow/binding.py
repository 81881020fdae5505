"""Binds a node's input keys to its task's parameters, once, when the graph is built."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter
from types import MappingProxyType
from typing import Any

from taskiq_flow.dataflow.tasks import Task, default_name, original_function, place_of, task_info
from taskiq_flow.errors import BindingError
from taskiq_flow.suggestions import did_you_mean

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
    matching = _Matching(task_name, parameters, injected, given, partial(place_of, task))
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
        return self._lenient() if lenient else self._strict()

    def _by_position(self) -> list[Parameter]:
        """The parameters that are passed by position: only where Python allows no name."""
        more = [Parameter.POSITIONAL_OR_KEYWORD] if self.var_args else []
        kinds = [Parameter.POSITIONAL_ONLY, *more]
        return [p for p in self.parameters if p.kind in kinds]

    def _strict(self) -> Binding:
        """A binding whose keys all need a value."""
        bound, given, by_position = self.bound, self.given, self._by_position()
        while by_position and by_position[-1].name not in {*bound, *given}:
            by_position.pop()  # Python fills in the defaults after the last key
        names = [p.name for p in by_position]
        return Binding(
            positional=(*(bound[name] for name in names if name in bound), *self.var_args),
            fixed=tuple((i, p.default) for i, p in enumerate(by_position) if p.name not in bound),
            keyword=tuple(item for item in bound.items() if item[0] not in names),
            given=tuple(item for item in given.items() if item[0] not in names),
        )

    def _lenient(self) -> Binding:
        """A binding in which only parameters without a default need a value."""
        bound, by_position = self.bound, self._by_position()
        while by_position and not self.var_args and by_position[-1].name not in bound:
            by_position.pop()
        required = [p for p in by_position if p.default is Parameter.empty]
        defaults = [p for p in by_position if p.default is not Parameter.empty]
        needed = {p.name for p in self.parameters if _is_single(p) and p.default is Parameter.empty}
        positions = {p.name for p in by_position}
        by_name = bound.keys() - positions
        return Binding(
            positional=tuple(bound[p.name] for p in required),
            optional_positional=tuple((bound.get(p.name), p.default) for p in defaults),
            var_args=tuple(self.var_args),
            keyword=tuple((n, key) for n, key in bound.items() if n in by_name & needed),
            optional_keyword=tuple((n, key) for n, key in bound.items() if n in by_name - needed),
            given=tuple(item for item in self.given.items() if item[0] not in positions),
        )

    def error(self, problem: str, parameter: str | None, key: str) -> BindingError:
        return BindingError(
            f"node {self.task_name!r}: {problem}; its task takes "
            f"({', '.join(map(_parameter_text, self.parameters))}){self.place()}",
            task_name=self.task_name,
            parameter=parameter,
            key=key,
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


def takes_calls_of(task: Task, other: Task) -> bool:
    """Whether a task may be called as each call of ``other`` is made, by position and by name."""
    own, others = (task_info(each).parameters[0] for each in (task, other))
    if {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD} <= {p.kind for p in own}:
        return True
    return (
        len(own) >= len(others)
        and all(
            p.name == q.name and p.kind is q.kind and (not _is_needed(p) or _is_needed(q))
            for p, q in zip(own, others, strict=False)
        )
        and not any(map(_is_needed, own[len(others) :]))
    )


def task_text(task: Task) -> str:
    """A task with the parameters that a graph may bind, and where it is written."""
    parameters = map(_parameter_text, task_info(task).parameters[0])
    return f"{default_name(task)}({', '.join(parameters)}){place_of(task)}"


def _is_needed(parameter: Parameter) -> bool:
    return _is_single(parameter) and parameter.default is Parameter.empty


def _is_single(parameter: Parameter) -> bool:
    return parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def _parameter_text(parameter: Parameter) -> str:
    default = "" if parameter.default is Parameter.empty else "=..."
    if parameter.kind is Parameter.VAR_POSITIONAL:
        return f"*{parameter.name}"
    if parameter.kind is Parameter.VAR_KEYWORD:
        return f"**{parameter.name}"
    return f"{parameter.name}{default}"
