"""The pages of the public names, one for each part of the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PARTS = {
    "Graphs": ("dataflow",),
    "Engine and runs": ("execution_engine", "engine", "flow_task"),
    "Maps": ("map_reduce",),
    "Pipelines": ("pipelines",),
    "Errors": ("errors",),
    "Events": ("events", "previews"),
    "Listeners": ("listeners",),
    "Views": ("views",),
    "Journals": ("journal",),
    "Workers": ("recommended", "middleware", "transport", "processes", "values"),
}
"""The pages, with the rooms and modules whose public names each of them has."""

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\n).+)*", re.MULTILINE)
"""From the first prompt to the next empty line."""


def fenced(docstring: str) -> str:
    """A docstring with its examples as blocks of code. Markdown takes ``>>>`` for quotations."""
    return EXAMPLE.sub(lambda example: f"```pycon\n{example[0]}\n```", docstring)


def exports(module: Path) -> list[tuple[str, str]]:
    """The names in a module's ``__all__``, each with the module that it is imported from."""
    names: set[str] = set()
    found: list[tuple[str, str]] = []
    for statement in ast.parse(module.read_text("utf-8")).body:
        match statement:
            case ast.ImportFrom(module=str(source)):
                found += [(alias.name, source) for alias in statement.names]
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                names = set(ast.literal_eval(value))
    return [(name, source) for name, source in found if name in names]


def reference(package: Path) -> dict[str, str]:
    """The pages in Markdown, by title. Each name stands where mkdocstrings puts its docstring.

    Raises ``LookupError`` if a public name comes from a module that is in none of ``PARTS``.
    """
    titles = {room: title for title, rooms in PARTS.items() for room in rooms}
    names: dict[str, list[str]] = {title: [] for title in PARTS}
    for name, source in exports(package / "__init__.py"):
        room = source.split(".")[1]
        if room not in titles:
            raise LookupError(
                f"the reference has no page for {name!r}, which comes from {source}; "
                f"add {room!r} to PARTS in website/reference.py"
            )
        names[titles[room]].append(f"taskiq_flow.{name}")
    pages = {title: _page(title, "from taskiq_flow import ...", names[title]) for title in PARTS}
    helpers = exports(package / "testing" / "__init__.py")
    found = [f"taskiq_flow.testing.{name}" for name, _ in helpers]
    pages["Testing"] = _page("Testing", "from taskiq_flow.testing import ...", found)
    return pages


def _page(title: str, statement: str, names: list[str]) -> str:
    docstrings = "".join(f"::: {name}\n\n" for name in names)
    return f"# {title}\n\n```py\n{statement}\n```\n\n{docstrings}"
