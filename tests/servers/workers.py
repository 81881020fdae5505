"""Worker processes of taskiq, started by its own command."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers.process import Process, Started, children

REPOSITORY = Path(__file__).parents[2]

LOG_FORMAT = "[%(asctime)s][%(process)d][%(name)s][%(levelname)s] %(message)s"
WITHOUT_UVLOOP = """\
import sys
sys.modules["uvloop"] = None
sys.argv[0] = "taskiq"
from taskiq.__main__ import main
main()"""
"""The command ``taskiq`` as where uvloop is not installed."""

LISTENING = re.compile(r"^\[[^]]*\]\[(\d+)\].* Listening started\.$", re.MULTILINE)


class Workers(Started):
    """A `taskiq worker`: a manager process, and child processes which it replaces if they die.

    ``on_uvloop``: whether they run on uvloop, as they do where that is installed.
    """

    start_timeout = 60.0

    def __init__(
        self,
        broker: str,
        *,
        folder: Path,
        processes: int = 1,
        max_async_tasks: int = 100,
        max_threadpool_threads: int = 4,
        env: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        on_uvloop: bool = False,
        cwd: Path = REPOSITORY,
    ) -> None:
        self.processes = processes
        self.folder = folder
        self._env = {**os.environ, **(env or {})}
        self._cwd = cwd
        command = ("-m", "taskiq") if on_uvloop else ("-c", WITHOUT_UVLOOP)
        self._command = [
            *(sys.executable, *command, "worker", broker),
            *("--workers", str(processes)),
            *("--max-async-tasks", str(max_async_tasks)),
            *("--max-threadpool-threads", str(max_threadpool_threads)),
            *("--log-level", "INFO", "--log-format", LOG_FORMAT),
            *arguments,
        ]
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        """The manager process, which must have been started."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def pids(self) -> list[int]:
        """The pids of the child processes there are now."""
        return children(self.process.pid)

    def start(self) -> None:
        """Start the workers and return when all of them listen."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "workers.log"
        self._process = Process(self._command, log=log, env=self._env, cwd=self._cwd)
        self._process.start()
        try:
            self.wait_for_processes(self.processes, self.start_timeout)
        except BaseException:
            self.kill()
            raise

    def wait_for_processes(self, count: int, timeout: float = start_timeout) -> None:
        """Wait until this many child processes are there and listen."""
        self.process.wait_until(
            lambda: len(self._listening()) == count,
            f"{count} worker processes listen",
            timeout,
        )

    def stop(self) -> None:
        """Have the workers finish what they do and end.

        A worker with nothing to do sees the signal only when its event loop next wakes, which
        over Redis takes up to five seconds; where the end does not matter, kill them.
        """
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """Kill the manager and its children at once."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def kill_one(self) -> int:
        """Kill one child process, which the manager will replace, and give its pid."""
        pid = self.pids[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def suspend(self) -> None:
        """Have the manager and its children hang."""
        self.process.suspend()

    def resume(self) -> None:
        """Have suspended workers go on."""
        self.process.resume()

    def log(self) -> str:
        """What the workers have written since their latest start."""
        return self.process.log_since_start()

    def _listening(self) -> set[int]:
        listening = {int(pid) for pid in LISTENING.findall(self.log())}
        return listening & set(self.pids) if listening else listening
