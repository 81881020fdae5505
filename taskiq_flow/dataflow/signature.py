"""One signature for all methods that make a node."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

P = ParamSpec("P")
S = TypeVar("S")
R = TypeVar("R")


class ChainedMethod(Protocol[P]):
    """The type of a method that returns the object that it was called on."""

    @overload
    def __get__(self, instance: None, owner: type[S]) -> Callable[Concatenate[S, P], S]: ...
    @overload
    def __get__(self, instance: S, owner: type[S]) -> Callable[P, S]: ...


def takes_arguments_of(
    function: Callable[P, object],
) -> Callable[[Callable[Concatenate[S, ...], R]], Callable[Concatenate[S, P], R]]:
    """Declare that a method passes all of its arguments on to ``function``.

    The method is not wrapped. It keeps its return type and shows the parameters of ``function`` to
    type checkers, to ``inspect.signature`` and to ``typing.get_type_hints``.
    """
    arguments = inspect.signature(function, eval_str=True)

    def declare(method: Callable[Concatenate[S, ...], R]) -> Callable[Concatenate[S, P], R]:
        own = inspect.signature(method)
        parameters = [next(iter(own.parameters.values())), *arguments.parameters.values()]
        method.__annotations__ = {
            **{p.name: p.annotation for p in arguments.parameters.values()},
            "return": own.return_annotation,
        }
        vars(method)["__signature__"] = own.replace(parameters=parameters)
        return cast("Callable[Concatenate[S, P], R]", method)

    return declare


def chains_with_arguments_of(
    function: Callable[P, object],
) -> Callable[[Callable[..., object]], ChainedMethod[P]]:
    """Like ``takes_arguments_of``, for a method that returns ``Self``, which mypy loses there."""
    return cast("Callable[[Callable[..., object]], ChainedMethod[P]]", takes_arguments_of(function))
