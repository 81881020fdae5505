"""Saves the results of tasks, and publishes notices to the engines that sent these."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

from taskiq import AsyncResultBackend, NoResultError, TaskiqResult

from taskiq_flow.errors import ResultUnavailableError, SerializationError, describe
from taskiq_flow.reconnect import IsOutage, retry_through_outage, text_of
from taskiq_flow.transport.notice import Kind, Notice
from taskiq_flow.transport.protocol import Notifier
from taskiq_flow.transport.systems import fullness_of
from taskiq_flow.values.plain import LEAVES, is_plain
from taskiq_flow.values.references import as_stored, is_referred_to
from taskiq_flow.values.results import failed
from taskiq_flow.values.size import read_off_loop
from taskiq_flow.values.store import folder_of
from taskiq_flow.values.wire import VALUES, Wire, is_encoded_result, is_strict
from taskiq_flow.worker.execution import Execution
from taskiq_flow.worker.raised import as_sent

logger = logging.getLogger("taskiq_flow")

PUBLISH_TIMEOUT = 1.0
"""Seconds that a notice may delay the end of its task. The engine polls for what is missed."""

FULL_TIMEOUT = 60.0
"""Seconds for which a result waits for room on its server before its task fails."""

_NOT_PUBLISHED = {"labels", "log"}  # fields of a result that engines do not use


class Reports:
    """What one worker process reports of its tasks.

    ``is_outage``: whether an error says that a server cannot serve now. ``inline_limit``: bytes up
    to which a result travels with its notice.
    """

    def __init__(
        self,
        backend: AsyncResultBackend[Any],
        notifier: Notifier,
        is_outage: IsOutage,
        wire: Wire,
        inline_limit: int,
    ) -> None:
        self._backend = backend
        self._notifier = notifier
        self._is_outage = is_outage
        self._is_full = fullness_of(backend)
        self._wire = wire
        self._inline_limit = inline_limit
        self.save_only = backend.set_result
        """Saves a result and tells nobody."""
        self._stores_plain_as_is = wire.store is None and not is_strict(backend)
        self._save_and_publish = notifier.saver(backend)
        # A backend that deletes on reading would keep results that travel with their notices.
        self._inlines = getattr(backend, "keep_results", True)

    async def report(self, execution: Execution, result: TaskiqResult[Any]) -> None:
        """Save a result and tell the engine. If saving fails, report an error that says why."""
        task_id = execution.task_id
        if result.error is not None:
            result = result.model_copy(update={"error": as_sent(result.error)})
        result = await self._encoded(execution, result)
        await execution.when_told()
        try:
            try:
                await self._save(execution, result)
            except ValueError:  # of an integer of too many digits within plain data
                if is_encoded_result(result):
                    raise
                await self._save(execution, self._wire.encode_result(task_id, result, strict=True))
        except Exception as error:  # of the value, of the serializer, of the server
            logger.exception("the result of %s cannot be saved", task_id)
            instead = failed(self._why_not_saved(execution, result, error))
            try:
                await self.save_only(task_id, instead)
            except Exception as again:  # the notice carries the error
                logger.warning(
                    "the error in place of the result of %s cannot be saved: %s",
                    task_id,
                    text_of(again),
                )
            body = instead.model_dump_json().encode()
            await self.publish(execution, Notice(Kind.RESULT, task_id, body))

    async def _save(self, execution: Execution, result: TaskiqResult[Any]) -> None:
        await retry_through_outage(
            lambda: self._save_when_there_is_room(execution, result),
            self._is_outage,
            "results cannot be saved yet",
            math.inf,
        )

    async def _save_when_there_is_room(
        self, execution: Execution, result: TaskiqResult[Any]
    ) -> None:
        """Wait for room on the server, for a bounded time: a result may be too large for ever."""
        await retry_through_outage(
            lambda: self._save_and_tell(execution, result),
            self._is_full,
            "the server of results has no room",
            FULL_TIMEOUT,
        )

    async def _encoded(self, execution: Execution, result: TaskiqResult[Any]) -> TaskiqResult[Any]:
        """A result as it is stored. One whose value cannot be carried is a failure."""
        value = result.return_value
        is_leaf = type(value) in LEAVES and is_plain(value)
        if self._stores_plain_as_is and is_leaf and result.error is None:
            return result  # spares short tasks what is asked of other values
        name, task_id = execution.node_name, execution.task_id
        what = f"the result of node {name!r}"
        folder = "" if self._wire.store is None else folder_of(execution.reply_to.run)
        try:
            return await as_stored(self._wire, self._backend, folder, task_id, result, what)
        except ResultUnavailableError as error:
            return failed(error)
        except Exception as error:  # of the codec, or of the user's that it calls
            why = str(error) if isinstance(error, SerializationError) else describe(error)
            return failed(SerializationError(f"{what} is not carried: {why}"))

    async def _save_and_tell(self, execution: Execution, result: TaskiqResult[Any]) -> None:
        reply_to = execution.reply_to
        if self._save_and_publish is not None:
            await self._save_and_publish(
                execution.task_id,
                result,
                reply_to.channel,
                lambda size: self._notice(execution, result, size).sealed(reply_to.key),
                execution.delivery,
            )
            return
        await self.save_only(execution.task_id, result)
        notice = await read_off_loop(result.return_value, self._notice, execution, result, None)
        await self.publish(execution, notice)

    def _notice(self, execution: Execution, result: TaskiqResult[Any], size: int | None) -> Notice:
        """The notice of a result, with its value if small. ``size``: bytes of the stored result."""
        task_id = execution.task_id
        if isinstance(result.error, NoResultError):
            return Notice(Kind.NO_RESULT, task_id)
        if is_referred_to(result, execution.reply_to.limit, size):
            return Notice(Kind.REFERENCE, task_id)
        if self._inlines and (size is None or size <= self._inline_limit):
            try:
                hidden = {"log"} if VALUES in result.labels else _NOT_PUBLISHED
                body = result.model_dump_json(exclude=hidden).encode()
            except ValueError:  # e.g. a lone surrogate, which the backend may be able to store
                return Notice(Kind.SAVED, task_id)
            if len(body) <= self._inline_limit:
                return Notice(Kind.RESULT, task_id, body)
        return Notice(Kind.SAVED, task_id)

    async def publish(self, execution: Execution, notice: Notice) -> None:
        """Send a notice, if that is possible now: the engine finds out without it, too."""
        reply_to = execution.reply_to
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT):
                await self._notifier.publish(reply_to.channel, notice.sealed(reply_to.key))
        except Exception as error:  # of the server, or of a client that refuses the size
            logger.warning(
                "the notice of %s was not published: %s", execution.task_id, text_of(error)
            )

    def _why_not_saved(
        self, execution: Execution, result: TaskiqResult[Any], error: Exception
    ) -> Exception:
        name = execution.node_name
        serializer: Any = getattr(self._backend, "serializer", None)
        try:
            content = result.model_dump(mode="json")
            if serializer is not None:
                serializer.dumpb(content)
        except Exception as cause:  # whatever a value or a serializer raises
            kind = type(result.return_value)
            return SerializationError(
                f"node {name!r} returned a {kind.__module__}.{kind.__qualname__}, which "
                f"{type(self._backend).__name__} cannot store ({cause}); return plain data "
                "(numbers, strings, lists, dicts, models)"
            )
        return ResultUnavailableError(
            f"the result of node {name!r} could not be stored in {type(self._backend).__name__}: "
            f"{text_of(error)}"
        )
