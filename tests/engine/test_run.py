"""What a run means: who starts when, who gets which value, and what is never mixed up."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import sys
import threading
import weakref
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    DAGBuilder,
    DAGNode,
    ExecutionEngine,
    NodeCompleted,
    NodeFailedError,
    SerializationError,
)
from taskiq_flow.testing import LocalBroker
from tests.recording import Recorder
from tests.virtual_clock import run_virtually, virtually


class Timeline:
    """Tasks of given lengths, with the times at which they began and ended."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.in_flight = 0
        self.most_in_flight = 0

    def task(self, name: str, seconds: float) -> Any:
        async def task(**_: Any) -> str:
            loop = asyncio.get_running_loop()
            self.began[name] = loop.time()
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            await asyncio.sleep(seconds)
            self.in_flight -= 1
            self.ended[name] = loop.time()
            return name

        return task

    def run(self, dag: DAG, max_parallel: int | None = None) -> list[str]:
        async def main() -> list[str]:
            engine = ExecutionEngine(InMemoryBroker(), dag, max_parallel=max_parallel)
            return [name async for name, _ in engine.execute_async()]

        return run_virtually(main())


def test_a_fast_chain_is_not_held_back_by_a_slow_sibling() -> None:
    timeline = Timeline()
    builder = DAGBuilder()
    builder.node(timeline.task("fast", 0.05), name="fast")
    builder.node(timeline.task("slow", 1.0), name="slow")
    builder.node(timeline.task("after", 1.0), name="after", inputs=["fast"])
    assert timeline.run(builder.build()) == ["fast", "slow", "after"]
    assert timeline.began["after"] == timeline.ended["fast"]
    assert max(timeline.ended.values()) == pytest.approx(1.05)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_max_parallel_is_never_exceeded_and_never_left_unused(limit: int) -> None:
    timeline = Timeline()
    builder = DAGBuilder()
    for index in range(12):
        builder.node(timeline.task(f"n{index}", 1.0), name=f"n{index}")
    assert len(timeline.run(builder.build(), limit)) == 12
    assert timeline.most_in_flight == limit
    assert max(timeline.ended.values()) == pytest.approx(12 / limit)


def test_with_a_limit_the_longest_remaining_path_goes_first() -> None:
    timeline = Timeline()
    builder = DAGBuilder()
    for name, seconds, inputs in (
        ("short", 1.0, []),
        ("brief", 1.0, []),
        ("long", 1.0, []),
        ("behind", 5.0, ["long"]),
    ):
        task = timeline.task(name, seconds)
        builder.node(task, name=name, inputs=inputs, expected_seconds=seconds)
    timeline.run(builder.build(), max_parallel=1)
    assert sorted(timeline.began, key=timeline.began.__getitem__) == [
        "long",
        "behind",
        "short",
        "brief",
    ]


ODD_VALUES = {
    "none": None,
    "false": False,
    "an exception": ValueError("returned, not raised"),
    "a tuple": (1, 2),
    "an object whose == is no bool": type(
        "Odd", (), {"__eq__": lambda *_: [], "__hash__": lambda _: 1}
    )(),
    "an unhashable": type("Unhashable", (), {"__eq__": lambda *_: True, "__hash__": None})(),
}


@pytest.mark.parametrize("kind", ODD_VALUES)
async def test_odd_results_arrive_as_they_are(broker: InMemoryBroker, kind: str) -> None:
    value = ODD_VALUES[kind]
    dag = DAGBuilder().node(lambda: value, output="x", name="odd").build()
    pairs = [pair async for pair in ExecutionEngine(broker, dag).execute_async()]
    assert len(pairs) == 1
    assert pairs[0][0] == "odd"
    assert pairs[0][1] is value
    assert (await ExecutionEngine(broker, dag).execute())["x"] is value


class TestMutableValues:
    """What a reader does to its value does not reach later nodes."""

    @pytest.mark.parametrize("limit", [None, 1])
    async def test_a_reader_that_changes_its_value_changes_no_input(
        self, broker: InMemoryBroker, limit: int | None
    ) -> None:
        release = asyncio.Event()

        async def make() -> list[int]:
            return [1, 2]

        async def gate() -> None:
            await release.wait()

        async def total(make: list[int], gate: None) -> int:
            return sum(make)

        dag = DAGBuilder().node(make).node(gate).node(total).build()
        results = {}
        engine = ExecutionEngine(broker, dag, max_parallel=limit)
        async for name, result in engine.execute_async():
            if name == "make":
                result.append(100)
                release.set()
            results[name] = result
        assert results["total"] == 3

    async def test_a_listener_that_changes_its_value_changes_no_input(
        self, broker: InMemoryBroker
    ) -> None:
        class Vandal:
            def on_event(self, event: Any) -> None:
                if isinstance(event, NodeCompleted) and isinstance(event.result, list):
                    event.result.clear()

        dag = DAG()
        dag.add_node(DAGNode(lambda: [1, 2], name="make"))
        for index in range(200):
            dag.add_node(DAGNode(sum, name=f"s{index}", inputs=["make"]))
        engine = ExecutionEngine(broker, dag, max_parallel=1, listeners=[Vandal()])
        results = await engine.execute()
        assert {results[f"s{index}"] for index in range(200)} == {3}

    async def test_a_value_that_no_later_node_needs_is_not_copied(
        self, broker: InMemoryBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delitem(sys.modules, "numpy", raising=False)  # else it may hold an array

        class Precious(dict[str, int]):
            def __deepcopy__(self, memo: Any) -> Any:
                raise AssertionError("copied")

        value = Precious(a=1)
        dag = DAGBuilder().node(lambda: value, name="leaf").node(lambda: 1, name="other").build()
        dag.add_edge("leaf", "other")  # an order is no need
        results = await ExecutionEngine(broker, dag, max_parallel=1).execute()
        assert results["leaf"] is value

    async def test_a_chain_copies_nothing(self, broker: InMemoryBroker) -> None:
        copies = 0

        class Counting(dict[str, int]):
            def __deepcopy__(self, memo: Any) -> Any:
                nonlocal copies
                copies += 1
                return self

        builder = DAGBuilder().node(lambda: Counting(a=1), name="n0")
        for index in range(1, 5):
            builder.node(lambda value: Counting(), name=f"n{index}", inputs=[f"n{index - 1}"])
        await ExecutionEngine(broker, builder.build()).execute()
        assert copies == 0

    async def test_a_value_that_cannot_be_copied_is_handed_over_itself(
        self, broker: InMemoryBroker
    ) -> None:
        class Single:
            def __deepcopy__(self, memo: Any) -> Any:
                raise TypeError

        value = Single()
        dag = DAGBuilder().node(lambda: value, name="one").node(lambda one: one, name="two")
        engine = ExecutionEngine(broker, dag.build(), on_error="collect")
        assert (await engine.execute())["one"] is value


async def test_equal_names_and_equal_tasks_with_different_keys_are_different_nodes(
    broker: InMemoryBroker,
) -> None:
    async def add(a: int, b: int) -> int:
        return a + b

    builder = DAGBuilder()
    builder.node(add, output="x", inputs=["one", "two"])
    builder.node(add, output="y", inputs=["x", "two"])
    builder.node(add, output="z", inputs=["x", "y"])
    engine = ExecutionEngine(broker, builder.build())
    pairs = [pair async for pair in engine.execute_async({"one": 1, "two": 2})]
    assert pairs == [("add", 3), ("add_2", 5), ("add_3", 8)]


async def test_a_join_of_three_thousand(broker: InMemoryBroker) -> None:
    async def one() -> int:
        return 1

    async def total(*parts: int) -> int:
        return sum(parts)

    dag = DAG()
    for index in range(3_000):
        dag.add_node(DAGNode(one, name=f"n{index}"))
    dag.add_node(DAGNode(total, name="total", inputs=[f"n{index}" for index in range(3_000)]))
    assert (await ExecutionEngine(broker, dag).execute(outputs=["total"]))["total"] == 3_000


async def test_a_fan_of_twenty_thousand_is_not_sent_in_one_go(broker: InMemoryBroker) -> None:
    sent = 0
    kick = broker.kick

    async def counting(message: Any) -> None:
        nonlocal sent
        sent += 1
        await kick(message)

    broker.kick = counting  # type: ignore[method-assign]

    async def nothing() -> None: ...

    dag = DAG()
    for index in range(20_000):
        dag.add_node(DAGNode(nothing, name=f"n{index}"))
    stream = ExecutionEngine(broker, dag).execute_async()
    await anext(stream)
    assert sent < 1_000
    for _ in range(1_000):
        await anext(stream)
    assert sent < 10_000
    await stream.aclose()


class Unknown:
    """No serializer knows it."""


@pytest.mark.filterwarnings("ignore::taskiq_flow.PollingWarning")
class TestValuesThatCannotBeSent:
    """To workers elsewhere. Within one process, values of any type go from task to task."""

    async def test_the_error_names_node_key_type_and_remedy(self) -> None:
        broker = LocalBroker()

        @broker.task
        def use(first: Any, model: Any) -> Any:
            return model

        dag = DAGBuilder().node(use, inputs=["first", "model"]).build()
        async with broker.worker():
            with pytest.raises(NodeFailedError) as caught:
                await ExecutionEngine(broker, dag).execute({"first": 1, "model": Unknown()})
        error = caught.value.__cause__
        assert isinstance(error, SerializationError)
        assert (error.task_name, error.key, error.value_type) == ("use", "model", Unknown)
        for part in ("'use'", "'model'", "Unknown", "ProxyFormatter", "return plain data"):
            assert part in str(error)

    async def test_so_does_the_error_of_a_dataclass_that_cannot_be_made_plain(self) -> None:
        broker = LocalBroker()

        @dataclasses.dataclass
        class Guarded:
            lock: Any

        @broker.task
        def use(guarded: Any) -> int:
            return 1

        dag = DAGBuilder().node(use).build()
        async with broker.worker():
            with pytest.raises(NodeFailedError) as caught:
                await ExecutionEngine(broker, dag).execute({"guarded": Guarded(threading.Lock())})
        error = caught.value.__cause__
        assert isinstance(error, SerializationError)
        assert (error.key, error.value_type) == ("guarded", Guarded)

    async def test_other_nodes_go_on(self) -> None:
        broker = LocalBroker()

        @broker.task
        def use(thing: Any) -> int:
            return 1

        @broker.task
        def other() -> int:
            return 2

        dag = DAGBuilder().node(use).node(other).build()
        async with broker.worker():
            engine = ExecutionEngine(broker, dag, on_error="collect")
            results = await engine.execute({"thing": Unknown()})
        assert isinstance(results["use"].error, SerializationError)
        assert results["other"] == 2

    async def test_a_formatter_of_the_users_own_may_carry_anything(
        self, broker: InMemoryBroker
    ) -> None:
        class ByReference(type(broker.formatter)):  # type: ignore[misc]
            """Keeps the arguments in this process and sends a number in their place."""

            kept: dict[str, Any] = {}  # noqa: RUF012 - one for all, as a broker has one formatter

            def dumps(self, message: Any) -> Any:
                self.kept[message.task_id] = message.args, message.kwargs
                return super().dumps(message.model_copy(update={"args": [], "kwargs": {}}))

            def loads(self, message: bytes) -> Any:
                loaded = super().loads(message)
                args, kwargs = self.kept.pop(loaded.task_id)
                return loaded.model_copy(update={"args": list(args), "kwargs": dict(kwargs)})

        broker.with_formatter(ByReference(broker))
        dag = DAGBuilder().node(object, name="thing").node(lambda thing: [thing], name="use")
        results = await ExecutionEngine(broker, dag.build()).execute()
        assert results["use"][0].__class__ is object


@virtually
async def test_reading_events_and_results_use_the_loops_own_clock() -> None:
    recorder = Recorder()
    dag = DAGBuilder().node(asyncio.sleep, name="sleep", inputs=["delay"]).build()
    await ExecutionEngine(InMemoryBroker(), dag, listeners=[recorder]).execute({"delay": 7})
    assert [event.at for event in recorder.events] == [0.0, 0.0, 0.0, 7.0, 7.0]


@pytest.mark.parametrize("values", ["isolated", "shared"])
def test_the_values_of_a_run_are_let_go_of_when_it_is_over(values: Any) -> None:
    class Large:
        pass

    alive: list[weakref.ref[Large]] = []

    def made() -> list[Large]:
        large = Large()
        alive.append(weakref.ref(large))
        return [large]

    def kept(made: list[Large]) -> int:
        return len(made)

    engine = ExecutionEngine(
        InMemoryBroker(), DAGBuilder().node(made).node(kept).build(), values=values
    )
    gc.collect()
    gc.disable()
    try:
        assert engine.execute_sync()["kept"] == 1
        assert [reference() for reference in alive] == [None]
    finally:
        gc.enable()
