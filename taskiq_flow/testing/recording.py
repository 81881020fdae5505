"""``record`` and ``replay``: what the nodes of a run have given, in a file."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import Any

from taskiq import AsyncBroker, TaskiqMessage, TaskiqMiddleware

from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.engine.results import store_result
from taskiq_flow.events import Index, Item
from taskiq_flow.execution_engine import ExecutionEngine
from taskiq_flow.testing.flows import Flow, parts_of
from taskiq_flow.testing.outcome import RunOutcome
from taskiq_flow.testing.recording_file import Recording, encoded_inputs, written
from taskiq_flow.testing.running import perform
from taskiq_flow.testing.stage import EventLog, Stage, executing
from taskiq_flow.values.digest import digest_of


async def record(
    path: str | os.PathLike[str],
    broker: AsyncBroker,
    dag: Flow,
    inputs: Mapping[str, Any] | None = None,
    *,
    outputs: Iterable[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Run a graph as ``ExecutionEngine(broker, dag, **options)`` does, and write what nodes give.

    A pipeline is run on ``broker`` as well, with its other options.

    The file, which is JSON, has the inputs, and for each attempt of a node or an element its
    result or its error, a digest of its arguments, and when it ended. It is written when the run
    has ended, also by an error. Returns what ``execute`` returns, and raises what it raises.

    Of a generator, the items are recorded as they come. An attempt of a generator that has failed
    is replayed without those that it had given.

    Raises ``SerializationError`` for a value that the codec does not carry. Before anything is run,
    raises it for an input, ``FileNotFoundError`` for a path in no directory, and ``ValueError`` for
    ``pass_by=`` other than ``"value"``, which leaves values elsewhere.

    >>> from taskiq_flow.testing import record, replay
    >>> dag = DAGBuilder().node(str.split, name="words", inputs=["text"]).build()
    >>> asyncio.run(record("run.json", InMemoryBroker(), dag, {"text": "ebb and flow"}))
    {'words': ['ebb', 'and', 'flow']}
    >>> replay("run.json", dag).results
    {'words': ['ebb', 'and', 'flow']}
    """
    graph, options = parts_of(dag, options)
    if options.get("pass_by", "value") != "value":
        raise ValueError(f"pass_by={options['pass_by']!r} cannot be recorded; leave it out")
    file = Path(path)
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{file} cannot be written, as {file.parent} is no directory")
    given = encoded_inputs(broker, graph, inputs or {})
    log, digests = EventLog(), dict[str, str]()  # of the arguments, by task id

    def note(message: TaskiqMessage) -> None:
        digests[message.task_id] = _digest(message)

    sending = _Sending(note)
    listeners = [*options.get("listeners", ()), log]
    engine = ExecutionEngine(broker, graph, **{**options, "listeners": listeners})
    generators = {node.task_name for node in graph.nodes if node.gives_items}
    results: dict[str, Any] = {}
    items: defaultdict[str, list[tuple[float, Any]]] = defaultdict(list)
    broker.middlewares = [*broker.middlewares, sending]
    try:
        stream = engine.execute_async(inputs, outputs=outputs, items=bool(generators))
        async with aclosing(stream):
            async for name, value in stream:
                store_result(graph, results, name, value)
                if name in generators and isinstance(value, Item):
                    at = asyncio.get_running_loop().time()
                    items[_element_of(name, value.index)].append((at, value.value))
    finally:
        broker.middlewares = [m for m in broker.middlewares if m is not sending]
        if log.events:
            text = written(broker, graph, given, log, digests, items)
            await asyncio.to_thread(file.write_text, text, encoding="utf-8")
    return results


def replay(
    path: str | os.PathLike[str],
    dag: Flow,
    inputs: Mapping[str, Any] | None = None,
    *,
    outputs: Iterable[str] | None = None,
    **options: Any,
) -> RunOutcome:
    """Run a graph or a pipeline on a virtual clock with recorded results in place of executions.

    Each attempt ends as it has when it was recorded, as many seconds after the beginning of the
    run. ``inputs``: the recorded ones if left out. ``outputs``, ``options``: as of ``run``.

    Raises ``ReplayError`` if a node is run that has not been recorded, or with other arguments
    than those recorded, and for a file that is no recording. Otherwise like ``run``.
    """
    graph, options = parts_of(dag, options)
    recording = Recording(path, graph)
    stage = Stage(graph, {}, lambda _: nullcontext(), _Answers(recording).call, options)

    def check(message: TaskiqMessage) -> None:
        recording.check_arguments(executing.get(), _digest(message))

    stage.broker.add_middlewares(_Sending(check))
    given = recording.inputs if inputs is None else inputs
    outcome = perform(stage, given, outputs)
    if recording.problem is not None:
        raise recording.problem
    return outcome


class _Sending(TaskiqMiddleware):
    """Calls ``see`` with each message of a task that is sent."""

    def __init__(self, see: Callable[[TaskiqMessage], None]) -> None:
        super().__init__()
        self._see = see

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        self._see(message)
        return message


def _digest(message: TaskiqMessage) -> str:
    """The digest of a call's arguments; empty if they are of types that have none."""
    return digest_of((list(message.args), dict(message.kwargs))).hex()


def _element_of(name: str, index: Index) -> str:
    """The name of the generator, or of its element, that has given the item at this place."""
    if isinstance(index, int):
        return name
    return f"{name}[{','.join(map(str, index[:-1]))}]"


class _Answers:
    """Gives what was recorded when it was, in place of executions."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    async def call(
        self, node: DAGNode, _function: Callable[..., Any], /, *_args: Any, **_kwargs: Any
    ) -> Any:
        """Give what was recorded of the present attempt when it was, as a ``Call`` does."""
        recording, name = self._recording, executing.get().task_name
        attempt = recording.find(executing.get())
        if attempt.items is not None:
            return self._items(attempt.items)
        if attempt.ended is None:  # the end of the run has cancelled it, and is to do so again
            await _until(recording.end + 1.0)
            raise recording.failed(
                f"node {name!r} had not ended when the run in {recording.path} did", name
            )
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
