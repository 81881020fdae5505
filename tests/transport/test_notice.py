"""How engines and workers write to each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow.transport.notice import ALWAYS, Kind, Notice, ReplyTo

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
KEY = b"k" * 16


@given(
    channel=st.text("abcxyz_.019", min_size=1),
    key=st.binary(max_size=16),
    run=TEXT,
    limit=st.sampled_from([None, 0, 65536, ALWAYS]),
)
def test_a_label_says_what_went_into_it(
    channel: str, key: bytes, run: str, limit: int | None
) -> None:
    reply_to = ReplyTo(channel, key, run, limit)
    assert ReplyTo.of(reply_to.label()) == reply_to
    assert reply_to.label().isascii()  # brokers carry labels as headers
    assert reply_to.label().isprintable()


@pytest.mark.parametrize("label", ["", "a b c", "a xx 0 00", "a 00 x 00", "a 00 0 ff", "a b c d e"])
def test_what_is_no_label_is_refused(label: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of splitting, of hexadecimals or of UTF-8
        ReplyTo.of(label)


@given(kind=st.sampled_from(list(Kind)), task_id=TEXT, body=st.binary())
def test_a_notice_is_opened_with_its_key_and_no_other(
    kind: Kind, task_id: str, body: bytes
) -> None:
    notice = Notice(kind, task_id, body)
    assert Notice.task_named_in(notice.sealed(KEY)) == task_id
    assert Notice.opened(notice.sealed(KEY), KEY) == notice
    assert Notice.opened(notice.sealed(KEY), b"other") is None


@given(data=st.data(), body=st.binary(max_size=30))
def test_a_notice_in_which_a_byte_was_changed_is_not_opened(
    data: st.DataObject, body: bytes
) -> None:
    sealed = bytearray(Notice(Kind.RESULT, "run:node:1", body).sealed(KEY))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    assert Notice.opened(bytes(sealed), KEY) is None


@given(st.binary(max_size=60))
def test_what_is_no_notice_is_not_opened(data: bytes) -> None:
    assert Notice.opened(data, KEY) is None


def test_a_report_names_the_tasks_that_a_worker_has() -> None:
    sealed = Notice.of_tasks(Kind.HERE, ["r:a:1", "r:b\n:1"]).sealed(KEY)
    opened = Notice.opened(sealed, KEY)
    assert opened is not None
    assert opened.task_ids() == ["r:a:1", "r:b\n:1"]
