"""What a worker was given and has not acknowledged: it is seen, and it is not forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from taskiq import AckableMessage

from taskiq_flow.dispatch.encoding import Address
from taskiq_flow.testing import LocalBroker
from taskiq_flow.transport.deliveries import (
    GIVING_BACK,
    Deliveries,
    Delivery,
    holding,
    holding_ahead,
)
from taskiq_flow.transport.notice import LABEL, ReplyTo
from tests.virtual_clock import virtually

REPLY_TO = ReplyTo("channel", b"key", "run")


def message_of(task_id: str, **labels: str) -> bytes:
    address = Address("task", labels, dict.fromkeys(labels, 3), None)
    return LocalBroker().formatter.dumps(address.message(task_id, [], {})).message


def of_engine(task_id: str) -> bytes:
    return message_of(task_id, **{LABEL: REPLY_TO.label()})


class Acks:
    """Acknowledgements, and for how many of them the server is away."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.count = 0

    async def ack(self) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError
        self.count += 1


def held(deliveries: Deliveries) -> list[str]:
    return [delivery.task_id for delivery in deliveries.of_engines()]


async def test_a_message_is_held_until_it_is_acknowledged() -> None:
    deliveries, acks = Deliveries(LocalBroker()), Acks()
    messages = [deliveries.hold(of_engine(f"run:{name}:1"), acks.ack) for name in "ab"]
    assert held(deliveries) == ["run:a:1", "run:b:1"]
    assert {delivery.reply_to for delivery in deliveries.of_engines()} == {REPLY_TO}
    await asyncio.ensure_future(messages[0].ack())  # type: ignore[arg-type]
    assert held(deliveries) == ["run:b:1"]
    assert acks.count == 1


async def test_an_acknowledgement_that_failed_can_be_made_up_for_once() -> None:
    deliveries, acks = Deliveries(LocalBroker()), Acks(failures=1)
    message = deliveries.hold(of_engine("run:a:1"), acks.ack)
    with pytest.raises(ConnectionError):
        await message.ack()  # type: ignore[misc]
    for _ in range(2):
        await deliveries.acknowledge("run:a:1")
    assert held(deliveries) == []
    assert acks.count == 1


async def test_an_acknowledgement_is_told_with_what_has_kept_it_from_the_server() -> None:
    told: list[tuple[bytes, bool]] = []
    deliveries, acks = Deliveries(LocalBroker()), Acks(failures=1)
    deliveries.on_acknowledged = lambda delivery, error: told.append((delivery.data, error is None))
    message = deliveries.hold(of_engine("run:a:1"), acks.ack)
    await message.ack()  # type: ignore[misc]
    assert held(deliveries) == ["run:a:1"]
    await message.ack()  # type: ignore[misc]
    assert told == [(message.data, False), (message.data, True)]
    assert held(deliveries) == []


async def test_an_asyncio_task_can_ask_which_message_it_executes() -> None:
    broker = LocalBroker()
    deliveries, acks = Deliveries(broker), Acks()
    messages = [deliveries.hold(of_engine("run:a:1"), acks.ack) for _ in range(2)]  # of one task

    async def execute(data: bytes) -> Delivery | None:
        broker.formatter.loads(data)
        await asyncio.sleep(0)
        return deliveries.executed()

    deliveries.trace()
    executed = await asyncio.gather(*(execute(message.data) for message in messages))
    assert all(
        found is not None and found.data is message.data
        for found, message in zip(executed, messages, strict=True)
    )
    assert await asyncio.create_task(execute(of_engine("run:a:1"))) is None
    await messages[0].ack()  # type: ignore[misc]
    assert await asyncio.create_task(execute(messages[0].data)) is None
    await deliveries.aclose()
    assert await asyncio.create_task(execute(messages[1].data)) is None


async def test_reading_another_message_does_not_change_which_one_is_executed() -> None:
    """As a middleware may before the worker asks: it would acknowledge a task that has not run."""
    broker = LocalBroker()
    deliveries, acks = Deliveries(broker), Acks()
    own, other = (deliveries.hold(of_engine(f"run:{name}:1"), acks.ack) for name in "ab")
    deliveries.trace()

    async def execute(message: AckableMessage) -> bytes | None:
        broker.formatter.loads(message.data)
        for data in (of_engine("run:c:1"), other.data):
            broker.formatter.loads(data)
        executed = deliveries.executed()
        await message.ack()  # type: ignore[misc]
        return None if executed is None else executed.data

    for message in (own, other):  # one after the other, in one asyncio task
        assert await execute(message) is message.data
    await deliveries.aclose()


@pytest.mark.parametrize("data", [message_of("x"), message_of("x", **{LABEL: "?"}), b"{", b""])
async def test_what_no_engine_has_sent_is_renewed_and_reported_to_none(data: bytes) -> None:
    renewed: list[list[bytes]] = []

    async def renew(some: list[Delivery]) -> None:
        renewed.append([delivery.data for delivery in some])

    deliveries, acks = Deliveries(LocalBroker(), renew), Acks()
    message = deliveries.hold(data, acks.ack)
    assert held(deliveries) == []
    await deliveries.renew()
    await message.ack()  # type: ignore[misc]
    await deliveries.renew()
    assert renewed == [[data], []]
    assert acks.count == 1


async def test_messages_that_need_no_acknowledgement_are_held_as_well() -> None:
    async def listen() -> AsyncGenerator[bytes, None]:
        yield of_engine("run:a:1")
        yield of_engine("run:b:1")

    deliveries = Deliveries(LocalBroker())
    async with aclosing(holding(listen, deliveries)()) as messages:
        first = await anext(messages)
        assert isinstance(first, AckableMessage)
        assert held(deliveries) == ["run:a:1"]
        await first.ack()  # type: ignore[misc]
        assert held(deliveries) == []


@virtually
async def test_giving_back_takes_a_bounded_time_and_is_one_line_however_many_messages_there_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def give_back(_: Delivery) -> None:
        await asyncio.Event().wait()  # the server hangs

    deliveries = Deliveries(LocalBroker(), give_back=give_back)
    for number in range(100):
        deliveries.hold(of_engine(f"run:{number}:1"), Acks().ack)
    assert await deliveries.give_back() == 100
    assert asyncio.get_running_loop().time() <= GIVING_BACK
    assert [record.getMessage() for record in caplog.records] == [
        "messages were not given back: 100, the first for TimeoutError: ; they are delivered later"
    ]


async def test_what_a_client_takes_ahead_is_held_before_anybody_asks_for_it() -> None:
    acks = Acks()

    async def listen() -> AsyncGenerator[AckableMessage, None]:
        for name in "abc":
            yield AckableMessage(data=of_engine(f"run:{name}:1"), ack=acks.ack)
        await asyncio.Event().wait()

    deliveries = Deliveries(LocalBroker())
    async with aclosing(holding_ahead(listen, deliveries)()) as messages:
        first = await anext(messages)
        assert held(deliveries) == ["run:a:1", "run:b:1", "run:c:1"]
        await first.ack()  # type: ignore[union-attr, misc]
        assert held(deliveries) == ["run:b:1", "run:c:1"]


async def test_what_ends_a_client_that_takes_ahead_ends_the_listening() -> None:
    async def listen() -> AsyncGenerator[AckableMessage, None]:
        yield AckableMessage(data=of_engine("run:a:1"), ack=Acks().ack)
        raise ConnectionError("gone")

    seen = 0
    with pytest.raises(ConnectionError, match="gone"):
        async with aclosing(holding_ahead(listen, Deliveries(LocalBroker()))()) as messages:
            async for _ in messages:
                seen += 1
    assert seen == 1
