"""What a worker holds and sends of a generator's items: its bounds, and what messages look like.

What holds whatever becomes of the messages is in ``property_tests/test_items_sent.py``.
"""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow import ItemsChangedError
from taskiq_flow.generators.grant import NO_ITEMS, Grant, with_item
from taskiq_flow.generators.messages import Batch, Receipt
from taskiq_flow.generators.receiving import TOLD_BYTES, TOLD_ITEMS, Receiving
from taskiq_flow.generators.sending import BATCH_BYTES, MOST_AHEAD, MOST_HELD, Sending

DIGESTS = st.binary(min_size=8, max_size=8).filter(any) | st.just(b"")
GRANTS = st.builds(
    Grant,
    have=st.integers(0),
    digest=DIGESTS,
    may=st.integers(0) | st.just(math.inf),
)


def push(sending: Sending, *items: bytes) -> None:
    digest = NO_ITEMS
    for item in items:
        digest = with_item(digest, item)
        sending.push(item, digest)


def batches(sending: Sending) -> list[Batch]:
    found = []
    while (batch := sending.next_batch()) is not None:
        found.append(batch)
    return found


@given(GRANTS)
def test_a_label_says_what_was_granted(grant: Grant) -> None:
    assert Grant.of(grant.label()) == grant
    assert grant.label().isprintable()


@given(
    st.integers(0),
    DIGESTS,
    st.lists(st.tuples(DIGESTS, st.text())),
    st.booleans(),
    st.booleans(),
)
def test_a_batch_arrives_as_it_was_packed(
    first: int, before: bytes, items: list[tuple[bytes, str]], is_last: bool, asks: bool
) -> None:
    content = json.dumps([item for _, item in items]).encode()
    batch = Batch(first, before, tuple(d for d, _ in items), content, is_last, asks)
    assert Batch.unpacked(batch.packed("a channel", "a seal")) == (batch, "a channel", "a seal")


@given(GRANTS, st.integers(0), st.booleans())
def test_a_receipt_arrives_as_it_was_packed(grant: Grant, following: int, answers: bool) -> None:
    receipt = Receipt(grant, following, answers)
    assert Receipt.unpacked(receipt.packed()) == receipt


@given(GRANTS, GRANTS)
def test_grants_say_the_same_in_any_order(one: Grant, other: Grant) -> None:
    both, turned = one.merged(other), other.merged(one)
    assert (both.have, both.may) == (turned.have, turned.may)
    assert both.have == max(one.have, other.have)
    assert both.may == max(one.may, other.may)


def test_a_batch_has_a_bounded_size_unless_one_item_alone_is_larger() -> None:
    sending = Sending(Grant())
    small, large = b"1" * 1000, b"2" * (2 * BATCH_BYTES)
    push(sending, *[small] * 100, large, *[small] * 3)
    found = batches(sending)
    assert [batch.first for batch in found] == [0, 32, 64, 96, 100, 101]
    assert all(len(batch.content) <= BATCH_BYTES for batch in found if batch.first != 100)
    assert [found[at].before for at in (1, 2)] == [found[at].digests[-1] for at in (0, 1)]


def test_a_generator_without_a_bound_is_not_ahead_of_its_engine_for_long() -> None:
    sending = Sending(Grant())
    assert sending.may == MOST_AHEAD
    push(sending, *[b"1"] * 100)
    sending.hear(Receipt(Grant(), 60))
    assert sending.may == 60 + MOST_AHEAD


def test_large_items_wait_until_the_engine_has_taken_others() -> None:
    sending = Sending(Grant(may=16))
    push(sending, b"1" * MOST_HELD)
    assert sending.may == sending.made == 1
    sending.hear(Receipt(Grant(may=16), 1))
    assert sending.may == 16


def test_the_end_is_told_with_the_last_items_or_alone_and_once() -> None:
    sending = Sending(Grant())
    push(sending, b"1", b"2")
    sending.end()
    assert [(batch.end, batch.is_last) for batch in batches(sending)] == [(2, True)]
    late = Sending(Grant())
    push(late, b"1", b"2")
    assert [(batch.end, batch.is_last) for batch in batches(late)] == [(2, False)]
    late.end()
    assert [(b.first, b.end, b.is_last) for b in batches(late)] == [(2, 2, True)]


def test_what_was_lost_is_sent_again_once_the_engine_has_answered() -> None:
    sending = Sending(Grant())
    push(sending, b"1", b"2", b"3")
    batches(sending)
    assert (sending.ask().first, sending.ask().end) == (0, 3)
    sending.hear(Receipt(Grant(), 1))  # not an answer: more may be on its way
    assert batches(sending) == []
    sending.hear(Receipt(Grant(), 1, answers=True))
    assert [(batch.first, batch.end) for batch in batches(sending)] == [(1, 3)]


def test_an_old_receipt_changes_nothing() -> None:
    sending = Sending(Grant(may=4))
    push(sending, b"1", b"2", b"3", b"4")
    sending.hear(Receipt(Grant(2, b"x" * 8, 6), 3))
    sending.hear(Receipt(Grant(0, b"", 4), 0, answers=True))
    assert (sending.grant, sending.may) == (Grant(2, b"x" * 8, 6), 6)
    assert [(batch.first, batch.end) for batch in batches(sending)] == [(3, 4)]


def test_what_the_engine_has_of_another_execution_is_not_sent() -> None:
    sending = Sending(Grant(may=4))
    sending.hear(Receipt(Grant(2, b"x" * 8, 6), 3))
    assert sending.may == 6
    push(sending, b"1", b"2", b"3", b"4")
    (batch,) = batches(sending)
    assert (batch.first, batch.content) == (3, b"[4]")


@pytest.mark.parametrize("hears_first", [True, False])
def test_an_execution_with_fewer_items_than_the_engine_has_is_an_error(hears_first: bool) -> None:
    sending = Sending(Grant(may=4))
    push(sending, b"1")
    receipt = Receipt(Grant(2, b"x" * 8, 6), 2)
    steps = [lambda: sending.hear(receipt), sending.end]
    first, second = steps if hears_first else reversed(steps)
    first()
    with pytest.raises(ItemsChangedError, match="ended after 1 items; its engine has 2"):
        second()


def test_what_was_sent_after_the_question_is_not_sent_again() -> None:
    sending = Sending(Grant())
    push(sending, b"1")
    batches(sending)
    sending.ask()
    digest = with_item(with_item(NO_ITEMS, b"1"), b"2")
    sending.push(b"2", digest)
    batches(sending)
    sending.hear(Receipt(Grant(), 1, answers=True))
    assert batches(sending) == []


def test_workers_are_told_what_was_taken_now_and_then_though_nothing_more_is_granted() -> None:
    receiving = Receiving(Grant())
    many = tuple([b"x" * 8] * (TOLD_ITEMS - 1))
    receiving.take(Batch(0, NO_ITEMS, many))
    assert not receiving.is_due
    receiving.take(Batch(TOLD_ITEMS - 1, b"x" * 8, (b"y" * 8,)))
    assert receiving.is_due
    receiving.receipt(answers=False)
    assert not receiving.is_due
    receiving.take(Batch(TOLD_ITEMS, b"y" * 8, (b"z" * 8,), b"1" * TOLD_BYTES))
    assert receiving.is_due


def test_workers_are_told_at_once_when_more_is_granted() -> None:
    receiving = Receiving(Grant(may=4))
    receiving.allow(Grant(may=4))
    assert not receiving.is_due
    receiving.allow(Grant(may=5))
    assert receiving.is_due
    receiving.receipt(answers=False)
    assert not receiving.is_due


def test_workers_are_told_once_all_items_are_safe() -> None:
    receiving = Receiving(Grant(may=16))
    receiving.take(Batch(0, NO_ITEMS, (b"x" * 8,), b"[1]", is_last=True))
    receiving.allow(Grant(1, b"x" * 8, 16))
    assert receiving.is_due
    assert receiving.receipt(answers=False) == Receipt(Grant(1, b"x" * 8, 16), 1)
    assert not receiving.is_due


@pytest.mark.parametrize("count", [0, 2])
def test_a_result_that_is_not_the_number_of_the_items_is_an_error(count: int) -> None:
    receiving = Receiving(Grant())
    receiving.take(Batch(0, NO_ITEMS, (b"x" * 8,), b"[1]"))
    with pytest.raises(ItemsChangedError):
        receiving.check_count(count)
    receiving.check_count(1)
