"""Who may import whom: rows from low to high, and nothing heavy at the door."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "taskiq_flow"

ROWS = [
    ["errors", "events", "values", "results"],
    ["dataflow.ready_set", "dataflow.binding", "dataflow.policy"],
    ["dataflow.node", "dataflow.render"],
    ["dataflow.dag"],
    ["dataflow.builder", "dataflow.registry", "dataflow", "dataflow.fingerprint"],
    [
        *("waiting", "outages", "journal.protocol", "journal.refusals", "journal.owner"),
        *("journal.log", "journal.memory", "journal.sqlite", "journal.redis", "journal"),
        *("completion.protocol", "completion.reading", "completion.notice"),
        *("completion.referring", "completion.in_memory", "completion.polling"),
        *("completion.attempt", "completion.deliveries", "completion.notifier"),
        *("completion.redis_broker", "completion.redis"),
        *("completion.nats_broker", "completion.nats", "completion.rabbitmq"),
        *("completion.inbox", "completion.pushed", "completion.worker"),
        *("completion.middleware", "completion"),
    ],
    ["sending", "feeding", "listening", "plain_callables", "encoding", "dispatch"],
    [
        *(
            "flights",
            "work",
            "record",
            "run_log",
            "recall",
            "cache_key",
            "caching",
            "attempts",
            "pairs",
        ),
        *("kept_runs", "run_inputs"),
        *("run", "execution_engine"),
    ],
    ["flow_task", "map_reduce"],
    [""],
]
"""A module imports from the rows above it, and from what stands before it in its own row."""

ORDER = [module for row in ROWS for module in row]
DECLARING = [module for row in ROWS[:5] for module in row]

REQUIRED = {
    "taskiq",
    "taskiq_dependencies",
    "pydantic",
    "pydantic_core",
    "anyio",
    "aiostream",
}
"""What this package depends on, and three that taskiq brings."""

SPEAK_TO = {
    "completion.redis": {"redis", "taskiq_redis"},
    "completion.redis_broker": {"redis", "taskiq_redis"},
    "completion.nats": {"nats", "taskiq_nats"},
    "completion.nats_broker": {"nats", "taskiq_nats"},
    "journal.redis": {"redis"},
    "completion.rabbitmq": {"aio_pika", "aiormq", "taskiq_aio_pika"},
}
"""The modules that speak to a server, one or two for each, and the clients that they import."""

CLIENTS = set().union(*SPEAK_TO.values())
ENTRANCES = {"opentelemetry", "rich", "sse_starlette", "starlette", "typer", "uvicorn"}


def path_of(module: str) -> Path:
    place = PACKAGE.joinpath(*module.split(".")) if module else PACKAGE
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(module: str) -> Iterator[str]:
    """The full names of all modules that a module imports, wherever in it."""
    for statement in ast.walk(ast.parse(path_of(module).read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{module} has a relative import"
            yield from _from(statement)


def _from(statement: ast.ImportFrom) -> Iterator[str]:
    source = statement.module or ""
    for alias in statement.names:
        inside = f"{source}.{alias.name}"
        is_module = path_of(inside.removeprefix("taskiq_flow.")).exists()
        yield inside if source.startswith("taskiq_flow") and is_module else source


def own(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    names = {name for name in imported(module) if name.split(".")[0] == "taskiq_flow"}
    return {name.removeprefix("taskiq_flow").removeprefix(".") for name in names}


def foreign(module: str) -> set[str]:
    """The other packages that a module imports."""
    return {name.split(".")[0] for name in imported(module)} - {"taskiq_flow"}


def test_every_module_has_its_row() -> None:
    assert sorted(map(name_of, PACKAGE.rglob("*.py"))) == sorted(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_what_stands_before_it(module: str) -> None:
    assert own(module) <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", DECLARING)
def test_declaring_a_graph_knows_neither_an_event_loop_nor_a_client(module: str) -> None:
    assert not foreign(module) & {"asyncio", "anyio", "aiostream", *CLIENTS}


def test_the_ready_set_knows_neither_a_clock_nor_a_broker() -> None:
    used = foreign("dataflow.ready_set")
    assert used <= sys.stdlib_module_names
    assert not used & {"asyncio", "concurrent", "sched", "threading", "time"}
    assert own("dataflow.ready_set") == set()


@pytest.mark.parametrize("client", sorted(CLIENTS))
def test_a_client_is_imported_only_where_its_server_is_spoken_to(client: str) -> None:
    found = {module for module in ORDER if client in foreign(module)}
    assert found <= {module for module, clients in SPEAK_TO.items() if client in clients}


@pytest.mark.parametrize("module", ORDER)
def test_a_module_needs_nothing_but_the_required_packages(module: str) -> None:
    assert foreign(module) <= sys.stdlib_module_names | REQUIRED | SPEAK_TO.get(module, set())


@pytest.fixture(scope="module")
def loaded() -> tuple[set[str], set[str]]:
    """The packages that a process has loaded with the required ones, and with this one then."""
    script = (
        "import json, sys, taskiq, anyio, aiostream\n"
        "def packages(): return sorted({name.split('.')[0] for name in sys.modules})\n"
        "before = packages()\n"
        "import taskiq_flow\n"
        "print(json.dumps([before, packages()]))"
    )
    process = subprocess.run(  # noqa: S603 - this interpreter, with the script above
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    before, after = json.loads(process.stdout)
    return set(before), set(after)


def test_importing_the_package_loads_nothing_but_what_it_requires(
    loaded: tuple[set[str], set[str]],
) -> None:
    before, after = loaded
    assert after - before - sys.stdlib_module_names == {"taskiq_flow"}


@pytest.mark.parametrize("extra", sorted(CLIENTS | ENTRANCES))
def test_importing_the_package_loads_no_extra(
    loaded: tuple[set[str], set[str]], extra: str
) -> None:
    assert extra not in loaded[1]
