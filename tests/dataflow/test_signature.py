"""All methods that make a node take the arguments of ``DAGNode``, as its signature says."""

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest

from taskiq_flow import DAGBuilder, DAGNode, DataflowRegistry

METHODS = [DAGBuilder.add_task, DAGBuilder.node, DataflowRegistry.register_task]

OPTIONS: dict[str, Any] = {
    "outputs": ["x", "y"],
    "name": "n",
    "metadata": {"a": 1},
    "timeout": 2.0,
    "queue_timeout": 3.0,
    "fallback": (1, 2),
    "join": "any",
    "expected_seconds": 4.0,
}


def load(a: int = 0) -> tuple[int, int]:
    return a, a


@pytest.mark.parametrize("method", METHODS)
def test_parameters_defaults_and_annotations_are_those_of_a_node(
    method: Callable[..., Any],
) -> None:
    expected = inspect.signature(DAGNode, eval_str=True).parameters
    own, *found = inspect.signature(method).parameters.values()
    assert own.name == "self"
    assert found == list(expected.values())
    hints = get_type_hints(DAGNode.__init__)
    assert {**get_type_hints(method), "return": None} == {**hints, "return": None}


def test_what_the_methods_return_stands_in_their_signatures() -> None:
    assert get_type_hints(DAGBuilder.add_task)["return"] is DAGNode
    assert get_type_hints(DataflowRegistry.register_task)["return"] is DAGNode


@pytest.mark.parametrize("method", METHODS)
def test_options_reach_the_node(method: Callable[..., Any]) -> None:
    made = DataflowRegistry() if method is DataflowRegistry.register_task else DAGBuilder()
    method(made, load, None, {"a": "k"}, **OPTIONS)
    (node,) = made.get_tasks() if isinstance(made, DataflowRegistry) else made.nodes
    assert {
        "a": node.inputs[0],
        "name": node.task_name,
        **{name: getattr(node, name) for name in OPTIONS if name != "name"},
    } == {"a": "k", **OPTIONS}


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_option_is_a_type_error_that_names_it(method: Callable[..., Any]) -> None:
    made = DataflowRegistry() if method is DataflowRegistry.register_task else DAGBuilder()
    with pytest.raises(TypeError, match=r"no argument 'retries'; write retry=3"):
        method(made, load, retries=3)


def test_a_subclass_of_the_builder_is_chained_as_itself() -> None:
    class Builder(DAGBuilder):
        pass

    builder: Builder = Builder().node(load, name="one").node(load, name="two")
    assert [node.task_name for node in builder.build().nodes] == ["one", "two"]
