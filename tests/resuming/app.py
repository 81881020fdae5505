"""What an engine that may be killed is given to do, and the tasks that its nodes have."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from taskiq import AsyncBroker

from property_tests.model import NodeSpec
from taskiq_flow import DAG, DAGNode, RedisJournal, SqliteJournal
from taskiq_flow.journal import Journal
from tests.distributed import app
from tests.distributed.app import Settings, write

SERVED = "tests.resuming.app:from_environment"

PATH = "path"
"""The input that says where tasks write down what they do."""


@dataclass(frozen=True)
class NodeOf:
    """A node as plain data. ``task``: the name of its task; ``after``: names of nodes."""

    task: str
    name: str
    inputs: list[str]
    outputs: list[str]
    after: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Death:
    """The moment at which a process kills itself.

    ``"before"`` or ``"after"`` it writes the ``number``-th batch (``"append"``) or the batch with
    the ``number``-th result (``"result"``) to the journal; or ``"at"`` the ``number``-th statement
    that begins so, as it is about to be executed by SQLite. ``"while"``: it does not kill itself,
    and is not to get beyond this write.
    """

    when: Literal["before", "while", "after", "at"]
    what: str
    number: int


@dataclass(frozen=True)
class Job:
    """A run to begin or to resume. ``journal``: the path of a file, or the URL of a server."""

    run_id: str
    nodes: list[NodeOf]
    inputs: Mapping[str, Any]
    journal: str
    settings: Settings
    max_parallel: int | None = None
    pass_by: Any = "value"
    resumes: bool = False
    death: Death | None = None

    def dumped(self) -> str:
        """The job in one line."""
        return json.dumps(asdict(self))

    @classmethod
    def loaded(cls, line: str) -> Self:
        """The job that a line says."""
        content = json.loads(line)
        content["nodes"] = [NodeOf(**node) for node in content["nodes"]]
        content["settings"] = Settings(**content["settings"])
        content["death"] = content["death"] and Death(**content["death"])
        return cls(**content)

    def graph(self, broker: AsyncBroker) -> DAG:
        """The run's graph on a broker."""
        dag = DAG()
        for node in self.nodes:
            task: Any = broker.find_task(node.task)
            dag.add_node(DAGNode(task, name=node.name, inputs=node.inputs, outputs=node.outputs))
        for node in self.nodes:
            for before in node.after:
                dag.add_edge(before, node.name)
        return dag


def journal_at(place: str) -> Journal:
    """The journal at a path or a URL."""
    return SqliteJournal(place) if is_file(place) else RedisJournal(place)


def is_file(place: str) -> bool:
    """Whether a journal's place is a path."""
    return "://" not in place


async def in_loop(path: str, node: NodeSpec, *values: int) -> Any:
    write(path, f"begin {node.name} {os.getpid()}")
    await asyncio.sleep(node.seconds / 1000)
    return outcome(node, *values)


def in_thread(path: str, node: NodeSpec, *values: int) -> Any:
    write(path, f"begin {node.name} {os.getpid()}")
    time.sleep(node.seconds / 1000)
    return outcome(node, *values)


def outcome(node: NodeSpec, *values: int) -> Any:
    return node.result({f"p{place}": value for place, value in enumerate(values)})


async def waits(path: str, name: str, *_: Any) -> str:
    """End once the test has written that it may, as ``app.held`` does, and note how it ends."""
    write(path, f"begin {name} {os.getpid()}")
    try:
        while not Path(f"{path}.released").exists():
            await asyncio.sleep(0.005)
    except asyncio.CancelledError:
        write(path, f"cancel {name} {os.getpid()}")
        raise
    write(path, f"end {name} {os.getpid()}")
    return name


def with_tasks(broker: AsyncBroker) -> AsyncBroker:
    for function in (in_loop, in_thread, waits):
        broker.register_task(function, task_name=function.__name__)
    return broker


def from_environment() -> AsyncBroker:
    """The broker that a worker serves."""
    return with_tasks(app.from_environment())
