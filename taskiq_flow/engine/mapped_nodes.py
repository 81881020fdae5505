"""The mapped nodes of one run, as the run sees them."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections import ChainMap
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from typing import Any

from taskiq_flow.dataflow.axes import element_name
from taskiq_flow.dataflow.condition import is_true
from taskiq_flow.dataflow.many import SOURCE
from taskiq_flow.dataflow.ready_set import ReadySet
from taskiq_flow.elements.cells import ABSENT
from taskiq_flow.elements.element import Element
from taskiq_flow.elements.elements import Elements
from taskiq_flow.elements.groups import Groups
from taskiq_flow.elements.lists import Lists
from taskiq_flow.elements.values import ElementValues
from taskiq_flow.engine.earlier_elements import EarlierElements
from taskiq_flow.engine.feeder import Feeder
from taskiq_flow.engine.mapped_callbacks import MappedCallbacks
from taskiq_flow.engine.mapped_lists import MappedLists
from taskiq_flow.engine.replay import Replay
from taskiq_flow.engine.result_stream import ResultStream
from taskiq_flow.engine.run_events import RunEvents
from taskiq_flow.engine.run_spec import NO_SESSIONS, RunSpec
from taskiq_flow.engine.run_state import DECLINED, RunState, as_whole
from taskiq_flow.engine.taskless_elements import TasklessElements
from taskiq_flow.generators.grant import NO_ITEMS, Grant, with_item
from taskiq_flow.journal.writer import LogWriter
from taskiq_flow.previews import ItemCount
from taskiq_flow.values.digest import digest_of

logger = logging.getLogger("taskiq_flow")


class MappedNodes:
    """Has elements let in, stores what they give, and reads sources for them.

    ``earlier``: what earlier engines have reached. ``mapped_lists``: gives lists to whoever takes
    these when elements have ended. ``room``: how many elements may exist. ``pop``: starts the next
    node or element; ``None`` if none may start now.

    ``stream``: where the reader is given values. ``replay``: the order of those that earlier
    engines have completed. ``log``: of a run with a journal. ``limit``: how many nodes may run at
    once. ``collects``: whether the reader is given failures in the places of values.
    """

    def __init__(
        self,
        spec: RunSpec,
        ready: ReadySet[Any],
        state: RunState,
        caller: MappedCallbacks,
        *,
        stream: ResultStream,
        events: RunEvents,
        replay: Replay,
        log: LogWriter[Any] | None,
        limit: int | None,
        collects: bool,
    ) -> None:
        if spec.elements is None:
            raise ValueError("no node of the run is mapped")
        self._spec = spec
        self._log = log
        self._plan = plan = spec.elements
        self._ready = ready
        self._state = state
        self._caller = caller
        self._stream = stream
        self._is_read = bool(spec.items) or spec.ahead is not None
        self._loop = asyncio.get_running_loop()
        most = math.inf if limit is None else limit
        groups = Groups(
            plan,
            priority=spec.priority,
            producers={key for node in spec.nodes for key in node.outputs},
            sources=spec.sources,
            limit=most,
            lists_at=spec.lists_at,
        )
        self._lists = Lists(plan, groups.axes, spec.sources, spec.take)
        self._values = ElementValues(plan, groups, self._lists, spec.lists_at)
        state.elements = self._values
        earlier = self.earlier = EarlierElements(spec, plan, state.run_id)
        input_node = next((node for node in plan.mapped if node.given_key == SOURCE), None)
        is_resumed = spec.earlier is not NO_SESSIONS
        self.mapped_lists = MappedLists(
            spec,
            plan,
            ready,
            state,
            self._values,
            earlier,
            caller,
            deliver=stream.deliver,
            events=events,
            log=log,
            input_node=input_node,
            collects=collects,
        )
        taskless = TasklessElements(
            spec,
            self._lists,
            self._values,
            earlier,
            caller,
            deliver=stream.deliver,
            events=events,
            replay=replay,
            log=log,
            input_node=input_node,
            is_resumed=is_resumed,
        )
        passed_over = spec.earlier.passed_over
        self._elements = Elements(
            plan,
            ready,
            groups,
            self._lists,
            self._values,
            self.mapped_lists,
            taskless,
            self,
            limit=most,
            lists_at=spec.lists_at,
            items=bool(spec.items),
            is_resumed=is_resumed,
            tells_positions=log is not None or spec.ahead is not None,
            passed_over={} if passed_over is None else passed_over.positions,
        )
        self._generator_items = self._elements.generator_items
        self.room = self._elements.room
        self.pop: Callable[[], Any] = self._elements.pop
        self._feeders = [
            self._feeder(key, source.items)
            for key, source in spec.sources.items()
            if isinstance(source.items, AsyncIterable)
        ]

    def _feeder(self, key: str, items: AsyncIterable[Any]) -> Feeder:
        def take(value: Any) -> None:
            self._elements.append(key, value)
            self._caller.advance()

        def ended() -> None:
            self._elements.end(key)
            self._caller.advance()

        has_room = functools.partial(self.room.has_room, key)
        return Feeder(items, take=take, has_room=has_room, ended=ended, fail=self.source_failed)

    # For the run

    def start(self) -> None:
        """Take the lists of the run's inputs, and begin to read async sources."""
        self._lists.take_inputs(self._spec.inputs)
        for feeder in self._feeders:
            feeder.start()

    @property
    def reads_async_sources(self) -> bool:
        """Whether ``make_room`` has anything to do."""
        return bool(self._feeders)

    def make_room(self) -> None:
        """Elements have ended, or were read: look again whether sources may be read further."""
        for feeder in self._feeders:
            feeder.make_room()

    def stop(self) -> list[asyncio.Task[None]]:
        """Read nothing more of sources. Returns the asyncio tasks that are still to end."""
        self.mapped_lists.write_rest()
        self._elements.stop()
        for feeder in self._feeders:
            feeder.stop()
        return [feeder.task for feeder in self._feeders if feeder.task is not None]

    def close(self) -> None:
        """Close the sources that are generators."""
        for close in self._lists.close():
            try:
                close()
            except Exception:  # of the generator's own code; the run has ended already
                logger.exception("a source of run %r raised when it was closed", self._state.run_id)

    def forget(self) -> None:
        """Let go of the values that elements were given and have given. The run is over."""
        self._state.partial.clear()
        self._values.forget()

    def look_again(self) -> None:
        """Call ``pop`` again soon, or end the run."""
        self._loop.call_soon(self._caller.advance)

    # Generators

    def gives_items(self, node: Any) -> bool:
        """Whether a node's items are taken one by one, while its task runs."""
        generators = self._plan.generators
        return bool(generators) and as_whole(node) in generators

    def begin_items(self, node: Any, *, remembers: bool) -> Grant:
        """A generator is about to be sent: take what earlier engines have of its items.

        ``remembers``: whether it may be executed once more.
        """
        items: list[Any] = []
        results = self._spec.earlier.results
        while (name := self._item_name(node, len(items))) in results:
            items.append(results[name])
        if items:
            self._generator_items.take(node, items)
        digest = b""
        if remembers:
            digest = functools.reduce(with_item, map(digest_of, items), NO_ITEMS)
        return Grant(len(items), digest)

    def take_items(self, node: Any, first: int, items: Sequence[Any], attempt: int) -> None:
        """A generator has given more items. Raises what the journal's serializer raises."""
        if self._log is not None:
            for index, item in enumerate(items, first):
                self._log.append(self._log.completion(self._item_name(node, index), attempt, item))
        self._generator_items.take(node, items)

    def lead(self, node: Any, in_flight: int) -> float:
        """How many items a generator may still make now, of so many that are in flight."""
        return self._generator_items.lead(node, in_flight)

    def enough(self, node: Any) -> int:
        """How many more items a generator is told of at least."""
        return self._generator_items.enough(node)

    def spare(self, node: Any) -> int:
        """How many items a generator may still make, at most, when it is told of more."""
        return self._generator_items.spare(node)

    def _item_name(self, node: Any, index: int) -> str:
        path = node.path if isinstance(node, Element) else ()
        return element_name(as_whole(node).task_name, (*path, index))

    # Values

    def inputs(self, node: Any) -> Mapping[str, Any]:
        """The inputs of a node by key."""
        values: Mapping[str, Any] = self._state.values
        if self._state.partial and node.join == "ended":
            values = ChainMap(self._state.partial, self._state.values)
        return self._values.inputs(node, values) if isinstance(node, Element) else values

    def store(self, node: Any, value: Any) -> Any:
        """Store what a node gives. Returns what its reader is given, or ``DECLINED``.

        Raises ``OutputShapeError``, with nothing stored.
        """
        if self._plan.generators and self.gives_items(node):
            return self._all_items(node, value)
        if isinstance(node, Element):
            if (key := node.node.filtered) is not None:
                value = self._values.mapped_value(node, key) if is_true(value) else ABSENT
                if value is ABSENT:
                    return DECLINED
            self._values.store(node, value)
            return value
        stored: dict[str, Any] = {}
        node.store(value, stored)
        self._lists.check(stored, node.outputs, node)
        self._state.values.update(stored)
        return value

    def _all_items(self, node: Any, value: Any) -> ItemCount:
        """A generator has ended. ``value``: how many items it gave, or all of them."""
        count = value
        if isinstance(value, list):
            count = len(value)
            self._generator_items.take(node, value)
        elif node.task_name in self._spec.earlier.results:
            self.begin_items(node, remembers=False)
        if node in self._plan.openings and self._ready.has_ended(node):  # for an earlier engine
            self._generator_items.ended(node)
        return ItemCount(count)

    def ended(self, node: Any) -> None:
        """A node has ended, and the ready set has been told so."""
        if isinstance(node, Element):
            if self.mapped_lists.held_back:
                self.mapped_lists.element_ended(node)
            self._elements.ended(node)
            return
        self.room.lets_in_none = False
        if node in self._plan.openings:
            self._generator_items.ended(node)
        self._elements.ends.order.ended(node)

    # For the elements, as their ``ElementsCallbacks``

    def source_failed(self, error: BaseException) -> None:
        """A source has raised an error, which the reader gets as it is.

        A ``CancelledError`` of its own would look like the reader's.
        """
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()  # none calls this where an iterator is read
            if task is None or not task.cancelling():
                error = self._state.source_cancelled(error)
        self._caller.end_unless_over(error)

    def unread(self) -> int:
        """How many elements the reader has still to read, if they are yielded."""
        return len(self._stream) if self._is_read else 0

    def ahead(self) -> int:
        """How many of many runs have ended, and wait for an earlier one to be read."""
        return 0 if self._spec.ahead is None else self._spec.ahead()
