"""Workers that get signals while tasks run: a reload, and being told to stop more than once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable

import pytest

from taskiq_flow import ExecutionEngine
from tests.distributed import app
from tests.distributed.app import KINDS, started
from tests.distributed.conftest import AT_LENGTH, NEEDS_RABBITMQ, Farm
from tests.distributed.watching import Notes, inputs, many, until_empty
from tests.servers.process import process_info
from tests.servers.workers import Workers
from tests.waiting import until

TASKS = 40

Send = Callable[[Workers], None]


def reload_all(workers: Workers) -> None:
    os.kill(workers.process.pid, signal.SIGHUP)


def stop_all_twice(workers: Workers) -> None:
    """The second comes when taskiq's manager has taken the first: in its handler, it would hang."""
    process = workers.process
    os.kill(process.pid, signal.SIGTERM)
    stops = "scheduled for shutdown"
    process.wait_until(lambda: stops in process.log_since_start(), "the manager stops", 30.0)
    os.kill(process.pid, signal.SIGTERM)


def stop_each_twice(workers: Workers) -> None:
    for pid in workers.pids * 2:
        os.kill(pid, signal.SIGTERM)


def hang_up_each(workers: Workers) -> None:
    for pid in workers.pids:
        os.kill(pid, signal.SIGHUP)


WAYS: list[Send] = [reload_all, stop_all_twice]
if AT_LENGTH:
    WAYS += [stop_each_twice, hang_up_each]
REMOTE = [NEEDS_RABBITMQ if kind == "rabbitmq" else kind for kind in KINDS[1:]]


@pytest.mark.parametrize("kind", REMOTE if AT_LENGTH else REMOTE[:1])
@pytest.mark.parametrize("send", WAYS)
async def test_signals_have_nothing_executed_twice_or_lost(
    kind: str, send: Send, farm: Farm, notes: Notes
) -> None:
    """What the workers had begun ends, and what they had fetched is done by those that follow."""
    settings = farm.settings(kind, queue=f"signals-{send.__name__}", idle_timeout=60_000)
    first = farm.workers(settings, processes=2, max_async_tasks=4)
    second = farm.workers(settings, folder=farm.folder / "second")
    with first, contextlib.ExitStack() as stack:
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, TASKS), lost_after=20.0)
            run = asyncio.ensure_future(engine.execute(inputs(notes, TASKS, 0.5)))
            await notes.until("begin", 6)
            pids = first.pids
            send(first)
            if send is stop_all_twice:
                await until(lambda: not any(map(process_info, pids)), "they have ended")
                stack.enter_context(second)
            assert len(await run) == TASKS
        begun = Counter(notes.of("begin"))
        assert {name: times for name, times in begun.items() if times > 1} == {}
        assert len(begun) == len(notes.of("end")) == TASKS
        await until_empty(settings)
