"""What commands write to a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import termios
import threading
from pathlib import Path

import pytest

from tests.cli.conftest import Run, Start

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
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


@pytest.mark.parametrize("columns", [40, 80])
def test_a_table_fits_the_terminal(
    run: Run, start: Start, environment: dict[str, str | None], columns: int
) -> None:
    made = ["--run-id", "a-run-of-a-night", "--journal", "runs.db", "--quiet"]
    run("run", "flows:long_names", "-i", "url=a.org", *made)
    env = {**environment, "TASKIQ_FLOW_JOURNAL": "runs.db"}
    for command in (["runs"], ["show", "a-run-of-a-night"], ["show", made[1], "--report"]):
        text = screen(start, columns, *command, env=env)
        lines = ESCAPE.sub("", text).splitlines()
        assert max(map(len, lines)) <= columns, command
        assert "a-run-of-a-night" in text
        assert COLOUR.search(text) or command[-1] == "--report"
    assert not COLOUR.search(screen(start, columns, "runs", env={**env, "NO_COLOR": "1"}))


def test_progress_moves_beside_the_results(
    folder: Path, start: Start, environment: dict[str, str | None]
) -> None:
    terminal = Terminal(40)
    command = start("run", "flows:gated", terminal=terminal.path, env=environment)
    command.until(lambda: "● gate" in ESCAPE.sub("", terminal.so_far))
    (folder / "open").touch()
    assert command.wait().code == 0
    text = terminal.text()
    assert "after: open for all" in shown(text)
    lines = ESCAPE.sub("", text).splitlines()
    assert lines[-1].startswith("✓") or lines[-2].startswith("✓")
