"""Interprets the errors of RabbitMQ and of its client. Imports the client, and no broker."""

from __future__ import annotations

import asyncio

from aio_pika.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    IncompatibleProtocolError,
    MethodNotImplemented,
    ProbableAuthenticationError,
)
from aiormq.exceptions import ChannelAccessRefused, ConnectionNotAllowed

CLIENT_ERRORS = (AMQPError, ChannelInvalidStateError, OSError, asyncio.TimeoutError)
"""What the client raises when the server is away, or refuses something."""

_REFUSALS = (
    *(AuthenticationError, ProbableAuthenticationError, IncompatibleProtocolError),
    *(ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed),
    *(ConnectionNotAllowed, MethodNotImplemented),
)

_NOT_NOW = (
    "timed out",  # consumer_timeout: the channel is opened anew
    "unknown delivery tag",  # of an earlier channel
    "down or inaccessible",  # the node of a queue
    "stopped by supervisor",
    "limit",  # of connections
)
"""Parts of a refusal's text that say that it passes."""


def is_outage(error: BaseException) -> bool:
    """Whether an error says that the server cannot serve now, and may later."""
    if isinstance(error, _REFUSALS):
        return any(part in str(error) for part in _NOT_NOW)
    return isinstance(error, CLIENT_ERRORS)


def is_full(_: BaseException) -> bool:
    """A server without room lets its clients wait, and answers with no error."""
    return False


def is_outage_or_gone(error: BaseException) -> bool:
    """Like ``is_outage``, and also true if a queue is gone: it will soon be declared again."""
    return is_outage(error) or isinstance(error, ChannelNotFoundEntity)
