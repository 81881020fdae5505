"""A SQLite journal beside the last version that wrote format 1, which stored no events.

Both versions run the same graphs of no-op nodes in processes of their own, in turns; the time is
the CPU time of each process, its threads included. The earlier version is read from git.
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

from benchmarks.report import Check, NotInstalledError, Options, print_checks

FORMAT_1 = "015f87d26a9b516802d6a81862284dc5215f174d"
"""The last commit before format 2."""

MOST = 1.1
HERE = Path(__file__).parent


async def run(options: Options) -> list[Check]:
    """Measure three shapes."""
    rounds = 3 if options.quick else 7
    taken: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        await _unpack(folder)
        versions = {"format 1": folder, "now": str(HERE.parent)}
        for _ in range(rounds):
            for version, path in versions.items():
                for shape, seconds in (await _measured(path)).items():
                    taken.setdefault((shape, version), []).append(seconds)
    medians = {of: statistics.median(seconds) for of, seconds in taken.items()}
    checks = [
        Check(
            f"SQLite journal, {shape}",
            medians[shape, "now"] / medians[shape, "format 1"],
            MOST,
            "x format 1",
        )
        for shape in dict.fromkeys(shape for shape, _ in taken)
    ]
    print_checks(f"CPU time, median of {rounds} rounds", checks)
    return checks


async def _unpack(folder: str) -> None:
    """Write the earlier version into a folder."""
    try:
        packed = await _output("git", "archive", FORMAT_1, "taskiq_flow", "benchmarks")
    except (OSError, RuntimeError):
        raise NotInstalledError("it needs git, and a clone with its history") from None
    with tarfile.open(fileobj=io.BytesIO(packed)) as files:
        files.extractall(folder, filter="data")


async def _measured(path: str) -> dict[str, float]:
    """The CPU time of each shape in the version at a path."""
    program = str(HERE / "journal_program.py")
    printed = await _output(sys.executable, program, env={**os.environ, "PYTHONPATH": path})
    rows = (line.rsplit(" ", 1) for line in printed.decode().splitlines())
    return {shape: float(seconds) for shape, seconds in rows}


async def _output(*command: str, env: dict[str, str] | None = None) -> bytes:
    """What a program prints. Raises ``RuntimeError`` if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, env=env, cwd=HERE.parent, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command[:2]} ended with {process.returncode}")
    return printed
