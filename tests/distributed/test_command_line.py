"""The command line, where tasks are executed by workers over a real Redis."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.commands import ROOT, Commands
from tests.distributed.conftest import Farm
from tests.servers.process import free_port
from tests.servers.redis import RedisServer
from tests.servers.workers import Workers

TASKS = """
import asyncio
import os
from pathlib import Path

from taskiq_flow import DAGBuilder, broker_for
from taskiq_flow.completion import reading

reading.BACKEND_PATIENCE = float(os.environ.get("PATIENCE", reading.BACKEND_PATIENCE))

broker = broker_for(os.environ["BROKER"], queue_name="command-line")

@broker.task
async def double(number: int) -> int:
    Path(f"began-{number}").touch()
    while not Path("open").exists():
        await asyncio.sleep(0.01)
    return 2 * number

inputs = {"number": "numbers"}
doubles = DAGBuilder("doubles").node(double, inputs=inputs, map_over="numbers").build()
"""

NUMBERS = [*range(20)]
AT_ONCE = 2


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as commands:
        yield commands


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def test_a_signal_leaves_nothing_queued_and_the_run_is_resumed_with_workers(
    farm: Farm, commands: Commands, folder: Path
) -> None:
    env: dict[str, str | None] = {"BROKER": farm.redis.url, "TASKIQ_FLOW_JOURNAL": farm.redis.url}
    with Workers(
        "tasks:broker",
        folder=folder / "workers",
        max_async_tasks=AT_ONCE,
        env={"BROKER": farm.redis.url, "PYTHONPATH": str(ROOT)},
        cwd=folder,
    ):
        numbers = f"numbers={NUMBERS}"
        arguments = ["run", "tasks:doubles", "-i", numbers, "--run-id", "r1", "--json-lines"]
        running = commands.start(*arguments, cwd=folder, env=env)
        running.until(lambda: len([*folder.glob("began-*")]) == AT_ONCE)
        running.send(signal.SIGINT)
        done = running.wait()
        assert done.code == 130, done.errors
        assert "resume it with: taskiq-flow resume r1 tasks:doubles" in done.errors
        with farm.redis.client() as client:
            running.until(lambda: nothing_waits(client))
        assert len([*folder.glob("began-*")]) == AT_ONCE

        (folder / "open").touch()
        resumed = commands.start(
            "resume", "r1", "tasks:doubles", "--json-lines", cwd=folder, env=env
        )
        done = resumed.wait()
        assert done.code == 0, done.errors
        (line,) = done.lines
        assert json.loads(line) == {"node": "double", "value": [2 * n for n in NUMBERS]}


def nothing_waits(client: Redis) -> bool:
    """Whether workers have taken and acknowledged all messages of the stream."""
    last = client.xinfo_stream("command-line")["last-generated-id"]
    groups = client.xinfo_groups("command-line")
    return all(g["pending"] == 0 and g["last-delivered-id"] == last for g in groups)


def test_a_broker_that_is_away_has_an_exit_code_of_its_own(
    commands: Commands, folder: Path
) -> None:
    env: dict[str, str | None] = {"BROKER": f"redis://127.0.0.1:{free_port()}"}
    arguments = ["run", "tasks:doubles", "-i", "numbers=[1]"]
    done = commands.start(*arguments, cwd=folder, env=env).wait()
    assert (done.code, done.output) == (5, ""), done.errors
    assert "the server of RedisStreamBroker cannot be reached" in done.errors


def test_a_broker_that_goes_away_for_long_has_the_same_exit_code(
    tmp_path: Path, commands: Commands, folder: Path
) -> None:
    env: dict[str, str | None] = {"PATIENCE": "0.1", "TASKIQ_FLOW_JOURNAL": "runs.db"}
    server = RedisServer(tmp_path / "redis", appendonly=False)
    server.start()
    with Workers(
        "tasks:broker",
        folder=folder / "workers",
        env={"BROKER": server.url, "PYTHONPATH": str(ROOT)},
        cwd=folder,
    ):
        env["BROKER"] = server.url
        words = ["run", "tasks:doubles", "-i", "numbers=[1]", "--run-id", "r1"]
        running = commands.start(*words, cwd=folder, env=env)
        running.until((folder / "began-1").exists)
        watching = commands.start("watch", "r1", cwd=folder, env=env)
        server.kill()
        done = running.wait()
        assert done.code == 5, done.errors
        assert "as the server of RedisAsyncResultBackend has been away for 0.1 s" in done.errors
        assert "Traceback" not in done.errors
        assert watching.wait().code == 5
