"""Finds the node that changes a value which others hold, in a run with ``values="shared"``."""

from __future__ import annotations

import contextlib
import inspect
import pickle
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import coroutine
from typing import Any

from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.previews import preview
from taskiq_flow.testing.stage import executing
from taskiq_flow.values.digest import digest_of
from taskiq_flow.values.inspection import NEVER_CHANGE
from taskiq_flow.values.isolation import isolated


class ValueChangedError(AssertionError):
    """A node has changed a value that others hold.

    ``task_name``: of that node, or of its element. ``key``: the name of the value. ``change``: what
    has changed of it.
    """

    def __init__(self, task_name: str, key: str, change: str) -> None:
        super().__init__(
            f"node {task_name!r} changed the value of {key!r}, which others hold as well: "
            f"{change}; have it change a copy, or leave values='shared' out"
        )
        self.task_name, self.key, self.change = task_name, key, change

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.task_name, self.key, self.change)


@dataclass
class _Held:
    """A value that nodes and the reader share. ``before``: a copy of what can be copied of it."""

    key: str
    value: Any
    digest: bytes
    before: Any


class SharedValues:
    """Compares the values of a run before and after each step of a task.

    A step is what a task does without waiting, in which no other task does anything. Values of
    which it cannot be told whether they have changed are left out: those that have no digest and
    cannot be pickled.
    """

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        self._held: dict[int, _Held] = {}
        self._error: ValueChangedError | None = None
        for key, value in inputs.items():
            self._hold(key, value)

    def check(self) -> None:
        """Raise ``ValueChangedError`` for the first change, if there was any."""
        if self._error is not None:
            raise self._error

    async def call(
        self, node: DAGNode, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        """Call a node's function, as a ``Call`` does."""
        by_position, by_name = node.binding.keys_of(len(args))
        for key, value in zip(by_position, args, strict=True):
            self._hold(key, value)
        for parameter, value in kwargs.items():
            self._hold(by_name.get(parameter, parameter), value)
        with self._step():
            value = function(*args, **kwargs)
        if inspect.iscoroutine(value):
            value = await _by_steps(value, self._step)
        elif inspect.isawaitable(value):
            value = await value
        if inspect.isasyncgen(value) or inspect.isgenerator(value):
            return self._items(value)
        keys = node.outputs
        self._hold(keys[0] if len(keys) == 1 else executing.get().task_name, value)
        return value

    async def _items(self, values: Any) -> Any:
        """The items of a generator, each made in a step."""
        is_async = inspect.isasyncgen(values)
        while True:
            try:
                if is_async:
                    item = await _by_steps(_next_of(values), self._step)
                else:
                    with self._step():
                        item = next(values)
            except (StopAsyncIteration, StopIteration):
                return
            self._hold(f"an item of {executing.get().task_name}", item)
            yield item

    def _hold(self, key: str, value: Any) -> None:
        if type(value) in NEVER_CHANGE or id(value) in self._held:
            return
        if digest := _digest(value):
            self._held[id(value)] = _Held(key, value, digest, _copied(value))

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        try:
            yield
        finally:
            for held in self._held.values():
                if (digest := _digest(held.value)) != held.digest:
                    self._changed(held)
                    held.digest, held.before = digest, _copied(held.value)

    def _changed(self, held: _Held) -> None:
        if self._error is None:
            change = difference(held.before, held.value) or "its content"
            self._error = ValueChangedError(executing.get().task_name, held.key, change)


@coroutine
def _by_steps(
    steps: Coroutine[Any, Any, Any], step: Callable[[], contextlib.AbstractContextManager[None]]
) -> Generator[Any, Any, Any]:
    """Await a coroutine, with each of its steps within a context."""
    error: BaseException | None = None
    while True:
        try:
            with step():
                awaited = steps.send(None) if error is None else steps.throw(error)
        except StopIteration as stopped:
            return stopped.value
        try:
            yield awaited
        except BaseException as thrown:  # a cancellation, say, is for the coroutine
            error = thrown
        else:
            error = None


async def _next_of(values: Any) -> Any:
    return await anext(values)


def _digest(value: Any) -> bytes:
    """Bytes that differ when the value has changed; none if that cannot be told."""
    if digest := digest_of(value):
        return digest
    try:
        return pickle.dumps(value)
    except Exception:  # of a value's own code
        return b""


def _copied(value: Any) -> Any:
    try:
        return isolated(value)
    except Exception:  # an iterator within it, say
        return value


def difference(before: Any, now: Any) -> str:
    """Where two values differ first, as text; empty if that is not seen."""
    found = _difference(before, now, "")
    return "" if found is None else found


def _difference(before: Any, now: Any, path: str) -> str | None:
    if type(before) is type(now):
        parts_before, parts = _parts(before), _parts(now)
        if parts_before is not None and parts is not None:
            for name in [*parts_before, *(name for name in parts if name not in parts_before)]:
                if name not in parts:
                    return f"{path}{name} is gone, which was {_shown(parts_before[name])}"
                if name not in parts_before:
                    return f"{path}{name} is new, and is {_shown(parts[name])}"
                found = _difference(parts_before[name], parts[name], path + name)
                if found is not None:
                    return found
            return None
    if before is now or _digest(before) == _digest(now):
        return None
    where = f"{path} " if path else "it "
    return f"{where}was {_shown(before)} and is {_shown(now)}"


def _parts(value: Any) -> dict[str, Any] | None:
    """The parts of a value, by how they are reached."""
    if isinstance(value, dict):
        return {f"[{key!r}]": part for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return {f"[{place}]": part for place, part in enumerate(value)}
    if is_dataclass(value) and not isinstance(value, type):
        return {f".{field.name}": getattr(value, field.name) for field in fields(value)}
    return None


def _shown(value: Any) -> str:
    return str(preview(value)["text"]) if not isinstance(value, str) else repr(value)
