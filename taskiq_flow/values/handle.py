"""Splits a task's result into its node's outputs, and refers to results that stay on a server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar, Self

from taskiq_flow.errors import OutputShapeError


def split_outputs(task_name: str, outputs: Sequence[str], result: Any) -> dict[str, Any]:
    """Split a result into several outputs: a tuple or list by position, a mapping by key.

    Raises ``OutputShapeError`` for a result that cannot be split into them.
    """
    if isinstance(result, Mapping):
        missing = [key for key in outputs if key not in result]
        if not missing:
            return {key: result[key] for key in outputs}
        problem = f"a mapping without {', '.join(map(repr, missing))}"
    elif isinstance(result, (tuple, list)):
        if len(result) == len(outputs):
            return dict(zip(outputs, result, strict=True))
        problem = f"a {type(result).__name__} of {len(result)}"
    else:
        problem = f"a {type(result).__name__}"
    raise OutputShapeError(
        f"node {task_name!r} declares {len(outputs)} outputs ({', '.join(outputs)}) and "
        f"returned {problem}; return a tuple or list of {len(outputs)}, or a mapping with "
        "these keys",
        task_name=task_name,
    )


@dataclass(frozen=True, slots=True)
class Reference:
    """Stands for a result in messages: the task that returned it, and which output is meant.

    ``outputs`` and ``output``: the keys of a node with several outputs, and one of them.
    ``task_name``: the name of that node.
    """

    task_id: str
    task_name: str = ""
    outputs: tuple[str, ...] = ()
    output: str = ""

    def of(self, result: Any) -> Any:
        """The part of a task's result that this refers to. May raise ``OutputShapeError``."""
        if not self.outputs:
            return result
        return split_outputs(self.task_name, self.outputs, result)[self.output]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ResultHandle:
    """A result that was passed by reference: ``await handle.get()`` reads it.

    ``reference``: the result that it stands for.

    >>> dag = DAGBuilder().node(lambda: [1, 2], name="load").build()
    >>> async def main():
    ...     engine = ExecutionEngine(InMemoryBroker(), dag, pass_by="reference")
    ...     async for name, handle in engine.execute_async():
    ...         print(name, await handle.get())
    >>> asyncio.run(main())
    load [1, 2]
    """

    reference: Reference
    _read: Callable[[], Awaitable[Any]]

    exist: ClassVar[bool] = False
    """Whether this process has made any: no value is searched for them before."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Note that there are handles now, however one is made."""
        ResultHandle.exist = True
        return object.__new__(cls)

    async def get(self) -> Any:
        """Read the value, anew at each call. Waits for a server that is away, for up to 60 s.

        Raises ``ResultUnavailableError`` if it is not in the result backend any more,
        ``ServerUnreachableError`` if that was away for longer, and ``OutputShapeError`` if it
        cannot be split into the several outputs of its node.
        """
        return self.reference.of(await self._read())

    def split(self, task_name: str, outputs: Sequence[str]) -> dict[str, Self]:
        """A handle for each output of a node with several outputs. Reads nothing."""
        whole = replace(self.reference, task_name=task_name, outputs=tuple(outputs))
        return {key: replace(self, reference=replace(whole, output=key)) for key in outputs}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # it never changes, and what it reads from is everybody's

    def __repr__(self) -> str:
        part = f", {self.reference.output!r}" if self.reference.output else ""
        return f"<ResultHandle {self.reference.task_id!r}{part}>"


Place = tuple[int, ...]
"""Where a handle is within a list: its index, after those of the lists around it."""


def holds_handles(value: Any) -> bool:
    """Whether a value is a handle, or a list with handles in it, also within further lists.

    Works through the lists level by level, in C. Nothing but lists is looked into. Takes no time
    in a process that has made no handle, so that a long list costs what ``None`` costs.
    """
    if not ResultHandle.exist:
        return False
    level, seen = [value], set[int]()
    while level:
        kinds = set(map(type, level))
        if ResultHandle in kinds:
            return True
        if list not in kinds:
            return False
        lists = {id(part): part for part in level if type(part) is list}
        level = list(chain.from_iterable(lists[key] for key in lists.keys() - seen))
        seen |= lists.keys()
    return False


def without_handles(value: Any) -> tuple[Any, list[tuple[Place, ResultHandle]]]:
    """A value with ``None`` in the places of its handles, and these with their places."""
    found: list[tuple[Place, ResultHandle]] = []
    return _without(value, (), found), found


def _without(value: Any, place: Place, found: list[tuple[Place, ResultHandle]]) -> Any:
    if isinstance(value, ResultHandle):
        found.append((place, value))
        return None
    if not holds_handles(value):
        return value
    return [_without(part, (*place, index), found) for index, part in enumerate(value)]


async def with_values(value: Any) -> Any:
    """A value with what its handles read in their places. Raises what ``get`` raises."""
    if isinstance(value, ResultHandle):
        return await value.get()
    if not holds_handles(value):
        return value
    return [await with_values(part) for part in value]
