"""Child processes, each with a thread that starts it, hands it calls, and ends it.

The kernel ends a child with the thread that started it (``PR_SET_PDEATHSIG``), so this thread lives
as long as its child.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

from taskiq_flow.errors import ConfigurationError, SerializationError, TaskLostError
from taskiq_flow.processes import child_main

IDLE_SECONDS = 10.0
"""Seconds after which a child without a call is ended."""

LOOK_SECONDS = 0.5
"""Seconds between two looks whether a child is alive whose end of the socket stays open."""


class _RemoteTracebackError(Exception):
    """The traceback of an exception in its own process, as text: the cause of the one raised."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


EXIT_SECONDS = 1.0
"""Seconds that a child without a call has to end by itself."""

Settle = Callable[[Any, BaseException | None], None]
"""Called with a call's value, or with its error."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function in a child. ``main``: the main module, if the child must import it."""

    module: str
    qualified_name: str
    main: tuple[str, str] | None
    args: list[tuple[str, Any]]  # with the names of the parameters
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        """The function, for messages."""
        return f"{self.module}:{self.qualified_name}"

    def content(self) -> bytes:
        """The call as a child is sent it, with the search path, the directory and the arguments."""
        args = [(repr(name), self._pickled(name, value)) for name, value in self.args]
        kwargs = {name: self._pickled(name, value) for name, value in self.kwargs.items()}
        place = (sys.path, os.getcwd(), sys.argv)  # noqa: PTH109 - plain text
        return pickle.dumps((place, self.main, self.module, self.qualified_name, args, kwargs), 5)

    def _pickled(self, name: str, value: Any) -> bytes:
        try:
            return pickle.dumps(value, 5)
        except Exception as error:  # of the value's own methods, too
            raise SerializationError(
                f"in_process: argument {name!r} of {self.name}, a {type(value).__module__}."
                f"{type(value).__qualname__}, cannot be pickled ({error}); pass what it is made "
                "from, and make it in the function",
                key=name,
                value_type=type(value),
            ) from error

    def result(self, kind: bytes, content: bytes | bytearray) -> Any:
        """The value that a child has answered. Raises what the function has raised."""
        if kind == child_main.VALUE:
            return self._unpickled(content)
        if kind == child_main.RAISED:
            whole, pickled, text = pickle.loads(content)  # noqa: S301 - from our own child
            raise _restored(self._unpickled(pickled), whole=whole) from _RemoteTracebackError(text)
        if kind == child_main.NOT_IMPORTED:
            raise ConfigurationError(
                f"in_process: {self.name} cannot be imported by its process ({content.decode()}); "
                "define it under this name at the top of a module that any process can import"
            )
        raise SerializationError(f"in_process: {self.name}: {content.decode()}")

    def _unpickled(self, content: bytes | bytearray) -> Any:
        try:
            return pickle.loads(content)  # noqa: S301 - from our own child
        except Exception as error:
            raise SerializationError(
                f"in_process: what {self.name} returned or raised cannot be unpickled ({error})"
            ) from error


def _restored(parts: Any, *, whole: bool) -> BaseException:
    if whole:
        error: BaseException = parts
    else:
        kind, args, attributes = parts
        error = kind.__new__(kind, *args)
        error.args = args
        vars(error).update(attributes)
    return error


_Handed = tuple[Call, Settle]


class Child:
    """A child process and its thread. It runs one call at a time."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[_Handed] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.is_ended = False
        self._settle: Settle | None = None  # of the present call
        self._process: subprocess.Popen[bytes] | None = None
        self._ours: socket.socket | None = None
        _all_children.add(self)

    def start(self) -> None:
        """Start the thread, which starts the process."""
        threading.Thread(target=self._work, name="in_process", daemon=True).start()

    def hand(self, call: Call, settle: Settle) -> None:
        """Have the child make a call.

        ``settle`` is called in the thread, when the child is free again or its process has ended.
        """
        with self._lock:
            self._settle = settle
        self._calls.put((call, settle))

    def end(self, settle: Settle) -> None:
        """Kill the process, or have it killed as soon as it has been started.

        Nothing happens if the call with this ``settle`` is over: the child may have another one.
        """
        with self._lock:
            if self._settle is settle:
                self.is_ended = True
                self._kill()

    def forget(self) -> None:
        """In a forked process, whose child it is not: close our end, and leave it alone."""
        if self._ours is not None:
            self._ours.close()
        if self._process is not None:
            self._process.returncode = 0  # no child of this process

    def _kill(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        if self._ours is not None:
            with contextlib.suppress(OSError):  # the child is gone
                self._ours.shutdown(socket.SHUT_RDWR)

    def _work(self) -> None:
        """Start the process, hand it calls until it has had none for a while, and end it."""
        try:
            following: _Handed | None = self._calls.get()
            while following is not None and self._serve(*following):
                following = None  # neither it nor its arguments are needed while the child is idle
                following = self._next()
        finally:
            self._reap()

    def _serve(self, call: Call, settle: Settle) -> bool:
        """Make one call. Returns whether the child can be given another one."""
        value: Any = None
        error: BaseException | None = None
        is_lost = False
        try:
            content = call.content()
            channel = self._ours or self._start()
            child_main.send(channel, child_main.CALL, content, self._is_over)
            value = call.result(*child_main.receive(channel, self._is_over))
        except EOFError:
            is_lost = True
            error = _lost(call, self._reap())
        except BaseException as raised:
            error = raised
        with self._lock:
            self._settle = None
            can_go_on = not (is_lost or self.is_ended or self._process is None)
        if can_go_on:
            _pool.free(self)
        else:
            self._reap()
        settle(value, error)
        return can_go_on

    def _next(self) -> _Handed | None:
        try:
            return self._calls.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            # Whoever has taken the child from the pool by now is about to hand it a call.
            return None if _pool.remove(self) else self._calls.get()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            ours.settimeout(LOOK_SECONDS)
            program = [sys.executable, *_flags(), str(Path(child_main.__file__))]
            process = subprocess.Popen(  # noqa: S603 - this interpreter, with a file of ours
                [*program, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # ended with the processes that it starts itself
            )
        with self._lock:
            self._process, self._ours = process, ours
            if self.is_ended:  # while it was being started
                self._kill()
        return ours

    def _is_over(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _reap(self) -> int:
        """Have the process end, and return its exit code; 0 if it was never started."""
        if self._process is None or self._ours is None:
            return 0
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        try:
            code = self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            code = self._process.wait()
        self._ours.close()
        return code


def _flags() -> list[str]:
    """The interpreter's own options, such as ``-O`` and ``-W``, as multiprocessing passes them."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # noqa: SLF001 - nothing public has them
    return flags


def _lost(call: Call, code: int) -> TaskLostError:
    how = f"exit code {code}"
    if code < 0:
        with contextlib.suppress(ValueError):
            how = f"exit code {code}, {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        how += ": killed, perhaps as memory ran out"
    return TaskLostError(f"in_process: the process of {call.name} ended during the call ({how})")


class _Pool:
    """The children of this process that have no call."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[Child] = []

    def take(self) -> Child:
        """A child without a call, a new one if there is none."""
        with self.lock:
            child = self.idle.pop() if self.idle else None
        if child is None:
            child = Child()
            child.start()
        return child

    def free(self, child: Child) -> None:
        """The child has no call any more."""
        with self.lock:
            self.idle.append(child)

    def remove(self, child: Child) -> bool:
        """Keep the child from being taken. Returns ``False`` if it has been taken."""
        with self.lock:
            if child in self.idle:
                self.idle.remove(child)
                return True
            return False


class Places:
    """How many calls may run at a time. Not bound to an event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.reset()
        _all_places.add(self)

    def reset(self) -> None:
        """All places are free and nobody waits: in a forked process."""
        self._lock = threading.Lock()
        self._free = self._limit
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    async def take(self) -> None:
        """Wait for a place, in the order of the calls."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._free:
                self._free -= 1
                return
            self._waiting[place] = None
        try:
            await place
        except BaseException:
            with self._lock:
                is_waiting = self._waiting.pop(place, self) is None
            if not is_waiting and place.done() and not place.cancelled():
                self.give_back()
            raise

    def give_back(self) -> None:
        """Free a place, from any thread: the first that waits gets it."""
        with self._lock:
            while self._waiting:
                place, _ = self._waiting.popitem(last=False)
                with contextlib.suppress(RuntimeError):  # its event loop is closed
                    place.get_loop().call_soon_threadsafe(self._hand, place)
                    return
            self._free += 1

    def _hand(self, place: asyncio.Future[None]) -> None:
        if place.done():  # cancelled meanwhile
            self.give_back()
        else:
            place.set_result(None)


async def run(call: Call, places: Places) -> Any:
    """Make a call that has a place, and give the place back when its process is free or ended.

    Cancelling it kills the process.
    """
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    settle = functools.partial(_settle_from_thread, answer, places)
    child = _pool.take()
    child.hand(call, settle)
    try:
        return await answer
    except BaseException:
        child.end(settle)
        raise
    finally:
        del answer, settle  # an error's traceback would refer to it, and it to the error


def _settle_from_thread(
    answer: asyncio.Future[Any], places: Places, value: Any, error: BaseException | None
) -> None:
    places.give_back()
    with contextlib.suppress(RuntimeError):  # the event loop is closed
        answer.get_loop().call_soon_threadsafe(_settle, answer, value, error)


def _settle(answer: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if answer.done():  # cancelled
        return
    if error is None:
        answer.set_result(value)
    else:
        answer.set_exception(error)


_all_places: WeakSet[Places] = WeakSet()
_pool = _Pool()


def _forget_children() -> None:
    for child in _all_children:
        child.forget()
    _pool.__init__()  # type: ignore[misc] # with a lock that no thread of the parent holds
    for places in _all_places:
        places.reset()


_all_children: WeakSet[Child] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_children)
