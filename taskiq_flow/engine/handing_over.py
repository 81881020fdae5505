"""What the reader and the listeners of a run are given of its values: the value, or a copy."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any

from taskiq_flow.dataflow.ready_set import ReadySet
from taskiq_flow.dispatch.encoding import RunnableNode
from taskiq_flow.elements.element import Element
from taskiq_flow.engine.listeners import Listeners
from taskiq_flow.engine.run_spec import PLAIN_OPTIONS, RunSpec
from taskiq_flow.errors import SerializationError
from taskiq_flow.values.handle import ResultHandle
from taskiq_flow.values.inspection import NEVER_CHANGE
from taskiq_flow.values.isolation import Isolation


class HandingOver:
    """Copies values of one run that a node has still to be sent, so that no taker changes them.

    ``inputs_needed``: nodes that have started, and whose arguments are still to be encoded.
    ``is_over``: whether the run sends nothing more. The run sets it.
    """

    def __init__(
        self,
        spec: RunSpec,
        ready: ReadySet[Any],
        inputs_needed: Collection[RunnableNode],
        listeners: Listeners,
    ) -> None:
        self._spec = spec
        self._take = spec.take
        self._isolation = spec.take if isinstance(spec.take, Isolation) else None
        self._ready = ready
        self._inputs_needed = inputs_needed
        self._listeners = listeners
        self.is_over = False

    def arrived(self, node: RunnableNode, value: Any) -> None:
        """A node has given a value, perhaps an object that it gave before and has changed since."""
        isolation = self._isolation
        if isolation is not None:
            isolation.forget(value)
            if len(node.outputs) > 1 and not isinstance(value, ResultHandle):
                for part in value.values() if isinstance(value, Mapping) else value:
                    isolation.forget(part)

    def to_reader(self, node: RunnableNode, value: Any) -> Any:
        """What the reader is given: a copy as well while a listener may have still to be told it.

        A journal would otherwise have what the reader has made of the value.
        """
        if self._listeners.notes and type(value) not in NEVER_CHANGE:
            return self.copied(value)
        return self.handed_over(node, value)

    def handed_over(self, node: RunnableNode, value: Any) -> Any:
        """What a listener is given: the value itself if no node has still to be sent it.

        An array cannot be written to, whoever else has it, so that it does not depend on chance.
        """
        if type(value) in NEVER_CHANGE:
            return value
        isolation = self._isolation
        has_no_array = "numpy" not in sys.modules or (
            isolation is not None and isolation.is_flat(value)
        )
        is_needed = self._is_in_list if self.is_over else self._is_still_needed
        if has_no_array and not is_needed(node):
            return value
        return self.copied(value)

    def copied(self, value: Any) -> Any:
        """A value for a taker of its own."""
        try:
            return self._take(value)
        except SerializationError:  # of something within it that can be read once only
            return value

    def _is_in_list(self, node: RunnableNode) -> bool:
        """Whether the reader is given a value in a list as well."""
        lists_at = self._spec.lists_at
        return isinstance(node, Element) and lists_at is not None and len(node.path) > lists_at

    def _is_still_needed(self, node: RunnableNode) -> bool:
        dependents = self._spec.successors.get(node, ())
        if self._spec.elements is not None:  # by elements that do not exist yet, perhaps
            return isinstance(node, Element) or bool(dependents)
        return any(
            self._needs_inputs(dependent)
            and (
                not dependent.binding.keys.isdisjoint(node.outputs)
                or self._spec.options.get(dependent, PLAIN_OPTIONS).condition is not None
            )
            for dependent in dependents
        )

    def _needs_inputs(self, node: RunnableNode) -> bool:
        """Whether a node's arguments are still to be encoded, or its condition to be asked."""
        return not self._ready.has_started(node) or node in self._inputs_needed
