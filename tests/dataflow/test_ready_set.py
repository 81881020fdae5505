"""Who may start now: graphs and the groups in which their nodes become ready."""

from collections.abc import Iterable, Mapping

import pytest

from taskiq_flow.dataflow.ready_set import COMPLETED, FAILED, SKIPPED, Join, ReadySet

Graph = Mapping[str, str]
"""Node → the nodes that it waits for, one letter each; in order of being added."""


def ready_set(graph: Graph, limit: int | None = None, **priorities: float) -> ReadySet[str]:
    ready: ReadySet[str] = ReadySet(limit)
    for node, after in graph.items():
        ready.add(node, after, priorities.get(node, 0.0))
    return ready


def started(ready: ReadySet[str]) -> str:
    """All that may start now, in order; it runs from now on."""
    return "".join(iter(ready.pop, None))


def groups(ready: ReadySet[str], failing: Iterable[str] = ()) -> list[str]:
    """What starts at once, time after time; after each group all of it ends."""
    found = []
    while group := started(ready):
        found.append(group)
        for node in group:
            ready.fail(node) if node in failing else ready.complete(node)
    return found


DIAMOND = {"a": "", "b": "a", "c": "a", "d": "bc"}
UNEVEN = {"a": "", "b": "a", "c": "b", "d": "c", "s": "a", "j": "ds"}
TREE = {"r": "", "a": "r", "b": "r", "c": "a", "d": "a", "e": "b"}


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({}, []),
        ({"a": ""}, ["a"]),
        ({"a": "", "b": "a", "c": "b"}, ["a", "b", "c"]),
        ({"c": "", "a": "", "b": ""}, ["cab"]),
        (DIAMOND, ["a", "bc", "d"]),
        (UNEVEN, ["a", "bs", "c", "d", "j"]),
        (TREE, ["r", "ab", "cde"]),
        ({"a": "", "p": "", "b": "a", "q": "p"}, ["ap", "bq"]),
        ({"a": "", "b": "aa"}, ["a", "b"]),
        ({"x": "", "y": "", "z": "", "j": "zyx"}, ["xyz", "j"]),
    ],
)
@pytest.mark.parametrize("limit", [None, 100])
def test_nodes_start_once_all_that_they_wait_for_has_completed(
    graph: Graph, expected: list[str], limit: int | None
) -> None:
    ready = ready_set(graph, limit)
    assert groups(ready) == expected
    assert not ready.unfinished


# A limit


@pytest.mark.parametrize(
    ("graph", "limit", "expected"),
    [
        (TREE, 1, ["r", "a", "b", "c", "d", "e"]),
        (TREE, 2, ["r", "ab", "cd", "e"]),
        (DIAMOND, 1, ["a", "b", "c", "d"]),
        ({"a": "", "b": "", "c": "", "d": "", "e": ""}, 2, ["ab", "cd", "e"]),
        ({"a": "", "b": "a", "c": ""}, 1, ["a", "b", "c"]),
    ],
)
def test_no_more_nodes_run_than_the_limit_allows(
    graph: Graph, limit: int, expected: list[str]
) -> None:
    assert groups(ready_set(graph, limit)) == expected


@pytest.mark.parametrize(
    ("priorities", "expected"),
    [
        ({}, ["ab", "cd"]),
        ({"d": 1.0}, ["da", "bc"]),
        ({"b": 2.0, "c": 3.0, "d": 2.0}, ["cb", "da"]),
        ({"a": -1.0}, ["bc", "da"]),
    ],
)
def test_with_a_limit_the_highest_priority_goes_first_and_then_the_first_added(
    priorities: dict[str, float], expected: list[str]
) -> None:
    graph = {"a": "", "b": "", "c": "", "d": ""}
    assert groups(ready_set(graph, 2, **priorities)) == expected


# Failures


@pytest.mark.parametrize(
    ("graph", "failing", "expected", "skipped"),
    [
        ({"a": ""}, "a", ["a"], ""),
        ({"a": "", "b": "a", "c": "b"}, "a", ["a"], "bc"),
        ({"a": "", "b": "a", "c": "b"}, "b", ["a", "b"], "c"),
        (DIAMOND, "b", ["a", "bc"], "d"),
        (DIAMOND, "bc", ["a", "bc"], "d"),
        (TREE, "a", ["r", "ab", "e"], "cd"),
        (UNEVEN, "s", ["a", "bs", "c", "d"], "j"),
        ({"a": "", "b": "", "c": "a", "d": "b"}, "a", ["ab", "d"], "c"),
    ],
)
@pytest.mark.parametrize("limit", [None, 100])
def test_exactly_the_dependents_of_a_failure_are_skipped(
    graph: Graph, failing: str, expected: list[str], skipped: str, limit: int | None
) -> None:
    ready = ready_set(graph, limit)
    found, left_out = [], []
    while group := started(ready):
        found.append(group)
        for node in group:
            left_out += ready.fail(node) if node in failing else ready.complete(node)
    assert (found, "".join(left_out)) == (expected, skipped)
    assert not ready.unfinished


# Growing


def test_forgotten_nodes_leave_nothing_and_may_come_again() -> None:
    ready: ReadySet[str] = ReadySet()
    for _ in range(100):
        for node, after in {"a": "", "b": "a", "f": "", "s": "bf"}.items():
            ready.add(node, after)
        assert groups(ready, failing="f") == ["af", "b"]
        for node in "abfs":
            ready.forget(node)
        for held in ("_state", "_added_successors", "_worst", "_joins"):
            assert not vars(ready)[held]


# Join rules: "any" and "none_failed"; skipped is not failed


def join_of(join: Join, *, limit: int | None = None) -> ReadySet[str]:
    """Two nodes, and a third that depends on both by a join rule; both have started."""
    ready = ReadySet.of_graph(
        "abj", {"j": "ab"}, {"a": "j", "b": "j"}, {}, limit, joins={"j": join}
    )
    assert started(ready) == "ab"
    return ready


@pytest.mark.parametrize(
    ("join", "ends", "outcome"),
    [
        ("all", ("complete", "skip"), "skipped"),
        ("all", ("skip", "fail"), "failed"),
        ("any", ("skip", "complete"), "runs"),
        ("any", ("skip", "skip"), "skipped"),
        ("any", ("skip", "fail"), "failed"),
        ("any", ("fail", "complete"), "runs"),
        ("none_failed", ("skip", "complete"), "runs"),
        ("none_failed", ("skip", "skip"), "runs"),
        ("none_failed", ("complete", "fail"), "failed"),
        ("none_failed", ("skip", "fail"), "failed"),
    ],
)
def test_what_a_rule_makes_of_how_dependencies_end(
    join: Join, ends: tuple[str, str], outcome: str
) -> None:
    ready = join_of(join)
    never_run = [*getattr(ready, ends[0])("a"), *getattr(ready, ends[1])("b")]
    assert never_run == ([] if outcome == "runs" else ["j"])
    assert groups(ready) == (["j"] if outcome == "runs" else [])
    # The nodes after it see how it ended.
    runs_after = ready.add("z", "j", join="none_failed")
    assert runs_after == (outcome != "failed")


# Nodes that run again, and nodes that had completed before


def test_a_suspended_node_makes_room_and_comes_again_in_its_turn() -> None:
    ready = ready_set({"a": "", "b": "", "c": "", "z": "a"}, limit=1)
    assert ready.pop() == "a"
    ready.suspend("a")
    assert ready.pop() == "b"
    ready.requeue("a")
    assert ready.pop() is None
    ready.complete("b")
    assert groups(ready) == ["a", "c", "z"]


def test_what_had_completed_before_is_not_handed_out() -> None:
    graph = {"c": "ab", "d": "c", "j": "be"}
    successors = {"a": "c", "b": "cj", "c": "d", "e": "j"}
    ready = ReadySet.of_graph(
        "abcdej", graph, successors, {}, joins={"j": "any"}, completed=frozenset("ab")
    )
    assert ready.unfinished == 4
    assert groups(ready) == ["cej", "d"]


# What it tells


# Mistakes


@pytest.mark.parametrize("after", ["x", "ax", "bx", "n"])
def test_a_node_cannot_wait_for_what_is_not_there(after: str) -> None:
    ready = ready_set({"a": "", "b": ""})
    started(ready)
    ready.fail("b")
    with pytest.raises(ValueError, match=r"'n' waits for '[xn]', which is not in the set"):
        ready.add("n", after)
    assert ready.complete("a") == []
    assert not ready.unfinished
    assert ready.add("n", "a")
    assert groups(ready) == ["n"]


def test_a_node_that_was_added_starts_when_one_of_the_graph_has_completed() -> None:
    ready = ReadySet.of_graph("ab", {"b": ["a"]}, {"a": ["b"]}, {}, 1)
    assert ready.add("c", ["a"])
    assert ready.pop() == "a"
    assert ready.complete("a") == []
    assert (ready.pop(), ready.complete("b"), ready.pop()) == ("b", [], "c")


@pytest.mark.parametrize("outcome", [COMPLETED, SKIPPED, FAILED])
def test_a_forgotten_node_tells_how_it_ended_and_may_be_added_again(outcome: int) -> None:
    ready: ReadySet[str] = ReadySet()
    ready.add("a", join="any")
    with pytest.raises(ValueError, match="'a' has not ended"):
        ready.forget("a")
    ready.pop()
    ready.end("a", outcome)
    assert ready.forget("a") == outcome
    assert ready.add("a")


# Size


def test_a_very_deep_chain_is_skipped_without_recursion() -> None:
    ready: ReadySet[int] = ReadySet()
    for number in range(100_000):
        ready.add(number, [number - 1] if number else [])
    ready.pop()
    assert ready.fail(0) == list(range(1, 100_000))
    assert not ready.unfinished


@pytest.mark.parametrize("limit", [None, 1])
def test_a_dependency_that_completes_after_another_failed_starts_no_successor(
    limit: int | None,
) -> None:
    before = {"c": ["a", "b"]}
    ready = ReadySet.of_graph("abc", before, {"a": "c", "b": "c"}, {}, limit)
    first = ready.pop()
    assert first == "a"
    assert ready.fail("a") == []
    assert ready.pop() == "b"
    assert ready.complete("b") == ["c"]
    assert ready.pop() is None
    assert not ready.unfinished


@pytest.mark.parametrize(("outcome", "then"), [(COMPLETED, "bc"), (FAILED, "")])
def test_a_node_behind_one_alone_starts_or_never_runs_with_it(outcome: int, then: str) -> None:
    ready = ready_set({"a": ""}, 2)
    ready.add_behind("c", "a", 0.0)
    ready.add_behind("b", "a", 1.0)
    assert (ready.unfinished, started(ready)) == (3, "a")
    assert ready.end("a", outcome) == ([] if then else ["c", "b"])
    assert started(ready) == then
    assert ready.unfinished == len(then)


def test_a_place_is_left_until_as_many_run_as_may() -> None:
    ready = ready_set({"a": "", "b": ""}, 2)
    assert (ready.places_left, ready.may_start) == (2, True)
    assert started(ready) == "ab"
    assert (ready.places_left, ready.may_start) == (0, False)
    ready.complete("a")
    assert (ready.places_left, ready.may_start) == (1, True)
    assert ready_set({"a": ""}).places_left == float("inf")
