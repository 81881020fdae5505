"""What taskiq's receiver logs of the tasks of engines."""

from __future__ import annotations

import logging
import traceback

from taskiq_flow.errors import describe
from taskiq_flow.worker.execution import current

receiver_logger = logging.getLogger("taskiq.receiver.receiver")


class _ErrorsOfTasks(logging.Filter):
    """Makes one line of the traceback that taskiq logs at ERROR when a task raises.

    Only the engine knows whether that is an error: it may try the task again, and it reports what
    fails at last. So the line is a warning, and DEBUG for a task that the engine has cancelled.
    Where the logger's level is DEBUG, the traceback stays.
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
            record.msg = "task %r ended with %s (%s:%s)"
            *_, frame = traceback.extract_tb(error.__traceback__)
            record.args = execution.task_id, describe(error), frame.filename, frame.lineno
            if not receiver_logger.isEnabledFor(logging.DEBUG):
                record.exc_info = None
        return receiver_logger.isEnabledFor(record.levelno)


_filter = _ErrorsOfTasks()


def shorten_errors_of_tasks() -> None:
    """Put the filter on taskiq's logger, where it stays for all workers of this process."""
    receiver_logger.addFilter(_filter)
