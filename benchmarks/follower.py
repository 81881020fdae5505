"""Follows a run in a process of its own: ``python -m benchmarks.follower JOURNAL RUN``.

Writes how many seconds after each event it was seen, by the system's clock, as a list in JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from taskiq_flow import RunNotFoundError, RunReader, RunStarted


async def main(path: str, run_id: str) -> None:
    """Follow the run until its end."""
    reader = RunReader(path)
    print("ready", flush=True)
    ahead, delays = 0.0, list[float]()
    while not delays:
        try:
            async for event in reader.events(run_id, follow=True):
                if isinstance(event, RunStarted):
                    ahead = event.time - event.at
                else:  # the first one may have been there already
                    delays.append(time.time() - event.at - ahead)
        except RunNotFoundError:  # it has not begun yet
            await asyncio.sleep(0.01)
    await reader.aclose()
    print(json.dumps(delays))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
