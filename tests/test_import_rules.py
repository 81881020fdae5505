"""Who may import whom. Each room of the package imports from the rows below its own."""

import ast
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "taskiq_flow"
MODULES = sorted(PACKAGE.rglob("*.py"))

ROWS = [
    {"clock", "errors"},
    {"previews"},
    {"events", "cleanup", "giving_way", "reconnect", "suggestions", "version"},
    {"drawing", "notes", "transport", "processes"},
    {"views"},
    {"values"},
    {"generators"},
    {"dataflow"},
    {"elements"},
    {"worker", "completion"},
    {"middleware", "journal"},
    {"cache", "dispatch"},
    {"engine"},
    {"execution_engine", "flow_task", "recommended"},
    {"map_reduce", "listeners", "testing"},
    {"pipelines"},
    {"web"},
    {"cli"},
    {"__init__", "__main__"},
]

REQUIRED = {"taskiq", "taskiq_dependencies", "pydantic", "pydantic_core", "anyio", "aiostream"}
"""What the package depends on, and three packages that taskiq brings."""

CLIENTS = {
    *("redis", "hiredis", "taskiq_redis", "nats", "taskiq_nats"),
    *("aio_pika", "aiormq", "pamqp", "taskiq_aio_pika"),
    "fsspec",
}
SPEAK_TO_SERVERS = {
    *(
        "transport/redis",
        "transport/redis_broker",
        "transport/redis_connection",
        "transport/redis_replies",
        "transport/redis_subscription",
        "transport/redis_streams",
        "transport/redis_errors",
        "transport/nats",
        "transport/nats_broker",
        "transport/nats_errors",
        "transport/nats_acknowledged",
    ),
    "transport/object_store",
    *("transport/rabbitmq", "transport/rabbitmq_broker", "transport/rabbitmq_errors"),
    *("journal/redis", "journal/redis_client"),
}
ENTRANCES = {
    "opentelemetry",
    "pygraphviz",
    "rich",
    "sse_starlette",
    "starlette",
    "typer",
    "uvicorn",
}
CLOCKLESS = {
    *("dataflow", "elements", "engine/node_run", "engine/run_spec", "engine/run_state"),
    *("generators/sending", "generators/receiving", "generators/messages"),
    *("drawing", "previews", "views"),
}


def name_of(module: Path) -> str:
    return module.relative_to(PACKAGE).with_suffix("").as_posix()


def row_of(room: str) -> int:
    return next(number for number, row in enumerate(ROWS) if room in row)


@functools.cache
def imported(module: Path) -> set[str]:
    names: set[str] = set()
    for statement in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            names.add(statement.module or "")
    return names


def others(module: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(module)} - {"taskiq_flow"}


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_room_imports_from_the_rows_below_it(module: Path) -> None:
    room = name_of(module).split("/")[0]
    for name in imported(module):
        if name.startswith("taskiq_flow."):
            other = name.split(".")[1]
            assert other == room or row_of(other) < row_of(room), name


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_only_what_speaks_to_a_server_imports_a_client(module: Path) -> None:
    allowed = CLIENTS if name_of(module) in SPEAK_TO_SERVERS else set()
    if name_of(module) == "listeners/terminal":
        allowed = {"rich"}
    if name_of(module) == "drawing/graphviz":
        allowed = {"pygraphviz"}
    if name_of(module) == "listeners/spans":
        allowed = {"opentelemetry"}
    if name_of(module).startswith("cli/"):
        allowed = {"rich", "typer"} if name_of(module) in ("cli/app", "cli/help") else {"rich"}
    if name_of(module).startswith("web/"):
        allowed = {"h11", "starlette", "uvicorn"}
    assert others(module) <= sys.stdlib_module_names | REQUIRED | allowed


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_what_decides_knows_neither_an_event_loop_nor_a_clock(module: Path) -> None:
    if any(name_of(module).startswith(room) for room in CLOCKLESS):
        assert not others(module) & {"asyncio", "anyio", "aiostream", "threading", "time"}


def test_nothing_but_a_run_starts_nodes() -> None:
    makers = {name_of(module) for module in MODULES if "= StartLoop(" in module.read_text("utf-8")}
    assert makers == {"engine/run"}


def test_importing_the_package_loads_nothing_but_what_it_requires() -> None:
    script = (
        "import json, sys, taskiq, anyio, aiostream\n"
        "def packages(): return {name.split('.')[0] for name in sys.modules}\n"
        "before = packages()\n"
        "import taskiq_flow\n"
        "assert 'taskiq_flow.testing' not in sys.modules\n"
        "print(json.dumps([*packages() - before - sys.stdlib_module_names]))\n"
        f"assert not packages() & {CLIENTS | ENTRANCES!r}"
    )
    process = subprocess.run(  # noqa: S603 - this interpreter, with the script above
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    assert json.loads(process.stdout) == ["taskiq_flow"]


def test_the_map_names_files_and_methods_that_are_there() -> None:
    root = PACKAGE.parent
    text = (root / "docs/architecture.md").read_text(encoding="utf-8")
    for file in re.findall(r"`([\w/]+\.py)`", text):
        is_module = any(f"/{name_of(module)}.py".endswith(f"/{file}") for module in MODULES)
        assert is_module or (root / file).exists(), file
    classes: dict[str, str] = {}
    for module in MODULES:
        for part in re.split(r"^(?=\S)", module.read_text(encoding="utf-8"), flags=re.MULTILINE):
            if found := re.match(r"class (\w+)", part):
                classes[found[1]] = part
    for name, member in re.findall(r"`(_?[A-Z]\w*)\.([a-z_]\w*)`", text):
        assert re.search(rf"\b{member}\b", classes[name]), f"{name}.{member}"
