"""LangGraph: a ``Send`` for each item, and from each stage one to the next."""

from __future__ import annotations

import operator
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.types import Command, Send

from benchmarks.sleeps import LIMIT, STAGES, Sleeps, Taken


class State(TypedDict):
    """The items, and those that are through."""

    items: list[int]
    done: Annotated[list[int], operator.add]


class Peer:
    """``ainvoke`` over a compiled ``StateGraph``."""

    title = "LangGraph, Send"
    most_items = 10_000

    async def take(self, sleeps: Sleeps) -> Taken:
        """Run the graph; at most 32 nodes at once."""
        graph = StateGraph(State)
        for number in range(STAGES):
            graph.add_node(f"s{number}", _node(sleeps, number))
        graph.add_conditional_edges(START, _spread, ["s0"])
        compiled = graph.compile()
        items = list(range(len(sleeps.seconds[0])))
        start = time.perf_counter()
        state = await compiled.ainvoke(
            {"items": items, "done": []}, {"max_concurrency": LIMIT, "recursion_limit": 10}
        )
        taken = sleeps.taken(start)
        if sorted(state["done"]) != items:
            raise AssertionError(f"{len(state['done'])} of {len(items)} items")
        return taken


def _spread(state: State) -> list[Send]:
    return [Send("s0", item) for item in state["items"]]


def _node(sleeps: Sleeps, number: int) -> Callable[[int], Awaitable[Any]]:
    stage = sleeps.coroutine_function(number)

    async def node(item: int) -> Any:
        value = await stage(item)
        if number == STAGES - 1:
            return {"done": [value]}
        return Command(goto=Send(f"s{number + 1}", value))

    return node
