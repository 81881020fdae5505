"""How the engine learns that a task is done: pushed where it can be, polled where it must."""

from __future__ import annotations

from typing import Any

from taskiq import AsyncBroker, InMemoryBroker
from taskiq.result_backends.dummy import DummyResultBackend

from taskiq_flow.completion.in_memory import InMemoryCompletions
from taskiq_flow.completion.polling import PollingCompletions
from taskiq_flow.completion.protocol import Completions, Observer
from taskiq_flow.errors import ConfigurationError

__all__ = ["Completions", "Observer", "check_readable", "completions_of"]


def check_readable(broker: AsyncBroker) -> None:
    """Raise ``ConfigurationError`` for a broker from which no result can ever be read."""
    if isinstance(broker, InMemoryBroker):
        return
    if isinstance(broker.result_backend, DummyResultBackend):
        raise ConfigurationError(
            f"{type(broker).__name__} has no result backend, so no result can be read back; "
            "add one with broker.with_result_backend(...)"
        )


def completions_of(broker: AsyncBroker, observer: Observer[Any], run_id: str) -> Completions[Any]:
    """What brings a run on this broker its completions. Called on the run's event loop.

    Raises ``ConfigurationError`` if another run has the id, where that can be known.
    """
    if isinstance(broker, InMemoryBroker):
        return InMemoryCompletions(broker, observer, run_id)
    return PollingCompletions(broker, observer)
