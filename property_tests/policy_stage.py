"""A random graph with policies put on a broker, with a record of what becomes of each attempt."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio
from taskiq import BrokerMessage, InMemoryBroker, TaskiqMessage, TaskiqResult

from property_tests.model import NodeSpec
from property_tests.policies import (
    ERRORS,
    FALLBACK,
    GRACE,
    TOO_LONG,
    Completed,
    Failed,
    Fate,
    Outcome,
    PolicyGraph,
    PolicyNode,
    SendingError,
    Told,
    behind_failures,
)
from property_tests.stage import Stage, Traffic
from taskiq_flow import (
    Event,
    ExecutionEngine,
    NodeBegan,
    NodeCompleted,
    NodeFailed,
    NodeFailure,
    NodeFellBack,
    NodeRetried,
    NodeSkipped,
    NodeStarted,
    RunError,
    RunFailedError,
)
from taskiq_flow.completion.in_memory_hooks import InMemoryHooks
from tests.virtual_clock import virtual_loop


@dataclass(frozen=True)
class Attempt:
    """An attempt as it was sent. ``name``: of the node, or of its fallback."""

    name: str
    task_id: str
    fate: Fate
    sent: float
    ended: float


class PolicyTraffic(Traffic):
    """Gives each attempt its fate. ``attempts``: those that were sent."""

    def __init__(self, graph: PolicyGraph) -> None:
        super().__init__({})
        self.specs: dict[str, PolicyNode] = {node.name: node for node in graph}
        self.specs |= {node.stand_in.name: node.stand_in for node in graph if node.stand_in}
        self.numbers: Counter[str] = Counter()
        self.fates: dict[str, Fate] = {}
        self.attempts: list[Attempt] = []
        self.on_their_way: set[str] = set()
        self.began: dict[str, float] = {}

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        spec = self.specs[_name(message.task_id)]
        fate = self._begin(spec, message.task_id)
        if spec.sending:
            await asyncio.sleep(spec.sending)
        if fate == "refused":
            self.on_their_way.discard(message.task_id)
            raise SendingError(spec.name)
        return message

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        self.began[message.task_id] = virtual_loop().time()
        return message

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self.on_their_way.discard(message.task_id)
        # taskiq measures real time, which does not pass here.
        result.execution_time = virtual_loop().time() - self.began[message.task_id]

    def _begin(self, spec: PolicyNode, task_id: str) -> Fate:
        self.numbers[spec.name] += 1
        fate = self.fates[spec.name] = spec.fate(self.numbers[spec.name])
        now = virtual_loop().time()
        self.attempts.append(Attempt(spec.name, task_id, fate, now, now + spec.lasts(fate)))
        # One whose time is over may still be there, but is not waited for any more.
        (hooks,) = (m for m in self.broker.middlewares if isinstance(m, InMemoryHooks))
        executions = hooks.executions
        self.on_their_way = {
            other
            for other in self.on_their_way
            if other in executions and not executions[other].revoked
        } | {task_id}
        self.most_in_flight = max(self.most_in_flight, len(self.on_their_way))
        return fate


class PolicyBroker(InMemoryBroker):
    """A broker with a queue, whose kick may take long and fail after all."""

    def __init__(self, traffic: PolicyTraffic) -> None:
        super().__init__()
        self.traffic = traffic
        self.waiting: list[asyncio.TimerHandle] = []

    async def kick(self, message: BrokerMessage) -> None:
        spec = self.traffic.specs[_name(message.task_id)]
        fate = self.traffic.fates[spec.name]
        if fate == "held up":
            assert spec.queue_timeout is not None
            later = virtual_loop().call_later(spec.queue_timeout + GRACE, self._begin, message)
            self.waiting.append(later)
            return
        await super().kick(message)
        if spec.kick != "returns":
            await asyncio.sleep(spec.lasts(fate) + GRACE / 2)
        if spec.kick == "raises late":
            raise SendingError(spec.name)

    def _begin(self, message: BrokerMessage) -> None:
        run_id, _, _ = message.task_id.split(":")
        if run_id not in InMemoryHooks.of(self).run_ids:
            return  # what waits in a queue when its run is over is nobody's to take back
        task = asyncio.create_task(super().kick(message))
        self._running_tasks.add(task)
        task.add_done_callback(self._running_tasks.discard)

    def drop(self) -> None:
        """Let go of what still waits."""
        for timer in self.waiting:
            timer.cancel()
        self.waiting.clear()


def without_suffix(task_id: str) -> str:
    """The id without what tells the task from those of other runs, or sessions, of one name."""
    return task_id.partition(".")[0]


def _name(task_id: str) -> str:
    _, name, which = without_suffix(task_id).split(":")
    return name if which.isdecimal() else name + FALLBACK


def _told(event: Event) -> Told:
    match event:
        case NodeStarted():
            return ("started",)
        case NodeRetried(attempt=attempt, error=error):
            return ("retried", attempt, type(error))
        case NodeFellBack(error=error, attempts=attempts):
            return ("fell back", attempts, type(error))
        case NodeCompleted(result=result, source=source):
            return ("completed", source, result)
        case NodeFailed(error=error, attempts=attempts):
            return ("failed", attempts, type(error))
        case NodeSkipped(because_of=because_of, reason=reason):
            return ("skipped", frozenset(because_of), reason)
    raise AssertionError(event)


class PolicyStage(Stage):
    """A graph with policies, ready to be run, and what has been seen of it."""

    def __init__(self, graph: PolicyGraph) -> None:
        self.graph = graph
        self.fates = PolicyTraffic(graph)
        specs = self.fates.specs.values()
        has_queue = any("held up" in spec.course or spec.kick != "returns" for spec in specs)
        self.queue = PolicyBroker(self.fates) if has_queue else None
        super().__init__(graph, self.fates, self.queue)

    def check_nothing_is_left(self) -> None:
        if self.queue is not None:
            self.queue.drop()
        super().check_nothing_is_left()

    def forget(self) -> None:
        super().forget()
        self.fates.attempts = []
        self.fates.most_in_flight = 0
        self.events: list[Event] = []
        self.given: dict[str, list[Mapping[str, Any]]] = defaultdict(list)

    def engine(self, limit: int | None = None, **options: Any) -> ExecutionEngine:
        """An engine for the graph, with the graph's defaults, to which this listens."""
        defaults = vars(self.graph.defaults)
        return ExecutionEngine(
            self.broker, self.dag, limit, listeners=[self], **defaults, **options
        )

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def check_given(self) -> None:
        """All attempts of a node are given the same, and its fallback is as well."""
        for given in self.given.values():
            assert all(arguments == given[0] for arguments in given)

    def story(self, name: str) -> list[Told]:
        """What this was told of a node, but for when its attempts began."""
        events = [event for event in self.events if not isinstance(event, NodeBegan)]
        return [_told(event) for event in events if getattr(event, "task_name", "") == name]

    def attempts(self, name: str) -> list[Attempt]:
        """A node's attempts, or those of its fallback."""
        return [attempt for attempt in self.fates.attempts if attempt.name == name]

    def policies(self, spec: NodeSpec) -> dict[str, Any]:
        node = self.fates.specs[spec.name]
        options: dict[str, Any] = {"join": node.join}
        for name, default in vars(self.graph.defaults).items():
            own = getattr(node, name)
            options[name] = None if own == default else own
        if node.condition is not None:
            options["when"] = node.condition.function
        if node.stand_in is not None:
            options["fallback"] = self.task(node.stand_in)
        elif node.has_fallback_value:
            options["fallback"] = node.fallback_value
        return options

    async def perform(self, spec: NodeSpec, arguments: Mapping[str, Any]) -> Any:
        node, fate = self.fates.specs[spec.name], self.fates.fates[spec.name]
        self.executions[node.name] += 1
        self.given[node.name.removesuffix(FALLBACK)].append(arguments)
        self.started[node.name] = virtual_loop().time()
        self.ended.pop(node.name, None)
        try:
            await _live_through(node, fate)
        finally:
            self.ended[node.name] = virtual_loop().time()
        if fate == "misshapen":
            return None
        if (error := ERRORS.get(fate)) is not None:
            raise error(node.name)
        return node.result(arguments)


async def _live_through(node: PolicyNode, fate: Fate) -> None:
    if fate in TOO_LONG:
        assert node.timeout is not None
        with anyio.CancelScope(shield=fate == "stubborn"):
            await asyncio.sleep(node.timeout + 2 * GRACE)
        raise AssertionError(f"{node.name} was left to run beyond its timeout")
    if node.seconds:
        await asyncio.sleep(node.seconds)


def plain(value: Any) -> Any:
    """A value as it comes back from a journal: JSON knows no tuples."""
    return json.loads(json.dumps(value))


def check_value(value: Any, outcome: Outcome) -> None:
    """What the stream gives for a node, where failures are collected."""
    if isinstance(outcome, Completed):
        assert not isinstance(value, (NodeFailure, NodeSkipped))
        assert plain(value) == plain(outcome.result)
    elif isinstance(outcome, Failed):
        assert isinstance(value, NodeFailure)
        assert type(value.error) is outcome.error
    else:
        assert isinstance(value, NodeSkipped)
        assert (frozenset(value.because_of), value.reason) == (outcome.because_of, outcome.reason)


def check_error(error: RunError | None, outcomes: Mapping[str, Outcome]) -> None:
    """What a run that goes on beyond failures ends with."""
    failures = {name: o.error for name, o in outcomes.items() if isinstance(o, Failed)}
    if not failures:
        assert error is None
        return
    assert isinstance(error, RunFailedError)
    assert {name: type(failure) for name, failure in error.failures.items()} == failures
    assert sorted(error.skipped) == sorted(behind_failures(outcomes))
