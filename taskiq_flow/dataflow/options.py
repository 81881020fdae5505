"""The options of a node: retries, caching, join rules, conditions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import timedelta
from numbers import Integral, Real
from typing import Any, Final, get_args

from taskiq_flow.dataflow.ready_set import Join
from taskiq_flow.errors import ItemsChangedError, SerializationError
from taskiq_flow.suggestions import suggests_keywords

Seconds = float | timedelta
"""A time limit: a number of seconds, or a ``timedelta``."""


class Product:
    """Keys whose elements a node takes in every combination, the last of them the fastest.

    Each is a key, or several keys that are taken together, or a key with the number of its levels.
    The node gives lists within lists. Outer levels that the keys have in common are there once.

    >>> dag = (
    ...     DAGBuilder()
    ...     .node(pow, inputs=["bases", "powers"], map_over=Product("bases", "powers"))
    ...     .build()
    ... )
    >>> ExecutionEngine(InMemoryBroker(), dag).execute_sync({"bases": [2, 3], "powers": [0, 1, 2]})
    {'pow': [[1, 2, 4], [1, 3, 9]]}
    """

    __slots__ = ("factors",)

    def __init__(self, *factors: str | Iterable[str] | Mapping[str, int]) -> None:
        if len(factors) < 2:  # noqa: PLR2004 - one alone multiplies nothing
            raise ValueError("Product(...) has fewer than two keys; give map_over= the key itself")
        self.factors = factors

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.factors))})"


MapOver = str | Iterable[str] | Mapping[str, int] | Product
"""What a node maps over: a key, several that are taken together by position, keys with how many
levels of their lists, or a ``Product``."""


class _NoFallback:
    def __repr__(self) -> str:
        return "NO_FALLBACK"

    def __reduce__(self) -> str:
        return "NO_FALLBACK"  # copies and pickles are the object itself


NO_FALLBACK: Final = _NoFallback()
"""The node has no fallback. ``None`` would be a fallback value like any other."""


@suggests_keywords(
    max_attempts="attempts=",
    max_retries="attempts=, which counts the first attempt too",
    retries="attempts=, which counts the first attempt too",
    tries="attempts=",
    backoff="factor=, by which the wait grows, or wait=, the seconds before the second attempt",
    backoff_factor="factor=",
    multiplier="factor=",
    delay="wait=",
    wait_seconds="wait=",
    max_delay="max_wait=",
    exceptions="on=",
    retry_on="on=",
)
@dataclass(frozen=True, slots=True)
class Retry:
    """How often a node is tried, and how long to wait before each further attempt.

    ``attempts``: executions of the task, the first included. ``wait``: seconds or a ``timedelta``
    before the second attempt. The wait grows by ``factor`` before each further one, up to
    ``max_wait``, or stays as it is if it is longer. A random share of it, up to ``jitter``, is left
    out, so that nodes that failed together are not all tried again at the same moment. ``on``: the
    errors after which the node is tried again. ``SerializationError`` and ``ItemsChangedError`` are
    never among them: the same fails again.

    Raises ``ValueError`` or ``TypeError`` for values that make no sense.

    >>> node = DAGNode(print, retry=Retry(attempts=5, wait=0.5, on=(ConnectionError, TimeoutError)))
    >>> DAGNode(print, retry=3).retry == Retry(attempts=3)
    True
    """

    attempts: int = 3
    wait: Seconds = 0.1
    factor: float = 2.0
    max_wait: Seconds = 60.0
    jitter: float = 0.1
    on: tuple[type[BaseException], ...] = (Exception,)

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, Integral):
            raise TypeError(f"attempts is {self.attempts!r}; give a whole number from 1 on")
        if (attempts := whole_number(self.attempts, 1)) is None:
            raise ValueError(f"attempts is {self.attempts}; give a whole number from 1 on")
        object.__setattr__(self, "attempts", attempts)
        self._check_waits()
        if isinstance(self.on, str) or not isinstance(self.on, (type, Iterable)):
            raise TypeError(f"on is {self.on!r}; give classes of exceptions")
        kinds = (self.on,) if isinstance(self.on, type) else tuple(self.on)
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise TypeError(f"on holds {kind!r}; give classes of exceptions")
        object.__setattr__(self, "on", kinds)

    def _check_waits(self) -> None:
        for name, least in (("wait", 0.0), ("factor", 1.0), ("max_wait", 0.0), ("jitter", 0.0)):
            value: Any = getattr(self, name)
            if name in {"wait", "max_wait"}:
                value = in_seconds(name, value)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name} is {value!r}; give a number from {least:g} on")
            if not (math.isfinite(value) and float(value) >= least):
                raise ValueError(f"{name} is {value!r}; give a number from {least:g} on")
        if self.jitter > 1:
            raise ValueError(f"jitter is {self.jitter!r}; give a share, from 0 to 1")

    def covers(self, error: BaseException) -> bool:
        """Whether a further attempt may follow this error."""
        never = (SerializationError, ItemsChangedError)
        return isinstance(error, self.on) and not isinstance(error, never)

    def delay(self, failures: int, chance: float) -> float:
        """Seconds to wait after so many failed attempts. ``chance``: random, between 0 and 1."""
        try:
            factor = self.factor ** (failures - 1)
        except OverflowError:
            factor = math.inf
        wait = in_seconds("wait", self.wait)
        grown = min(wait * factor, in_seconds("max_wait", self.max_wait)) if wait else 0.0
        return max(grown, wait) * (1 - self.jitter * chance)


@suggests_keywords(expire="ttl=", expires="ttl=", max_age="ttl=", timeout="ttl=")
@dataclass(frozen=True, slots=True)
class Cache:
    """A node's result is cached, and used again for the same task with the same inputs.

    ``ttl``: seconds or a ``timedelta`` after which it expires, ``None`` for never. It is stored
    beside the engine's journal, for all engines with that journal; without one, in the engine's
    memory. The task's own code counts, with its defaults and what it has closed over. Functions
    that it calls and global variables do not.

    >>> def square(number):
    ...     print("computing")
    ...     return number * number
    >>> dag = DAGBuilder().node(square, cache=Cache(ttl=3600)).build()
    >>> engine = ExecutionEngine(InMemoryBroker(), dag)
    >>> engine.execute_sync({"number": 3}), engine.execute_sync({"number": 3})
    computing
    ({'square': 9}, {'square': 9})
    """

    ttl: Seconds | None = None

    def __post_init__(self) -> None:
        time_limit("ttl", self.ttl)

    @property
    def seconds(self) -> float | None:
        """``ttl`` in seconds."""
        return time_limit("ttl", self.ttl)


def in_seconds(name: str, value: Any) -> float:
    """A number of seconds, or a ``timedelta``, as seconds.

    ``name``: of the argument, for the message. Raises ``TypeError`` for anything else.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; give a number of seconds, or a timedelta")
    return value  # type: ignore[return-value]  # a Real that is no float is as good


def time_limit(name: str, value: Any) -> float | None:
    """A time limit in seconds; ``None`` for none.

    Raises ``TypeError``, or ``ValueError`` unless it is above 0.
    """
    if value is None:
        return None
    seconds = in_seconds(name, value)
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"{name} is {value!r}; give a number of seconds above 0, or None")
    return seconds


def whole_number(value: Any, least: int) -> int | None:
    """A whole number of any type but ``bool``, such as one of NumPy's; ``None`` if it is none.

    Also ``None`` if it is less than ``least``.
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    return int(value) if is_whole and value >= least else None


def most_parallel(name: str, value: Any) -> int | None:
    """How many may run at once; ``None`` for any number. Otherwise raises ``ValueError``."""
    number = whole_number(value, 1)
    if value is not None and number is None:
        raise ValueError(
            f"{name} is {value!r}; give a whole number from 1 on, or None for no limit"
        )
    return number


def mapped_keys(task_name: str, map_over: Any) -> tuple[dict[str, int], ...]:
    """The keys that a node maps over with their levels, by factor; empty for one that runs once."""
    if map_over is None:
        return ()
    of_node = f"map_over of node {task_name!r}"
    if not isinstance(map_over, Product):
        return (_keys_with_levels(of_node, map_over),)
    factors = tuple(_keys_with_levels(of_node, factor) for factor in map_over.factors)
    keys = [key for factor in factors for key in factor]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{of_node} repeats a key: {keys}")
    return factors


def _keys_with_levels(of_node: str, given: Any) -> dict[str, int]:
    if isinstance(given, str):
        return {given: 1}
    if not isinstance(given, Iterable):
        raise TypeError(
            f"{of_node} is {given!r}; give a key, a list of keys, keys with their levels as in "
            "{'rows': 2}, or a Product"
        )
    keys = list(given)
    if isinstance(given, AbstractSet):
        raise TypeError(f"{of_node} is a set, which has no order; give a list, as in {keys}")
    if odd := [key for key in keys if not isinstance(key, str)]:
        raise TypeError(f"{of_node} holds {odd[0]!r}; keys are strings")
    if not keys:
        raise ValueError(f"{of_node} is empty; leave it out to run the task once")
    if len(set(keys)) != len(keys):
        raise ValueError(f"{of_node} repeats a key: {keys}")
    levels = dict(given) if isinstance(given, Mapping) else dict.fromkeys(keys, 1)
    found: dict[str, int] = {}
    for key, count in levels.items():
        if (number := whole_number(count, 1)) is None:
            raise ValueError(f"{of_node} has {key!r}: {count!r}; give a number of levels from 1 on")
        found[key] = number
    return found


def as_retry(name: str, value: Any) -> Retry | None:
    """A retry; a whole number is taken as its ``attempts``. Raises ``TypeError``."""
    if value is None or isinstance(value, Retry):
        return value
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"{name} is {value!r}; give Retry(attempts=3), or a whole number of attempts"
        )
    if (attempts := whole_number(value, 1)) is None:
        raise ValueError(f"{name} is {value!r}; give a number of attempts from 1 on, or None")
    return Retry(attempts=attempts)


def as_cache(name: str, value: Any) -> Cache | None:
    """A cache; ``True`` is taken as ``Cache()``, ``False`` as ``None``. Raises ``TypeError``."""
    if isinstance(value, bool):
        return Cache() if value else None
    if value is None or isinstance(value, Cache):
        return value
    raise TypeError(f"{name} is {value!r}; give Cache(ttl=seconds), True, or None")


def check_join(task_name: str, join: Any) -> None:
    """Raise ``ValueError`` for an unknown join rule."""
    if join not in get_args(Join):
        raise ValueError(f"join of node {task_name!r} is {join!r}; give one of {get_args(Join)}")
