"""Finds the system of a broker, a result backend or a URL, and imports its module on demand."""

from __future__ import annotations

import importlib
import re
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from taskiq_flow.reconnect import IsOutage
from taskiq_flow.transport.protocol import System

_BY_PACKAGE = {"taskiq_redis": "redis", "taskiq_nats": "nats", "taskiq_aio_pika": "rabbitmq"}
SCHEMES = {
    "redis": "redis",
    "rediss": "redis",
    "unix": "redis",
    "nats": "nats",
    "tls": "nats",
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
}


def system_of(thing: object) -> System | None:
    """The system that a broker or a result backend belongs to, if it is one of those known."""
    for kind in type(thing).__mro__:
        name = _BY_PACKAGE.get(kind.__module__.partition(".")[0])
        if name is not None:
            return _system(name)
    return None


def outages_of(*things: object) -> IsOutage:
    """Whether an error of these brokers and result backends says that a server cannot serve now."""
    questions = [system.is_outage for system in map(system_of, things) if system is not None]
    return any_of(*questions) if questions else is_unreachable


def fullness_of(*things: object) -> IsOutage:
    """Whether an error of these brokers and result backends says that a server has no room."""
    return any_of(*(system.is_full for system in map(system_of, things) if system is not None))


def any_of(*questions: IsOutage) -> IsOutage:
    """Whether one of several clients says that its server cannot serve now."""
    return lambda error: any(is_outage(error) for is_outage in questions)


def is_unreachable(error: BaseException) -> bool:
    """Whether the operating system says that a server cannot be reached."""
    return isinstance(error, OSError)


def system_at(url: str) -> System:
    """The system that a URL of one of the ``SCHEMES`` names."""
    return _system(SCHEMES[urlsplit(url).scheme])


def without_secrets(url: str) -> str:
    """The URL for messages and logs: without its password, its token and such parameters."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if at:
        name, colon, _ = user.partition(":")
        # A lone user name is a token for NATS.
        user = f"{name}:***" if colon else "***"
    asked = parse_qsl(parts.query, keep_blank_values=True)
    shown = [(key, "***" if _SECRET.search(key) else value) for key, value in asked]
    return parts._replace(
        netloc=f"{user}{at}{host}", query=urlencode(shown, safe="*/:", quote_via=quote)
    ).geturl()


_SECRET = re.compile("pass|token|secret|key|auth|user|cred", re.IGNORECASE)


def _system(name: str) -> System:
    module: Any = importlib.import_module(f"taskiq_flow.transport.{name}")
    system: System = module
    return system
