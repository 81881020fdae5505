"""Suggestions in error messages: the known word that is most like an unknown one."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import TypeVar

C = TypeVar("C", bound=type)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message, such as ``; did you mean 'page'?``; empty if no word is similar."""
    similar = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {similar[0]!r}?" if similar else ""


def suggests_keywords(**instead: str) -> Callable[[C], C]:
    """Have a class name the right keyword when it is made with an unknown one.

    ``instead``: keywords that other libraries have, each with what is written here. The class
    raises ``TypeError``. Its signature stays visible to type checkers and to ``inspect``.
    """

    def decorate(cls: C) -> C:
        make: Callable[..., None] = vars(cls)["__init__"]
        parameters = list(inspect.signature(make).parameters)[1:]
        known = frozenset(parameters)

        @functools.wraps(make)
        def init(self: object, *args: object, **kwargs: object) -> None:
            if not known.issuperset(kwargs):
                word = next(word for word in kwargs if word not in known)
                hint = did_you_mean(word, parameters) or f"; it takes {', '.join(parameters)}"
                if word in instead:
                    hint = f"; write {instead[word]}"
                raise TypeError(f"{cls.__name__} has no argument {word!r}{hint}")
            make(self, *args, **kwargs)

        type.__setattr__(cls, "__init__", init)
        return cls

    return decorate
