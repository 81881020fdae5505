"""One execution of a task on a worker, and the wrapper around its function that can stop it.

taskiq has no way to pass over a task: a middleware that raises leaves the message unacknowledged.
What the task's own function raises is an ordinary outcome, so that is where a task is refused.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from taskiq import NoResultError, TaskiqMessage

from taskiq_flow.transport.notice import BEGIN_LABEL, REFERENCES_LABEL, ReplyTo

REFUSAL = "taskiq_flow_refusal"
"""The keyword argument with the ``Refusal`` of a task that is not to run.

An argument, as it has to reach functions in threads and in other processes as well.
"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a task is to raise instead of running. No message can carry one."""

    error: BaseException


REQUEUE_COUNT = "X-Taskiq-requeue"
"""The label in which taskiq's ``Context.requeue`` counts."""


class RevokedError(NoResultError):
    """The task's run is over.

    taskiq acknowledges its message and saves nothing, and retry middlewares leave it alone.
    """

    __template__ = "the run of this task is over"

    def __reduce__(self) -> tuple[type[RevokedError], tuple[()]]:
        return type(self), ()


class Attempt:
    """One execution of an engine's task. Made in the asyncio task that executes it."""

    def __init__(self, message: TaskiqMessage, reply_to: ReplyTo) -> None:
        self.task_id = message.task_id
        self.reply_to = reply_to
        self.args, self.kwargs = message.args, message.kwargs  # as they were sent
        self.references = message.labels.get(REFERENCES_LABEL)  # likewise
        self.requeues = message.labels.get(REQUEUE_COUNT)
        self.tells_begin = BEGIN_LABEL in message.labels
        self._pid = os.getpid()
        self.function: Callable[..., Any] | None = None  # the task's, guarded
        self._has_entered = False
        self.on_begun: Callable[[], object] = _nothing  # called in the thread of the function
        self.is_revoked = False
        self.is_superseded = False  # the task was sent again: this is not its outcome
        self.is_reported = False
        self.is_acknowledged = False
        self.raised: BaseException | None = None
        self._running: asyncio.Task[Any] | None = None  # within the task's function

    @property
    def names(self) -> tuple[str, str]:
        """What names its run, and the task itself, among those of all engines."""
        return self.reply_to.run, self.reply_to.task(self.task_id)

    @property
    def node_name(self) -> str:
        """The name of the task's node, as the task's id has it."""
        return self.task_id.removeprefix(f"{self.reply_to.run_id}:").rpartition(":")[0]

    def revoke(self) -> None:
        """Cancel it if it runs, once, and keep it from running if it does not yet."""
        if not self.is_revoked and self._running is not None:
            self._running.cancel()
        self.is_revoked = True

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the task's function, within reach of ``revoke``."""
        self.enter()
        self._running = asyncio.current_task()
        try:
            return await function(*args, **kwargs)
        except asyncio.CancelledError:
            if self.is_revoked and self._running is not None:
                self._running.uncancel()
                raise RevokedError from None
            raise
        finally:
            self._running = None

    @property
    def has_begun(self) -> bool:
        """Whether it counts as running: a sync function does when a thread begins with it.

        In a pool of processes that cannot be seen, so it counts from when the worker has it.
        """
        in_thread = isinstance(self.function, _Guarded) and not self.function.is_pickled
        return self._has_entered or not in_thread

    def enter(self) -> None:
        """Note that the task's function begins; raise ``RevokedError`` if it is not to."""
        # A pool's process is forked while some attempt is current, and has it for ever.
        if self._pid != os.getpid():
            return
        if self.is_revoked:
            raise RevokedError
        if not self.has_begun:
            self._has_entered = True
            self.on_begun()


current: ContextVar[Attempt | None] = ContextVar("current", default=None)
"""The attempt that the running task is about, in the worker's asyncio task and its threads."""


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A task's function, wrapped, once, so that the task can be refused and revoked."""
    if isinstance(function, _Guarded) or hasattr(function, _IS_GUARDED):
        return function
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            _refuse(kwargs)
            attempt = current.get()
            if attempt is None:
                return await function(*args, **kwargs)
            return await attempt.run(function, *args, **kwargs)

        setattr(call, _IS_GUARDED, True)
        return call
    return _Guarded(function)


_IS_GUARDED = "taskiq_flow_is_guarded"


class _Guarded:
    """A sync function; an object, so that it can be sent to another process."""

    is_pickled = False
    """Whether it was sent to another process: nobody here sees it begin then."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)

    def __getstate__(self) -> dict[str, Any]:
        self.is_pickled = True
        return vars(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _refuse(kwargs)
        attempt = current.get()
        if attempt is not None:
            attempt.enter()
        function: Callable[..., Any] = vars(self)["__wrapped__"]
        return function(*args, **kwargs)


def _nothing() -> None: ...


def _refuse(kwargs: dict[str, Any]) -> None:
    refusal = kwargs.get(REFUSAL)
    if isinstance(refusal, Refusal):
        raise refusal.error
