"""Prefect: ``map`` over the futures of the stage before, with a server of its own meanwhile."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from typing import Any

from benchmarks.sleeps import LIMIT, STAGES, Sleeps, Taken

# Its settings are read as it is imported. It is to tell nobody that it runs, and to leave the
# user's own profile alone.
_HOME = tempfile.TemporaryDirectory()
os.environ |= {
    "DO_NOT_TRACK": "1",
    "PREFECT_HOME": _HOME.name,
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_ROOT_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
}

from prefect import Flow, task  # noqa: E402 - behind its settings
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402 - behind its settings
from prefect.testing.utilities import prefect_test_harness  # noqa: E402 - behind its settings


class Peer:
    """``Task.map`` in a flow with threads."""

    title = "Prefect, map"
    most_items = 64

    async def take(self, sleeps: Sleeps) -> Taken:
        """Map three times within a flow, beside a server that is up."""
        return await asyncio.to_thread(self._take, sleeps)

    def _take(self, sleeps: Sleeps) -> Taken:
        stages = [task(sleeps.function(number)) for number in range(STAGES)]

        def chained() -> None:
            values: Any = list(range(len(sleeps.seconds[0])))
            for stage in stages:
                values = stage.map(values)
            values.result()

        flow = Flow(chained, task_runner=ThreadPoolTaskRunner(max_workers=LIMIT))
        with prefect_test_harness():
            start = time.perf_counter()
            flow()
            return sleeps.taken(start)
