"""Runs a program with an earlier version of the package beside this one, in turns.

Each time it is a process of its own. It prints lines, each with a title and a figure. The earlier
version is read from git.
"""

from __future__ import annotations

import asyncio
import io
import os
import statistics
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.report import NotInstalledError

HERE = Path(__file__).parent


async def ratios(commit: str, program: str, rounds: int) -> dict[str, float]:
    """By title, the median figure of this version over that of a commit."""
    taken: dict[tuple[str, bool], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        await _unpack(commit, folder)
        for _ in range(rounds):
            for is_now, path in ((False, folder), (True, str(HERE.parent))):
                for title, figure in (await _measured(program, path)).items():
                    taken.setdefault((title, is_now), []).append(figure)
    medians = {of: statistics.median(figures) for of, figures in taken.items()}
    titles = [title for title, is_now in taken if is_now]
    return {title: medians[title, True] / medians[title, False] for title in titles}


async def _unpack(commit: str, folder: str) -> None:
    """Write an earlier version into a folder."""
    try:
        packed = await _output("git", "archive", commit, "taskiq_flow", "benchmarks")
    except (OSError, RuntimeError):
        raise NotInstalledError("it needs git, and a clone with its history") from None
    with tarfile.open(fileobj=io.BytesIO(packed)) as files:
        files.extractall(folder, filter="data")


async def _measured(program: str, path: str) -> dict[str, float]:
    """The figures of the version at a path."""
    env = {**os.environ, "PYTHONPATH": path}
    printed = await _output(sys.executable, str(HERE / program), env=env)
    rows = (line.rsplit(" ", 1) for line in printed.decode().splitlines())
    return {title: float(figure) for title, figure in rows}


async def _output(*command: str, env: dict[str, str] | None = None) -> bytes:
    """What a program prints. Raises ``RuntimeError`` if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, env=env, cwd=HERE.parent, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command[:2]} ended with {process.returncode}")
    return printed
