"""Child processes that are ended by their own pid and never outlive who started them (Linux)."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

POLL_INTERVAL = 0.02
TAIL = 3000


class ProcessError(Exception):
    """A child process did not do what it was started for; says the end of its log."""


class Started(ABC):
    """What a ``with`` statement starts, and kills at its end."""

    @abstractmethod
    def start(self) -> None:
        """Start it."""

    @abstractmethod
    def kill(self) -> None:
        """End it with no chance to clean up."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Process(Started):
    """A program run in a process group of its own, which writes to a log file."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.command = list(command)
        self.log = log
        self._env = env
        self._cwd = cwd
        self._child: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._start_of_log = 0

    @property
    def pid(self) -> int:
        """The pid, which is also the id of the process group."""
        assert self._child is not None, "not started"
        return self._child.pid

    @property
    def is_running(self) -> bool:
        """Whether the program was started and has not ended by itself."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Start the program; its log is appended to."""
        assert self._child is None, "already started"
        with self.log.open("ab") as log:
            self._start_of_log = log.tell()
            self._child = subprocess.Popen(  # noqa: S603 - the command is the harness's own
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
            )
        self._watchdog = _watchdog(self._child.pid)

    def stop(self, timeout: float = 10.0) -> None:
        """Ask the program to end and kill what is still there after a time."""
        if self._child is None:
            return
        family = self._family()
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)  # a suspended process would not notice
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout)
        self._end(family)

    def kill(self) -> None:
        """Kill the whole process group at once."""
        if self._child is not None:
            self._end(self._family())

    def suspend(self) -> None:
        """Stop the whole process group where it is; its connections stay open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Have a suspended process group go on."""
        self._signal(signal.SIGCONT)

    def log_since_start(self) -> str:
        """What the program has written since its latest start."""
        with self.log.open("rb") as log:
            log.seek(self._start_of_log)
            return log.read().decode(errors="replace")

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float) -> None:
        """Wait for a condition while the program runs; raise what it said if it does not come."""
        deadline = time.monotonic() + timeout
        while not condition():
            if not self.is_running:
                raise self._error(f"ended before {what}")
            if time.monotonic() > deadline:
                raise self._error(f"{what}: not within {timeout:g} s")
            time.sleep(POLL_INTERVAL)

    def _error(self, message: str) -> ProcessError:
        tail = self.log_since_start()[-TAIL:]
        return ProcessError(f"{' '.join(self.command)[:200]}\n{message}; its log ends:\n{tail}")

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self.pid, number)

    def _family(self) -> set[int]:
        """The process group, and the descendants that have left it for one of their own."""
        return set(descendants(self.pid)) | {p.pid for p in processes() if p.group == self.pid}

    def _end(self, family: set[int]) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._signal(signal.SIGKILL)
        assert self._child is not None
        assert self._watchdog is not None
        assert self._watchdog.stdin is not None
        self._child.wait()
        self._watchdog.kill()  # before the pid can be another's
        self._watchdog.wait()
        self._watchdog.stdin.close()
        self._child = self._watchdog = None
        deadline = time.monotonic() + 5.0
        while left := {pid for pid in family if process_info(pid)}:
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.command[0]} left the processes {left} running")
            time.sleep(POLL_INTERVAL)


def _watchdog(group: int) -> subprocess.Popen[bytes]:
    """Kill a process group when this process ends, be it by SIGKILL.

    The watchdog sees the end of its standard input, which this process alone holds open.
    PR_SET_PDEATHSIG would end with the thread that started the child, and spare grandchildren.
    """
    return subprocess.Popen(  # noqa: S603 - likewise
        ["/bin/sh", "-c", f"read _; kill -s KILL -- -{group}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


class ProcessInfo(NamedTuple):
    """What /proc says about a process."""

    pid: int
    parent: int
    group: int


def process_info(pid: int) -> ProcessInfo | None:
    """Look at one process. None if it has ended, as a zombie has, which waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent, group = stat.rpartition(")")[2].split()[:3]
    return None if state in "ZX" else ProcessInfo(pid, int(parent), int(group))


def processes() -> Iterator[ProcessInfo]:
    """Give all processes that run."""
    pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return filter(None, map(process_info, pids))


def children(pid: int) -> list[int]:
    """Give the processes started by a process."""
    started: list[int] = []
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):  # it has ended, which may be at any moment
        return []
    for thread in threads:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            started += map(int, (thread / "children").read_text().split())
    return sorted(child for child in started if process_info(child))


def descendants(pid: int) -> list[int]:
    """Give the processes started by a process, by those, and so on."""
    return [below for child in children(pid) for below in (child, *descendants(child))]


def find_program(name: str) -> str | None:
    """Give the path of a program of this virtual environment, or else of the system."""
    return shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)


_given_ports: set[int] = set()


def free_port(second: int = 0) -> int:
    """Give a port nobody listens on, and never the same one twice.

    Test processes that run side by side (pytest-xdist) get different ones: a port whose server has
    yet to start, or is away for a while, is free for all to see.

    ``second``: how far above it a port lies that has to be as free.

    It lies below the range of which the system takes ports for outgoing connections. Else, while
    a server is away, a client that keeps trying to connect could get the server's port for its
    own end, be connected with itself, and keep the server from coming back.
    """
    own = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    while True:
        port = random.randrange(10_000, 32_000 - second, 8) + own % 8
        ports = {port, port + second}
        if not ports & _given_ports and all(map(_is_free, ports)):
            _given_ports.update(ports)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
