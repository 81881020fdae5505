"""Commands and scripts in processes of their own, several at once.

To import the package takes longer than most of them take to run. So one interpreter does it, and
each has a copy of that.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[1]

SECONDS = 60
"""How long a process may take before it is killed, by SIGALRM."""


@dataclass(frozen=True)
class Done:
    """How a process has ended, and what it has written."""

    code: int
    output: str
    errors: str

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()


class Command:
    """A process that was started. ``files``: where it writes to, unless that is elsewhere."""

    def __init__(self, commands: Commands, pid: int, files: tuple[Path, Path]) -> None:
        self._commands = commands
        self.pid = pid
        self._files = files

    def wait(self) -> Done:
        """Wait until it has ended."""
        code = self._commands.ask({"wait": self.pid})
        return Done(code, self.output, self.errors)

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._files[0].read_text("utf-8")

    @property
    def errors(self) -> str:
        """What it has written so far to standard error."""
        return self._files[1].read_text("utf-8")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def until(self, is_so: Callable[[], object]) -> None:
        """Wait until something is so that it does."""
        deadline = time.monotonic() + SECONDS
        while not is_so():
            assert time.monotonic() < deadline, self.errors
            time.sleep(0.005)


class Commands:
    """The interpreter that the processes are copies of. A context; at its end nothing is left."""

    WARNINGS: tuple[str, ...] = ("-W", "error", "-W", "default::UserWarning")
    """Those for users are shown by the commands."""

    SERVER = """
from tests.commands import next_command
from taskiq_flow.cli.app import main
import taskiq_flow.listeners.terminal, tests.cli.flows
main(next_command())
"""

    def __enter__(self) -> Self:
        self._count = 0
        self._folder = tempfile.TemporaryDirectory()
        self._server = subprocess.Popen(  # noqa: S603 - this interpreter
            [sys.executable, "-X", "utf8", *self.WARNINGS, "-c", self.SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()  # it ends when nobody asks it for more
        self._folder.cleanup()

    def start(
        self,
        *arguments: str,
        cwd: Path,
        stdin: str = os.devnull,
        stdout: str | None = None,
        terminal: str | None = None,
        env: Mapping[str, str | None] | None = None,
        encoding: str = "utf-8",
    ) -> Command:
        """Start a process. ``terminal``: the path of one that it has in place of its files."""
        self._count += 1
        folder = Path(self._folder.name)
        output, errors = (folder / f"{name}-{self._count}" for name in ("output", "errors"))
        output.touch()
        errors.touch()
        files = [stdin, stdout or str(output), str(errors)]
        pid = self.ask(
            {
                "arguments": arguments,
                "cwd": str(cwd),
                "files": [terminal] * 3 if terminal else files,
                "env": env or {},
                "encoding": encoding,
            }
        )
        return Command(self, pid, (output, errors))

    def run(self, *arguments: str, cwd: Path, stdin: str = os.devnull, **more: str) -> Done:
        """Run a process to its end."""
        return self.start(*arguments, cwd=cwd, stdin=stdin, **more).wait()  # type: ignore[arg-type]

    def ask(self, request: Mapping[str, object]) -> int:
        """What the interpreter answers."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        try:
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            return int(self._server.stdout.readline())
        except BaseException:  # the test's time is up; the answer is not the next test's
            self._server.kill()
            self.__exit__()
            self.__enter__()
            raise


class Scripts(Commands):
    """The first argument is a script, for ``__main__`` of ``python -X utf8 -W error -c``."""

    WARNINGS = ("-W", "error")

    SERVER = """
import taskiq_flow
del taskiq_flow
exec(__import__("tests.commands").commands.next_script())
"""

    def output(self, code: str, *arguments: str, cwd: Path) -> str:
        """What a script prints that must succeed."""
        done = self.run(code, *arguments, cwd=cwd)
        assert done.code == 0, done.errors
        return done.output


def next_script() -> str:
    """In the server of scripts: the one that the copy executes, which sees its arguments."""
    code, *sys.argv[1:] = next_command()
    return code


def next_command() -> list[str]:
    """In the server: serve until it is forked. Returns the arguments to the copy."""
    gc.freeze()  # a copy that ends would collect, and so copy, all of the memory that it shares
    for line in sys.stdin:
        request = json.loads(line)
        if (waited := request.get("wait")) is not None:
            _, status = os.waitpid(waited, 0)
            _tell(os.waitstatus_to_exitcode(status))
            continue
        pid = os.fork()
        if not pid:
            return _begin(**request)
        _tell(pid)
    sys.exit()


def _tell(number: int) -> None:
    print(number, flush=True)  # noqa: T201 - read by Commands


def _begin(
    arguments: Sequence[str],
    cwd: str,
    files: Sequence[str],
    env: Mapping[str, str | None],
    encoding: str,
) -> list[str]:
    """Make the copy look like a process of the command's own."""
    signal.alarm(SECONDS)
    # Tests in the background ignore one, and tests that outlive their terminal the other.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.chdir(cwd)
    for name, value in env.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    for number, path in enumerate(files):
        flags = os.O_RDWR if path.startswith("/dev/") else os.O_RDONLY
        if number and not path.startswith("/dev/"):
            flags = os.O_WRONLY | os.O_CREAT
        file = os.open(path, flags | os.O_NOCTTY, 0o600)
        os.dup2(file, number)
        os.close(file)
    for stream in (sys.stdout, sys.stderr) if encoding != "utf-8" else ():
        stream.reconfigure(encoding=encoding)  # type: ignore[union-attr]
    return list(arguments)
