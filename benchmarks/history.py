"""What events cost: a journal with and without them, a ``Recorder``, and reading a status.

The same graphs of no-op nodes on an ``InMemoryBroker`` each, in turns. ``logs``: a SQLite file that
stores the logs alone. ``journal_formats`` has the target for that. The time is the CPU time of this
process, that of the file's thread included. Each run is one more in its file. SQLite empties its
write-ahead log into the file after each 4 MB, which is some 5 rounds: the median leaves that out.

A run that a ``Recorder`` gives up costs little, so it is seen at the end that all events of all
runs are there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from taskiq import InMemoryBroker

from benchmarks.journal import with_journal
from benchmarks.measure import interleaved, median_ratio
from benchmarks.report import CHECKED, Check, Options, print_table
from benchmarks.shapes import by_engine, three_shapes
from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    Lease,
    Recorder,
    RunCancelledError,
    RunReader,
    SqliteJournal,
)

NODES = 1_000
MOST_RECORDER = 1.2
VALUES, VALUE_BYTES, MOST_MEGABYTES = 50, 1_000_000, 1.0
SEEN_NODES, MOST_LATE = 100, 150.0
CANCELS, MOST_CANCEL = 5, 3.0

ASK = """
import asyncio, sys, time
from taskiq_flow import RunReader
print(time.time(), flush=True)
asyncio.run(RunReader(sys.argv[1]).request(sys.argv[2], "cancel"))
"""
"""What another process does that cancels a run."""


class LogsOnly:
    """A journal in a SQLite file that stores no events."""

    def __init__(self, inner: SqliteJournal) -> None:
        self._inner = inner
        self.serializer = inner.serializer
        self.acquire, self.renew, self.release = inner.acquire, inner.renew, inner.release
        self.run_ids, self.delete, self.aclose = inner.run_ids, inner.delete, inner.aclose

    async def create(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        """As of the file."""
        await self._inner.create(run_id, lease, chunk)

    async def append(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        """As of the file."""
        await self._inner.append(run_id, lease, chunk)

    def read(self, run_id: str) -> AsyncGenerator[bytes, None]:
        """As of the file."""
        return self._inner.read(run_id)


async def run(options: Options) -> list[Check]:
    """Measure three shapes of 1,000 nodes, a run with 50 MB of values, and one that is followed."""
    rounds = 7 if options.quick else 25
    checks, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        names = ("logs", "all", "history")
        files = [SqliteJournal(Path(folder) / f"{name}.db") for name in names]
        logs, events, history = files
        for name, shape in three_shapes(NODES).items():
            contestants = {
                "none": by_engine(shape),
                "logs": with_journal(shape, LogsOnly(logs)),
                "events": with_journal(shape, events),
                "recorder": by_engine(shape, [Recorder(history)]),
            }
            taken = await interleaved(contestants, rounds, time.process_time)
            cost = {who: f"{statistics.median(taken[who]) / NODES * 1e6:.1f}" for who in taken}
            ratio = median_ratio(taken["recorder"], taken["none"])
            check = Check(f"history: recorder, {name}", ratio, MOST_RECORDER, "x none")
            rows.append([f"{name}: recorder", cost["recorder"], *check.cells()])
            checks.append(check)
            beside_logs = median_ratio(taken["events"], taken["logs"])
            rows.append([f"{name}: events", cost["events"], f"{beside_logs:.4g} x logs", "", ""])
        runs = len(three_shapes(NODES)) * (rounds + 1)
        for journal in (events, history):
            await see_that_all_is_stored(journal, runs)
        await asyncio.gather(*(journal.aclose() for journal in files))
        checks.append(await status_of_much(Path(folder) / "much.db"))
        checks.append(await seen_elsewhere(Path(folder) / "seen.db"))
        checks.append(await cancelled_elsewhere(Path(folder) / "cancelled.db"))
    heads = ("no-op nodes: what is stored", "us/node", *CHECKED)
    print_table(f"History, median of {rounds} rounds of CPU time", heads, rows)
    return checks


async def see_that_all_is_stored(journal: SqliteJournal, runs: int) -> None:
    """Raise ``RuntimeError`` unless so many runs of ``NODES`` nodes are there, with all events."""
    stored = await journal.summaries(limit=runs + 1)
    whole = [run for run in stored if (run.completed, run.seq) == (NODES, 3 * NODES + 2)]
    last = [event async for event in RunReader(journal).events(whole[0].run_id)] if whole else []
    if not (len(stored) == len(whole) == runs and len(last) == 3 * NODES + 2):
        raise RuntimeError(f"{len(whole)} of {runs} runs are whole, {len(last)} events of the last")


async def status_of_much(path: Path) -> Check:
    """Read the status of a run with 50 MB of values, and count what is read of the file."""
    builder = DAGBuilder()
    for number in range(VALUES):
        builder.node(lambda: "x" * VALUE_BYTES, name=f"n{number}")
    journal = SqliteJournal(path)
    await ExecutionEngine(InMemoryBroker(), builder.build(), journal=journal).execute(run_id="much")
    await journal.aclose()
    reader = RunReader(path)
    await reader.runs()  # opens the file
    before = _read_bytes()
    view = await reader.view("much")
    read = (_read_bytes() - before) / 1e6
    if view.counts != {"completed": VALUES}:
        raise RuntimeError(f"the view is of other nodes: {view.counts}")
    await reader.aclose()
    return Check("history: status beside 50 MB of values", read, MOST_MEGABYTES, "MB read")


async def seen_elsewhere(path: Path) -> Check:
    """How long after it happened another process sees an event, of nodes that run 20 ms each."""
    builder = DAGBuilder().node(_wait, name="n0", inputs=["value"])
    for number in range(1, SEEN_NODES):
        builder.node(_wait, name=f"n{number}", inputs=[f"n{number - 1}"])
    journal = SqliteJournal(path)
    engine = ExecutionEngine(InMemoryBroker(), builder.build(), journal=journal)
    await journal.run_ids()  # makes the file
    command = [sys.executable, "-m", "benchmarks.follower", str(path), "seen"]
    follower = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    if follower.stdout is None or await follower.stdout.readline() != b"ready\n":
        raise RuntimeError("the process that follows has not begun")
    await engine.execute({"value": 0}, run_id="seen")
    delays = sorted(json.loads(await follower.stdout.read()))
    await follower.wait()
    await journal.aclose()
    if len(delays) < 3 * SEEN_NODES:
        raise RuntimeError(f"of {3 * SEEN_NODES} events, {len(delays)} were seen")
    late = delays[len(delays) * 95 // 100] * 1000
    return Check("history: an event is seen elsewhere, 95 of 100", late, MOST_LATE, "ms")


async def cancelled_elsewhere(path: Path) -> Check:
    """How long after another process has asked for it a run has ended, the slowest of some."""
    journal = SqliteJournal(path)
    dag = DAGBuilder().node(_never).build()
    engine, taken = ExecutionEngine(InMemoryBroker(), dag, journal=journal), list[float]()
    for number in range(CANCELS):
        run_id = f"run{number}"
        handle = engine.start(run_id=run_id)
        while run_id not in await journal.run_ids():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        command = [sys.executable, "-c", ASK, str(path), run_id]
        asking = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        with contextlib.suppress(RunCancelledError):
            await handle
        ended = time.time()
        asked, _ = await asking.communicate()
        taken.append(ended - float(asked))
    await journal.aclose()
    return Check("history: cancelled from elsewhere, slowest", max(taken), MOST_CANCEL, "s")


async def _never() -> None:
    await asyncio.Event().wait()


async def _wait(value: int) -> int:
    await asyncio.sleep(0.02)
    return value


def _read_bytes() -> int:
    """What this process has read of files so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])
