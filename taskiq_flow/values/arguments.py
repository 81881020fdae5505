"""Large arguments of a run's calls: they are stored, and messages refer to them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from typing import Any

from taskiq import AsyncResultBackend, TaskiqResult

from taskiq_flow.errors import SerializationError
from taskiq_flow.reconnect import IsOutage, retry_through_outage
from taskiq_flow.values.handle import ResultHandle, holds_handles
from taskiq_flow.values.references import as_stored, handle_of
from taskiq_flow.values.store import ValueStore, folder_of
from taskiq_flow.values.wire import Wire, stored_size


class StoredArguments:
    """The arguments of one run that are in the broker's store.

    ``session``: of the run. ``shares``: whether the run keeps its values, so that several nodes may
    take the same one. ``refers``: whether its reader is given handles, which he may read after the
    run. ``may_be_resumed``: whether a later session may read them, unless the run is complete.
    """

    def __init__(
        self,
        backend: AsyncResultBackend[Any],
        wire: Wire,
        store: ValueStore,
        is_outage: IsOutage,
        run_id: str,
        session: str,
        *,
        shares: bool,
        refers: bool,
        may_be_resumed: bool,
    ) -> None:
        self._backend = backend
        self._wire = wire
        self._store = store
        self._is_outage = is_outage
        self._run_id = run_id
        self._folder = folder_of(session)
        self._shares = shares
        self._refers = refers
        self._may_be_resumed = may_be_resumed
        self._is_used = False
        # By the id of a value, which is held so that no other value gets that id.
        self._handles: dict[int, tuple[Any, asyncio.Future[ResultHandle | None]]] = {}

    def note_result(self, task_id: str, value: Any) -> None:
        """Note that a worker has stored this result. As an argument it is passed by reference."""
        self._is_used = True
        if self._shares:
            future = asyncio.get_running_loop().create_future()
            future.set_result(handle_of(self._backend, task_id, None, self._wire))
            self._handles[id(value)] = value, future

    def may_store(self, values: Iterable[Any]) -> bool:
        """Whether any of the arguments of a call may be above the limit of the store."""
        return any(map(self._may_be_above, values))

    def _may_be_above(self, value: Any) -> bool:
        return self._store.may_be_above(value) and not holds_handles(value)

    async def handle_for(self, what: str, value: Any) -> Any:
        """The handle of an argument that is in the store now, or the argument if it is small.

        ``what``: the value, for messages. Raises ``ResultUnavailableError`` if the store does not
        take it, and the client's error if the result backend is away for too long.
        """
        if not self._may_be_above(value):
            return value
        if not self._shares:
            return await self._stored(what, value) or value
        if id(value) not in self._handles:
            storing = asyncio.ensure_future(self._stored(what, value))
            self._handles[id(value)] = value, storing
            storing.add_done_callback(lambda done: self._forget_failed(id(value), done))
        return await asyncio.shield(self._handles[id(value)][1]) or value

    def _forget_failed(self, key: int, storing: asyncio.Future[ResultHandle | None]) -> None:
        if storing.cancelled() or storing.exception() is not None:
            self._handles.pop(key, None)

    async def _stored(self, what: str, value: Any) -> ResultHandle | None:
        task_id = f"{self._run_id}:input.{secrets.token_hex(8)}"
        own: TaskiqResult[Any] = TaskiqResult(is_err=False, return_value=value, execution_time=0.0)
        self._is_used = True
        try:
            result = await as_stored(self._wire, self._backend, self._folder, task_id, own, what)
        except SerializationError:
            return None  # it is sent by value, and whoever encodes it says so
        if stored_size(result) is None:
            return None
        await retry_through_outage(
            lambda: self._backend.set_result(task_id, result),
            self._is_outage,
            f"{what} cannot be stored yet",
        )
        return handle_of(self._backend, task_id, None, self._wire)

    async def aclose(self, *, is_complete: bool) -> None:
        """Forget the values, and remove the run's objects unless somebody may still read them."""
        for _, storing in self._handles.values():
            storing.cancel()
        self._handles.clear()
        is_needed = self._refers or (self._may_be_resumed and not is_complete)
        if self._is_used and not is_needed:
            await self._store.remove(self._folder)
