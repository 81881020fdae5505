"""Tables, and the targets that figures are held to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """How a benchmark is to be run: in short, and on which folder of workflows if any."""

    quick: bool = False
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """A figure and the target that it must not exceed, both in ``unit``."""

    what: str
    figure: float
    target: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether the figure is within the target."""
        return self.figure <= self.target

    def cells(self) -> list[str]:
        """The figure, the target and the verdict, as the last three cells of a row."""
        verdict = "met" if self.met else "missed"
        return [f"{self.figure:.4g} {self.unit}", f"<= {self.target:.4g} {self.unit}", verdict]


class NotInstalledError(Exception):
    """A benchmark needs what this machine does not have."""


CHECKED = ("figure", "target", "")
"""The heads of the columns that ``Check.cells`` fills."""


def print_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of text under their heads, the first column to the left, others to the right."""
    lines = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    lines.insert(1, ["-" * width for width in widths])
    print(f"\n{title}\n")
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    print(flush=True)


def print_checks(title: str, checks: Iterable[Check]) -> None:
    """Print figures with their targets."""
    print_table(title, ("", *CHECKED), ([check.what, *check.cells()] for check in checks))
