"""The benchmarks by name."""

from __future__ import annotations

import asyncio
import importlib

from benchmarks.report import Check, NotInstalledError, Options

NAMES = (
    "overhead",
    "listeners",
    "peers_overhead",
    "scale",
    "memory",
    "mapping",
    "map_reduce",
    "chained_maps",
    "narrow",
    "peers_maps",
    "many",
    "cancel",
    "pipelines",
    "barrier",
    "first_pair",
    "workflows",
    "journal",
    "history",
    "journal_formats",
    "resuming",
    "threads",
    "in_process",
    "values",
    "web",
    "web_pages",
    "redis_overhead",
    "redis_celery",
    "redis_maps",
    "redis_cpu",
    "redis_scale",
    "redis_generators",
    "redis_references",
    "redis_store",
)


def run_one(name: str, options: Options) -> list[Check]:
    """Run one benchmark in this process; without what it needs it says so and has no targets."""
    try:
        module = importlib.import_module(f"benchmarks.{name}")
        checks: list[Check] = asyncio.run(module.run(options))
    except (ModuleNotFoundError, NotInstalledError) as missing:
        print(f"\n{name} was not run: {missing}\n", flush=True)
        return []
    return checks
