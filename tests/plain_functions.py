"""Functions that the tests of ``in_process`` call in child processes.

This module does not import the package: a child that imports it is there in a tenth of a second.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn


class OddError(Exception):
    """Its class takes other arguments than it keeps."""

    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(f"code {code}")
        self.code, self.why = code, why


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int


class Unreadable:
    """Can be read only in the process that has written it."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return _unreadable, (os.getpid(),)


def _unreadable(pid: int) -> Unreadable:
    if pid != os.getpid():
        raise LookupError(pid)
    return Unreadable()


def add(a: int, b: int = 1, *more: int, c: int = 0) -> int:
    """Adds."""
    return a + b + sum(more) + c


def pid() -> int:
    return os.getpid()


def one_at_a_time(path: str) -> int:
    return _alone(path)


def _alone(path: str) -> int:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL))  # fails if another call is running
    time.sleep(0.02)
    Path(path).unlink()
    return os.getpid()


def hold(path: str, until: str) -> None:
    Path(path).write_text(str(os.getpid()))
    while not Path(until).exists():
        time.sleep(0.005)


def quick() -> str:
    return "quick"


def spin(path: str) -> NoReturn:
    note(path, os.getpid())
    while True:
        pass


def hold_the_gil(path: str) -> None:
    note(path, os.getpid())
    ctypes.PyDLL(None).sleep(60)


def keep_the_gil(path: str, name: str, seconds: int) -> str:
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(f"begin {name} {os.getpid()}\n")
    ctypes.PyDLL(None).sleep(seconds)
    return name


def leave_a_child(path: str) -> NoReturn:
    """A grandchild that was forked holds this process's end of the socket open."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    note(path, process.pid)
    while True:
        pass


def leave_a_child_and_end(path: str) -> NoReturn:
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    note(path, process.pid)
    os._exit(5)


def note(path: str, number: int | None) -> None:
    Path(path + ".part").write_text(str(number))
    Path(path + ".part").rename(path)


def exit_with(code: int) -> NoReturn:
    os._exit(code)


def leave(code: int) -> NoReturn:
    sys.exit(code)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def divide(a: int, b: int) -> float:
    return a / b


def fail_oddly(code: int) -> NoReturn:
    raise OddError(code, why="so")


def fail_frozen() -> NoReturn:
    raise FrozenError(3)


def fail_locally() -> NoReturn:
    class LocalError(Exception):
        pass

    raise LocalError("here")


def give(value: Any) -> Any:
    return value


def give_a_lambda() -> Any:
    return lambda: 1


def say(text: str) -> None:
    print(text)  # noqa: T201
    print(text, file=sys.stderr)  # noqa: T201
    subprocess.run(["echo", text], check=True)  # noqa: S603, S607


async def waits() -> None: ...


def yields() -> Any:
    yield 1


class Holder:
    @staticmethod
    def double(x: int) -> int:
        return 2 * x

    def method(self) -> None: ...
