"""How a run learns that a task has ended, whichever system carries the news."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from taskiq import TaskiqResult

from taskiq_flow.errors import ConfigurationError
from taskiq_flow.generators.grant import Grant


class InFlight(Protocol):
    """One node in flight, as transports hold it. They call it on the run's event loop."""

    is_being_sent: bool
    """Whether the broker has not taken the node's task yet."""

    grant: Grant | None
    """Of a generator whose items it is given one by one. The task's result is their number then."""

    def settle(self, task_id: str, result: TaskiqResult[Any]) -> None:
        """The task has ended for good. Comes at most once for each expected task."""

    def began(self, task_id: str, worker: str) -> None:
        """A worker executes the task. Comes at least once where the run asked to be told.

        ``worker``: its process.
        """

    def resent(self, task_id: str) -> None:
        """Somebody other than the run has sent the task once more. Its outcome is still to come."""

    def interrupted(self, error: BaseException) -> None:
        """``KeyboardInterrupt`` or ``SystemExit`` was raised in this process while the task ran."""

    def items(self, task_id: str, first: int, items: Sequence[Any], digest: bytes) -> None:
        """The task is a generator, and has given items. They come in order, each once.

        ``first``: the index of the first of them; ``digest``: of all up to the last of them.
        """


class Addressed(Protocol):
    """What is known of a task that is about to be sent."""

    @property
    def return_type(self) -> Any:
        """What it returns, by its annotation."""

    @property
    def queue(self) -> str | None:
        """Where it is sent to; ``None`` for the broker's own queue."""

    @property
    def is_async(self) -> bool:
        """Whether it waits for no thread and no place when it is executed."""


class Completions(Protocol):
    """The completions of one run's tasks."""

    tells_begin: bool
    """Whether it can be seen that a task begins."""

    def expect(
        self,
        task_id: str,
        in_flight: InFlight,
        address: Addressed,
        *,
        limit: int | None,
        tell_begin: bool,
    ) -> None:
        """Watch for a task that is about to be sent.

        ``limit``: bytes above which its result is passed by reference, ``None`` for no such limit.
        ``tell_begin``: whether ``in_flight`` is to be told when the task begins, as its
        ``BEGIN_LABEL`` says to workers.
        """

    def grant(self, task_id: str, grant: Grant) -> None:
        """Tell a generator what the run has of its items, and how many it may make."""

    def forget(self, task_id: str) -> bool:
        """Stop watching for a task whose sending has failed. Returns whether it was unsettled."""

    def revoke_task(self, task_id: str) -> None:
        """Cancel one task, as far as the broker allows. It does not settle any more."""

    def revoke(self) -> None:
        """Cancel all expected tasks, as far as the broker allows. None of them settles any more."""

    async def aclose(self, *, is_complete: bool) -> None:
        """Revoke, and wait a bounded time for what was cancelled to end.

        ``is_complete``: whether the run has all results, so that nobody resumes it.
        """


def claim_run_id(run_ids: set[str], run_id: str) -> None:
    """Add a run's id to those of a broker. Raises ``ConfigurationError`` if it is among them."""
    if run_id in run_ids:
        raise ConfigurationError(
            f"run id {run_id!r} is in use on this broker; give each run an id of its own"
        )
    run_ids.add(run_id)
