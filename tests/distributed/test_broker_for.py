"""What ``broker_for`` makes runs a graph over a real server, with taskiq's own worker."""

from __future__ import annotations

import os
from pathlib import Path

from taskiq_flow import DAGBuilder, ExecutionEngine, broker_for
from tests.distributed.conftest import Farm
from tests.servers.workers import Workers

BROKER = """
import os
from taskiq_flow import broker_for

broker = broker_for(os.environ["BROKER_URL"], queue_name="recommended")

@broker.task(task_name="double")
def double(number: int) -> int:
    return 2 * number
"""


async def test_a_graph_runs_on_the_recommended_broker(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "recommended_app.py").write_text(BROKER, encoding="utf-8")
    url = farm.redis.url
    environment = {
        "BROKER_URL": url,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]),
    }
    broker = broker_for(url, queue_name="recommended")

    @broker.task(task_name="double")
    def double(number: int) -> int:
        return 2 * number

    await broker.startup()
    folder = tmp_path / "workers"
    with Workers("recommended_app:broker", folder=folder, env=environment, cwd=tmp_path):
        engine = ExecutionEngine(broker, DAGBuilder().node(double).build())
        assert await engine.execute({"number": 21}) == {"double": 42}
    await broker.shutdown()
