"""A broker with a task, to try worker processes with."""

from __future__ import annotations

import os
from typing import Any

from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend


def add(left: int, right: int) -> tuple[int, int]:
    """Give a sum and the pid of the worker process it was made in."""
    return left + right, os.getpid()


def make_broker() -> ListQueueBroker:
    """Make a broker of the Redis the environment names."""
    url = os.environ["REDIS_URL"]
    results: RedisAsyncResultBackend[Any] = RedisAsyncResultBackend(url)
    broker = ListQueueBroker(url).with_result_backend(results)
    assert isinstance(broker, ListQueueBroker)
    broker.register_task(add, task_name="add")
    return broker
