"""From the call of a task to what a broker carries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask, BrokerMessage, TaskiqMessage
from taskiq.formatters.proxy_formatter import ProxyFormatter
from taskiq.labels import prepare_label
from taskiq.serializers import JSONSerializer

from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.tasks import Task
from taskiq_flow.elements.element import Element
from taskiq_flow.errors import SerializationError
from taskiq_flow.processes.in_process import begins_at_once
from taskiq_flow.values.call import with_each
from taskiq_flow.values.handle import with_values, without_handles
from taskiq_flow.values.inspection import type_name
from taskiq_flow.values.wire import Place, Wire

ALREADY_PLAIN = frozenset({type(None), bool, int, float, str, list, dict, tuple})


RunnableNode = DAGNode | Element
"""What a run starts: a node of its graph, or an element of a mapped one."""


@dataclass(frozen=True, slots=True)
class Address:
    """What is the same in all messages of one task.

    ``queue``: where it is sent to, ``None`` for the broker's own queue. ``is_async``: whether the
    task's function is a coroutine function, which its worker can cancel. ``executed``: what is
    executed, as far as this process knows. ``injects``: whether taskiq injects any of its
    arguments. ``behind_id``: the JSON of a message without values, behind the task's id; empty
    until such a message is sent.
    """

    task_name: str
    labels: dict[str, str]
    labels_types: dict[str, int]
    return_type: Any = None
    queue: str | None = None
    is_async: bool = True
    executed: Task | None = None
    injects: bool = False
    behind_id: bytes = field(default=b"", init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        task: AsyncTaskiqDecoratedTask[Any, Any],
        further_labels: Mapping[str, str],
        *,
        executed: Task | None = None,
        injects: bool = False,
    ) -> Address:
        """The address of a task, with its labels as taskiq's kicker prepares them, and others.

        ``further_labels`` have no types in the message: taskiq need not parse what is a string.
        """
        prepared = {
            label: prepare_label(value)
            for label, value in task.labels.items()
            if label != "types_of_exceptions"  # exception classes, which taskiq keeps at home too
        }
        labels = {label: value for label, (value, _) in prepared.items()} | {**further_labels}
        return cls(
            task_name=task.task_name,
            labels=labels,
            labels_types={label: kind for label, (_, kind) in prepared.items()},
            return_type=task.return_type,
            queue=labels.get("queue_name") or None,
            is_async=begins_at_once(task.original_func),
            executed=executed,
            injects=injects,
        )

    def with_label(self, label: str, value: object) -> Address:
        """The same address with one label more."""
        content, kind = prepare_label(value)
        return replace(
            self,
            labels={**self.labels, label: content},
            labels_types={**self.labels_types, label: kind},
        )

    def message(self, task_id: str, args: list[Any], kwargs: dict[str, Any]) -> TaskiqMessage:
        """The message of one call."""
        return TaskiqMessage(
            task_id=task_id,
            task_name=self.task_name,
            labels=self.labels,
            labels_types=self.labels_types,
            args=args,
            kwargs=kwargs,
        )


class Invocation(NamedTuple):
    """One call of a node's task, on its way to the broker."""

    node: RunnableNode
    address: Address
    task_id: str
    args: list[Any]
    kwargs: dict[str, Any]

    def values(self) -> list[Any]:
        """The arguments: the positional ones, then those by keyword."""
        return [*self.args, *self.kwargs.values()]

    def with_arguments(self, values: list[Any]) -> Invocation:
        """The same call with other arguments, in the order of ``values``."""
        args, others = values[: len(self.args)], values[len(self.args) :]
        return self._replace(args=args, kwargs=dict(zip(self.kwargs, others, strict=True)))

    def with_each(self, function: Callable[[Any], Any]) -> Invocation:
        """The same call with each argument as ``function`` makes it."""
        args, kwargs = with_each(function, self.args, self.kwargs)
        return Invocation(self.node, self.address, self.task_id, args, kwargs)

    async def with_values(self) -> Invocation:
        """The same call with values in the places of handles, for a task in this process."""
        return self.with_arguments([await with_values(value) for value in self.values()])

    def by_key(self) -> Iterable[tuple[str, Any]]:
        """The arguments with the keys that they came under."""
        keys, names = self.node.binding.keys_of(len(self.args))
        yield from zip(keys, self.args, strict=True)
        for name, value in self.kwargs.items():
            yield names.get(name, name), value


def plain(value: Any) -> Any:
    """Models and dataclasses as plain data, as taskiq's kicker passes them on."""
    if type(value) in ALREADY_PLAIN:  # spares the common values two slow questions
        return value
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value


def formats_as_usual(broker: AsyncBroker) -> bool:
    """Whether the broker has taskiq's own formatter, whose result ``encode_unseen`` knows."""
    return type(broker.formatter) is ProxyFormatter


def encode_unseen(
    broker: AsyncBroker,
    call: Invocation,
    args: list[Any],
    kwargs: dict[str, Any],
    *,
    converts: bool,
) -> BrokerMessage:
    """What taskiq's own formatter makes of a call's message, without making the message.

    For calls whose message nobody looks at; it takes a tenth off what a node costs. ``args``,
    ``kwargs``: what stands in it. ``converts``: whether values may be in it that JSON does not
    have. Raises whatever the serializer raises.
    """
    address, task_id, serializer = call.address, call.task_id, broker.serializer
    if args or kwargs or type(serializer) is not JSONSerializer:
        message = _dumped(broker, address, task_id, args, kwargs, converts=converts)
    else:  # in JSON, nothing but the id differs from the last such message
        if not address.behind_id:
            empty = _dumped(broker, address, "", [], {}, converts=converts)
            object.__setattr__(address, "behind_id", empty.removeprefix(_BEFORE_ID + b'""'))
        message = _BEFORE_ID + serializer.dumpb(task_id) + address.behind_id
    return BrokerMessage(
        task_id=task_id,
        task_name=address.task_name,
        message=message,
        labels=address.labels,
    )


_BEFORE_ID = b'{"task_id": '


def _dumped(
    broker: AsyncBroker,
    address: Address,
    task_id: str,
    args: list[Any],
    kwargs: dict[str, Any],
    *,
    converts: bool,
) -> bytes:
    content = {
        "task_id": task_id,
        "task_name": address.task_name,
        "labels": address.labels,
        "labels_types": address.labels_types,
        "args": args,
        "kwargs": kwargs,
    }
    own = to_jsonable_python(content, inf_nan_mode="null") if converts else content
    return broker.serializer.dumpb(own)


def encode_call(
    wire: Wire, task_id: str, args: list[Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The keyword arguments of an encoded call, with references in the places of handles."""
    references: list[tuple[Place, dict[str, Any]]] = []

    def encodable(argument: int | str, value: Any) -> Any:
        value, handles = without_handles(value)
        for within, handle in handles:
            reference = {k: part for k, part in asdict(handle.reference).items() if part}
            references.append(((argument, *within), reference))
        return value

    args = [encodable(index, value) for index, value in enumerate(args)]
    kwargs = {name: encodable(name, value) for name, value in kwargs.items()}
    return wire.encode_call(task_id, args, kwargs, references)


def explained(
    broker: AsyncBroker, call: Invocation, error: Exception, wire: Wire | None = None
) -> SerializationError:
    """The error of a call that cannot be encoded: it names the first value that cannot alone."""
    name = call.node.task_name
    for key, value in call.by_key():
        reason = _not_carried(wire, value) if wire else _not_formatted(broker, value, error)
        if reason is not None:
            return SerializationError(
                f"node {name!r} cannot be sent the value of {key!r}{reason}",
                task_name=name,
                key=key,
                value_type=type(value),
            )
    return SerializationError(
        f"the message of node {name!r} cannot be encoded: {error}", task_name=name
    )


def _not_carried(wire: Wire, value: Any) -> str | None:
    """Why a value cannot be carried; ``None`` if it can."""
    try:
        encode_call(wire, "", [value], {})
    except SerializationError as reason:
        return f": {reason}"
    return None


def _not_formatted(broker: AsyncBroker, value: Any, error: Exception) -> str | None:
    alone = Address(task_name="", labels={}, labels_types={})
    try:
        broker.formatter.dumps(alone.message("", [plain(value)], {}))
    except Exception:  # whatever a formatter raises
        return (
            f", a {type_name(value)}: {type(broker.formatter).__name__} with "
            f"{type(broker.serializer).__name__} cannot carry it ({error}); have the task that "
            "makes it return plain data (numbers, strings, lists, dicts, models), or give the "
            "broker a formatter that can"
        )
    return None
