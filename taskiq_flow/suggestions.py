"""Suggestions in error messages: the known word that is most like an unknown one."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any, TypeVar, cast

C = TypeVar("C", bound=Callable[..., Any])


_SIMILAR, _ALMOST_EQUAL = 0.6, 0.85


def did_you_mean(word: str, known: Iterable[str], likeness: float = _SIMILAR) -> str:
    """The end of a message, such as ``; did you mean 'page'?``; empty if no word is similar."""
    similar = closest(word, known, likeness)
    return "" if similar is None else f"; did you mean {similar!r}?"


def closest(word: str, known: Iterable[str], likeness: float = _SIMILAR) -> str | None:
    """The word that is most like another one; ``None`` if none is similar."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=likeness)), None)


def check_keywords(
    called: str,
    given: Iterable[str],
    known: Sequence[str],
    instead: Mapping[str, str] | None = None,
    *,
    passes_on: bool = False,
) -> None:
    """Raise ``TypeError`` for an unknown keyword, with the right one.

    ``passes_on``: what is called has its ``**kwargs`` taken by something else. Then only those are
    refused that are almost one of the ``known`` ones.
    """
    for word in given:
        if word in known:
            continue
        if passes_on:
            if not (hint := did_you_mean(word, known, _ALMOST_EQUAL)):
                continue
        else:
            hint = did_you_mean(word, known) or f"; it takes {', '.join(known)}"
        if instead and word in instead:
            hint = f"; write {instead[word]}"
        raise TypeError(f"{called} has no argument {word!r}{hint}")


def suggests_keywords(**instead: str) -> Callable[[C], C]:
    """Have a function, or a class and its methods, name the right keyword for an unknown one.

    The methods are those that have options, inherited ones included.

    ``instead``: keywords that other libraries have, each with what is written here. They raise
    ``TypeError``. Their signatures stay visible to type checkers and to ``inspect``.
    """

    def decorate(entry: C) -> C:
        if not isinstance(entry, type):
            return cast("C", _checked(entry, entry.__qualname__, instead))
        if "__init__" in vars(entry):
            init = _checked(vars(entry)["__init__"], entry.__name__, instead)
            type.__setattr__(entry, "__init__", init)
        for name, method in inspect.getmembers(entry, inspect.isfunction):
            if name[0] != "_" and _has_options(method):
                checked = _checked(method, f"{entry.__name__}.{name}", instead)
                type.__setattr__(entry, name, checked)
        return entry

    return decorate


def _has_options(function: FunctionType) -> bool:
    """Whether it has arguments that may be left out or are keywords, and takes no others."""
    code = function.__code__
    has_any = code.co_kwonlyargcount > 0 or function.__defaults__ is not None
    return has_any and not code.co_flags & inspect.CO_VARKEYWORDS


def _checked(
    function: Callable[..., Any], called: str, instead: Mapping[str, str]
) -> Callable[..., Any]:
    """The function, which names the right keyword. ``called``: its name in messages."""
    parameters = [name for name in inspect.signature(function).parameters if name != "self"]
    known = frozenset(parameters)

    def check(kwargs: Mapping[str, object]) -> None:
        if not known.issuperset(kwargs):
            check_keywords(called, kwargs, parameters, instead)

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
