"""What workers over NATS do when the server has lost its streams, and with what is none of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js.api import ConsumerConfig
from taskiq import AsyncBroker, BrokerMessage
from taskiq_nats import PullBasedJetStreamBroker, PushBasedJetStreamBroker

from taskiq_flow.reconnect import retry_through_outage
from taskiq_flow.transport.deliveries import Deliveries
from taskiq_flow.transport.nats import NatsNotifier
from taskiq_flow.transport.nats_broker import JetStreamListener, is_outage, kick_of
from tests.distributed.watching import until
from tests.servers.nats import NatsServer


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(tmp_path)
    server.start()
    yield server
    server.kill()


class Listening:
    """A broker that listens, and what has come."""

    def __init__(self, broker: AsyncBroker) -> None:
        self.broker = broker
        self.came: set[bytes] = set()
        self.times_forgotten = 0
        self._listener = JetStreamListener(broker)
        self._listener.deliveries = Forgetful(broker, self)

    async def listen(self) -> None:
        async with aclosing(self._listener.listen()) as messages:
            async for message in messages:
                assert not isinstance(message, bytes)
                self.came.add(message.data)
                ack: Any = message.ack
                await ack()

    async def hear(self, *bodies: bytes) -> None:
        """Send messages, and return when they have come."""
        kick = kick_of(self.broker)
        for body in bodies:
            message = BrokerMessage(task_id="", task_name="", message=body, labels={})
            await retry_through_outage(partial(kick, message), is_outage, "sending")
        await until(lambda: self.came.issuperset(bodies), f"{bodies} came")


class Forgetful(Deliveries):
    """Counts how often all that was held is let go."""

    def __init__(self, broker: AsyncBroker, listening: Listening) -> None:
        super().__init__(broker)
        self._listening = listening

    def clear(self) -> None:
        self._listening.times_forgotten += 1


async def test_what_is_no_run_among_the_revoked_is_passed_over(server: NatsServer) -> None:
    heard: list[str] = []
    notifier = NatsNotifier(server.url, "taskiq_flow")
    await notifier.open()
    await notifier.subscribe_to_revocations(heard.append)
    async with await nats.connect(server.url) as client:
        bucket = await client.jetstream().key_value("taskiq_flow_revoked")
        await bucket.put("hello", b"")
    await notifier.revoke("channel run")
    await until(lambda: heard == ["channel run"], "it was heard of")
    await notifier.aclose()


@pytest.mark.parametrize("kind", [PullBasedJetStreamBroker, PushBasedJetStreamBroker])
@pytest.mark.parametrize("keep_data", [True, False])
async def test_a_broker_listens_on(kind: Any, keep_data: bool, server: NatsServer) -> None:
    """Also one that was to wait for a message for ever; and users' own callbacks are called."""
    reconnected = asyncio.Event()

    async def note() -> None:
        reconnected.set()

    name = {"subject": "a", "stream_name": "a", "durable": "a", "queue": "a"}
    consumer = ConsumerConfig(durable_name="a")
    broker = kind(server.url, **name, consumer_config=consumer, reconnected_cb=note)
    listening = Listening(broker)
    await broker.startup()
    task = asyncio.create_task(listening.listen())
    for number in range(3):
        await listening.hear(b"x%d" % number, b"y%d" % number)
        assert listening.times_forgotten == (0 if keep_data else number)
        reconnected.clear()
        server.kill()
        server.restart(keep_data=keep_data)
        await asyncio.wait_for(reconnected.wait(), 10.0)
    task.cancel()
    await asyncio.wait([task])
    await broker.shutdown()
