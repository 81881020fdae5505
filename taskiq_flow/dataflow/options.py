"""The options of a node: retries, caching, join rules, conditions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, get_args

from taskiq_flow.dataflow.binding import parameters_of
from taskiq_flow.dataflow.ready_set import Join
from taskiq_flow.errors import SerializationError

Condition = Callable[..., object]
"""A function that says whether a node runs. Its parameters are keys of the graph."""


class _NoFallback:
    def __repr__(self) -> str:
        return "NO_FALLBACK"


NO_FALLBACK: Final = _NoFallback()
"""The node has no fallback. ``None`` would be a fallback value like any other."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a node is tried, and how long to wait before each further attempt.

    ``attempts``: executions of the task, the first included. ``wait``: seconds before the second
    attempt, ``factor`` times as many before each further one, ``max_wait`` at the most; up to the
    share ``jitter`` of that is left out by chance, so that not all come back at the same moment.
    ``on``: the errors behind which there is a further attempt. A value that cannot be carried
    (``SerializationError``) is none of them: it will not be carried the next time either.

    Raises ``ValueError`` or ``TypeError`` for what no node can be tried by.
    """

    attempts: int = 3
    wait: float = 0.1
    factor: float = 2.0
    max_wait: float = 60.0
    jitter: float = 0.1
    on: tuple[type[BaseException], ...] = (Exception,)

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):
            raise TypeError(f"attempts is {self.attempts!r}; give a whole number from 1 on")
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; give a whole number from 1 on")
        for name, least in (("wait", 0.0), ("factor", 1.0), ("max_wait", 0.0), ("jitter", 0.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} is {value!r}; give a number from {least:g} on")
        if self.jitter > 1:
            raise ValueError(f"jitter is {self.jitter!r}; give a share, from 0 to 1")
        kinds = (self.on,) if isinstance(self.on, type) else tuple(self.on)
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise TypeError(f"on holds {kind!r}; give classes of exceptions")
        object.__setattr__(self, "on", kinds)

    def covers(self, error: BaseException) -> bool:
        """Whether a further attempt may follow this error."""
        return isinstance(error, self.on) and not isinstance(error, SerializationError)

    def delay(self, failures: int, chance: float) -> float:
        """Seconds to wait after so many failed attempts. ``chance``: random, between 0 and 1."""
        try:
            grown = self.wait * self.factor ** (failures - 1)
        except OverflowError:
            grown = math.inf
        return min(grown, self.max_wait) * (1 - self.jitter * chance)


@dataclass(frozen=True, slots=True)
class Cache:
    """A node's result is cached, and used again for the same task with the same inputs.

    ``ttl``: seconds after which it expires, ``None`` for never. It is stored beside the engine's
    journal, for all engines with that journal; without one, in the engine's memory.
    """

    ttl: float | None = None

    def __post_init__(self) -> None:
        if self.ttl is not None:
            check_seconds("ttl", self.ttl)


def check_seconds(name: str, value: float | None) -> None:
    """Raise ``ValueError`` unless ``value`` is a time limit in seconds, or ``None`` for none."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}; give a number of seconds above 0, or None")


def check_join(task_name: str, join: Any) -> None:
    """Raise ``ValueError`` for an unknown join rule."""
    if join not in get_args(Join):
        raise ValueError(f"join of node {task_name!r} is {join!r}; give one of {get_args(Join)}")


def condition_keys(task_name: str, when: Condition | None) -> tuple[list[str], list[str]]:
    """The keys that a condition requires, and the keys that it takes if they have a value.

    Raises ``TypeError`` for anything but a plain function that takes keys by name.
    """
    if when is None:
        return [], []
    if not callable(when) or inspect.iscoroutinefunction(when):
        raise TypeError(f"when of node {task_name!r} is {when!r}; give a plain function")
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters, _ = parameters_of(when)
    if odd := [p.name for p in parameters if p.kind not in by_name]:
        raise TypeError(
            f"when of node {task_name!r} takes {odd[0]!r}, which has no name of its own to be "
            "given a key by; name each parameter after the key that it needs"
        )
    empty = inspect.Parameter.empty
    return (
        [p.name for p in parameters if p.default is empty],
        [p.name for p in parameters if p.default is not empty],
    )
