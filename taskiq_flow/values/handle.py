"""Splits a task's result into its node's outputs, and refers to results that stay on a server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

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

    async def get(self) -> Any:
        """Read the value, anew at each call.

        Raises ``ResultUnavailableError`` if it is not in the result backend any more, and
        ``OutputShapeError`` if it cannot be split into the several outputs of its node.
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
