"""The clock of events and durations, on loops whose own time is not exact."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAGBuilder,
    Event,
    ExecutionEngine,
    MemoryJournal,
    NodeCompleted,
    NodeFailed,
    NodeFailedError,
    NodeRetried,
    NodeSkipped,
    Progress,
    Retry,
    RunReader,
)
from taskiq_flow.cli.history import _as_here
from taskiq_flow.clock import clock_of
from taskiq_flow.events import RunStarted
from taskiq_flow.listeners import progress
from taskiq_flow.testing import LocalBroker, VirtualClockLoop

APART = 1000.0
"""Seconds between the two clocks: libuv's on macOS goes on while the machine sleeps."""


class AheadLoop(asyncio.SelectorEventLoop):
    """A loop that counts real time from another moment on than ``time.monotonic``.

    The difference shows wherever moments by two clocks are compared.
    """

    def time(self) -> float:
        return time.monotonic() + APART

    time.__module__ = "uvloop.loop"


class BehindLoop(asyncio.SelectorEventLoop):
    """The same, the other way round."""

    def time(self) -> float:
        return time.monotonic() - APART

    time.__module__ = "uvloop.loop"


APART_LOOPS = pytest.mark.parametrize("factory", [AheadLoop, BehindLoop])


class OwnTimeLoop(asyncio.SelectorEventLoop):
    def time(self) -> float:
        return super().time() / 2


class Kept:
    """Keeps all events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)


def new_uvloop() -> asyncio.AbstractEventLoop:
    uvloop = pytest.importorskip("uvloop")
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, new_uvloop, AheadLoop, BehindLoop])
def test_a_loop_in_real_time_has_the_exact_clock(
    factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with asyncio.Runner(loop_factory=factory) as runner:
        assert clock_of(runner.get_loop()) is time.monotonic


@pytest.mark.parametrize("factory", [VirtualClockLoop, OwnTimeLoop])
def test_a_loop_with_a_time_of_its_own_keeps_it(
    factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with asyncio.Runner(loop_factory=factory) as runner:
        assert clock_of(runner.get_loop()) == runner.get_loop().time


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, new_uvloop])
def test_a_replaced_time_is_kept(
    factory: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    with asyncio.Runner(loop_factory=factory) as runner:
        loop = runner.get_loop()
        with monkeypatch.context() as patch:
            patch.setattr(loop, "time", lambda: 7.0)
            assert clock_of(loop)() == 7.0


def test_a_subclass_of_uvloop_may_have_a_time_of_its_own() -> None:
    base: Any = pytest.importorskip("uvloop").Loop

    class Half(base):  # type: ignore[misc]
        def time(self) -> float:
            return 7.0

    loop = Half()
    assert clock_of(loop)() == 7.0
    loop.close()


def test_nodes_that_take_less_than_a_millisecond_have_durations_on_uvloop() -> None:
    kept, journal = Kept(), MemoryJournal()
    dag = DAGBuilder("short").node(abs, inputs={"x": "numbers"}, map_over="numbers").build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal, listeners=[kept])

    async def main() -> float:
        await engine.execute({"numbers": [1] * 20}, run_id="r1")
        view = await RunReader(journal).view("r1")
        return view.nodes["abs"].running

    with asyncio.Runner(loop_factory=new_uvloop) as runner:
        assert runner.run(main()) > 0
    completed = [event for event in kept.events if isinstance(event, NodeCompleted)]
    assert all(event.ran is not None and event.ran > 0 for event in completed if event.attempt)
    assert kept.events == sorted(kept.events, key=lambda event: event.at)


@APART_LOOPS
def test_moments_of_two_clocks_are_not_compared(
    factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """A retry's delay, time limits, and events that an engine makes in several places."""
    kept, calls = Kept(), []

    async def flaky() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError
        return 1

    async def own_timeout() -> None:
        raise TimeoutError

    async def words(number: int) -> AsyncIterator[int]:
        yield 1
        yield 2
        if not number:
            raise TimeoutError

    builder = DAGBuilder().node(flaky, retry=Retry(attempts=2, wait=0.01))
    builder.node(own_timeout, timeout=APART / 2)
    builder.node(words, inputs={"number": "numbers"}, map_over="numbers", timeout=APART / 2)
    builder.node(abs, inputs={"x": "words"}, map_over={"words": 2})
    engine = ExecutionEngine(
        InMemoryBroker(), builder.build(), listeners=[kept], on_error="collect"
    )

    began = time.monotonic()
    with asyncio.Runner(loop_factory=factory) as runner:
        results = runner.run(engine.execute({"numbers": [1, 0]}))
    ended = time.monotonic()

    skipped = results["abs"][1]
    assert isinstance(skipped, NodeSkipped)
    events = [*kept.events, skipped]
    assert all(began <= event.at <= ended for event in events)
    took = ended - began
    (retried,) = [event for event in events if isinstance(event, NodeRetried)]
    assert 0 <= retried.delay <= took
    failed = {event.task_name: event for event in events if isinstance(event, NodeFailed)}
    assert {type(failed[name].error) for name in ("own_timeout", "words[1]")} == {TimeoutError}
    for event in events:
        if isinstance(event, NodeCompleted | NodeFailed):
            assert all(0 <= span <= took for span in (event.queued, event.ran) if span is not None)


@APART_LOOPS
@pytest.mark.filterwarnings("ignore::taskiq_flow.PollingWarning")
def test_the_time_from_a_sending_is_by_one_clock(
    factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Where nobody tells when a task begins, its time limit counts from its sending."""

    async def main() -> BaseException:
        broker = LocalBroker()

        @broker.task
        async def own_timeout() -> None:
            raise TimeoutError

        dag = DAGBuilder().node(own_timeout, name="own_timeout", timeout=APART / 2).build()
        async with broker.worker():
            with pytest.raises(NodeFailedError) as raised:
                await ExecutionEngine(broker, dag).execute()
        return raised.value.failures["own_timeout"]

    with asyncio.Runner(loop_factory=factory) as runner:
        assert type(runner.run(main())) is TimeoutError


def test_progress_shows_a_run_by_the_clock_of_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[float] = []
    is_shown = asyncio.Event()

    class Display:
        moves = True

        def show(self, runs: object, now: float) -> None:
            shown.append(now)
            is_shown.set()

        def end(self, view: object) -> None: ...

        def stop(self) -> None: ...

    async def wait() -> None:
        await is_shown.wait()

    monkeypatch.setattr(progress, "_display_on", lambda _: Display())
    dag = DAGBuilder().node(wait).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Progress()])
    began = time.monotonic()
    with asyncio.Runner(loop_factory=AheadLoop) as runner:
        runner.run(engine.execute())
    assert began <= shown[0] <= time.monotonic()


def test_events_of_another_process_are_watched_by_the_clock_of_this_one() -> None:
    async def events() -> AsyncIterator[Event]:
        yield RunStarted("r1", 5.0, ("abs",), time.time())

    async def main() -> float:
        async with aclosing(_as_here(events())) as here:  # type: ignore[arg-type]
            return (await anext(here)).at

    began = time.monotonic()
    with asyncio.Runner(loop_factory=AheadLoop) as runner:
        assert runner.run(main()) == pytest.approx(began, abs=60.0)
