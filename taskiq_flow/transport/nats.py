"""Notices over NATS: on core subjects, revocations in a JetStream key-value bucket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import ConnectionReconnectingError
from nats.errors import Error as NatsError
from nats.js.api import KeyValueConfig
from nats.js.errors import NotFoundError
from nats.js.kv import KeyValue
from taskiq import AsyncResultBackend

from taskiq_flow.cleanup import end
from taskiq_flow.reconnect import retry_through_outage
from taskiq_flow.transport.nats_errors import (
    is_away,
    is_outage,
    naming_refusals,
    raise_if_refused,
)
from taskiq_flow.transport.protocol import (
    MOST_BYTES,
    REVOCATION_LIFE,
    SaveAndPublish,
    hear_revoked,
    unnoticed,
)

logger = logging.getLogger("taskiq_flow")

CATCHING_UP = 15.0
"""Seconds that the server may take to send all keys of the bucket."""

_NO_RESPONDERS = "503"

GRACE = 1.0
"""Seconds that a subscription has to end after it was cancelled."""

GONE_AFTER = 60.0
"""Seconds after which the server removes what a process that was killed has subscribed to."""


class NatsNotifier:
    """Notices over a connection of its own, which reconnects for as long as it is open.

    The keys of a bucket are the revoked runs.
    """

    is_outage = staticmethod(is_outage)

    def __init__(self, servers: str | list[str], prefix: str, **settings: Any) -> None:
        self.on_unheard: Callable[[str], None] = unnoticed
        self._bucket = bucket_of(prefix)
        self._returns = ""  # the subject on which the server says that nobody listens
        self._servers = servers
        self._settings = {"max_reconnect_attempts": -1, **settings}
        self._client: Client | None = None
        self._hearers: list[Callable[[str], None]] = []
        self._watchers: set[asyncio.Task[None]] = set()
        self._breaks = asyncio.Event()  # set when the connection breaks, each time another one

    async def open(self) -> None:
        """Connect."""
        await self.aclose()  # of an earlier attempt that failed halfway
        once = {"max_reconnect_attempts": 1, "reconnect_time_wait": 0}
        # A client that may reconnect does not report that it could not connect at all.
        probe = await nats.connect(self._servers, **{**self._settings, **once})
        await probe.close()
        again = {"reconnected_cb": self._watch_again, "disconnected_cb": self._note_break}
        self._client = await nats.connect(self._servers, **{**self._settings, **again})
        self._returns = self._client.new_inbox()
        await self._client.subscribe(f"{self._returns}.>", cb=self._returned)

    @property
    def _connected(self) -> Client:
        if self._client is None:
            raise AssertionError("the notifier was not opened")
        return self._client

    async def publish(self, channel: str, data: bytes) -> None:
        """Send ``data`` to all who listen on the subject."""
        await self._connected.publish(channel, data, reply=f"{self._returns}.{channel}")

    async def _returned(self, message: Msg) -> None:
        """The server has found nobody who listens, which it says by a status."""
        if message.headers is not None and message.headers.get("Status") == _NO_RESPONDERS:
            self.on_unheard(message.subject.removeprefix(f"{self._returns}."))

    @property
    def most_bytes(self) -> int:
        """As the server has said, and no more than other systems carry."""
        return min(self._connected.max_payload, MOST_BYTES)

    async def subscribe(self, channel: str, hear: Callable[[bytes], None]) -> None:
        """Listen on a subject from now on until ``aclose``."""

        async def handle(message: Msg) -> None:
            hear(message.data)

        client = self._connected
        before = client.last_error
        subscription = await client.subscribe(channel, cb=handle)
        try:
            # The client writes the ping of a flush at once, past commands that wait to be written.
            # These are written while it waits for the answer: the second ping is behind them.
            await self._flush()
            await self._flush()
        except NatsError:  # whoever subscribes again would hear twice
            with contextlib.suppress(NatsError):
                await subscription.unsubscribe()
            raise
        raise_if_refused(client, before)

    async def _flush(self) -> None:
        """Wait until the server has what was written before.

        Raises ``ConnectionReconnectingError`` if the connection breaks: the client forgets its ping
        then, and waits for an answer that never comes.
        """
        flushing = asyncio.ensure_future(self._connected.flush())
        breaking = asyncio.ensure_future(self._breaks.wait())
        try:
            await asyncio.wait([flushing, breaking], return_when=asyncio.FIRST_COMPLETED)
            if not flushing.done():
                raise ConnectionReconnectingError
            await flushing
        finally:
            await end([flushing, breaking], GRACE)

    async def _note_break(self) -> None:
        self._breaks.set()
        self._breaks = asyncio.Event()

    @property
    def is_listening(self) -> bool:
        """Whether the connection is up."""
        return self._client is not None and self._client.is_connected

    def saver(self, backend: AsyncResultBackend[Any]) -> SaveAndPublish | None:
        """A JetStream object is stored in several messages: nothing to gain."""
        return None

    async def revoke(self, run: str) -> None:
        """Tell every worker that a run is over, also those that are not connected now."""
        with naming_refusals(self._connected):
            bucket = await self._revoked()
            await bucket.put(run.encode().hex(), b"")

    async def subscribe_to_revocations(self, hear: Callable[[str], None]) -> None:
        """Hear of all runs in the bucket, and of those that come to it."""
        with naming_refusals(self._connected):
            await self._watch(hear)
        self._hearers.append(hear)

    async def _watch(self, hear: Callable[[str], None]) -> None:
        context = self._connected.jetstream(timeout=GRACE / 2)
        bucket = await self._revoked()
        watcher: Any = await bucket.watchall(inactive_threshold=GONE_AFTER)
        caught_up = asyncio.Event()

        async def watch() -> None:
            try:
                async for entry in watcher:
                    if entry is None:
                        caught_up.set()
                    else:
                        _tell(hear, entry.key)
            finally:
                await watcher.stop()
                sub = watcher._sub  # noqa: SLF001 - the names are stored nowhere else
                with contextlib.suppress(NatsError):  # the server removes its consumer later
                    await context.delete_consumer(sub._stream, sub._consumer)  # noqa: SLF001

        self._start(watch())
        async with asyncio.timeout(CATCHING_UP):
            await caught_up.wait()

    async def _watch_again(self) -> None:
        """Subscribe again after an outage: the server may have lost what it had."""
        for task in self._watchers:
            task.cancel()
        for hear in self._hearers:
            self._start(
                retry_through_outage(
                    partial(self._watch, hear), is_away, "no revocation is heard of", math.inf
                )
            )

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def aclose(self) -> None:
        """Disconnect."""
        await end(self._watchers, GRACE)
        self._hearers.clear()
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(NatsError):
                await client.close()

    async def _revoked(self) -> KeyValue:
        """The bucket, asked for each time: the server may have lost it."""
        context = self._connected.jetstream()
        try:
            return await context.key_value(self._bucket)
        except NotFoundError:
            config = KeyValueConfig(bucket=self._bucket, ttl=REVOCATION_LIFE)
            return await context.create_key_value(config)


def bucket_of(prefix: str) -> str:
    """The bucket of revocations. The server allows no points and colons in its name."""
    return f"{prefix.replace('.', '_').replace(':', '_')}_revoked"


def _tell(hear: Callable[[str], None], key: str) -> None:
    """Hear of a revoked run, of which a bucket's key holds the bytes in hexadecimal digits."""
    try:
        run = bytes.fromhex(key)
    except ValueError:
        run = key.encode() + b"\xff"  # which names no run
    hear_revoked(hear, run)
