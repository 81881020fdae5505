"""Large inputs of a run go by reference, and nothing but their way changes by that."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel, Field

from taskiq_flow import Cache, DAGBuilder, DAGNode, ExecutionEngine
from taskiq_flow.engine.node_run import NodeRun
from taskiq_flow.engine.run_spec import NO_SESSIONS, PLAIN_OPTIONS
from taskiq_flow.engine.sender import Sender
from taskiq_flow.testing import LocalBroker, LocalFlowMiddleware, LocalNotices, LocalResults
from tests.local_flow import with_flow


class User(BaseModel):
    limit: int = Field(default=0, alias="creditLimit")


class Note(BaseModel):
    text: str
    pages: int = 0


executed: list[str] = []


class Site:
    def __init__(self) -> None:
        self.broker = LocalBroker()
        self.flow: LocalFlowMiddleware = with_flow(self.broker, LocalNotices())
        executed.clear()

        @self.broker.task(task_name="total")
        async def total(users: list[User]) -> int:
            return sum(user.limit for user in users)

        @self.broker.task(task_name="length")
        async def length(text: str) -> int:
            executed.append("length")
            return len(text)

        @self.broker.task(task_name="pages")
        async def pages(note: Note) -> int:
            return note.pages + len(note.text)

        self.total, self.length, self.pages = total, length, pages

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        async with self.broker.worker():
            yield
        await self.flow.shutdown()


PASS_BY = ["value", 100, 10_000_000, "reference"]


async def value_of(result: Any) -> Any:
    return await result.get() if hasattr(result, "get") else result


@pytest.mark.parametrize("pass_by", PASS_BY)
async def test_models_arrive_as_they_do_by_value(pass_by: Any) -> None:
    site = Site()
    async with site.working():
        engine = ExecutionEngine(
            site.broker, DAGBuilder().node(site.total).build(), pass_by=pass_by
        )
        users = [User(creditLimit=7) for _ in range(5000)]
        results = await engine.execute({"users": users})
        assert await value_of(results["total"]) == 35_000


@pytest.mark.parametrize("pass_by", PASS_BY)
async def test_one_model_arrives_as_it_does_by_value(pass_by: Any) -> None:
    site = Site()
    async with site.working():
        engine = ExecutionEngine(
            site.broker, DAGBuilder().node(site.pages).build(), pass_by=pass_by
        )
        results = await engine.execute({"note": Note(text="x" * 100_000, pages=5)})
        assert await value_of(results["pages"]) == 100_005


@pytest.mark.parametrize("pass_by", PASS_BY)
async def test_a_condition_is_given_the_value(pass_by: Any) -> None:
    site = Site()
    async with site.working():
        node = DAGBuilder().node(site.length, when=lambda text: text.startswith("y"))
        engine = ExecutionEngine(site.broker, node.build(), pass_by=pass_by)
        assert await engine.execute({"text": "x" * 100_000}) == {}
        assert list(await engine.execute({"text": "y" * 100_000})) == ["length"]
    assert executed == ["length"]


@pytest.mark.parametrize("pass_by", ["value", 1000, 10_000_000])
async def test_a_node_with_a_large_input_is_cached(pass_by: Any) -> None:
    site = Site()
    async with site.working():
        dag = DAGBuilder().node(site.length, cache=Cache()).build()
        engine = ExecutionEngine(site.broker, dag, pass_by=pass_by)
        await engine.execute({"text": ""})  # a worker in this process wraps the task's function
        executed.clear()
        for _ in range(2):
            assert await engine.execute({"text": "x" * 100_000}) == {"length": 100_000}
    assert executed == ["length"]


async def test_a_stored_input_has_an_id_that_no_task_has() -> None:
    site = Site()
    async with site.working():
        builder = DAGBuilder().node(site.length, name="input-x", inputs={"text": "x:1"})
        engine = ExecutionEngine(site.broker, builder.build(), pass_by=100)
        results = await engine.execute({"x:1": "x" * 1000}, run_id="r")
        assert await value_of(results["input-x"]) == 1000
    store: LocalResults = site.broker.results
    assert len(store.stored) == 2


@pytest.mark.parametrize("stored", [{}, {"a": "a handle"}])
def test_what_a_node_is_sent_is_found_without_a_look_at_all_values_of_its_run(
    stored: dict[str, Any],
) -> None:
    class Values(dict[str, Any]):
        def __iter__(self) -> Any:
            raise AssertionError("all values were looked at")

        items = keys = values = __iter__

    sender: Sender = object.__new__(Sender)
    sender._stored_inputs = stored
    node = DAGNode(lambda a, b: a, name="node")
    run: Any = None
    node_run = NodeRun(node, run, PLAIN_OPTIONS, Values(a=1, b=2, c=3), NO_SESSIONS)
    sent = sender._as_sent(node_run)
    assert node.arguments(sent) == ([], {"a": stored.get("a", 1), "b": 2})
