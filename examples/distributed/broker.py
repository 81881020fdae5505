"""The census of ``source_census.py`` on Redis: what its workers and its driver have in common.

Workers import this module, and so does ``drive.py``. Plain callables do for the embedded broker;
elsewhere each task must be registered under a name that the workers know, so the loop in
``make_dag`` takes every function from the embedded graph and registers it with this broker. Only
``parse_files`` is written anew, as it maps over this broker, from within a worker.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from taskiq.serializers import JSONSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from taskiq_flow import DAG, DAGNode, FlowMiddleware, MapReduce

sys.path.append(str(Path(__file__).parents[1]))  # the embedded census is there

import source_census
from source_facts import facts_of
from source_findings import ByFile

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

parse_file = broker.register_task(facts_of, task_name="parse_file")


@broker.task(task_name="parse_files")
async def parse_files(base: str, paths: list[str]) -> list[ByFile]:
    """The facts of all these files, each parsed by whichever worker is free."""
    full_paths = [f"{base}/{path}" for path in paths]
    limit = source_census.MAX_PARALLEL
    mapped = await MapReduce.map(broker, parse_file, full_paths, max_parallel=limit)
    facts = {paths[index]: value async for index, value in mapped}
    return [
        {path: facts[path][kind] for path in paths if kind in facts[path]}
        for kind in source_census.KINDS_OF_FACTS
    ]


def make_dag() -> DAG:
    """The graph of the embedded census, with tasks of this broker in the places of its own."""
    embedded = source_census.make_dag()
    dag = DAG()
    for node in embedded.nodes:
        if node.task is source_census.parse_files:
            task = parse_files
        else:
            function = getattr(node.task, "original_func", node.task)
            task = broker.register_task(function, task_name=node.task_name)
        dag.add_node(
            DAGNode(task, outputs=node.outputs, inputs=node.inputs, name=node.task_name),
        )
    for before, after in embedded.edges:
        dag.add_edge(before.task_name, after.task_name)
    return dag


dag = make_dag()  # when this module is imported, so that workers know its tasks
