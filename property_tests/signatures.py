"""Random signatures as plain data, real functions of them, and the rules of binding, restated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from taskiq import Context

INJECTED = "ctx"


@dataclass(frozen=True)
class ParameterSpec:
    """``kind``: before ``/``, between, or behind ``*``; injected ones take no key."""

    name: str
    kind: str
    has_default: bool

    @property
    def spelled(self) -> str:
        annotation = f"{self.name}: Context" if self.name == INJECTED else self.name
        return f"{annotation}={default_of(self.name)!r}" if self.has_default else annotation


def default_of(parameter: str) -> str:
    """What a parameter has if it is given nothing."""
    return f"default of {parameter}"


@dataclass(frozen=True)
class SignatureSpec:
    """The parameters of a task, in order."""

    parameters: tuple[ParameterSpec, ...]
    takes_args: bool
    takes_kwargs: bool

    def of_kind(self, kind: str) -> list[ParameterSpec]:
        return [parameter for parameter in self.parameters if parameter.kind == kind]

    @cached_property
    def bindable(self) -> dict[str, ParameterSpec]:
        return {p.name: p for p in self.parameters if p.name != INJECTED}

    @property
    def reaches_args(self) -> bool:
        """taskiq injects by name, so that nothing can be passed by position around it."""
        between = {parameter.name for parameter in self.of_kind("either")}
        return self.takes_args and INJECTED not in between

    def __str__(self) -> str:
        first, between, last = (
            [parameter.spelled for parameter in self.of_kind(kind)]
            for kind in ("position", "either", "name")
        )
        parts = [*first, "/"] if first else []
        parts += between
        if self.takes_args:
            parts.append("*args")
        elif last:
            parts.append("*")
        parts += last
        if self.takes_kwargs:
            parts.append("**kwargs")
        return f"({', '.join(parts)})"

    def function(self) -> Callable[..., Any]:
        """A real function of this signature, which returns what each parameter has got."""
        names: dict[str, Any] = {"Context": Context}
        exec(f"def task{self}: return locals()", names)  # noqa: S102 - only Python knows its rules
        task: Callable[..., Any] = names["task"]
        return task


@dataclass
class Arrivals:
    """Which key each parameter gets."""

    by_parameter: dict[str, str] = field(default_factory=dict)
    args: list[str] = field(default_factory=list)
    kwargs: dict[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """By the rules, these inputs fit no call."""


def arrivals(signature: SignatureSpec, inputs: Sequence[str] | Mapping[str, str]) -> Arrivals:
    """The rules for declared inputs: 1 (a list), 2 (a mapping) and 4 (what nothing has bound)."""
    found = Arrivals()
    if isinstance(inputs, Mapping):
        for parameter, key in inputs.items():
            _give(signature, found, parameter, key)
    else:
        _give_list(signature, found, inputs)
    for bindable in signature.bindable.values():
        if not bindable.has_default:
            found.by_parameter.setdefault(bindable.name, bindable.name)
    return found


def _give_list(signature: SignatureSpec, found: Arrivals, keys: Sequence[str]) -> None:
    for key in keys:
        if key in signature.bindable:
            _give(signature, found, key, key)
    for key in keys:
        if key in signature.bindable:
            continue
        left = [p for p in signature.bindable.values() if p.name not in found.by_parameter]
        if signature.reaches_args:  # what is left goes there before it reaches those behind it
            left = [p for p in left if p.kind != "name"]
        if left:
            found.by_parameter[left[0].name] = key
        elif signature.reaches_args:
            found.args.append(key)
        else:
            _give(signature, found, key, key)


def _give(signature: SignatureSpec, found: Arrivals, parameter: str, key: str) -> None:
    if parameter in signature.bindable:
        place = found.by_parameter
    elif signature.takes_kwargs and parameter not in [p.name for p in signature.parameters]:
        place = found.kwargs
    else:
        raise RefusedError(parameter)
    if parameter in place:
        raise RefusedError(parameter)
    place[parameter] = key
