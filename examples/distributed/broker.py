"""The census of ``source_census.py`` on Redis: what its workers and its driver have in common.

Workers import this module, and so does ``drive.py``. Plain callables do for the embedded broker;
elsewhere each task must be registered under a name that the workers know. So the graph is the
embedded one, made of functions that are registered with this broker.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskiq import AsyncTaskiqDecoratedTask
from taskiq.serializers import JSONSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from taskiq_flow import FlowMiddleware

sys.path.append(str(Path(__file__).parents[1]))  # the embedded census is there

import source_census
from source_facts import facts_of

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
IDLE_SECONDS = 10.0  # 1.5 times that is less than lost_after, 60 s

results = RedisAsyncResultBackend[object](
    REDIS_URL,
    serializer=JSONSerializer(),  # the default is pickle, which executes what it reads
    result_ex_time=3600,
)
broker = (
    RedisStreamBroker(
        REDIS_URL,
        queue_name="census",
        xread_count=1,  # none takes what it would only hold while another is idle
        consumer_id="0",  # workers that start late find what was sent before
        idle_timeout=round(1000 * IDLE_SECONDS),  # a killed worker's tasks are another's then
    )
    .with_result_backend(results)
    .with_middlewares(FlowMiddleware())
)


def as_task(function: Callable[..., Any]) -> AsyncTaskiqDecoratedTask[..., Any]:
    """The function as a task of this broker."""
    return broker.register_task(function, task_name=function.__name__)


dag = source_census.make_dag(facts_of, as_task)  # on import, so that workers know its tasks
