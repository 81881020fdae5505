"""LangGraph: a state with one key that keeps the newest value, an edge for each dependency."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Annotated, TypedDict

from langgraph.graph import START, StateGraph

from benchmarks.peers.protocol import Stream, Tree, sleep


def _newest(_: float, value: float) -> float:
    return value


class State(TypedDict):
    """What passes between the nodes."""

    ended: Annotated[float, _newest]


class Peer:
    """``astream`` over a compiled ``StateGraph``."""

    title = "LangGraph, astream(updates)"
    streams = True
    has_servers = False

    async def prepare(self, tree: Tree, stack: AsyncExitStack) -> Stream:
        """Compile the graph."""
        del stack
        graph = StateGraph(State)
        for step in tree:
            graph.add_node(step.name, _node(step.seconds))
            graph.add_edge(START if step.parent is None else step.parent, step.name)
        compiled = graph.compile()
        config = {"recursion_limit": len(tree) + 1}

        async def stream() -> AsyncIterator[tuple[str, float]]:
            async for update in compiled.astream({"ended": 0.0}, config, stream_mode="updates"):
                for name, state in update.items():
                    yield name, state["ended"]

        return stream


def _node(seconds: float) -> Callable[[State], Awaitable[State]]:
    async def work(_: State) -> State:
        return {"ended": await sleep(seconds)}

    return work
