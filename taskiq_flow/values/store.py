"""Large values as objects of a store: a directory or a bucket that all processes of a broker reach.

A value is written as a frame under a random name. The result backend, or a message, has the name,
the size and the digest of the object.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import logging
import math
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

import anyio

from taskiq_flow.errors import ConfigurationError, ResultUnavailableError, SerializationError
from taskiq_flow.giving_way import in_thread
from taskiq_flow.reconnect import OUTAGE_TIMEOUT, retry_through_outage, text_of
from taskiq_flow.transport.systems import without_secrets
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import ValueCodec
from taskiq_flow.values.size import is_large

logger = logging.getLogger("taskiq_flow")

T = TypeVar("T")

AT_ONCE = 4
"""Objects that one process reads or writes at the same time."""

CACHED_BYTES = 64 * 1024 * 1024
"""Bytes of objects that a worker keeps after it has read them, for the next task that needs one."""

REMOVAL_PATIENCE = 3.0
"""Seconds for which a store may be away while the objects of a run are to be removed."""

REMOVAL_GRACE = 5.0
"""Seconds that a run waits, when it is closed, for the removal of its objects."""

FULL_PATIENCE = 60.0
"""Seconds for which a value waits for room in its store."""

_NAME = re.compile(r"[0-9a-f]{32}/([0-9a-f]{8,12})\.[0-9a-f]{32}")
_OWN_NAME = re.compile(r"([0-9a-f]{8,12})\.[0-9a-f]{32}")

_DIGEST = re.compile(r"[0-9a-f]{64}")

_MOST_BYTES = 2**62


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as messages and results refer to it: its name below the store's address."""

    name: str
    size: int
    digest: str

    @classmethod
    def of(cls, content: Any) -> Self:
        """Read what ``content`` has written. Raises ``SerializationError`` for anything else."""
        match content:
            case [str(name), int(size), str(digest)] if (
                _NAME.fullmatch(name)
                and type(size) is int
                and 0 <= size < _MOST_BYTES
                and _DIGEST.fullmatch(digest)
            ):
                return cls(name, size, digest)
        raise SerializationError("what refers to an object of the store is damaged")

    def content(self) -> list[Any]:
        """What stands for it in a result."""
        return [self.name, self.size, self.digest]


def folder_of(session: str) -> str:
    """The folder of the objects of one session of a run."""
    return hashlib.blake2b(session.encode(), digest_size=16).hexdigest()


class ValueStore:
    """The values of one broker in a store.

    ``address``: one that fsspec knows. ``prefix``: of the broker's names. ``above``: bytes above
    which a value is stored. ``ttl``: seconds after which ``remove_old`` removes an object, ``None``
    for never. Raises ``ConfigurationError`` if fsspec, or its package for such an address, is not
    installed.
    """

    def __init__(
        self,
        address: str,
        prefix: str,
        codec: ValueCodec,
        classes: Classes,
        *,
        above: int,
        ttl: float | None,
    ) -> None:
        self.address = without_secrets(address)
        self.above = above
        self._full_address = address
        self._prefix = prefix
        self._codec = codec
        self._classes = classes
        self.ttl = ttl
        self._module = _module(address)
        self._objects: Any = None  # made by the process that uses it
        self._limiter: anyio.CapacityLimiter | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reads: dict[str, asyncio.Task[memoryview]] = {}
        self._cached: OrderedDict[str, memoryview] = OrderedDict()
        self._patience = OUTAGE_TIMEOUT
        self._caches = False

    def serve_worker(self) -> None:
        """Wait for the end of an outage, however long it takes, and cache what was read."""
        self._patience, self._caches = math.inf, True

    def is_outage(self, error: BaseException) -> bool:
        """Whether an error says that the store cannot serve now, and may later."""
        answer: bool = self._module.is_outage(error)
        return answer

    def is_full(self, error: BaseException) -> bool:
        """Whether an error says that the store has no room, which it may have later."""
        answer: bool = self._module.is_full(error)
        return answer

    def may_be_above(self, value: Any) -> bool:
        """Whether a value may be above the limit: whether it is worth encoding it to see that."""
        return is_large(value, self.above // 1_000)

    async def put(self, folder: str, value: Any, what: str) -> StoredObject | None:
        """Store a value if it is above the limit. Returns ``None`` if it is not.

        ``what``: the value, for messages. Raises ``SerializationError`` for a value that is not
        carried, ``ResultUnavailableError`` if the store does not take it.
        """
        if not self.may_be_above(value):
            return None
        parts = await self._in_thread(self._codec.encode_frame, value)
        size = sum(memoryview(part).nbytes for part in parts)
        if size <= self.above:
            return None

        async def write() -> StoredObject:
            name = f"{folder}/{int(time.time()):08x}.{secrets.token_hex(16)}"
            digest = await self._in_thread(lambda: self._opened().write(self._path(name), parts))
            return StoredObject(name, size, digest)

        try:
            return await self._patiently(
                lambda: retry_through_outage(
                    write, self.is_full, f"store {self.address} has no room", FULL_PATIENCE
                ),
                "values cannot be stored yet",
                self._patience,
            )
        except Exception as error:  # whatever fsspec and the client raise
            raise ResultUnavailableError(
                f"{what}, of {size} bytes, cannot be written to store {self.address}: "
                f"{text_of(error)}; check that this process may write there, and that there is room"
            ) from error

    async def get(self, stored: StoredObject, what: str) -> Any:
        """Read a value. Arrays are read-only views of what was read.

        Raises ``SerializationError`` if the object is damaged or not decoded here, and
        ``ResultUnavailableError`` if the store does not have it.
        """
        try:
            content = await self._patiently(
                partial(self._content, stored), "values cannot be read yet", self._patience
            )
            return await self._in_thread(self._codec.decode_frame, content, self._classes)
        except SerializationError as error:
            raise SerializationError(self._unread(stored, what, str(error))) from error
        except FileNotFoundError as error:
            why = (
                "it was removed when its run had ended or after store_ttl=, or was written to "
                "another store; give engines and workers the same store="
            )
            raise ResultUnavailableError(
                self._unread(stored, what, f"it is not there: {why}")
            ) from error
        except ValueError as error:
            raise SerializationError(
                self._unread(stored, what, f"it is damaged: {error}; have it computed again")
            ) from error
        except Exception as error:  # whatever fsspec and the client raise
            raise ResultUnavailableError(
                self._unread(stored, what, f"{text_of(error)}; check that this process may read it")
            ) from error

    async def check(self) -> None:
        """Raise what fsspec raises if the store's directory is not there."""
        await self._in_thread(lambda: self._opened().check())

    async def remove(self, folder: str) -> None:
        """Remove the objects of a folder. If the store is away, they are removed by their age."""
        try:
            with anyio.fail_after(REMOVAL_GRACE):
                await self._patiently(
                    lambda: self._in_thread(lambda: self._opened().remove(self._path(folder))),
                    "stored values cannot be removed yet",
                    REMOVAL_PATIENCE,
                )
        except Exception as error:  # whatever fsspec and the client raise
            logger.warning(
                "stored values %s in %s were not removed: %s; they are removed after store_ttl=",
                folder,
                self.address,
                text_of(error),
            )

    async def remove_old(self) -> int:
        """Remove all objects that are older than ``ttl``. Returns how many there were.

        Raises what fsspec raises.
        """
        if self.ttl is None:
            return 0
        earliest = time.time() - self.ttl

        def is_old(name: str) -> bool:
            found = _OWN_NAME.fullmatch(name)
            return found is not None and int(found[1], 16) < earliest

        removed: int = await self._in_thread(
            lambda: self._opened().remove_where(self._prefix, is_old)
        )
        return removed

    async def _content(self, stored: StoredObject) -> memoryview:
        """The content of an object. Several readers at once share one reading."""
        self._use_this_loop()
        content = self._cached.get(stored.digest)
        if content is not None:
            self._cached.move_to_end(stored.digest)
            return content
        reading = self._reads.get(stored.name)
        if reading is None:
            reading = self._reads[stored.name] = asyncio.ensure_future(self._read(stored))
            reading.add_done_callback(lambda _: self._reads.pop(stored.name, None))
        return await asyncio.shield(reading)

    async def _read(self, stored: StoredObject) -> memoryview:
        content, digest = await self._in_thread(
            lambda: self._opened().read(self._path(stored.name), stored.size)
        )
        if digest != stored.digest:
            raise ValueError("its content is not what was written")
        view = memoryview(content).toreadonly()
        if self._caches and stored.size <= CACHED_BYTES:
            self._cached[stored.digest] = view
            while sum(kept.nbytes for kept in self._cached.values()) > CACHED_BYTES:
                self._cached.popitem(last=False)
        return view

    def _use_this_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            self._loop, self._reads = asyncio.get_running_loop(), {}
            self._limiter = anyio.CapacityLimiter(AT_ONCE)

    def _opened(self) -> Any:
        if self._objects is None:
            self._objects = self._module.ObjectStore(self._full_address)
        return self._objects

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _unread(self, stored: StoredObject, what: str, why: str) -> str:
        return f"{what}, object {stored.name} of store {self.address}, cannot be read: {why}"

    async def _patiently(self, call: Callable[[], Awaitable[T]], what: str, seconds: float) -> T:
        return await retry_through_outage(
            call, self.is_outage, f"store {self.address} is away: {what}", seconds
        )

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        self._use_this_loop()
        # A file system that hangs must not keep a run or a worker from its end.
        return await in_thread(function, *args, limiter=self._limiter, abandon_on_cancel=True)


def _module(address: str) -> Any:
    """What reads and writes objects. Imports fsspec."""
    shown = without_secrets(address)
    try:
        module = importlib.import_module("taskiq_flow.transport.object_store")
    except ModuleNotFoundError as error:
        if error.name != "fsspec":
            raise
        raise ConfigurationError(
            f"store={shown!r} needs fsspec, which is not installed; install the extra store: "
            "pip install 'taskiq-flow[store]'"
        ) from error
    try:
        module.check_address(address)
    except (ImportError, ValueError) as error:  # as fsspec says it
        raise ConfigurationError(
            f"store={shown!r} cannot be used: {error}; give an address such as "
            "'file:///mnt/shared' or 's3://bucket/prefix', and install the package of its scheme, "
            "such as s3fs for s3://"
        ) from error
    return module
