"""The name of this process, by which others know it."""

from __future__ import annotations

import os
import socket


def process_name() -> str:
    """The machine and the number of this process, as ``host:pid``."""
    return f"{socket.gethostname()}:{os.getpid()}"
