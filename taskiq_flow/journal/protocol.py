"""Where runs are kept, so that another process can go on with them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from taskiq.abc.serializer import TaskiqSerializer


def encoded(text: str) -> bytes:
    """Any text as bytes, such as has no Unicode as well."""
    return text.encode("utf-8", "surrogatepass")


def decoded(data: bytes | memoryview) -> str:
    """The text that was ``encoded``."""
    return str(data, "utf-8", "surrogatepass")


def is_run(name: str) -> bool:
    """Whether a log is that of a run. Earlier versions had cached results in logs as well."""
    return not name.startswith("taskiq_flow cache ")


LEASE_SECONDS = 10.0
"""For how long the lease of an engine that was killed keeps others away, where that is not seen."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write a run's log. ``owner``: who has it, like nobody else.

    ``seconds``: for how long it is valid without being renewed; then another may take it.
    """

    owner: str
    seconds: float = LEASE_SECONDS


class Journal(Protocol):
    """Logs of runs: each an ordered list of chunks of bytes that only grows, under a lease.

    What a chunk says is the engine's affair. All calls may come from several runs at once. Each
    raises ``JournalError`` for what the store does not do, and those with a lease
    ``RunLockedError`` if another has it.
    """

    serializer: TaskiqSerializer
    """How values are written."""

    async def create(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        """Begin a log with a chunk, and take its lease. ``JournalError`` if there is one."""

    async def acquire(self, run_id: str, lease: Lease) -> None:
        """Take the lease of a log. Raises ``RunNotFoundError`` as well."""

    async def renew(self, run_id: str, lease: Lease) -> None:
        """Keep a lease that one has, also one that was over and that nobody has taken."""

    async def release(self, run_id: str, lease: Lease) -> None:
        """Give a lease back. Nothing happens if another has it."""

    async def append(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        """Add a chunk, behind those of earlier calls.

        When this returns, it is as safe as the journal makes anything.
        """

    def read(self, run_id: str) -> AsyncGenerator[bytes, None]:
        """The chunks of a log in order. Raises ``RunNotFoundError``."""

    async def run_ids(self) -> list[str]:
        """The logs there are, the oldest first."""

    async def delete(self, run_id: str) -> None:
        """Remove a log. Raises ``RunNotFoundError``, and ``RunLockedError`` if it has a lease."""

    async def aclose(self) -> None:
        """Let go of the store. The journal may be used again, and is opened by that."""
