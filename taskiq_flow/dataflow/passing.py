"""Nodes that pass on what they are given. They have no task that is sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from taskiq_flow.dataflow.node import DAGNode


class PassingNode(DAGNode):
    """Passes the elements of one key on, ``levels`` lists deep, each as it is."""

    __slots__ = ("_given_key",)

    def __init__(
        self, given_key: str, *, name: str, outputs: Iterable[str], levels: int = 1
    ) -> None:
        self._given_key = given_key
        super().__init__(
            _given, name=name, inputs=[given_key], outputs=outputs, map_over={given_key: levels}
        )

    @property
    def given_key(self) -> str:
        """The key whose elements it passes on. No other node takes it."""
        return self._given_key


def _given(value: Any) -> Any:  # journals have this name in the fingerprints of graphs
    return value
