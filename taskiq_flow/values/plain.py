"""Decides whether JSON carries a value exactly, so that it needs no tags."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from math import isfinite
from typing import Any

MAX_DEPTH = 100
"""Containers within containers that a value may have."""

TAG = "$tf"
MOST_BITS = 8192
"""Integers of more bits are tagged: ``json`` refuses to write or read more than 4300 digits."""

LEAVES: frozenset[type] = frozenset({type(None), bool, int, str})
_KINDS = frozenset({*LEAVES, float, list, dict})
_TEXT = frozenset({str})


def is_plain(value: Any) -> bool:
    """Whether JSON carries a value exactly, with the types of all of its parts.

    Works through the value level by level, in C. Subclasses of JSON's types are not plain, nor is
    a dictionary with a key ``"$tf"``, nor a value of more than ``MAX_DEPTH`` levels. Integers in
    containers are not measured; see ``ValueCodec.encode`` for ``strict``.
    """
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return True
    if kind is int:
        return bool(value.bit_length() <= MOST_BITS)
    if kind is float:
        return isfinite(value)
    if kind is not list and kind is not dict:
        return False
    try:
        return _is_plain_collection(value)
    except RuntimeError:  # another thread changes it; whoever encodes it says so
        return False


def _is_plain_collection(value: Any) -> bool:
    level: Collection[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        kinds = set(map(type, level))
        if not kinds <= _KINDS or not floats_are_finite(level, kinds):
            return False
        dicts = _distinct(level, kinds, dict)
        if dicts and not _has_plain_keys(dicts):
            return False
        lists = _distinct(level, kinds, list)
        if not lists and not dicts:
            return True
        level = list(itertools.chain(*lists, *map(dict.values, dicts)))
    return False


def floats_are_finite(level: Collection[Any], kinds: set[type]) -> bool:
    """Whether no float of ``level`` is NaN or infinite. ``kinds``: the types in it."""
    if float not in kinds:
        return True
    floats = level if len(kinds) == 1 else [item for item in level if type(item) is float]
    # A sum of finite floats may overflow, so that only a finite sum is an answer.
    return isfinite(sum(floats)) or all(map(isfinite, floats))


def _distinct(level: Collection[Any], kinds: set[type], kind: type) -> Collection[Any]:
    """The containers of one type, each once: a cycle or a shared part must not multiply."""
    if kind not in kinds:
        return ()
    found = level if len(kinds) == 1 else [item for item in level if type(item) is kind]
    return dict(zip(map(id, found), found, strict=True)).values() if len(found) > 1 else found


def _has_plain_keys(dicts: Collection[dict[Any, Any]]) -> bool:
    kinds = set(map(type, itertools.chain.from_iterable(dicts)))
    return kinds <= _TEXT and True not in map(dict.__contains__, dicts, itertools.repeat(TAG))
