"""What commands show of earlier runs, and what they delete."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    ExecutionEngine,
    Lease,
    MemoryJournal,
    News,
    RunReader,
    RunStarted,
    RunSummary,
)
from taskiq_flow.cli import history
from taskiq_flow.journal.wire import LineWriter
from tests.cli import flows
from tests.cli.conftest import Run

JOURNAL = ("--journal", "runs.db")


@pytest.fixture
def journal(folder: Path, run: Run) -> Path:
    """A journal with a run that has completed and, after it, one that has failed."""
    run("run", "flows:nightly", "-i", "url=a.org", "--run-id", "good", "-q", *JOURNAL)
    run("run", "flows:mapped", "-i", "numbers=[2, 7, 9]", "--run-id", "bad", "-q", *JOURNAL)
    return folder / "runs.db"


def test_runs_are_listed_shown_and_deleted(journal: Path, run: Run) -> None:
    heads, bad, good = run("runs", *JOURNAL).lines
    assert heads.split() == ["run", "status", "started", "took", "done", "graph"]
    assert bad.split()[:3] == ["✗", "bad", "failed"]
    assert good.split()[:3] == ["✓", "good", "completed"]
    assert good.split()[-2:] == ["2/2", "nightly"]
    assert len({line.index(word) for line, word in ((bad, "failed"), (good, "completed"))}) == 1
    only = [json.loads(line) for line in run("runs", *JOURNAL, "--json-lines").lines]
    assert [each["run_id"] for each in only] == ["bad", "good"]
    for options, names in [
        (["--status", "failed"], ["bad"]),
        (["--name", "nightly", "--since", "2h"], ["good"]),
        (["--limit", "1"], ["bad"]),
        (["--since", "2999-01-01"], []),
    ]:
        lines = run("runs", *JOURNAL, "--json-lines", *options).lines
        assert [json.loads(line)["run_id"] for line in lines] == names
    assert run("runs", *JOURNAL, "--status", "running").errors == "no runs\n"

    assert run("delete", "--older-than", "1h", *JOURNAL).output == ""
    assert run("delete", "--keep", "1", *JOURNAL).output == "good\n"
    assert run("delete", "bad", *JOURNAL).output == "bad\n"
    assert run("runs", *JOURNAL).output == ""


def test_a_run_is_shown_with_its_nodes_and_errors(journal: Path, run: Run) -> None:
    good = run("show", "good", *JOURNAL).lines
    assert re.fullmatch(r"✓ good  completed in \d+ ms; 2 completed", good[0])
    assert good[1].split() == ["graph", "nightly"]
    assert re.fullmatch(r"  ✓  title  completed in \d+ ms +Tides", good[-1])
    bad = run("show", "bad", *JOURNAL).output
    assert re.search(r"^  ✗  odd +failed, ", bad, re.MULTILINE)
    assert bad.endswith((" 7 is odd\n", " 9 is odd\n"))
    assert bad.count("flows.py") == 1


def test_the_report_has_a_sentence_a_timeline_and_numbers(journal: Path, run: Run) -> None:
    lines = run("show", "good", "--report", *JOURNAL).lines
    assert lines[0].startswith("run good: completed in")
    assert " s of " in lines[1]
    bars = [line for line in lines if "█" in line]
    assert [line.split()[1] for line in bars[:2]] == ["fetch", "title"]
    assert lines[-1].startswith("* on the critical path; times in seconds")
    assert max(map(len, lines)) <= 80


def test_events_and_traces_are_written_as_json(journal: Path, run: Run) -> None:
    events = [json.loads(line) for line in run("show", "good", "--json-lines", *JOURNAL).lines]
    assert [event["seq"] for event in events] == [*range(1, len(events) + 1)]
    assert [events[0]["type"], events[-1]["type"]] == ["run.started", "run.ended"]
    done = run("show", "good", "--trace", "trace.json", *JOURNAL)
    assert (done.output, done.errors) == (
        "",
        "wrote trace.json, which https://ui.perfetto.dev opens\n",
    )
    trace = json.loads((journal.parent / "trace.json").read_text())
    assert {"fetch", "title"} <= {event["name"] for event in trace["traceEvents"]}


def test_where_signs_cannot_be_written_there_are_others(journal: Path, run: Run) -> None:
    assert run("runs", *JOURNAL, encoding="ascii").lines[1].startswith("x  bad")
    report = run("show", "good", "--report", *JOURNAL, encoding="latin-1").output
    assert "#" in report
    assert "?" not in report


async def test_a_run_in_the_place_of_the_watched_one_is_watched_from_its_beginning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Replacing(MemoryJournal):
        """Another run takes the place of the first one once somebody waits for changes."""

        async def changed(self, run_id: str, mark: object, seconds: float) -> object:
            if mark is None:
                await self.release("r", lease)
                await self.delete("r")
                await engine.execute({"url": "a.org"}, run_id="r")
            return await super().changed(run_id, mark, seconds)

    journal, lease = Replacing(), Lease("another engine")
    engine = ExecutionEngine(InMemoryBroker(), flows.nightly, journal=journal)
    started = RunStarted("r", 0.5, ("old",), 1.7e9, seq=1)
    summary = RunSummary("r", "running", "nightly", 1.7e9, seq=1)
    await journal.create("r", lease, b"", News(LineWriter("r").lines([started]), summary))
    view = await history.watched(RunReader(journal), "r", json_lines=True, quiet=True)
    assert (view.status, view.sessions, [*view.nodes]) == ("completed", 1, ["fetch", "title"])
    written = capsys.readouterr()
    kinds = [json.loads(line)["type"] for line in written.out.splitlines()]
    assert kinds[:3] == ["run.started", "reset", "run.started"]
    assert kinds[-1] == "run.ended"
    assert "run 'r' was deleted; another one has its id" in written.err
