"""What a journal is to the engine: logs of runs, each written under a lease."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from inspect import signature
from typing import Literal, Protocol, TypeGuard

from taskiq.abc.serializer import TaskiqSerializer

from taskiq_flow.journal.summary import RunSummary


def encoded(text: str) -> bytes:
    """Encode any text, also one with lone surrogates."""
    return text.encode("utf-8", "surrogatepass")


def decoded(data: bytes | memoryview) -> str:
    """Decode what ``encoded`` returned."""
    return str(data, "utf-8", "surrogatepass")


def is_run(name: str) -> bool:
    """Whether a log is a run's. Earlier versions also stored cached results in logs."""
    return not name.startswith("taskiq_flow cache ")


LEASE_SECONDS = 10.0
"""How long the lease of an engine that was killed locks its run, unless its death is noticed."""


LEASE_WAIT = LEASE_SECONDS + 1.0
"""Seconds after which such a lease has expired for sure."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write a run's log. ``owner``: a name that no other lease has.

    ``seconds``: how long the lease is valid unless it is renewed; then another engine may take it.
    """

    owner: str
    seconds: float = LEASE_SECONDS


class Journal(Protocol):
    """Logs of runs. A log is an append-only list of byte chunks, which one lease owner writes.

    A journal does not interpret the chunks. Calls may come from several runs at once. Each raises
    ``JournalError`` if the store fails, and each that takes a lease ``RunLockedError`` if another
    owner has it.
    """

    serializer: TaskiqSerializer
    """Serializes the values in the chunks."""

    async def create(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        """Create a log with a first chunk, and take its lease. ``JournalError`` if it exists."""

    async def acquire(self, run_id: str, lease: Lease) -> None:
        """Take the lease of a log. Raises ``RunNotFoundError``."""

    async def renew(self, run_id: str, lease: Lease) -> None:
        """Renew an own lease, also one that has expired and that nobody else has taken."""

    async def release(self, run_id: str, lease: Lease) -> None:
        """Release a lease. Does nothing if another owner has it."""

    async def append(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        """Append a chunk. When this returns, the chunk is as durable as the journal can make it."""

    def read(self, run_id: str) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of a log in order. Raises ``RunNotFoundError``."""

    async def run_ids(self) -> list[str]:
        """The ids of all runs, the oldest first."""

    async def delete(self, run_id: str) -> None:
        """Delete a log. Raises ``RunNotFoundError``, and ``RunLockedError`` if it has a lease."""

    async def aclose(self) -> None:
        """Close the store. Using the journal again opens it again."""


Request = Literal["cancel"]
"""What one may ask of an engine that has a run."""


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events of a run, and its summary after them.

    ``lines``: the events, one line of JSON each, the last of which has the number ``summary.seq``.
    """

    lines: bytes
    summary: RunSummary


class EventJournal(Journal, Protocol):
    """A journal that stores a run's events beside its log, so that others can watch the run.

    Without these methods, a journal stores what ``resume`` needs, and nobody can watch its runs.
    What ``create`` and ``append`` are given is written as a whole or not at all.
    """

    async def create(
        self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
    ) -> None:
        """As of ``Journal``; ``None`` for a log without a chunk. There is no request yet."""

    async def append(
        self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
    ) -> None:
        """As of ``Journal``; ``None`` where there are only events."""

    def events(self, run_id: str, after: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield the lines of events in their order, from the one that has event ``after + 1`` on.

        Lines are as they were written: the first ones may have events up to ``after``. Raises
        ``RunNotFoundError``.
        """

    async def summary(self, run_id: str) -> RunSummary:
        """The summary of a run as it was written, with the present owner of its lease.

        A run of an earlier version, without events, is ``"running"`` and has 0 as ``started``.
        Raises ``RunNotFoundError``.
        """

    async def summaries(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        since: float | None = None,
        before: float | None = None,
        limit: int = 100,
    ) -> list[RunSummary]:
        """The summaries of runs that were ``started`` at ``since`` or later, and before ``before``.

        The newest first. ``status``: as it was written, so it is never ``"interrupted"``. Runs of
        an earlier version come last, whatever ``status`` and ``name`` are asked for.

        A journal that also has a parameter ``tags`` is given those that runs must have, all of
        them. Of another one, all summaries are read until there are enough that have them.
        """

    async def changed(self, run_id: str, mark: object, seconds: float) -> object:
        """Wait until something was written that concerns the run, or for ``seconds``.

        Returns a mark for the next call, which returns at once if something was written since. The
        first call has ``None`` and returns at once. May return early.
        """

    async def request(self, run_id: str, request: Request) -> None:
        """Store a request for whoever has the run. Whoever takes the lease clears it.

        Raises ``RunNotFoundError``.
        """

    async def requested(self, run_id: str) -> str | None:
        """The request that was stored, if any. Raises ``RunNotFoundError``."""


def finds_tags(journal: EventJournal) -> bool:
    """Whether a journal finds runs by their tags."""
    return "tags" in signature(journal.summaries).parameters


def stores_events(journal: Journal) -> TypeGuard[EventJournal]:
    """Whether a journal has the methods of ``EventJournal``, and its writing ones take events."""
    methods = ("events", "summary", "summaries", "changed", "request", "requested")
    if not all(hasattr(journal, name) for name in methods):
        return False
    try:
        for write in (journal.create, journal.append):
            signature(write).bind("", None, None, None)
    except TypeError:  # one that passes the other calls on to a journal that stores events
        return False
    return True
