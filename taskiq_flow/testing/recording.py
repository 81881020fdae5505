"""``record`` and ``replay``: what the nodes of a run have given, in a file."""

from __future__ import annotations

import asyncio
import json
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskiq import AsyncBroker, TaskiqMessage, TaskiqMiddleware
from taskiq.serialization import ExceptionRepr, exception_to_python
from taskiq.serializers import JSONSerializer

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.known_classes import ClassesOfTasks
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.engine.results import store_result
from taskiq_flow.errors import SerializationError
from taskiq_flow.events import (
    Index,
    Item,
    NodeCompleted,
    NodeFailed,
    NodeFellBack,
    NodeRetried,
    NodeStarted,
)
from taskiq_flow.execution_engine import ExecutionEngine
from taskiq_flow.middleware import codec_of
from taskiq_flow.testing.outcome import RunOutcome
from taskiq_flow.testing.running import perform
from taskiq_flow.testing.stage import EventLog, Stage, executing
from taskiq_flow.values.digest import digest_of
from taskiq_flow.values.stored import StoredValues

FORMAT = "taskiq_flow recording 1"
"""The first entry of a file."""


class ReplayError(AssertionError):
    """A recording has no answer to what a graph asks of it, or cannot be read.

    ``task_name``: of the node or the element that asks.
    """

    def __init__(self, message: str, task_name: str = "") -> None:
        super().__init__(message)
        self.task_name = task_name


async def record(
    path: str | os.PathLike[str],
    broker: AsyncBroker,
    dag: DAG,
    inputs: Mapping[str, Any] | None = None,
    *,
    outputs: Iterable[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Run a graph as ``ExecutionEngine(broker, dag, **options)`` does, and write what nodes give.

    The file, which is JSON, has the inputs, and for each attempt of a node or an element its
    result or its error, a digest of its arguments, and when it ended. It is written when the run
    has ended, also by an error. Returns what ``execute`` returns, and raises what it raises.

    Of a generator, the items are recorded as they come. An attempt of a generator that has failed
    is replayed without those that it had given.

    Raises ``SerializationError`` for a value that the codec does not carry, and ``ValueError`` for
    ``pass_by=`` other than ``"value"``, which leaves values elsewhere.

    >>> from taskiq_flow.testing import record, replay
    >>> dag = DAGBuilder().node(str.split, name="words", inputs=["text"]).build()
    >>> asyncio.run(record("run.json", InMemoryBroker(), dag, {"text": "ebb and flow"}))
    {'words': ['ebb', 'and', 'flow']}
    >>> replay("run.json", dag).results
    {'words': ['ebb', 'and', 'flow']}
    """
    if options.get("pass_by", "value") != "value":
        raise ValueError(f"pass_by={options['pass_by']!r} cannot be recorded; leave it out")
    log, sent = EventLog(), _SentArguments()
    listeners = [*options.get("listeners", ()), log]
    engine = ExecutionEngine(broker, dag, **{**options, "listeners": listeners})
    generators = _generators(dag)
    results: dict[str, Any] = {}
    items: defaultdict[str, list[tuple[float, Any]]] = defaultdict(list)
    broker.middlewares = [*broker.middlewares, sent]
    try:
        stream = engine.execute_async(inputs, outputs=outputs, items=bool(generators))
        async with aclosing(stream):
            async for name, value in stream:
                if not isinstance(value, Item):
                    store_result(dag, results, name, value)
                elif name in generators:
                    at = asyncio.get_running_loop().time()
                    items[_element_of(name, value.index)].append((at, value.value))
    finally:
        broker.middlewares = [m for m in broker.middlewares if m is not sent]
        if log.events:
            text = _written(dag, _values_of(broker, dag), inputs or {}, log, sent.digests, items)
            await asyncio.to_thread(Path(path).write_text, text, encoding="utf-8")
    return results


def replay(
    path: str | os.PathLike[str],
    dag: DAG,
    inputs: Mapping[str, Any] | None = None,
    *,
    outputs: Iterable[str] | None = None,
    **options: Any,
) -> RunOutcome:
    """Run a graph on a virtual clock with recorded results in place of executions.

    Each attempt ends as it has when it was recorded, as many seconds after the beginning of the
    run. ``inputs``: the recorded ones if left out. ``outputs``, ``options``: as of ``run``.

    Raises ``ReplayError`` if a node is run that has not been recorded, or with other arguments
    than those recorded, and for a file that is no recording. Otherwise like ``run``.
    """
    recording = _Recording(path, dag)
    stage = Stage(dag, {}, lambda _: nullcontext(), recording.call, options)
    stage.broker.add_middlewares(_CheckedArguments(recording))
    given = recording.inputs if inputs is None else inputs
    outcome = perform(stage, given, outputs)
    if recording.problem is not None:
        raise recording.problem
    return outcome


class _SentArguments(TaskiqMiddleware):
    """Has the digests of the arguments of all tasks that are sent, by task id."""

    def __init__(self) -> None:
        super().__init__()
        self.digests: dict[str, str] = {}

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        self.digests[message.task_id] = _digest(message)
        return message


def _digest(message: TaskiqMessage) -> str:
    """The digest of a call's arguments; empty if they are of types that have none."""
    return digest_of((list(message.args), dict(message.kwargs))).hex()


def _values_of(broker: AsyncBroker | None, dag: DAG) -> StoredValues:
    """How the values of a graph are written and read."""
    classes = ClassesOfTasks(lambda: [node.task for node in dag.nodes])
    return StoredValues(JSONSerializer(), classes, None if broker is None else codec_of(broker))


def _generators(dag: DAG) -> set[str]:
    """The names of the nodes that give their items one by one."""
    return {node.task_name for node in dag.nodes if node.gives_items}


def _element_of(name: str, index: Index) -> str:
    """The name of the generator, or of its element, that has given the item at this place."""
    if isinstance(index, int):
        return name
    return f"{name}[{','.join(map(str, index[:-1]))}]"


def _written(
    dag: DAG,
    values: StoredValues,
    inputs: Mapping[str, Any],
    log: EventLog,
    digests: Mapping[str, str],
    items: Mapping[str, list[tuple[float, Any]]],
) -> str:
    """The text of a recording."""
    began, node_of = log.events[0].at, dag.plan().node_of
    generators = _generators(dag)
    entries: dict[tuple[str, int], dict[str, Any]] = {}
    for sent in log.sent:
        name, number = sent.task_name, sent.attempt
        entries[name, number] = {
            "node": name,
            "attempt": number,
            "arguments": digests.get(sent.task_id, ""),
        }

    def fail(name: str, number: int, at: float, error: BaseException | None) -> None:
        if error is not None and (entry := entries.get((name, number))) is not None:
            entry.update(ended=at - began, error=_written_error(values, error))

    for event in log.events:
        match event:
            case NodeRetried(task_name=name, attempt=number, at=at, delay=delay, error=error):
                fail(name, number - 1, at - delay, error)
            case NodeFellBack(task_name=name, attempt=number, at=at, error=error):
                fail(name, number - 1, at, error)
            case NodeFailed(task_name=name, attempt=number, at=at, error=error):
                fail(name, number, at, error)
            case NodeCompleted(task_name=name, attempt=number, at=at, result=value):
                number = number or 1  # of a cached result, which was never sent
                entry = entries.setdefault(
                    (name, number), {"node": name, "attempt": number, "arguments": ""}
                )
                entry["ended"] = at - began
                if node_of(name) in generators:
                    entry["items"] = [
                        [at - began, _encoded(values, f"an item of {name!r}", item)]
                        for at, item in items.get(name, ())
                    ]
                else:
                    entry["value"] = _encoded(values, f"the value of {name!r}", value)
    content = {
        "format": FORMAT,
        "inputs": _encoded(values, "the inputs", dict(inputs)),
        "attempts": list(entries.values()),
    }
    return json.dumps(content, ensure_ascii=False, indent=1)


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
class _Attempt:
    """How an attempt has ended. ``ended``: ``None`` if it had not when the run was over."""

    arguments: str
    ended: float | None
    value: Any
    items: list[tuple[float, Any]] | None
    error: BaseException | None


def _read(entry: Mapping[str, Any], values: StoredValues) -> _Attempt:
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
    return _Attempt(entry["arguments"], entry.get("ended"), value, items, error)


class _Recording:
    """A recording that is read. ``problem``: the first question to which it has no answer."""

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
        except Exception as error:  # whatever is wrong with the text
            raise ReplayError(
                f"{self.path} cannot be read as a recording: {error!r}; record it again"
            ) from error

    def find(self, sending: NodeStarted) -> _Attempt:
        """What was recorded of an attempt. Raises ``ReplayError``."""
        name, number = sending.task_name, sending.attempt
        found = self._attempts.get((name, number))
        if found is None:
            known = sum(other == name for other, _ in self._attempts)
            has = f"{known} of its attempts, and this is number {number}" if known else "none of it"
            raise self._failed(f"node {name!r} is run, and {self.path} has {has}", name)
        return found

    def check_arguments(self, sending: NodeStarted, digest: str) -> None:
        """Raise ``ReplayError`` if an attempt has other arguments than the recorded one."""
        recorded, name = self.find(sending).arguments, sending.task_name
        if recorded and digest != recorded:
            raise self._failed(
                f"node {name!r} is given other arguments than those in {self.path}", name
            )

    def _failed(self, problem: str, name: str) -> ReplayError:
        error = ReplayError(f"{problem}; record the run again", name)
        self.problem = self.problem or error
        return error

    async def call(
        self, node: DAGNode, _function: Callable[..., Any], /, *_args: Any, **_kwargs: Any
    ) -> Any:
        """Give what was recorded of the present attempt when it was, as a ``Call`` does."""
        attempt = self.find(executing.get())
        if attempt.items is not None:
            return self._items(attempt.items)
        if attempt.ended is None:
            await asyncio.get_running_loop().create_future()  # cancelled when the run ends
        else:
            await _until(attempt.ended)
        if attempt.error is not None:
            raise attempt.error
        return attempt.value

    async def _items(self, items: list[tuple[float, Any]]) -> AsyncIterator[Any]:
        for at, item in items:
            await _until(at)
            yield item


async def _until(moment: float) -> None:
    """Wait until the run, and the loop with it, is so many seconds old."""
    await asyncio.sleep(moment - asyncio.get_running_loop().time())


class _CheckedArguments(TaskiqMiddleware):
    """Compares the arguments of all tasks that are sent with those recorded."""

    def __init__(self, recording: _Recording) -> None:
        super().__init__()
        self._recording = recording

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        self._recording.check_arguments(executing.get(), _digest(message))
        return message
