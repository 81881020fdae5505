"""How far a generator may go, and what its engine has of its items."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grant:
    """What an engine tells a generator.

    ``have``: how many items the engine has. They are not passed on once more: a further execution
    makes them again, and passes over them. ``digest``: of these items, as of ``with_item``; empty
    if no further execution can follow. ``may``: how many items may be made in all.
    """

    have: int = 0
    digest: bytes = b""
    may: float = math.inf


NO_ITEMS = hashlib.blake2b(digest_size=8).digest()
"""The digest of no items."""


def with_item(digest: bytes, item: bytes) -> bytes:
    """The digest of a row of items, given that of all but the last, and the last one's own."""
    return hashlib.blake2b(digest + item, digest_size=8).digest()
