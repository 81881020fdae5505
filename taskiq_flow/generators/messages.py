"""The messages between a worker and an engine about the items of a generator."""

from __future__ import annotations

import json
from dataclasses import dataclass

from taskiq_flow.generators.grant import Grant

DIGEST_BYTES = 8

_UNKNOWN = bytes(DIGEST_BYTES)
"""Stands for a digest that is not known."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Successive items of one execution, for the engine.

    ``first``: the index of the first of them. ``before``: the digest of all items before it, as of
    ``with_item``; empty if it is not known. ``digests``: for each item, of all items up to it.
    ``content``: the items as a JSON list. ``is_last``: whether none follow, as the generator has
    ended or failed. ``asks``: whether the engine is to answer, whatever it has of these items.
    """

    first: int
    before: bytes
    digests: tuple[bytes, ...] = ()
    content: bytes = b"[]"
    is_last: bool = False
    asks: bool = False

    @property
    def end(self) -> int:
        """The index after the last item."""
        return self.first + len(self.digests)

    def digest_at(self, index: int) -> bytes:
        """The digest of the items before an index, which is one of the batch or its end."""
        return self.digests[index - self.first - 1] if index > self.first else self.before

    def packed(self, channel: str, seal: str) -> bytes:
        """The batch as bytes. ``channel``: where the worker hears receipts."""
        digests = b"".join(digest or _UNKNOWN for digest in self.digests).hex()
        flags = [int(self.is_last), int(self.asks)]
        head = [channel, seal, self.first, self.before.hex(), digests, *flags]
        return json.dumps(head).encode() + b"\n" + self.content

    @classmethod
    def unpacked(cls, data: bytes) -> tuple[Batch, str, str]:
        """The batch that was packed, the channel and the seal."""
        head, _, content = data.partition(b"\n")
        channel, seal, first, before, digests, is_last, asks = json.loads(head)
        joined, size = bytes.fromhex(digests), DIGEST_BYTES
        found = (joined[at : at + size] for at in range(0, len(joined), size))
        each = tuple(b"" if digest == _UNKNOWN else digest for digest in found)
        batch = cls(first, bytes.fromhex(before), each, content, bool(is_last), bool(asks))
        return batch, channel, seal


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an engine has of a generator's items, and what it grants, for the workers.

    ``next``: the index of the item that it takes next. Those before ``grant.have`` are safe there,
    those from there on are not sent again, unless another engine takes over the run. ``answers``:
    whether a batch has asked for it.
    """

    grant: Grant
    next: int
    answers: bool = False

    def packed(self) -> bytes:
        """The receipt as bytes."""
        return f"{self.next} {int(self.answers)} {self.grant.label()}".encode()

    @classmethod
    def unpacked(cls, data: bytes) -> Receipt:
        """The receipt that was packed."""
        following, answers, grant = data.decode().split(" ", 2)
        return cls(Grant.of(grant), int(following), answers == "1")
