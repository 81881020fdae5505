"""Child processes, each with a thread that starts it, hands it calls, and ends it.

The kernel ends a child with the thread that started it (``PR_SET_PDEATHSIG``), so this thread lives
as long as its child.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from taskiq_flow.giving_way import give_way
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
            return child_main.pickled(value)
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
            pickled, text = pickle.loads(content)  # noqa: S301 - from our own child
            raise _restored(self._unpickled(pickled)) from _RemoteTracebackError(text)
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


def _restored(parts: Any) -> BaseException:
    if isinstance(parts, BaseException):
        return parts
    kind, args, attributes = parts
    error: BaseException = kind.__new__(kind, *args)
    BaseException.__setattr__(error, "args", args)  # the class may allow no changes
    vars(error).update(attributes)
    return error


@dataclass(eq=False, slots=True)
class Job:
    """A call that waits for a place, or has one.

    ``begun``: called in the child's thread when the call has its place.
    """

    call: Call
    places: Places
    answer: asyncio.Future[Any]
    begun: Callable[[], None] | None
    child: Child | None = None

    def is_over(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.answer.done() or self.answer.get_loop().is_closed()

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Give the event loop the value, or the error. Called in the child's thread."""
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self.answer.get_loop().call_soon_threadsafe(_settle, self.answer, value, error)


class Child:
    """A child process and its thread. It runs one call at a time."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.is_ended = False
        self._job: Job | None = None  # the present one
        self._process: subprocess.Popen[bytes] | None = None
        self._ours: socket.socket | None = None
        _all_children.add(self)

    def start(self) -> None:
        """Start the thread, which starts the process."""
        threading.Thread(target=self._work, name="in_process", daemon=True).start()

    def hand(self, job: Job) -> None:
        """Have the child make a call."""
        with self._lock:
            self._job = job
        job.child = self
        self._jobs.put(job)

    def end(self, job: Job) -> None:
        """Kill the process, or have it killed as soon as it has been started.

        Nothing happens if this call is over: the child may have another one.
        """
        with self._lock:
            if self._job is job:
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
            job: Job | None = self._jobs.get()
            while job is not None and self._serve(job):
                job = None  # neither it nor its arguments are needed while the child is idle
                job = self._next()
        finally:
            self._reap()

    def _serve(self, job: Job) -> bool:
        """Make one call. Returns whether the child can be given another one."""
        value: Any = None
        error: BaseException | None = None
        is_lost = False
        try:
            if job.begun is not None:
                job.begun()
            content = job.call.content()
            channel = self._ours or self._start()
            child_main.send(channel, child_main.CALL, content, self._is_over)
            value = job.call.result(*child_main.receive(channel, self._is_over))
        except EOFError:
            is_lost = True
            error = _lost(job.call, self._reap())
        except BaseException as raised:
            error = raised
        with self._lock:
            self._job = None
            can_go_on = not (is_lost or self.is_ended or self._process is None)
        if not can_go_on:
            self._reap()
        job.places.give_back(self if can_go_on else None)
        job.settle(value, error)
        return can_go_on

    def _next(self) -> Job | None:
        try:
            return self._jobs.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            # Whoever has taken the child from the pool by now is about to hand it a call.
            return None if _pool.remove(self) else self._jobs.get()

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
        self._waiting: OrderedDict[Job, None] = OrderedDict()

    def enter(self, job: Job) -> None:
        """Have a child make a call as soon as there is a place, in the order of the calls."""
        with self._lock:
            if not self._free:
                self._waiting[job] = None
                return
            self._free -= 1
            _pool.take().hand(job)

    def leave(self, job: Job) -> None:
        """Nobody waits for this call any more. If it runs, its process is killed."""
        with self._lock:
            waits = self._waiting.pop(job, self) is None
        if not waits and job.child is not None:
            job.child.end(job)

    def give_back(self, child: Child | None) -> None:
        """A call is over: the first that waits gets its place, and its child.

        ``child``: ``None`` if it cannot make another call. Its thread hands it the next one itself,
        without waiting for an event loop.
        """
        with self._lock:
            while self._waiting:
                job, _ = self._waiting.popitem(last=False)
                if not job.is_over():
                    (child or _pool.take()).hand(job)
                    return
            if child is not None:
                _pool.free(child)
            self._free += 1


async def run(call: Call, places: Places, begun: Callable[[], None] | None) -> Any:
    """Make a call as soon as it has a place. Cancelling it kills the process.

    ``begun``: called from a thread when it has its place.
    """
    job = Job(call, places, asyncio.get_running_loop().create_future(), begun)
    give_way(job.answer)
    places.enter(job)
    try:
        return await job.answer
    except BaseException:
        places.leave(job)
        raise
    finally:
        del job  # an error's traceback would refer to it, and it to the error


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
