"""Interprets the errors of NATS and of its client. Imports the client, and no broker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nats.aio.client import Client
from nats.errors import (
    ConnectionClosedError,
    ConnectionReconnectingError,
    NoRespondersError,
    NoServersError,
    OutboundBufferLimitError,
    StaleConnectionError,
)
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.errors import APIError, NoStreamResponseError, ServiceUnavailableError
from nats.protocol.parser import PERMISSIONS_ERR

from taskiq_flow.errors import ConfigurationError

_OUTAGES = (
    ConnectionClosedError,
    ConnectionReconnectingError,
    NatsTimeoutError,
    NoRespondersError,
    NoServersError,
    NoStreamResponseError,
    OutboundBufferLimitError,
    ServiceUnavailableError,
    StaleConnectionError,
    OSError,
)

_AWAY = (*(kind for kind in _OUTAGES if kind is not ConnectionClosedError), APIError)

# Numbers of JetStream's errors, as in ``server/errors.json`` of nats-server. What comes with the
# status 503 passes as well, but for a server or an account that has no JetStream.
_PASSING = frozenset(
    {
        10005,  # no suitable peers for placement
        10009,  # the cluster has no leader
        10026,  # too many consumers: reading a result makes one, which is there for 5 s more
        10118,  # the stream is offline
        10119,  # the consumer is offline
    }
)
_FULL = frozenset(
    {
        10002,  # the account's limits
        10023,  # insufficient resources
        10028,  # memory
        10047,  # storage
        10077,  # the stream's limits, if it refuses new messages
    }
)
_WITHOUT_JETSTREAM = frozenset({10039, 10076})
_UNAVAILABLE = 503


def is_outage(error: BaseException) -> bool:
    """Whether an error says that the server cannot serve now, and may later."""
    if isinstance(error, APIError):
        number, status = error.err_code, error.code
        if number in _FULL or number in _WITHOUT_JETSTREAM:
            return False
        return number in _PASSING or status == _UNAVAILABLE
    return isinstance(error, _OUTAGES)


def is_full(error: BaseException) -> bool:
    """Whether an error says that the server has no room."""
    return isinstance(error, APIError) and error.err_code in _FULL


def is_away(error: BaseException) -> bool:
    """Whether a listening client may try again after an error: not if it was closed.

    A server that has just come up answers with errors of its API.
    """
    return isinstance(error, _AWAY)


@contextmanager
def naming_refusals(client: Client) -> Iterator[None]:
    """Raise ``ConfigurationError`` where a request got no answer as the user may not make it.

    The server says so beside the request, which finds out only by its timeout.
    """
    before = client.last_error
    try:
        yield
    except TimeoutError as error:
        raise_if_refused(client, before, error)
        raise


def raise_if_refused(
    client: Client, before: Exception | None, cause: Exception | None = None
) -> None:
    """Raise ``ConfigurationError`` if the user was refused a subject since ``before``.

    ``before``: the client's ``last_error`` at that time.
    """
    refusal = client.last_error
    if refusal is not None and refusal is not before and PERMISSIONS_ERR in str(refusal):
        # The client has put the subject into lower case.
        raise ConfigurationError(f"{refusal}; give the user that right") from cause
