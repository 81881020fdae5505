"""Finds the system of a broker, a result backend or a URL, and imports its module on demand."""

from __future__ import annotations

import importlib
import re
from typing import Any
from urllib.parse import urlsplit

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


def queue_of(broker: object) -> str | None:
    """The queue or subject to which a broker sends its tasks, if that is known."""
    for name in ("queue_name", "subject"):
        if isinstance(queue := getattr(broker, name, None), str):
            return queue
    task_queues = getattr(broker, "_task_queues", None)  # of RabbitMQ
    return str(task_queues[0].name) if task_queues else None


def system_at(url: str) -> System:
    """The system that a URL of one of the ``SCHEMES`` names."""
    return _system(SCHEMES[urlsplit(url).scheme])


def without_secrets(url: str) -> str:
    """The URL for messages and logs: without its passwords, tokens and unknown parameters.

    There may be several, as ``nats://a,nats://b``. Nothing is taken for granted: an address that is
    wrong is shown as well.
    """
    # A comma alone parts no addresses: it may stand in a password, and between hosts.
    return ",".join(map(_one_without_secrets, _BETWEEN_ADDRESSES.split(url)))


def _one_without_secrets(url: str) -> str:
    scheme, separator, rest = url.rpartition("://")
    user, at, host = rest.rpartition("@")
    if at:
        name, colon, _ = user.partition(":")
        # A lone user name is a token for NATS.
        user = f"{name}:***" if colon else "***"
    place, mark, query = host.partition("#")[0].partition("?")
    shown = [
        f"{key}={value if key in _HARMLESS else '***'}"
        for key, _, value in (word.partition("=") for word in query.split("&"))
        if key
    ]
    return f"{scheme}{separator}{user}{at}{place}{mark}{'&'.join(shown)}"


_BETWEEN_ADDRESSES = re.compile(r",(?=\s*[a-z][a-z0-9+.-]*://)", re.IGNORECASE)

_HARMLESS = {
    *("db", "max_connections", "prefix", "protocol", "socket_timeout"),
    *("heartbeat", "ssl_cert_reqs"),
}


def _system(name: str) -> System:
    module: Any = importlib.import_module(f"taskiq_flow.transport.{name}_broker")
    system: System = module
    return system
