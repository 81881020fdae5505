"""The critical path of a run: the nodes along it, and the times that they took on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from taskiq_flow.views.node_view import NodeView


@dataclass(frozen=True, slots=True)
class Stage:
    """A node on a path: how long it waited, was queued and ran after the node before it had ended.

    The times of the stages of a path do not overlap. ``redelivered``: a part of ``queued``.
    """

    name: str
    waiting: float
    queued: float
    running: float
    redelivered: float


def critical_path(
    nodes: Mapping[str, NodeView], edges: Mapping[str, tuple[str, ...]]
) -> list[Stage]:
    """The path along which nodes that have ended ran longest; of equal paths, the last to end.

    ``nodes``: in an order that follows the edges. What a node ran before the one before it on the
    path had ended does not count: elements of a mapped node run beside what gives their list. A
    node whose result the journal had is on no path, as it took no time. A node that ended before
    one that it depends on did not wait for that one: it has ``join="any"``, for example.
    """
    ended = {n: node for n, node in nodes.items() if node.ended_at is not None and not node.is_kept}
    before: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    lengths: dict[str, float] = {}
    for name, node in ended.items():
        stages[name] = stage_of(node)
        lengths[name] = stages[name].running
        latest = (lengths[name], -math.inf)  # by itself, it may have run longer than behind another
        for other in edges.get(name, ()):
            if other not in lengths:
                continue
            end = ended[other].ended_at
            if end is None or node.ended_at is None or end > node.ended_at:
                continue
            stage = stage_of(node, end)
            rank = (lengths[other] + stage.running, end)
            if rank > latest:
                before[name], stages[name], latest = other, stage, rank
                lengths[name] = rank[0]
    if not ended:
        return []
    path = [max(ended, key=lambda name: _rank(ended[name], lengths[name]))]
    while path[-1] in before:
        path.append(before[path[-1]])
    return [stages[name] for name in reversed(path)]


def _rank(node: NodeView, length: float) -> tuple[bool, float, float]:
    """What makes a node the last one of the critical path, the greatest first.

    A map is skipped when the generator of its items has failed, though elements of it have run.
    """
    has_run = node.state != "skipped" or node.longest > 0
    return has_run, length, node.ended_at or 0.0


def stage_of(node: NodeView, since: float | None = None) -> Stage:
    """The times of a node that has ended, after ``since``, when the node before it had ended.

    Of a mapped node: of the element that ran longest. In what is left of its time, elements waited:
    to be begun, as long as any was sent and not begun.
    """
    starts = [at for at in (node.ready_at, since) if at is not None]
    if not starts or node.ended_at is None:
        return Stage(node.name, node.waiting, node.queued, node.longest, node.redelivered)
    taken = max(0.0, node.ended_at - max(starts))
    running = min(node.longest, taken)
    queued = node.queued
    if node.elements is not None:
        # Where nobody tells when a task begins, elements are queued until they end.
        queued = min(queued, node.elements.queueing + node.redelivered)
    queued = min(queued, taken - running)
    redelivered = min(queued, node.redelivered)
    return Stage(node.name, taken - running - queued, queued, running, redelivered)
