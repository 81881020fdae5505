"""Finds the system of a broker, a result backend or a URL, and imports its module on demand."""

from __future__ import annotations

import importlib
from typing import Any
from urllib.parse import urlsplit

from taskiq_flow.reconnect import Outages
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


def outages_of(*things: object) -> Outages:
    """The errors by which brokers and result backends say that a server cannot be reached."""
    systems = [system for system in map(system_of, things) if system is not None]
    return (OSError, *(kind for system in systems for kind in system.OUTAGES))


def system_at(url: str) -> System:
    """The system that a URL of one of the ``SCHEMES`` names."""
    return _system(SCHEMES[urlsplit(url).scheme])


def _system(name: str) -> System:
    module: Any = importlib.import_module(f"taskiq_flow.transport.{name}")
    system: System = module
    return system
