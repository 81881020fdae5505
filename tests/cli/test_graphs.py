"""Graphs are drawn and checked, and the help fits on a page."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from taskiq_flow import __version__
from tests.cli import flows
from tests.cli.conftest import COMMANDS, Run


def test_a_graph_is_drawn_in_each_format(run: Run) -> None:
    text = "nodes: 2, edges: 1, levels: 2\n\n0 ── fetch  takes url\n1 ── title  ← fetch\n"
    assert run("graph", "flows:nightly").output == text
    assert run("graph", "flows:nightly", "--format", "mermaid").output == (
        flows.nightly.to_mermaid().rstrip("\n") + "\n"
    )
    assert run("graph", "flows:nightly", "-f", "dot").output.startswith("digraph")
    assert json.loads(run("graph", "flows:nightly", "-f", "json").output)["edges"]


def test_a_graph_is_drawn_as_a_picture(run: Run) -> None:
    pytest.importorskip("pygraphviz")
    assert run("graph", "flows:nightly", "-f", "svg").output == flows.nightly.to_svg()


def test_a_valid_graph_says_what_it_takes_and_gives(run: Run) -> None:
    done = run("validate", "flows:typed")
    assert done.code == 0
    assert done.lines == [
        "flows:typed is valid: 1 node: of_all_types",
        "takes number, flag, day, place, colour, point, words, text, either, anything, bare?",
        "gives seen",
    ]


def test_help_fits_80_columns(run: Run) -> None:
    whole = run("--help")
    assert whole.code == 0
    assert "..." not in whole.output.replace("[ARGS]...", "")
    assert "Exit codes: 0 completed" in whole.output
    for command in COMMANDS:
        assert f"\n  {command} " in whole.output
        done = run(command, "-h")
        assert done.code == 0
        assert max(map(len, done.lines)) <= 80, command


def test_the_package_is_a_command_and_so_is_its_script(folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "taskiq_flow", "validate", "flows:nightly"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)  # noqa: S603 - made above
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("flows:nightly is valid")
    (script,) = entry_points(group="console_scripts", name="taskiq-flow")
    assert script.value == "taskiq_flow.__main__:main"


def test_without_a_command_there_is_help(run: Run) -> None:
    done = run()
    assert "Usage: taskiq-flow" in done.output + done.errors
    assert run("--version").output == f"taskiq_flow {__version__}\n"
