"""How long it takes until a long run goes on: from ``resume()`` to the first node that is sent.

Of a graph of 100,000 nodes in chains of 10, and one behind the last, all but that one have
completed; and of a graph of two maps over a list of 50,000, and one node that takes the second
whole. And of two maps over such a list whose values, of 1 KB each, nobody takes as a list: they are
passed over, with ``items="only"`` and ``replay=False``. It is timed in a process of its own, as a
resumption is: modules loaded, the graph built. Of the maps, seconds of the processor are counted,
in all threads; of those that are passed over, also what the process has grown by at its peak.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

from taskiq import InMemoryBroker

from benchmarks.report import Check, Options, print_checks
from benchmarks.shapes import chains, dag_of, no_op
from taskiq_flow import DAG, DAGBuilder, DAGNode, ExecutionEngine, NodeStarted, SqliteJournal
from taskiq_flow.events import Event

MOST_SECONDS = 3.0
LAST = "last"
MOST_MEGABYTES = 40.0
KINDS = {"nodes": "s", "elements": "s CPU", "elements passed over": "s CPU"}


async def run(options: Options) -> list[Check]:
    """Begin each run, then resume it so many times in a new process each."""
    count, rounds = (20_000, 1) if options.quick else (100_000, 5)
    checks = []
    for kind, unit in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            await begin(folder, kind, count, rounds)
            measured = [await in_a_process(folder, kind, count, str(n)) for n in range(rounds)]
        taken, megabytes = [each[0] for each in measured], [each[1] for each in measured]
        check = Check(
            f"resume of {count:,} {kind} until a node is sent",
            statistics.median(taken),
            MOST_SECONDS * count / 100_000,
            unit,
        )
        found = [check]
        if kind == "elements passed over":
            grown = statistics.median(megabytes)
            found.append(Check(f"memory that {count:,} {kind} take", grown, MOST_MEGABYTES, "MB"))
        print_checks(f"Resuming, median of {rounds} (most: {max(taken):.2f} {unit})", found)
        checks += found
    return checks


async def begin(folder: str, kind: str, count: int, rounds: int) -> None:
    """Run all but the last node, so many times."""
    broker, journal = InMemoryBroker(), SqliteJournal(Path(folder) / "runs.db")
    dag = graph(broker, kind, count, is_first=True)
    engine = ExecutionEngine(broker, dag, journal=journal)
    for number in range(rounds):
        pairs = engine.execute_async(inputs_of(kind, count), run_id=str(number), items="only")
        found = sum([1 async for _ in pairs])
        if found != count:
            raise AssertionError(f"{found} results of {count}")
    await journal.aclose()


def graph(broker: InMemoryBroker, kind: str, count: int, *, is_first: bool) -> DAG:
    """So many nodes or elements, and one node behind the last, which the first session skips."""
    task: Any = no_op(broker)
    if kind == "elements passed over":
        task = broker.register_task(kilobyte, task_name="kilobyte")
    if kind == "nodes":
        dag = dag_of(task, chains(count, 10))
        before = f"node_{count - 1}"
    else:
        builder = DAGBuilder().node(task, name="first", inputs=["numbers"], map_over="numbers")
        dag = builder.node(task, name="second", inputs=["first"], map_over="first").build()
        before = "second"
    last = broker.register_task(size, task_name="size")
    takes = [] if kind == "elements passed over" else [before]
    dag.add_node(DAGNode(last, inputs=takes, name=LAST, when=lambda: not is_first))
    if not takes:
        dag.add_edge(before, LAST)
    return dag


async def kilobyte(given: object) -> str:
    """A text of 1 KB."""
    return str(given)[:9].ljust(1000)


async def size(given: object = None) -> int:
    """How much there is of what is given."""
    return len(given) if isinstance(given, list) else 1


def inputs_of(kind: str, count: int) -> dict[str, list[int]]:
    """What the graph is run with."""
    return {} if kind == "nodes" else {"numbers": list(range(count // 2))}


async def in_a_process(folder: str, kind: str, count: int, run_id: str) -> tuple[float, float]:
    """Seconds that a process of its own says it took, and megabytes that it has grown by."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.resuming", folder, kind, str(count), run_id),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    seconds, grown = map(float, said.split())
    return seconds, grown


class Watch:
    """A listener that notes when the last node is sent, in seconds since it was made."""

    def __init__(self) -> None:
        self._began, self._began_cpu = time.monotonic(), time.process_time()
        self.taken: dict[str, float] = {}

    def on_event(self, event: Event) -> None:
        """Look at the clocks; of the loop's, when the event was made."""
        if isinstance(event, NodeStarted) and event.task_name == LAST:
            self.taken["nodes"] = event.at - self._began
            self.taken["elements"] = time.process_time() - self._began_cpu
            self.taken["elements passed over"] = self.taken["elements"]


def megabytes() -> float:
    """The most that this process has taken; 0 where that is not told, which only Linux does.

    ``getrusage`` would count what the process had taken from which this one was forked.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


async def resume(folder: str, kind: str, count: int, run_id: str) -> tuple[float, float]:
    """Seconds from ``resume()`` to the sending of the last node, and megabytes more at the end."""
    broker = InMemoryBroker()
    dag = graph(broker, kind, count, is_first=False)
    dag.validate()
    journal = SqliteJournal(Path(folder) / "runs.db")
    watch = Watch()
    engine = ExecutionEngine(broker, dag, journal=journal, listeners=[watch])
    is_passed_over, before = kind == "elements passed over", megabytes()
    options: dict[str, Any] = {"items": "only", "replay": False} if is_passed_over else {}
    async with aclosing(engine.resume(run_id, **options)) as pairs:
        names = [name async for name, _ in pairs]
    await journal.aclose()
    expected = {"nodes": count + 1, "elements": 3, "elements passed over": 1}
    if len(names) != expected[kind]:
        raise AssertionError(f"{len(names)} pairs")
    return watch.taken[kind], megabytes() - before


if __name__ == "__main__":
    print(*asyncio.run(resume(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])))
