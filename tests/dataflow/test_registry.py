"""The registry: who gives and who takes what, and the graph of it."""

import pytest

from taskiq_flow import (
    DAGNode,
    DataflowRegistry,
    TaskNode,
)
from taskiq_flow.dataflow.binding import Inputs


def extract(audio_files: list[str]) -> list[float]:
    return [float(len(name)) for name in audio_files]


def tag(features: list[float], threshold: float = 0.5) -> list[str]:
    return ["loud" if value > threshold else "quiet" for value in features]


def report(features: list[float], tags: list[str]) -> str:
    return f"{features} {tags}"


@pytest.fixture
def registry() -> DataflowRegistry:
    """Registered with the consumers first."""
    registry = DataflowRegistry()
    registry.register_task(report, output="report", inputs=["features", "tags"])
    registry.register_task(task=tag, output="tags", inputs=["features"])
    registry.register_task(task=extract, output="features", inputs=["audio_files"])
    return registry


def names(nodes: list[TaskNode]) -> list[str]:
    return [node.task_name for node in nodes]


def test_tasks_and_outputs_come_in_order_of_registration(registry: DataflowRegistry) -> None:
    assert names(registry.get_tasks()) == ["report", "tag", "extract"]
    assert registry.get_outputs() == ["report", "tags", "features"]


@pytest.mark.parametrize(
    ("key", "name"),
    [("features", "extract"), ("tags", "tag"), ("audio_files", None), ("nowhere", None)],
)
def test_the_producer_of_a_key_is_found(
    registry: DataflowRegistry, key: str, name: str | None
) -> None:
    producer = registry.get_producer(output_key=key)
    assert (producer and producer.task_name) == name


def test_each_of_several_keys_has_the_same_producer() -> None:
    registry = DataflowRegistry()
    node = registry.register_task(extract, outputs=["mean", "peak"])
    assert registry.get_producer("mean") is registry.get_producer("peak") is node


@pytest.mark.parametrize(
    ("key", "consumers"),
    [
        ("features", ["report", "tag"]),
        ("tags", ["report"]),
        ("audio_files", ["extract"]),
        ("report", []),
        ("nowhere", []),
    ],
)
def test_the_consumers_of_a_key_are_found(
    registry: DataflowRegistry, key: str, consumers: list[str]
) -> None:
    assert names(registry.get_consumers(input_key=key)) == consumers


CONSUMED: list[tuple[Inputs, list[str], list[str]]] = [
    (None, ["features", "threshold"], ["features", "threshold"]),
    ([], ["features"], ["features"]),
    (["f"], ["f"], ["f"]),
    ({"threshold": "t"}, ["features", "t"], ["features", "t"]),
]


@pytest.mark.parametrize(("inputs", "consumed", "external"), CONSUMED)
def test_keys_are_those_that_reach_a_parameter(
    inputs: Inputs, consumed: list[str], external: list[str]
) -> None:
    registry = DataflowRegistry()
    node = registry.register_task(tag, inputs=inputs)
    assert all(registry.get_consumers(key) == [node] for key in consumed)
    assert sorted(registry.get_external_inputs()) == sorted(external)


def test_external_inputs_are_what_no_task_gives(registry: DataflowRegistry) -> None:
    assert registry.get_external_inputs() == ["audio_files"]
    registry.register_task(tag, output="more", inputs=["audio_files", "level"])
    assert registry.get_external_inputs() == ["audio_files", "level"]


def test_external_inputs_of_a_registry_are_those_of_its_graph(registry: DataflowRegistry) -> None:
    registry.register_task(tag, output="more")
    assert registry.get_external_inputs() == registry.build_dag().external_inputs
    assert registry.get_external_inputs() == ["audio_files", "threshold"]


def test_a_graph_of_the_registry_may_be_added_to(registry: DataflowRegistry) -> None:
    dag = registry.build_dag()
    dag.add_edge("extract", "report")
    dag.add_node(DAGNode(tag, output="more"))
    assert len(dag.nodes) == 4
    assert len(registry.get_tasks()) == len(registry.build_dag().nodes) == 3


def test_a_refused_registration_leaves_nothing_behind(registry: DataflowRegistry) -> None:
    with pytest.raises(ValueError, match="empty"):
        registry.register_task(tag, outputs=[])
    assert len(registry.get_tasks()) == len(registry.build_dag().nodes) == 3


def test_tasks_of_one_name_are_numbered_in_order_of_registration() -> None:
    registry = DataflowRegistry()
    for _ in range(3):
        registry.register_task(extract)
    assert names(registry.get_tasks()) == ["extract", "extract_2", "extract_3"]
    assert registry.get_outputs() == ["extract", "extract_2", "extract_3"]
    assert names(registry.build_dag().nodes) == ["extract", "extract_2", "extract_3"]
