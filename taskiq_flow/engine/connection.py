"""The broker as one run needs it: how its tasks are sent, and how it learns of their ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from taskiq import AsyncBroker, BrokerMessage, InMemoryBroker
from taskiq.result_backends.dummy import DummyResultBackend

from taskiq_flow.completion.in_memory import InMemoryCompletions
from taskiq_flow.completion.in_memory_hooks import RUN_LABEL
from taskiq_flow.completion.polling import PollingCompletions
from taskiq_flow.completion.protocol import Completions
from taskiq_flow.completion.pushed import PushedCompletions, tell_workers
from taskiq_flow.dispatch.encoding import formats_as_usual
from taskiq_flow.engine.run_spec import RunSettings, RunSpec
from taskiq_flow.errors import (
    ConfigurationError,
    FormatterWarning,
    PollingWarning,
    warn,
)
from taskiq_flow.middleware import FlowMiddleware
from taskiq_flow.reconnect import retry_through_outage, telling_who_is_away
from taskiq_flow.transport.notice import BEGIN_LABEL, KEEP_LABEL, LABEL, TELL_IN_TIME
from taskiq_flow.transport.protocol import Begin, Kick
from taskiq_flow.transport.systems import any_of, fullness_of, outages_of, system_of
from taskiq_flow.values.arguments import StoredArguments
from taskiq_flow.worker.execution import current


@dataclass(frozen=True, slots=True)
class Connection:
    """What connects a run with those who execute its tasks.

    ``completions``: makes the run's, which holds the run's id on this broker from then on.
    ``tells_begin``: whether they see a task begin. ``kick``: hands a message to the broker; it is
    repeated while the broker's server is away. ``begin``: does so at once, and once, where that is
    possible. ``labels``: added to each message, for the workers;
    ``labels_by_value``: to that of a node whose result is passed by value in any case.
    ``session``: names this engine's part of the run, and no other; empty where workers cannot be
    told. ``revoke``: tells all workers that a session is over. ``arguments``: those that the run
    has in the broker's store, if it has one.
    """

    completions: Callable[[], Completions]
    tells_begin: bool
    kick: Kick
    labels: Mapping[str, str]
    labels_by_value: Mapping[str, str]
    session: str = ""
    revoke: Callable[[str], Awaitable[None]] | None = None
    arguments: StoredArguments | None = None
    begin: Begin | None = None


def check_broker(broker: object) -> None:
    """Raise ``TypeError`` for what is no broker."""
    if not isinstance(broker, AsyncBroker):
        shown = f"the class {broker.__name__}" if isinstance(broker, type) else repr(broker)
        raise TypeError(f"broker is {shown}; give a taskiq broker, such as InMemoryBroker()")


def check_readable(broker: AsyncBroker) -> None:
    """Raise ``ConfigurationError`` for a broker from which no result can ever be read.

    Raises ``TypeError`` for what is no broker.
    """
    check_broker(broker)
    if isinstance(broker, InMemoryBroker):
        return
    if isinstance(broker.result_backend, DummyResultBackend):
        raise ConfigurationError(
            f"{type(broker).__name__} has no result backend, so no result can be read back; "
            "add one with broker.with_result_backend(...)"
        )


def check_outlives(broker: AsyncBroker) -> None:
    """Raise ``ConfigurationError`` for a broker whose results end with this process."""
    if isinstance(broker, InMemoryBroker):
        raise ConfigurationError(
            "the results of an InMemoryBroker end with this process, and so would what a journal "
            "refers to; give the engine pass_by='value', or a broker with a result backend"
        )


async def connect(
    broker: AsyncBroker,
    run_id: str,
    spec: RunSpec,
    settings: RunSettings,
    *,
    lost_after: float,
    is_journaled: bool,
) -> Connection:
    """Connect a run with its broker. Called on the run's event loop, before anything is sent.

    ``lost_after``: seconds of silence after which a task is lost. ``is_journaled``: whether the run
    can be resumed. Raises ``ConfigurationError`` for what the broker cannot do.
    """
    reference_above = settings.reference_above
    if isinstance(broker, InMemoryBroker):
        return Connection(
            lambda: InMemoryCompletions(broker, run_id, settings.isolation),
            InMemoryCompletions.tells_begin,
            broker.kick,
            {RUN_LABEL: run_id},
            {RUN_LABEL: run_id},
        )
    kick, begin = _sending(broker)
    pushing = [m for m in broker.middlewares if isinstance(m, FlowMiddleware)]
    if pushing and not formats_as_usual(broker):
        warn(
            f"{type(broker).__name__} has a {type(broker.formatter).__name__} as its formatter: "
            "values keep only the types that it carries; to have FlowMiddleware keep them, leave "
            "with_formatter() out",
            FormatterWarning,
        )
    if not pushing:
        _warn_of_polling(broker, reference_above)
        return Connection(
            lambda: PollingCompletions(broker),
            PollingCompletions.tells_begin,
            kick,
            {},
            {},
            begin=begin,
        )
    wire, backend = pushing[0].wire, broker.result_backend
    refers = reference_above is not None or wire.store is not None
    if refers and not getattr(backend, "keep_results", True):
        raise ConfigurationError(
            "results can be passed by reference only if they stay where they are: give the result "
            "backend keep_results=True, or the engine pass_by='value' and FlowMiddleware no store="
        )
    inbox = await pushing[0].inbox()
    reply_to = inbox.reply_to(run_id, reference_above)
    more = {KEEP_LABEL: "1"} if is_journaled else {}
    if spec.has_generators:  # they hold places of workers: which tasks do not begin has to be seen
        more[BEGIN_LABEL] = TELL_IN_TIME
    arguments = None
    if wire.store is not None:
        arguments = StoredArguments(
            backend,
            wire,
            wire.store,
            any_of(outages_of(backend), fullness_of(backend)),
            run_id,
            reply_to.run,
            shares=not spec.sources,  # else it lets go of values while it runs
            refers=reference_above is not None,
            may_be_resumed=is_journaled,
        )
    return Connection(
        lambda: PushedCompletions(
            inbox, reply_to, lost_after=lost_after, within=current.get(), arguments=arguments
        ),
        PushedCompletions.tells_begin,
        kick,
        {LABEL: reply_to.label(), **more},
        {LABEL: replace(reply_to, limit=None).label(), **more},
        reply_to.run,
        lambda session: tell_workers(inbox, session, f"an earlier session of run {run_id!r}"),
        arguments,
        begin,
    )


def _sending(broker: AsyncBroker) -> tuple[Kick, Begin | None]:
    """What hands a message to the broker: until it is taken, and at once where that is possible.

    A ``kick`` that the user has put in the broker's place is called for each message.
    """
    system = None if "kick" in vars(broker) else system_of(broker)
    if system is None:
        return _lasting(broker.kick, broker), None
    return _lasting(system.kick_of(broker), broker), system.begin_of(broker)


def _lasting(kick: Kick, broker: AsyncBroker) -> Kick:
    """``kick``, which is repeated while the broker's server is away."""
    is_outage = outages_of(broker)
    waits = any_of(is_outage, fullness_of(broker))

    async def kick_until_taken(message: BrokerMessage) -> None:
        # A broker that was cut off may have taken the message: then it comes twice, and the task
        # is executed twice, but its result is taken once.
        with telling_who_is_away("the task was not sent", broker, is_outage):
            await retry_through_outage(partial(kick, message), waits, "tasks cannot be sent yet")

    return kick_until_taken


def _warn_of_polling(broker: AsyncBroker, reference_above: int | None) -> None:
    name = type(broker).__name__
    if reference_above is not None:
        raise ConfigurationError(
            f"{name} has no FlowMiddleware, without which workers cannot put values in the places "
            "of references; add one with broker.with_middlewares(FlowMiddleware()), here and "
            "where its workers run"
        )
    warn(
        f"{name} has no FlowMiddleware: results are polled, cancellation does not reach its "
        "workers, lost tasks are not noticed, and values keep no types but JSON's; add one with "
        "broker.with_middlewares(FlowMiddleware()), here and where its workers run",
        PollingWarning,
    )
