"""Adds elements to the ready set, behind what they wait for."""

from __future__ import annotations

from typing import Any

from taskiq_flow.dataflow.axes import Path, element_name
from taskiq_flow.dataflow.ready_set import COMPLETED, ReadySet
from taskiq_flow.elements.cells import ABSENT
from taskiq_flow.elements.element import Element, Gathering
from taskiq_flow.elements.group import Gathers, Mapped


class Additions:
    """Adds the elements of one run to its ready set."""

    def __init__(self, ready: ReadySet[Any]) -> None:
        self._ready = ready

    def add(self, element: Element, mapped: Mapped, *, are_alive: bool) -> bool:
        """Add an element to the ready set. ``False`` if it will never run.

        ``are_alive``: whether none of the elements that were added before it at its path has ended
        in the ready set, and is still pending here.
        """
        if not mapped.waits:
            self._ready.add_ready(element, mapped.priority)
            return True
        follows = mapped.follows
        if follows is not None and are_alive:
            other = follows.pending.get(element.path)
            if other is not None:
                self._ready.add_behind(element, other, mapped.priority)
                return True
            if not follows.outcomes.root:  # it has completed
                self._ready.add_ready(element, mapped.priority)
                return True
        return self._add_waiting(element, mapped)

    def _add_waiting(self, element: Element, mapped: Mapped) -> bool:
        """Add an element that waits for whatever others."""
        pending: list[Any] = [*mapped.plan.whole]
        ended = [*mapped.ended]
        path = element.path
        elements = [(beside, path) for beside in mapped.beside]
        for taking in mapped.linked:
            of, at = taking.of, taking.project(path)
            if of is None:
                raise AssertionError(f"{taking.key!r} is linked to no node")
            if taking.gathers is None:
                elements.append((of, at))
                continue
            outcome = taking.gathers.outcomes.around(at)
            if outcome is ABSENT and of.is_dead and self._ready.has_ended(of.plan.node):
                outcome = self._ready.outcome(of.plan.node)
            if outcome is ABSENT:
                pending.append(self._gathering(of, taking.gathers, at))
            else:
                ended.append(outcome)
        for other, at in elements:
            if (waits_for := other.pending.get(at)) is not None:
                pending.append(waits_for)
            else:
                outcome = other.outcomes.around(at)
                ended.append(COMPLETED if outcome is ABSENT else outcome)
        return self._ready.add(
            element,
            pending,
            mapped.priority,
            mapped.plan.node.join,
            ended=ended,
            gate=mapped.gate,
        )

    def _gathering(self, mapped: Mapped, gathers: Gathers, at: Path) -> Gathering:
        found = gathers.pending.get(at)
        if found is None:
            found = Gathering(element_name(mapped.plan.node.task_name, at))
            gathers.pending[at] = found
            self._ready.add_suspended(found)
        return found
