"""An event loop that is busy gives way to threads."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from anyio import to_thread
from taskiq import InMemoryBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, SqliteJournal, giving_way
from taskiq_flow.completion.threads import Threads
from taskiq_flow.values.size import read_off_loop
from tests.virtual_clock import run_virtually, virtual_loop

MOMENTS = 5


class Clocks:
    """The functions that the loop is given way with, counted."""

    def __init__(self) -> None:
        self.moments = self.looks = 0

    def sleep(self, seconds: float) -> None:
        self.moments += 1
        time.sleep(seconds)

    def thread_time(self) -> float:
        self.looks += 1
        return time.thread_time()

    monotonic = staticmethod(time.monotonic)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    monkeypatch.setattr(giving_way, "time", clocks := Clocks())
    return clocks


async def be_busy(seconds: float) -> None:
    """Leave the loop nothing to wait for."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        await asyncio.sleep(0)


async def be_busy_until_given_way(clocks: Clocks) -> None:
    async with asyncio.timeout(10):
        while clocks.moments < MOMENTS:
            await be_busy(0.001)


async def test_a_busy_loop_gives_way_as_long_as_a_call_is_in_a_thread(clocks: Clocks) -> None:
    await be_busy(0.01)
    assert clocks.moments == 0
    released = threading.Event()
    call = asyncio.ensure_future(giving_way.in_thread(released.wait, 20))
    await be_busy_until_given_way(clocks)
    released.set()
    assert await call
    await be_busy(0.1)
    ended = clocks.moments
    await be_busy(0.01)
    assert clocks.moments == ended


async def test_a_busy_loop_that_gets_little_of_the_processor_gives_way(
    clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where other processes are busy: all of a long time it was not idle, and had a tenth."""
    if not hasattr(resource, "RUSAGE_THREAD"):
        pytest.skip("the system does not count the waits of a thread")
    monkeypatch.setattr(clocks, "thread_time", lambda: time.thread_time() / 10)
    released = threading.Event()
    call = asyncio.ensure_future(giving_way.in_thread(released.wait, 20))
    await be_busy_until_given_way(clocks)
    released.set()
    assert await call


@pytest.mark.parametrize("are_waits_counted", [True, False])
async def test_an_idle_loop_is_hardly_woken(
    clocks: Clocks, monkeypatch: pytest.MonkeyPatch, *, are_waits_counted: bool
) -> None:
    if not are_waits_counted:
        nothing = SimpleNamespace(ru_nvcsw=0)
        monkeypatch.setattr(giving_way, "getrusage", lambda _: nothing, raising=False)
    released = threading.Event()
    call = asyncio.ensure_future(giving_way.in_thread(released.wait, 20))
    await asyncio.sleep(0.5)
    # Where other processes have the processor, a timer may be due before the loop has waited.
    assert clocks.looks <= 50
    assert clocks.moments <= 5
    released.set()
    assert await call


async def test_calls_at_once_are_given_way_together(clocks: Clocks) -> None:
    released, began = threading.Event(), time.monotonic()
    calls = [asyncio.ensure_future(giving_way.in_thread(released.wait, 20)) for _ in range(20)]
    await be_busy_until_given_way(clocks)
    assert clocks.moments <= (time.monotonic() - began) / giving_way.OFTEN
    released.set()
    await asyncio.gather(*calls)


async def test_a_run_goes_on_while_all_threads_of_anyio_wait_for_it() -> None:
    """fastapi 3205 and zenml 3685: what was ready waited for a thread, as all others waited."""
    released, large = threading.Event(), list(range(5_000))
    tokens = to_thread.current_default_thread_limiter()
    waiting = [
        asyncio.ensure_future(to_thread.run_sync(released.wait, 20))
        for _ in range(int(tokens.total_tokens))
    ]
    async with asyncio.timeout(10):
        while tokens.available_tokens:
            await asyncio.sleep(0)
        assert await giving_way.in_thread(len, large) == await read_off_loop(large, len, large)
    released.set()
    assert all(await asyncio.gather(*waiting))


@pytest.mark.parametrize("kind", ["function", "generator", "journal"])
async def test_threads_of_a_run_are_given_way(kind: str, clocks: Clocks, tmp_path: Path) -> None:
    released = threading.Event()

    def generator() -> Iterator[bool]:
        yield released.wait(20)

    async def spin() -> None:
        await be_busy_until_given_way(clocks)
        released.set()

    builder, journal = DAGBuilder().node(spin), SqliteJournal(tmp_path / "runs.db")
    reading = None
    if kind == "journal":
        reading = asyncio.ensure_future(journal.file.read(lambda _: released.wait(20)))
    elif kind == "generator":
        builder.node(generator)
    else:
        builder.node(lambda: released.wait(20), name="function")
    await ExecutionEngine(InMemoryBroker(), builder.build()).execute()
    assert reading is None or await reading
    await journal.aclose()


async def test_what_calls_leave_does_not_grow_while_another_one_never_ends(clocks: Clocks) -> None:
    loop = asyncio.get_running_loop()
    giving_way.give_way(never := Future[None]())
    for _ in range(1000):
        giving_way.give_way(ended := Future[None]())
        ended.set_result(None)
    looks = clocks.looks
    async with asyncio.timeout(10):
        while clocks.looks == looks:
            await asyncio.sleep(0.001)
    assert giving_way._givers[loop]._under_way == 1
    assert not giving_way._givers[loop]._ended
    never.cancel()


def test_a_loop_that_goes_on_after_an_interruption_still_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted(Clocks):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if self.moments == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(giving_way, "time", clocks := Interrupted())

    async def begin() -> None:
        giving_way.give_way(Future[None]())
        await be_busy(10)

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(begin())
        loop.run_until_complete(be_busy_until_given_way(clocks))


async def test_functions_may_be_given_to_the_threads_of_a_broker_in_any_thread() -> None:
    with ThreadPoolExecutor(1) as executor:
        submit = partial(Threads(executor).submit, abs, -1)
        assert (await asyncio.to_thread(submit)).result(10) == 1


def test_a_loop_whose_clock_was_replaced_is_left_alone() -> None:
    async def begin(loop: Any) -> int:
        before = len(loop._scheduled)
        giving_way.give_way(Future[None]())
        return len(loop._scheduled) - before

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        assert loop.run_until_complete(begin(loop)) == 1
        giving_way._givers.pop(loop)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "time", lambda: 5.0)
            assert loop.run_until_complete(begin(loop)) == 0


def test_a_loop_whose_time_is_virtual_is_left_alone() -> None:
    async def begin() -> int:
        giving_way.give_way(asyncio.get_running_loop().create_future())
        return len(virtual_loop().pending_timers)

    assert run_virtually(begin()) == 0


def test_no_virtual_time_goes_by_while_a_large_value_is_read() -> None:
    """It would for as long as a thread takes, at many seconds for each of real time."""

    async def read() -> int:
        return await read_off_loop("x" * 2_000_000, threading.get_ident)

    assert run_virtually(read()) == threading.get_ident()
