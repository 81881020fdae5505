"""What journals have of a node's declaration: an earlier version's has to fit, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from taskiq_flow import DAGBuilder, Product
from taskiq_flow.dataflow.fingerprint import fingerprints


def taken(x: Any, y: Any = None) -> Any:
    return x


def numbers(x: int) -> Iterator[int]:
    yield from range(x)


@pytest.mark.parametrize(
    ("task", "options", "expected"),
    [
        (taken, {}, "71b8829ffd12a0fd"),
        (taken, {"given": {"y": 1}}, "980b95badb10597e"),
        (taken, {"map_over": "x"}, "ffc3675477e34ab4"),
        (
            taken,
            {"map_over": "x", "max_parallel": 3, "retry": 2, "timeout": 5.0},
            "ffc3675477e34ab4",
        ),
        (taken, {"map_over": {"x": 2}}, "4cb194f477401bb0"),
        (taken, {"inputs": ["x", "y"], "map_over": Product("x", "y")}, "1da6583cee53b7ad"),
        (taken, {"map_over": "x", "flatten": True}, "91c77417aaf33354"),
        (taken, {"map_over": "x", "filter": True}, "eaacb096a1240137"),
        (numbers, {}, "ae8370c7bc881669"),
        (numbers, {"map_over": "x", "window": 3}, "8bc361d9e05755d3"),
    ],
)
def test_a_declaration_has_the_fingerprint_that_journals_have(
    task: Any, options: dict[str, Any], expected: str
) -> None:
    dag = DAGBuilder().node(task, name="node", **options).build()
    assert fingerprints(dag.plan()) == {"node": expected}
