"""docs/production.md names each line that the package logs, and deploy/ has a unit that parses."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")

LOGGED = ("warning", "error", "exception")


def messages() -> Iterator[str]:
    """What the package logs at WARNING or above, with ``X`` for what is filled in."""
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "taskiq_flow").rglob("*.py"))
    for text in texts:
        for node in ast.walk(ast.parse(text)) if "logger." in text else ():
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LOGGED
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "logger"
                and isinstance(node.args[0], ast.Constant)
            ):
                yield re.sub(r"%[srdg]", "X", str(node.args[0].value))


def patterns() -> list[re.Pattern[str]]:
    """The lines of the page's table. ``...`` and ``N`` stand for anything."""
    table = PAGE[PAGE.index("| log line |") :]
    lines = [row.split("|")[1] for row in table.splitlines() if row.startswith("|")]
    quoted = [text for line in lines for text in re.findall(r"`([^`]+)`", line)]
    return [
        re.compile(re.escape(text).replace(r"\.\.\.", ".*").replace("N", r"\w+"))
        for text in quoted
        if text != "log line"
    ]


@pytest.mark.parametrize("message", sorted(set(messages())))
def test_each_line_that_is_logged_stands_on_the_page(message: str) -> None:
    filled = message.replace("trying again X", "trying again for 60 s").replace(" X s", " 10 s")
    assert any(pattern.match(filled) for pattern in patterns()), message


def test_a_line_that_is_not_logged_is_found_on_no_row() -> None:
    assert not any(pattern.match("the moon is full") for pattern in patterns())


def test_no_message_shows_an_error_as_its_repr() -> None:
    """That of redis-py's errors is no more than their kind, such as ``server:ResponseError``."""
    found: list[str] = []
    for path in (ROOT / "taskiq_flow").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FormattedValue) and node.conversion == ord("r"):
                found += [f"{path.name}:{node.lineno}"] * is_error(node.value)
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                marks = re.findall(r"%([srdg])", str(node.args[0].value))
                shown = [v for m, v in zip(marks, node.args[1:], strict=False) if m == "r"]
                found += [f"{path.name}:{node.lineno}"] * any(map(is_error, shown))
    assert found == []


def is_error(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id in {"error", "cause", "exception", "again"}


def test_the_page_on_deploying_names_files_that_are_there_and_the_unit_s_places() -> None:
    page = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
    shell = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    files = set(re.findall(r"\bdeploy/[\w.-]+", shell))
    assert files == {f"deploy/{path.name}" for path in (ROOT / "deploy").iterdir()}
    unit = (ROOT / "deploy/taskiq-worker.service").read_text(encoding="utf-8")
    for place in ("=/srv/tasks/.venv/bin/", "=/srv/tasks\n", "=/etc/taskiq-worker.env"):
        assert place in unit
    compose = (ROOT / "deploy/compose.yaml").read_text(encoding="utf-8")
    dockerfile = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    (command,) = re.findall(r"^CMD (\[.*\])$", dockerfile, re.MULTILINE)
    assert f"command: {command}" in compose
    assert "${WORKER_IMAGE:-my-tasks:latest}" in compose
    assert "-t my-tasks ." in shell
    assert shell.splitlines()[0] in dockerfile


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = (ROOT / "deploy/taskiq-worker.service").read_text(encoding="utf-8")
    file = tmp_path / "taskiq-worker.service"
    file.write_text(unit.replace("/srv/tasks/.venv/bin/taskiq", sys.executable), encoding="utf-8")
    done = subprocess.run(  # noqa: S603
        ["systemd-analyze", "verify", str(file)],  # noqa: S607
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_has_what_a_worker_needs_to_end_in_good_order() -> None:
    unit = configparser.RawConfigParser()
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(ROOT / "deploy" / "taskiq-worker.service", encoding="utf-8")
    service = unit["Service"]
    assert service["KillSignal"] == "SIGTERM"
    assert service["KillMode"] == "mixed"
    assert float(service["TimeoutStopSec"]) >= 60
    assert " worker tasks:broker " in service["ExecStart"]
