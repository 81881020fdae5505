"""Journals that are given as addresses."""

from __future__ import annotations

import pytest

from taskiq_flow import RedisJournal, SqliteJournal
from taskiq_flow.journal.given import as_journal

DEFAULT = "taskiq_flow:journal"


@pytest.mark.parametrize(
    ("address", "prefix", "shown"),
    [
        ("redis://host/2", DEFAULT, "redis://host/2"),
        ("redis://host/2?prefix=shop:journal", "shop:journal", "redis://host/2"),
        ("rediss://host?prefix=a%20b&db=3", "a b", "rediss://host?db=3"),
        ("unix:///tmp/socket?db=3&prefix=shop", "shop", "unix:///tmp/socket?db=3"),
        ("redis+sentinel://a:1,b/main/2?prefix=shop", "shop", "redis+sentinel://a:1,b/main/2"),
        ("rediss+sentinel://me:hid,den@a/main", DEFAULT, "rediss+sentinel://me:***@a/main"),
        ("redis+cluster://a,b:1?prefix=shop", "{shop}", "redis+cluster://a,b:1"),
        ("redis+cluster://a?prefix={shop}:runs", "{shop}:runs", "redis+cluster://a"),
    ],
)
def test_an_address_may_name_the_prefix(address: str, prefix: str, shown: str) -> None:
    journal = as_journal(address)
    assert isinstance(journal, RedisJournal)
    assert repr(journal) == f"<RedisJournal at {shown}, prefix {prefix!r}>"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("redis://host?prefix=", "does not name one prefix; write \\?prefix=shop:runs"),
        ("redis://host?prefix=a&prefix=b", "does not name one prefix"),
        ("redis://host?prefx=a", "has the option 'prefx', which the Redis client does not know"),
        ("redis://host?db=x", "Invalid value for 'db'"),
        (
            "redis+sentinel://host",
            "does not name the master of the sentinels; write",
        ),
        ("redis+sentinel://host/main/x", "does not name the master"),
        ("redis+sentinel://host/main?prefx=a", "has the option 'prefx'"),
        ("redis+cluster://host?prefx=a", "has the option 'prefx'"),
        ("redis+ring://host", "is a redis.ring:// address"),
    ],
)
def test_an_address_that_redis_does_not_take_is_refused_at_once(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        as_journal(address)


@pytest.mark.parametrize("path", ["", ":memory:", "sqlite:///runs.db"])
def test_what_other_libraries_take_for_a_sqlite_file_is_refused(path: str) -> None:
    """mlflow 12783 and 5917: they became files of these names, or were refused in a run."""
    with pytest.raises(ValueError, match="is not the path of a SQLite file; give one"):
        SqliteJournal(path)
    with pytest.raises(ValueError, match=r"journal is|is not the path"):
        as_journal(path)
