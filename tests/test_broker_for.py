"""The broker for an address: what it is made of, and what is told if it cannot be made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from taskiq import InMemoryBroker
from taskiq.serializers import JSONSerializer
from taskiq_aio_pika import AioPikaBroker
from taskiq_nats import NATSObjectStoreResultBackend, PullBasedJetStreamBroker
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from taskiq_flow import (
    ConfigurationError,
    DAGBuilder,
    ExecutionEngine,
    FlowMiddleware,
    broker_for,
)
from taskiq_flow.recommended import ACK_WAIT, IDLE_TIMEOUT
from tests.virtual_clock import run_virtually

REDIS = "redis://user:secret@localhost:6379"


@pytest.mark.parametrize(
    ("url", "options", "kind", "backend"),
    [
        ("redis://localhost", {}, RedisStreamBroker, RedisAsyncResultBackend),
        ("rediss://localhost", {}, RedisStreamBroker, RedisAsyncResultBackend),
        ("nats://localhost", {}, PullBasedJetStreamBroker, NATSObjectStoreResultBackend),
        ("amqp://localhost", {"results": REDIS}, AioPikaBroker, RedisAsyncResultBackend),
    ],
)
def test_an_address_gives_the_recommended_broker(
    url: str, options: dict[str, Any], kind: type, backend: type
) -> None:
    broker = broker_for(url, **options)
    assert isinstance(broker, kind)
    assert type(broker).__name__ == kind.__name__
    assert isinstance(broker.result_backend, backend)
    assert isinstance(vars(broker.result_backend)["serializer"], JSONSerializer)
    assert [type(middleware) for middleware in broker.middlewares] == [FlowMiddleware]


def test_the_task_of_a_killed_worker_comes_again_before_it_is_lost() -> None:
    lost_after = ExecutionEngine(InMemoryBroker(), DAGBuilder().build())._starter._lost_after
    redis, nats = broker_for("redis://localhost"), broker_for("nats://localhost")
    assert isinstance(redis, RedisStreamBroker)
    assert isinstance(nats, PullBasedJetStreamBroker)
    assert nats.consumer_config is not None
    assert redis.idle_timeout == IDLE_TIMEOUT
    assert lost_after > 1.5 * IDLE_TIMEOUT / 1000
    assert nats.consumer_config.ack_wait == ACK_WAIT
    assert lost_after > ACK_WAIT


def test_a_broker_in_memory_runs_graphs() -> None:
    broker = broker_for("memory://", sync_tasks_pool_size=2)
    assert isinstance(broker, InMemoryBroker)
    assert repr(broker) == "InMemoryBroker(sync_tasks_pool_size=2)"
    dag = DAGBuilder().node(lambda: 1, output="one").build()
    assert run_virtually(ExecutionEngine(broker, dag).execute()) == {"one": 1}


def test_a_repr_shows_the_plain_taskiq_without_secrets() -> None:
    backend = (
        "RedisAsyncResultBackend('redis://user:***@localhost:6379', serializer=JSONSerializer(), "
        "result_ex_time=86400)"
    )
    assert repr(broker_for(REDIS, queue_name="mine", idle_timeout=5000, password="x")) == (
        "RedisStreamBroker('redis://user:***@localhost:6379', consumer_id='0', idle_timeout=5000, "
        f"queue_name='mine', password='***').with_result_backend({backend})"
        ".with_middlewares(FlowMiddleware())"
    )
    assert repr(broker_for("amqp://u:secret@host/", results=REDIS)) == (
        f"AioPikaBroker('amqp://u:***@host/', qos=100).with_result_backend({backend})"
        ".with_middlewares(FlowMiddleware())"
    )
    assert "stream_config=StreamConfig(retention=RetentionPolicy.WORK_QUEUE)" in repr(
        broker_for("nats://localhost")
    )


@pytest.mark.parametrize("scheme", ["redis", "nats", "amqp"])
def test_a_store_is_that_of_the_middleware(scheme: str, tmp_path: Path) -> None:
    address = f"file://{tmp_path}"
    broker = broker_for(f"{scheme}://h", results=REDIS, store=address)
    (middleware,) = broker.middlewares
    assert isinstance(middleware, FlowMiddleware)
    assert middleware.wire.store is not None
    assert middleware.wire.store.address == address
    assert repr(broker).endswith(f".with_middlewares(FlowMiddleware(store={address!r}))")


def test_a_store_of_a_broker_in_memory_is_not_used(tmp_path: Path) -> None:
    broker = broker_for("memory://", store=f"file://{tmp_path}")
    dag = DAGBuilder().node(lambda: "x" * 1_000_000, output="large").build()
    assert run_virtually(ExecutionEngine(broker, dag).execute()) == {"large": "x" * 1_000_000}
    assert not list(tmp_path.iterdir())


def test_the_key_of_a_store_is_not_shown(tmp_path: Path) -> None:
    broker = broker_for("redis://h", store="memory://user:secret@bucket")
    assert "store='memory://user:***@bucket'" in repr(broker)


def test_a_store_that_cannot_be_opened_is_told() -> None:
    with pytest.raises(ConfigurationError, match="nosuch"):
        broker_for("redis://h", store="nosuch://bucket")


def test_options_replace_what_is_recommended() -> None:
    broker = broker_for("nats://localhost", durable="mine", subject="jobs")
    assert isinstance(broker, PullBasedJetStreamBroker)
    assert (broker.subject, broker.durable) == ("jobs", "mine")
    assert broker.consumer_config is not None
    assert broker.consumer_config.durable_name == "mine"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "kafka://u:secret@host",
            "does not know what 'kafka://u:.*' is; give .*redis://, .*mem",
        ),
        ("localhost:6379", "does not know what 'localhost:6379' is"),
        ("amqp://u:secret@host", r"RabbitMQ stores no results.*results='redis://"),
    ],
)
def test_an_address_that_is_not_enough_is_told(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        broker_for(url)
    assert "secret" not in str(caught.value)


def test_results_elsewhere_than_on_redis_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="results is 'nats://h'; give the redis://"):
        broker_for("amqp://h", results="nats://h")


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("redis://h", "taskiq_redis", "redis"),
        ("nats://h", "taskiq_nats", "nats"),
        ("amqp://h", "taskiq_aio_pika", "rabbitmq"),
    ],
)
def test_a_missing_package_is_told_with_the_command_that_installs_it(
    url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=rf"pip install 'taskiq-flow\[{extra}\]'"):
        broker_for(url)
