"""Only this file decides in which order lists end: each behind all that its node depends on.

The elements of a list end behind what they depend on. A list may have none, or none of those that
its node could have had, and its last element may end together with the lists that it was made of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from taskiq_flow.dataflow.axes import Path
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.ready_set import ReadySet
from taskiq_flow.elements.group import Group, Mapped
from taskiq_flow.elements.groups import Groups


class EndOrder:
    """Knows of the lists of one run which still have to end behind others.

    These are the lists of mapped nodes as wholes or, of many runs, those of each run. With
    ``join="any"`` a node waits for one of those that it depends on, and its lists for none.

    ``depth``: how many positions lead to the lists. ``go_on``: called with a node and the place of
    its list when that may end.
    """

    def __init__(
        self,
        groups: Groups,
        ready: ReadySet[DAGNode],
        depth: int,
        go_on: Callable[[Mapped, Path], None],
    ) -> None:
        self.depth = depth
        self._go_on = go_on
        self._behind: dict[DAGNode, list[Mapped]] = {}
        self._left: dict[tuple[Mapped, Path], int] = {}  # how many others have not ended
        self._free: deque[tuple[Mapped, Path]] = deque()
        for node, mapped in groups.mapped.items():
            if node.join == "any" or len(mapped.plan.axes) <= depth:
                continue
            before = dict.fromkeys((*mapped.plan.producers, *mapped.plan.whole))
            for other in before:
                self._behind.setdefault(other, []).append(mapped)
            if depth:
                mapped.ancestors[0].lists.append((mapped, len(before)))
            elif left := sum(not ready.has_ended(other) for other in before):
                self._left[mapped, ()] = left
        for node, behind in self._behind.items() if depth else ():
            groups.mapped[node].lists_behind = behind

    def begin(self, group: Group, path: Path) -> None:
        """A position is let in within which there are lists."""
        for mapped, count in group.lists:
            if count:
                self._left[mapped, path] = count

    def has_to_wait(self, mapped: Mapped, path: Path) -> bool:
        """Whether others have not ended behind which a node's list at a path ends."""
        return (mapped, path) in self._left

    def ended(self, node: DAGNode, path: Path = ()) -> None:
        """All that a node has at a path has ended, and was told."""
        was_idle = not self._free
        for mapped in self._behind.get(node, ()):
            left = self._left.get((mapped, path), 0)
            if left > 1:
                self._left[mapped, path] = left - 1
            elif left:
                del self._left[mapped, path]
                self._free.append((mapped, path))
        while was_idle and self._free:  # not one within the other, however many follow
            self._go_on(*self._free[0])
            self._free.popleft()
