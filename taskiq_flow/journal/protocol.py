"""What a journal is to the engine: logs of runs, each written under a lease."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from taskiq.abc.serializer import TaskiqSerializer


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
