"""The broker as one run needs it: how tasks are sent, and how their ends are learned."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from taskiq import AsyncBroker, BrokerMessage, InMemoryBroker
from taskiq.result_backends.dummy import DummyResultBackend

from taskiq_flow.completion.in_memory import InMemoryCompletions
from taskiq_flow.completion.polling import PollingCompletions
from taskiq_flow.completion.protocol import Completions, Observer
from taskiq_flow.completion.pushed import PushedCompletions, tell_workers
from taskiq_flow.errors import ConfigurationError, PollingWarning
from taskiq_flow.middleware import FlowMiddleware
from taskiq_flow.reconnect import ride_out
from taskiq_flow.transport.notice import LABEL
from taskiq_flow.transport.protocol import Kick
from taskiq_flow.transport.systems import outages_of, system_of


@dataclass(frozen=True, slots=True)
class Link:
    """What connects a run with those who execute its tasks.

    ``completions``: makes the run's, given the run. ``labels``: what its messages carry for the
    workers. ``kick``: hands a message to the broker, again and again while its server is away.
    ``session``: names this session of the run among all, for ``revoke``, which has workers hear
    that such a one is over; empty where workers cannot be told.
    """

    completions: Callable[[Observer[Any]], Completions[Any]]
    labels: Mapping[str, str]
    kick: Kick
    tells_begin: bool
    session: str = ""
    revoke: Callable[[str], Awaitable[None]] | None = None


def check_readable(broker: AsyncBroker) -> None:
    """Raise ``ConfigurationError`` for a broker from which no result can ever be read."""
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


async def link_to(
    broker: AsyncBroker, run_id: str, *, lost_after: float, limit: int | None
) -> Link:
    """Connect a run with its broker. Called on the run's event loop, before anything is sent.

    ``lost_after``: seconds of silence after which a task is lost; ``limit``: bytes above which
    results are passed by reference. Raises ``ConfigurationError`` for what cannot be had there.
    """
    if isinstance(broker, InMemoryBroker):
        return Link(
            lambda run: InMemoryCompletions(broker, run, run_id, limit),
            {},
            broker.kick,
            InMemoryCompletions.tells_begin,
        )
    kick = _lasting_kick(broker)
    pushing = [m for m in broker.middlewares if isinstance(m, FlowMiddleware)]
    if not pushing:
        _tell_what_polling_lacks(broker, limit)
        return Link(
            lambda run: PollingCompletions(broker, run), {}, kick, PollingCompletions.tells_begin
        )
    if limit is not None and not getattr(broker.result_backend, "keep_results", True):
        raise ConfigurationError(
            "results can be passed by reference only if they stay where they are: give the result "
            "backend keep_results=True, or the engine pass_by='value'"
        )
    inbox = await pushing[0].inbox()
    reply_to = inbox.reply_to(run_id, limit)
    return Link(
        lambda run: PushedCompletions(inbox, run, reply_to, lost_after=lost_after),
        {LABEL: reply_to.label()},
        kick,
        PushedCompletions.tells_begin,
        reply_to.run,
        lambda session: tell_workers(inbox, session, f"an earlier session of run {run_id!r}"),
    )


def _lasting_kick(broker: AsyncBroker) -> Kick:
    system = system_of(broker)
    kick = broker.kick if system is None or "kick" in vars(broker) else system.kick_of(broker)
    outages = outages_of(broker)

    async def kick_until_taken(message: BrokerMessage) -> None:
        # A broker that was cut off may have taken the message: then it comes twice, and the task
        # is executed twice, but its result is taken once.
        what = f"task {message.task_id!r} cannot be sent yet"
        await ride_out(partial(kick, message), outages, what)

    return kick_until_taken


def _tell_what_polling_lacks(broker: AsyncBroker, limit: int | None) -> None:
    name = type(broker).__name__
    if limit is not None:
        raise ConfigurationError(
            f"{name} has no FlowMiddleware, without which workers cannot put values in the places "
            "of references; add one with broker.with_middlewares(FlowMiddleware()), here and "
            "where its workers run"
        )
    warnings.warn(
        f"{name} has no FlowMiddleware: results are polled, cancellation does not reach its "
        "workers, and lost tasks are not noticed; add one with "
        "broker.with_middlewares(FlowMiddleware()), here and where its workers run",
        PollingWarning,
        stacklevel=3,  # the line that reads the stream
    )
