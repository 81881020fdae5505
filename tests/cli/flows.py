"""The graphs that the commands of the tests run, from the folder that they are started in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    DAGBuilder,
    DAGNode,
    DataflowPipeline,
    ExecutionEngine,
    Pipeline,
)


def fetch(url: str) -> str:
    return f"<h1>Tides</h1> read at {url}"


def title(fetch: str) -> str:
    return fetch.removeprefix("<h1>").partition("</h1>")[0]


nightly = DAGBuilder("nightly").node(fetch).node(title).build()


def odd(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number


def half(odd: int) -> float:
    return odd / 2


halves = DAGBuilder("halves").node(odd).node(half).build()
mapped = (
    DAGBuilder("mapped")
    .node(odd, inputs={"number": "numbers"}, map_over="numbers", output="evens")
    .node(sum, name="total", inputs=["evens"])
    .build()
)


long_names = DAGBuilder("long names").node(fetch, name="f" * 90).build()


async def gate(before: str = "") -> str:
    Path("at_gate").touch()
    while not Path("open").exists():
        await asyncio.sleep(0.005)
    return "open"


def after(gate: str) -> str:
    Path("after").touch()
    return f"{gate} for all"


gated = DAGBuilder("gated").node(gate).node(after).build()


def block() -> str:
    Path("at_gate").touch()
    time.sleep(60)
    return "blocked"


blocking = DAGBuilder("blocking").node(block).build()


async def hog() -> str:
    """Blocks the event loop, so that nothing is done about a signal."""
    Path("at_gate").touch()
    time.sleep(60)  # noqa: ASYNC251
    return "blocked"


hogging = DAGBuilder("hogging").node(hog).build()


async def unending() -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


tasks: list[asyncio.Task[None]] = []


def leaves_a_task() -> DAGBuilder:
    tasks.append(asyncio.get_running_loop().create_task(unending()))
    return DAGBuilder().node(fetch)


def loud() -> int:
    print("counting")  # noqa: T201
    os.system("echo in a process")  # noqa: S605, S607
    return 1


louds = DAGBuilder("louds").node(loud).build()


class Colour(Enum):
    RED = "red"


class Point(BaseModel):
    x: int
    y: int = 0


def of_all_types(  # type: ignore[no-untyped-def]
    number: int,
    flag: bool,
    day: date,
    place: Path,
    colour: Colour,
    point: Point,
    words: list[str],
    text: str,
    either: int | None,
    anything: Any,
    bare="left out",
) -> str:
    parts = (number, flag, day, place, colour, point, words, text, either, anything, bare)
    return "; ".join(map(repr, parts))


typed = DAGBuilder().node(of_all_types, output="seen").build()


def values() -> list[Any]:
    return [float("nan"), {1, 2}, b"\xff", date(2026, 11, 26), 1 + 2j, "\udc80", Point(x=1)]


odd_values = DAGBuilder().node(values).build()


class Noting:
    """A listener of the engine's own."""

    def on_event(self, event: object) -> None:
        with Path("events").open("a") as file:
            file.write(f"{type(event).__name__}\n")


broker = InMemoryBroker()
engine = ExecutionEngine(
    broker, halves, on_error="collect", listeners=[Noting()], journal="engine.db"
)


pipeline = Pipeline(broker, timeout=30).call_next(fetch).call_next(title)
chosen = DataflowPipeline(broker, [title, fetch]).on_error("continue")
named = Pipeline(broker, pipeline_id="tides").call_next(fetch)
no_steps = Pipeline(broker)


def make() -> DAGBuilder:
    return DAGBuilder().node(fetch)


def needs(url: str) -> DAG:
    raise AssertionError(url)


cyclic = DAG()
cyclic.add_node(DAGNode(title, name="a", inputs=["b"], output="a"))
cyclic.add_node(DAGNode(title, name="b", inputs=["a"], output="b"))


def number() -> int:
    return 1


def needs_point(number: Point) -> int:
    return number.x


mismatched = DAGBuilder().node(number).node(needs_point).build()
something = 7
