"""Finds annotations that name what is nowhere: misspelt ones, and names that were not imported."""

from __future__ import annotations

import ast
import inspect
import linecache
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from taskiq_flow.dataflow.tasks import Names, function_of
from taskiq_flow.suggestions import did_you_mean


@dataclass(frozen=True, slots=True)
class Unknown:
    """An annotation that cannot be evaluated. ``parameter``: ``None`` for that of the result."""

    parameter: str | None
    text: str
    reason: str

    def __str__(self) -> str:
        what = "result" if self.parameter is None else f"parameter {self.parameter!r}"
        return f"its {what} as {self.text!r}, which cannot be evaluated: {self.reason}"


def unknown_names(function: Callable[..., Any]) -> Iterator[Unknown]:
    """The annotations of a function with a name, or an attribute of a module, that is nowhere.

    A name that its file binds anywhere is known: type checkers may be the only ones to import it,
    or it is local to another function. Nothing is told of a function whose source is not there.
    """
    found = function_of(function)
    if found is None:
        return
    names = Names(function)
    signature = inspect.signature(function)
    annotations: list[tuple[str | None, Any]] = [
        (name, parameter.annotation) for name, parameter in signature.parameters.items()
    ]
    for parameter, annotation in (*annotations, (None, signature.return_annotation)):
        try:
            names.value(annotation)
        except NameError as error:
            code = found.__code__
            bound = _bound_in(code.co_filename)
            has_source = code.co_name in bound  # not that of another "<string>"
            if error.name is None or not has_source or error.name in bound or "*" in bound:
                continue
            hint = did_you_mean(error.name, {*bound, *names.known})
            yield Unknown(parameter, _text(annotation), f"{error}{hint}")
        except (AttributeError, SyntaxError) as error:
            if not (isinstance(error, AttributeError) and _is_for_checkers(error)):
                yield Unknown(parameter, _text(annotation), str(error))
        except Exception:  # noqa: S112 - the annotation's own code may raise anything
            continue


def _is_for_checkers(error: AttributeError) -> bool:
    """Whether type checkers may know an attribute that a module lacks while it runs.

    These are private names of stubs, what the module imports for checkers alone, and submodules
    that nobody has imported yet.
    """
    module, name = error.obj, error.name
    if not isinstance(module, ModuleType) or name is None:
        return False
    if name.startswith("_") or name in _bound_in(getattr(module, "__file__", None) or ""):
        return True
    try:
        return hasattr(module, "__path__") and find_spec(f"{module.__name__}.{name}") is not None
    except (ImportError, ValueError):  # of its own way of finding submodules
        return False


def _text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _bound_in(file: str) -> frozenset[str]:
    """All names that a file binds, at any place; none if its source is not there."""
    return _bound_by("".join(linecache.getlines(file)))


@lru_cache(maxsize=16)  # most tasks of a graph are of few files, and parsing one takes long
def _bound_by(source: str) -> frozenset[str]:
    """All names that a source binds."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):  # of a function around
            names.add(node.arg)
        elif isinstance(name := getattr(node, "name", None), str):  # a class, a type parameter
            names.add(name)
    return frozenset(names)
