"""The benchmarks by name."""

from __future__ import annotations

import asyncio
import importlib

from benchmarks.report import Check, Options

NAMES = (
    "overhead",
    "peers_overhead",
    "scale",
    "memory",
    "mapping",
    "barrier",
    "first_pair",
    "workflows",
)


def run_one(name: str, options: Options) -> list[Check]:
    """Run one benchmark in this process."""
    module = importlib.import_module(f"benchmarks.{name}")
    checks: list[Check] = asyncio.run(module.run(options))
    return checks
