"""Texts in place of values and errors."""

from __future__ import annotations

import pytest

from taskiq_flow.previews import LONGEST_MESSAGE, of_the_users, shown_error


def test_frames_of_the_machinery_before_the_users_are_left_out() -> None:
    frame = '  File "{}", line 1, in f\n    f()\n    ^^^\n'
    text = (
        "Traceback (most recent call last):\n"
        + frame.format("/lib/taskiq/receiver.py")
        + frame.format("/srv/taskiq/flows.py")
        + frame.format("/lib/asyncio/tasks.py")
        + "OSError: away\n\nThe above exception was the direct cause:\n\n"
        + "Traceback (most recent call last):\n"
        + frame.format("/lib/taskiq_flow/values/call.py")
        + "ValueError: x\n"
    )
    assert of_the_users(text).replace(frame.format("/srv/taskiq/flows.py"), "user\n") == (
        "Traceback (most recent call last):\nuser\n"
        + frame.format("/lib/asyncio/tasks.py")
        + "OSError: away\n\nThe above exception was the direct cause:\n\n"
        + "Traceback (most recent call last):\nValueError: x"
    )


def test_a_long_message_leaves_room_for_the_frames() -> None:
    def fail() -> None:
        raise ValueError("x\n" * 1_000_000)

    with pytest.raises(ValueError, match="x") as caught:
        fail()
    shown = shown_error(caught.value)
    assert shown is not None
    assert ", in fail\n" in shown["traceback"]
    assert shown["traceback"].endswith("…\n")
    assert len(shown["traceback"]) <= LONGEST_MESSAGE
