"""The program of a child process, run by its path: it imports nothing of this package.

It receives one call at a time over a socket and answers each. A frame is a kind (one byte), a
length and that many bytes.
"""

from __future__ import annotations

import contextlib
import copyreg
import ctypes
import importlib
import io
import os
import pickle
import runpy
import select
import signal
import socket
import struct
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any

CALL = b"c"  # (place, main, module, qualified name, arguments by position and by name)
VALUE = b"v"  # the pickled result
RAISED = b"r"  # (pickled class, pickled arguments, pickled attributes, whole, traceback)
NOT_IMPORTED = b"i"  # why the function cannot be imported
NOT_PICKLED = b"p"  # what cannot be pickled or unpickled, and why

MAIN = "__main__"
MAIN_OF_CHILD = "__mp_main__"  # the name that multiprocessing gives the main module in its children
FUNCTION = "_in_process_function"  # the attribute of what ``in_process`` returns

_HEAD = struct.Struct("!cQ")
_SMALL = 4096
"""Bytes of a frame that are received at once."""

_PR_SET_PDEATHSIG = 1

is_loading_main = False
"""Whether the main script is being imported: a call of a child's own would start it once more."""


IsOver = Callable[[], bool]
"""Asked whenever a channel's timeout passes: whether the process at the other end is gone.

Its end may stay open nevertheless, in a child of its own.
"""


def send(channel: socket.socket, kind: bytes, content: bytes, is_over: IsOver = bool) -> None:
    """Send a frame, in one system call if it can be: between two, other threads may run for long.

    Raises ``EOFError`` if the other side is gone.
    """
    rest = [memoryview(_HEAD.pack(kind, len(content))), memoryview(content)]
    while rest:
        count = _moved(channel.sendmsg, rest, is_over)
        while rest and count >= len(rest[0]):
            count -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][count:]


def receive(channel: socket.socket, is_over: IsOver = bool) -> tuple[bytes, bytearray]:
    """Receive a frame, in one system call if it is small.

    The other side sends no second one before this is answered. Raises ``EOFError`` if it is gone.
    """
    start = bytearray(_SMALL)
    count = 0
    while count < _HEAD.size:
        count += _moved(channel.recv_into, memoryview(start)[count:], is_over)
    kind, length = _HEAD.unpack_from(start)
    content = bytearray(length)
    count -= _HEAD.size
    content[:count] = start[_HEAD.size : _HEAD.size + count]
    while count < length:
        count += _moved(channel.recv_into, memoryview(content)[count:], is_over)
    return kind, content


def _moved(move: Callable[[Any], int], data: Any, is_over: IsOver) -> int:
    while True:
        try:
            count = move(data)
        except TimeoutError:
            if not is_over():
                continue
            count = 0
        except OSError as error:
            raise EOFError from error
        if not count:
            raise EOFError
        return count


def find(module: types.ModuleType, qualified_name: str) -> Any:
    """The function that a name in a module stands for, below decorators that know what they wrap.

    ``in_process`` may be one of the decorators; without it, what has the name is the function.
    """
    found: Any = module
    for name in qualified_name.split("."):
        found = getattr(found, name)
    layer, seen = found, 0
    while layer is not None and seen < sys.getrecursionlimit():
        if (function := getattr(layer, FUNCTION, None)) is not None:
            return function
        layer, seen = getattr(layer, "original_func", getattr(layer, "__wrapped__", None)), seen + 1
    return found


def main() -> None:
    """Serve calls until the parent closes its end of the socket."""
    descriptor, parent = map(int, sys.argv[1:])
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - has no name
    _end_with_parent(parent)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # there is none
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with socket.socket(fileno=descriptor) as channel:
        _Server(channel).serve()


def _end_with_parent(parent: int) -> None:
    """Have the kernel end this process with the thread that started it, where it can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class _Server:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._is_busy = False
        self._parent_is_gone = False

    def serve(self) -> None:
        """Receive calls and run them, while a thread watches for the end of the parent."""
        threading.Thread(target=self._watch, daemon=True).start()
        with contextlib.suppress(EOFError):
            while True:
                _, content = receive(self._channel)
                self._is_busy = True
                if self._parent_is_gone:
                    return
                answer = _answer(content)
                self._is_busy = False
                send(self._channel, *answer)
                del content, answer

    def _watch(self) -> None:
        """End the process if the parent closes its end while a function runs."""
        end = select.poll()
        end.register(self._channel, select.POLLHUP)
        end.poll()
        self._parent_is_gone = True
        if self._is_busy:
            os._exit(1)  # nobody waits for the function


def _answer(content: bytearray) -> tuple[bytes, bytes]:
    """Make a call and return the frame that answers it."""
    place, main_module, module_name, qualified_name, args, kwargs = pickle.loads(content)  # noqa: S301 - of the parent
    sys.path[:], directory, sys.argv[:] = place
    try:
        os.chdir(directory)
        function = _import(main_module, module_name, qualified_name)
    except Exception as error:
        traceback.print_exc()
        return NOT_IMPORTED, _described(error).encode()
    try:
        by_position = [_load(label, content) for label, content in args]
        by_name = {name: _load(repr(name), content) for name, content in kwargs.items()}
    except _PickleError as error:
        return NOT_PICKLED, str(error).encode()
    try:
        result = function(*by_position, **by_name)
    except Exception as error:
        return _raised(error)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or none
                stream.flush()
    try:
        return VALUE, pickled(result)
    except Exception as error:
        kind = type(result)
        what = f"its result, a {kind.__module__}.{kind.__qualname__}, cannot be pickled"
        return NOT_PICKLED, f"{what} ({_described(error)})".encode()


def pickled(value: Any) -> bytes:
    """A value for ``pickle.loads``. Arrays keep their byte order: NumPy gives them its own."""
    array = getattr(sys.modules.get("numpy"), "ndarray", None)
    if array is None:
        return pickle.dumps(value, 5)
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 5)
    pickler.dispatch_table = {**copyreg.dispatch_table, array: _reduced_array}
    pickler.dump(value)
    return file.getvalue()


def _reduced_array(array: Any) -> Any:
    if array.dtype.isnative or array.dtype.hasobject:
        return array.__reduce_ex__(5)
    native = array.view(array.dtype.newbyteorder("="))  # the same bytes, which pickle leaves alone
    return type(array).view, (native, array.dtype)


class _PickleError(Exception):
    pass


def _load(label: str, content: bytes) -> Any:
    try:
        return pickle.loads(content)  # noqa: S301 - of the parent
    except Exception as error:
        raise _PickleError(
            f"argument {label} cannot be unpickled in its process ({_described(error)}); a class "
            "must be importable there, so not defined in the main script"
        ) from error


def _import(main_module: tuple[str, str] | None, module_name: str, qualified_name: str) -> Any:
    if main_module is not None and MAIN_OF_CHILD not in sys.modules:
        _load_main(*main_module)
    return find(importlib.import_module(module_name), qualified_name)


def _load_main(kind: str, where: str) -> None:
    """Import the parent's main module, as multiprocessing does: its guard does not hold here."""
    global is_loading_main  # noqa: PLW0603 - read by ``in_process`` in this process
    module = types.ModuleType(MAIN_OF_CHILD)
    run = runpy.run_path if kind == "path" else runpy.run_module
    is_loading_main = True
    try:
        names = run(where, run_name=MAIN_OF_CHILD)
    finally:
        is_loading_main = False
    vars(module).update(names)
    sys.modules[MAIN] = sys.modules[MAIN_OF_CHILD] = module


def _raised(error: Exception) -> tuple[bytes, bytes]:
    """The frame for an exception. Its class, arguments and attributes are pickled one by one.

    ``whole``: whether its own way of pickling restores it; the class is not called otherwise.
    """
    below = error.__traceback__ and error.__traceback__.tb_next  # without our own frame
    text = "".join(traceback.format_exception(type(error), error, below))
    try:
        whole = _restorable(error)
        parts = error if whole else (type(error), error.args, vars(error))
        return RAISED, pickle.dumps((whole, pickled(parts), text), 5)
    except Exception as reason:
        what = f"it raised {_described(error)}, which cannot be pickled"
        return NOT_PICKLED, f"{what} ({_described(reason)}):\n{text}".encode(errors="replace")


def _restorable(error: Exception) -> bool:
    try:
        copy = pickle.loads(pickle.dumps(error, 5))  # noqa: S301 - made here
        return type(copy) is type(error) and bool(copy.args == error.args)
    except Exception:  # its class takes other arguments than it has kept
        return False


def _described(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


if __name__ == "__main__":
    main()
