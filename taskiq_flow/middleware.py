"""The middleware that users add to their broker, on the engine's side and on the workers'."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Generic, Literal, Protocol, TypeVar

from taskiq import (
    AsyncBroker,
    AsyncTaskiqDecoratedTask,
    InMemoryBroker,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)

from taskiq_flow.completion.inbox import Inbox
from taskiq_flow.dataflow.known_classes import ClassesOfTasks
from taskiq_flow.dataflow.options import Seconds, time_limit, whole_number
from taskiq_flow.errors import ConfigurationError
from taskiq_flow.reconnect import IsOutage, retry_through_outage, text_of
from taskiq_flow.suggestions import suggests_keywords
from taskiq_flow.transport.deliveries import Deliveries
from taskiq_flow.transport.protocol import Leftover, Notifier
from taskiq_flow.transport.systems import (
    SCHEMES,
    any_of,
    outages_of,
    system_at,
    system_of,
    without_secrets,
)
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import ValueCodec
from taskiq_flow.values.store import ValueStore
from taskiq_flow.values.wire import Wire
from taskiq_flow.worker.worker import Worker

CONNECT_PATIENCE = 8.0
"""Seconds for which a server may be away when a run begins. A worker waits for it."""

_DEFAULT_PREFIX = "taskiq_flow"

_PREFIX = re.compile(r"[A-Za-z0-9_:-]+(?:\.[A-Za-z0-9_:-]+)*")


@suggests_keywords()
class FlowMiddleware(TaskiqMiddleware):
    """Sends the outcomes of tasks from workers to engines, and cancellations to workers.

    To be added to the broker where engines run and where workers do. ``url``: what carries the
    notices, ``redis://``, ``nats://`` or ``amqp://``; left out, it is the broker's own server.
    ``inline_limit``: bytes up to which a result travels with its notice and need not be read from
    the result backend. ``prefix``: begins the name of each key, channel, queue and bucket that the
    middleware uses; of letters, digits and ``_.:-``. ``max_deliveries``: how often a task's message
    is delivered without an end of the task, as it kills its worker for example; then the task fails
    with ``TaskLostError``.

    Values that JSON does not carry are encoded by ``codec``, a ``ValueCodec`` to which types can be
    registered; the same on all sides. ``classes="known"`` restores objects of those classes that
    stand in the annotations of the broker's tasks or in the modules that define these;
    ``"imported"`` of all classes that the process has imported. ``secret``: values that are not
    sealed with it are not decoded.

    ``store``: an address that all processes of the broker reach and fsspec knows, such as
    ``file:///mnt/shared`` or ``s3://bucket/prefix``; needs the extra ``store``. Values of more than
    ``store_above`` bytes are written there, and the result backend and messages have their names.
    They are removed when their run is over, or else ``store_ttl`` after they were written (seconds
    or a ``timedelta``, ``None`` for never).

    Raises ``ConfigurationError`` for a URL or a broker of an unknown kind and for a store that
    cannot be used, ``ValueError`` for a limit or a prefix that is none.

    >>> from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker
    >>> url = "redis://localhost:6379"
    >>> broker = RedisStreamBroker(url).with_result_backend(RedisAsyncResultBackend(url))
    >>> broker.with_middlewares(FlowMiddleware(prefix="shop")).middlewares
    [<FlowMiddleware of RedisStreamBroker, prefix 'shop'>]
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        inline_limit: int = 65536,
        prefix: str = _DEFAULT_PREFIX,
        max_deliveries: int = 3,
        codec: ValueCodec | None = None,
        secret: str | bytes | None = None,
        classes: Literal["known", "imported"] = "known",
        store: str | None = None,
        store_above: int = 524_288,
        store_ttl: Seconds | None = 604800.0,
    ) -> None:
        super().__init__()
        if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
            raise ValueError(
                f"prefix is {prefix!r}; give letters, digits and any of _:- with single points"
            )
        max_deliveries = _checked_number("max_deliveries", max_deliveries, 1, "deliveries")
        inline_limit = _checked_number("inline_limit", inline_limit, 0, "bytes")
        if url is not None and url.partition("://")[0] not in SCHEMES:
            raise ConfigurationError(
                f"FlowMiddleware does not know what {without_secrets(url)!r} is; give a URL "
                f"that begins with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
            )
        if classes not in ("known", "imported"):
            raise ValueError(f"classes is {classes!r}; give 'known' or 'imported'")
        own = ClassesOfTasks(self._tasks) if classes == "known" else Classes.imported()
        key = secret.encode() if isinstance(secret, str) else secret
        codec = ValueCodec() if codec is None else codec
        store_above = _checked_number("store_above", store_above, 0, "bytes")
        ttl = time_limit("store_ttl", store_ttl)
        values = None
        if store is not None:
            values = ValueStore(store, prefix, codec, own, above=store_above, ttl=ttl)
        self.wire = Wire(codec, own, key, values)
        self._url = url
        self._inline_limit = inline_limit
        self.prefix = prefix
        self._max_deliveries = max_deliveries
        self._deliveries: Deliveries | None = None
        self.is_started = False
        self._inbox = _OnDemand(self._open_inbox)
        self._worker = _OnDemand(self._open_worker)

    def set_broker(self, broker: AsyncBroker) -> None:
        """Take the settings of a broker; taskiq calls this when the middleware is added."""
        own: AsyncBroker | None = getattr(self, "broker", None)
        if own is not None and own is not broker:
            raise ConfigurationError(
                f"this FlowMiddleware belongs to a {type(own).__name__} already; give the "
                f"{type(broker).__name__} one of its own"
            )
        super().set_broker(broker)
        if any(isinstance(other, FlowMiddleware) for other in broker.middlewares):
            raise ConfigurationError(
                f"this {type(broker).__name__} has a FlowMiddleware already; one is enough"
            )
        if not (self._is_carried_beside(broker) or self.is_embedded):
            raise ConfigurationError(
                f"FlowMiddleware cannot tell what carries its notices beside a "
                f"{type(broker).__name__}; name it, as in FlowMiddleware('redis://localhost')"
            )

    def __repr__(self) -> str:
        broker = getattr(self, "broker", None)
        of = "no broker yet" if broker is None else type(broker).__name__
        at = f", notices over {without_secrets(self._url)}" if self._url else ""
        return f"<{type(self).__name__} of {of}{at}, prefix {self.prefix!r}>"

    def _tasks(self) -> list[AsyncTaskiqDecoratedTask[Any, Any]]:
        return list(self.broker.get_all_tasks().values())

    @property
    def is_embedded(self) -> bool:
        """Whether the broker runs tasks in this process, where the middleware does nothing."""
        return isinstance(self.broker, InMemoryBroker)

    # taskiq's hooks

    async def startup(self) -> None:
        """On a worker, begin to listen before the first task comes."""
        self.is_started = True
        broker = self.broker
        stores_in = system_of(broker.result_backend)
        if stores_in is not None:
            stores_in.steady_reads(broker.result_backend)
        if not broker.is_worker_process or self.is_embedded:
            return
        # First in the list: it sees each task begin, whatever another middleware does then.
        broker.middlewares = [self, *(other for other in broker.middlewares if other is not self)]
        system = system_of(broker)
        if system is not None:
            self._deliveries = system.steady(broker)
        if stores_in is not None:
            stores_in.steady_results(broker.result_backend)
        await self._worker.get()

    async def shutdown(self) -> None:
        """Disconnect."""
        self.is_started = False
        await self._inbox.aclose()
        await self._worker.aclose()

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """On a worker, notice that a task is tried once more."""
        worker = self._worker.opened
        return message if worker is None else await worker.send_again(message)

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """On a worker, before a task is executed."""
        if (worker := self._worker.opened) is None:
            if self.is_embedded:
                return message
            worker = await self._worker.get()
        return await worker.begin(message)

    def on_error(
        self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException
    ) -> None:
        """On a worker, when a task has raised."""
        if (worker := self._worker.opened) is not None:
            if result.error is None:  # taskiq has left it out, as it is false
                result.error = exception
            worker.note_error(message, exception)

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """On a worker, after a task was executed."""
        if (worker := self._worker.opened) is not None:
            await worker.end(message, result)

    # The two sides, each opened when it is first needed

    async def inbox(self) -> Inbox:
        """The inbox of this process's engines.

        Raises ``ConfigurationError`` if the server cannot be reached, or the broker was not
        started.
        """
        return self._inbox.opened or await self._inbox.get()

    async def _open_inbox(self) -> Inbox:
        broker = self.broker
        system = system_of(broker)
        if system is not None and not system.is_started(broker):
            raise ConfigurationError(
                f"{type(broker).__name__} has not been started; call 'await broker.startup()' "
                "before the first run"
            )
        backlog = None if system is None else system.backlog_of(broker)
        notifier = self._notifier()
        inbox = Inbox(broker, notifier, backlog, self.prefix, self.wire)
        await self._open(inbox, notifier.is_outage, CONNECT_PATIENCE)
        return inbox

    async def _open_worker(self) -> Worker:
        broker, notifier = self.broker, self._notifier()
        is_outage = any_of(outages_of(broker, broker.result_backend), notifier.is_outage)
        worker = Worker(
            broker,
            notifier,
            is_outage,
            self._deliveries,
            inline_limit=self._inline_limit,
            max_deliveries=self._max_deliveries,
            wire=self.wire,
            others_may_repeat=may_repeat(m for m in broker.middlewares if m is not self),
            sees_saved=any(
                type(m).post_save is not TaskiqMiddleware.post_save for m in broker.middlewares
            ),
            prefix=self.prefix,
        )
        await self._open(worker, is_outage, math.inf)
        return worker

    async def _open(self, side: Inbox | Worker, is_outage: IsOutage, patience: float) -> None:
        store = self.wire.store
        if store is not None:
            away = f"store {store.address} is away"
            try:
                await retry_through_outage(store.check, store.is_outage, away, patience)
            except Exception as error:  # whatever fsspec and its client raise
                raise ConfigurationError(
                    f"FlowMiddleware cannot use store {store.address}: {text_of(error)}; create "
                    "the directory or mount its file system, or correct store="
                ) from error
        where = without_secrets(self._url) if self._url else f"that of {type(self.broker).__name__}"
        try:
            await retry_through_outage(
                side.open, is_outage, f"the server of notices, {where}, is away", patience
            )
        except Exception as error:  # refused for good, or wrong settings, as its client says it
            await side.aclose()
            raise ConfigurationError(
                f"FlowMiddleware cannot reach its server, {where}: {text_of(error)}; start "
                "it, or correct the settings of the broker or the URL"
            ) from error

    def _is_carried_beside(self, broker: AsyncBroker) -> bool:
        """Whether it is known what carries the notices."""
        return self._url is not None or system_of(broker) is not None

    def _notifier(self) -> Notifier:
        if self._url is not None:
            return system_at(self._url).notifier_at(self._url, self.prefix)
        system = system_of(self.broker)
        if system is None:
            raise AssertionError("a broker of unknown kind is refused when it is set")
        return system.notifier_of(self.broker, self.prefix)


async def inventory(broker: AsyncBroker) -> list[Leftover]:
    """What a broker and its ``FlowMiddleware`` have on the broker's server.

    The broker must have been started. A server that is away is waited for, up to a minute. Raises
    ``ConfigurationError`` for a broker of an unknown kind, and what the client raises.

        for item in await inventory(broker):
            print(item.name, item.kind, item.count, item.note)
    """
    system = system_of(broker)
    if system is None:
        raise ConfigurationError(
            f"what a {type(broker).__name__} has on its server is not known; inventory() takes "
            "brokers over Redis, NATS and RabbitMQ"
        )
    return await retry_through_outage(
        lambda: system.inventory_of(broker, prefix_of(broker)),
        system.is_outage,
        "the inventory cannot be read yet",
    )


def prefix_of(broker: AsyncBroker) -> str:
    """How the names begin that a broker's ``FlowMiddleware`` makes on the server."""
    flows = [m for m in broker.middlewares if isinstance(m, FlowMiddleware)]
    return flows[0].prefix if flows else _DEFAULT_PREFIX


def may_repeat(middlewares: Iterable[TaskiqMiddleware]) -> bool:
    """Whether any of these is told how tasks end, and may send one again."""
    base = TaskiqMiddleware
    return any(
        type(m).on_error is not base.on_error or type(m).post_execute is not base.post_execute
        for m in middlewares
    )


def codec_of(broker: AsyncBroker) -> ValueCodec | None:
    """The codec of a broker's ``FlowMiddleware``, if it has one."""
    wire = wire_of(broker)
    return None if wire is None else wire.codec


def wire_of(broker: AsyncBroker) -> Wire | None:
    """How a broker's processes encode values, if it has a ``FlowMiddleware``."""
    return next((m.wire for m in broker.middlewares if isinstance(m, FlowMiddleware)), None)


class _Side(Protocol):
    async def aclose(self) -> None: ...


S = TypeVar("S", bound=_Side)


class _OnDemand(Generic[S]):
    """One side of a middleware, opened on one event loop at its first use."""

    def __init__(self, open_side: Callable[[], Coroutine[Any, Any, S]]) -> None:
        self._open_side = open_side
        self._opening: asyncio.Task[S] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._side: S | None = None

    @property
    def opened(self) -> S | None:
        """The object, if it is open on the running event loop."""
        return self._side if self._loop is asyncio.get_running_loop() else None

    async def get(self) -> S:
        """The object, opened at need. Raises ``ConfigurationError`` while another loop has it."""
        loop = asyncio.get_running_loop()
        if self._opening is None or self._loop is not loop:
            if self._opening is not None and self._loop is not None and self._loop.is_running():
                raise ConfigurationError(
                    "this broker is in use on another event loop; give each event loop a broker "
                    "of its own"
                )
            self._loop, self._side = loop, None
            self._opening = loop.create_task(self._open_side())
        opening = self._opening
        await asyncio.wait([opening])  # which others may wait for as well
        if opening is self._opening:
            if opening.cancelled() or opening.exception() is not None:
                self._opening = None  # the next one tries again
            else:
                self._side = opening.result()
        return opening.result()

    async def aclose(self) -> None:
        """Close it, if it is open on the running event loop."""
        opening, self._opening, self._side = self._opening, None, None
        if opening is None or self._loop is not asyncio.get_running_loop():
            return
        await asyncio.wait([opening])  # takes a bounded time; nobody else may be there to wait
        if not opening.cancelled() and opening.exception() is None:
            await opening.result().aclose()


def _checked_number(name: str, value: object, least: int, unit: str) -> int:
    if (number := whole_number(value, least)) is None:
        raise ValueError(f"{name} is {value!r}; give a number of {unit}, {least} or more")
    return number
