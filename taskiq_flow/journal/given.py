"""A journal as the user gives it: an object, a path or an address."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import unquote

from taskiq_flow.journal.protocol import Journal
from taskiq_flow.journal.redis import RedisJournal
from taskiq_flow.journal.sqlite import SqliteJournal
from taskiq_flow.transport.systems import without_secrets

_REDIS = tuple(
    f"{scheme}://"
    for scheme in (
        *("redis", "redis+sentinel", "redis+cluster", "unix"),
        *("rediss", "rediss+sentinel", "rediss+cluster"),
    )
)

_METHODS = ("create", "acquire", "renew", "release", "append", "read", "serializer")


def as_journal(given: Any) -> Journal | None:
    """The journal that ``given`` stands for; ``None`` for none.

    A path is a ``SqliteJournal``, relative to the present working directory. An address of a Redis
    server is a ``RedisJournal``, whose prefix it may have as ``?prefix=``. Raises ``TypeError`` or
    ``ValueError`` for anything else.
    """
    if given is None:
        return None
    if isinstance(given, str) and given.startswith(_REDIS):
        return _on_redis(given)
    if isinstance(given, str) and "://" in given:
        raise ValueError(
            f"journal is a {given.partition('://')[0]}:// address; give the path of a SQLite file, "
            "a redis:// address, or a journal of your own"
        )
    if isinstance(given, (str, os.PathLike)):
        if not os.fspath(given):
            raise ValueError("journal is an empty path; give the path of a file, or None")
        return SqliteJournal(given)
    if isinstance(given, type):
        raise TypeError(f"journal is the class {given.__name__}; give an instance of it")
    if missing := [name for name in _METHODS if not hasattr(given, name)]:
        raise TypeError(
            f"journal is {given!r}, which has no {missing[0]!r}; give a path, a redis:// address, "
            "SqliteJournal(path) or RedisJournal(url)"
        )
    journal: Journal = given
    return journal


def _on_redis(url: str) -> RedisJournal:
    """The journal at an address, which may name the prefix of its keys: ``?prefix=shop:runs``."""
    address, _, query = url.partition("?")
    options = [option for option in query.split("&") if option]
    named = [option for option in options if option.startswith("prefix=")]
    if not named:
        return RedisJournal(url)
    prefix = unquote(named[0].removeprefix("prefix="))
    if len(named) > 1 or not prefix:
        raise ValueError(
            f"the address {without_secrets(url)!r} does not name one prefix; write "
            "?prefix=shop:runs"
        )
    rest = "&".join(option for option in options if option not in named)
    return RedisJournal(f"{address}?{rest}" if rest else address, prefix=prefix)
