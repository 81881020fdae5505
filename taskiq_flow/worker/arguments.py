"""Reads the arguments of a task's call from its message."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from taskiq import AsyncBroker, TaskiqMessage

from taskiq_flow.dataflow.binding import parameters_of
from taskiq_flow.reconnect import IsOutage, retry_through_outage
from taskiq_flow.values.call import Call
from taskiq_flow.values.handle import Reference
from taskiq_flow.values.isolation import Take, isolated
from taskiq_flow.values.references import stored_result
from taskiq_flow.values.size import read_off_loop
from taskiq_flow.values.wire import VALUES, Wire

READ_AT_ONCE = 32
"""Results that one task is given by reference and that are read at the same time."""


class Arguments:
    """Decodes arguments, and reads those that are references.

    ``is_outage``: whether an error says that a server cannot serve now. ``others_may_repeat``:
    whether another middleware may send a task again.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        is_outage: IsOutage,
        wire: Wire,
        *,
        others_may_repeat: bool,
    ) -> None:
        self._broker = broker
        self._is_outage = is_outage
        self._wire = wire
        self._others_may_repeat = others_may_repeat
        self._injects: dict[str, bool] = {}  # by task: whether taskiq injects parameters

    async def call_of(self, message: TaskiqMessage) -> Call:
        """The arguments of a task's call. Each result that is referred to is read once.

        Raises ``SerializationError``, or what the result backend raises.
        """
        wire, task_id, sent = self._wire, message.task_id, message.kwargs
        if not wire.is_encoded(sent):
            sent = {name: value for name, value in sent.items() if name != VALUES}
            return Call(message.task_name, list(message.args), sent, self._copy_of(message))
        args, kwargs = await read_off_loop(sent, wire.decode_call, task_id, sent)
        places = [(place, Reference(**given)) for place, given in wire.references_of(sent)]
        task_ids = list({reference.task_id for _, reference in places})
        at_once = asyncio.Semaphore(READ_AT_ONCE)
        results = await asyncio.gather(*(self._read(task_id, at_once) for task_id in task_ids))
        values = dict(zip(task_ids, results, strict=True))
        for (argument, *within), reference in places:
            target: Any = args if isinstance(argument, int) else kwargs
            *around, last = argument, *within
            for key in around:
                target = target[key]
            target[last] = reference.of(values[reference.task_id])
        return Call(message.task_name, args, kwargs)

    def _copy_of(self, message: TaskiqMessage) -> Take | None:
        """How a task is given plain values, which its message holds as they were sent.

        They are copied if the message may be sent again: by a middleware, or by the task itself.
        """
        if self._others_may_repeat:
            return isolated
        injects = self._injects.get(message.task_name)
        if injects is None:  # read once, as reading a signature takes longer than a short task
            task = self._broker.find_task(message.task_name)
            injects = task is not None and bool(parameters_of(task)[1])
            self._injects[message.task_name] = injects
        return isolated if injects else None

    async def _read(self, task_id: str, at_once: asyncio.Semaphore) -> Any:
        async with at_once:
            result = await retry_through_outage(
                lambda: stored_result(self._broker.result_backend, task_id, None, self._wire),
                self._is_outage,
                "results cannot be read yet",
                math.inf,
            )
        result.raise_for_error()  # which may look like an outage, and is none
        return result.return_value
