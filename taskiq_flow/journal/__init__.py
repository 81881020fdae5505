"""Journals: the logs of runs, from which another process can resume them, and their events."""

from taskiq_flow.journal.memory import MemoryJournal
from taskiq_flow.journal.protocol import EventBatch, EventJournal, Journal, Lease
from taskiq_flow.journal.reader import RunReader
from taskiq_flow.journal.redis import RedisJournal
from taskiq_flow.journal.sqlite import SqliteJournal
from taskiq_flow.journal.summary import RunSummary

__all__ = [
    "EventBatch",
    "EventJournal",
    "Journal",
    "Lease",
    "MemoryJournal",
    "RedisJournal",
    "RunReader",
    "RunSummary",
    "SqliteJournal",
]
