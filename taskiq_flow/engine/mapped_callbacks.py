"""The run, as its mapped nodes see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from taskiq_flow.elements.element import Element


class MappedCallbacks(Protocol):
    """What mapped nodes have the run do."""

    def restore_element(self, element: Element) -> int | None:
        """Store what an earlier engine has completed. Returns how it has ended, if it has."""

    def skip_again(self, element: Element) -> None:
        """A condition has skipped an element for an earlier engine."""

    def skip_nodes(self, nodes: Sequence[Any]) -> None:
        """Nodes that never run, because of what they depend on."""

    def fail_unsent(self, node: Any, error: BaseException) -> None:
        """A mapped node has failed, or an element of it, for which no task was sent."""

    def fail_ahead(self, node: Any, error: BaseException) -> None:
        """A mapped node will fail. A run that ends at its first failure ends now."""

    def advance(self) -> None:
        """Start what may start, or end."""

    def end_unless_over(self, error: BaseException) -> None:
        """End the run with an error, if it has not ended."""
