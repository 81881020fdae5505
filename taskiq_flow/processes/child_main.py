"""The program of a child process, run by its path: it imports nothing of this package.

It receives one call at a time over a socket and answers each. A frame is a kind (one byte), a
length and that many bytes.
"""

from __future__ import annotations

import contextlib
import copyreg
import ctypes
import functools
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
from collections import deque
from collections.abc import Callable
from typing import Any

CALL = b"c"  # (place, main, module, qualified name, arguments by position and by name)
VALUE = b"v"  # the pickled result
RAISED = b"r"  # (the pickled exception, or its class, arguments and attributes; traceback)
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
    """A value for ``pickle.loads``. Arrays keep their byte order: NumPy gives them its own.

    Raises ``pickle.PicklingError`` for a value that would come back as another one, and whatever
    its own methods raise.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    content = file.getvalue()
    if pickler.is_doubtful:
        check_read_back(value, lambda: pickle.loads(content))  # noqa: S301 - made here
    return content


class _Pickler(pickle.Pickler):
    """``is_doubtful``: whether the class of what was pickled has a say in how it comes back."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, 5)
        self.is_doubtful = False
        self._array = getattr(sys.modules.get("numpy"), "ndarray", None)
        self._reductions: dict[type, Callable[[Any], Any] | None] = {}

    def reducer_override(self, value: Any) -> Any:
        """How an object is pickled; ``NotImplemented`` for its own way."""
        kind = type(value)
        try:
            reduction = self._reductions[kind]
        except KeyError:
            reduction = self._reductions[kind] = self._reduction_of(kind)
        return NotImplemented if reduction is None else reduction(value)

    def _reduction_of(self, kind: type) -> Callable[[Any], Any] | None:
        if kind is self._array:
            return _reduced_array
        is_error = issubclass(kind, BaseException)
        trusted = _BUILTINS if is_error else _TRUSTED
        is_collection = issubclass(kind, (list, dict, set, frozenset, deque))
        names = (*_OWN_WAY, *_RESTORING, *(_OF_COLLECTIONS if is_collection else ()))
        self.is_doubtful |= _defines(kind, names, trusted)
        return _reduced_error if is_error and not _defines(kind, _OWN_WAY, trusted) else None


_OWN_WAY = ("__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")
_RESTORING = ("__new__", "__getnewargs__", "__getnewargs_ex__", "__setattr__")
_OF_COLLECTIONS = ("append", "extend", "__setitem__", "__iter__", "items")
"""The methods that have a say in what pickle writes, and in what it makes of that."""

_BUILTINS = frozenset({"builtins"})
_TABLES = frozenset({"numpy", "pandas", "polars", "pyarrow"})
_TRUSTED = frozenset({*sys.stdlib_module_names, *_TABLES, "attr", "pydantic"})
"""Packages whose ways of pickling are known to be right."""


def _defines(kind: type, names: tuple[str, ...], trusted: frozenset[str]) -> bool:
    """Whether a class has one of these methods from a package that is not among ``trusted``."""
    others = [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in trusted]
    found = ((base, name) for base in others for name in names if name in vars(base))
    return not all(_is_generated(kind, base, name, trusted) for base, name in found)


def _is_generated(kind: type, base: type, name: str, trusted: frozenset[str]) -> bool:
    """Whether a package gave a class a method, as to each enumeration and named tuple."""
    if name == "__setattr__":  # of a frozen dataclass: pickle calls it for slots only
        has_slots = any(vars(each).get("__slots__") for each in kind.__mro__)
        is_frozen = getattr(vars(base).get("__dataclass_params__"), "frozen", False)
        if is_frozen and trusted is _TRUSTED:
            return not has_slots or hasattr(kind, "__setstate__")
    method = vars(base)[name]
    module = str(getattr(getattr(method, "__func__", method), "__module__", ""))
    is_of_tuple = module.startswith("namedtuple_") and issubclass(base, tuple)
    return is_of_tuple or module.partition(".")[0] in trusted


def _reduced_array(array: Any) -> Any:
    if array.dtype.isnative or array.dtype.hasobject:
        return array.__reduce_ex__(5)
    native = array.view(array.dtype.newbyteorder("="))  # the same bytes, which pickle leaves alone
    return type(array).view, (native, array.dtype)


def _reduced_error(error: BaseException) -> Any:
    """An exception with its cause, to be made without ``__init__``.

    Pickle calls the class with the arguments that the exception has kept, and it may take others.
    """
    state: dict[str, Any] = {"__cause__": error.__cause__, "args": error.args}
    for base in type(error).__mro__:
        is_builtin = base.__module__ == "builtins"
        for name, place in vars(base).items():
            if not isinstance(place, types.MemberDescriptorType) or not hasattr(error, name):
                continue
            content = getattr(error, name)
            # An exception group is made with its members. Those of the interpreter's that are
            # ``None`` were not set, and ``obj`` of an ``AttributeError`` may be anything.
            is_left_out = issubclass(base, BaseExceptionGroup) or content is None or name == "obj"
            if not (is_builtin and is_left_out):
                state[name] = content
    own = (type(error), *error.args)
    return copyreg.__newobj__, own, {**state, **vars(error)}  # type: ignore[attr-defined]


def check_read_back(value: Any, read: Callable[[], Any]) -> None:
    """Raise ``pickle.PicklingError`` if what is read back of a value is not the same.

    What an object leaves out that says itself what it is made of is not missed, unless its class
    says that the two are not equal.
    """
    copy = _read_back(value, read)
    # It counts if two copies are equal: those of an object with a NaN, say, are not.
    if _difference(value, copy, copy) and (
        difference := _difference(value, copy, _read_back(value, read))
    ):
        raise pickle.PicklingError(difference)


def _read_back(value: Any, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the value's own methods raise
        text = f"a {_named(value)} does not come back: {_described(error)}"
        raise pickle.PicklingError(text) from error


def _difference(value: Any, copy: Any, other: Any) -> str:
    """What is not the same in a copy; empty if all is. ``other``: one more copy, or the same."""
    pending = [(value, copy, other)]
    seen: dict[int, Any] = {}  # by id; a part keeps its id from others
    while pending:
        part, copy, other = pending.pop()
        if part is copy or id(part) in seen:
            continue
        seen[id(part)] = part
        if type(copy) is not type(part):
            return f"a {_named(part)} comes back as a {_named(copy)}"
        parts = _parts(part)
        if parts is None:
            if _differs(part, copy) and (copy is other or not _differs(copy, other)):
                return f"a {_named(part)} comes back as a different one"
            continue
        of_copy = _parts(copy) or []
        if len(parts) != len(of_copy):
            return f"a {_named(part)} comes back with other parts"
        of_other = of_copy if copy is other else _parts(other) or []
        if len(of_other) != len(of_copy):
            of_other = of_copy
        for each in zip(parts, of_copy, of_other, strict=True):
            kind = type(each[0])  # most parts are scalars: they are compared here, in less time
            if kind not in _SCALARS or kind is not type(each[1]) or each[0] != each[1]:
                pending.append(each)
    return ""


_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes})


def _parts(value: Any) -> list[Any] | None:
    """What a value is made of; ``None`` for one that can be compared as a whole only."""
    if isinstance(value, BaseException):
        # What is called to make it again may keep other arguments: pydantic's errors have none.
        is_made = _defines(type(value), _OWN_WAY, _BUILTINS)
        said = str(value) if is_made else value.args
        return [said, value.__cause__, vars(value)]
    for collection in (list, tuple, deque):
        if isinstance(value, collection):
            iterate: Any = collection.__iter__  # its own may have been replaced
            return [*iterate(value)]
    if isinstance(value, dict):
        return [*dict.keys(value), *dict.values(value)]
    kind: Any = type(value)
    names = _compared_names(kind)
    return None if names is None else [getattr(value, name, None) for name in names]


@functools.lru_cache(maxsize=256)
def _compared_names(kind: Any) -> tuple[str, ...] | None:
    """The attributes by which objects of a class are compared, such as fields of a dataclass."""
    fields = getattr(kind, "__dataclass_fields__", {})
    of_attrs = getattr(kind, "__attrs_attrs__", ())
    names = [f.name for f in fields.values() if f.compare] + [f.name for f in of_attrs if f.eq]
    if names or kind.__module__.partition(".")[0] in _TABLES:
        return tuple(names)
    is_set = issubclass(kind, (set, frozenset))
    is_whole = is_set or kind.__module__ == "builtins" or _defines(kind, _OWN_WAY, _TRUSTED)
    return None if is_whole else ("__dict__",)


def _differs(value: Any, copy: Any) -> bool:
    kind: Any = type(value)
    if isinstance(value, (set, frozenset)):
        value, copy = ({*map(_told, frozenset(each))} for each in (value, copy))
    elif kind.__eq__ is object.__eq__:
        return False
    try:
        return bool(value == value) and not value == copy  # noqa: PLR0124, SIM201
    except Exception:  # the answers of arrays, say, are neither true nor false
        return False


def _told(element: Any) -> Any:
    """What can be told of an element of a set. Others may be equal to themselves only."""
    kind = type(element)
    return element if kind in _SCALARS and element == element else kind  # noqa: PLR0124


def _named(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


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
    """The frame for an exception: itself if that can be pickled, or its class and what it has."""
    below = error.__traceback__ and error.__traceback__.tb_next  # without our own frame
    text = "".join(traceback.format_exception(type(error), error, below))
    try:
        # The parent puts the text in its place. The class may allow no changes.
        BaseException.__setattr__(error, "__cause__", None)
        try:
            content = pickled(error)
        except Exception:  # its class has a way of its own, which does not restore it
            content = pickled((type(error), error.args, vars(error)))
        return RAISED, pickle.dumps((content, text), 5)
    except Exception as reason:
        what = f"it raised {_described(error)}, which cannot be pickled"
        return NOT_PICKLED, f"{what} ({_described(reason)}):\n{text}".encode(errors="replace")


def _described(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


if __name__ == "__main__":
    main()
