"""The timeline of a report, as a terminal shows it."""

from __future__ import annotations

import pytest

from taskiq_flow import RunFinished, RunReport
from taskiq_flow.cli.timeline import report_lines
from tests.views.test_run_view import began, completed, sent, started, view_of


@pytest.mark.parametrize("tied", [("b", "a"), ("a", "b")])
def test_nodes_stand_in_the_order_in_which_they_began_and_else_in_that_of_the_graph(
    tied: tuple[str, str],
) -> None:
    """Not by how long they took, nor by when they ended."""
    edges = {"late": ("a",), "a": ("early",), "b": ("early",)}
    view = view_of(
        started("late", *tied, "early", edges=edges),
        *(sent("early", 0.0), began("early", 0.0), completed("early", 1.0)),
        *(sent("a", 1.0), began("a", 1.0), sent("b", 1.0), began("b", 1.0)),
        *(completed("a", 2.0), sent("late", 2.0), began("late", 2.0)),
        *(completed("late", 9.0), completed("b", 9.5)),
        RunFinished("r", 10.0, "completed", None),
    )
    lines = report_lines(RunReport.of(view), 60)
    assert [line.split()[-4] for line in lines if "█" in line and "," not in line] == [
        *("early", *tied, "late")
    ]
