"""``check_orders``: a graph under each order in which its nodes may complete."""

from __future__ import annotations

import asyncio
import inspect
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from taskiq_flow.dataflow.options import most_parallel
from taskiq_flow.events import NodeStarted
from taskiq_flow.testing.flows import Flow, parts_of
from taskiq_flow.testing.outcome import RunOutcome
from taskiq_flow.testing.running import perform
from taskiq_flow.testing.stage import Stage

MOST_SHRINKS = 200
"""Runs that are spent on making an order smaller."""


class OrderError(AssertionError):
    """A check fails when nodes complete in this order. Its cause is what the check has raised.

    ``order``: the names in which they do so, as far as that matters; ``check_orders`` takes it.
    ``outcome``: how the run has gone.
    """

    def __init__(self, order: Sequence[str], outcome: RunOutcome | None = None) -> None:
        super().__init__(
            "the check fails when nodes complete in this order: "
            f"check_orders(dag, inputs, check, order={list(order)!r})"
        )
        self.order, self.outcome = list(order), outcome

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.order, self.outcome)


@dataclass(frozen=True, slots=True)
class OrdersChecked:
    """How many orders were checked, and whether these are ``all`` that there are."""

    count: int
    all: bool


def check_orders(
    dag: Flow,
    inputs: Mapping[str, Any] | None,
    check: Callable[[RunOutcome], object],
    *,
    order: Sequence[str] | None = None,
    setup: Callable[[], object] | None = None,
    most: int | None = 1000,
    seed: int = 0,
    replace: Mapping[str, Any] | None = None,
    outputs: Iterable[str] | None = None,
    **options: Any,
) -> OrdersChecked:
    """Run a graph or a pipeline in each order in which nodes may complete, and check each run.

    ``check(outcome)`` fails by raising, or by returning a false value other than ``None``, such as
    ``False`` of numpy. ``order``: run this order only,
    by names of nodes and elements; when it is at its end, nodes complete as they were sent.
    ``setup``: called before each run, to reset what tasks share. ``most``: how many orders are run,
    ``None`` for all. If there are more, those nearest to the order of sending are run, then random
    ones, which ``seed`` determines. ``replace``, ``outputs``, ``options``: as of ``run``.

    At each point one of the nodes in flight is chosen. Its task is executed, and the node has
    completed before the next choice. An element of a map is chosen as a node is, and so is each
    item of a generator. A pause before another attempt ends when no node is in flight.

    Raises ``OrderError`` with the smallest order that was found to fail, ``ValueError`` for an
    ``order`` in which a node is not in flight when it should complete, and what ``run`` raises.

    >>> from taskiq_flow.testing import check_orders
    >>> log = []
    >>> builder = DAGBuilder().node(lambda: log.append("a"), name="a")
    >>> dag = builder.node(lambda: log.append("b"), name="b").build()
    >>> check_orders(dag, {}, lambda outcome: len(log) == 2, setup=log.clear)
    OrdersChecked(count=2, all=True)
    >>> check_orders(dag, {}, lambda outcome: log == ["a", "b"], setup=log.clear)
    Traceback (most recent call last):
    taskiq_flow.testing.orders.OrderError: the check fails when nodes complete in this order: \
check_orders(dag, inputs, check, order=['b'])
    """
    if not callable(check):
        raise TypeError(f"check is {check!r}; give a function of a RunOutcome")
    wanted = None if outputs is None else list(outputs)
    graph, options = parts_of(dag, options)
    stage = Stage(graph, replace or {}, _Turns(_by_number(())), options=options)

    def trial(choose: _Choose) -> _Trial:
        if setup is not None:
            _refuse_async("setup", setup, setup())
        stage.turn = turns = _Turns(choose)
        outcome = perform(stage, inputs, wanted, on_idle=turns.next)
        found: object = None
        error: Exception | None = None
        try:
            found = check(outcome)
            if found is not None and not found:
                error = AssertionError(f"the check is {found!r}")
        except Exception as caught:  # whatever the check raises
            error = caught
        _refuse_async("check", check, found)
        return _Trial(turns.names, turns.choices, outcome, error)

    if order is not None:
        return _Search(trial).run_named(list(order))
    limit = most_parallel("most", most) or math.inf
    return _Search(trial).run_all(limit, random.Random(seed))  # noqa: S311 - for no secret


def _refuse_async(name: str, function: Callable[..., object], answer: object) -> None:
    """Raise ``TypeError`` for a coroutine that nobody awaits, and that so would check nothing."""
    if inspect.iscoroutine(answer):
        answer.close()
        raise TypeError(f"{name} is {function!r}, which is async; give a function that is not")


_Choose = Callable[[list[str]], int]
"""Which of the nodes in flight completes next."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """One run. ``names``: at each choice, the nodes in flight; ``choices``: which was chosen."""

    names: list[list[str]]
    choices: list[int]
    outcome: RunOutcome
    error: Exception | None

    @property
    def order(self) -> list[str]:
        """What was chosen, up to the last that was not the one sent first."""
        last = max((place for place, choice in enumerate(self.choices) if choice), default=-1)
        chosen = zip(self.names[: last + 1], self.choices, strict=False)
        return [names[choice] for names, choice in chosen]


class _Turns:
    """Has executions go on one at a time."""

    def __init__(self, choose: _Choose) -> None:
        self.names: list[list[str]] = []
        self.choices: list[int] = []
        self._choose = choose
        self._waiting: dict[asyncio.Future[None], str] = {}
        self._present: asyncio.Future[None] | None = None

    @asynccontextmanager
    async def __call__(self, attempt: NodeStarted) -> AsyncIterator[None]:
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = attempt.task_name
        try:
            await turn
            yield
        finally:
            self._waiting.pop(turn, None)
            if self._present is turn:
                self._present = None

    def next(self) -> bool:
        """Let the next execution go on, if none does. Called when nothing else is ready."""
        if self._present is not None or not self._waiting:
            return False
        names = list(self._waiting.values())
        choice = self._choose(names)
        self.names.append(names)
        self.choices.append(choice)
        self._present = list(self._waiting)[choice]
        del self._waiting[self._present]
        self._present.set_result(None)
        return True


class _Search:
    """Looks for an order under which a check fails."""

    def __init__(self, trial: Callable[[_Choose], _Trial]) -> None:
        self._trial = trial
        self._count = 0

    def run_named(self, order: list[str]) -> OrdersChecked:
        """Run one order."""
        trial = self._trial(_by_name(order))
        if len(trial.choices) < len(order):
            raise ValueError(
                f"order= names {order[len(trial.choices)]!r} after all nodes have completed; "
                "leave it out"
            )
        if trial.error is not None:
            raise OrderError(order, trial.outcome) from trial.error
        return OrdersChecked(1, all=False)

    def run_all(self, most: float, chance: random.Random) -> OrdersChecked:
        """Run all orders, those with the fewest deviations from the order of sending first.

        Each order is found once: from the one that lacks its last deviation.
        """
        prefixes = deque([list[int]()])
        while prefixes and self._count + len(prefixes) <= most:
            prefix = prefixes.popleft()
            trial = self._run(_by_number(prefix))
            for place in range(len(prefix), len(trial.choices)):
                before = trial.choices[:place]
                prefixes.extend([*before, other] for other in range(1, len(trial.names[place])))
        is_all = not prefixes
        while not is_all and self._count < most:
            self._run(lambda names: chance.randrange(len(names)))
        return OrdersChecked(self._count, all=is_all)

    def _run(self, choose: _Choose) -> _Trial:
        """Run an order. Raises ``OrderError`` with a smaller one if the check fails."""
        self._count += 1
        trial = self._trial(choose)
        if trial.error is not None:
            trial = self._shrunk(trial)
            raise OrderError(trial.order, trial.outcome) from trial.error
        return trial

    def _shrunk(self, failing: _Trial) -> _Trial:
        """A run that still fails with fewer names in its order: halves are left out, and so on."""
        left = MOST_SHRINKS
        size = max(1, len(failing.order) // 2)
        while size:
            is_smaller = False
            for start in reversed(range(0, len(failing.order), size)):
                order = failing.order
                if not left:
                    return failing
                left -= 1
                trial = self._trial(_by_name_if_there([*order[:start], *order[start + size :]]))
                if trial.error is not None and len(trial.order) < len(order):
                    failing, is_smaller = trial, True
            if not is_smaller:
                size //= 2
        return failing


def _by_number(choices: Sequence[int]) -> _Choose:
    """These choices, and then the node that was sent first."""
    left = iter(choices)
    return lambda _: next(left, 0)


def _by_name_if_there(order: Sequence[str]) -> _Choose:
    """The nodes of these names; those that are not in flight in their turn are left out."""
    left = iter(order)
    return lambda names: next((names.index(name) for name in left if name in names), 0)


def _by_name(order: Sequence[str]) -> _Choose:
    """The nodes of these names, and then those that were sent first. Raises ``ValueError``."""
    left, done = deque(order), list[str]()

    def choose(names: list[str]) -> int:
        if not left:
            return 0
        name = left.popleft()
        if name not in names:
            raise ValueError(
                f"order= names {name!r}, which is not in flight after {done}; in flight are {names}"
            )
        done.append(name)
        return names.index(name)

    return choose
