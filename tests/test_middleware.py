"""What users give a ``FlowMiddleware``, and what it says of what it cannot take."""

from __future__ import annotations

from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import ConfigurationError, DAGBuilder, ExecutionEngine, FlowMiddleware
from taskiq_flow.testing import LocalBroker, LocalFlowMiddleware, LocalNotices


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", "", "kafka://x"])
def test_a_url_of_an_unknown_kind_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="redis://, rediss://"):
        FlowMiddleware(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:hidden@localhost", "http://me:***@localhost"),
        ("http://me:hid:den@localhost/1", "http://me:***@localhost/1"),
        ("http://hidden@localhost", "http://***@localhost"),
        ("http://localhost/?password=hidden&db=1", "http://localhost/?password=***&db=1"),
        ("http://:hidden@localhost?auth_token=hidden", "http://:***@localhost?auth_token=***"),
        ("http://u:hid1@a,nats://u:hid2@b", "http://u:***@a,nats://u:***@b"),
        ("http://u:hid1@a, nats://u:hid2@b", "http://u:***@a, nats://u:***@b"),
        ("http://:hid,den@localhost", "http://:***@localhost"),
        ("http://a?jwt=hid,hidden&db=2", "http://a?jwt=***&db=2"),
        ("http://a,nats://hidden@b", "http://a,nats://***@b"),
        ("http://u:hid/d#e?n@a/1", "http://u:***@a/1"),
        ("http://u:hid[den@a", "http://u:***@a"),
        ("http://a?jwt=hidden&db=2#hidden", "http://a?jwt=***&db=2"),
    ],
)
def test_no_secret_of_a_url_is_repeated(url: str, shown: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FlowMiddleware(url)
    assert "hid" not in str(caught.value)
    assert repr(shown) in str(caught.value)


@pytest.mark.parametrize("limit", [-1, 1.5, "1", True, None])
def test_a_limit_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(ValueError, match="inline_limit is"):
        FlowMiddleware(inline_limit=limit)


@pytest.mark.parametrize("number", [0, -1, 1.5, "1", True, None])
def test_a_number_of_deliveries_that_is_none_is_refused(number: Any) -> None:
    with pytest.raises(ValueError, match="max_deliveries is"):
        FlowMiddleware(max_deliveries=number)


@pytest.mark.parametrize("prefix", ["", "a b", "a*", "a>", "a.", ".a", "a..b", None, 1])
def test_a_prefix_that_some_server_could_not_have_is_refused(prefix: Any) -> None:
    with pytest.raises(ValueError, match="prefix is"):
        FlowMiddleware(prefix=prefix)


def test_a_broker_of_an_unknown_kind_needs_a_url() -> None:
    with pytest.raises(ConfigurationError, match=r"FlowMiddleware\('redis://localhost'\)"):
        LocalBroker().with_middlewares(FlowMiddleware())
    LocalBroker().with_middlewares(FlowMiddleware("redis://localhost"))


def test_a_broker_has_one() -> None:
    broker = LocalBroker().with_middlewares(FlowMiddleware("redis://localhost"))
    with pytest.raises(ConfigurationError, match="has a FlowMiddleware already"):
        broker.with_middlewares(FlowMiddleware("redis://localhost"))


async def test_the_embedded_broker_does_without_it() -> None:
    broker = InMemoryBroker().with_middlewares(FlowMiddleware())
    await broker.startup()
    dag = DAGBuilder().node(lambda number: number + 1, name="more").build()
    assert await ExecutionEngine(broker, dag).execute({"number": 1}) == {"more": 2}
    await broker.shutdown()


@pytest.mark.parametrize("seconds", [0, 0.99, -1, float("inf"), float("nan")])
def test_a_time_that_is_too_short_to_hear_of_a_task_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="lost_after is"):
        ExecutionEngine(InMemoryBroker(), DAGBuilder().build(), lost_after=seconds)


async def test_what_is_not_from_an_engine_is_left_alone() -> None:
    """Tasks that somebody sends by taskiq's own ``kiq`` pass a worker as without the middleware."""
    board = LocalNotices()
    broker = LocalBroker().with_middlewares(LocalFlowMiddleware(board))

    @broker.task
    async def double(number: int) -> int:
        return 2 * number

    async with broker.worker():
        sent = await double.kiq(4)
        result = await sent.wait_result(check_interval=0.001, timeout=5)
    assert result.return_value == 8
    assert board.published == []
    for middleware in broker.middlewares:
        await middleware.shutdown()  # type: ignore[misc]


async def test_a_server_that_was_away_when_a_run_began_is_tried_again_by_the_next() -> None:
    board = LocalNotices()
    flow = LocalFlowMiddleware(board)
    broker = LocalBroker().with_middlewares(flow)

    @broker.task
    async def one() -> int:
        return 1

    async def refuse() -> None:
        raise PermissionError("not for you")

    engine = ExecutionEngine(broker, DAGBuilder().node(one).build())
    notifier = flow._notifier()
    notifier.open = refuse  # type: ignore[method-assign]
    flow._notifier = lambda: notifier  # type: ignore[method-assign]
    with pytest.raises(ConfigurationError, match="not for you"):
        await engine.execute()
    del flow.__dict__["_notifier"]
    async with broker.worker():
        assert await engine.execute() == {"one": 1}
    await flow.shutdown()
