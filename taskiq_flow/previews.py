"""Previews of values and errors: short texts in place of what no JSON document can hold."""

from __future__ import annotations

import re
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from taskiq_flow.errors import message_of

LONGEST_TEXT = 400
"""Characters of a preview's text."""

LONGEST_MESSAGE = 8_000
"""Characters of an error's message, and of its traceback."""

_LONGEST_PART = 2_000
"""Characters of a message within a traceback."""

_LONGEST_WHOLE = 4_000
"""Characters up to which a value is written whole, to tell its size."""

_DEEPEST = 20
"""Levels of nested collections that are written."""

_MOST_BITS = 4_096
"""Bits of integers that are written in digits, as that takes long for large ones."""

_MINUTE, _HOUR = 60, 3_600
"""Seconds of a minute and of an hour."""

_SHORT = {bool, float, type(None)}
"""Types of values whose text is short."""

_LARGE = 1 << 62
"""Where integers may begin to be long."""

_DIGITS_ARE_SHOWN = (bool, float, complex, type(None))


class Preview(dict[str, Any]):
    """What another process has shown of a value, in place of the value.

    >>> dag = DAGBuilder().node(str.split, name="words", inputs=["text"]).build()
    >>> journal = MemoryJournal()
    >>> engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
    >>> _ = engine.execute_sync({"text": "ebb and flow"}, run_id="r1")
    >>> async def results():
    ...     async for event in RunReader(journal).events("r1"):
    ...         if isinstance(event, NodeCompleted):
    ...             print(event.result)
    >>> asyncio.run(results())
    {'kind': 'list', 'size': 22, 'text': "['ebb', 'and', 'flow']", 'cut': False}
    """


class ItemCount(int):
    """What a generator has given, as events say it. Its ``repr`` says what is counted."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{int(self)} item" + ("" if self == 1 else "s")


class ReportedError(Exception):
    """An error that another process has told of. ``type``, ``message``, ``traceback``: its texts.

    >>> raise ReportedError("ValueError", "7 is odd")
    Traceback (most recent call last):
    taskiq_flow.previews.ReportedError: ValueError: 7 is odd
    """

    def __init__(self, type: str, message: str, traceback: str = "") -> None:  # noqa: A002
        super().__init__(type, message, traceback)
        self.type = type
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


_name_of: Callable[[type], str] = type.__dict__["__name__"].__get__
"""The name of a class, whatever its metaclass says."""


def preview(value: object) -> dict[str, Any]:
    """What is shown of a value: its ``kind``, ``size`` and ``text``, and whether that is ``cut``.

    ``kind``: the name of its class. ``size``: bytes of a text, of binary data or of an array, else
    of the text that shows the value; ``None`` where that is long. Takes a bounded time, however
    large the value is, and raises nothing.

    >>> preview({"title": "Tides", "score": float("nan")})
    {'kind': 'dict', 'size': 32, 'text': "{'title': 'Tides', 'score': nan}", 'cut': False}
    """
    if (short := short_text(value)) is not None:
        return {"kind": _name_of(type(value)), "size": len(short), "text": short, "cut": False}
    if isinstance(value, Preview):
        return value
    writer = _Writer(_LONGEST_WHOLE)
    try:
        if isinstance(value, str):
            writer.add(value)
        else:
            writer.write(value, 0)
    except _FullError:
        pass
    except Exception:  # of a class of the user's, say in its ``__repr__``
        writer.is_whole = False
        writer.parts.append(f"<{_name_of(type(value))}>")
    text = printable("".join(writer.parts))
    is_cut = not writer.is_whole or len(text) > LONGEST_TEXT
    return {
        "kind": printable(_name_of(type(value))),
        "size": _size(value, len(text.encode()) if writer.is_whole else None),
        "text": text[: LONGEST_TEXT - 1] + "…" if is_cut else text,
        "cut": is_cut,
    }


def short_text(value: object) -> str | None:
    """The text of a number or of a short text, in ASCII: its preview shows all of it."""
    if type(value) is int:
        return repr(value) if -_LARGE < value < _LARGE else None
    if type(value) is str:
        return value if len(value) <= LONGEST_TEXT and value.isascii() else None
    return repr(value) if type(value) in _SHORT else None


def shown_error(
    error: BaseException | None, after: BaseException | None = None
) -> dict[str, str] | None:
    """What is shown of an error: ``type``, ``message``, and the end of its ``traceback``.

    ``after``: the error of a node, if ``error`` is its fallback's.
    """
    if error is None:
        return None
    if isinstance(error, ReportedError):
        return {"type": error.type, "message": error.message, "traceback": error.traceback}
    try:
        lines = "".join(map(_cut, traceback.format_exception(error)))
    except Exception:  # likewise
        lines = ""
    return {
        "type": printable(_name_of(type(error))),
        "message": printable(message_of(error, after)[:LONGEST_MESSAGE]),
        "traceback": printable(lines[-LONGEST_MESSAGE:]),
    }


def _cut(part: str) -> str:
    """A part of a traceback. A long message is cut, so that it leaves room for the frames."""
    return part if len(part) <= _LONGEST_PART else f"{part[:_LONGEST_PART]}…\n"


_FRAME = re.compile(r'  File "(?P<file>[^"]*)", line \d')
_MACHINERY = re.compile(
    r"[/\\](lib|site-packages|dist-packages)[/\\](python3[.\d]*[/\\])?"
    r"((taskiq|taskiq_flow|taskiq_dependencies|anyio|asyncio|concurrent[/\\]futures)[/\\]"
    r"|contextlib\.py$)",
    re.IGNORECASE,
)
"""A file of what calls tasks. It is installed: a folder of the user's may have such a name."""

_HERE = str(Path(__file__).parent)


def of_the_users(text: str) -> str:
    """A traceback without the frames before the user's own code."""
    kept: list[str] = []
    is_before, is_machinery = True, False
    for line in text.rstrip().splitlines():
        if frame := _FRAME.match(line):
            is_machinery = is_before and calls_tasks(frame["file"])
            is_before = is_machinery
        elif not line.startswith(" "):
            is_before, is_machinery = True, False
        if not is_machinery:
            kept.append(line)
    return "\n".join(kept)


def calls_tasks(file: str) -> bool:
    """Whether a file is of what calls tasks, and not the user's or another library's."""
    return file.startswith(_HERE) or _MACHINERY.search(file) is not None


def printable(text: str) -> str:
    r"""The text as UTF-8 can hold it: lone surrogates are written as ``\udc80``."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    r"""The text without anything that moves the cursor: a line feed is written as ``\n``."""
    if text.isprintable():
        return text
    shown = (c if c.isprintable() or c in "\u200d\u200c" else repr(c)[1:-1] for c in text)
    return printable("".join(shown))


_ABOUT_RESULTS = re.compile(r"; results of what had completed are in \.results: \d+")


def without_python(message: str) -> str:
    """An error's message without what only a program can do with the error."""
    return _ABOUT_RESULTS.sub("", message)


def duration(seconds: float) -> str:
    """A duration in the two units that matter."""
    whole = round(seconds)
    if whole >= _HOUR:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} m"
    if whole >= _MINUTE:
        return f"{whole // _MINUTE} m {whole % _MINUTE:02} s"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms"


def _size(value: object, written: int | None) -> int | None:
    try:
        if isinstance(value, (bytes, bytearray)):
            return len(value)
        if isinstance(value, str):
            return written if written is not None else _bytes_of(value)
        size = getattr(value, "nbytes", None)
    except Exception:  # of a class of the user's
        return written
    return size if isinstance(size, int) else written


def _bytes_of(text: str) -> int | None:
    """How long a text is as UTF-8, if that can be told without encoding it."""
    return len(text) if text.isascii() else None


class _FullError(Exception):
    """A text has reached its limit."""


class _Writer:
    """Writes values in the form of ``repr``, up to ``room`` characters."""

    def __init__(self, room: int) -> None:
        self.parts: list[str] = []
        self.room = room
        self.is_whole = True

    def add(self, text: str) -> None:
        """Append a text. Raises ``_FullError`` if there is no room for all of it."""
        self.parts.append(text[: self.room])
        self.room -= len(text)
        if self.room < 0:
            self.is_whole = False
            raise _FullError

    def write(self, value: Any, depth: int) -> None:
        """Append a value. Raises ``_FullError``, or whatever the value's own code raises."""
        if isinstance(value, (str, bytes, bytearray)):
            self.add(repr(value[: self.room + 1]))
        elif isinstance(value, int) and not isinstance(value, bool):
            bits = int(value).bit_length()
            self.add(f"<int of {bits:,} bits>" if bits > _MOST_BITS else repr(value))
        elif isinstance(value, _DIGITS_ARE_SHOWN):
            self.add(repr(value))
        elif depth > _DEEPEST:
            self.is_whole = False
            self.add("…")
        elif isinstance(value, dict):
            self._write_pairs("{", value.items(), "}", depth)
        elif isinstance(value, tuple):
            self._write_all("(", value, ",)" if len(value) == 1 else ")", depth)
        elif isinstance(value, (set, frozenset)) and value:
            self._write_all("{", value, "}", depth)
        elif isinstance(value, (list, deque)):
            self._write_all("[", value, "]", depth)
        elif (fields := _fields(value)) is not None:
            self._write_fields(_name_of(type(value)), fields, value, depth)
        else:
            self.add(repr(value))

    def _write_all(self, start: str, values: Iterable[Any], end: str, depth: int) -> None:
        self.add(start)
        for number, value in enumerate(values):
            self.add(", " if number else "")
            self.write(value, depth + 1)
        self.add(end)

    def _write_pairs(
        self, start: str, pairs: Iterable[tuple[Any, Any]], end: str, depth: int
    ) -> None:
        self.add(start)
        for number, (key, value) in enumerate(pairs):
            self.add(", " if number else "")
            self.write(key, depth + 1)
            self.add(": ")
            self.write(value, depth + 1)
        self.add(end)

    def _write_fields(self, name: str, fields: Iterable[str], value: Any, depth: int) -> None:
        self.add(f"{name}(")
        for number, field in enumerate(fields):
            self.add(f"{', ' if number else ''}{field}=")
            self.write(getattr(value, field), depth + 1)
        self.add(")")


def _fields(value: object) -> Iterable[str] | None:
    """The names of the fields of a dataclass, a pydantic model or an attrs object."""
    kind = type(value)
    if is_dataclass(kind):
        return [field.name for field in fields(kind) if field.repr]
    if isinstance(of_model := getattr(kind, "model_fields", None), Mapping):
        return of_model
    attributes = getattr(kind, "__attrs_attrs__", None)
    return None if attributes is None else [attribute.name for attribute in attributes]
