"""A run over several sessions, each stopped in some way, with checks that hold after each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from hypothesis import strategies as st

from property_tests.policies import FALLBACK, PolicyGraph
from property_tests.policy_stage import Attempt, PolicyStage
from property_tests.strategies import LIMITS
from taskiq_flow import (
    ExecutionEngine,
    Lease,
    MemoryJournal,
    NodeCompleted,
    RunError,
    RunStarted,
)
from taskiq_flow.engine.run_spec import OnError
from taskiq_flow.journal.protocol import EventBatch
from tests.virtual_clock import virtual_loop

Pairs = AsyncGenerator[tuple[str, Any], None]
Stop = Literal["never", "left", "cancelled", "timed out", "failed", "journal broken"]
Place = Literal["same engine", "same process", "another process"]

PLACES: st.SearchStrategy[Place] = st.sampled_from(
    ["same engine", "same process", "another process"]
)


@dataclass(frozen=True)
class Session:
    """One engine's part of a run.

    ``stop``: what ends it; ``moment``: the number of the pair after which it does, of the quarter
    of a second, or of the write to the journal. ``place``: what goes on with the run.
    """

    stop: Stop = "never"
    moment: int = 0
    place: Place = "same engine"
    replay: bool = True


WHOLE = st.builds(Session, st.just("never"), st.just(0), PLACES, st.booleans())
STOPPED = st.builds(
    Session,
    st.sampled_from(["left", "cancelled", "timed out", "failed", "journal broken"]),
    st.integers(1, 12),
    PLACES,
    st.booleans(),
)


@dataclass(frozen=True)
class Setting:
    """What is the same in all sessions. ``writing``: seconds that the journal needs each time."""

    on_error: OnError
    limit: int | None
    writing: int


SETTINGS = st.builds(
    Setting, st.sampled_from(["continue", "collect"]), LIMITS, st.sampled_from([0, 0, 1])
)


class FragileJournal(MemoryJournal):
    """Needs ``seconds`` for each write, and fails after so many ``writes``."""

    def __init__(self, seconds: int) -> None:
        super().__init__()
        self.seconds = seconds
        self.writes: int | None = None

    async def append(
        self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
    ) -> None:
        if self.writes is not None:
            self.writes -= 1
            if self.writes < 0:
                raise OSError("no space left")
        if self.seconds:
            await asyncio.sleep(self.seconds)
        await super().append(run_id, lease, chunk, batch)

    async def log(self, run_id: str) -> list[bytes]:
        return [chunk async for chunk in self.read(run_id)]


@dataclass
class Part:
    """What is seen of one session.

    ``has_begun``: it was not cancelled before. ``kept``: the nodes whose results the journal has
    given; ``completed``: those that have completed beside them; ``executed``: those whose task was
    executed, or their fallback.
    """

    pairs: list[tuple[str, Any]]
    error: RunError | None
    has_begun: bool
    kept: list[str]
    completed: list[str]
    executed: set[str]


class Saga:
    """Runs over one journal, session by session."""

    def __init__(self, graph: PolicyGraph, setting: Setting) -> None:
        self.setting = setting
        self.journal = FragileJournal(setting.writing)
        self.attempts: list[Attempt] = []
        self.enter(graph)

    def enter(self, graph: PolicyGraph) -> None:
        """Go on in a process that has this graph."""
        self.graph = graph
        self.stage = PolicyStage(graph)
        self._options: dict[str, Any] = {}

    async def begin(self, session: Session, outputs: list[str] | None = None) -> Part:
        engine = self._engine(session)
        pairs = engine.execute_async(self.graph.inputs, outputs=outputs, run_id="run")
        return await self._read(pairs, session)

    async def resume(
        self, session: Session, run_id: str = "run", *, allow_changed: bool = False
    ) -> Part:
        engine = self._engine(session)
        pairs = engine.resume(run_id, replay=session.replay, allow_changed=allow_changed)
        return await self._read(pairs, session)

    async def rerun(self, session: Session, names: list[str]) -> Part:
        engine = self._engine(session)
        pairs = engine.rerun("run", names, replay=session.replay, new_run_id="again")
        return await self._read(pairs, session)

    def _engine(self, session: Session) -> ExecutionEngine:
        options: dict[str, Any] = {
            "limit": self.setting.limit,
            "on_error": "raise" if session.stop == "failed" else self.setting.on_error,
            "run_timeout": session.moment / 4 if session.stop == "timed out" else None,
        }
        if session.place == "another process":
            self.enter(self.graph)
        if session.place != "same engine" or options != self._options:
            self.engine = self.stage.engine(journal=self.journal, **options)
        self._options = options
        return self.engine

    async def _read(self, pairs: Pairs, session: Session) -> Part:
        self.stage.forget()
        self.journal.writes = session.moment if session.stop == "journal broken" else None
        timer = None
        if session.stop == "cancelled":
            timer = virtual_loop().call_later(session.moment / 4, self.engine.cancel)
        read: list[tuple[str, Any]] = []
        error: RunError | None = None
        try:
            async with aclosing(pairs):
                async for pair in pairs:
                    read.append(pair)
                    if session.stop == "left" and len(read) == session.moment:
                        break
        except RunError as raised:
            error = raised
        if timer is not None:
            timer.cancel()
        self.journal.writes = None
        self.attempts += self.stage.fates.attempts
        self.stage.check_nothing_is_left()
        return self._part(read, error)

    def _part(self, pairs: list[tuple[str, Any]], error: RunError | None) -> Part:
        ends = [event for event in self.stage.events if isinstance(event, NodeCompleted)]
        return Part(
            pairs,
            error,
            has_begun=any(isinstance(event, RunStarted) for event in self.stage.events),
            kept=[event.task_name for event in ends if event.source == "journal"],
            completed=[event.task_name for event in ends if event.source != "journal"],
            executed={name.removesuffix(FALLBACK) for name in self.stage.executions},
        )
