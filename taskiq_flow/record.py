"""What a run has reached, and the errors that carry it to whoever reads the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypedDict, TypeVar

from taskiq_flow.dispatch import RunnableNode
from taskiq_flow.errors import NodeFailedError, RunCancelledError, RunFailedError

N = TypeVar("N", bound=RunnableNode)


class Reached(TypedDict):
    """What every ``RunError`` carries."""

    results: dict[str, Any]
    failures: dict[str, BaseException]
    skipped: list[str]


class Record(Generic[N]):
    """What nodes are given and have given, by key; failures by node; what lies behind them."""

    def __init__(
        self,
        run_id: str,
        inputs: Mapping[str, Any],
        successors: Mapping[N, Sequence[N]],
    ) -> None:
        self.values = dict(inputs)
        self.failures: dict[str, BaseException] = {}
        self.skipped: set[str] = set()
        self._run_id = run_id
        self._inputs = inputs
        self._successors = successors
        self._failed_nodes: list[N] = []

    def add_failure(self, node: N, error: BaseException) -> None:
        """A node has failed for good."""
        self.failures[node.task_name] = error
        self._failed_nodes.append(node)

    def node_failed(self, name: str, task_id: str, attempts: int) -> NodeFailedError:
        """The error of a run that one failure has ended."""
        cause = self.failures[name]
        error = NodeFailedError(
            f"node {name!r} failed in attempt {attempts} with {_told(cause)}{self._progress()}",
            task_name=name,
            task_id=task_id,
            attempts=attempts,
            **self._reached(),
        )
        error.__cause__ = cause
        return error

    def run_failed(self) -> RunFailedError:
        """The error of a run that went on to its end in spite of failures."""
        failures = "; ".join(f"{name!r} with {_told(e)}" for name, e in self.failures.items())
        return RunFailedError(
            f"nodes of run {self._run_id!r} failed: {failures}{self._progress()}",
            **self._reached(),
        )

    def cancelled(self) -> RunCancelledError:
        """The error of a run that was stopped."""
        return RunCancelledError(
            f"run {self._run_id!r} was cancelled{self._progress()}", **self._reached()
        )

    def _progress(self) -> str:
        count = len(self.values) - len(self._inputs)
        return f"; results of what had completed are in .results: {count}" if count else ""

    def _reached(self) -> Reached:
        return Reached(
            results={k: value for k, value in self.values.items() if k not in self._inputs},
            failures=self.failures,
            skipped=self._behind_failures(),
        )

    def _behind_failures(self) -> list[str]:
        """The names of all nodes that depend on a failure, whether the run came to them or not."""
        behind: dict[N, None] = {}
        pending = list(self._failed_nodes)
        for node in pending:  # grows while it is walked
            for later in self._successors.get(node, ()):
                if later not in behind:
                    behind[later] = None
                    pending.append(later)
        return [node.task_name for node in behind]


def _told(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # an exception of the user's that cannot tell what it is
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
