"""Sends the tasks of nodes through the dispatcher, and asks for results that exist already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context
from functools import partial
from typing import Any

from taskiq import AsyncBroker, InMemoryBroker

from taskiq_flow.completion.protocol import Completions
from taskiq_flow.completion.reading import pick_up
from taskiq_flow.dispatch.dispatcher import Begun, Dispatcher, RestOfSend, Sending
from taskiq_flow.dispatch.encoding import Address, Invocation, RunnableNode
from taskiq_flow.elements.element import Element
from taskiq_flow.engine.cached_results import CachedResults
from taskiq_flow.engine.earlier_elements import source_digest
from taskiq_flow.engine.node_run import NodeRun, Verdict
from taskiq_flow.engine.run_events import RunEvents
from taskiq_flow.engine.run_spec import TIMEOUT_LABEL, NodeOptions, RunSpec
from taskiq_flow.engine.run_state import as_whole
from taskiq_flow.engine.start_loop import RestOfStart, UnderWay
from taskiq_flow.errors import NODE_ERRORS, SerializationError
from taskiq_flow.generators.grant import ITEMS_LABEL, Grant
from taskiq_flow.journal.records import SENT, record
from taskiq_flow.journal.writer import LogWriter
from taskiq_flow.middleware import wire_of
from taskiq_flow.transport.notice import BEGIN_LABEL, TELL_AT_ONCE
from taskiq_flow.values.results import failed


class Sender:
    """Carries out the verdicts ``Send``, ``LookUp`` and ``PickUp`` of one run.

    ``inputs_needed``: started nodes whose inputs are not encoded yet, or may have to be encoded
    again. ``carry_out``: carries out any verdict, to its end. ``taken``: called when the broker has
    taken the task of a node with a time limit. ``reference_above``: bytes above which results are
    passed by reference.
    """

    def __init__(
        self,
        run_id: str,
        spec: RunSpec,
        broker: AsyncBroker,
        dispatcher: Dispatcher,
        completions: Completions,
        events: RunEvents,
        log: LogWriter[Any] | None,
        cached: CachedResults | None,
        inputs_needed: dict[RunnableNode, NodeRun],
        *,
        carry_out: Callable[[NodeRun, Verdict], None],
        taken: Callable[[NodeRun], None],
        reference_above: int | None,
    ) -> None:
        self._run_id = run_id
        self._task_suffix = spec.task_suffix
        self._stored_inputs = spec.stored_inputs
        self._by_value = spec.by_value
        self._broker = broker
        self._dispatcher = dispatcher
        self._completions = completions
        self._events = events
        self._listeners = events.listeners
        self._log = log
        self._cached = cached
        self._inputs_needed = inputs_needed
        self._carry_out = carry_out
        self._taken = taken
        self._reference_above = reference_above
        self._loop = asyncio.get_running_loop()
        self._marks_begin = completions.tells_begin and not isinstance(broker, InMemoryBroker)
        self._is_over = False

    def stop(self) -> None:
        """The run is over. A cancellation is passed on from now on: it is no failed send."""
        self._is_over = True

    def send(self, node_run: NodeRun) -> RestOfStart | None:
        """Send the next attempt of a node."""
        task_id = node_run.begin_attempt(self._run_id, self._task_suffix)
        sent_node, options, grant = node_run.sent_node, node_run.options, node_run.grant
        by_value = bool(self._by_value) and self._is_by_value(node_run)
        wants_begin = self._listeners.are_present
        try:
            address = self._dispatcher.address(sent_node, by_value=by_value)
            marks_begin = wants_begin and self._marks_begin
            if options.labels or marks_begin or grant is not None:
                address = self._with_labels(address, options, grant, marks_begin=marks_begin)
            inputs = self._as_sent(node_run) if self._stored_inputs else node_run.inputs
            args, kwargs = sent_node.arguments(inputs)
        except Exception as error:  # of a value of the user's
            node_run.settle(task_id, failed(error))
            return None
        if self._log is not None:
            node, number = node_run.node, node_run.log_number
            self._log.append(record(SENT, node.task_name, number, source_digest(node)))
        context: Context | None = None
        if self._listeners.are_present:
            self._events.sent(node_run)
            if self._listeners.are_asked:
                context, address = self._with_labels_of_listeners(node_run, address)
        else:
            self._listeners.passed += 1
        self._completions.expect(
            task_id,
            node_run,
            address,
            limit=None if by_value else self._reference_above,
            tell_begin=wants_begin or options.is_timed,
        )
        try:
            call = Invocation(sent_node, address, task_id, args, kwargs)
            send = self._dispatcher.send
            sending = send(call) if context is None else context.run(send, call)
        except Exception as error:  # of a value, of its encoding, of the broker
            self._settle_unsent(node_run, task_id, error)
            return None
        if sending is not None:
            return self._rest(node_run, task_id, sending, context)
        if options.is_timed:
            self._taken(node_run)
        if self._inputs_needed and not options.keeps_inputs:
            self._inputs_needed.pop(node_run.node, None)
        return None

    def _with_labels(
        self, address: Address, options: NodeOptions, grant: Grant | None, *, marks_begin: bool
    ) -> Address:
        """The address with the labels of one attempt. ``marks_begin``: it tells when it begins."""
        for label in options.labels:
            # A generator's time counts for each item, not for the task.
            if label[0] != TIMEOUT_LABEL or (address.is_async and grant is None):
                address = address.with_label(*label)
        if marks_begin and not options.is_timed:  # then it has the label
            address = address.with_label(BEGIN_LABEL, TELL_AT_ONCE)
        return address if grant is None else address.with_label(ITEMS_LABEL, grant.label())

    def _is_by_value(self, node_run: NodeRun) -> bool:
        """Whether a node's result is passed by value in any case."""
        return as_whole(node_run.node) in self._by_value

    def _as_sent(self, node_run: NodeRun) -> Mapping[str, Any]:
        """A node's inputs, with handles in place of those that are stored.

        The inputs may be all values of the run: what is done here must not grow with it.
        """
        inputs, stored, node = node_run.inputs, self._stored_inputs, node_run.node
        mapped_over = node.node.map_over if isinstance(node, Element) else ()
        keys = [key for key in node_run.sent_node.binding.keys if key in inputs]
        return {
            key: stored[key] if key in stored and key not in mapped_over else inputs[key]
            for key in keys
        }

    def _rest(
        self, node_run: NodeRun, task_id: str, sending: Sending, context: Context | None
    ) -> RestOfStart:
        """What is left of a start while the broker has not taken the task."""
        node_run.is_being_sent = True
        self._inputs_needed[node_run.node] = node_run
        if not isinstance(sending, Begun):
            return self._finish_sending(node_run, task_id, sending, context)
        end = partial(self._end_sending, node_run, task_id, sending.repeat, context)
        return UnderWay(sending.taken, end)

    def _end_sending(
        self,
        node_run: NodeRun,
        task_id: str,
        repeat: RestOfSend,
        context: Context | None,
        taken: asyncio.Future[Any],
    ) -> Coroutine[Any, Any, None] | None:
        """The broker has answered, or the run is over."""
        if node_run.task_id != task_id:  # it is the next attempt that is being sent
            return None
        has_failed = not taken.cancelled() and taken.exception() is not None
        if has_failed and node_run.is_expected and not self._is_over:
            return self._finish_sending(node_run, task_id, repeat, context)
        if node_run.options.is_timed and not self._is_over:
            self._taken(node_run)
        self._note_sent(node_run)
        return None

    async def _finish_sending(
        self, node_run: NodeRun, task_id: str, sending: RestOfSend, context: Context | None
    ) -> None:
        try:
            if context is None:
                await sending()
            else:
                await self._loop.create_task(sending(), context=context)
        except NODE_ERRORS as error:
            # The attempt has failed, whatever the broker or a middleware raises. But a run that
            # is over has cancelled the send itself: its error says nothing about how it ended.
            if not self._is_over:
                self._settle_unsent(node_run, task_id, error)
        else:
            if node_run.task_id == task_id and node_run.options.is_timed:
                self._taken(node_run)
        finally:
            if node_run.task_id == task_id:  # else it is the next attempt that is being sent
                self._note_sent(node_run)

    def _note_sent(self, node_run: NodeRun) -> None:
        node_run.is_being_sent = False
        if not node_run.options.keeps_inputs:
            self._inputs_needed.pop(node_run.node, None)

    def _settle_unsent(self, node_run: NodeRun, task_id: str, error: BaseException) -> None:
        """Settle a task as failed because it could not be sent, unless it is settled already."""
        if self._completions.forget(task_id):
            if not isinstance(error, SerializationError):  # the broker may have taken it
                self._completions.revoke_task(task_id)
            node_run.settle(task_id, failed(error))

    async def pick_up(self, node_run: NodeRun) -> None:
        """Ask the result backend how an earlier engine's attempt has ended."""
        task_id = node_run.continue_attempt(self._run_id)
        address, broker = self._dispatcher.address(node_run.sent_node), self._broker
        limit = None if self._is_by_value(node_run) else self._reference_above
        result = await pick_up(
            broker.result_backend, limit, task_id, address.return_type, wire_of(broker)
        )
        if result is None:
            self._carry_out_unless_over(node_run, node_run.on_ready())
        else:
            node_run.settle(task_id, result)

    async def look_up(self, node_run: NodeRun) -> None:
        """Ask the cache for a node's result."""
        found = None if self._cached is None else await self._cached.look_up(node_run)
        self._carry_out_unless_over(node_run, node_run.on_looked_up(found))

    def _carry_out_unless_over(self, node_run: NodeRun, verdict: Verdict) -> None:
        if not self._is_over:
            self._carry_out(node_run, verdict)

    def ends_by_itself(self, node_run: NodeRun) -> bool:
        """Whether a worker ends the node's attempt when its time is over."""
        if node_run.grant is not None:
            return False  # only the engine knows the time of an item
        return self._dispatcher.address(node_run.sent_node).is_async

    def _with_labels_of_listeners(
        self, node_run: NodeRun, address: Address
    ) -> tuple[Context, Address]:
        """The address with the labels of listeners, and the context in which it is sent to."""
        context, labels = self._events.labels(node_run)
        for label in labels.items():
            address = address.with_label(*label)
        return context, address
