"""Engines in processes of their own that keep runs in one journal, and what they are told to do.

They are spoken with by lines of JSON over pipes, and end when theirs is closed.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self

from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    DAGBuilder,
    ExecutionEngine,
    Journal,
    Lease,
    RedisJournal,
    RunError,
    SqliteJournal,
    TaskiqFlowError,
)
from tests.waiting import until

REPOSITORY = Path(__file__).parents[2]

GATED = [("first", 1), ("second", 2), ("gate", 2), ("last", 3)]
"""The pairs of a run of ``gated()`` in their order."""

BIG = 20_000
"""Characters of what each node of ``big()`` gives."""


def journal_at(place: str) -> Journal:
    """The journal at a URL of Redis, or else in a file."""
    return RedisJournal(place) if place.startswith("redis:") else SqliteJournal(place)


# Graphs, whose tasks note that they are executed


def note(notes: str, name: str) -> None:
    """Append a line at once, whoever else is writing."""
    with Path(notes).open("a", encoding="utf-8") as file:
        file.write(f"{name}\n")


def noted(notes: Path) -> list[str]:
    """The names of the tasks that were executed, in their order."""
    return notes.read_text(encoding="utf-8").split() if notes.exists() else []


def open_gate(notes: Path) -> None:
    """Let the runs go on that wait at their gate, and those that will come to it."""
    Path(f"{notes}.open").touch()


def first(notes: str) -> int:
    note(notes, "first")
    return 1


def second(notes: str, first: int) -> int:
    note(notes, "second")
    return first + 1


async def gate(notes: str, second: int) -> int:
    note(notes, "gate")
    await _until_open(notes)
    return second


async def _until_open(notes: str) -> None:
    while not Path(f"{notes}.open").exists():
        await asyncio.sleep(0.005)


def last(notes: str, gate: int) -> int:
    note(notes, "last")
    return gate + 1


def gated() -> DAG:
    """A chain that stops at a gate until it is open."""
    return DAGBuilder().node(first).node(second).node(gate).node(last).build()


def big_text(number: int) -> str:
    return str(number % 10) * BIG


async def big_value(notes: str, number: int, before: str = "") -> str:
    note(notes, f"n{number}")
    if number:
        await _until_open(notes)
    return big_text(number)


def big(count: int) -> DAG:
    """A chain of so many nodes with big values, which stops behind the first at a gate.

    Its inputs are those of ``big_inputs``.
    """
    builder = DAGBuilder()
    for number in range(count):
        keys = {"notes": "notes", "number": f"number {number}"}
        before = {"before": f"n{number - 1}"} if number else {}
        builder.node(big_value, name=f"n{number}", inputs={**keys, **before})
    return builder.build()


def big_inputs(notes: Path, count: int) -> dict[str, Any]:
    return {"notes": str(notes), **{f"number {number}": number for number in range(count)}}


# The other side of the pipes


class Child:
    """A process with engines on a journal. Used as a context, at the end of which it is gone."""

    def __init__(self, place: str) -> None:
        command = [
            sys.executable,
            "-c",
            "from tests.journal.processes import serve; serve()",
            place,
        ]
        self._process = subprocess.Popen(  # noqa: S603 - made above
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, what: str, **more: Any) -> None:
        """Have it do something: ``begin``, ``resume``, ``create`` or ``fill``."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"what": what, **more}) + "\n")
        self._process.stdin.flush()

    async def hear(self) -> Any:
        """What it says next."""
        assert self._process.stdout is not None
        line = await asyncio.to_thread(self._process.stdout.readline)
        assert line, "the process has ended"
        return json.loads(line)

    def kill(self) -> None:
        """End it by SIGKILL; nobody has asked yet how it ended."""
        self._process.kill()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    async def begin(self, notes: Path) -> None:
        """Have it begin the run of ``gated()``, and come to the gate."""
        self.tell("begin", notes=str(notes))
        assert [(await self.hear())[1] for _ in GATED[:2]] == ["first", "second"]
        await until(lambda: "gate" in noted(notes), "it has come to the gate")

    async def hear_all(self) -> list[tuple[str, Any]]:
        """The pairs that it says are those of a run which comes to its end."""
        pairs = []
        while (said := await self.hear()) != ["end"]:
            assert said[0] == "pair", said
            pairs.append((said[1], said[2]))
        return pairs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


async def check_that_one_resumes(a: Child, b: Child, notes: Path, run_id: str) -> None:
    """Of two processes that resume the gated run at once, one does, and the other is refused."""
    for child in (a, b):
        child.tell("resume", run_id=run_id)
    said = await asyncio.gather(a.hear(), b.hear())
    winner, loser = (a, b) if said[0][0] == "pair" else (b, a)
    pair, refusal = said if winner is a else said[::-1]
    assert pair == ["pair", "first", 1]
    assert refusal[:2] == ["error", "RunLockedError"]
    assert f"process {winner.pid} " in refusal[2]
    open_gate(notes)
    assert await winner.hear_all() == GATED[1:]
    loser.tell("resume", run_id=run_id)
    assert await loser.hear_all() == GATED


def serve() -> None:
    """Do what is told, until nobody is there any more to tell."""
    asyncio.run(_serve(sys.argv[1]))


async def _serve(place: str) -> None:
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    work = set()
    while line := await lines.readline():
        work.add(loop.create_task(_do(place, **json.loads(line))))
    os._exit(0)  # in the middle of whatever is being done


def _say(*words: Any) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


async def _do(place: str, what: str, run_id: str = "run", **more: Any) -> None:
    try:
        if what == "create":
            journal = journal_at(more["path"])
            await journal.create(run_id, Lease(f"process {os.getpid()}"), b"chunk")
            await journal.aclose()
        elif what == "fill":
            await _fill(place, run_id, **more)
        else:
            engine = ExecutionEngine(InMemoryBroker(), gated(), journal=journal_at(place))
            again = what == "resume"
            await _tell_pairs(
                engine.resume(run_id) if again else engine.execute_async(more, run_id=run_id)
            )
    except TaskiqFlowError as error:
        results = list(error.results) if isinstance(error, RunError) else []
        _say("error", type(error).__name__, str(error), results)
    else:
        _say("end")


async def _tell_pairs(pairs: AsyncGenerator[tuple[str, Any], None]) -> None:
    async with aclosing(pairs):
        async for name, value in pairs:
            _say("pair", name, value)


async def _fill(place: str, run_id: str, notes: str, count: int, limit: int) -> None:
    """Begin a run with big values where no file may grow beyond ``limit`` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    engine = ExecutionEngine(InMemoryBroker(), big(count), journal=journal_at(place))
    inputs = big_inputs(Path(notes), count)
    async with aclosing(engine.execute_async(inputs, run_id=run_id)) as pairs:
        async for name, _ in pairs:
            open_gate(Path(notes))
            _say("pair", name, None)
