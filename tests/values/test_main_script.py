"""Classes of a main script: on workers they are those of the module of that name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TIDES = """
import json, sys
from dataclasses import dataclass

from taskiq import InMemoryBroker
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import ValueCodec

broker = InMemoryBroker()

@dataclass
class Page:
    text: str

class HttpError(Exception):
    def __init__(self, status, url):
        super().__init__(f"{status} for {url}")
        self.status = status

{task}
def fetch() -> Page:
    return Page("x")

def sent():
    return json.dumps(ValueCodec().encode([Page("x"), HttpError(503, "a")]))

def received():
    page, error = ValueCodec().decode(json.load(sys.stdin), Classes([Page]))
    return type(page) is Page and type(error) is HttpError and error.status == 503

if __name__ == "__main__":
    print(received() if sys.argv[1:] else sent())
"""
SCRIPT = ["tides.py"]
WORKER = ["-c", "import sys, tides; print(tides.received() if sys.argv[1:] else tides.sent())"]


def run(folder: Path, command: list[str], given: str = "") -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, *command, *(["read"] if given else [])]
    return subprocess.run(arguments, cwd=folder, input=given, capture_output=True, text=True)  # noqa: S603, PLW1510 - this interpreter; the caller looks


@pytest.mark.parametrize("command", [SCRIPT, WORKER], ids=["the script sends", "a worker sends"])
def test_a_class_of_a_script_with_tasks_is_its_workers(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "tides.py").write_text(TIDES.replace("{task}", "@broker.task"))
    text = run(tmp_path, command).stdout
    assert "tides:Page" in text
    for other in (SCRIPT, WORKER):
        assert run(tmp_path, other, text).stdout == "True\n"


@pytest.mark.parametrize("task", ["", '@broker.task("shop:fetch")'], ids=["none", "named"])
def test_a_class_of_another_script_is_refused(tmp_path: Path, task: str) -> None:
    (tmp_path / "tides.py").write_text(TIDES.replace("{task}", task))
    assert "defined in __main__; move it to a module" in run(tmp_path, SCRIPT).stderr
