"""Errors of tasks on their way from a worker."""

from __future__ import annotations

import pytest

from taskiq_flow import DAGBuilder, ExecutionEngine, NodeFailedError, Retry
from taskiq_flow.testing import LocalBroker, LocalNotices
from taskiq_flow.worker.raised import as_sent
from tests.local_flow import with_flow

TEXT = "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"


def decoding_error() -> UnicodeDecodeError:
    with pytest.raises(UnicodeDecodeError) as caught:
        (b"\xff" * 100_000).decode()
    return caught.value


async def test_bytes_that_are_no_text_are_a_short_error_that_a_retry_recognises() -> None:
    broker = LocalBroker()
    flow = with_flow(broker, LocalNotices())
    calls = []

    @broker.task
    def read(content: bytes) -> str:
        calls.append(len(content))
        return content.decode()

    retry = Retry(attempts=2, wait=0, on=(UnicodeError,))
    dag = DAGBuilder().node(read, retry=retry).build()
    async with broker.worker():
        with pytest.raises(NodeFailedError) as caught:
            await ExecutionEngine(broker, dag).execute({"content": b"\xff" * 100_000})
    await flow.shutdown()
    assert repr(caught.value.__cause__) == repr(UnicodeError(TEXT))
    assert calls == [100_000, 100_000]
    assert len(str(caught.value)) < 500


def test_errors_behind_an_error_are_replaced_too() -> None:
    error = ValueError("no text")
    error.__cause__ = decoding_error()
    error.__context__ = error.__cause__
    sent = as_sent(error)
    assert sent is error
    assert repr(sent.__cause__) == repr(UnicodeError(TEXT))
    assert sent.__suppress_context__


@pytest.mark.parametrize("is_suppressed", [True, False])
def test_an_error_in_place_of_another_has_what_was_behind_that(*, is_suppressed: bool) -> None:
    error = decoding_error()
    error.__context__ = KeyError("x")
    error.__context__.__context__ = error
    error.__suppress_context__ = is_suppressed  # as ``from None`` does
    sent = as_sent(error)
    assert repr(sent.__context__) == repr(KeyError("x"))
    assert sent.__suppress_context__ == is_suppressed
    assert sent.__cause__ is None
