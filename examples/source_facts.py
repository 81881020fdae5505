"""What ``source_census.py`` notes about one Python file: plain facts, no syntax tree.

It runs in child processes, so it imports no more than it needs.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

KEPT = 8  # functions of a file, for each of the ways in which one can be remarkable

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (ast.ClassDef, *FUNCTIONS)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
WITH = (ast.With, ast.AsyncWith)
TRY = (ast.Try, ast.TryStar)
IMPORTS = (ast.Import, ast.ImportFrom)
BLOCKS = (ast.If, ast.Match, *LOOPS, *WITH, *TRY, *DEFINITIONS)
BRANCHES = (ast.If, ast.IfExp, ast.BoolOp, ast.ExceptHandler, ast.match_case, *LOOPS)
STATEMENTS = (ast.stmt, ast.ExceptHandler, ast.match_case)

KINDS: dict[str, tuple[type[ast.AST], ...]] = {
    "functions": (ast.FunctionDef,),
    "async functions": (ast.AsyncFunctionDef,),
    "lambdas": (ast.Lambda,),
    "classes": (ast.ClassDef,),
    "if": (ast.If,),
    "loops": LOOPS,
    "comprehensions": COMPREHENSIONS,
    "try": TRY,
    "with": WITH,
    "raise": (ast.Raise,),
    "assert": (ast.Assert,),
    "yield": (ast.Yield, ast.YieldFrom),
    "f-strings": (ast.JoinedStr,),
    "walrus": (ast.NamedExpr,),
    "match": (ast.Match,),
}
"""What is counted, each with the nodes of the syntax tree that it stands for."""

NOT_ON_LOAD = {"__name__ == '__main__'", "TYPE_CHECKING", "typing.TYPE_CHECKING"}
COPYRIGHT_YEAR = re.compile(rb"copyright\b[^\n]*?\b((?:19|20)\d\d)\b", re.IGNORECASE)


def facts_of(path: str, base: str = "") -> dict[str, Any]:
    """The facts of one file; of one that cannot be read or parsed, the ``failure`` alone."""
    try:
        source = Path(base, path).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # about the file, not what is asked here
            tree = ast.parse(source, path)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return {"failure": f"{type(error).__name__}: {described(error)}"}
    nodes = list(ast.walk(tree))
    return {
        "lines": lines_of(source),
        "kinds": kinds_of(nodes),
        "imports": imports_of(tree),
        "names": Counter(node.id for node in nodes if isinstance(node, ast.Name)),
        "functions": most_remarkable(function for function in map(measured, nodes) if function),
        "documented": [ast.get_docstring(node, clean=False) is not None for node in public(tree)],
        "years": sorted(map(int, COPYRIGHT_YEAR.findall(source))),
    }


def described(error: Exception) -> str:
    """What an error says, without the path, which its reader knows."""
    if not isinstance(error, SyntaxError):
        return str(error)
    return f"{error.msg} (line {error.lineno})" if error.lineno else error.msg


def lines_of(source: bytes) -> dict[str, int]:
    """How many lines there are, and how many of them are empty or nothing but a comment."""
    lines = [line.strip() for line in source.splitlines()]
    return {
        "all": len(lines),
        "empty": lines.count(b""),
        "comments": sum(line.startswith(b"#") for line in lines),
    }


def kinds_of(nodes: Iterable[ast.AST]) -> dict[str, int]:
    """How often each of ``KINDS`` occurs."""
    counts = Counter(map(type, nodes))
    return {kind: sum(counts[node] for node in stands_for) for kind, stands_for in KINDS.items()}


def imports_of(tree: ast.Module) -> dict[str, list[str]]:
    """What is imported when the module is loaded, and what only later or for type checkers.

    ``from a import b`` is noted as ``a.b``, and ``from ..a import b`` as ``..a.b``: whether b is a
    module cannot be seen from here.
    """
    found = dict.fromkeys(sorted(_imports(tree, on_load=True)))
    return {
        "on load": [name for name, on_load in found if on_load],
        "later": [name for name, on_load in found if not on_load],
    }


def _imports(node: ast.AST, *, on_load: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, on_load) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            origin = "." * child.level + (f"{child.module}." if child.module else "")
            yield from ((origin + alias.name, on_load) for alias in child.names)
        elif isinstance(child, STATEMENTS):
            yield from _imports(child, on_load=on_load and not _runs_later(child))


def _runs_later(statement: ast.AST) -> bool:
    if isinstance(statement, ast.If):
        return ast.unparse(statement.test) in NOT_ON_LOAD
    return isinstance(statement, FUNCTIONS)


def measured(node: ast.AST) -> dict[str, Any] | None:
    """The name, place, length, branches and depth of a function; ``None`` for any other node."""
    if not isinstance(node, FUNCTIONS):
        return None
    return {
        "name": node.name,
        "line": node.lineno,
        "lines": (node.end_lineno or node.lineno) - node.lineno + 1,
        "branches": sum(isinstance(inner, BRANCHES) for inner in ast.walk(node)),
        "depth": depth_of(node),
    }


def depth_of(node: ast.AST) -> int:
    """How deep blocks are nested in a node."""
    inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, STATEMENTS)]
    return max((depth_of(child) + _is_deeper(child, node) for child in inner), default=0)


def _is_deeper(child: ast.AST, parent: ast.AST) -> bool:
    # The tree holds an elif as an if inside the else; its indentation tells.
    is_elif = (
        isinstance(child, ast.If)
        and isinstance(parent, ast.If)
        and child.col_offset == parent.col_offset
    )
    return isinstance(child, BLOCKS) and not is_elif


def most_remarkable(functions: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The longest, the most branched and the deepest functions of a file, each once.

    The first of all files are among the first of each file, so no more than these need to travel.
    """
    found = list(functions)
    kept: dict[int, dict[str, Any]] = {}
    for measure in ("lines", "branches", "depth"):
        ranked = sorted(found, key=lambda function: -function[measure])
        kept.update((function["line"], function) for function in ranked[:KEPT])
    return list(kept.values())


def public(tree: ast.Module) -> Iterator[ast.Module | Definition]:
    """The module itself, its public classes and functions, and the public ones in these classes."""
    yield tree
    yield from _public_in(tree.body)


def _public_in(body: Sequence[ast.stmt]) -> Iterator[Definition]:
    for statement in body:
        if isinstance(statement, DEFINITIONS) and not statement.name.startswith("_"):
            yield statement
            if isinstance(statement, ast.ClassDef):
                yield from _public_in(statement.body)
