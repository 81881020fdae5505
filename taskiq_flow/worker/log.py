"""Shortens what taskiq's receiver logs when the task of an engine fails."""

from __future__ import annotations

import logging

from taskiq_flow.values.ended import how_ended
from taskiq_flow.worker.execution import current

receiver_logger = logging.getLogger("taskiq.receiver.receiver")


class _ErrorsOfTasks(logging.Filter):
    """Replaces the traceback that taskiq logs at ERROR when a task raises by one line.

    The engine may retry the task, and reports the final error itself, so the line is a WARNING.
    For a task that its engine has cancelled it is DEBUG. If DEBUG is enabled for the logger, the
    traceback is logged as well.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        execution = current.get()
        if execution is None or execution.is_reported or record.levelno < logging.WARNING:
            return True
        error = record.exc_info[1] if record.exc_info else None
        if execution.is_revoked:
            record.levelno = logging.DEBUG
        elif error is not None:
            record.levelno = logging.WARNING
        record.levelname = logging.getLevelName(record.levelno)
        if error is not None:
            how = how_ended(error, execution.function, execution.timeout)
            record.msg, record.args = "task %r %s", (execution.task_id, how)
            if not receiver_logger.isEnabledFor(logging.DEBUG):
                record.exc_info = None
        return receiver_logger.isEnabledFor(record.levelno)


_filter = _ErrorsOfTasks()


def shorten_errors_of_tasks() -> None:
    """Add the filter to taskiq's logger, for all workers of this process."""
    receiver_logger.addFilter(_filter)
