"""A generator's items reach its engine as they were made, whatever becomes of messages and workers.

The network is simulated: it loses, doubles and reorders. Workers are killed, and the task's message
is delivered again, sometimes though its worker lives. An execution may give other items than the
one before.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from random import Random
from types import coroutine
from typing import Any
from unittest import mock

from hypothesis import event, given, settings
from hypothesis import strategies as st

from taskiq_flow.errors import ItemsChangedError
from taskiq_flow.generators import sending
from taskiq_flow.generators.driver import drive
from taskiq_flow.generators.grant import NO_ITEMS, Grant, with_item
from taskiq_flow.generators.messages import Batch, Receipt
from taskiq_flow.generators.receiving import Receiving
from taskiq_flow.generators.sending import Sending
from taskiq_flow.values.digest import digest_of


@coroutine
def turn() -> Generator[None, None, None]:
    """Let others have their turn."""
    yield


class Killed(BaseException):
    """The worker's process is gone."""


class Execution:
    """One execution on a worker: the real driver, with a sink that sends by hand."""

    def __init__(self, number: int, row: Sequence[int], label: str) -> None:
        self.number = number
        self.start = Grant.of(label)
        self.sending = Sending(self.start)
        self.outcome: int | ItemsChangedError | None = None
        self.is_alive = True
        self.is_waiting = False
        sink: Any = self
        self._driving = drive(self._items(row), sink)

    async def _items(self, row: Sequence[int]) -> AsyncGenerator[int, None]:
        for item in row:
            yield item
            await turn()

    @property
    def grant(self) -> Grant:
        return Grant(self.start.have, self.start.digest, self.sending.may)

    def taken(self, item: Any) -> bytes:
        return json.dumps(item).encode()

    def push(self, index: int, item: bytes, digest: bytes) -> None:
        assert index == self.sending.made
        self.sending.push(item, digest)

    async def room(self, count: int) -> None:
        await self._until(lambda: self.sending.may > count)

    async def finish(self, count: int) -> None:
        assert count == self.sending.made
        self.sending.end()
        await self._until(lambda: self.sending.is_done)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self.is_waiting = True
            await turn()
        self.is_waiting = False

    def advance(self) -> None:
        """Have the generator make one more item, if it may."""
        try:
            self._driving.send(None)
        except StopIteration as ended:
            self.outcome, self.is_alive = ended.value, False
        except ItemsChangedError as error:
            self.outcome, self.is_alive = error, False

    def hear(self, data: bytes) -> None:
        if self.is_alive:
            try:
                self.sending.hear(Receipt.unpacked(data))
            except ItemsChangedError as error:
                self.outcome, self.is_alive = error, False

    def kill(self) -> None:
        self.is_alive = False
        with contextlib.suppress(Killed, RuntimeError):  # or it has ended
            self._driving.throw(Killed)

    def batches(self, *, beats: bool) -> list[Batch]:
        """What is sent now, or what a heartbeat repeats."""
        if beats:
            needed = self.sending.is_unanswered or self.is_waiting
            return [self.sending.ask()] if needed and self.is_alive else []
        batch = self.sending.next_batch() if self.is_alive else None
        return [] if batch is None else [batch]


class World:
    """One task: its engine, its executions and the network between them."""

    def __init__(self, rows: Sequence[Sequence[int]], window: int, skip: int) -> None:
        self.rows = rows
        self.window = window
        earlier = list(rows[0][:skip])  # of an earlier attempt
        self.row = list(earlier)
        self.read = self.safe = len(self.row)
        self.digests = [NO_ITEMS]
        for item in earlier:
            self.digests.append(with_item(self.digests[-1], digest_of(item)))
        grant = Grant(self.safe, self.digests[-1], self.safe + window)
        self.label = grant.label()
        self.receiving = Receiving(grant)
        self.engine_is_there = True
        self.error: ItemsChangedError | None = None
        self.executions: list[Execution] = []
        self.network: list[tuple[int | None, bytes]] = []  # to an execution, or to the engine
        self.deliver_task()

    def deliver_task(self) -> None:
        number = len(self.executions)
        row = self.rows[min(number, len(self.rows) - 1)]
        self.executions.append(Execution(number, row, self.label))

    @property
    def outcomes(self) -> list[int | ItemsChangedError]:
        found = [e.outcome for e in self.executions if e.outcome is not None]
        return [*found, *([] if self.error is None else [self.error])]

    def send(self, execution: Execution, *, beats: bool = False) -> None:
        for batch in execution.batches(beats=beats):
            packed = batch.packed(str(execution.number), "seal")
            self.network.append((None, packed))

    def deliver(self, index: int, *, keep: bool = False) -> None:
        to, data = self.network[index]
        if not keep:
            del self.network[index]
        if to is not None:
            self.executions[to].hear(data)
        elif self.engine_is_there and self.error is None:
            self._take(data)

    def _take(self, data: bytes) -> None:
        batch, channel, _ = Batch.unpacked(data)
        try:
            new = self.receiving.take(batch)
        except ItemsChangedError as error:
            self.error = error
            return
        items = json.loads(batch.content)
        assert len(items) == len(batch.digests)
        for item in items[len(items) - new :]:
            self.row.append(item)
            self.digests.append(with_item(self.digests[-1], digest_of(item)))
        assert self.receiving.next == len(self.row)
        assert self.receiving.digest == self.digests[-1]
        if batch.asks:
            self.network.append((int(channel), self.receiving.receipt(answers=True).packed()))
        self._tell_if_due()

    def _tell_if_due(self) -> None:
        if self.receiving.is_due:
            receipt = self.receiving.receipt(answers=False).packed()
            self.network += [(e.number, receipt) for e in self.executions]

    def consume(self, read: int, safe: int) -> None:
        """The run reads items, and has items safe."""
        if not self.engine_is_there:
            return
        self.read = min(len(self.row), self.read + read)
        self.safe = min(len(self.row), self.safe + safe)
        self.receiving.allow(Grant(self.safe, self.digests[self.safe], self.read + self.window))
        self._tell_if_due()

    def check(self) -> None:
        """What holds at any time."""
        assert any(self.row == list(row[: len(self.row)]) for row in self.rows)
        for execution in self.executions:
            assert execution.sending.made <= self.receiving.grant.may
            if isinstance(execution.outcome, int):
                assert execution.outcome == self.safe == len(self.row) or self.has_changed

    def close(self) -> None:
        for execution in self.executions:
            execution.kill()

    @property
    def has_changed(self) -> bool:
        return any(row != self.rows[0] for row in self.rows)


def rows_of_executions(chance: Random, kind: str) -> list[list[int]]:
    """What the first execution gives, and what all others do."""
    row = [chance.randrange(4) for _ in range(chance.randrange(25))]
    place = chance.randrange(len(row) or 1)
    match kind:
        case "other" if row:
            return [row, [*row[:place], 7, *row[place + 1 :]]]
        case "fewer":
            return [row, row[:place]]
        case "more":
            return [row, [*row, *row[:3], 7]]
    return [row]


ACTIONS = {
    "advance": 8,
    "send": 6,
    "beat": 2,
    "deliver": 8,
    "lose": 2,
    "double": 2,
    "consume": 3,
    "kill": 1,
    "deliver task": 1,
    "leave": 1,
}
"""How often each of them is, beside the others."""


@settings(max_examples=3 * settings().max_examples)
@given(
    kind=st.sampled_from(["same", "same", "other", "other", "fewer", "more"]),
    window=st.integers(1, 8),
    seed=st.integers(0, 2**32),
    may_leave=st.sampled_from([False, False, False, True]),
)
def test_the_row_is_as_it_was_made_or_the_error_says_that_it_changed(
    kind: str, window: int, seed: int, *, may_leave: bool
) -> None:
    chance = Random(seed)
    rows = rows_of_executions(chance, kind)
    skip = min(chance.choice([0, 0, 3]), len(rows[0]))
    few = mock.patch.object(sending, "BATCH_BYTES", 60)
    with few, contextlib.closing(World(rows, window, skip)) as world:
        for _ in range(chance.randrange(300)):
            act(world, chance, may_leave=may_leave)
            world.check()
            if world.outcomes:
                break
        # From now on nothing is lost; a killed worker's task is delivered again.
        for _ in range(1000):
            if world.outcomes or not world.engine_is_there:
                break
            calm(world)
            world.check()
        settle(world)


def act(world: World, chance: Random, *, may_leave: bool) -> None:
    (action,) = chance.choices(list(ACTIONS), list(ACTIONS.values()))
    alive = [e for e in world.executions if e.is_alive]
    execution = chance.choice(alive) if alive else None
    # Half of the messages arrive in order.
    place = chance.choice([0, chance.randrange(len(world.network) or 1)])
    match action:
        case "advance" if execution:
            execution.advance()
        case "send" | "beat" if execution:
            world.send(execution, beats=action == "beat")
        case "deliver" | "double" if world.network:
            world.deliver(place, keep=action == "double")
        case "lose" if world.network:
            del world.network[place]
        case "consume":
            world.consume(chance.randrange(4), chance.randrange(4))
        case "kill" if execution:
            execution.kill()
        case "deliver task" if len(world.executions) < 4:
            world.deliver_task()
        case "leave" if may_leave:
            world.engine_is_there = False


def calm(world: World) -> None:
    if not any(e.is_alive for e in world.executions):
        world.deliver_task()
    for execution in world.executions:
        if execution.is_alive:
            execution.advance()
            world.send(execution)
            world.send(execution, beats=True)
    while world.network:
        world.deliver(0)
    world.consume(1, 2)


def settle(world: World) -> None:
    """The task's outcome is the first one that the engine hears of."""
    if not world.outcomes:
        assert not world.engine_is_there
        event("the engine has left")
        return
    outcome = world.outcomes[0]
    if isinstance(outcome, int):
        try:
            world.receiving.check_count(outcome)
        except ItemsChangedError as error:
            outcome = error
    if isinstance(outcome, ItemsChangedError):
        assert world.has_changed
        event("the items have changed")
        return
    assert world.row in [list(row) for row in world.rows]
    assert outcome == world.safe == len(world.row)
    event("whole")
