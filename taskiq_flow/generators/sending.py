"""Decides what a worker sends of a generator's items, and how far the generator may go.

Works as TCP does: items that the engine does not have are held and sent again, and the engine's
cumulative grants bound what is made. No I/O, no clock: batches and receipts may be lost, doubled
and reordered on their way. That an execution gives the items of the one before is checked by the
driver and by ``Receiving``, which compare digests.
"""

from __future__ import annotations

from taskiq_flow.errors import ItemsChangedError
from taskiq_flow.generators.grant import GIVE_THE_SAME, NO_ITEMS, Grant
from taskiq_flow.generators.messages import DIGEST_BYTES, Batch, Receipt

BATCH_BYTES = 32_768
"""Bytes of a batch at the most, unless a single item has more."""

MOST_AHEAD = 1024
"""Items that may be made beyond those that the engine has taken, however much it grants."""

MOST_HELD = 1_048_576
"""Bytes of items held, from which on none is made until the engine has taken some."""

_EACH = 2 * DIGEST_BYTES + 1
"""Bytes of a batch for each item beside the item itself."""


class Sending:
    """The items of one execution, from when they are made until the engine has taken them.

    ``grant``: the newest one. It begins with the one of the task's label.
    """

    def __init__(self, grant: Grant) -> None:
        self.grant = grant
        self.made = grant.have  # those before were passed over
        self._next = grant.have  # of the item that the engine takes next, as far as is known
        self._first = grant.have  # of the first item held
        self._before = grant.digest if grant.have else NO_ITEMS
        self._held: list[tuple[bytes, bytes]] = []  # each item as JSON, and its digest
        self._bytes = 0  # of those held
        self._sent = grant.have  # those before were sent
        self._sent_when_asking = 0
        self._has_ended = False
        self._is_over = False  # ended or failed
        self._tells_end = False  # whether a batch has said so

    @property
    def may(self) -> float:
        """How many items may be made in all."""
        most = self.made if self._bytes >= MOST_HELD else self._next + MOST_AHEAD
        return min(self.grant.may, most)

    @property
    def is_unanswered(self) -> bool:
        """Whether items were sent of which it is not known that the engine has taken them."""
        return self._sent > self._first

    @property
    def is_done(self) -> bool:
        """Whether the generator has ended or failed, and its items are safe with the engine."""
        return self._is_over and self.grant.have >= self.made

    def push(self, item: bytes, digest: bytes) -> None:
        """One more item was made. ``item``: as JSON; ``digest``: of all items up to this one."""
        self.made += 1
        if self.made <= self._next:  # the engine has it of another execution
            self._before = digest
            self._first = self._sent = self.made
            return
        self._held.append((item, digest))
        self._bytes += len(item)

    def end(self) -> None:
        """The generator has ended.

        Raises ``ItemsChangedError`` if the engine has more items of an earlier execution.
        """
        self._has_ended = self._is_over = True
        if max(self._next, self.grant.have) > self.made:
            raise ItemsChangedError(
                f"the generator was executed again, and ended after {self.made} items; its engine "
                f"has {self._next} of the earlier execution; {GIVE_THE_SAME}"
            )

    def fail(self) -> None:
        """The generator has failed. What it gave before is wanted all the same."""
        self._is_over = True

    def hear(self, receipt: Receipt) -> None:
        """Handle a receipt of the engine. One that is older than others changes nothing.

        Raises ``ItemsChangedError`` as ``end`` does.
        """
        self.grant = self.grant.merged(receipt.grant)
        self._next = max(self._next, receipt.next)
        self._drop(min(self._next, self.made) - self._first)
        is_latest = receipt.next == self._next
        if receipt.answers and is_latest and self._next < self._sent_when_asking:
            self._sent = self._first  # what was sent was lost
        if self._has_ended:
            self.end()

    def _drop(self, count: int) -> None:
        """Drop the first of the items that are held."""
        if count > 0:
            self._before = self._held[count - 1][1]
            self._bytes -= sum(len(item) for item, _ in self._held[:count])
            del self._held[:count]
            self._first += count
            self._sent = max(self._sent, self._first)

    def next_batch(self) -> Batch | None:
        """What is to be sent now for the first time. It counts as sent."""
        if self._sent == self.made and (self._tells_end or not self._is_over):
            return None
        batch = self._batch(self._sent, self.made, asks=False)
        self._sent = batch.end
        self._tells_end = batch.is_last
        return batch

    def ask(self) -> Batch:
        """A batch with the first items that the engine may not have, or with none.

        The engine answers what it has and grants in either case.
        """
        self._sent_when_asking = self._sent
        return self._batch(self._first, self._sent, asks=True)

    def send_again(self) -> None:
        """The last batch could not be sent."""
        self._sent, self._tells_end = self._first, False

    def _batch(self, first: int, end: int, *, asks: bool) -> Batch:
        size = 0
        items: list[bytes] = []
        digests: list[bytes] = []
        for item, digest in self._held[first - self._first : end - self._first]:
            size += len(item) + _EACH
            if items and size > BATCH_BYTES:
                break
            items.append(item)
            digests.append(digest)
        return Batch(
            first,
            self._digest_at(first),
            tuple(digests),
            b"[" + b",".join(items) + b"]",
            is_last=self._is_over and first + len(items) == self.made,
            asks=asks,
        )

    def _digest_at(self, index: int) -> bytes:
        return self._held[index - self._first - 1][1] if index > self._first else self._before
