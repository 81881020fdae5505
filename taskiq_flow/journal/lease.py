"""Who holds a lease: a name like no other, from which it can be told whether its process lives."""

from __future__ import annotations

import os
import re
import secrets
import socket
from pathlib import Path

_PROCESSES = Path("/proc")

_OWNER = re.compile(r"(.*) process ([1-9]\d{0,8}) since (\S+) \S+", re.ASCII | re.DOTALL)

_GONE, _UNKNOWN = "-", "?"
"""In place of a process's beginning: there is none of that number, or one that cannot be seen."""


def new_owner() -> str:
    """A name for one engine's hold on one run, in this process."""
    return f"{_place()} process {os.getpid()} since {_start(os.getpid())} {secrets.token_hex(4)}"


def is_gone(owner: str) -> bool:
    """Whether a lease's process has ended, as far as can be told from here.

    A process elsewhere, in another container say, cannot be seen: it counts as alive. So does one
    of another user whose beginning is hidden, and whoever's name is none of these.
    """
    parts = _OWNER.fullmatch(owner)
    if parts is None or parts[1] != _place():
        return False
    return _start(int(parts[2])) not in (parts[3], _UNKNOWN)


def _place() -> str:
    """The machine, and which of its processes can be seen."""
    try:
        namespace = str((_PROCESSES / "self/ns/pid").readlink())
    except OSError:  # no Linux
        namespace = ""
    return f"{socket.gethostname()}{namespace}"


def _start(pid: int) -> str:
    """When a process began, in the system's own terms."""
    try:
        os.kill(pid, 0)
        status = (_PROCESSES / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except ProcessLookupError:
        return _GONE
    except PermissionError:
        return _UNKNOWN
    except FileNotFoundError:  # it ended between the two, or this is no Linux
        return _GONE if _PROCESSES.exists() else _UNKNOWN
    fields = status.rpartition(")")[2].split()  # the name in front may contain anything
    state, since = fields[0], fields[19]
    return _GONE if state in "ZX" else since
