"""What commands write: results to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.text import Text

from taskiq_flow.dataflow.render import encodable
from taskiq_flow.drawing.theme import SIGNS
from taskiq_flow.errors import describe
from taskiq_flow.events import NodeFailure, NodeSkipped
from taskiq_flow.listeners.terminal import STYLES
from taskiq_flow.previews import one_line, preview, printable, shown_error


class OutputError(Exception):
    """Standard output cannot be written to."""


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_IN_ASCII = str.maketrans("█░✓✗⊘●○·–", "#:+x-*o.-")  # noqa: RUF001 - a dash


class _Results:
    """Where results are written to. ``apart``: unless that is standard output, as Python has it."""

    apart: TextIO | None = None

    @property
    def stream(self) -> TextIO:
        return sys.stdout if self.apart is None else self.apart


_results = _Results()


def keep_results_apart() -> None:
    """Let what others print go to standard error, unless standard output is a terminal.

    Modules and tasks print, and so do child processes and libraries. Whoever reads the results
    would take it for one.
    """
    stdout = sys.stdout
    if stdout is None or sys.stderr is None or stdout.isatty():
        return
    with contextlib.suppress(OSError):  # of a stream that is no file
        number = os.dup(stdout.fileno())
        os.dup2(sys.stderr.fileno(), stdout.fileno())
        # Never closed: it is written to until the process ends.
        _results.apart = open(  # noqa: SIM115
            number, "w", encoding=stdout.encoding, errors=stdout.errors, closefd=False
        )


def say(text: str, style: str = "") -> None:
    """Write to standard error, if there is one."""
    if sys.stderr is not None:
        # Where it could be said is what has failed. That nobody reads it is no reason to stop.
        with contextlib.suppress(OutputError, BrokenPipeError):
            _write(Text(_harmless(text), style=style), sys.stderr, wraps=True)


def show(line: Text | str, *, wraps: bool = False) -> None:
    """Write one line to standard output. ``wraps``: between words, if a terminal is too narrow."""
    text = Text(_harmless(line)) if isinstance(line, str) else line
    _write(text, _results.stream, wraps=wraps)


def show_json(value: Any) -> None:
    """Write one line of JSON to standard output."""
    _print(as_json(value), _results.stream)


def _harmless(text: str) -> str:
    r"""The text without what would move a terminal's cursor or colour it, written as ``\x1b``."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def _write(text: Text, file: TextIO, *, wraps: bool) -> None:
    console = Console(file=file, highlight=False, soft_wrap=not wraps)
    if not console.is_terminal:
        _print(text.plain, file)
        return
    if not console.encoding.lower().startswith("utf"):
        text = Text(in_ascii(text.plain))
    with console.capture() as captured:
        console.print(text)
    # A progress picture redirects the file, and the console would write past it.
    _print_as_is(captured.get(), file)


def _print(text: str, file: TextIO) -> None:
    encoding = getattr(file, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = in_ascii(text).encode(encoding, "backslashreplace").decode(encoding)
    _print_as_is(f"{text}\n", file)


def _print_as_is(text: str, file: TextIO) -> None:
    try:
        print(text, end="", file=file, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(not_written(error)) from None


def not_written(error: OSError) -> str:
    """What is said of output that cannot be written."""
    return f"the output cannot be written: {error.strerror}; write it elsewhere, or make room there"


def in_ascii(text: str) -> str:
    """The text with ASCII in place of signs."""
    return encodable(text.translate(_IN_ASCII), "ascii")


def as_json(value: Any) -> str:
    """A value as JSON in one line. What JSON cannot carry becomes a preview, or a string."""
    plain = to_jsonable_python(value, bytes_mode="base64", fallback=preview)
    return printable(json.dumps(_with_numbers_of_json(plain), ensure_ascii=False))


def _with_numbers_of_json(plain: Any) -> Any:
    """The same with NaN and the infinities as strings."""
    if isinstance(plain, float) and not math.isfinite(plain):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(plain)]
    if isinstance(plain, list):
        return [_with_numbers_of_json(part) for part in plain]
    if isinstance(plain, dict):
        return {key: _with_numbers_of_json(part) for key, part in plain.items()}
    return plain


class Results:
    """Writes the results of a run, one by one: as text, or as JSON lines with their values whole.

    ``failed``: whether one of them is a node that failed, of an engine with
    ``on_error="collect"``, or has an element of a map that did.
    """

    def __init__(self, *, json_lines: bool) -> None:
        self.failed = False
        self._json_lines = json_lines

    def write(self, name: str, value: Any) -> None:
        """Write one result."""
        self.failed = self.failed or _has_failed(value)
        if self._json_lines:
            show_json({"node": name, **_about(value)})
        else:
            short = _in_short(value)
            is_text = isinstance(short, str | _InPlace)
            show(_named(name, str(short) if is_text else preview(short)["text"]))


def _about(value: object) -> dict[str, Any]:
    """What a line of JSON says of a result.

    Elements of its list without a value stand beside it, so that none of them looks like one.
    """
    if isinstance(value, NodeFailure):
        return {"error": shown_error(value.error, value.after)}
    if isinstance(value, NodeSkipped):
        return {"skipped": list(value.because_of)}
    missing: list[dict[str, Any]] = []

    def values_of(part: object) -> object:
        if type(part) is list:
            return [*map(values_of, part)]
        if not isinstance(part, NodeFailure | NodeSkipped):
            return part
        missing.append({"index": part.index, **_about(part)})
        return None

    whole = values_of(value)
    return {"value": whole, "missing": missing} if missing else {"value": value}


class _InPlace:
    """Stands in a list for an element without a value. ``text``: what is written there."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _in_short(value: object) -> object:
    """A result with short texts in the places of a list's failures."""
    if isinstance(value, NodeFailure):
        return _InPlace(_failed(value))
    if isinstance(value, NodeSkipped):
        return _InPlace("skipped")
    return [*map(_in_short, value)] if type(value) is list else value


def _failed(failure: NodeFailure) -> str:
    return f"failed: {describe(failure.error, failure.after)}"


def _has_failed(value: object) -> bool:
    """Whether a result is a failure, or the list of a map with failures in it."""
    if isinstance(value, list):
        return any(map(_has_failed, value))
    return isinstance(value, NodeFailure)


def _named(name: str, text: str) -> Text:
    """A name and a text behind it, or below it if that has several lines."""
    lines = text.splitlines() or [""]
    shown = Text(one_line(name), style="bold").append(": ", style="not bold")
    if len(lines) == 1:
        return shown.append(one_line(lines[0]), style="not bold")
    shown.rstrip()
    for line in lines:
        shown.append(f"\n  {one_line(line)}".rstrip(" "), style="not bold")
    return shown


def width(elsewhere: int = 80) -> int:
    """The columns of standard output, if that is a terminal."""
    console = Console(file=_results.stream)
    return console.width if console.is_terminal else elsewhere


def wrapped(text: str, columns: int) -> list[str]:
    """The text in lines of so many columns. A word that is longer is broken."""
    return [line.plain.rstrip() for line in Text(text).wrap(Console(), columns)]


def sign(state: str) -> Text:
    """The sign of a state, in its colour."""
    return Text(SIGNS.get(state, "·"), style=STYLES.get(state, "dim"))


Row = Sequence[Text | str]


_NARROWEST_COLUMN = 6
_GAP = 2


def show_table(
    rows: Sequence[Row], *, most_important: Iterable[int] = (), cut: int | None = None
) -> None:
    """Write rows with aligned columns.

    On a terminal that is too narrow for all of them, columns are left out from the right, and
    those of ``most_important`` never. If that is not enough, the texts of the column ``cut`` are
    cut, and those of the last column go on in the lines below.
    """
    cells = [[Text(c) if isinstance(c, str) else c for c in row] for row in rows]
    widths = [max(cell.cell_len for cell in column) for column in zip(*cells, strict=True)]
    console = Console(file=_results.stream)
    columns = _fitting(widths, console, set(most_important))
    if console.is_terminal:
        _narrow(widths, columns, console.width, cut)
    for row in cells:
        for line in _lines_of(row, columns, widths, console, cut):
            show(line)


def _fitting(widths: Sequence[int], console: Console, kept: set[int]) -> list[int]:
    columns = [column for column, width in enumerate(widths) if width]
    if console.is_terminal:
        while _total(widths, columns) > console.width:
            others = [column for column in columns if column not in kept]
            if not others:
                break
            columns.remove(others[-1])
    return columns


def _total(widths: Sequence[int], columns: Sequence[int]) -> int:
    return sum(widths[column] + _GAP for column in columns) - _GAP


def _narrow(widths: list[int], columns: Sequence[int], room: int, cut: int | None) -> None:
    """Take what is too much from the widths of the column ``cut``, then of the last one."""
    for column in (cut, columns[-1]):
        excess = _total(widths, columns) - room
        if column is not None and excess > 0:
            least = min(widths[column], _NARROWEST_COLUMN)
            widths[column] = max(widths[column] - excess, least)


def _lines_of(
    row: Sequence[Text],
    columns: Sequence[int],
    widths: Sequence[int],
    console: Console,
    cut: int | None,
) -> Iterator[Text]:
    *others, last = columns
    line = Text()
    for column in others:
        if column == cut:
            row[column].truncate(widths[column], overflow="ellipsis")
        line.append_text(row[column]).append(" " * (widths[column] - row[column].cell_len + _GAP))
    parts = row[last].wrap(console, widths[last]) if row[last] else [Text()]
    indent = line.cell_len
    for part in parts:
        line.append_text(part)
        line.rstrip()
        yield line
        line = Text(" " * indent)


def close_quietly() -> bool:
    """Write out what is left; whether anybody still reads the results."""
    is_read = True
    for stream in {_results.stream, sys.stdout, sys.stderr} - {None}:
        try:
            stream.flush()
        except OSError as error:
            # Python would try once more at its end, complain, and exit with another code.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is _results.stream and isinstance(error, BrokenPipeError):
                is_read = False
    return is_read
