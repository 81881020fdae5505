"""The distributed example and the code of docs/ run as they stand there, over real servers."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.distributed.conftest import HOW_TO_INSTALL, Farm
from tests.servers.process import Process, children
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.workers import Workers

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/distributed"
DISTRIBUTED = ROOT / "docs/distributed.md"
SERIALIZERS = ROOT / "docs/serializers.md"

PACKAGE = Path(json.__file__).parent
"""A small one, to take a census of."""

SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n\n```text\n(?P<output>.*?)```)?", re.DOTALL)
ROW = re.compile(r"^\| `([^|]*)` \| `([^|]*)` \| `([^|]*)` \| `([^|]*)` \|$", re.MULTILINE)
STEP = re.compile(r"^ +[\d.]+ s  (\w+) ", re.MULTILINE)


# The example


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of its own: the names of queues are the example's and the docs'."""
    with RedisServer(tmp_path / "redis", appendonly=False) as server:
        yield server


def commands() -> list[list[str]]:
    """What the example's README has one type: the server, the workers, the driver."""
    blocks = SHELL.findall((EXAMPLE / "README.md").read_text("utf-8"))
    return [shlex.split(block) for block in blocks]


def output_of(command: list[str], cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(  # noqa: S603 - code of this repository
        [sys.executable, "-X", "utf8", "-W", "error", *command],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_takes_the_same_census_as_the_embedded_one(
    redis: RedisServer, tmp_path: Path
) -> None:
    server, workers, driver = commands()
    assert server[0] == "redis-server"
    assert workers[:2] == ["taskiq", "worker"]
    assert driver[0] == "python"
    env = {"REDIS_URL": redis.url}
    with Process(
        [sys.executable, "-m", *workers],
        log=tmp_path / "workers.log",
        env={**os.environ, **env},
        cwd=ROOT,
    ) as process:
        # Not waiting for the workers: what is sent before the first is there waits for it.
        census = output_of([*driver[1:], str(PACKAGE)], env=env)
        process.wait_until(
            lambda: process.log_since_start().count("Listening started.") == 4,
            "four worker processes listen",
            30.0,
        )
        assert len(children(process.pid)) >= 4
    embedded = output_of(["examples/source_census.py", str(PACKAGE)])

    assert report_of(census) == report_of(embedded)
    assert "json/encoder.py" in report_of(census)
    assert sorted(STEP.findall(census)) == sorted(STEP.findall(embedded))
    executed = re.findall(r"Executing task (\w+) ", process.log.read_text("utf-8"))
    assert executed.count("facts_of") == len(list(PACKAGE.rglob("*.py")))
    assert executed.count("find_folders") == 1
    begun = re.findall(r"^(\d+) tasks were executed by ", census, re.MULTILINE)
    assert sum(map(int, begun)) == len(executed)
    with redis.client() as client:  # the results are there, and not pickled
        (key,) = (key for key in client.scan_iter() if ":report:1" in key)
        assert json.loads(str(client.get(key)))["return_value"] in census


def report_of(printed: str) -> str:
    """The report, which stands behind the results that came before it."""
    return printed[printed.index("\nLines: ") :]


def test_the_steps_in_the_examples_readme_are_those_of_the_graph(example_nodes: set[str]) -> None:
    steps = STEP.findall((EXAMPLE / "README.md").read_text("utf-8"))
    assert len(steps) == len(set(steps))
    assert set(steps) == example_nodes


@pytest.fixture
def example_nodes() -> set[str]:
    code = "from broker import dag; print(*(node.task_name for node in dag.nodes))"
    return set(output_of(["-c", code], env={"PYTHONPATH": str(EXAMPLE)}).split())


# The docs' code


class Block(NamedTuple):
    """A piece of code, the name of the file that it says it is, and what it prints."""

    file: str
    code: str
    output: str | None


def blocks(page: Path) -> list[Block]:
    found = []
    for match in BLOCK.finditer(page.read_text("utf-8")):
        first = match["code"].partition("\n")[0]
        file = first.removeprefix("# ") if first.endswith(".py") else ""
        found.append(Block(file, match["code"], match["output"]))
    return found


def named(file: str, *pages: Path) -> list[Block]:
    """The blocks that say they are this file."""
    return [block for page in pages for block in blocks(page) if block.file == file]


BROKERS = named("broker.py", DISTRIBUTED)
DRIVERS = named("drive.py", DISTRIBUTED, SERIALIZERS)
TASKS = "\n".join(block.code for block in named("tasks.py", DISTRIBUTED, SERIALIZERS))


def with_servers(code: str, farm: Farm, redis: RedisServer) -> str:
    """The code with the test's servers in the places of those on the usual ports."""
    code = code.replace("redis://localhost:6379", redis.url)
    if "nats://localhost:4222" in code:
        code = code.replace("nats://localhost:4222", farm.nats.url)
    if "amqp://guest:guest@localhost:5672/" in code:
        if not RabbitServer.is_available():
            pytest.skip(HOW_TO_INSTALL)
        code = code.replace("amqp://guest:guest@localhost:5672/", farm.rabbitmq.url)
    assert "localhost" not in code
    return code


def drive(folder: Path, broker: str, tasks: str, driver: str, **files: str) -> str:
    """What a driver prints that workers serve, all of them in a folder."""
    folder.mkdir()
    for name, code in {"broker": broker, "tasks": tasks, "drive": driver, **files}.items():
        (folder / f"{name}.py").write_text(code, "utf-8")
    with Workers("tasks:broker", folder=folder, cwd=folder):
        return output_of(["drive.py"], cwd=folder)


@pytest.mark.parametrize("number", range(len(BROKERS)))
def test_each_broker_of_the_docs_runs_the_first_driver(
    number: int, farm: Farm, redis: RedisServer, tmp_path: Path
) -> None:
    broker = with_servers(BROKERS[number].code, farm, redis)
    assert drive(tmp_path / "run", broker, TASKS, DRIVERS[0].code) == DRIVERS[0].output


@pytest.mark.parametrize("number", range(1, len(DRIVERS)))
def test_each_further_driver_of_the_docs_runs_on_the_first_broker(
    number: int, farm: Farm, redis: RedisServer, tmp_path: Path
) -> None:
    broker = with_servers(BROKERS[0].code, farm, redis)
    assert drive(tmp_path / "run", broker, TASKS, DRIVERS[number].code) == DRIVERS[number].output


def test_code_that_names_no_file_runs_by_itself(farm: Farm, redis: RedisServer) -> None:
    alone = named("", DISTRIBUTED, SERIALIZERS)
    assert alone
    for block in alone:
        assert output_of(["-c", with_servers(block.code, farm, redis)]) == (block.output or "")


def test_an_engine_that_is_told_to_stop_ends_its_run_as_the_page_on_production_shows(
    tmp_path: Path,
) -> None:
    (block,) = named("nightly.py", ROOT / "docs/production.md")
    assert output_of(["-c", block.code], cwd=tmp_path) == block.output


def test_the_file_of_the_tour_prints_the_same_on_workers(
    redis: RedisServer, tmp_path: Path
) -> None:
    tour = (ROOT / "docs/tour.md").read_text("utf-8")
    (block,) = named("tides.py", ROOT / "docs/tour.md")
    worker, driver = (shlex.split(text) for text in SHELL.findall(tour))
    assert {worker[0], driver[0]} == {"BROKER_URL=redis://localhost:6379"}
    assert (worker[1:3], driver[1]) == (["taskiq", "worker"], "python")
    (tmp_path / "tides.py").write_text(block.code, "utf-8")
    env = {"BROKER_URL": redis.url}
    with Workers(worker[3], folder=tmp_path, cwd=tmp_path, env=env):
        assert output_of(driver[2:], cwd=tmp_path, env=env) == block.output


def test_no_block_of_the_docs_is_left_out() -> None:
    known = {"", "broker.py", "tasks.py", "drive.py", "values.py"}
    pages = sorted((ROOT / "docs").glob("*.md"))
    assert {DISTRIBUTED, SERIALIZERS} <= set(pages)
    for page in (DISTRIBUTED, SERIALIZERS):
        assert len(blocks(page)) == page.read_text("utf-8").count("```python") > 0
        assert {block.file for block in blocks(page)} <= known
    assert all(block.output for block in DRIVERS)
    assert len(BROKERS) == 5


# The table of what arrives

NEEDS = {
    "JSONSerializer": "json",
    "ORJSONSerializer": "orjson",
    "MSGPackSerializer": "msgpack",
    "CBORSerializer": "cbor2",
    "PickleSerializer": "pickle",
}

INSTALLED = [serializer for serializer, module in NEEDS.items() if find_spec(module)]

OF_A_ROW = """
@broker.task
async def make_{n}():
    return {value}

@broker.task
async def made_{n}() -> {annotation}:
    return {value}

@broker.task
async def plain_{n}(given_{n}):
    return repr(given_{n})

@broker.task
async def typed_{n}(given_{n}: {annotation}):
    return repr(given_{n})
"""

DRIVER = """
import asyncio, json, sys, warnings
import tasks
from broker import broker
from values import *
from taskiq_flow import DAGBuilder, ExecutionEngine, NodeFailure

builder = DAGBuilder()
for name in tasks.NAMES:
    builder.node(getattr(tasks, name))
engine = ExecutionEngine(broker, builder.build(), on_error="collect")

async def main():
    await broker.startup()
    results = await engine.execute({INPUTS})
    told = {
        name: type(value.error).__name__ if isinstance(value, NodeFailure)
        else value if name.startswith(("plain", "typed"))
        else repr(value)
        for name, value in results.items()
    }
    print(json.dumps(told))
    await broker.shutdown()

warnings.simplefilter("ignore")
asyncio.run(main())
"""


@pytest.mark.parametrize("serializer", INSTALLED)
def test_each_row_of_what_arrives_is_true_of_arguments_and_of_results(
    serializer: str, farm: Farm, redis: RedisServer, tmp_path: Path
) -> None:
    rows = dict(enumerate(ROW.findall(SERIALIZERS.read_text("utf-8"))))
    assert len(rows) == 16
    kinds = ("make", "made", "plain", "typed")
    names = [f"{kind}_{n}" for n in rows for kind in kinds]
    tasks = "from broker import broker\nfrom values import *\n" + "".join(
        OF_A_ROW.format(n=n, value=value, annotation=annotation)
        for n, (value, _, annotation, _) in rows.items()
    )
    inputs = ", ".join(f'"given_{n}": {value}' for n, (value, *_) in rows.items())
    broker = with_servers(BROKERS[0].code, farm, redis).replace("JSONSerializer", serializer)
    (values,) = named("values.py", SERIALIZERS)
    printed = drive(
        tmp_path / "run",
        f"{broker}\nbroker = broker.with_serializer({serializer}())\n",
        f"{tasks}\nNAMES = {names}\n",
        DRIVER.replace("{INPUTS}", f"{{{inputs}}}"),
        values=values.code,
    )
    arrived = json.loads(printed)
    for n, (value, bare, _, parsed) in rows.items():
        expected = dict(zip(kinds, (bare, parsed, bare, parsed), strict=True))
        assert {kind: arrived[f"{kind}_{n}"] for kind in kinds} == expected, value


@pytest.mark.parametrize("serializer", INSTALLED)
def test_who_refuses_integers_beyond_64_bits(serializer: str) -> None:
    code = f"""
        from taskiq.serializers import {serializer}
        try:
            print({serializer}().loadb({serializer}().dumpb(2**64)) == 2**64)
        except (TypeError, OverflowError):
            print("refused")
    """
    row = re.search(rf"^\| `{serializer}` .*$", SERIALIZERS.read_text("utf-8"), re.MULTILINE)
    assert row is not None
    if "not tried" not in row[0]:
        refuses = "integers beyond 64 bits" in row[0]
        expected = "refused\n" if refuses else "True\n"
        assert output_of(["-c", textwrap.dedent(code)]) == expected


def test_the_modules_of_the_page_on_deploying_work_with_the_command_of_the_unit(
    redis: RedisServer, tmp_path: Path
) -> None:
    (block,) = named("broker.py", ROOT / "docs/production.md")
    (tmp_path / "broker.py").write_text(block.code, "utf-8")
    page = ROOT / "docs/deploying.md"
    (tasks,), (driver,) = named("tasks.py", page), named("nightly.py", page)
    assert len(blocks(page)) == 2
    (tmp_path / "tasks.py").write_text(tasks.code, "utf-8")
    (tmp_path / "nightly.py").write_text(driver.code, "utf-8")
    (tmp_path / "inventory.py").write_text(textwrap.dedent(INVENTORY), "utf-8")
    unit = (ROOT / "deploy/taskiq-worker.service").read_text("utf-8")
    (command,) = re.findall(r"^ExecStart=\S+/taskiq (.*)$", unit, re.MULTILINE)
    compose = (ROOT / "deploy/compose.yaml").read_text("utf-8")
    assert ", ".join(f'"{word}"' for word in ["taskiq", *shlex.split(command)]) in compose
    env = {"REDIS_URL": redis.url}
    with Process(
        [sys.executable, "-m", "taskiq", *shlex.split(command)],
        log=tmp_path / "workers.log",
        env={**os.environ, **env},
        cwd=tmp_path,
    ):
        assert output_of(["nightly.py"], cwd=tmp_path, env=env) == driver.output
        printed = output_of(["inventory.py"], cwd=tmp_path, env=env)
    assert "Leftover(name='shop:tasks', kind='stream', count=0" in printed


INVENTORY = """
    import asyncio

    from broker import broker
    from taskiq_flow import inventory

    async def main() -> None:
        await broker.startup()
        found = await inventory(broker)
        while any(one.count for one in found if one.kind == "stream"):
            found = await inventory(broker)  # the worker acknowledges behind the result
        print(*found, sep="\\n")
        await broker.shutdown()

    asyncio.run(main())
"""
