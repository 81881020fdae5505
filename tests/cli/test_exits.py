"""Each exit code, provoked; and what a command says then."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from taskiq_flow import RunView
from taskiq_flow.cli.exits import Code, code_of, code_of_run, report
from taskiq_flow.errors import (
    JournalError,
    NodeFailedError,
    RunFailedError,
    RunTimeoutError,
    ServerUnreachableError,
)
from taskiq_flow.events import NodeFailed, RunFinished, RunStarted
from tests.cli.conftest import Run, Start

URL = ("--input", "url=example.org")

KNOWN = ("--journal", "runs.db", "--run-id", "r1")

SLOW = """
import time
from pathlib import Path

Path("is_imported").touch()
time.sleep(60)
"""

ENDS = [
    (["run", "flows:nightly", *URL], 0, ""),
    (["run", "flows:halves", "-i", "number=7"], 1, "ValueError: 7 is odd"),
    (["run", "flows:halves", "-i", "number=7", "--on-error", "continue"], 1, "7 is odd"),
    (["run", "flows:engine", "-i", "number=7"], 1, ""),
    (["run"], 2, "Missing argument 'MODULE:NAME'"),
    (
        ["run", "flows:nightly", "--on-error", "go"],
        2,
        "for '--on-error': 'go' is not one of 'raise'",
    ),
    (["list"], 2, "No such command 'list'. Did you mean 'runs'?"),
    (["run", "flows:nightly", "--fast"], 2, "No such option: --fast"),
    (["run", "flows:nightli"], 2, "flows has no 'nightli'; did you mean 'nightly'?"),
    (["run", "broken:nightly"], 2, "broken cannot be imported: NameError"),
    (["run", "flows:nightly", "--timeout", "0"], 2, "0 is no time limit"),
    (["run", "flows:nightly", "--journal", "ftp://x"], 2, "journal is a ftp:// address"),
    (["run", "flows:nightly", "-i", "url"], 2, "--input 'url' has no '='"),
    (["runs"], 2, "no journal is named; give --journal runs.db, or set TASKIQ_FLOW_JOURNAL"),
    (["runs", "--journal", "runs.db", "--since", "soon"], 2, "'soon' is no time; write 2h"),
    (["delete", "--journal", "runs.db"], 2, "nothing says which runs to delete"),
    (["delete", "--journal", "runs.db", "--older-than", "1y"], 2, "'1y' is no period"),
    (["show", "r1", "--journal", "runs.db", "--report", "--json-lines"], 2, "give one of --report"),
    (["run", "flows:nightly", *URL, "--run-id", ""], 2, "'--run-id': it is empty; give a name"),
    (["run", "flows:nightly", *URL, "--output", "tilte"], 3, "'tilte'; did you mean 'title'?"),
    (["run", "flows:nightly"], 3, "was not given; give it with --input url=..., or add"),
    (["run", "flows:halves", "-i", "number=seven"], 3, "'seven', which cannot be read as int"),
    (["validate", "flows:cyclic"], 3, "cycle"),
    (["validate", "flows:no_steps"], 3, "the pipeline has no steps"),
    (["validate", "flows:mismatched"], 3, "takes it as its parameter 'number'"),
    (["run", "flows:nightly", *URL, *KNOWN], 3, "continue it with taskiq-flow resume r1 flows:"),
    (["resume", "r1", "flows:halves", "--journal", "runs.db"], 3, "or with --allow-changed"),
    (
        ["rerun", "r1", "flows:nightly", "--from", "tidle", "--journal", "runs.db"],
        3,
        "mean 'title'",
    ),
    (
        ["rerun", "r1", "flows:mapped", "--from", "odd[5]", "--journal", "runs.db"],
        3,
        "elements cannot be run again alone",
    ),
    (["show", "r2", "--journal", "runs.db"], 4, "'r2'; taskiq-flow runs lists those that it has"),
    (["show", "r12", "--journal", "runs.db"], 4, "no run 'r12'; did you mean 'r1'?"),
    (["delete", "rr1", "--journal", "runs.db"], 4, "no run 'rr1'; did you mean 'r1'?"),
    (["watch", "r2", "--journal", "runs.db"], 4, "the journal has no run 'r2'"),
    (["cancel", "r2", "--journal", "runs.db"], 4, "the journal has no run 'r2'"),
    (["resume", "r2", "flows:nightly", "--journal", "runs.db"], 4, "the journal has no run 'r2'"),
    (["runs", "--journal", "none.db"], 5, "none.db'; give the file to which an engine writes"),
    (["resume", "r1", "flows:nightly", "--journal", "none.db"], 5, "there is no journal at"),
    (["runs", "--journal", "flows.py"], 5, "file is not a database"),
    (["run", "flows:nightly", *URL, "--journal", "no/runs.db"], 5, "unable to open database file"),
    (["run", "flows:gated", "--timeout", "0.05"], 124, "did not end within 0.05 s"),
]


@pytest.fixture
def with_run(folder: Path, run: Run) -> Path:
    """The folder, with a journal that has the run ``r1``."""
    done = run("run", "flows:nightly", *URL, "--journal", "runs.db", "--run-id", "r1")
    assert done.code == 0, done.errors
    (folder / "broken.py").write_text("nightly = unknown\n")
    return folder


def test_each_exit_code_and_what_is_said(with_run: Path, run: Run) -> None:
    for arguments, code, words in ENDS:
        done = run(*arguments)
        assert (done.code, words in done.errors) == (code, True), (arguments, done)
        if code > 1:
            assert done.output == "", arguments
            is_of_module = arguments[-1] == "broken:nightly"
            assert ("Traceback" in done.errors) == is_of_module, done.errors


@pytest.mark.parametrize(
    "command",
    [
        *("runs", "show r1", "watch r1", "cancel r1", "delete r1", "delete --older-than 1d"),
        *("resume r1 flows:nightly", "rerun r1 flows:nightly --from title"),
    ],
)
def test_a_journal_that_is_only_read_is_not_made(folder: Path, run: Run, command: str) -> None:
    done = run(*command.split(), "--journal", "none.db")
    assert (done.code, done.output) == (5, "")
    assert not (folder / "none.db").exists()


@pytest.mark.parametrize("command", ["--help", "--version", "graph flows:nightly", "run --help"])
def test_output_that_cannot_be_written(start: Start, command: str) -> None:
    done = start(*command.split(), stdout="/dev/full").wait()
    assert done.code == 5
    assert done.errors.startswith("error: the output cannot be written: No space left on device; ")
    assert len(done.errors.splitlines()) == 1


def test_help_that_nobody_reads_ends_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "taskiq_flow", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)  # noqa: S603
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(("words", "code"), [("runs --bad", 2), ("validate flows:cyclic", 3)])
def test_that_nobody_reads_what_is_wrong_changes_no_code(
    folder: Path, words: str, code: int
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "taskiq_flow", *words.split()]
    done = subprocess.run(command, cwd=folder, stdout=-1, stderr=writing, check=False)  # noqa: S603
    os.close(writing)
    assert (done.returncode, done.stdout) == (code, b"")


def test_ctrl_c_before_there_is_a_command_ends_quietly(tmp_path: Path) -> None:
    """What it needs is imported for a part of a second."""
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    command = [sys.executable, "-m", "taskiq_flow", "runs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)  # noqa: S603
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


IMPORTING = [
    *(("run slow:flow", number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
    ("validate slow:flow", signal.SIGINT),
    ("resume r1 slow:flow", signal.SIGINT),
    ("serve slow:flow", signal.SIGTERM),
    ("run flows:nightly --broker slow:broker", signal.SIGTERM),
]


def test_a_signal_ends_a_command_that_imports_a_module(with_run: Path, start: Start) -> None:
    (with_run / "slow.py").write_text(SLOW)
    for words, number in IMPORTING:
        command = start(*words.split(), env={"TASKIQ_FLOW_JOURNAL": "runs.db"})
        command.until((with_run / "is_imported").exists)
        command.send(number)
        done = command.wait()
        assert (done.code, done.output, done.errors) == (128 + number, "", ""), words
        (with_run / "is_imported").unlink()


def test_a_locked_run_is_told_apart(with_run: Path, run: Run) -> None:
    with sqlite3.connect(with_run / "runs.db") as connection:
        connection.execute("UPDATE runs SET owner = 'another', expires = 1e12")
    connection.close()
    done = run("resume", "r1", "flows:nightly", "--journal", "runs.db")
    assert done.code == 5
    assert "locked by another" in done.errors


def test_a_failed_node_shows_its_traceback_from_the_users_code_on(run: Run) -> None:
    done = run("run", "flows:halves", "-i", "number=7", "--quiet")
    assert done.output == ""
    lines = done.errors.splitlines()
    assert lines[0] == (
        "error: node 'odd' failed in attempt 1 with ValueError: 7 is odd; it was called with "
        "number=7"
    )
    assert lines[1] == ""
    assert lines[2] == "Traceback (most recent call last):"
    assert lines[3].endswith("in odd")
    assert lines[-2:] == [
        "ValueError: 7 is odd",
        "it cannot be resumed; with --journal runs.db it could",
    ]


def test_a_failed_node_shows_the_traceback_of_its_worker(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failure = ValueError("7 is odd")
    failure.add_note('Traceback on worker a:1 (most recent call last):\n  File "odd.py", line 3')
    report(NodeFailedError("node 'odd' failed", failures={"odd": failure}))
    assert capsys.readouterr().err.splitlines()[2:] == [
        "ValueError: 7 is odd",
        "Traceback on worker a:1 (most recent call last):",
        '  File "odd.py", line 3',
    ]


def test_a_long_error_does_not_flood_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    error = ValueError("x" * 1_000_000)
    error.__cause__ = KeyError("y" * 1_000_000)
    report(RunFailedError("1 node failed", failures={"a": error}))
    told = capsys.readouterr().err
    assert "ValueError: xxx" in told
    assert len(told) < 10_000


AWAY = ServerUnreachableError("x")


@pytest.mark.parametrize(
    ("outcome", "error", "code"),
    [
        ("completed", None, Code.COMPLETED),
        ("failed", NodeFailedError("x"), Code.NODE_FAILED),
        ("failed", RunTimeoutError("x"), Code.TIMEOUT),
        ("failed", JournalError("x"), Code.UNREACHABLE),
        ("failed", RunFailedError("x", failures={"a": AWAY}), Code.UNREACHABLE),
        ("failed", RunFailedError("x", failures={"a": KeyError()}), Code.NODE_FAILED),
        ("cancelled", None, Code.CANCELLED),
        (None, None, Code.UNREACHABLE),
    ],
)
def test_the_code_of_a_run_elsewhere(outcome: Any, error: Exception | None, code: Code) -> None:
    view = RunView()
    view.apply(RunStarted("r1", 0.0, ("a",)))
    if outcome is None:
        view.status = "interrupted"
    else:
        for failed in getattr(error, "failures", {}).values():
            view.apply(NodeFailed("r1", 0.5, "a", "r1:a:1", failed, 1))
        view.apply(RunFinished("r1", 1.0, outcome, error))
    assert code_of_run(view) is code
    assert error is None or code_of(error) is code
