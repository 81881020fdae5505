"""Suggestions in error messages: the known word that is most like an unknown one."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any, TypeVar, cast

C = TypeVar("C", bound=Callable[..., Any])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message, such as ``; did you mean 'page'?``; empty if no word is similar."""
    similar = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {similar[0]!r}?" if similar else ""


def suggests_keywords(**instead: str) -> Callable[[C], C]:
    """Have a function, or a class and its methods, name the right keyword for an unknown one.

    ``instead``: keywords that other libraries have, each with what is written here. They raise
    ``TypeError``. Their signatures stay visible to type checkers and to ``inspect``.
    """

    def decorate(entry: C) -> C:
        if not isinstance(entry, type):
            return cast("C", _checked(entry, entry.__name__, instead))
        for name, method in [*vars(entry).items()]:
            if name == "__init__":
                type.__setattr__(entry, name, _checked(method, entry.__name__, instead))
            elif inspect.isfunction(method) and name[0] != "_" and _has_own_keywords(method):
                checked = _checked(method, f"{entry.__name__}.{name}", instead)
                type.__setattr__(entry, name, checked)
        return entry

    return decorate


def _has_own_keywords(function: FunctionType) -> bool:
    """Whether it takes keywords, and no others than it names."""
    code = function.__code__
    return code.co_kwonlyargcount > 0 and not code.co_flags & inspect.CO_VARKEYWORDS


def _checked(
    function: Callable[..., Any], called: str, instead: Mapping[str, str]
) -> Callable[..., Any]:
    """The function, which names the right keyword. ``called``: its name in messages."""
    parameters = [name for name in inspect.signature(function).parameters if name != "self"]
    known = frozenset(parameters)

    def check(kwargs: Mapping[str, object]) -> None:
        if known.issuperset(kwargs):
            return
        word = next(word for word in kwargs if word not in known)
        hint = did_you_mean(word, parameters) or f"; it takes {', '.join(parameters)}"
        if word in instead:
            hint = f"; write {instead[word]}"
        raise TypeError(f"{called} has no argument {word!r}{hint}")

    if inspect.iscoroutinefunction(function):  # and so it stays, for those who ask

        @functools.wraps(function)
        async def checked_async(*args: object, **kwargs: object) -> object:
            check(kwargs)
            return await function(*args, **kwargs)

        return checked_async

    @functools.wraps(function)
    def checked(*args: object, **kwargs: object) -> object:
        check(kwargs)
        return function(*args, **kwargs)

    return checked
