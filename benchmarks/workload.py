"""Workflows to run: the recorded ones of a folder, the two shipped ones, and generated ones.

A file holds ``{"name", "nodes": [{"name", "runtime_s"}], "edges": [[from, to]]}``, or a list of
such. ``workflow_graphs.json`` holds facts of two recorded runs, with their source and licence.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).with_name("workflow_graphs.json")


@dataclass(frozen=True, slots=True)
class Workflow:
    """Nodes by number, each behind those that it waits for: names, seconds, predecessors."""

    name: str
    nodes: Sequence[str]
    seconds: Sequence[float]
    predecessors: Sequence[Sequence[int]]

    @property
    def successors(self) -> list[list[int]]:
        """For each node, those that wait for it."""
        after: list[list[int]] = [[] for _ in self.nodes]
        for node, before in enumerate(self.predecessors):
            for other in before:
                after[other].append(node)
        return after

    def scaled(self, factor: float) -> Workflow:
        """The same with all times multiplied."""
        times = [seconds * factor for seconds in self.seconds]
        return Workflow(self.name, self.nodes, times, self.predecessors)


def workflows(folder: Path | None) -> list[Workflow]:
    """Those of the folder, or those that need none."""
    files = [SHIPPED] if folder is None else sorted(folder.glob("*.json"))
    found = [workflow for file in files for workflow in _read(file)]
    return found if folder is not None else [*found, samples(), layers(), sparse()]


def samples() -> Workflow:
    """Generated: 24 samples through 8 steps each, joined by a report; some samples take longer."""
    chance = random.Random(2)
    weights = [chance.lognormvariate(0, 0.5) for _ in range(24)]
    steps = [chance.lognormvariate(0, 1) for _ in range(8)]
    seconds = [weight * step for weight in weights for step in steps] + [1.0]
    predecessors = [[n - 1] if n % 8 else [] for n in range(24 * 8)]
    predecessors.append([8 * sample + 7 for sample in range(24)])
    return _generated("generated-samples", seconds, predecessors)


def layers() -> Workflow:
    """Generated: 10 layers of 30 nodes, each behind three of the layer before; skewed times."""
    chance = random.Random(3)
    seconds = [chance.lognormvariate(0, 1) for _ in range(300)]
    predecessors = [
        sorted(chance.sample(range(n // 30 * 30 - 30, n // 30 * 30), 3)) if n >= 30 else []
        for n in range(300)
    ]
    return _generated("generated-layers", seconds, predecessors)


def sparse() -> Workflow:
    """Generated: 1,000 nodes, each behind at most two of the hundred before it."""
    chance = random.Random(4)
    seconds = [chance.expovariate(1) for _ in range(1_000)]
    predecessors = [
        sorted(chance.sample(range(max(0, n - 100), n), min(n, chance.randrange(3))))
        for n in range(1_000)
    ]
    return _generated("generated-sparse", seconds, predecessors)


def _generated(name: str, seconds: Sequence[float], before: Sequence[Sequence[int]]) -> Workflow:
    return Workflow(name, [f"node_{n}" for n in range(len(seconds))], seconds, before)


def _read(file: Path) -> Iterable[Workflow]:
    content = json.loads(file.read_text(encoding="utf-8"))
    return map(_parsed, content if isinstance(content, list) else [content])


def _parsed(content: Mapping[str, Any]) -> Workflow:
    names = [node["name"] for node in content["nodes"]]
    number = {name: n for n, name in enumerate(names)}
    before: list[list[int]] = [[] for _ in names]
    for start, end in content["edges"]:
        before[number[end]].append(number[start])
    seconds = [float(node["runtime_s"]) for node in content["nodes"]]
    return Workflow(content["name"], names, seconds, before)
