"""Who may start now: graphs and the groups in which their nodes become ready."""

from collections.abc import Iterable, Mapping

import pytest

from taskiq_flow.dataflow.ready_set import Join, ReadySet

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
    assert ready.exhausted


def test_a_node_does_not_wait_for_its_siblings() -> None:
    ready = ready_set(UNEVEN)
    assert started(ready) == "a"
    ready.complete("a")
    assert started(ready) == "bs"
    ready.complete("b")
    assert started(ready) == "c"
    ready.complete("c")
    assert started(ready) == "d"
    ready.complete("s")
    assert started(ready) == ""
    ready.complete("d")
    assert started(ready) == "j"


def test_nodes_start_in_the_order_in_which_they_became_ready() -> None:
    ready = ready_set({"a": "", "b": "", "x": "a", "y": "b"})
    assert started(ready) == "ab"
    ready.complete("b")
    ready.complete("a")
    assert started(ready) == "yx"


def test_a_node_that_runs_is_not_given_again() -> None:
    ready = ready_set({"a": "", "b": "a"})
    assert (ready.pop(), ready.pop()) == ("a", None)


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


def test_a_node_that_ends_makes_room_for_one() -> None:
    ready = ready_set({"a": "", "b": "", "c": "", "d": ""}, limit=2)
    assert started(ready) == "ab"
    ready.complete("b")
    assert started(ready) == "c"
    ready.fail("a")
    assert started(ready) == "d"


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


def test_a_priority_counts_among_what_is_ready() -> None:
    ready = ready_set({"a": "", "b": "a", "c": "", "d": ""}, 1, b=9.0, d=1.0)
    assert groups(ready) == ["d", "a", "b", "c"]


def test_without_a_limit_a_priority_changes_nothing() -> None:
    assert groups(ready_set({"a": "", "b": ""}, None, b=9.0)) == ["ab"]


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
    assert ready.exhausted


def test_skipped_nodes_come_in_an_order_that_follows_the_edges() -> None:
    ready = ready_set({"a": "", "b": "a", "c": "a", "d": "b", "e": "cd", "f": "e"})
    started(ready)
    assert ready.fail("a") == ["b", "c", "d", "e", "f"]


def test_a_successor_of_a_failed_node_ends_when_its_last_dependency_has_ended() -> None:
    ready = ready_set({"a": "", "b": "", "c": "ab", "d": "c"})
    started(ready)
    assert ready.fail("a") == []
    assert not ready.exhausted
    assert ready.complete("b") == ["c", "d"]
    assert ready.exhausted


def test_a_successor_of_two_failed_nodes_is_reported_once() -> None:
    ready = ready_set({"a": "", "b": "", "c": "ab"})
    started(ready)
    assert (ready.fail("a"), ready.fail("b")) == ([], ["c"])


def test_a_failure_makes_room_under_a_limit() -> None:
    assert groups(ready_set({"a": "", "b": "a", "c": ""}, 1), failing="a") == ["a", "c"]


# Growing


def test_nodes_may_be_added_while_others_run() -> None:
    ready = ready_set({"a": "", "b": ""})
    assert started(ready) == "ab"
    assert ready.add("c", "a")
    assert ready.add("d", "ac")
    assert started(ready) == ""
    ready.complete("a")
    assert started(ready) == "c"
    ready.complete("c")
    assert started(ready) == "d"


@pytest.mark.parametrize("limit", [None, 1])
def test_a_node_added_after_completed_dependencies_may_start_at_once(limit: int | None) -> None:
    ready = ready_set({"a": ""}, limit)
    groups(ready)
    assert ready.exhausted
    assert ready.add("b", "a")
    assert not ready.exhausted
    assert groups(ready) == ["b"]


@pytest.mark.parametrize("limit", [None, 1])
def test_a_node_added_after_a_failed_dependency_never_runs(limit: int | None) -> None:
    ready = ready_set({"a": "", "b": "a"}, limit)
    groups(ready, failing="a")
    assert not ready.add("c", "a")
    assert not ready.add("d", "b")
    assert started(ready) == ""
    assert ready.exhausted


def test_a_node_added_after_a_failed_dependency_ends_when_its_others_have_ended() -> None:
    ready = ready_set({"a": "", "b": ""})
    started(ready)
    ready.fail("a")
    assert ready.add("c", "ab")
    assert ready.complete("b") == ["c"]


def test_a_node_with_a_higher_priority_may_be_added_later() -> None:
    ready = ready_set({"a": "", "b": "", "c": ""}, limit=1)
    assert ready.pop() == "a"
    ready.add("z", priority=1.0)
    ready.complete("a")
    assert groups(ready) == ["z", "b", "c"]


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


def test_any_starts_at_the_first_that_completes_and_only_once() -> None:
    ready = join_of("any", limit=3)
    assert ready.complete("b") == []
    assert ready.pop() == "j"
    assert ready.complete("a") == []
    assert ready.pop() is None
    ready.complete("j")
    assert ready.exhausted


@pytest.mark.parametrize("late", ["complete", "fail", "skip"])
def test_any_does_not_mind_how_the_others_end(late: str) -> None:
    ready = join_of("any")
    ready.complete("a")
    assert getattr(ready, late)("b") == []
    assert groups(ready) == ["j"]


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


def test_a_node_with_join_any_may_start_at_once_after_a_completed_dependency() -> None:
    ready = ready_set({"a": "", "b": "", "f": ""})
    started(ready)
    ready.complete("a")
    ready.fail("f")
    assert ready.add("j", "abf", join="any")
    assert started(ready) == "j"
    assert ready.complete("b") == []


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


def test_only_what_runs_is_suspended_and_only_what_is_suspended_comes_again() -> None:
    ready = ready_set({"a": ""})
    with pytest.raises(ValueError, match="not running"):
        ready.suspend("a")
    ready.pop()
    with pytest.raises(ValueError, match="not suspended"):
        ready.requeue("a")
    ready.suspend("a")
    assert ready.has_started("a")
    assert not ready.exhausted
    with pytest.raises(ValueError, match="not running"):
        ready.complete("a")


def test_a_node_that_was_forgotten_does_not_start_again() -> None:
    ready = join_of("any")
    ready.complete("a")
    assert groups(ready) == ["j"]
    ready.forget("j")
    assert ready.complete("b") == []
    assert ready.exhausted


def test_what_had_completed_before_is_not_handed_out() -> None:
    graph = {"c": "ab", "d": "c", "j": "be"}
    successors = {"a": "c", "b": "cj", "c": "d", "e": "j"}
    ready = ReadySet.of_graph(
        "abcdej", graph, successors, {}, joins={"j": "any"}, completed=frozenset("ab")
    )
    assert ready.unfinished == 4
    assert groups(ready) == ["cej", "d"]


# What it tells


def test_it_tells_what_is_left_and_what_has_started() -> None:
    ready = ready_set({"a": "", "b": "a", "c": "b"})
    assert (ready.unfinished, ready.exhausted, ready.may_start) == (3, False, True)
    assert not ready.has_started("a")
    started(ready)
    assert (ready.unfinished, ready.may_start) == (3, False)
    assert ready.has_started("a")
    assert not ready.has_started("b")
    ready.complete("a")
    assert (ready.unfinished, ready.may_start) == (2, True)
    started(ready)
    ready.fail("b")
    assert (ready.unfinished, ready.exhausted, ready.may_start) == (0, True, False)
    assert ready.has_started("c")


def test_nothing_may_start_while_the_limit_is_reached() -> None:
    ready = ready_set({"a": "", "b": ""}, limit=1)
    ready.pop()
    assert not ready.may_start
    ready.complete("a")
    assert ready.may_start


# Mistakes


def test_a_node_cannot_be_added_twice() -> None:
    ready = ready_set({"a": ""})
    with pytest.raises(ValueError, match="'a' was added before"):
        ready.add("a")
    assert groups(ready) == ["a"]


@pytest.mark.parametrize("after", ["x", "ax", "bx", "n"])
def test_a_node_cannot_wait_for_what_is_not_there(after: str) -> None:
    ready = ready_set({"a": "", "b": ""})
    started(ready)
    ready.fail("b")
    with pytest.raises(ValueError, match=r"'n' waits for '[xn]', which is not in the set"):
        ready.add("n", after)
    assert ready.complete("a") == []
    assert ready.exhausted
    assert ready.add("n", "a")
    assert groups(ready) == ["n"]


@pytest.mark.parametrize("node", ["ready", "waiting", "completed", "failed", "skipped", "unknown"])
def test_only_a_running_node_can_end(node: str) -> None:
    ready: ReadySet[str] = ReadySet()
    for root in ("completed", "failed", "running", "ready"):
        ready.add(root)
    ready.add("skipped", ["failed"])
    ready.add("waiting", ["running"])
    for _ in range(3):
        ready.pop()
    ready.complete("completed")
    ready.fail("failed")
    for report in (ready.complete, ready.fail):
        with pytest.raises(ValueError, match=f"'{node}' is not running"):
            report(node)
    ready.complete("running")
    assert (ready.pop(), ready.pop(), ready.pop()) == ("ready", "waiting", None)


def test_a_node_that_has_not_ended_cannot_be_forgotten() -> None:
    ready = ready_set({"a": "", "b": ""})
    ready.pop()
    for node in "ab":
        with pytest.raises(ValueError, match=f"'{node}' has not ended"):
            ready.forget(node)


def test_no_node_can_depend_on_a_forgotten_one() -> None:
    ready = ready_set({"a": ""})
    groups(ready)
    ready.forget("a")
    with pytest.raises(ValueError, match="not in the set"):
        ready.add("b", "a")


# Size


def test_a_very_deep_chain_is_skipped_without_recursion() -> None:
    ready: ReadySet[int] = ReadySet()
    for number in range(100_000):
        ready.add(number, [number - 1] if number else [])
    ready.pop()
    assert ready.fail(0) == list(range(1, 100_000))
    assert ready.exhausted
