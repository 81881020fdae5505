"""The program whose processes are killed: each job that it reads becomes an engine of its own.

Python takes long to start. So this one does once, and is copied (by ``fork``) for each job; it
tells in JSON lines which process a copy is, what pairs that one yields, and how it has ended.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sqlite3
import sys
import traceback
from contextlib import aclosing
from typing import Any, NoReturn

from taskiq_flow import ExecutionEngine, ResultHandle, SqliteJournal
from taskiq_flow.journal import Journal, Lease
from taskiq_flow.journal.records import COMPLETED, REFERRED, records
from tests.distributed.app import broker_of
from tests.resuming.app import Death, Job, journal_at, with_tasks


def main() -> None:
    engine = 0
    for line in sys.stdin:
        if engine:
            os.waitpid(engine, 0)
        engine = os.fork()
        if not engine:
            run(Job.loaded(line))
        # It is looked at and left a zombie, so that its pid stays its own: it may yet be killed.
        end = os.waitid(os.P_PID, engine, os.WEXITED | os.WNOWAIT)
        assert end is not None
        has_exited = end.si_code == os.CLD_EXITED
        tell({"status": end.si_status if has_exited else -end.si_status})


def tell(message: Any) -> None:
    """Write a line at once: a process that is killed has written it or has not."""
    os.write(1, f"{json.dumps(message)}\n".encode())


def run(job: Job) -> NoReturn:
    tell({"pid": os.getpid()})
    try:
        asyncio.run(yield_pairs(job))
    except BaseException as error:
        traceback.print_exc()
        tell({"error": type(error).__name__})
    finally:
        sys.stderr.flush()
        os._exit(0)


async def yield_pairs(job: Job) -> None:
    journal = journal_at(job.journal)
    if job.death is not None:
        destine(journal, job.death)
    broker = with_tasks(broker_of(job.settings))
    await broker.startup()
    dag, options = job.graph(broker), {"journal": journal, "pass_by": job.pass_by}
    engine = ExecutionEngine(broker, dag, job.max_parallel, **options)
    begun = engine.resume(job.run_id) if job.resumes else None
    async with aclosing(begun or engine.execute_async(job.inputs, run_id=job.run_id)) as pairs:
        async for name, value in pairs:
            read = await value.get() if isinstance(value, ResultHandle) else value
            tell([name, read])
    await broker.shutdown()
    await journal.aclose()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def destine(journal: Journal, death: Death) -> None:
    """Have the process die at a moment in the life of its journal."""
    if death.when == "at":
        trace_sqlite(death)
        assert isinstance(journal, SqliteJournal)
        return
    append: Any = journal.append
    numbers = itertools.count(1)
    results = 0

    async def append_and_die(
        run_id: str, lease: Lease, chunk: bytes | None, batch: Any = None
    ) -> None:
        nonlocal results
        if chunk is None:  # events only
            await append(run_id, lease, None, batch)
            return
        before = results
        results += sum(entry.kind in (COMPLETED, REFERRED) for entry in records(chunk))
        number = next(numbers)
        is_it = number == death.number
        if death.what == "result":
            is_it = before < death.number <= results
        if is_it and death.when == "before":
            die()
        if is_it and death.when == "while":
            await asyncio.Event().wait()
        await append(run_id, lease, chunk, batch)
        if is_it:
            die()

    journal.append = append_and_die  # type: ignore[method-assign]


def trace_sqlite(death: Death) -> None:
    """Have every connection look at what it is about to execute."""
    connect, numbers = sqlite3.connect, itertools.count(1)

    def look(statement: str) -> None:
        if statement.strip().startswith(death.what) and next(numbers) == death.number:
            die()

    def connect_traced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **kwargs)
        connection.set_trace_callback(look)
        return connection

    sqlite3.connect = connect_traced  # type: ignore[assignment]


if __name__ == "__main__":
    main()
