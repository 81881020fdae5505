"""Names of lease owners: unique, and telling whether the owner's process is still alive."""

from __future__ import annotations

import os
import re
import secrets
import socket
from functools import lru_cache
from pathlib import Path

_PROC = Path("/proc")

_OWNER = re.compile(r"(.*) process ([1-9]\d{0,8}) since (\S+) \S+", re.ASCII | re.DOTALL)

_NAMESPACE = re.compile(r"pid:\[\d+\]\Z", re.ASCII)

_GONE, _UNKNOWN = "-", "?"
"""In place of a start time: no process has that pid; the process's start time is not readable."""


def new_owner() -> str:
    """A new name for a lease owner in this process."""
    return f"{_this_process()} {secrets.token_hex(4)}"


def is_gone(owner: str) -> bool:
    """Whether a lease owner's process is known to have ended.

    Counted as alive: a process on another machine or in another container, one whose start time
    this user may not read, and an owner whose name is not from ``new_owner``.
    """
    parts = _OWNER.fullmatch(owner)
    if parts is None or parts[1] != _host():
        return False
    return _start_time(int(parts[2])) not in (parts[3], _UNKNOWN)


def is_own(owner: str) -> bool:
    """Whether a lease owner is of this process."""
    return owner.rpartition(" ")[0] == _this_process()


def readable(owner: str) -> str:
    """A lease owner for a message: its process and machine, or its name as it is."""
    parts = _OWNER.fullmatch(owner)
    return owner if parts is None else f"process {parts[2]} on {_NAMESPACE.sub('', parts[1])}"


def _this_process() -> str:
    """How the names of this process's lease owners begin."""
    return _named(os.getpid())


@lru_cache(maxsize=1)
def _named(pid: int) -> str:
    """The name of this process, read once: that takes longer than sending two nodes."""
    return f"{_host()} process {pid} since {_start_time(pid)}"


def _host() -> str:
    """The machine and the PID namespace of this process."""
    try:
        namespace = str((_PROC / "self/ns/pid").readlink())
    except OSError:  # not Linux
        namespace = ""
    return f"{socket.gethostname()}{namespace}"


def _start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot; or ``_GONE``, or ``_UNKNOWN``."""
    try:
        os.kill(pid, 0)
        status = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except ProcessLookupError:
        return _GONE
    except PermissionError:
        return _UNKNOWN
    except FileNotFoundError:  # it ended just now, or this is not Linux
        return _GONE if _PROC.exists() else _UNKNOWN
    fields = status.rpartition(")")[2].split()  # after the name, which may contain anything
    state, start_time = fields[0], fields[19]
    return _GONE if state in "ZX" else start_time
