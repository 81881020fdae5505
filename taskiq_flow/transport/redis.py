"""Notices over Redis: by publish/subscribe, with their results in one step where both go there."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import NoScriptError, ResponseError
from taskiq import AsyncResultBackend, TaskiqResult
from taskiq_redis import RedisAsyncResultBackend

from taskiq_flow.cleanup import end
from taskiq_flow.reconnect import backoff_delays, text_of
from taskiq_flow.transport.deliveries import Delivery
from taskiq_flow.transport.protocol import (
    MOST_BYTES,
    REVOCATION_LIFE,
    MakeNotice,
    SaveAndPublish,
    hear_revoked,
    unnoticed,
)
from taskiq_flow.transport.redis_batches import Batches
from taskiq_flow.transport.redis_connection import Client
from taskiq_flow.transport.redis_errors import explaining_size, is_outage, naming
from taskiq_flow.transport.redis_streams import ACKNOWLEDGE, StreamEntry, database_of
from taskiq_flow.transport.redis_subscription import Subscription

logger = logging.getLogger("taskiq_flow")

FIRST_ANSWER = 5.0
"""Seconds in which a server has to answer at first. What got lost on its way is sent once more."""

MOST_KEPT = 100_000
"""Revocations that the server keeps; the oldest go first."""

SMALL = 65_536
"""Bytes of a result up to which it is saved and its notice published in one step."""

AT_ONCE = 100
"""Revocations that a worker handles in a row before its event loop has its turn."""

GRACE = 1.0
"""Seconds that a subscription has to end after it was cancelled."""


class RedisNotifier:
    """Notices by publish/subscribe; revocations in a sorted set as well.

    The sorted set has the times of revoked runs. It has the name of the channel on which they are
    published. ``batches``: sends notices together with messages.
    """

    is_outage = staticmethod(is_outage)
    most_bytes = MOST_BYTES

    def __init__(
        self, client: Client, prefix: str, batches: Batches | None = None, *, is_own: bool
    ) -> None:
        self.on_unheard: Callable[[str], None] = unnoticed
        self._client = client
        self._batches = batches
        self._revoked = f"{prefix}:revoked"
        self._is_own = is_own
        self._subscriptions: dict[asyncio.Task[None], bool] = {}  # whether each is up
        self._saver: _Saver | None = None

    async def open(self) -> None:
        """Connect."""
        await self._end_subscriptions()  # of an earlier attempt that failed halfway
        async with asyncio.timeout(FIRST_ANSWER):
            await self._client.ping()
            if (batches := self._notices_by) is not None:  # so that the first notice is not late
                await batches.execute("PING", size=0)

    async def publish(self, channel: str, data: bytes) -> None:
        """Send ``data`` to all who listen on the channel."""
        with naming("PUBLISH", channel):
            heard_by = await self._publish(channel, data)
        if not heard_by and not isinstance(self._client, RedisCluster):  # it counts its node's only
            self.on_unheard(channel)

    @property
    def _notices_by(self) -> Batches | None:
        return self._batches if self._saver is None else self._saver.batches

    async def _publish(self, channel: str, data: bytes) -> int:
        if (batches := self._notices_by) is None:
            return int(await self._client.publish(channel, data))
        return int(await batches.execute("PUBLISH", channel, data, size=len(data)))

    async def subscribe(self, channel: str, hear: Callable[[bytes], None]) -> None:
        """Listen on a channel from now on until ``aclose``."""
        await self._keep_up(channel, hear, _nothing)

    @property
    def is_listening(self) -> bool:
        """Whether all subscriptions are up, as far as is known."""
        return all(self._subscriptions.values())

    def saver(self, backend: AsyncResultBackend[Any]) -> SaveAndPublish | None:
        """How to save and publish in one step, if taskiq's own backend is on this server."""
        if type(backend) is not RedisAsyncResultBackend or isinstance(self._client, RedisCluster):
            return None
        own, other = self._client.connection_pool.connection_kwargs, backend.redis_pool
        same = ("host", "port", "path")
        if any(own.get(name) != other.connection_kwargs.get(name) for name in same):
            return None
        self._saver = _Saver(backend, self.on_unheard)
        return self._saver.save

    async def revoke(self, run: str) -> None:
        """Tell every worker that a run is over, also those that are not connected now."""
        now = time.time()
        try:
            # First, for workers that begin to listen meanwhile.
            with naming("ZADD", self._revoked):
                await self._client.zremrangebyscore(self._revoked, 0, now - REVOCATION_LIFE)
                await self._client.zadd(self._revoked, {run: now})
                await self._client.zremrangebyrank(self._revoked, 0, -MOST_KEPT - 1)
        finally:
            with naming("PUBLISH", self._revoked):  # even a server without room carries it
                await self._client.publish(self._revoked, run)

    async def subscribe_to_revocations(self, hear: Callable[[str], None]) -> None:
        """Call for each run that was revoked lately, at each new connection, and from then on."""

        async def catch_up() -> None:
            with naming("ZRANGE", self._revoked):
                runs: Any = await self._client.zrange(self._revoked, 0, -1)
            for number, run in enumerate(runs):
                hear_revoked(hear, run)
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)

        await self._keep_up(self._revoked, partial(hear_revoked, hear), catch_up)

    async def aclose(self) -> None:
        """End the subscriptions. The connections of a broker are the broker's to close."""
        await self._end_subscriptions()
        if self._saver is not None:
            await self._saver.aclose()
        if self._is_own:
            await self._client.aclose()

    async def _end_subscriptions(self) -> None:
        await end(self._subscriptions, GRACE)
        self._subscriptions.clear()

    async def _keep_up(
        self, channel: str, hear: Callable[[bytes], None], catch_up: Callable[[], Awaitable[None]]
    ) -> None:
        """Start a subscription that is renewed when it breaks; return once it is up."""
        is_up = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._renew(channel, hear, catch_up, is_up))
        self._subscriptions[task] = False
        await is_up

    async def _renew(
        self,
        channel: str,
        hear: Callable[[bytes], None],
        catch_up: Callable[[], Awaitable[None]],
        is_up: asyncio.Future[None],
    ) -> None:
        me: Any = asyncio.current_task()
        pauses = backoff_delays()
        while True:
            try:
                subscription = Subscription(await self._outside_of_pool(), channel, hear)
                async with aclosing(subscription):
                    # Without the catching up, which takes as long as there is to read.
                    async with asyncio.timeout(None if is_up.done() else FIRST_ANSWER):
                        with naming("SUBSCRIBE", channel):
                            await subscription.open()
                    await catch_up()
                    self._subscriptions[me] = True
                    pauses = backoff_delays()
                    if not is_up.done():
                        is_up.set_result(None)
                    await subscription.listen()
            except Exception as error:  # refused, say: whoever opens it is told, else it is renewed
                if not is_up.done():
                    del self._subscriptions[me]
                    is_up.set_exception(error)
                    return
                if self._subscriptions[me]:
                    logger.warning(
                        "the subscription of %r broke: %s; renewed", channel, text_of(error)
                    )
                self._subscriptions[me] = False
            await asyncio.sleep(next(pauses))

    async def _outside_of_pool(self) -> Any:
        """A connection like the client's own, which does not count among those of its pool."""
        client: Any = self._client
        if isinstance(client, RedisCluster):
            await client.initialize()
            # Any of them, as all carry the notices: the one before may be gone for good.
            node = random.choice(client.get_nodes())  # noqa: S311 - no secret
            return node.connection_class(**node.connection_kwargs)
        return client.connection_pool.make_connection()


class _Saver:
    """Does what taskiq's result backend does, publishes the notice and acknowledges with it."""

    def __init__(
        self, backend: RedisAsyncResultBackend[Any], on_unheard: Callable[[str], None]
    ) -> None:
        self._backend = backend
        self._on_unheard = on_unheard
        self._client: Any = Redis(connection_pool=backend.redis_pool)
        self.batches = Batches(self._client)
        self._database = database_of(self._client)

    async def save(
        self,
        task_id: str,
        result: TaskiqResult[Any],
        channel: str,
        make_notice: MakeNotice,
        delivery: Delivery | None = None,
    ) -> None:
        backend = self._backend
        value = backend.serializer.dumpb(result.model_dump(mode="json"))
        key = task_id if backend.prefix_str is None else f"{backend.prefix_str}:{task_id}"
        expiry: list[Any] = []
        if backend.result_ex_time:
            expiry = ["EX", backend.result_ex_time]
        elif backend.result_px_time:
            expiry = ["PX", backend.result_px_time]
        notice = make_notice(len(value))
        with naming("SET", key):
            if len(value) > SMALL:  # a script would have the server copy it
                async with explaining_size(self._client, lambda: len(value), "the result"):
                    await self._client.execute_command("SET", key, value, "NX", *expiry)
                heard_by = await self._publish(channel, notice)
            else:
                entry = self._entry_of(delivery)
                keys = (key,) if entry is None else (key, entry.stream)
                message = ("", "") if entry is None else (entry.group, entry.id)
                arguments = (value, channel, notice, *message, *expiry)
                size = len(value) + len(notice)
                heard_by, is_acknowledged = await self._run_script(
                    len(keys), *keys, *arguments, size=size
                )
                if delivery is not None and is_acknowledged:
                    delivery.is_acknowledged = True
        if isinstance(heard_by, bytes):  # the engine finds the result without the notice
            logger.warning(
                "the notice of %s was not published: %s (PUBLISH %s)",
                task_id,
                heard_by.decode(),
                channel,
            )
        elif not heard_by:
            self._on_unheard(channel)

    async def aclose(self) -> None:
        """Close the connection on which results are saved."""
        await self.batches.aclose()

    async def _run_script(self, *arguments: Any, size: int) -> Any:
        """Run ``_SAVE``, by its digest: the server reads and hashes a text each time."""
        try:
            return await self.batches.execute("EVALSHA", _SAVE_DIGEST, *arguments, size=size)
        except NoScriptError:  # the first time, or the server is another since then
            return await self.batches.execute("EVAL", _SAVE, *arguments, size=size)

    def _entry_of(self, delivery: Delivery | None) -> StreamEntry | None:
        """A message that has to be acknowledged, and can be where the result is saved."""
        entry = None if delivery is None or delivery.is_acknowledged else delivery.origin
        is_here = isinstance(entry, StreamEntry) and entry.database == self._database
        return entry if is_here else None

    async def _publish(self, channel: str, notice: bytes) -> int | bytes:
        """How many have heard the notice, or why it was refused."""
        try:
            heard_by: int = await self._client.publish(channel, notice)
        except ResponseError as error:
            return str(error).encode()
        return heard_by


# Of a task that is executed twice, the first outcome is what counts. If it cannot be saved, the
# script ends there: nobody hears of it, and the message is not acknowledged. A notice that is
# refused does not undo the saving, nor does an acknowledgement, which the worker tries again.
_SAVE = f"""
{ACKNOWLEDGE}
redis.call('SET', KEYS[1], ARGV[1], 'NX', unpack(ARGV, 6))
local heard_by = redis.pcall('PUBLISH', ARGV[2], ARGV[3])
local is_acknowledged = KEYS[2] and pcall(acknowledge, KEYS[2], ARGV[4], ARGV[5])
return {{type(heard_by) == 'table' and heard_by['err'] or heard_by, is_acknowledged and 1 or 0}}
"""

_SAVE_DIGEST = hashlib.sha1(_SAVE.encode()).hexdigest()  # noqa: S324 - Redis's own, no secret


async def _nothing() -> None: ...
