"""Scripts, each in a process that is forked from one which has imported the package.

To import the package takes longer than most scripts take to run. So one interpreter does it, and
each script has a copy of that: ``__main__`` of ``python -X utf8 -W error -c``, with nothing in it.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[1]

SECONDS = 60
"""How long a script may run before it is killed, by SIGALRM."""

SERVER = """
import taskiq_flow
del taskiq_flow
exec(__import__("tests.scripts").scripts.next_script())
"""


class Scripts:
    """The interpreter that the scripts are copies of. A context; at its end nothing is left."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(  # noqa: S603 - this interpreter
            [sys.executable, "-X", "utf8", "-W", "error", "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()  # it ends when nobody asks it for more

    def run(self, code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a script to its end, with ``arguments`` behind ``-c`` in ``sys.argv``."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            output, errors = Path(folder) / "output", Path(folder) / "errors"
            request = [code, arguments, str(cwd), str(output), str(errors)]
            try:
                self._server.stdin.write(json.dumps(request) + "\n")
                self._server.stdin.flush()
                code_of_exit = int(self._server.stdout.readline())
            except BaseException:  # the test's time is up; the answer is not the next script's
                self._server.kill()
                self.__exit__()
                self.__enter__()
                raise
            texts = output.read_text("utf-8"), errors.read_text("utf-8")
        return subprocess.CompletedProcess(["-c", code, *arguments], code_of_exit, *texts)

    def output(self, code: str, *arguments: str, cwd: Path) -> str:
        """What a script prints that must succeed."""
        done = self.run(code, *arguments, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout


def next_script() -> str:
    """In the server: serve until it is forked. Returns the script to the copy."""
    gc.freeze()  # a copy that ends would collect, and so copy, all of the memory that it shares
    for line in sys.stdin:
        script = os.fork()
        if not script:
            return _begin(*json.loads(line))
        _, status = os.waitpid(script, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201 - read by Scripts
    sys.exit()


def _begin(code: str, arguments: list[str], cwd: str, output: str, errors: str) -> str:
    """Make the copy look like a process of the script's own."""
    signal.alarm(SECONDS)
    writing = os.O_WRONLY | os.O_CREAT
    for number, (path, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), (output, writing), (errors, writing)]
    ):
        file = os.open(path, flags, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    sys.argv[1:] = arguments
    return code
