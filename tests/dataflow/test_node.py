"""A node: what it is called, which keys it takes and gives, how its result is split."""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import pytest
from taskiq import AsyncTaskiqDecoratedTask, InMemoryBroker

from taskiq_flow import (
    DAG,
    DAGBuilder,
    DAGNode,
    DataflowRegistry,
    GraphError,
    OutputShapeError,
    TaskNode,
)
from taskiq_flow.dataflow.tasks import Task


class Pair(NamedTuple):
    x: int
    y: int


def load(source: str) -> str:
    return source


async def train(model: str, epochs: int = 3) -> str:
    return model * epochs


class Loader:
    def __call__(self, source: str) -> str:
        return source

    def method(self, source: str) -> str:
        return source


def fresh() -> Callable[[str], str]:
    """A function named ``load`` that no broker has renamed yet."""

    def load(source: str) -> str:
        return source

    return load


def registered(times: int) -> AsyncTaskiqDecoratedTask[[str], str]:
    function = fresh()
    for _ in range(times):
        task = InMemoryBroker().task(function)
    return task


# Names


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (load, "load"),
        (train, "train"),
        (functools.partial(load, "here"), "load"),
        (functools.partial(functools.partial(train, "m"), epochs=1), "train"),
        (lambda source: source, "lambda"),
        (InMemoryBroker().task(lambda source: source), "lambda"),
        (Loader, "Loader"),
        (Loader(), "Loader"),
        (functools.partial(Loader(), "here"), "Loader"),
        (Loader().method, "method"),
        (len, "len"),
        (InMemoryBroker().task(fresh()), "load"),
        (InMemoryBroker().task(task_name="my.tag")(fresh()), "my.tag"),
        (InMemoryBroker().task(task_name="jobs:other")(fresh()), "jobs:other"),
        (InMemoryBroker().register_task(fresh(), task_name="tag"), "tag"),
    ],
)
def test_a_node_is_called_as_its_task_or_function(task: Task, name: str) -> None:
    assert DAGNode(task).task_name == name


def test_a_name_of_its_own_comes_before_all_others() -> None:
    task = InMemoryBroker().task(task_name="my.tag")(fresh())
    assert DAGNode(task, name="tags").task_name == "tags"
    assert DAGNode(load, name="").task_name == ""


@pytest.mark.parametrize("times", [1, 2, 3])
def test_registering_a_function_again_does_not_show_in_a_name(times: int) -> None:
    assert DAGNode(registered(times)).task_name == "load"


@pytest.mark.parametrize("times", [1, 2, 3])
def test_registering_a_function_does_not_show_in_its_own_name(times: int) -> None:
    assert DAGNode(registered(times).original_func).task_name == "load"
    assert DAGNode(functools.partial(registered(times).original_func)).task_name == "load"


def test_a_custom_name_is_kept_beside_a_generated_one() -> None:
    function = fresh()
    InMemoryBroker().task(function)
    assert DAGNode(InMemoryBroker().task(task_name="my.tag")(function)).task_name == "my.tag"


# Keys


@pytest.mark.parametrize(
    ("node", "output", "outputs"),
    [
        (DAGNode(load), "load", ["load"]),
        (DAGNode(load, name="first"), "first", ["first"]),
        (DAGNode(load, "raw"), "raw", ["raw"]),
        (DAGNode(task=load, output="raw"), "raw", ["raw"]),
        (DAGNode(load, outputs=["raw"]), "raw", ["raw"]),
        (DAGNode(load, "raw", outputs=["raw"]), "raw", ["raw"]),
        (DAGNode(load, outputs=("a", "b")), None, ["a", "b"]),
        (DAGNode(load, outputs=(key for key in "ab")), None, ["a", "b"]),
    ],
)
def test_a_node_has_one_output_key_or_several(
    node: DAGNode, output: str | None, outputs: list[str]
) -> None:
    assert (node.output, node.outputs) == (output, outputs)


def test_the_default_output_key_follows_the_name_that_a_graph_gives() -> None:
    dag = DAG()
    nodes = [DAGNode(load), DAGNode(load)]
    for node in nodes:
        dag.add_node(node)
    assert [(node.task_name, node.output) for node in nodes] == [
        ("load", "load"),
        ("load_2", "load_2"),
    ]


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        (DAGNode(load), ["source"]),
        (DAGNode(train), ["model"]),
        (DAGNode(load, inputs=[]), []),
        (DAGNode(train, inputs=["x", "y"]), ["x", "y"]),
        (DAGNode(train, inputs=(key for key in "xy")), ["x", "y"]),
        (DAGNode(train, inputs={"model": "x", "epochs": "y"}), ["x", "y"]),
    ],
)
def test_inputs_are_the_declared_keys_or_the_required_parameters(
    node: DAGNode, inputs: list[str]
) -> None:
    assert node.inputs == inputs
    assert node.inputs == inputs  # a source that can be read only once has been kept


def test_lists_that_a_node_shows_are_copies() -> None:
    node = DAGNode(train, outputs=["a", "b"], inputs=["x"])
    node.outputs.append("c")
    node.inputs.append("y")
    assert (node.outputs, node.inputs) == (["a", "b"], ["x"])


def test_a_mapping_given_as_inputs_may_change_afterwards() -> None:
    inputs = {"model": "x"}
    node = DAGNode(train, inputs=inputs)
    inputs["model"] = "y"
    assert node.inputs == ["x"]


# Splitting a result


def stored(node: DAGNode, result: object) -> dict[str, Any]:
    values: dict[str, Any] = {}
    node.store(result, values)
    return values


@pytest.mark.parametrize("result", [None, False, 0, (), (1, 2), ["a"], {"raw": 1}, ValueError()])
def test_one_output_takes_the_result_whole(result: object) -> None:
    assert stored(DAGNode(load, "raw"), result) == {"raw": result}
    assert stored(DAGNode(load), result) == {"load": result}


@pytest.mark.parametrize(
    "result",
    [
        (1, 2),
        [1, 2],
        Pair(1, 2),
        {"a": 1, "b": 2},
        {"b": 2, "a": 1, "c": 3},
        OrderedDict(b=2, a=1),
    ],
)
def test_several_outputs_split_a_sequence_by_position_and_a_mapping_by_key(result: object) -> None:
    assert stored(DAGNode(load, outputs=["a", "b"]), result) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (None, "a NoneType"),
        (3, "a int"),
        ("ab", "a str"),
        ({1, 2}, "a set"),
        (iter([1, 2]), "a list_iterator"),
        ((1,), "a tuple of 1"),
        ([1, 2, 3], "a list of 3"),
        ((), "a tuple of 0"),
        ({"a": 1}, "a mapping without 'b'"),
        ({}, "a mapping without 'a', 'b'"),
    ],
)
def test_a_result_of_the_wrong_shape_is_an_error(result: object, problem: str) -> None:
    node = DAGNode(load, outputs=["a", "b"])
    values = {"a": 0}
    with pytest.raises(OutputShapeError) as caught:
        node.store(result, values)
    assert values == {"a": 0}
    assert caught.value.task_name == "load"
    assert str(caught.value) == (
        f"node 'load' declares 2 outputs (a, b) and returned {problem}; "
        "return a tuple or list of 2, or a mapping with these keys"
    )


# Arguments of the call


def test_a_node_turns_values_into_the_arguments_of_its_task() -> None:
    node = DAGNode(train, inputs=["weights"])
    args, kwargs = node.arguments({"weights": "w", "other": 1})
    assert (args, kwargs) == ([], {"model": "w"})


def test_a_value_of_an_optional_key_is_passed_if_there_is_one() -> None:
    node = DAGNode(train)
    assert node.arguments({"model": "m"}) == ([], {"model": "m"})
    assert node.arguments({"model": "m", "epochs": 1}) == ([], {"model": "m", "epochs": 1})


# What no node can have


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"task": "load"}, TypeError, "'load'"),
        ({"task": None}, TypeError, "None"),
        ({"inputs": "raw"}, TypeError, r"write \['raw'\]"),
        ({"inputs": [1]}, TypeError, "inputs .* holds 1"),
        ({"inputs": {"source": 1}}, TypeError, "inputs .* holds 1"),
        ({"inputs": {1: "source"}}, TypeError, "inputs .* holds 1"),
        ({"inputs": 3}, TypeError, "give a list of keys"),
        ({"output": 1}, TypeError, "outputs .* holds 1"),
        ({"output": ["a"]}, TypeError, "outputs .* holds"),
        ({"outputs": "raw"}, TypeError, "write output="),
        ({"outputs": ["a", 1]}, TypeError, "outputs .* holds 1"),
        ({"outputs": []}, ValueError, "is empty"),
        ({"outputs": ["a", "b", "a"]}, ValueError, "repeat a key"),
        ({"output": "a", "outputs": ["b"]}, ValueError, "keep one"),
        ({"output": "a", "outputs": ["a", "b"]}, ValueError, "keep one"),
        ({"output": "a", "outputs": []}, ValueError, "keep one"),
        ({"expected_seconds": -1}, ValueError, "expected_seconds"),
        ({"expected_seconds": float("nan")}, ValueError, "expected_seconds"),
        ({"expected_seconds": float("inf")}, ValueError, "expected_seconds"),
    ],
)
@pytest.mark.parametrize(
    "declare", [DAGNode, DAGBuilder().add_task, DAGBuilder().node, DataflowRegistry().register_task]
)
def test_arguments_that_no_node_can_have_are_refused(
    declare: Callable[..., object], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        declare(**{"task": load, **arguments})


def test_a_refusal_names_the_node() -> None:
    with pytest.raises(ValueError, match="'first'"):
        DAGNode(load, name="first", outputs=[])


# The node as an object


def test_metadata_is_the_users_own() -> None:
    metadata = {"retry": 5, "timeout": None, "description": "My task", "cache": object()}
    node = DAGNode(load, metadata=metadata)
    assert node.metadata == metadata
    bare, other = DAGNode(load), DAGNode(load)
    bare.metadata["team"] = "audio"
    assert (bare.metadata, other.metadata) == ({"team": "audio"}, {})


def test_two_nodes_do_not_share_metadata() -> None:
    shared = {"team": "audio"}
    first, second = DAGNode(load, metadata=shared), DAGNode(load, metadata=shared)
    first.metadata["team"] = "video"
    assert (second.metadata, shared) == ({"team": "audio"}, {"team": "audio"})


def test_a_node_is_hashable_by_identity() -> None:
    first, second = DAGNode(load, "raw"), DAGNode(load, "raw")
    assert first != second
    assert len({first, second, first}) == 2
    before = hash(first)
    DAG().add_node(first)
    assert hash(first) == before


def test_a_node_keeps_its_task_as_it_was_given() -> None:
    task = InMemoryBroker().task(fresh())
    assert DAGNode(task).task is task
    assert DAGNode(load).task is load
    assert load.__name__ == "load"


def test_expected_seconds_is_one_unless_given() -> None:
    assert DAGNode(load).expected_seconds == 1.0
    assert DAGNode(load, expected_seconds=0).expected_seconds == 0


def test_a_task_node_is_a_node() -> None:
    assert isinstance(DataflowRegistry().register_task(load), TaskNode)
    assert TaskNode is DAGNode


def test_a_node_shows_its_name_and_keys() -> None:
    node = DAGNode(train, outputs=["a", "b"], inputs=["x"])
    assert repr(node) == "<DAGNode train: ['x'] -> ['a', 'b']>"


def test_a_node_whose_inputs_cannot_be_bound_can_still_be_shown() -> None:
    assert "load" in repr(DAGNode(load, inputs=["x", "y"]))
    assert "top" in repr(DAGNode(max, name="top"))


# Its place in a graph


def test_a_node_may_stand_in_two_graphs_under_one_name() -> None:
    node = DAGNode(load)
    for dag in (DAG(), DAG()):
        dag.add_node(node)
        assert dag.get_node("load") is node


def test_a_node_cannot_have_two_names() -> None:
    node, first, second = DAGNode(load), DAG(), DAG()
    first.add_node(node)
    second.add_node(DAGNode(load))
    with pytest.raises(GraphError, match=r"'load'.*make a new DAGNode"):
        second.add_node(node)
    assert node.task_name == "load"
    assert first.get_node("load") is node


def test_what_nodes_share_does_not_change() -> None:
    node = DAGNode(abs, inputs=["number"])
    shared = cast(dict[str, Any], node.map_over)
    assert node.given is shared
    changes: list[Callable[[], object]] = [
        lambda: shared.update(number=1),
        lambda: shared.setdefault("number", 1),
        lambda: shared.__setitem__("number", 1),
    ]
    for change in changes:
        with pytest.raises(TypeError, match="do not change; make another node"):
            change()
    assert (shared, DAGNode(abs).given) == ({}, {})
    assert copy.deepcopy(node).given == {}
