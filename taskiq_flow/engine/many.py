"""The results of many runs of one graph, told apart again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.engine.mapped_lists import RUN_ENDED
from taskiq_flow.engine.results import store_result
from taskiq_flow.events import Item

Pair = tuple[str, Any]


class HeldBack:
    """Counts the runs that have ended and wait for an earlier one, where results come in order.

    ``when_fewer``: called when one of them waits no longer.
    """

    def __init__(self) -> None:
        self.count = 0
        self.when_fewer: Callable[[], object] = lambda: None

    def __call__(self) -> int:
        """For the run, which reads no further ahead than there is room."""
        return self.count

    def let_go(self) -> None:
        """One of them has been read."""
        self.count -= 1
        self.when_fewer()


async def in_order(pairs: AsyncGenerator[Pair, None], held: HeldBack) -> AsyncGenerator[Pair, None]:
    """The pairs of one run after those of the other, in the order of the inputs."""
    waiting: dict[int, list[Pair]] = {}
    ended: set[int] = set()
    turn = 0
    async with aclosing(pairs):
        try:
            async for pair in pairs:
                number = number_of(pair[1])
                if pair[0] == RUN_ENDED:
                    ended.add(number)
                    held.count += 1
                if number == turn:
                    yield pair
                else:
                    waiting.setdefault(number, []).append(pair)
                while turn in ended:
                    ended.remove(turn)
                    held.let_go()
                    turn += 1
                    for earlier in waiting.pop(turn, ()):
                        yield earlier
        except Exception:  # what has arrived is not lost because of it
            for number in sorted(waiting):
                for earlier in waiting[number]:
                    yield earlier
            raise


async def with_numbers(
    pairs: AsyncGenerator[Pair, None],
) -> AsyncGenerator[tuple[int, str, Any], None]:
    """``(index, name, result)`` for each pair. Elements within one run stay an ``Item``."""
    async with aclosing(pairs):
        async for name, item in pairs:
            if name == RUN_ENDED:
                continue
            index = item.index
            if isinstance(index, tuple):
                number, *rest = index
                yield number, name, Item(rest[0] if len(rest) == 1 else tuple(rest), item.value)
            else:
                yield index, name, item.value


async def as_results(
    pairs: AsyncGenerator[Pair, None], dag: DAG, *, replay: bool
) -> AsyncGenerator[tuple[int, dict[str, Any]], None]:
    """``(index, results)`` for each run, by output keys, when it has ended.

    ``replay``: also for those that had ended for an earlier engine.
    """
    names = {node.task_name for node in dag.nodes}
    runs: dict[int, dict[str, Any]] = {}
    async with aclosing(pairs):
        async for name, item in pairs:
            results = runs.setdefault(number_of(item), {})
            if name == RUN_ENDED:
                del runs[number_of(item)]
                if replay or not item.value:
                    yield number_of(item), results
            elif name in names:
                store_result(dag, results, name, item.value)
            else:  # its inputs are not as they have to be
                results[name] = item.value


def number_of(item: Item) -> int:
    """Which of the runs an item belongs to."""
    return item.index[0] if isinstance(item.index, tuple) else item.index


def check_source(source: Any) -> None:
    """Raise ``TypeError`` for what does not give the inputs of many runs."""
    is_one = isinstance(source, (Mapping, str, bytes))
    if is_one or not isinstance(source, (Iterable, AsyncIterable)):
        raise TypeError(
            f"source is a {type(source).__name__}; give an iterable of mappings, one for each run, "
            "as in [{'text': 'ebb'}, {'text': 'flow'}]"
        )
