"""The number of items that a generator may make, and which of them its engine has."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Self

ITEMS_LABEL = "taskiq_flow_items"
"""The label with the first grant, of a generator's task whose items are sent one by one.

The result of such a task is the number of its items. Without the label it is the list of them.
"""

GIVE_THE_SAME = (
    "have it give the same items for the same inputs; if its source changes, return a list from a "
    "plain node and map over that, or compute this node and all behind it again with engine.rerun()"
)
"""The remedy in each ``ItemsChangedError``."""


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

    def label(self) -> str:
        """The value of ``ITEMS_LABEL``."""
        may = self.may if math.isinf(self.may) else int(self.may)
        return f"{self.have} {self.digest.hex()} {may}"

    @classmethod
    def of(cls, label: str) -> Self:
        """Read a label. Raises ``ValueError`` if it is invalid."""
        have, digest, may = label.split(" ")
        return cls(int(have), bytes.fromhex(digest), math.inf if may == "inf" else int(may))

    def merged(self, other: Grant) -> Grant:
        """What holds if both were given, in whatever order: no grant is taken back."""
        later = self if self.have >= other.have else other
        return Grant(later.have, later.digest, max(self.may, other.may))


NO_ITEMS = hashlib.blake2b(digest_size=8).digest()
"""The digest of no items."""


def with_item(digest: bytes, item: bytes) -> bytes:
    """The digest of a row of items, given that of all but the last, and the last one's own."""
    return hashlib.blake2b(digest + item, digest_size=8).digest()
