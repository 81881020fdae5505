"""Which edges are left out, and which nodes are equal."""

import time

import pytest

from taskiq_flow.drawing.folding import classes, opened, ordered, quotient, reduced


@pytest.mark.parametrize(
    ("edges", "kept"),
    [
        ([], []),
        ([[], [0], [0, 1]], [[], [0], [1]]),
        ([[], [0], [0], [1, 2, 0]], [[], [0], [0], [1, 2]]),
        ([[], [], [0, 1]], [[], [], [0, 1]]),
        ([[], [0], [1], [2], [0, 3]], [[], [0], [1], [2], [3]]),
    ],
)
def test_an_edge_that_others_imply_is_left_out(
    edges: list[list[int]], kept: list[list[int]]
) -> None:
    assert reduced(edges) == kept


def test_a_dense_graph_is_reduced_to_its_layers() -> None:
    layers, width = 40, 20
    edges: list[list[int]] = [[*range(n // width * width)] for n in range(layers * width)]
    kept = reduced(edges)
    assert sum(map(len, kept)) == (layers - 1) * width * width


@pytest.mark.parametrize(
    ("edges", "kinds", "found"),
    [
        ([[], [0], [0], [1, 2]], "abbc", [0, 1, 1, 2]),
        ([[], [0], [0], [1, 2]], "abcd", [0, 1, 2, 3]),
        ([[], [], [0], [1]], "aabb", [0, 0, 1, 1]),
        ([[], [], [0]], "aab", [0, 1, 2]),  # nothing depends on the second
        ([[], [0], [1]], "aaa", [0, 1, 2]),  # a chain of one task
        ([[], [], [0], [1], [1]], "aabbb", [0, 0, 1, 1, 1]),  # how many there are does not matter
        ([], "", []),
    ],
)
def test_nodes_are_equal_if_their_kinds_and_their_neighbours_are(
    edges: list[list[int]], kinds: str, found: list[int]
) -> None:
    assert classes(edges, kinds) == found


def test_a_long_chain_of_one_task_takes_no_round_for_each_of_its_nodes() -> None:
    begun = time.process_time()
    count = 20_000
    assert classes([[], *([n] for n in range(count - 1))], "a" * count) == [*range(count)]
    assert time.process_time() - begun < 1.0


def test_a_class_with_a_wanted_node_is_opened() -> None:
    assert opened([0, 1, 1, 2, 2], [2]) == [0, 1, 2, 3, 3]
    assert opened([0, 1, 1], []) == [0, 1, 1]


def test_classes_are_ordered_by_their_edges() -> None:
    edges = quotient([[], [], [0], [1, 2]], [0, 1, 2, 1])
    assert edges == [[], [1, 2], [0]]
    assert ordered([[], [2], [0]]) == [0, 2, 1]
    assert ordered([[3], [0, 3], [], [2]]) == [2, 3, 0, 1]
