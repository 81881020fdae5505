"""One run that several engines continue, one after the other, and checks of its results."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskiq_flow import RunNotFoundError
from taskiq_flow.journal.history import RestoredRun, restore_run
from tests.distributed.app import write
from tests.distributed.watching import Notes
from tests.resuming.app import PATH, Death, Job, is_file, journal_at
from tests.resuming.nursery import LONGEST, Engine, Nursery


class LongRun:
    """A run, begun by the first of its ``engines`` and resumed by the others.

    ``expected``: what its nodes give. ``kept``: for each kill, the nodes whose results the journal
    had then, in their order there.
    """

    def __init__(self, job: Job, folder: Path, expected: Mapping[str, Any]) -> None:
        folder.mkdir(exist_ok=True)
        self.notes = Notes(folder)
        self.job = replace(job, inputs={**job.inputs, PATH: str(self.notes.path)})
        self.expected = expected
        self.engines: list[Engine] = []
        self.kept: list[list[str]] = []

    async def live(self, nursery: Nursery, death: Death | None = None) -> Engine:
        """Have one engine more, which resumes the run if the journal has it."""
        resumes = bool(self.engines) and await self.restored() is not None
        job = replace(self.job, resumes=resumes, death=death)
        engine = await nursery.engine(job)
        if resumes and not is_file(job.journal):
            async with asyncio.timeout(LONGEST):  # the lease of an engine that was killed ends
                await engine.read(1)
                while engine.error == "RunLockedError":
                    await asyncio.sleep(0.25)
                    engine = await nursery.engine(job)
                    await engine.read(1)
        self.engines.append(engine)
        return engine

    async def killed(self, engine: Engine) -> None:
        """See to it that an engine is dead, and note what it has left."""
        if not engine.has_ended:
            await engine.kill()
        restored = await self.restored()
        write(str(self.notes.path), "killed -")
        self.kept.append([] if restored is None else list(restored.results))

    async def finish(self, nursery: Nursery) -> Engine:
        """Have an engine that is not killed."""
        engine = await self.live(nursery)
        async with asyncio.timeout(LONGEST):
            await engine.read()
        return engine

    async def restored(self) -> RestoredRun | None:
        """What the journal has of the run, if anything."""
        journal = journal_at(self.job.journal)
        try:
            return await restore_run(journal, self.job.run_id)
        except RunNotFoundError:
            return None
        finally:
            await journal.aclose()

    @property
    def executions(self) -> Counter[str]:
        """How often each node was begun."""
        return Counter(self.notes.of("begin"))

    def complaints(self) -> Iterator[str]:
        """What is not as it should be, once the run has ended and all its tasks have."""
        last = self.engines[-1]
        if last.error:
            yield f"ended with {last.error}"
        if len(last.pairs) != len(dict(last.pairs)):
            yield f"a pair came twice: {last.pairs}"
        for name, value in self.expected.items():
            if (given := dict(last.pairs).get(name, "missing")) != value:
                yield f"{name} is {given!r} and should be {value!r}"
        names = [name for name, _ in last.pairs]
        for number, (engine, kept) in enumerate(zip(self.engines, self.kept, strict=False), 1):
            # What was yielded was kept, and comes again: first, in the same order, and the same.
            if len(engine.pairs) > len(kept):
                yield f"engine {number} yielded more than {kept}: {engine.pairs}"
            if engine.pairs != last.pairs[: len(engine.pairs)] or kept != names[: len(kept)]:
                yield f"after kill {number}, {kept} and {engine.pairs} became {last.pairs}"
        yield from self._executed_too_often()

    def _executed_too_often(self) -> Iterator[str]:
        for number, after in enumerate(self._begun_after_kills()):
            if again := after.intersection(self.kept[number]):
                yield f"executed again after kill {number + 1}: {sorted(again)}"
        for name, count in self.executions.items():
            if count > (most := 1 + sum(name not in kept for kept in self.kept)):
                yield f"{name} was executed {count} times, and {most} at the most are explained"
        if self.job.settings.kind == "in-memory":
            lines = Counter(line for line in self._lines() if line.startswith("begin "))
            if twice := [line for line, count in lines.items() if count > 1]:
                yield f"executed twice by one engine: {twice}"

    def _begun_after_kills(self) -> list[set[str]]:
        """For each kill, the nodes that were begun at any time after it."""
        after: list[set[str]] = []
        for line in self._lines():
            word, name = line.split()[:2]
            if word == "killed":
                after.append(set())
            elif word == "begin":
                for names in after:
                    names.add(name)
        return after

    def _lines(self) -> list[str]:
        return self.notes.path.read_text(encoding="utf-8").splitlines()


def integrity_of(journal: str) -> str:
    """What SQLite says of a journal's file: ``"ok"``."""
    with closing(sqlite3.connect(journal)) as connection:
        said: str = connection.execute("PRAGMA integrity_check").fetchone()[0]
    return said
