"""The traceback of a task on its worker: it is sent beside the error, and becomes a note on it."""

from __future__ import annotations

import contextlib
from itertools import dropwhile, takewhile
from traceback import StackSummary, walk_tb
from types import FrameType, TracebackType

from taskiq import NoResultError
from taskiq.receiver import Receiver

from taskiq_flow.errors import TaskiqFlowError
from taskiq_flow.previews import calls_tasks, printable
from taskiq_flow.processes.name import process_name

MOST_FRAMES = 20
"""The newest frames, which are sent."""

LONGEST_FRAME = 300
"""Characters of a frame: what is shown of an error (``previews.py``) has room for all frames."""

_HEADING = "Traceback on worker "

_EXECUTE = Receiver.run_task.__code__
"""The function of taskiq that executes a task, and keeps its error."""


def worker_traceback(error: BaseException) -> str | None:
    """The frames of the task that has raised ``error`` in this process, as text. Raises nothing.

    ``None`` for errors of this package, which say themselves what has happened, and for those that
    were raised before the task was called.
    """
    try:
        if isinstance(error, (TaskiqFlowError, NoResultError)):
            return None
        steps = _steps_of_task(error.__traceback__)
        return _text(steps) if steps else None
    except Exception:  # of a class that allows no look at it, or of a loader that has the source
        return None


def _steps_of_task(traceback: TracebackType | None) -> list[tuple[FrameType, int]]:
    walk = dropwhile(lambda step: calls_tasks(step[0].f_code.co_filename), walk_tb(traceback))
    # What follows the first call is from an earlier raise of the same object.
    return [*takewhile(lambda step: step[0].f_code is not _EXECUTE, walk)]


def _text(steps: list[tuple[FrameType, int]]) -> str:
    lines = [f"{_HEADING}{process_name()} (most recent call last):\n"]
    if (left_out := len(steps) - MOST_FRAMES) > 0:
        lines.append(f"  [{left_out} earlier frames are left out]\n")
    frames = StackSummary.extract(iter(steps[-MOST_FRAMES:])).format()
    lines += [
        each if len(each) <= LONGEST_FRAME else f"{each[:LONGEST_FRAME]}…\n" for each in frames
    ]
    return printable("".join(lines).rstrip())


def add_note(error: BaseException, text: str) -> None:
    """Add a worker's traceback to the notes of an error, unless it has one. Raises nothing.

    An error that has one was raised by a task and sent to another, such as its fallback, which has
    raised it again.
    """
    with contextlib.suppress(Exception):  # of a class that allows no look at its notes
        notes = getattr(error, "__notes__", ())
        if not any(note.startswith(_HEADING) for note in notes):
            # Not by ``add_note``: the class may allow no changes, as a frozen dataclass.
            BaseException.__setattr__(error, "__notes__", [*notes, text])
