"""A task's result as taskiq represents it, and its value as the task's annotation says."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from taskiq import TaskiqResult

from taskiq_flow.errors import ResultUnavailableError, SerializationError
from taskiq_flow.values.fitting import Fit
from taskiq_flow.values.size import read_off_loop
from taskiq_flow.values.wire import Wire, is_encoded_result, stored_size

logger = logging.getLogger("taskiq_flow")


def failed(error: BaseException) -> TaskiqResult[Any]:
    """The result of a task that ended with ``error`` and has no result of its own."""
    return TaskiqResult(is_err=True, return_value=None, execution_time=0.0, error=error)


async def arrived(
    task_id: str, result: TaskiqResult[Any], return_type: Any, wire: Wire | None
) -> TaskiqResult[Any]:
    """As ``restored``. A large value is decoded in a thread, and one in the store is read."""
    if wire is None or stored_size(result) is None:
        return await read_off_loop(
            result.return_value, restored, task_id, result, return_type, wire
        )
    try:
        return await wire.read_object(task_id, result)
    except (SerializationError, ResultUnavailableError) as error:
        return failed(error)


def restored(
    task_id: str, result: TaskiqResult[Any], return_type: Any, wire: Wire | None
) -> TaskiqResult[Any]:
    """A stored result with its value as the task returned it.

    A value that was not encoded is converted to the task's return annotation, if it does not fit.
    ``wire``: decodes values; ``None`` where the broker has no ``FlowMiddleware``. The result is a
    failure if its value cannot be decoded.
    """
    if result.is_err:
        return result if wire is None else wire.decode_error(task_id, result)
    if not is_encoded_result(result):
        result.return_value = as_annotated(result.return_value, return_type)
        return result
    if wire is None:
        text = f"the result of task {task_id!r} was encoded by a worker with a FlowMiddleware"
        return failed(SerializationError(f"{text}; add one to the broker here too"))
    try:
        return wire.decode_result(task_id, result)
    except SerializationError as error:
        return failed(error)


def fitting(value: Any, return_type: Any) -> Any:
    """A value that fits a return type, converted if need be. Raises what pydantic raises."""
    if return_type is None:
        return value
    try:
        fit = _fit_of(return_type)
    except TypeError:  # an annotation that has no hash
        fit = Fit.of(return_type)
    return value if fit is None else fit.convert(value)


# Every result of a task has the same annotation, and reading one takes longer than a result.
_fit_of = lru_cache(maxsize=1024)(Fit.of)


def as_annotated(value: Any, return_type: Any) -> Any:
    """A value that fits a return type; unchanged if it does not and cannot be converted."""
    try:
        return fitting(value, return_type)
    except Exception as error:  # of the wrong form, or of a type that pydantic does not know
        logger.warning("a result was not read as %r: %s", return_type, error)
        return value
