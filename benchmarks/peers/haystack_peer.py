"""Haystack: a component for each node, its output connected to those that wait for it."""

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

    @haystack.component.output_types(ended=float)  # type: ignore[untyped-decorator]
    def run(self) -> dict[str, float]:
        return {"ended": sleep_in_thread(self.seconds)}

    @haystack.component.output_types(ended=float)  # type: ignore[untyped-decorator]
    async def run_async(self) -> dict[str, float]:
        return {"ended": await sleep(self.seconds)}


class _Behind:
    """A node that waits for one."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    @haystack.component.output_types(ended=float)  # type: ignore[untyped-decorator]
    def run(self, before: float) -> dict[str, float]:
        return {"ended": sleep_in_thread(self.seconds, before)}

    @haystack.component.output_types(ended=float)  # type: ignore[untyped-decorator]
    async def run_async(self, before: float) -> dict[str, float]:  # noqa: ARG002 - the same as run's
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
        for number, (parent, seconds) in enumerate(zip(tree.parents, tree.seconds, strict=True)):
            kind = Root if parent is None else Behind
            pipeline.add_component(str(number), kind(seconds))
        for number, parent in enumerate(tree.parents):
            if parent is not None:
                pipeline.connect(f"{parent}.ended", f"{number}.before")
        # Without these names it streams the leaves only.
        names = set(map(str, range(len(tree.parents))))

        async def stream() -> AsyncIterator[tuple[int, float]]:
            told: set[str] = set()
            # What it yields last is the whole once more.
            async for partial in pipeline.run_async_generator({}, names, len(names)):
                for name, outputs in partial.items():
                    if name not in told:
                        told.add(name)
                        yield int(name), outputs["ended"]

        return stream
