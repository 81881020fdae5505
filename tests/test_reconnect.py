"""A server that is away is tried again, with growing pauses, for a bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
from collections.abc import AsyncGenerator
from itertools import islice

import pytest

from taskiq_flow.reconnect import (
    OUTAGE_TIMEOUT,
    backoff_delays,
    listen_through_outages,
    retry_through_outage,
)
from tests.virtual_clock import virtually


class Server:
    """Is away between two moments; each try is noted."""

    def __init__(self, until: float, since: float = 0.0) -> None:
        self.since, self.until = since, until
        self.tries: list[float] = []

    async def answer(self) -> str:
        now = asyncio.get_running_loop().time()
        self.tries.append(now)
        if self.since <= now < self.until:
            raise ConnectionResetError("away")
        return "here"

    async def listen(self) -> AsyncGenerator[float, None]:
        while True:
            await self.answer()
            await asyncio.sleep(1)
            yield asyncio.get_running_loop().time()


def is_away(error: BaseException) -> bool:
    return isinstance(error, ConnectionError)


def never(_: BaseException) -> bool:
    return False


class Stubborn:
    """A client that loses cancellations, each in its own way. ``cancellations``: how many came."""

    def __init__(self) -> None:
        self.cancellations = 0

    async def swallow(self) -> AsyncGenerator[int, None]:
        """As ``asyncio.wait_for`` of Python 3.11 does; the server answers, and sends nothing."""
        while self.cancellations < 2:
            with contextlib.suppress(asyncio.CancelledError):
                await self.wait()
        await self.wait()
        yield 0

    async def swallow_in_an_outage(self) -> AsyncGenerator[int, None]:
        with contextlib.suppress(asyncio.CancelledError):
            await self.wait()
        raise ConnectionResetError("gone")
        yield 0

    async def replace(self) -> AsyncGenerator[int, None]:
        try:
            await self.wait()
            yield 0
        finally:
            raise ConnectionResetError("cannot say good-bye")

    async def answer(self) -> AsyncGenerator[int, None]:
        """What has just come is handed over all the same."""
        with contextlib.suppress(asyncio.CancelledError):
            await self.wait()
        yield 1
        raise AssertionError("it listens on")

    async def wait(self) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancellations += 1
            raise


def test_pauses_grow_and_are_bounded() -> None:
    pauses = list(islice(backoff_delays(), 20))
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.1
    assert pauses[-1] == pauses[-2] <= 2.0


@virtually
async def test_a_call_is_repeated_until_an_outage_ends(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(until=30.0)

    assert await retry_through_outage(server.answer, is_away, "it cannot be asked") == "here"
    assert 30.0 <= asyncio.get_running_loop().time() <= 32.0
    assert len(server.tries) < 30
    assert [record.getMessage() for record in caplog.records] == [
        "it cannot be asked: ConnectionResetError: away; trying again for 60 s"
    ]


@virtually
async def test_an_outage_that_does_not_end_is_raised_at_last() -> None:
    with pytest.raises(ConnectionResetError, match="away"):
        await retry_through_outage(Server(until=1e9).answer, is_away, "it")
    assert OUTAGE_TIMEOUT - 2 <= asyncio.get_running_loop().time() <= OUTAGE_TIMEOUT


@virtually
async def test_what_is_no_outage_is_raised_at_once() -> None:
    with pytest.raises(ConnectionResetError):
        await retry_through_outage(Server(until=9.0).answer, never, "it")
    assert asyncio.get_running_loop().time() == 0.0


@pytest.mark.parametrize("outages", [[(10.0, 40.0)], [(10.0, 60.0), (80.0, 130.0)]])
@virtually
async def test_listening_goes_on_behind_outages(outages: list[tuple[float, float]]) -> None:
    server = Server(until=-1.0)
    heard = []
    items = listen_through_outages(server.listen, is_away, "it cannot listen")
    for since, until in outages:
        server.since, server.until = since, until
        async for moment in items:
            heard.append(moment)
            if moment > until:
                break
    await items.aclose()
    assert all(not since + 1 < moment < until for moment in heard for since, until in outages)


@virtually
async def test_listening_outlives_the_longest_outage(caplog: pytest.LogCaptureFixture) -> None:
    async for moment in listen_through_outages(
        Server(until=3600.0).listen, is_away, "no listening"
    ):
        assert 3600.0 <= moment <= 3604.0
        break
    assert [record.getMessage() for record in caplog.records] == [
        "no listening: ConnectionResetError: away; trying again until it succeeds"
    ]


@virtually
async def test_listening_ends_with_what_is_no_outage() -> None:
    with pytest.raises(ConnectionResetError):
        async for _ in listen_through_outages(Server(until=9.0).listen, never, "it"):
            raise AssertionError


@pytest.mark.parametrize("how", ["swallow", "swallow_in_an_outage", "replace"])
@virtually
async def test_listening_that_is_cancelled_ends_whatever_the_client_makes_of_it(how: str) -> None:
    client = Stubborn()
    items = listen_through_outages(getattr(client, how), is_away, "it cannot listen")
    listening = asyncio.ensure_future(anext(items))
    await asyncio.sleep(1.0)
    listening.cancel()
    done, _ = await asyncio.wait([listening], timeout=10.0)
    assert done
    assert listening.cancelled()
    with pytest.raises(StopAsyncIteration):
        await anext(items)
    assert client.cancellations == (3 if how == "swallow" else 1)


@virtually
async def test_an_error_in_place_of_a_cancellation_is_not_retried() -> None:
    client = Stubborn()
    items = listen_through_outages(client.replace, is_away, "it", ends_when_cancelled=True)
    listening = asyncio.ensure_future(anext(items))
    await asyncio.sleep(1.0)
    listening.cancel()
    done, _ = await asyncio.wait([listening], timeout=10.0)
    assert done
    assert listening.cancelled()
    assert client.cancellations == 1


@virtually
async def test_an_item_that_comes_with_a_cancellation_is_the_last_one() -> None:
    items = listen_through_outages(Stubborn().answer, is_away, "it cannot listen")
    listening = asyncio.ensure_future(anext(items))
    await asyncio.sleep(1.0)
    listening.cancel()
    assert await listening == 1
    with pytest.raises(StopAsyncIteration):
        await anext(items)


@virtually
async def test_a_cancelled_call_is_not_repeated_though_the_client_raises_an_outage() -> None:
    tries = 0

    async def call() -> None:
        nonlocal tries
        tries += 1
        try:
            await asyncio.sleep(3600)
        finally:
            raise ConnectionResetError("gone")

    calling = asyncio.ensure_future(retry_through_outage(call, is_away, "it", math.inf))
    await asyncio.sleep(1.0)
    calling.cancel()
    done, _ = await asyncio.wait([calling], timeout=10.0)
    assert done
    assert calling.cancelled()
    assert tries == 1


async def test_listening_to_what_ends_ends() -> None:
    async def two() -> AsyncGenerator[int, None]:
        yield 1
        yield 2

    assert [item async for item in listen_through_outages(two, is_away, "it")] == [1, 2]


@pytest.mark.parametrize("kind", [PermissionError, FileNotFoundError, ssl.SSLCertVerificationError])
@virtually
async def test_errors_of_this_machine_are_no_outage(kind: type[OSError]) -> None:
    async def fail() -> None:
        raise kind("here")

    with pytest.raises(kind):
        await retry_through_outage(fail, lambda error: isinstance(error, OSError), "it", math.inf)
    assert asyncio.get_running_loop().time() == 0.0
