"""Journals: the logs of runs, from which another process can resume them."""

from taskiq_flow.journal.memory import MemoryJournal
from taskiq_flow.journal.protocol import Journal, Lease
from taskiq_flow.journal.redis import RedisJournal
from taskiq_flow.journal.sqlite import SqliteJournal

__all__ = ["Journal", "Lease", "MemoryJournal", "RedisJournal", "SqliteJournal"]
