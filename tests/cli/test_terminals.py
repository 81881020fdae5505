"""What commands write to a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import struct
import termios
import threading
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.cli.conftest import COMMANDS, Run, Start
from tests.commands import Command

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ESCAPE_OF_COLOUR = re.compile(r"\x1b\[[0-9;?]*[B-JL-Za-z]")
"""All but what moves up and erases."""
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")


class Terminal:
    """A terminal of so many columns. ``path``: for whoever writes to it."""

    def __init__(self, columns: int) -> None:
        self._ours, self._theirs = os.openpty()
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, size)
        self.path = os.ttyname(self._theirs)
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # nobody has the other side open
            while part := os.read(self._ours, 65_536):
                self._parts.append(part)

    @property
    def so_far(self) -> str:
        return b"".join(self._parts).decode().replace("\r\n", "\n")

    def text(self) -> str:
        """All that was written, once nobody writes any more."""
        os.close(self._theirs)
        self._reader.join(5)
        os.close(self._ours)
        return self.so_far


def shown(text: str) -> list[str]:
    """The lines that are seen in the end, of what moves up and erases lines."""
    rows, row, column = [""], 0, 0
    for count, order, plain in re.findall(r"\x1b\[([0-9;?]*)([A-Za-z])|(\r|\n|[^\x1b\r\n]+)", text):
        if order == "A":
            row = max(0, row - int(count or 1))
        elif order == "K":
            rows[row] = ""
        elif plain == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif plain == "\r":
            column = 0
        elif plain:
            rows[row] = rows[row][:column].ljust(column) + plain + rows[row][column + len(plain) :]
            column += len(plain)
    return [line.rstrip() for line in rows]


@pytest.fixture
def environment() -> dict[str, str | None]:
    """That of a terminal with colours."""
    names = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE")
    return {"TERM": "xterm-256color", **dict.fromkeys(names)}


def screen(start: Start, columns: int, *arguments: str, env: dict[str, str | None]) -> str:
    terminal = Terminal(columns)
    done = start(*arguments, terminal=terminal.path, env=env).wait()
    text = terminal.text()
    assert done.code == 0, text
    return text


def too_wide(text: str, columns: int) -> list[str]:
    """The lines that go beyond so many columns, as they are seen in the end."""
    return [line for line in shown(ESCAPE_OF_COLOUR.sub("", text)) if cell_len(line) > columns]


R1, R2 = "a-run-of-a-night", "f3b1c2d4-7e55-4c1a-9d2e-0a6b8c9d7e51"
"""The second one is as long as run ids often are."""

AT_WORK: dict[str, list[str]] = {
    "run": ["flows:mapped", "-i", "numbers=[1, 2]", "--on-error", "continue", "--run-id", "r3"],
    "graph": ["flows:typed"],
    "validate": ["flows:typed"],
    "runs": [],
    "show": [R2],
    "watch": [R2],
    "resume": [R1, "flows:nightly"],
    "rerun": [R1, "flows:long_names", "--from", "unknown"],
    "cancel": [R1],
    "delete": ["--keep", "99"],
    "serve": ["--port", "0"],
}
"""A command line for each command, to see what it writes."""

CODES = {"run": 1, "watch": 1, "resume": 3, "rerun": 3, "serve": 130}
"""How these end. The other ones succeed."""


@pytest.fixture
def two_runs(folder: Path, run: Run) -> dict[str, str | None]:
    """The environment in a folder whose journal has a run with long names and one that failed."""
    made = ("--journal", "runs.db", "--quiet", "--run-id")
    assert run("run", "flows:long_names", "-i", "url=a.org", *made, R1).code == 0
    failed = ("-i", "numbers=[1, 2, 3]", "--on-error", "continue", "--tag", "of a customer")
    assert run("run", "flows:mapped", *failed, *made, R2).code == 1
    return {"TASKIQ_FLOW_JOURNAL": "runs.db"}


@pytest.mark.parametrize("is_told", [False, True], ids=["of 40 columns", "told to be"])
def test_nothing_is_wider_than_40_columns(
    start: Start,
    environment: dict[str, str | None],
    two_runs: dict[str, str | None],
    is_told: bool,
) -> None:
    """Help, tables, lists, reports and pictures of all commands."""
    env = environment | two_runs | ({"COLUMNS": "40"} if is_told else {})
    lines = [["--help"], *([command, "--help"] for command in COMMANDS)]
    lines += [[command, *AT_WORK[command]] for command in COMMANDS]
    lines += [["show", R1], ["show", R1, "--report"], ["show", R2, "--report"]]
    for words in lines:
        terminal = Terminal(200 if is_told else 40)
        command = start(*words, terminal=terminal.path, env=env)
        if words == ["serve", *AT_WORK["serve"]]:
            command.until(lambda at=terminal: "http://" in at.so_far)  # type: ignore[misc]
            command.send(signal.SIGINT)
        code = command.wait().code
        text = terminal.text()
        assert code == (0 if "--help" in words else CODES.get(words[0], 0)), text
        assert text or words[0] == "delete"
        assert too_wide(text, 40) == [], words


def test_no_word_of_the_help_is_broken_on_a_narrow_terminal(
    start: Start, environment: dict[str, str | None]
) -> None:
    text = screen(start, 40, "run", "--help", env=environment)
    assert "redis://HOST?prefix=KEYS." in text
    assert "TASKIQ_FLOW_JOURNAL" in text


def test_a_run_id_is_whole_in_a_narrow_list(
    start: Start, environment: dict[str, str | None], two_runs: dict[str, str | None]
) -> None:
    lines = screen(start, 40, "runs", env=environment | two_runs).splitlines()
    assert [ESCAPE.sub("", line) for line in lines] == ["   run", f"✗  {R2}", f"✓  {R1}"]


def test_colours_are_left_out_where_they_are_not_wanted(
    start: Start, environment: dict[str, str | None], two_runs: dict[str, str | None]
) -> None:
    env = environment | two_runs
    for words in (["runs"], ["show", R1]):
        assert COLOUR.search(screen(start, 80, *words, env=env))
        assert not COLOUR.search(screen(start, 80, *words, env={**env, "NO_COLOR": "1"}))


def at_the_gate(
    start: Start, environment: dict[str, str | None], columns: int, *options: str
) -> tuple[Terminal, Command]:
    """A run whose node ``gate`` waits, as its progress says on a terminal of so many columns."""
    terminal = Terminal(columns)
    command = start("run", "flows:gated", *options, terminal=terminal.path, env=environment)
    command.until(lambda: "● gate" in ESCAPE.sub("", terminal.so_far))
    return terminal, command


def test_progress_moves_beside_the_results(
    folder: Path, start: Start, environment: dict[str, str | None]
) -> None:
    terminal, command = at_the_gate(start, environment, 40)
    (folder / "open").touch()
    assert command.wait().code == 0
    text = terminal.text()
    assert "after: open for all" in shown(text)
    lines = ESCAPE.sub("", text).splitlines()
    assert lines[-1].startswith("✓") or lines[-2].startswith("✓")


def test_ctrl_c_is_told_once_and_leaves_the_cursor(
    start: Start, environment: dict[str, str | None]
) -> None:
    terminal, command = at_the_gate(start, environment, 80, "--run-id", "r")
    command.send(signal.SIGINT)
    assert command.wait().code == 130
    text = terminal.text()
    *_, ended, cancelled, how = [line for line in shown(ESCAPE_OF_COLOUR.sub("", text)) if line]
    assert ended.startswith("⊘ r  cancelled in")
    assert (cancelled, how[:20]) == ("run 'r' was cancelled", "it cannot be resumed")
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_ctrl_z_gives_the_cursor_back_and_the_run_goes_on(
    folder: Path, start: Start, environment: dict[str, str | None]
) -> None:
    terminal, command = at_the_gate(start, environment, 80)
    assert "\x1b[?25h" not in terminal.so_far
    command.send(signal.SIGTSTP)
    command.until(lambda: "\x1b[?25h" in terminal.so_far)
    (folder / "open").touch()

    def has_gone_on() -> bool:
        command.send(signal.SIGCONT)  # once more, if it had not stopped yet
        return "after: open for all" in ESCAPE.sub("", terminal.so_far)

    command.until(has_gone_on)
    assert command.wait().code == 0
    terminal.text()
