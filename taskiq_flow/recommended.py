"""The broker that the docs recommend for an address, made of plain taskiq."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from taskiq import AsyncBroker, InMemoryBroker
from taskiq.serializers import JSONSerializer

from taskiq_flow.errors import ConfigurationError
from taskiq_flow.middleware import FlowMiddleware
from taskiq_flow.suggestions import check_keywords
from taskiq_flow.transport.systems import SCHEMES, without_secrets

RESULT_LIFE = 24 * 3600
"""Seconds for which results stay in Redis: longer than a run and its resumption should take."""

IDLE_TIMEOUT = 10_000
"""Milliseconds after which a killed worker's task is delivered again, over Redis streams.

Workers look for such tasks every half of it: 15 s at the most, below an engine's ``lost_after``.
"""

ACK_WAIT = 35.0
"""Seconds after which a killed worker's task is delivered again, over NATS."""

QOS = 100
"""Messages that RabbitMQ gives to a worker process at a time: taskiq's ``--max-async-tasks``."""

_EXTRAS = {"taskiq_redis": "redis", "taskiq_nats": "nats", "taskiq_aio_pika": "rabbitmq"}

_SECRET = ("auth", "cred", "key", "pass", "secret", "token")


def broker_for(
    url: str, *, results: str | None = None, store: str | None = None, **options: Any
) -> AsyncBroker:
    """The broker for an address, with its result backend and a ``FlowMiddleware``.

    >>> broker_for("memory://")
    InMemoryBroker()
    >>> broker = broker_for("redis://localhost:6379", idle_timeout=30_000)
    >>> broker.middlewares
    [<FlowMiddleware of RedisStreamBroker, prefix 'taskiq_flow'>]

    ``url``: ``redis://``, ``rediss://``, ``nats://``, ``amqp://`` or ``memory://``. ``results``:
    the ``redis://`` address of the result backend, by default the broker's own server. It is needed
    for ``amqp://``, as RabbitMQ stores no results. ``store``: the address where large values are
    written, as in ``FlowMiddleware(store=)``; tasks of ``memory://`` are given objects, and need
    none. ``options`` go to the broker's class and replace what is recommended.

    Values are serialized as JSON, and the task of a killed worker is delivered again before an
    engine's default ``lost_after`` is over. Results expire in Redis after a day. The broker's
    ``repr`` shows the plain taskiq that makes it.

    Raises ``ConfigurationError`` for an unknown scheme, for a package that is not installed, for
    missing ``results`` and for a ``store`` that cannot be opened; ``TypeError`` for an option that
    is almost one of the broker's, as others may be for its connections.
    """
    if not isinstance(url, str):
        raise TypeError(f"url is {url!r}; give a string such as 'redis://localhost:6379'")
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        made = _Call(InMemoryBroker, (), options)
        made.check_keywords()
        return made.make_broker("")
    system = SCHEMES.get(scheme)
    if system is None:
        known = ", ".join(f"{name}://" for name in (*SCHEMES, "memory"))
        raise ConfigurationError(
            f"broker_for does not know what {without_secrets(url)!r} is; give an address that "
            f"begins with one of {known}"
        )
    made = {"redis": _redis, "nats": _nats, "rabbitmq": _rabbitmq}[system](url, options)
    made.check_keywords()
    if results is not None or system == "redis":
        backend = _redis_results(url if results is None else results)
    elif system == "nats":
        kind = _module("taskiq_nats", url).NATSObjectStoreResultBackend
        backend = _Call(kind, (url,), {"serializer": _Call(JSONSerializer)})
    else:
        raise ConfigurationError(
            "RabbitMQ stores no results, so broker_for needs a Redis server for them; give its "
            f"address, as in broker_for({without_secrets(url)!r}, results='redis://localhost:6379')"
        )
    middleware = _Call(FlowMiddleware, (), {} if store is None else {"store": store})
    broker = made.make_broker(f".with_result_backend({backend!r}).with_middlewares({middleware!r})")
    broker.with_result_backend(backend.make()).with_middlewares(middleware.make())
    return broker


def _redis(url: str, options: Mapping[str, Any]) -> _Call:
    recommended = {"consumer_id": "0", "idle_timeout": IDLE_TIMEOUT}
    return _Call(_module("taskiq_redis", url).RedisStreamBroker, (url,), {**recommended, **options})


def _nats(url: str, options: Mapping[str, Any]) -> _Call:
    kind = _module("taskiq_nats", url).PullBasedJetStreamBroker
    api = _module("nats.js.api", url)
    named = {"stream_name": "tasks", "subject": "tasks", "durable": "workers"} | dict(options)
    consumer = {
        "durable_name": named["durable"],
        "ack_wait": ACK_WAIT,
        "max_ack_pending": 10_000,
    }
    recommended = {
        "stream_config": _Call(api.StreamConfig, (), {"retention": api.RetentionPolicy.WORK_QUEUE}),
        "consumer_config": _Call(api.ConsumerConfig, (), consumer),
        "pull_consume_timeout": 0.5,
    }
    return _Call(kind, (url,), {**recommended, **named})


def _rabbitmq(url: str, options: Mapping[str, Any]) -> _Call:
    return _Call(_module("taskiq_aio_pika", url).AioPikaBroker, (url,), {"qos": QOS, **options})


def _redis_results(url: str) -> _Call:
    if SCHEMES.get(urlsplit(url).scheme) != "redis":
        raise ConfigurationError(
            f"results is {without_secrets(url)!r}; give the redis:// address of a result backend, "
            "or add one of another kind with broker.with_result_backend(...)"
        )
    options = {"serializer": _Call(JSONSerializer), "result_ex_time": RESULT_LIFE}
    return _Call(_module("taskiq_redis", url).RedisAsyncResultBackend, (url,), options)


def _module(name: str, url: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = "taskiq_nats" if name.startswith("nats") else name
        raise ConfigurationError(
            f"{without_secrets(url)!r} needs the package {package.replace('_', '-')}; install it "
            f"with: pip install 'taskiq-flow[{_EXTRAS[package]}]'"
        ) from error


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a class that is to be made, and that can be shown."""

    kind: Any
    args: tuple[str, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> Any:
        kwargs = {k: v.make() if isinstance(v, _Call) else v for k, v in self.kwargs.items()}
        return self.kind(*self.args, **kwargs)

    def check_keywords(self) -> None:
        """Raise ``TypeError`` for an option that is misspelt."""
        parameters = inspect.signature(self.kind).parameters.values()
        own = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        known = ["results", "store", *own]
        check_keywords("broker_for", self.kwargs, known, passes_on=len(own) < len(parameters))

    def make_broker(self, and_then: str) -> AsyncBroker:
        """The broker, whose ``repr`` is this call and what is done after it."""
        text = f"{self!r}{and_then}"
        broker: AsyncBroker = self.make()
        namespace = {"__module__": self.kind.__module__, "__repr__": lambda _: text}
        broker.__class__ = type(self.kind.__name__, (self.kind,), namespace)
        return broker

    def __repr__(self) -> str:
        shown = [
            *(repr(without_secrets(arg)) for arg in self.args),
            *(f"{name}={_shown(name, value)}" for name, value in self.kwargs.items()),
        ]
        return f"{self.kind.__name__}({', '.join(shown)})"


def _shown(name: str, value: Any) -> str:
    if any(word in name.lower() for word in _SECRET):
        return "'***'"
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    return (
        repr(without_secrets(value)) if isinstance(value, str) and "://" in value else repr(value)
    )
