"""A broker of each kind with the same tasks: what workers serve, and what tests send."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from taskiq import (
    AsyncBroker,
    AsyncTaskiqDecoratedTask,
    Context,
    InMemoryBroker,
    NoResultError,
    SimpleRetryMiddleware,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers import JSONSerializer, MSGPackSerializer, PickleSerializer

from taskiq_flow import DAGBuilder, ExecutionEngine, FlowMiddleware
from taskiq_flow.completion import queue_warnings
from taskiq_flow.completion.queue_warnings import UNTAKEN
from taskiq_flow.values.call import present
from taskiq_flow.worker import absence, reports
from taskiq_flow.worker.absence import ENGINE_PATIENCE
from tests import plain_functions, process_functions
from tests.values import kinds

KINDS = ("in-memory", "redis-streams", "redis-lists", "nats", "rabbitmq")

SERIALIZERS = {"json": JSONSerializer, "msgpack": MSGPackSerializer, "pickle": PickleSerializer}

SETTINGS = "TASKIQ_FLOW_TEST_SETTINGS"
"""The environment variable by which a worker is told what broker it is to serve."""


@dataclass(frozen=True)
class Settings:
    """Which broker, at which servers. ``queue`` keeps those of different tests apart.

    ``options``: further arguments of a broker over Redis, or of NATS's connections, as JSON.
    ``serializer``: of messages and results, one of ``SERIALIZERS``.
    """

    kind: str
    redis: str = ""
    nats: str = ""
    rabbitmq: str = ""
    sentinel: int | tuple[int, ...] = 0
    queue: str = "tests"
    flow: bool = True
    notifier: str | None = None
    inline_limit: int = 65536
    retries: bool = False
    no_result_on_retry: bool = True
    keep_results: bool = True
    result_ex_time: int | None = None
    result_px_time: int | None = None
    idle_timeout: int = 1000
    broken: bool = False
    registers: bool = True
    engine_patience: float = ENGINE_PATIENCE
    untaken: float = UNTAKEN
    full_timeout: float = 60.0
    stream: str = "{}"
    queue_arguments: str = "{}"
    queue_type: str = "classic"
    prefix: str = "taskiq_flow"
    park_after: float | None = None
    qos: int = 10
    result_prefix: str | None = None
    results: str = ""
    store: str = ""
    store_above: int = 524_288
    imports: tuple[str, ...] = ()
    options: str = "{}"
    serializer: str = ""
    max_deliveries: int = 3

    @property
    def on_uvloop(self) -> bool:
        """Whether the tests have workers of this broker run on uvloop: half of them do."""
        return self.kind in ("redis-streams", "nats")

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a worker of this broker."""
        return {SETTINGS: json.dumps(asdict(self))}


def broker_of(settings: Settings) -> AsyncBroker:
    """The broker, with its tasks."""
    for module in settings.imports:
        importlib.import_module(module)
    absence.ENGINE_PATIENCE = settings.engine_patience
    queue_warnings.UNTAKEN = settings.untaken
    reports.FULL_TIMEOUT = settings.full_timeout
    broker = _bare(settings)
    if settings.kind != "in-memory":
        broker = broker.with_result_backend(_backend(settings))
    if settings.serializer:
        serializer: TaskiqSerializer = SERIALIZERS[settings.serializer]()
        broker = broker.with_serializer(serializer)
        if settings.kind != "in-memory":
            broker.result_backend.serializer = serializer  # type: ignore[attr-defined]
    if settings.broken:  # before the others, where it may keep tasks from them
        broker = broker.with_middlewares(Broken(settings))
    if settings.flow:
        flow = FlowMiddleware(
            settings.notifier,
            inline_limit=settings.inline_limit,
            prefix=settings.prefix,
            store=settings.store or None,
            store_above=settings.store_above,
            max_deliveries=settings.max_deliveries,
        )
        broker = broker.with_middlewares(flow)
    if settings.retries:
        retry = SimpleRetryMiddleware(no_result_on_retry=settings.no_result_on_retry)
        broker = broker.with_middlewares(retry)
    if settings.registers:
        for function, name in NAMES.items():
            broker.register_task(function, task_name=name, **LABELS.get(name, {}))
    return broker


def _bare(settings: Settings) -> AsyncBroker:
    # Each client is imported by those who use it, so that the others start faster.
    queue = settings.queue
    options: dict[str, Any] = json.loads(settings.options)
    if settings.kind == "in-memory":
        return InMemoryBroker()
    if settings.kind == "redis-streams":
        from taskiq_redis import RedisStreamBroker

        return RedisStreamBroker(
            settings.redis,
            queue_name=queue,
            consumer_id="0",
            idle_timeout=settings.idle_timeout,
            unacknowledged_lock_timeout=5.0,
            **options,
        )
    if settings.kind == "redis-lists":
        from taskiq_redis import ListQueueBroker

        return ListQueueBroker(settings.redis, queue_name=queue, **options)
    if settings.kind.startswith("redis-sentinel"):
        from taskiq_redis import ListQueueSentinelBroker, RedisStreamSentinelBroker

        options = {**_at_sentinels(settings), **options}
        if settings.kind.endswith("lists"):
            return ListQueueSentinelBroker(queue_name=queue, **options)
        return RedisStreamSentinelBroker(queue_name=queue, consumer_id="0", **options)
    if settings.kind.startswith("redis-cluster"):
        from taskiq_redis import ListQueueClusterBroker, RedisStreamClusterBroker

        if settings.kind.endswith("lists"):
            return ListQueueClusterBroker(settings.redis, queue_name=queue, **options)
        return RedisStreamClusterBroker(
            settings.redis, queue_name=queue, consumer_id="0", **options
        )
    if settings.kind == "nats-core":
        from taskiq_nats import NatsBroker

        return NatsBroker(settings.nats, subject=queue, queue=queue)
    if settings.kind == "nats":
        from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig
        from taskiq_nats import PullBasedJetStreamBroker

        return PullBasedJetStreamBroker(
            settings.nats,
            subject=queue,
            stream_name=queue,
            durable=queue,
            stream_config=StreamConfig(
                retention=RetentionPolicy.WORK_QUEUE, **json.loads(settings.stream)
            ),
            consumer_config=ConsumerConfig(
                durable_name=queue, ack_wait=settings.idle_timeout / 1000, max_ack_pending=10_000
            ),
            pull_consume_timeout=0.5,
            **options,
        )
    from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType

    from taskiq_flow.transport import rabbitmq_broker

    rabbitmq_broker.PARK_AFTER = settings.park_after or rabbitmq_broker.PARK_AFTER
    # Quorum queues of RabbitMQ 3.10 may be left without a leader when their only node was killed.
    rabbit = AioPikaBroker(settings.rabbitmq, exchange=Exchange(name=queue), qos=settings.qos)
    arguments = json.loads(settings.queue_arguments)
    return rabbit.with_queue(
        Queue(name=queue, type=QueueType(settings.queue_type), arguments=arguments)
    )


def _at_sentinels(settings: Settings) -> dict[str, Any]:
    ports = [settings.sentinel] if isinstance(settings.sentinel, int) else settings.sentinel
    return {"sentinels": [("127.0.0.1", port) for port in ports], "master_name": "mymaster"}


def _backend(settings: Settings) -> Any:
    if settings.kind.startswith("nats"):
        from taskiq_nats import NATSObjectStoreResultBackend

        return NATSObjectStoreResultBackend(
            settings.nats,
            keep_results=settings.keep_results,
            bucket_name=settings.result_prefix or "taskiq_results",
            **json.loads(settings.options),
        )
    from taskiq_redis import (
        RedisAsyncClusterResultBackend,
        RedisAsyncResultBackend,
        RedisAsyncSentinelResultBackend,
    )

    if settings.kind.startswith("redis-sentinel") and not settings.redis:
        return RedisAsyncSentinelResultBackend(**_at_sentinels(settings))
    if settings.kind.startswith("redis-cluster"):
        return RedisAsyncClusterResultBackend(settings.redis)
    return RedisAsyncResultBackend(
        settings.results or settings.redis,
        keep_results=settings.keep_results,
        result_ex_time=settings.result_ex_time,
        result_px_time=settings.result_px_time,
        prefix_str=settings.result_prefix,
    )


class Broken(TaskiqMiddleware):
    """Raises where a task's arguments say so."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        call = present.get()  # in one process, no message has arguments
        given = message.kwargs if call is None else call._kwargs or {}
        breaks = message.labels["breaks"] = given.get("breaks", "")
        if breaks == "pre_execute":
            raise RuntimeError("broken before it was executed")
        if breaks == "cancel":
            raise asyncio.CancelledError
        return message

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        if message.labels["breaks"] == "redis":
            async with redis_client(self._settings) as client:
                await client.execute_command("NONSENSE")
        if message.labels["breaks"] == "post_execute":
            raise RuntimeError("broken after it was executed")


class Point(BaseModel):
    x: int


async def load(text: str) -> list[str]:
    return text.split()


def cut(words: list[str]) -> tuple[str, list[str]]:
    return words[0], words[1:]


async def joined(first: str, rest: list[str], glue: str = "-") -> str:
    return glue.join([first, *rest])


async def fail(words: list[str]) -> None:
    raise LookupError(words[0])


async def behind(fail: None) -> None: ...


async def empty() -> None:
    return None


async def point(words: list[str]) -> Point:
    return Point(x=len(words))


async def shifted(point: Point, by: int = 1) -> int:
    return point.x + by


async def double(item: int) -> int:
    return 2 * item


async def total(*numbers: float) -> float:
    return sum(numbers)


async def echo(value: Any) -> Any:
    return value


async def event_loop() -> str:
    return type(asyncio.get_running_loop()).__module__


async def set_of(words: list[str]) -> Any:
    return set(words)


async def unstorable() -> object:
    return object()


async def nap(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


def hold(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


_of_graphs: list[int] = []
"""A number for each ``runs_graph`` that this process has begun."""


async def runs_graph(number: int, together: int, context: Context = TaskiqDepends()) -> int:
    """Run a graph on the same workers, and wait for it, once so many of these have begun."""
    _of_graphs.append(number)
    while len(_of_graphs) < together:
        await asyncio.sleep(0.01)
    dag = DAGBuilder().node(task(context.broker, double)).build()
    results = await ExecutionEngine(context.broker, dag).execute({"item": number})
    return int(results["double"])


def write(path: str, line: str) -> None:
    """Append a line at once, whoever else is writing."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


async def noted(path: str, name: str, seconds: float = 0.0, after: Any = None) -> str:
    """Write when it begins, ends or is cancelled, and where it runs."""
    write(path, f"begin {name} {os.getpid()}")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        write(path, f"cancel {name} {os.getpid()}")
        raise
    write(path, f"end {name} {os.getpid()}")
    return name


async def held(path: str, name: str, seconds: float = 0.0) -> str:
    """Write when it begins, and end once the test has written that it may, however long that is."""
    write(path, f"begin {name} {os.getpid()}")
    while not Path(f"{path}.released").exists():
        await asyncio.sleep(0.005)
    return name


async def deadly(path: str, name: str, seconds: float = 0.0) -> str:
    """Write when it begins, and kill the worker's process."""
    write(path, f"begin {name} {os.getpid()}")
    os._exit(1)


def noted_in_thread(path: str, name: str, seconds: float = 0.0) -> str:
    """The same, in a thread."""
    write(path, f"begin {name} {os.getpid()}")
    threading.Event().wait(seconds)
    write(path, f"end {name} {os.getpid()}")
    return name


def held_in_thread(path: str, name: str, seconds: float = 0.0) -> str:
    """As ``held``, in a thread, and write when it ends."""
    write(path, f"begin {name} {os.getpid()}")
    while not Path(f"{path}.released").exists():
        time.sleep(0.005)
    write(path, f"end {name} {os.getpid()}")
    return name


def keeps_gil(path: str, name: str, seconds: int) -> str:
    """Keep the interpreter lock, as C code may."""
    return plain_functions.keep_the_gil(path, name, seconds)


keeps_gil_in_process = process_functions.keep_the_gil


async def refuses_result() -> None:
    raise NoResultError


async def fails_at_first(path: str, times: int, context: Context = TaskiqDepends()) -> int:
    """Fail so many times, each of which is noted, and then give the number of the attempt."""
    write(path, "attempt")
    attempts = len(Path(path).read_text(encoding="utf-8").splitlines())
    if attempts <= times:
        raise LookupError(attempts)
    return attempts


async def requeues_once(path: str, context: Context = TaskiqDepends()) -> str:
    write(path, "attempt")
    if len(Path(path).read_text(encoding="utf-8").splitlines()) == 1:
        await context.requeue()
    return "done"


async def fails_once(path: str, name: str = "once") -> int:
    """Fail the first time, whoever asks, and then give the number of the attempt."""
    write(path, f"begin {name} {os.getpid()}")
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    attempts = sum(line.startswith(f"begin {name} ") for line in lines)
    if attempts == 1:
        raise LookupError(attempts)
    return attempts


async def numbers(path: str, count: int, seconds: float = 0.0) -> AsyncIterator[int]:
    """Give numbers, and write when it begins and when it is closed."""
    write(path, f"begin numbers {os.getpid()}")
    try:
        for number in range(count):
            yield number
            if seconds:
                await asyncio.sleep(seconds)
    finally:
        write(path, f"closed numbers {os.getpid()}")


def numbers_in_thread(path: str, count: int, seconds: float = 0.0) -> Iterator[int]:
    """The same, in a thread."""
    write(path, f"begin numbers {os.getpid()}")
    try:
        for number in range(count):
            yield number
            if seconds:
                time.sleep(seconds)
    finally:
        write(path, f"closed numbers {os.getpid()}")


async def various(values: list[Any]) -> AsyncIterator[Any]:
    for value in values:
        yield value


async def succeeds_at_first(path: str) -> int:
    """Give 1, and fail if it is executed once more."""
    write(path, "attempt")
    attempts = len(Path(path).read_text(encoding="utf-8").splitlines())
    if attempts > 1:
        raise LookupError(attempts)
    return attempts


async def passes_on_requeued(value: str, path: str, context: Context = TaskiqDepends()) -> str:
    write(path, "attempt")
    if len(Path(path).read_text(encoding="utf-8").splitlines()) == 1:
        await context.requeue()
    return value


async def breaks_middleware(breaks: str) -> str:
    return breaks


async def blob(size: int) -> str:
    return "x" * size


async def two_blobs(size: int) -> tuple[str, str]:
    return "x" * size, "y" * size


async def measure(blob: str, number: int = 0) -> int:
    return len(blob)


async def content(size: int) -> bytes:
    return b"x" * size


async def measure_content(content: bytes, number: int = 0) -> int:
    return len(content)


async def measure_when_released(content: bytes, path: str, name: str) -> int:
    """Note that it begins, and end once the test has written that it may."""
    await held(path, name)
    return len(content)


async def anything(value: Any) -> Any:
    return value


async def spoil(value: Any) -> None:
    """Change whatever can be changed in it, in place."""
    _spoil(value)


def _spoil(value: Any) -> None:
    parts: list[Any] = []
    if isinstance(value, (list, tuple, deque)):
        parts = list(value)
    elif isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, (kinds.Point, kinds.Model)):
        parts = list(vars(value).values())
        vars(value).clear()
    elif isinstance(value, (kinds.Frozen, kinds.Attrs)):
        slots: Any = vars(type(value))["__slots__"]
        parts = [getattr(value, name) for name in slots if name != "__weakref__"]
    elif hasattr(value, "iloc"):  # a table
        value.loc[:, :] = 0
    elif hasattr(value, "dtype") and hasattr(value, "fill") and value.flags.writeable:  # an array
        value.fill(0)
    for part in parts:
        _spoil(part)
    if isinstance(value, (list, dict, set, deque, bytearray)):
        value.clear()


def in_pool(value: Any) -> Any:
    """What it is given, from the process that it runs in."""
    return os.getpid(), value


async def fitted(model: kinds.Model, number: int) -> kinds.Point:
    return kinds.Point(model.when, number)


KNOWN = [value for value in vars(kinds).values() if isinstance(value, type)]
globals().update({kind.__name__: kind for kind in KNOWN if kind.__module__ == kinds.__name__})
# As an import of each would: what the module of a task has in it may be restored.

TASKS: list[Any] = [
    *(
        load,
        cut,
        joined,
        fail,
        behind,
        empty,
        point,
        shifted,
        double,
        total,
        echo,
        set_of,
        event_loop,
    ),
    *(unstorable, nap, hold, noted, held, noted_in_thread, refuses_result, fails_at_first),
    *(held_in_thread, fails_once, succeeds_at_first, passes_on_requeued, deadly),
    *(content, measure_content, measure_when_released),
    *(requeues_once, breaks_middleware, blob, two_blobs, measure, anything, fitted, in_pool),
    *(spoil, numbers, numbers_in_thread, various, runs_graph, keeps_gil),
]

NAMES = {function: function.__name__ for function in TASKS}  # which taskiq changes
NAMES[keeps_gil_in_process] = "keeps_gil_in_process"

LABELS: dict[str, dict[str, Any]] = {
    "fails_at_first": {"retry_on_error": True, "max_retries": 3},
}


def task(broker: AsyncBroker, function: Any) -> AsyncTaskiqDecoratedTask[Any, Any]:
    """A task of the broker."""
    found = broker.find_task(NAMES[function])
    assert found is not None
    return found


@contextlib.asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[AsyncBroker]:
    """A broker for an engine in this process."""
    broker = broker_of(settings)
    await broker.startup()
    try:
        yield broker
    finally:
        await broker.shutdown()


def redis_client(settings: Settings) -> Any:
    """A client of the settings' Redis server."""
    from redis.asyncio import Redis

    return Redis.from_url(settings.redis)


def from_environment() -> AsyncBroker:
    """The broker that a worker serves."""
    return broker_of(Settings(**json.loads(os.environ[SETTINGS])))
