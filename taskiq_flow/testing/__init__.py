"""Helpers for tests: a run on a virtual clock, orders of completion, recordings of runs."""

from taskiq_flow.testing.brokers import in_memory
from taskiq_flow.testing.local_broker import LocalBroker, LocalResults
from taskiq_flow.testing.local_notices import LocalFlowMiddleware, LocalNotices, LocalNotifier
from taskiq_flow.testing.orders import OrderError, OrdersChecked, check_orders
from taskiq_flow.testing.outcome import RunOutcome
from taskiq_flow.testing.recording import record, replay
from taskiq_flow.testing.recording_file import ReplayError
from taskiq_flow.testing.running import run
from taskiq_flow.testing.shared_values import ValueChangedError
from taskiq_flow.testing.virtual_clock import HangingError, VirtualClockLoop, run_virtually

__all__ = [
    "HangingError",
    "LocalBroker",
    "LocalFlowMiddleware",
    "LocalNotices",
    "LocalNotifier",
    "LocalResults",
    "OrderError",
    "OrdersChecked",
    "ReplayError",
    "RunOutcome",
    "ValueChangedError",
    "VirtualClockLoop",
    "check_orders",
    "in_memory",
    "record",
    "replay",
    "run",
    "run_virtually",
]
