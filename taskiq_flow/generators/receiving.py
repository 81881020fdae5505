"""Decides which of a generator's items an engine takes, and what it tells the workers.

No I/O, no clock: batches may come twice, in any order, and of several executions.
"""

from __future__ import annotations

from taskiq_flow.errors import ItemsChangedError
from taskiq_flow.generators.grant import GIVE_THE_SAME, NO_ITEMS, Grant
from taskiq_flow.generators.messages import Batch, Receipt

TOLD_ITEMS = 256
"""Items after which workers are told what was taken, though nothing more is granted."""

TOLD_BYTES = 262_144
"""Bytes of batches after which they are told that."""


class Receiving:
    """The items of one task, of whichever execution.

    ``next``: the index of the item that is taken next. ``digest``: of all items before it.
    ``grant``: the newest one.
    """

    def __init__(self, grant: Grant) -> None:
        self.grant = grant
        self.next = grant.have
        self.digest = grant.digest if grant.have else NO_ITEMS
        self._end: int | None = None  # how many items there are, as far as an execution has told
        self._told = Receipt(grant, grant.have)
        self._untold_bytes = 0

    def take(self, batch: Batch) -> int:
        """How many items at the end of a batch are new, and follow those taken before.

        Raises ``ItemsChangedError`` if the batch is of an execution that gives other items.
        """
        if batch.first > self.next:
            return 0  # what is between was lost, and comes again
        if batch.end >= self.next:
            self._check(batch.digest_at(self.next))
        if batch.is_last:
            self._end = batch.end
        new = batch.end - self.next
        if new <= 0:
            return 0
        self.next, self.digest = batch.end, batch.digest_at(batch.end)
        self._untold_bytes += len(batch.content)
        return new

    def _check(self, digest: bytes) -> None:
        if b"" not in (digest, self.digest) and digest != self.digest:
            raise ItemsChangedError(
                f"the generator was executed again, and gave other items among the first "
                f"{self.next} than before; {GIVE_THE_SAME}"
            )

    def check_count(self, count: int) -> None:
        """Check the task's result. Raises ``ItemsChangedError`` if so many were not taken."""
        if count != self.next:
            raise ItemsChangedError(
                f"the generator has ended after {count} items, and {self.next} were taken; have it "
                "give the same items for the same inputs"
            )

    def allow(self, grant: Grant) -> None:
        """Take a new grant: more items may be made, or more of them are stored."""
        self.grant = self.grant.merged(grant)

    @property
    def is_due(self) -> bool:
        """Whether workers are to be told something now, though none has asked."""
        is_whole = self._end is not None and self.grant.have >= self._end > self._told.grant.have
        return (
            is_whole
            or self.grant.may > self._told.grant.may
            or self.next - self._told.next >= TOLD_ITEMS
            or self._untold_bytes >= TOLD_BYTES
        )

    def receipt(self, *, answers: bool) -> Receipt:
        """What workers are told now. ``answers``: whether a batch has asked for it."""
        self._untold_bytes = 0
        self._told = Receipt(self.grant, self.next, answers)
        return self._told
