"""Time is virtual: it passes at once, and a wait without end is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from taskiq_flow import DAGBuilder
from taskiq_flow.testing import HangingError, VirtualClockLoop, run, run_virtually, virtual_clock


async def moment() -> float:
    return asyncio.get_running_loop().time()


async def test_time_passes_at_once_and_begins_at_zero() -> None:
    async def main() -> list[float]:
        moments = [await moment()]
        await asyncio.sleep(3600.0)
        return [*moments, await moment()]

    assert run_virtually(main()) == [0.0, 3600.0]  # also while another loop runs


def test_a_wait_without_end_is_noticed() -> None:
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    async def wait_again_and_again() -> None:
        while True:
            await asyncio.sleep(1000.0)

    with pytest.raises(HangingError, match="no timer is pending"):
        run_virtually(wait())
    with pytest.raises(HangingError, match="after 101000 virtual seconds"):
        run_virtually(wait_again_and_again())


def test_a_loop_that_never_rests_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporal sdk-java 2246: time stood still once a task had outlived its time limit."""
    monkeypatch.setattr(virtual_clock, "MOST_TURNS", 1000)

    async def stubborn() -> None:
        for _ in range(5000):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(50)

    dag = DAGBuilder().node(stubborn, timeout=10.0, fallback=0).build()
    with pytest.raises(HangingError, match=r"no time passes after 10 .* in flight: 'stubborn'"):
        run(dag)


@pytest.mark.parametrize("seconds", [1e7, 3e7, 1.7e9])
def test_times_may_be_large(seconds: float) -> None:
    """aiotools 69: the loop went round for ever without finding the timer due."""

    async def main() -> float:
        await asyncio.sleep(seconds)
        await asyncio.sleep(0.5)
        return await moment()

    with asyncio.Runner(loop_factory=lambda: VirtualClockLoop(longest=1e10)) as runner:
        assert runner.run(main()) == pytest.approx(seconds + 0.5, abs=1e-5)


def test_what_a_thread_would_do_is_done_at_once() -> None:
    async def main() -> tuple[threading.Thread, BaseException, float]:
        thread = await asyncio.to_thread(threading.current_thread)
        (error,) = await asyncio.gather(asyncio.to_thread(int, "x"), return_exceptions=True)
        assert isinstance(error, ValueError)
        return thread, error, await moment()

    thread, _, at = run_virtually(main())
    assert (thread, at) == (threading.current_thread(), 0.0)


def test_on_idle_comes_before_time_passes() -> None:
    def end() -> bool:
        if not done.done():
            done.set_result(None)
            return True
        return False

    loop = VirtualClockLoop(on_idle=end)
    done = loop.create_future()
    try:
        loop.run_until_complete(asyncio.wait_for(done, 5.0))
        assert loop.time() == 0.0
        loop.run_until_complete(asyncio.sleep(5.0))
        assert loop.time() == 5.0
    finally:
        loop.close()
