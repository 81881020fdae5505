"""How a run learns that a task has ended, whatever carries the news."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from taskiq import TaskiqResult

N = TypeVar("N", contravariant=True)
"""The run's nodes, which completions only hand back."""


class Observer(Protocol[N]):
    """The run, as seen by what brings it completions. Both calls come on the run's event loop."""

    def settle(self, node: N, task_id: str, result: TaskiqResult[Any]) -> None:
        """The node's task has ended for good. Comes at most once for each expected task."""

    def is_being_sent(self, node: N) -> bool:
        """Whether the broker has not taken the node's task yet."""

    def began(self, node: N, task_id: str) -> None:
        """A worker executes the task. Comes at least once where it was asked for and can be."""

    def retried(self, node: N, task_id: str) -> None:
        """Somebody other than the run has sent a task once more; its outcome is still to come."""


class Completions(Protocol[N]):
    """The completions of one run's tasks."""

    tells_begin: bool
    """Whether it can be seen that a task begins."""

    def expect(
        self,
        task_id: str,
        node: N,
        return_type: Any,
        queue: str | None,
        *,
        tell_begin: bool = False,
    ) -> None:
        """Watch for a node's task, which is about to be sent and returns ``return_type``.

        ``queue``: where it is sent to, ``None`` for the broker's own. ``tell_begin``: whether the
        observer is to be told when it begins, as its ``BEGIN_LABEL`` says to workers.
        """

    def forget(self, task_id: str) -> bool:
        """Stop watching for a task that could not be sent; whether it had not settled yet."""

    def revoke_task(self, task_id: str) -> None:
        """Cancel one task, as far as the broker allows. It does not settle any more."""

    def revoke(self) -> None:
        """Cancel whatever is still expected, as far as the broker allows. Nothing settles again."""

    async def aclose(self) -> None:
        """Revoke, and wait for what was cancelled to end; leaves nothing of the run behind."""
