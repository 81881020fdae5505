"""A run over a generator on a worker, with notices that are lost, doubled and late.

The engine and the worker are real, and share a process and a virtual clock. The generator's message
is delivered again at random, though its worker lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from taskiq import BrokerMessage

from taskiq_flow import DAGBuilder, ExecutionEngine
from taskiq_flow.testing import LocalBroker, LocalNotices
from tests.local_flow import with_flow
from tests.virtual_clock import run_virtually


class Network(LocalNotices):
    """Loses so many of the notices, doubles some and has some come late."""

    def __init__(self, chance: Random) -> None:
        super().__init__()
        self._chance = chance
        self._lost = chance.choice([0, 0.1, 0.3])
        self._doubled = chance.choice([0, 0.2])
        self._late = chance.choice([0, 0.3])

    def tell(self, channel: str, data: bytes) -> None:
        chance = self._chance
        if chance.random() < self._lost:
            return
        for _ in range(2 if chance.random() < self._doubled else 1):
            seconds = chance.random() * chance.choice([0.01, 1, 3])
            if chance.random() < self._late:
                asyncio.get_running_loop().call_later(seconds, super().tell, channel, data)
            else:
                super().tell(channel, data)


class Site:
    """A broker that notes the generator's message, and its two tasks."""

    def __init__(self, chance: Random) -> None:
        self.broker = LocalBroker()
        self.flow = with_flow(self.broker, Network(chance))
        self.sent: list[bytes] = []
        count, pause = chance.choice([0, 1, 5, 40, 100]), chance.choice([0, 0.001, 0.05])
        self.expected = {"give": list(range(count)), "double": [2 * n for n in range(count)]}

        async def give() -> AsyncIterator[int]:
            for number in range(count):
                if pause:
                    await asyncio.sleep(pause * chance.random())
                yield number

        async def double(item: int) -> int:
            await asyncio.sleep(chance.choice([0, 0.02, 0.2]) * chance.random())
            return 2 * item

        builder = DAGBuilder().node(
            self.broker.register_task(give, task_name="give"), window=chance.choice([1, 2, 16])
        )
        builder.node(
            self.broker.register_task(double, task_name="double"),
            inputs={"item": "give"},
            map_over="give",
            max_parallel=chance.choice([None, 1, 3]),
        )
        self.engine = ExecutionEngine(self.broker, builder.build(), chance.choice([None, 1, 2, 8]))
        kick = self.broker.kick

        async def noting(message: BrokerMessage) -> None:
            if message.task_name == "give":
                self.sent.append(message.message)
            await kick(message)

        self.broker.kick = noting  # type: ignore[method-assign]  # sees what is sent


@given(seed=st.integers(0, 2**32))
def test_a_run_has_each_item_once_whatever_becomes_of_notices(seed: int) -> None:
    async def run() -> None:
        chance = Random(seed)
        site = Site(chance)
        async with site.broker.worker():
            running: asyncio.Task[dict[str, Any]] = asyncio.ensure_future(site.engine.execute())
            for _ in range(chance.choice([0, 0, 1, 3])):
                await asyncio.sleep(2 * chance.random())
                if site.sent and not running.done():
                    site.broker.queue.put_nowait(site.sent[0])
            assert await running == site.expected
        await site.flow.shutdown()

    run_virtually(run())
