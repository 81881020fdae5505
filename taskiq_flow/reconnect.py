"""Retrying with exponential backoff while a server is unreachable or says «not now»."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import TypeVar
from weakref import WeakKeyDictionary

from taskiq_flow.errors import ServerUnreachableError

logger = logging.getLogger("taskiq_flow")

T = TypeVar("T")

IsOutage = Callable[[BaseException], bool]
"""Whether an error says that a server cannot serve now, and may later."""

OUTAGE_TIMEOUT = 60.0
"""Seconds of an outage after which an engine's call fails. Workers wait for its end."""

_LOCAL = (PermissionError, FileNotFoundError, IsADirectoryError, ssl.SSLCertVerificationError)
"""Errors of the operating system that say nothing of a server that is away."""

_FIRST_DELAY, _MAX_DELAY = 0.05, 2.0

CANCEL_AGAIN_AFTER = 1.0
"""Seconds after which a client that listens on although it was cancelled is cancelled again."""

_REPEATED_AFTER = 10.0
"""Seconds after which a problem is logged again."""

_warned_at: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, float]] = WeakKeyDictionary()


def backoff_delays(first: float = _FIRST_DELAY, longest: float = _MAX_DELAY) -> Iterator[float]:
    """Seconds to wait before each retry, without end; each delay is twice the previous one."""
    while True:
        yield first
        first = min(2 * first, longest)


async def retry_through_outage(
    call: Callable[[], Awaitable[T]],
    is_outage: IsOutage,
    what: str,
    seconds: float = OUTAGE_TIMEOUT,
) -> T:
    """Return what ``call`` returns. It is called again while it raises an error of an outage.

    Raises the last of them after ``seconds``, and ``CancelledError`` if the task was cancelled and
    the client raised such an error in its place. ``what``: the problem, for the log.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    cancellations = _cancellations(loop)
    for number, delay in enumerate(backoff_delays()):
        try:
            return await call()
        except Exception as error:
            if _cancellations(loop) > cancellations:
                raise asyncio.CancelledError from error
            if not may_pass(error, is_outage) or loop.time() + delay > deadline:
                raise
            if not number:
                warn_of_outage(what, error, seconds)
        await asyncio.sleep(delay)
    raise AssertionError("the delays have no end")


async def listen_through_outages(
    listen: Callable[[], AsyncGenerator[T, None]],
    is_outage: IsOutage,
    what: str,
    *,
    ends_when_cancelled: bool = False,
) -> AsyncGenerator[T, None]:
    """Yield what ``listen`` yields. It is called again after each error of an outage.

    If the reader's task is cancelled, the listening ends, whatever the client makes of that.
    ``ends_when_cancelled``: it does so by itself, with whatever error, so that it needs no asyncio
    task of its own for each item.
    """
    loop = asyncio.get_running_loop()
    delays = backoff_delays()
    is_away = False
    while True:
        began, cancellations = loop.time(), _cancellations(loop)
        try:
            async with aclosing(listen()) as items:
                until = items if ends_when_cancelled else _until_cancelled(items)
                async with aclosing(until):
                    async for item in until:
                        is_away = False
                        yield item
                        cancellations = _cancellations(loop)  # maybe of another reader's task
        except Exception as error:
            if _cancellations(loop) > cancellations:
                raise asyncio.CancelledError from error
            if not may_pass(error, is_outage):
                raise
            if not is_away or loop.time() - began > _MAX_DELAY:  # it had connected in between
                is_away, delays = True, backoff_delays()
                warn_of_outage(what, error, math.inf)
        else:
            return
        await asyncio.sleep(next(delays))


async def _until_cancelled(items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Yield ``items`` until the reader's task is cancelled; then cancel them until they end.

    Clients may lose a cancellation: one may swallow it, as ``asyncio.wait_for`` of Python 3.11 does
    if its call ends at that moment, or raise another error in its place. An item that comes at that
    moment is yielded as the last one.
    """
    cancellation: asyncio.CancelledError | None = None
    again_after: float | None = None
    while cancellation is None:
        following = asyncio.ensure_future(anext(items))
        while not following.done():
            try:
                await asyncio.wait([following], timeout=again_after)
            except asyncio.CancelledError as error:
                cancellation, again_after = error, CANCEL_AGAIN_AFTER
            if cancellation is not None:
                following.cancel()
        if cancellation is not None and (following.cancelled() or following.exception()):
            raise cancellation
        try:
            item = following.result()
        except StopAsyncIteration:
            return
        yield item


@contextlib.contextmanager
def telling_who_is_away(what: str, served: object, is_outage: IsOutage) -> Iterator[None]:
    """Raise ``ServerUnreachableError`` in place of an outage that was waited for in vain.

    ``what``: has failed by it. ``served``: the broker or the result backend.
    """
    try:
        yield
    except Exception as error:
        if not may_pass(error, is_outage):
            raise
        raise ServerUnreachableError(
            f"{what}, as the server of {type(served).__name__} was away for {OUTAGE_TIMEOUT:g} s: "
            f"{text_of(error)}"
        ) from error


def text_of(error: BaseException) -> str:
    """An error's type and text, for messages: the ``repr`` of some clients' errors has no text."""
    return f"{type(error).__name__}: {error}"


def _cancellations(loop: asyncio.AbstractEventLoop) -> int:
    """How often the asyncio task that runs on the loop was cancelled."""
    task = asyncio.current_task(loop)
    return 0 if task is None else task.cancelling()


def may_pass(error: BaseException, is_outage: IsOutage) -> bool:
    """Whether an error is that of an outage, which is waited for."""
    return is_outage(error) and not isinstance(error, _LOCAL)


def warn_of_outage(what: str, error: BaseException, seconds: float) -> None:
    """Log an outage. Many calls meet it at once, and one line says so for all of them.

    ``what``: the problem. ``seconds``: for how long the call is repeated.
    """
    loop = asyncio.get_running_loop()
    warned_at = _warned_at.setdefault(loop, {})
    if loop.time() - warned_at.get(what, -math.inf) < _REPEATED_AFTER:
        return
    warned_at[what] = loop.time()
    how_long = "until it succeeds" if seconds == math.inf else f"for {seconds:g} s"
    logger.warning("%s: %s; trying again %s", what, text_of(error), how_long)
