"""A process from which commands are forked, and a folder with the flows that they run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
from typer.main import get_command

from taskiq_flow.cli.app import app
from tests.commands import Command, Commands, Done

FLOWS = Path(__file__).parent / "flows.py"

COMMANDS: tuple[str, ...] = tuple(getattr(get_command(app), "commands"))  # noqa: B009 - of a group


class Run(Protocol):
    """Runs a command in the folder to its end."""

    def __call__(self, *arguments: str, stdin: str = ..., encoding: str = ...) -> Done: ...


class Start(Protocol):
    """Starts a command in the folder."""

    def __call__(
        self,
        *arguments: str,
        stdout: str | None = ...,
        terminal: str | None = ...,
        env: dict[str, str | None] | None = ...,
    ) -> Command: ...


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    with Commands() as commands:
        yield commands


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the commands are run."""
    (tmp_path / "flows.py").write_bytes(FLOWS.read_bytes())
    return tmp_path


@pytest.fixture
def start(commands: Commands, folder: Path) -> Start:
    return partial(commands.start, cwd=folder)


@pytest.fixture
def run(commands: Commands, folder: Path) -> Run:
    return partial(commands.run, cwd=folder)
