"""The errors: one tree, as it is drawn, and each of them survives a journey."""

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest

import taskiq_flow
from taskiq_flow import errors

CLASSES: dict[str, type[Exception]] = {
    name: item
    for name, item in vars(errors).items()
    if inspect.isclass(item) and issubclass(item, Exception) and item.__module__ == errors.__name__
}


def drawn() -> dict[str, str]:
    """Class → the class that it hangs from in the drawing; the tops of the trees left out."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in (inspect.getdoc(errors) or "").splitlines():
        if entry := re.match(r" {4}((?:│   |    )*)(├── |└── )?([A-Z]\w+)(  .*)?$", line):
            depth = len(entry[1]) // 4 + bool(entry[2])
            above[depth:] = [entry[3]]
            if depth:
                found[entry[3]] = above[depth - 1]
    return found


ATTRIBUTES: list[tuple[type[Exception], dict[str, Any]]] = [
    (errors.TaskiqFlowError, {}),
    (errors.GraphError, {}),
    (errors.CycleError, {"cycle": ["a", "b"]}),
    (errors.MissingNodeError, {"reference": "a"}),
    (errors.DuplicateOutputError, {"key": "x", "task_names": ["a", "b"]}),
    (errors.BindingError, {"task_name": "a", "parameter": "p", "key": "x"}),
    (
        errors.TypeMismatchError,
        {"producer": "a", "key": "x", "consumer": "b", "parameter": "x"},
    ),
    (errors.GraphChangedError, {"added": ["a"], "removed": ["b"], "changed": ["c"]}),
    (errors.ConfigurationError, {}),
    (errors.PipelineError, {}),
    (errors.RunNotFoundError, {"run_id": "r"}),
    (errors.TrackingError, {}),
    (errors.InputError, {"keys": ["x"]}),
    (errors.MissingInputError, {"keys": ["x", "y"]}),
    (errors.InputConflictError, {"keys": ["x"]}),
    (errors.UnusedInputWarning, {}),
    (errors.TypeMismatchWarning, {}),
    (errors.PollingWarning, {}),
    (errors.FormatterWarning, {}),
    (errors.RedefinedTaskWarning, {}),
    (errors.NotCachedWarning, {}),
    (errors.NodeError, {"task_name": "a"}),
    (errors.OutputShapeError, {"task_name": "a"}),
    (errors.SerializationError, {"task_name": "a", "key": "x", "value_type": set}),
    (errors.AnnotationError, {"task_name": "a", "key": "x", "value_type": set}),
    (errors.ResultUnavailableError, {"task_name": "a"}),
    (errors.NodeTimeoutError, {"task_name": "a", "seconds": 2.5, "waited": True}),
    (errors.TaskLostError, {"task_name": "a"}),
    (errors.ServerUnreachableError, {"task_name": "a"}),
    (errors.ItemsChangedError, {"task_name": "a"}),
    (errors.RunError, {"results": {"x": 1}, "failures": {}, "skipped": ["b"], "failure_count": 7}),
    (
        errors.NodeFailedError,
        {
            "task_name": "a",
            "task_id": "run:a:2",
            "attempts": 2,
            "results": {"x": None},
            "failures": {},
            "skipped": ["b"],
            "failure_count": 7,
        },
    ),
    (
        errors.RunFailedError,
        {"results": {"x": 1}, "failures": {}, "skipped": [], "failure_count": 7},
    ),
    (errors.RunCancelledError, {"results": {}, "failures": {}, "skipped": [], "failure_count": 7}),
    (
        errors.RunTimeoutError,
        {"results": {"x": 1}, "failures": {}, "skipped": [], "failure_count": 7},
    ),
    (errors.RunLockedError, {"results": {}, "failures": {}, "skipped": [], "failure_count": 7}),
    (errors.JournalError, {"results": {"x": 1}, "failures": {}, "skipped": [], "failure_count": 7}),
]
each_error = pytest.mark.parametrize(
    ("kind", "attributes"), ATTRIBUTES, ids=[kind.__name__ for kind, _ in ATTRIBUTES]
)


def test_the_tree_is_as_it_is_drawn() -> None:
    hanging = {name: kind.__bases__[0] for name, kind in CLASSES.items()}
    assert hanging.pop("TaskiqFlowError") is Exception
    assert drawn() == {name: base.__name__ for name, base in hanging.items() if base}


def test_every_class_of_the_tree_is_tested_here() -> None:
    assert [kind for kind, _ in ATTRIBUTES] == list(CLASSES.values())
    assert set(taskiq_flow.__all__) >= CLASSES.keys()


def test_everything_but_the_warnings_is_a_taskiq_flow_error() -> None:
    others = {
        name for name, kind in CLASSES.items() if not issubclass(kind, errors.TaskiqFlowError)
    }
    assert others == {
        *("UnusedInputWarning", "TypeMismatchWarning", "PollingWarning", "NotCachedWarning"),
        *("FormatterWarning", "RedefinedTaskWarning"),
    }
    assert issubclass(errors.UnusedInputWarning, UserWarning)


@each_error
def test_an_error_has_a_message_and_attributes(
    kind: type[Exception], attributes: dict[str, Any]
) -> None:
    error = kind("what and why", **attributes)
    assert str(error) == "what and why"
    assert {name: getattr(error, name) for name in attributes} == attributes
    assert vars(error).keys() == attributes.keys()


@each_error
def test_an_error_can_be_made_of_its_message_alone(
    kind: type[Exception], attributes: dict[str, Any]
) -> None:
    error = kind("what and why")
    assert error.args == ("what and why",)
    assert vars(error).keys() == attributes.keys()


@pytest.mark.parametrize("travel", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])  # noqa: S301 - its own
@each_error
def test_an_error_arrives_with_all_that_it_carries(
    kind: type[Exception], attributes: dict[str, Any], travel: Callable[[Exception], Exception]
) -> None:
    arrived = travel(kind("what and why", **attributes))
    assert type(arrived) is kind
    assert str(arrived) == "what and why"
    assert vars(arrived) == attributes


def test_failures_travel_with_the_error_of_their_run() -> None:
    lost = errors.TaskLostError("gone", task_name="a")
    error = errors.RunFailedError("two failed", failures={"a": lost, "b": ValueError("no")})
    arrived = pickle.loads(pickle.dumps(error))  # noqa: S301 - made one line above
    assert list(map(repr, arrived.failures.values())) == [
        "TaskLostError('gone')",
        "ValueError('no')",
    ]
    assert arrived.failures["a"].task_name == "a"


def test_an_error_keeps_copies_of_what_it_is_given() -> None:
    results, names = {"x": 1}, ["b"]
    run = errors.RunError("ended", results=results, skipped=names)
    cycle = errors.CycleError("circle", cycle=names)
    duplicate = errors.DuplicateOutputError("twice", task_names=names)
    results.clear()
    names.clear()
    assert run.results == {"x": 1}
    assert run.skipped == cycle.cycle == duplicate.task_names == ["b"]


def test_two_errors_of_one_kind_share_nothing() -> None:
    errors.RunError("first").results["x"] = 1
    errors.RunError("first").skipped.append("a")
    assert errors.RunError("second").results == {}
    assert errors.RunError("second").skipped == []


def test_a_failed_node_was_executed_once_unless_told_otherwise() -> None:
    assert errors.NodeFailedError("failed").attempts == 1


def test_a_long_message_is_quoted_by_its_beginning() -> None:
    assert errors.describe(ValueError("x" * 10_000)) == f"ValueError: {'x' * 4_000}..."
