"""No-op nodes by the engine and by other systems, in one process and in turns.

The time is that of a whole run, read to its end, divided by the nodes; building the graph,
compiling it and starting a cluster are not in it. A system with servers of its own takes its turns
when the others are done, as its background work would be timed with theirs.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack

from benchmarks import peers
from benchmarks.hand_written import by_hand
from benchmarks.measure import Contestant, interleaved, median_ratio
from benchmarks.peers import engine
from benchmarks.peers.protocol import Peer, Step, Stream
from benchmarks.report import Check, Options, print_table
from benchmarks.shapes import Shape, chain, fan

SHAPES = {"chain of 100": chain(100), "fan of 200": fan(200)}
BY_HAND = "hand-written loop"


async def run(options: Options) -> list[Check]:
    """Measure two shapes. No target: the engine is held to the loop written by hand."""
    rounds = 3 if options.quick else 9
    present, absent = peers.installed()
    contestants = [engine.Peer(), *present]
    rows: dict[str, list[str]] = {
        name: [] for name in [*(peer.title for peer in contestants), BY_HAND]
    }
    for shape in SHAPES.values():
        taken = await _measure(shape, contestants, rounds)
        for name, row in rows.items():
            ratio = median_ratio(taken[name], taken[engine.Peer.title])
            cost = statistics.median(taken[name]) / len(shape)
            row += [f"{cost * 1e6:,.0f}", f"{ratio:.2f}"]
    table = [[name, *row] for name, row in rows.items()]
    table += [[name, *["not installed"] * 2 * len(SHAPES)] for name in absent]
    heads = [head for shape in SHAPES for head in (f"{shape}, us/node", "x engine")]
    print_table(f"Beside other systems, median of {rounds} rounds", ("no-op nodes", *heads), table)
    return []


async def _measure(
    shape: Shape, contestants: Sequence[Peer], rounds: int
) -> dict[str, list[float]]:
    """Seconds by contestant and round; those that have servers run when all others have."""
    tree = [Step(f"n{n}", f"n{before[0]}" if before else None) for n, before in enumerate(shape)]
    taken: dict[str, list[float]] = {}
    for with_servers in (False, True):
        runs = {} if with_servers else {BY_HAND: by_hand(shape)}
        async with AsyncExitStack() as stack:
            for peer in contestants:
                if peer.has_servers is with_servers:
                    runs[peer.title] = _read(await peer.prepare(tree, stack), len(shape))
            taken |= await interleaved(runs, rounds)
    return taken


def _read(stream: Stream, expected: int) -> Contestant:
    async def read() -> None:
        seen = {name async for name, _ in stream()}
        if len(seen) != expected:
            raise AssertionError(f"{len(seen)} nodes of {expected}")

    return read
