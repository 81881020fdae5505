"""What a NATS server refuses a user. Imports NATS's client, and no broker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nats.aio.client import Client
from nats.protocol.parser import PERMISSIONS_ERR

from taskiq_flow.errors import ConfigurationError


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
