"""No barriers: ``fast (0.05 s) -> after (1.0 s)`` beside ``slow (1.0 s)``; 1.05 s is possible.

Total: until the last pair is read, by a reader that does nothing else. Slow reader: until the task
of the last node ends, by the clock that the task itself reads, while the reader sleeps 0.5 s after
each pair: a system that waits for its reader starts ``after`` late.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack

from benchmarks import peers
from benchmarks.peers import engine
from benchmarks.peers.protocol import Step, Stream
from benchmarks.report import Check, Options, print_checks, print_table

RACE = [
    Step("fast", seconds=0.05),
    Step("slow", seconds=1.0),
    Step("after", parent="fast", seconds=1.0),
]
POSSIBLE = 1.05
MOST = POSSIBLE * 1.05
READERS_PAUSE = 0.5


async def run(options: Options) -> list[Check]:
    """Run the race on the engine and the peers, with either reader."""
    rounds = 1 if options.quick else 3
    present, absent = peers.installed()
    totals: dict[str, list[float]] = {}
    ends: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        contestants = [engine.Peer(), *present]
        streams = {peer.title: await peer.prepare(RACE, stack) for peer in contestants}
        for _ in range(rounds):
            for name, stream in streams.items():
                totals.setdefault(name, []).append((await race(stream, 0.0))[0])
                ends.setdefault(name, []).append((await race(stream, READERS_PAUSE))[1])
    rows = []
    for peer in contestants:
        total, end = (statistics.median(taken[peer.title]) for taken in (totals, ends))
        rows.append([peer.title, f"{total:.3f}", f"{end:.3f}" if peer.streams else "no stream"])
    rows += [[name, "not installed", "not installed"] for name in absent]
    heads = ("possible: 1.050 s", "total, s", "slow reader, last end, s")
    print_table(f"fast -> after beside slow, median of {rounds} rounds", heads, rows)
    own = engine.Peer.title
    checks = [
        Check("fast -> after beside slow, total", statistics.median(totals[own]), MOST, "s"),
        Check("the same, slow reader, last end", statistics.median(ends[own]), MOST, "s"),
    ]
    print_checks("The engine, within 5 %", checks)
    return checks


async def race(stream: Stream, pause: float) -> tuple[float, float]:
    """Seconds until the last pair was read, and until the last task ended."""
    start = time.perf_counter()
    ends = {}
    read = 0.0
    async for name, ended in stream():
        ends[name] = ended
        read = time.perf_counter() - start
        await asyncio.sleep(pause)
    if len(ends) != len(RACE):
        raise AssertionError(f"the pairs of {sorted(ends)} only")
    return read, max(ends.values()) - start
