"""Help that fits the terminal, however narrow that is, and what is said of wrong words."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_WIDEST = 80
_NARROW = 60
"""Columns below which an explanation stands under a long option, and not beside it."""

# Typer gives these classes no names of its own.
_Formatter: Any = typer.Context.formatter_class
_UsageError: Any = typer.BadParameter.__base__

_ELSEWHERE = {
    "list": "runs",
    "ls": "runs",
    "status": "show",
    "stop": "cancel",
    "kill": "cancel",
    "remove": "delete",
    "rm": "delete",
}
"""Names that commands have in other tools."""


class _FittingFormatter(_Formatter):  # type: ignore[misc]  # typer has no name for its base
    """Writes lists of options so that their explanations have most of the width."""

    def write_dl(
        self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        most = col_max if self.width >= _NARROW else self.width // 4
        super().write_dl(rows, most, col_spacing)


class _Context(typer.Context):
    def make_formatter(self) -> Any:
        """Typer's would have 50 columns at least."""
        return _FittingFormatter(width=min(shutil.get_terminal_size().columns, _WIDEST) - 2)


class Command(TyperCommand):
    """A command whose help fits."""

    context_class = _Context

    def get_short_help_str(self, limit: int = 0) -> str:
        """Its sentence in the list of commands, which is wrapped there and not cut."""
        return self.help or ""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse arguments. What pydantic writes before the messages of others is left out."""
        try:
            return super().make_context(*args, **kwargs)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


class Group(TyperGroup):
    """All commands."""

    context_class = _Context

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command. One that is called otherwise here is named."""
        try:
            return super().resolve_command(ctx, args)
        except _UsageError as error:
            if args and (name := _ELSEWHERE.get(args[0])):
                error.message = f"No such command {args[0]!r}. Did you mean {name!r}?"
            raise
