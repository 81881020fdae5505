"""Values on their way from node to node in one process, beside ``None`` on the same way.

Figures are of CPU time, the least of all rounds. The types of what a tuple holds are looked at
once, where a run begins: that has a row of its own, and is taken off where hops are compared.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from taskiq import InMemoryBroker

from benchmarks.measure import interleaved
from benchmarks.report import Check, Options, print_checks
from taskiq_flow import DAGBuilder, ExecutionEngine

HOPS = 20

TUPLE = "tuple of 100,000 numbers"

MEBI = 1024 * 1024


def _values() -> dict[str, Any]:
    values: dict[str, Any] = {
        "text of 10 MB": "x" * (10 * MEBI),
        TUPLE: tuple(range(100_000)),
    }
    if importlib.util.find_spec("numpy") is not None:  # it is not in every environment
        values["array of 40 MB"] = importlib.import_module("numpy").zeros(5 * MEBI)
    return values


MUTABLE: dict[str, tuple[Any, float, Callable[[Any], Any]]] = {
    "list of 100,000 numbers": (list(range(100_000)), 2.0, list.copy),
    "list of 100,000 small dictionaries": (
        [{"id": number} for number in range(100_000)],
        25.0,
        lambda rows: [row.copy() for row in rows],
    ),
}
"""Values of which each taker has its own, the milliseconds that a hop may take, and a bare copy."""


async def _copied(value: Any, copy: Callable[[Any], Any]) -> None:
    """What no engine does without: a copy at each hop. All are there until the run is over."""
    held = [value]
    for _ in range(HOPS):
        held.append(copy(held[-1]))


def _engine(hops: int = HOPS, **options: Any) -> ExecutionEngine:
    async def passes(value: Any) -> Any:
        return value

    builder = DAGBuilder()
    for hop in range(hops):
        keys = {"value": f"v{hop}"}
        builder.node(passes, output=f"v{hop + 1}", name=f"hop {hop}", inputs=keys)
    return ExecutionEngine(InMemoryBroker(), builder.build(), **options)


async def _run(engine: ExecutionEngine, value: Any) -> None:
    async for _ in engine.execute_async({"v0": value}):
        pass


async def run(options: Options) -> list[Check]:
    """Compare a chain of nodes that pass on a value with one that passes on ``None``."""
    rounds = 5 if options.quick else 11
    isolated, shared, once = _engine(), _engine(values="shared"), _engine(1)
    ways: dict[str, Callable[[], Awaitable[None]]] = {"None": partial(_run, isolated, None)}
    immutable = _values()
    ways |= {name: partial(_run, isolated, value) for name, value in immutable.items()}
    for name, (value, _, _) in MUTABLE.items():
        ways[f"{name}, shared"] = partial(_run, shared, value)
    ways["None, once"] = partial(_run, once, None)
    ways[f"{TUPLE}, once"] = partial(_run, once, immutable[TUPLE])
    taken = await interleaved(ways, 4 * rounds, time.process_time)
    ways = {name: partial(_run, isolated, value) for name, (value, _, _) in MUTABLE.items()}
    for name, (value, _, copy) in MUTABLE.items():
        ways[f"{name}, copied"] = partial(_copied, value, copy)
    taken |= await interleaved(ways, rounds, time.process_time)
    best = {name: min(seconds) for name, seconds in taken.items()}
    look = best[f"{TUPLE}, once"] - best["None, once"]
    best[TUPLE] -= look
    none = best["None"]
    checks = [
        Check(name, best[name] / none, 1.1, "of what None costs")
        for name in (*immutable, *(f"{name}, shared" for name in MUTABLE))
    ]
    checks.append(Check(f"{TUPLE}, looked at", look * 1000, 2.0, "ms a run more than None"))
    for name, (_, most, _) in MUTABLE.items():
        per_hop, bare = (best[name] - none) / HOPS * 1000, best[f"{name}, copied"] / HOPS * 1000
        what = f"{name}; copied and freed without an engine, {bare:.2f} ms"
        checks.append(Check(what, per_hop, most, "ms a hop more than None"))
    print_checks("Values in one process", checks)
    return checks
