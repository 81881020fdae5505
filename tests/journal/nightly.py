"""A graph with something of each kind, for tests of what is told of runs."""

from __future__ import annotations

from taskiq_flow import DAGBuilder


def odd(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number


def graph() -> DAGBuilder:
    """A mapped node of which an element fails, one that is tried again, and one that is skipped."""
    return (
        DAGBuilder("nightly")
        .node(odd, name="each", inputs=["numbers"], map_over="numbers")
        .node(odd, name="one", inputs=["number"], retry=2)
        .node(odd, name="after", inputs=["one"])
        .node(lambda text: text * 3, name="long", inputs=["text"], outputs=["times"])
    )
