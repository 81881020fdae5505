"""docs/production.md names each line that the package logs, and deploy/ has a unit that parses."""

from __future__ import annotations

import ast
import configparser
import re
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


def test_the_unit_has_what_a_worker_needs_to_end_in_good_order() -> None:
    unit = configparser.RawConfigParser()
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(ROOT / "deploy" / "taskiq-worker.service", encoding="utf-8")
    service = unit["Service"]
    assert service["KillSignal"] == "SIGTERM"
    assert service["KillMode"] == "mixed"
    assert float(service["TimeoutStopSec"]) >= 60
    assert " worker tasks:broker " in service["ExecStart"]
