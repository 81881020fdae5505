"""The file of a recorded run: how it is written, and how it is read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskiq import AsyncBroker
from taskiq.serialization import ExceptionRepr, exception_to_python
from taskiq.serializers import JSONSerializer

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.known_classes import ClassesOfTasks
from taskiq_flow.errors import SerializationError, describe
from taskiq_flow.events import (
    NodeCompleted,
    NodeFailed,
    NodeFellBack,
    NodeRetried,
    NodeSkipped,
    NodeStarted,
)
from taskiq_flow.middleware import codec_of
from taskiq_flow.testing.stage import EventLog
from taskiq_flow.values.stored import StoredValues

FORMAT = "taskiq_flow recording 1"
"""The first entry of a file."""

Items = Mapping[str, Sequence[tuple[float, Any]]]
"""By the name of a generator, or of an element of one: its items, each with when it came."""


class ReplayError(AssertionError):
    """A recording has no answer to what a graph asks of it, or cannot be read.

    ``task_name``: of the node or the element that asks.
    """

    def __init__(self, message: str, task_name: str = "") -> None:
        super().__init__(message)
        self.task_name = task_name


def encoded_inputs(broker: AsyncBroker, dag: DAG, inputs: Mapping[str, Any]) -> Any:
    """The inputs of a run as they are recorded. Raises ``SerializationError``."""
    return _encoded(_values_of(broker, dag), "the inputs", dict(inputs))


def written(
    broker: AsyncBroker,
    dag: DAG,
    inputs: Any,
    log: EventLog,
    digests: Mapping[str, str],
    items: Items,
) -> str:
    """The text of a recording.

    ``inputs``: as ``encoded_inputs`` gives them. ``digests``: of the arguments, by task id.

    Raises ``SerializationError``.
    """
    values = _values_of(broker, dag)
    content = {
        "format": FORMAT,
        "inputs": inputs,
        "attempts": _Attempts(dag, values, log, digests, items).entries(),
    }
    return json.dumps(content, ensure_ascii=False, indent=1)


class _Attempts:
    """The entries of all attempts of a run, made of its events."""

    def __init__(
        self,
        dag: DAG,
        values: StoredValues,
        log: EventLog,
        digests: Mapping[str, str],
        items: Items,
    ) -> None:
        self._log, self._values, self._items = log, values, items
        self._began = log.events[0].at
        self._node_of = dag.plan().node_of
        self._nodes = {node.task_name: node for node in dag.nodes}
        self._entries: dict[tuple[str, int], dict[str, Any]] = {}
        for sent in log.sent:
            self._entry(sent.task_name, sent.attempt)["arguments"] = digests.get(sent.task_id, "")

    def entries(self) -> list[dict[str, Any]]:
        """What is written of them."""
        for event in self._log.events:
            match event:
                case NodeRetried(error=error) if error is not None:
                    self._fail(event.task_name, event.attempt - 1, event.at - event.delay, error)
                case NodeFellBack():
                    self._fail(event.task_name, event.attempt - 1, event.at, event.error)
                case NodeFailed() if event.attempt:
                    self._fail(event.task_name, event.attempt, event.at, event.error)
                case NodeCompleted():
                    self._complete(event)
                case NodeSkipped() if event.attempt:  # an element that a filter has left out
                    self._end(event.task_name, event.attempt, event.at)["value"] = False
        return list(self._entries.values())

    def _entry(self, name: str, attempt: int) -> dict[str, Any]:
        new = {"node": name, "attempt": attempt, "arguments": ""}
        return self._entries.setdefault((name, attempt), new)

    def _end(self, name: str, attempt: int, at: float) -> dict[str, Any]:
        entry = self._entry(name, attempt)
        entry["ended"] = at - self._began
        return entry

    def _fail(self, name: str, attempt: int, at: float, error: BaseException) -> None:
        self._end(name, attempt, at)["error"] = _written_error(self._values, error)

    def _complete(self, event: NodeCompleted) -> None:
        name = event.task_name
        entry = self._end(name, event.attempt or 1, event.at)  # a cached result was never sent
        node = self._nodes[self._node_of(name)]
        if node.gives_items:
            entry["items"] = [
                [at - self._began, _encoded(self._values, f"an item of {name!r}", item)]
                for at, item in self._items.get(name, ())
            ]
        else:
            value = True if node.filter else event.result  # the result is what was let through
            entry["value"] = _encoded(self._values, f"the value of {name!r}", value)


def _values_of(broker: AsyncBroker | None, dag: DAG) -> StoredValues:
    """How the values of a graph are written and read."""
    classes = ClassesOfTasks(lambda: [node.task for node in dag.nodes])
    return StoredValues(JSONSerializer(), classes, None if broker is None else codec_of(broker))


def _encoded(values: StoredValues, what: str, value: Any) -> Any:
    try:
        return values.encode(value)
    except SerializationError as error:
        raise SerializationError(f"{what} cannot be recorded: {error}") from error


def _written_error(values: StoredValues, error: BaseException) -> dict[str, Any]:
    arguments = []
    for argument in error.args:
        try:
            arguments.append(values.encode(argument))
        except SerializationError:
            arguments.append(repr(argument))
    kind = type(error)
    return {"module": kind.__module__, "type": kind.__qualname__, "args": arguments}


@dataclass(frozen=True, slots=True)
class Attempt:
    """How an attempt has ended. ``ended``: ``None`` if it had not when the run was over."""

    arguments: str
    ended: float | None
    value: Any
    items: list[tuple[float, Any]] | None
    error: BaseException | None


def _read(entry: Mapping[str, Any], values: StoredValues) -> Attempt:
    error: BaseException | None = None
    if "error" in entry:
        told = entry["error"]
        arguments = tuple(values.decode(argument) for argument in told["args"])
        error = exception_to_python(
            ExceptionRepr(exc_type=told["type"], exc_message=arguments, exc_module=told["module"])
        )
    items = None
    if "items" in entry:
        items = [(at, values.decode(item)) for at, item in entry["items"]]
    value = values.decode(entry["value"]) if "value" in entry else None
    return Attempt(entry["arguments"], entry.get("ended"), value, items, error)


class Recording:
    """A recording that is read.

    ``end``: when its last attempt ended. ``problem``: the first question to which it has no answer.
    """

    def __init__(self, path: str | os.PathLike[str], dag: DAG) -> None:
        self.path, values = os.fspath(path), _values_of(None, dag)
        self.problem: ReplayError | None = None
        text = Path(path).read_text(encoding="utf-8")
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}")  # noqa: TRY301
            self.inputs: dict[str, Any] = values.decode(content["inputs"])
            self._attempts = {
                (entry["node"], entry["attempt"]): _read(entry, values)
                for entry in content["attempts"]
            }
            self.end = max([entry.get("ended", 0.0) for entry in content["attempts"]], default=0.0)
        except Exception as error:  # whatever is wrong with the text
            raise ReplayError(
                f"{self.path} cannot be read as a recording: {describe(error)}; record it again"
            ) from error

    def find(self, sending: NodeStarted) -> Attempt:
        """What was recorded of an attempt. Raises ``ReplayError``."""
        name, number = sending.task_name, sending.attempt
        found = self._attempts.get((name, number))
        if found is None:
            known = sum(other == name for other, _ in self._attempts)
            has = f"{known} of its attempts, and this is number {number}" if known else "none of it"
            raise self.failed(f"node {name!r} is run, and {self.path} has {has}", name)
        return found

    def check_arguments(self, sending: NodeStarted, digest: str) -> None:
        """Raise ``ReplayError`` if an attempt has other arguments than the recorded one."""
        recorded, name = self.find(sending).arguments, sending.task_name
        if recorded and digest != recorded:
            raise self.failed(
                f"node {name!r} is given other arguments than those in {self.path}", name
            )

    def failed(self, problem: str, name: str) -> ReplayError:
        """The error to be raised for a question without an answer."""
        error = ReplayError(f"{problem}; record the run again", name)
        self.problem = self.problem or error
        return error
