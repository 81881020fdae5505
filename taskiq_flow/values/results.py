"""A task's result as taskiq represents it, and its value as the task's annotation says."""

from __future__ import annotations

import logging
from typing import Any

from taskiq import TaskiqResult
from taskiq.compat import parse_obj_as

logger = logging.getLogger("taskiq_flow")


def failed(error: BaseException) -> TaskiqResult[Any]:
    """The result of a task that ended with ``error`` and has no result of its own."""
    return TaskiqResult(is_err=True, return_value=None, execution_time=0.0, error=error)


def parsed(result: TaskiqResult[Any], return_type: Any) -> TaskiqResult[Any]:
    """The same result, its value converted as the task's annotation says."""
    if not result.is_err:
        result.return_value = as_annotated(result.return_value, return_type)
    return result


def fitting(value: Any, return_type: Any) -> Any:
    """A value converted to a return type, as taskiq does it. Raises what pydantic raises."""
    return value if return_type is None else parse_obj_as(return_type, value)


def as_annotated(value: Any, return_type: Any) -> Any:
    """A value converted to a return type, as taskiq does it; unchanged if that is impossible."""
    try:
        return fitting(value, return_type)
    except Exception as error:  # of the wrong form, or of a type that pydantic does not know
        logger.warning("a result was not read as %r: %s", return_type, error)
        return value
