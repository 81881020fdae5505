"""The condition of a node: a function that says whether the node runs."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import (
    BuiltinFunctionType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    WrapperDescriptorType,
)
from typing import Any

from taskiq import AsyncTaskiqDecoratedTask, AsyncTaskiqTask, TaskiqResult
from taskiq.kicker import AsyncKicker

from taskiq_flow.dataflow.tasks import is_generator_function, parameters_of
from taskiq_flow.values.handle import holds_handles, with_values
from taskiq_flow.values.inspection import ONCE_ONLY, type_name
from taskiq_flow.values.isolation import Take, shared

_ALWAYS_TRUE = (
    *(FunctionType, BuiltinFunctionType, MethodType),
    *(MethodWrapperType, MethodDescriptorType, WrapperDescriptorType),
    *(partial, AsyncTaskiqDecoratedTask, AsyncKicker, AsyncTaskiqTask, TaskiqResult),
    *ONCE_ONLY,
)


def is_true(answer: object) -> bool:
    """Whether the answer of a condition or a filter is true.

    Raises ``TypeError`` for an answer that says nothing, as a method that was not called, or the
    result of a task, in which the answer stands.
    """
    if isinstance(answer, _ALWAYS_TRUE):
        remedy = "call it, or return True or False" if callable(answer) else "return True or False"
        raise TypeError(f"the answer is a {type_name(answer)}, which is always true; {remedy}")
    return bool(answer)


@dataclass(frozen=True, slots=True)
class Condition:
    """A function, sync or async, and the keys that it takes, by the names of its parameters.

    ``optional``: those that it is given if they have a value.
    """

    function: Callable[..., object]
    required: dict[str, str]
    optional: dict[str, str]

    @classmethod
    def of(cls, task_name: str, when: Callable[..., object]) -> Condition:
        """The condition of a node, whose parameters are named after the keys.

        Raises ``TypeError`` for anything but a function, sync or async, that takes keys by name.
        """
        if not callable(when) or is_generator_function(when):
            raise TypeError(
                f"when of node {task_name!r} is {when!r}; give a function that returns true or "
                "false"
            )
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters, _ = parameters_of(when)
        if odd := [p.name for p in parameters if p.kind not in by_name]:
            raise TypeError(
                f"when of node {task_name!r} takes {odd[0]!r}, which has no name of its own to be "
                "given a key by; name each parameter after the key that it needs"
            )
        return cls(
            when,
            {p.name: p.name for p in parameters if p.default is p.empty},
            {p.name: p.name for p in parameters if p.default is not p.empty},
        )

    @property
    def keys(self) -> list[str]:
        """All keys of which it is given the values, if they have one."""
        return [*self.required.values(), *self.optional.values()]

    def renamed(self, new: Callable[[Iterable[str]], tuple[str, ...]]) -> Condition:
        """The same condition with other keys."""
        required, optional = (
            dict(zip(asked, new(asked.values()), strict=True))
            for asked in (self.required, self.optional)
        )
        return Condition(self.function, required, optional)

    def answer(self, values: Mapping[str, Any], take: Take = shared) -> bool | Awaitable[object]:
        """The answer, or what is to be awaited for it.

        ``take``: makes of a value what the function is given. Handles are read for it, such as
        those that are inputs of the run. Raises whatever the function raises.
        """
        given = {name: key for name, key in self.optional.items() if key in values}
        taken = {name: values[key] for name, key in (self.required | given).items()}
        if any(map(holds_handles, taken.values())):
            return self._answer_of_read(taken, take)
        answer = self.function(**{name: take(value) for name, value in taken.items()})
        if answer is True or answer is False:  # the usual answers take the least time
            return answer
        return answer if isinstance(answer, Awaitable) else is_true(answer)

    async def _answer_of_read(self, taken: Mapping[str, Any], take: Take) -> object:
        """The answer of a function that is given what handles read."""
        read = {name: take(await with_values(value)) for name, value in taken.items()}
        answer = self.function(**read)
        return await answer if isinstance(answer, Awaitable) else answer
