"""How long it takes until a long run goes on: from ``resume()`` to the first node that is sent.

Of a graph of 100,000 nodes in chains of 10, and one behind the last, all but that one have
completed. It is timed in a process of its own, as a resumption is: modules loaded, the graph built.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
from contextlib import aclosing
from pathlib import Path

from taskiq import InMemoryBroker

from benchmarks.report import Check, Options, print_checks
from benchmarks.shapes import chains, dag_of, no_op
from taskiq_flow import DAG, DAGNode, ExecutionEngine, NodeStarted, SqliteJournal
from taskiq_flow.events import Event

MOST_SECONDS = 3.0
LAST = "last"


async def run(options: Options) -> list[Check]:
    """Begin the run, then resume it so many times in a new process each."""
    nodes, rounds = (20_000, 1) if options.quick else (100_000, 5)
    with tempfile.TemporaryDirectory() as folder:
        journal = SqliteJournal(Path(folder) / "runs.db")
        broker = InMemoryBroker()
        dag = graph(broker, nodes, is_first=True)
        engine = ExecutionEngine(broker, dag, journal=journal)
        for number in range(rounds):
            async with aclosing(engine.execute_async(run_id=str(number))) as pairs:
                completed = [name async for name, _ in pairs]
            if len(completed) != nodes:
                raise AssertionError(f"{len(completed)} pairs of {nodes}")
        await journal.aclose()
        taken = [await in_a_process(folder, nodes, str(number)) for number in range(rounds)]
    figure = statistics.median(taken)
    check = Check(
        f"resume of {nodes:,} nodes until one is sent", figure, MOST_SECONDS * nodes / 100_000, "s"
    )
    print_checks(f"Resuming, median of {rounds} (most: {max(taken):.2f} s)", [check])
    return [check]


def graph(broker: InMemoryBroker, nodes: int, *, is_first: bool) -> DAG:
    """The chains, and one node behind the last of theirs, which the first session skips."""
    task = no_op(broker)
    dag = dag_of(task, chains(nodes, 10))
    before = f"node_{nodes - 1}"
    dag.add_node(DAGNode(task, inputs=[before], name=LAST, when=lambda: not is_first))
    return dag


async def in_a_process(folder: str, nodes: int, run_id: str) -> float:
    """Seconds that a process of its own says it took."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.resuming", folder, str(nodes), run_id),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    return float(said)


class Watch:
    """A listener that notes when the last node is sent."""

    sent_at: float | None = None

    def on_event(self, event: Event) -> None:
        """Look at the loop's clock when the event was made."""
        if isinstance(event, NodeStarted) and event.task_name == LAST:
            self.sent_at = event.at


async def resume(folder: str, nodes: int, run_id: str) -> float:
    """Seconds from ``resume()`` to the sending of the last node."""
    broker, watch = InMemoryBroker(), Watch()
    dag = graph(broker, nodes, is_first=False)
    dag.validate()
    journal = SqliteJournal(Path(folder) / "runs.db")
    engine = ExecutionEngine(broker, dag, journal=journal, listeners=[watch])
    start = asyncio.get_running_loop().time()
    async with aclosing(engine.resume(run_id)) as pairs:
        names = [name async for name, _ in pairs]
    await journal.aclose()
    if len(names) != nodes + 1 or watch.sent_at is None:
        raise AssertionError(f"{len(names)} pairs, sent at {watch.sent_at}")
    return watch.sent_at - start


if __name__ == "__main__":
    print(asyncio.run(resume(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
