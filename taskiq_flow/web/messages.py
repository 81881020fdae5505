"""What errors say to clients over HTTP."""

from __future__ import annotations

from taskiq_flow.journal.errors import HOW_TO_LIST


def message_of(error: Exception) -> str:
    """An error's message, with the route in place of the method that lists runs in Python."""
    return str(error).replace(HOW_TO_LIST, "GET /api/v1/runs lists those that it has")
