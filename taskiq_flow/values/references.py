"""Results that are passed by reference: what stays in the result backend, and how it is read."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from functools import partial
from typing import Any

from taskiq import AsyncResultBackend, TaskiqResult

from taskiq_flow.errors import ResultUnavailableError, SerializationError
from taskiq_flow.reconnect import (
    IsOutage,
    retry_through_outage,
    telling_who_is_away,
    text_of,
)
from taskiq_flow.transport.notice import ALWAYS
from taskiq_flow.transport.systems import outages_of
from taskiq_flow.values.codec import ValueCodec
from taskiq_flow.values.handle import Reference, ResultHandle
from taskiq_flow.values.results import arrived
from taskiq_flow.values.size import read_off_loop
from taskiq_flow.values.wire import Wire, is_strict, stored_size

SMALL_INPUT = 65536
"""Bytes up to which an input of a run travels by value where all results go by reference."""


def is_referred_to(result: TaskiqResult[Any], limit: int | None, size: int | None = None) -> bool:
    """Whether a result is passed by reference under a limit on the size of values, in bytes.

    ``size``: that of the result as it is stored, where it is known. A result that the codec cannot
    carry has no size and is passed by value.
    """
    if limit is None or result.is_err:
        return False
    if limit == ALWAYS:
        return True
    if (stored := stored_size(result)) is not None:
        return stored > limit
    if size is None:
        try:
            size = len(json.dumps(result.model_dump(mode="json")))
        except Exception:  # it has no JSON form, as an array has none
            try:
                frame = ValueCodec().encode_frame(result.return_value)
            except SerializationError:  # whoever encodes it says so
                return False
            size = sum(memoryview(part).nbytes for part in frame)
    return size > limit


async def refers(result: TaskiqResult[Any], limit: int | None) -> bool:
    """As ``is_referred_to``. A large value is measured in a thread, and only if its size counts."""
    if limit is None or limit == ALWAYS or result.is_err:
        return is_referred_to(result, limit)
    return await read_off_loop(result.return_value, is_referred_to, result, limit)


async def as_stored(
    wire: Wire,
    backend: AsyncResultBackend[Any],
    folder: str,
    task_id: str,
    result: TaskiqResult[Any],
    what: str,
) -> TaskiqResult[Any]:
    """A result as the result backend is given it: encoded, or with its value in the store.

    ``folder``: of the store. ``what``: the value, for messages. Raises ``SerializationError`` for a
    value that is not carried, ``ResultUnavailableError`` if the store does not take it.
    """
    if wire.store is not None and not result.is_err:
        stored = await wire.store.put(folder, result.return_value, what)
        if stored is not None:
            return wire.refer_to(task_id, result, stored)
    encode = partial(wire.encode_result, strict=is_strict(backend))
    return await read_off_loop(result.return_value, encode, task_id, result)


async def store_large_inputs(
    backend: AsyncResultBackend[Any],
    inputs: Mapping[str, Any],
    limit: int,
    run_id: str,
    is_outage: IsOutage,
    wire: Wire,
    folder: str,
) -> dict[str, Any]:
    """Handles of those inputs of a run that are above the limit, which are stored.

    They are stored as results are, under ids that no task has. Raises ``SerializationError`` for an
    input that the result backend cannot store, and the client's error if the server is away for too
    long.
    """
    found: dict[str, Any] = {}
    for key, value in inputs.items():
        if isinstance(value, ResultHandle):
            continue
        task_id = f"{run_id}:input.{secrets.token_hex(8)}"
        own: TaskiqResult[Any] = TaskiqResult(is_err=False, return_value=value, execution_time=0.0)
        try:
            result = await as_stored(wire, backend, folder, task_id, own, f"input {key!r}")
        except SerializationError:
            continue  # it is sent by value, and whoever encodes it says so
        if not await refers(result, SMALL_INPUT if limit == ALWAYS else limit):
            continue
        try:
            await retry_through_outage(
                lambda: backend.set_result(task_id, result),  # noqa: B023 - it ends before the next
                is_outage,
                f"input {key!r} cannot be stored yet",
            )
        except Exception as error:  # whatever a serializer or the client raises
            if is_outage(error):
                raise
            raise SerializationError(
                f"input {key!r}, a {type(value).__qualname__}, is passed by reference, and "
                f"{type(backend).__name__} cannot store it: {text_of(error)}"
            ) from error
        found[key] = handle_of(backend, task_id, None, wire)
    return found


async def read_result(
    backend: AsyncResultBackend[Any], task_id: str, return_type: Any, wire: Wire | None
) -> Any:
    """The value that a task returned and that is in the result backend. Waits while that is away.

    Raises ``ResultUnavailableError`` if it is not, what the task has raised if it was executed once
    more and failed, ``ServerUnreachableError`` if the server is away for too long, and whatever the
    backend raises.
    """
    is_outage = outages_of(backend)
    with telling_who_is_away(f"the result of task {task_id!r} cannot be read", backend, is_outage):
        result = await retry_through_outage(
            lambda: stored_result(backend, task_id, return_type, wire),
            is_outage,
            "results cannot be read yet",
        )
    result.raise_for_error()  # which may look like an outage, and is none
    return result.return_value


async def stored_result(
    backend: AsyncResultBackend[Any], task_id: str, return_type: Any, wire: Wire | None
) -> TaskiqResult[Any]:
    """As ``read_result``, without waiting, and without raising what the task has raised."""
    if not await backend.is_result_ready(task_id):
        raise ResultUnavailableError(
            f"the result of task {task_id!r}, which was passed by reference, is not in the result "
            f"backend: it has expired or was deleted; {_again(task_id)}, and have the backend keep "
            "results for longer, as result_ex_time= of those of Redis says"
        )
    result = await backend.get_result(task_id)
    return await arrived(task_id, result, return_type, wire)


def _again(task_id: str) -> str:
    """How to get the result of a task once more. The id of a run's task names run and node."""
    run_id, _, rest = task_id.rpartition(":")
    run_id, _, name = run_id.rpartition(":")
    if not (run_id and rest):
        return "begin the run again"
    node = name.rpartition("[")[0] or name
    return f"compute it again, with engine.rerun({run_id!r}, [{node!r}]) if the run has a journal"


def handle_of(
    backend: AsyncResultBackend[Any], task_id: str, return_type: Any, wire: Wire | None
) -> ResultHandle:
    """The handle of a result in the result backend."""
    read = partial(read_result, backend, task_id, return_type, wire)
    return ResultHandle(Reference(task_id), read)
