"""What users pass to an engine, checked: each raises ``TypeError`` or ``ValueError``."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from taskiq_flow.dataflow.builder import DAGBuilder
from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.options import Seconds, in_seconds, whole_number
from taskiq_flow.dataflow.registry import DataflowRegistry
from taskiq_flow.events import Listener
from taskiq_flow.transport.notice import ALWAYS
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import ValueCodec
from taskiq_flow.values.isolation import Isolation, Sharing, Take, shared
from taskiq_flow.worker.heartbeat import BEAT

PassBy = Literal["value", "reference"] | int
"""How results reach later nodes; a number of bytes is where ``"value"`` ends."""

SHORTEST_LOST_AFTER = 2 * BEAT
"""Seconds; a task that is running has been reported once by then."""


def check_choice(argument: str, value: object, choices: tuple[object, ...]) -> None:
    """Check an argument that is one of a few words."""
    if value not in choices:
        raise ValueError(f"{argument} is {value!r}; give one of {choices}")


def checked_lost_after(lost_after: Seconds) -> float:
    """``lost_after`` in seconds."""
    seconds = in_seconds("lost_after", lost_after)
    if not (math.isfinite(seconds) and seconds >= SHORTEST_LOST_AFTER):
        raise ValueError(
            f"lost_after is {seconds!r}; give a number of seconds from "
            f"{SHORTEST_LOST_AFTER:g} on, as workers report every {BEAT:g} s"
        )
    return seconds


def check_loop_runs() -> None:
    """Raise ``RuntimeError`` where no event loop is running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "engine.start() begins a run on the running event loop, and none is running in this "
            "thread; call it in a coroutine, or use engine.execute_sync()"
        ) from None


def check_resume(run_id: str | None, *, resume: object, replay: object) -> None:
    """Check that a run which is to be continued is named."""
    if resume and run_id is None:
        raise ValueError("resume=True continues a run by its run_id; give one")
    if not replay and not resume:
        raise ValueError(
            "replay=False leaves out what had completed in a run that is continued; give "
            "resume=True as well"
        )


def check_items(items: object) -> None:
    """Check how elements of mapped nodes are yielded."""
    if items not in (True, False, "only"):
        raise ValueError(f"items is {items!r}; give True, False or 'only'")


def listed(argument: str, names: Iterable[str]) -> list[str]:
    """A list of names. A single string becomes a list of one."""
    if not isinstance(names, Iterable):
        raise TypeError(f"{argument} is {names!r}; give a list of names")
    return [names] if isinstance(names, str) else list(names)


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """What runs are tagged with, each once."""
    if isinstance(tags, (str, Mapping)) or not isinstance(tags, Iterable):
        raise TypeError(f"tags is {tags!r}; give a list of texts")
    found = tuple(dict.fromkeys(tags))
    for tag in found:
        if not isinstance(tag, str):
            raise TypeError(f"tags has {tag!r}; give texts")
        if not tag.strip():
            raise ValueError(f"tags has {tag!r}; give texts that can be seen")
    return found


def checked_id(argument: str, run_id: str) -> str:
    """The id of a run."""
    if not isinstance(run_id, str):
        raise TypeError(f"{argument} is {run_id!r}; give a string")
    if not run_id:
        raise ValueError(f"{argument} is empty; give a name, or leave it out")
    return run_id


def new_run_id() -> str:
    """Sixteen random hexadecimal digits. Short, because every task's id begins with it."""
    return secrets.token_hex(8)


def id_or_new(argument: str, run_id: str | None) -> str:
    """The id of a run that may have been given one."""
    return new_run_id() if run_id is None else checked_id(argument, run_id)


def wanted_outputs(outputs: Iterable[str] | None) -> list[str] | None:
    """The outputs that are asked for, as what was given may be read only once. ``None``: all."""
    return None if outputs is None else listed("outputs", outputs)


def check_graph(dag: object) -> None:
    """Check that a graph is one, and not what makes one."""
    if isinstance(dag, DAG):
        return
    instead = {DAGBuilder: "builder.build()", DataflowRegistry: "registry.build_dag()"}
    shown = f"the class {dag.__name__}" if isinstance(dag, type) else repr(dag)
    raise TypeError(
        f"dag is {shown}; give the graph, as in ExecutionEngine(broker, "
        f"{instead.get(type(dag), 'builder.build()')})"
    )


def checked_listeners(listeners: Any) -> tuple[Listener, ...]:
    """The listeners of an engine. Raises ``TypeError`` for an object that is no listener."""
    if hasattr(listeners, "on_event") and not isinstance(listeners, type):
        raise TypeError(f"listeners is {listeners!r}, a single listener; give a list of listeners")
    if not isinstance(listeners, Iterable):
        raise TypeError(f"listeners is {listeners!r}; give a list of listeners")
    checked = tuple(listeners)
    for listener in checked:
        if isinstance(listener, type):
            raise TypeError(
                f"listeners holds the class {listener.__name__}; give an instance of it"
            )
        if not callable(getattr(listener, "on_event", None)):
            raise TypeError(
                f"listeners holds {listener!r}, which has no method on_event(event); give an "
                "object that has one"
            )
    return checked


def reference_above(pass_by: PassBy) -> int | None:
    """The bytes above which results are passed by reference."""
    if pass_by == "value":
        return None
    if pass_by == "reference":
        return ALWAYS
    if (limit := whole_number(pass_by, 0)) is None:
        raise ValueError(
            f"pass_by is {pass_by!r}; give 'value', 'reference' or a number of bytes, 0 or more"
        )
    return limit


def isolation_of(values: Sharing, codec: ValueCodec | None, classes: Classes) -> Callable[[], Take]:
    """What makes, for each run, what its takers in this process are given."""
    if values != "encoded":
        return (lambda: shared) if values == "shared" else Isolation
    as_sent = ValueCodec() if codec is None else codec

    def take(value: Any) -> Any:
        text = json.dumps(as_sent.encode(value, strict=True))
        return as_sent.decode(json.loads(text), classes)

    return lambda: take
