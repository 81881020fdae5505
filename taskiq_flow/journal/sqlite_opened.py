"""What a process has of a SQLite file that is open: a connection, a thread, and locks.

All connections are closed for the moment of a fork. SQLite keeps in memory what its process has
locked. A forked process inherits this memory without the locks, and would open the file as if it
had them: what it writes is lost as soon as another process closes the file.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakSet

T = TypeVar("T")

FORK_PATIENCE = 30.0
"""Seconds that a fork waits at the most for what a thread does with a connection."""

replacing = threading.RLock()
"""Held while a file is given another ``Opened``, and during a fork."""


class Opened:
    """A file that is open, or will be at the first call.

    Who holds ``lock`` may use the connection. ``caller``: the thread that does so in place, and may
    be interrupted by a signal's handler. ``moving``: held during a checkpoint. ``file_id``: tells
    the file from others that have its name later. ``opener``: the name that this process has in
    it. ``bytes_in_log``: about how many the write-ahead log has. ``is_over``: whether it was
    closed, or is of the process from which this one was forked.
    """

    def __init__(self) -> None:
        self.lock, self.moving = threading.Lock(), threading.Lock()
        self.connection: sqlite3.Connection | None = None
        self.caller: int | None = None
        self.file_id = (0, 0)
        self.opener = ""
        self.bytes_in_log = 0
        self.is_over = False
        self._thread: ThreadPoolExecutor | None = None
        with replacing:
            _all.add(self)

    def submit(self, call: Callable[[Opened], T]) -> Future[T] | None:
        """Have the thread make a call, after those before; ``None`` if the file was closed."""
        with replacing:
            if self.is_over:
                return None
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="taskiq_flow-journal")
            return self._thread.submit(call, self)

    def close(self, close: Callable[[Opened], T]) -> Future[T] | None:
        """Have the thread make its last call; ``None`` if it has made none."""
        with replacing:
            if self._thread is None:
                return None
            closing = self.submit(close)
            self.is_over = True
            self._thread.shutdown(wait=False)
            return closing


def id_of(path: str) -> tuple[int, int]:
    """What tells the file at a path from all others; zeros if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - before each write
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


_all: WeakSet[Opened] = WeakSet()
_held: list[list[threading.Lock]] = []  # during a fork, and one within it in a signal's handler
_inherited: list[Opened] = []  # with connections that could not be closed; SQLite forbids it now


def _before_fork() -> None:
    replacing.acquire()
    held: list[threading.Lock] = []
    _held.append(held)
    for opened in _all:
        if opened.caller == threading.get_ident():  # in a handler: it would wait for itself
            continue
        locks = (opened.moving, opened.lock)
        held += [lock for lock in locks if lock.acquire(timeout=FORK_PATIENCE)]
        if opened.lock in held and opened.connection is not None:
            opened.connection.close()
            opened.connection = None


def _after_fork() -> None:
    for lock in _held.pop():
        lock.release()
    replacing.release()


def _after_fork_in_child() -> None:
    for opened in _all:
        opened.is_over = True
        if opened.connection is not None:
            _inherited.append(opened)
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )
