"""Interprets the errors of Redis and of its client. Imports the client, and no broker."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

from redis import exceptions

from taskiq_flow.errors import SerializationError
from taskiq_flow.reconnect import text_of

logger = logging.getLogger("taskiq_flow")

DEFAULT_LIMIT = 512 * 1024 * 1024
"""Bytes of one value that a server takes, by default (``proto-max-bulk-len``)."""

LEAST_LIMIT = 1024 * 1024
"""Bytes of one value that every server takes."""

_PASSING = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    exceptions.AskError,
    exceptions.SlotNotCoveredError,
    OSError,
)

_FOR_GOOD = (exceptions.AuthenticationError, exceptions.AuthorizationError)
"""Refusals, which the client counts among the errors of connections."""

_NOT_NOW = re.compile(
    r"(?:^|[-\s])(?:"
    "BUSY"  # a script or a module runs for longer than ``busy-reply-threshold``
    "|CLUSTERDOWN"  # a slot of a cluster has no node, or the cluster no majority
    "|LOADING"  # the server reads its data after a start
    "|MASTERDOWN"  # a replica has lost its master
    "|MISCONF"  # it cannot write to its disk
    "|NOREPLICAS"  # fewer replicas than it needs to accept a write
    "|READONLY"  # it has become a replica: a failover
    "|TRYAGAIN"  # a slot is being moved
    "|UNBLOCKED"  # it has let go a client that waited: a failover, or a stream that is gone
    r")\b"
)
"""The codes by which a server says that it cannot serve now.

They begin its error, or stand within it behind a ``-`` if a script was refused.
"""


def is_outage(error: BaseException) -> bool:
    """Whether an error says that the server cannot serve now, and may later."""
    if isinstance(error, _FOR_GOOD):
        return False
    if isinstance(error, _PASSING):
        return True
    if isinstance(error, exceptions.ResponseError):
        return _NOT_NOW.search(str(error)) is not None
    if type(error) is exceptions.RedisClusterException:
        # The client of a cluster has reached no node, and says of the last one why.
        cause = error.__cause__
        passes = ("slots are not covered", "could not agree")
        return is_outage(cause) if cause else any(text in str(error) for text in passes)
    # It has followed slots that are being moved for too long.
    return type(error) is exceptions.ClusterError


def is_demoted(error: BaseException) -> bool:
    """Whether an error says that the server has become a replica, also to a script's command.

    The client knows Redis 6's refusal of a script's command for a ``ResponseError`` only.
    """
    return isinstance(error, exceptions.ReadOnlyError) or (
        isinstance(error, exceptions.ResponseError) and " -READONLY " in str(error)
    )


def is_full(error: BaseException) -> bool:
    """Whether an error says that the server has no room: ``maxmemory`` is reached."""
    return isinstance(error, exceptions.OutOfMemoryError) or (
        isinstance(error, exceptions.ResponseError) and "OOM command not allowed" in str(error)
    )


class naming:  # noqa: N801 - used as a function
    """Adds the command and its key or channel to the error if the user may not use them.

    The server names neither key nor channel. A class, as it is entered for each command: a
    generator would take four times as long.
    """

    __slots__ = ("_command", "_name")

    def __init__(self, command: str, name: str) -> None:
        self._command = command
        self._name = name

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, exceptions.NoPermissionError):
            text = f"{error} ({self._command} {self._name}); give the user that right"
            raise exceptions.NoPermissionError(text) from error


def is_without_group(error: BaseException) -> bool:
    """Whether an error says that a stream or its group is gone, as after ``FLUSHALL``.

    Redis 6 answers ``NOGROUP`` to clients that wait, Redis 7 ``UNBLOCKED``.
    """
    text = str(error)
    return isinstance(error, exceptions.ResponseError) and (
        "NOGROUP" in text or "the stream key no longer exists" in text
    )


@asynccontextmanager
async def explaining_size(
    client: Any, size_of: Callable[[], int], what: str
) -> AsyncIterator[None]:
    """Raise ``SerializationError`` where a value is larger than the server takes.

    The server closes the connection while such a value is written, as in an outage. ``size_of``:
    gives the bytes of the value; called after an error.
    """
    try:
        yield
    except (exceptions.RedisError, OSError) as error:
        size = size_of()
        if size <= LEAST_LIMIT or size <= (limit := await _limit_of(client)):
            raise
        raise SerializationError(
            f"{what} has {size} bytes, and the Redis server takes no value above {limit} bytes: "
            "make it smaller (a message: with pass_by=), or raise the server's proto-max-bulk-len"
        ) from error


async def _limit_of(client: Any) -> float:
    """The bytes of one value that a server takes. Infinite while it does not answer."""
    try:
        answer = await client.config_get("proto-max-bulk-len")
        return int(answer["proto-max-bulk-len"])
    except (
        exceptions.ResponseError,
        KeyError,
    ) as error:  # not told to this user, or at all
        logger.debug("the server does not tell its limit on values: %s", text_of(error))
        return DEFAULT_LIMIT
    except (exceptions.RedisError, OSError) as error:
        logger.debug("the server's limit on values is not known: %s", text_of(error))
        return math.inf
