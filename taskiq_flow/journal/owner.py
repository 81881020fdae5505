"""Who holds a lease: a name like no other, from which it can be told whether its process lives."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

_PROCESSES = Path("/proc")


def new_owner() -> str:
    """A name for one engine's hold on one run, in this process."""
    return f"{_place()} process {os.getpid()} since {_start(os.getpid())} {secrets.token_hex(4)}"


def is_gone(owner: str) -> bool:
    """Whether a lease's process has ended, as far as can be told from here.

    A process elsewhere, in another container say, cannot be seen: it counts as alive.
    """
    place, _, rest = owner.partition(" process ")
    pid, _, since = rest.partition(" since ")
    if place != _place() or not pid.isdecimal():
        return False
    return _start(int(pid)) != since.split()[0]


def _place() -> str:
    """The machine, and which of its processes can be seen."""
    try:
        namespace = str((_PROCESSES / "self/ns/pid").readlink())
    except OSError:  # no Linux
        namespace = ""
    return f"{socket.gethostname()}{namespace}"


def _start(pid: int) -> str:
    """When a process began, in the system's own terms; ``"-"`` if there is none of that number."""
    try:
        os.kill(pid, 0)
        status = (_PROCESSES / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except ProcessLookupError:
        return "-"
    except PermissionError:
        return "?"
    except FileNotFoundError:  # it ended between the two, or this is no Linux
        return "?" if not _PROCESSES.exists() else "-"
    fields = status.rpartition(")")[2].split()  # the name in front may contain anything
    state, since = fields[0], fields[19]
    return "-" if state in "ZX" else since
