"""Haystack: a component for each node, its output connected to those that wait for it.

What it starts while others run depends on the alphabetical order of the components' names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import haystack

from benchmarks.peers.protocol import Stream, Tree, sleep, sleep_in_thread


class _Root:
    """A node that waits for none."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    @haystack.component.output_types(ended=float)  # type: ignore[untyped-decorator]  # theirs
    def run(self) -> dict[str, float]:
        return {"ended": sleep_in_thread(self.seconds)}

    @haystack.component.output_types(ended=float)  # type: ignore[untyped-decorator]  # theirs
    async def run_async(self) -> dict[str, float]:
        return {"ended": await sleep(self.seconds)}


class _Behind:
    """A node that waits for one."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    @haystack.component.output_types(ended=float)  # type: ignore[untyped-decorator]  # theirs
    def run(self, before: float) -> dict[str, float]:
        return {"ended": sleep_in_thread(self.seconds, before)}

    @haystack.component.output_types(ended=float)  # type: ignore[untyped-decorator]  # theirs
    async def run_async(self, before: float) -> dict[str, float]:
        return {"ended": await sleep(self.seconds)}


Root: Any = haystack.component(_Root)
Behind: Any = haystack.component(_Behind)


class Peer:
    """``run_async_generator`` with as many components at once as there are."""

    title = "Haystack, run_async_generator"
    streams = True
    has_servers = False

    async def prepare(self, tree: Tree, stack: AsyncExitStack) -> Stream:
        """Build the pipeline."""
        del stack
        # Since Haystack 3, Pipeline does what AsyncPipeline did.
        pipeline = getattr(haystack, "AsyncPipeline", haystack.Pipeline)()
        for step in tree:
            kind = Root if step.parent is None else Behind
            pipeline.add_component(step.name, kind(step.seconds))
            if step.parent is not None:
                pipeline.connect(f"{step.parent}.ended", f"{step.name}.before")
        names = {step.name for step in tree}  # without which it streams the leaves only

        async def stream() -> AsyncIterator[tuple[str, float]]:
            told: set[str] = set()
            # What it yields last is the whole once more.
            async for partial in pipeline.run_async_generator({}, names, len(names)):
                for name, outputs in partial.items():
                    if name not in told:
                        told.add(name)
                        yield name, outputs["ended"]

        return stream
