"""What commands show of earlier runs, and what they delete."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAGBuilder,
    ElementsKnown,
    Event,
    EventBatch,
    ExecutionEngine,
    Lease,
    MemoryJournal,
    NodeBegan,
    NodeCompleted,
    NodeFailedError,
    NodeStarted,
    RunReader,
    RunReport,
    RunStarted,
    RunSummary,
    SqliteJournal,
)
from taskiq_flow.cli import history
from taskiq_flow.previews import duration
from tests.cli import flows
from tests.cli.conftest import Run
from tests.journal.events_contract import line_of

JOURNAL = ("--journal", "runs.db")


@pytest.fixture
def journal(folder: Path, run: Run) -> Path:
    """A journal with a run that has completed and, after it, one that has failed."""
    run("run", "flows:nightly", "-i", "url=a.org", "--run-id", "good", "-q", *JOURNAL)
    run("run", "flows:mapped", "-i", "numbers=[2, 7, 9]", "--run-id", "bad", "-q", *JOURNAL)
    return folder / "runs.db"


def test_runs_are_found_by_their_tags(journal: Path, run: Run) -> None:
    tags = ("--tag", "customer 7", "--tag", "trial")
    run("run", "flows:nightly", "-i", "url=a.org", "--run-id", "tagged", "-q", *tags, *JOURNAL)
    heads, tagged, bad, _ = run("runs", *JOURNAL).lines
    assert heads.split()[-1] == "tags"
    assert tagged.endswith("customer 7, trial")
    assert not bad.endswith("trial")
    (only,) = run("runs", *JOURNAL, "--json-lines", "--tag", "customer 7").lines
    assert json.loads(only)["tags"] == ["customer 7", "trial"]
    assert "tags       customer 7, trial" in run("show", "tagged", *JOURNAL).output
    assert run("runs", *JOURNAL, "--json-lines", "--tag", "customer").lines == []
    assert run("runs", *JOURNAL, "--json-lines", *tags).lines == [only]
    assert run("runs", *JOURNAL, "--json-lines", *tags, "--tag", "other").lines == []
    again = ("rerun", "tagged", "flows:nightly", "--from", "fetch", "--new-run-id", "again", "-q")
    run(*again, "--tag", "second try", *JOURNAL)
    run("resume", "tagged", "flows:nightly", "--tag", "seen", "-q", *JOURNAL)
    shown = run("runs", *JOURNAL, "--json-lines", "--tag", "customer 7").lines
    assert [json.loads(line)["tags"] for line in shown] == [
        ["customer 7", "trial", "second try"],
        ["customer 7", "trial", "seen"],
    ]


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
    assert good[2].split() == ["found", "at", "flows:nightly"]
    assert re.fullmatch(r"  ✓  title  completed in \d+ ms +Tides", good[-1])
    bad = run("show", "bad", *JOURNAL).output
    assert re.search(r"^  ✗  odd +failed, ", bad, re.MULTILINE)
    assert re.search(r"\nodd\[(1|2)\] \((7|9)\):\nTraceback ", bad)
    assert re.search(r"^ValueError: [79] is odd$", bad, re.MULTILINE)
    assert bad.count("flows.py") == 1


async def test_the_first_elements_that_failed_are_named_and_the_others_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    journal = MemoryJournal()
    engine = ExecutionEngine(InMemoryBroker(), flows.mapped, journal=journal, on_error="collect")
    await engine.execute({"numbers": range(1, 17, 2)}, run_id="r")
    reader = RunReader(journal)
    run, view = await reader.run("r"), await reader.view("r")
    history._show_state(run, view)
    lines = capsys.readouterr().out.splitlines()
    elements = view.nodes["odd"].elements
    assert elements is not None
    names = {f"odd[{n}]": f"odd[{n}] ({number})" for n, number in enumerate(range(1, 17, 2))}
    first, *others = [(names[node.name], node.error) for node in elements.records.values()]
    at = lines.index(f"{first[0]}:")
    assert lines[at + 1].startswith("Traceback ")
    assert lines[-6].startswith("ValueError: ")
    assert lines[-5:] == [
        *(f"{name}: ValueError: {error['message']}" for name, error in others[:4] if error),
        "and 3 more elements failed",
    ]


async def test_what_was_in_flight_when_the_engine_went_does_not_run_any_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    journal, lease = MemoryJournal(), Lease("an engine")
    events: list[Event] = [
        RunStarted(
            "r", 0.5, ("read", "load"), 1.7e9, mapped={"read": 1}, seq=1, on_error="collect"
        ),
        ElementsKnown("r", 0.5, "read", 9, 2),
        *(NodeStarted("r", 0.5, f"read[{n}]", "", n, seq=3 + n) for n in range(3)),
        NodeBegan("r", 0.5, "read[0]", "", "host:7", 0, seq=6),
        NodeCompleted("r", 0.75, "read[2]", "", 7, index=2, seq=7),
        NodeStarted("r", 0.75, "load", "", seq=8),
    ]
    summary = RunSummary("r", "running", "nightly", 1.7e9, seq=8)
    await journal.create("r", lease, b"", EventBatch(line_of(*events), summary))
    await journal.release("r", lease)
    reader = RunReader(journal)
    history._show_state(await reader.run("r"), await reader.view("r"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "! r  interrupted, last event after 250 ms; 2 interrupted"
    assert "  on error   collect" in lines
    assert [line.split(maxsplit=2) for line in lines[-2:]] == [
        ["!", "read", "interrupted, 1/9, 2 interrupted"],
        ["!", "load", "interrupted"],
    ]


async def test_a_run_that_goes_on_has_taken_until_now(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, began = str(folder / "runs.db"), time.time() - 7200.0
    journal = SqliteJournal(path)
    started = RunStarted("r", 0.5, ("read",), began, seq=1)
    summary = RunSummary("r", "running", "nightly", began, seq=1)
    await journal.create("r", Lease("an engine"), b"", EventBatch(line_of(started), summary))
    took = str(history._row_of_run(await RunReader(journal).run("r"))[4])
    assert took.startswith("2 h")
    for as_what, text in (("state", "running for"), ("report", "running in")):
        await history.show_run(path, "r", as_what=as_what, trace=None)  # type: ignore[arg-type]
        assert f"{text} {took}" in capsys.readouterr().out
    await journal.aclose()


def test_only_a_run_that_can_be_resumed_is_said_to_be(folder: Path, run: Run) -> None:
    async def interrupted(run_id: str, *, is_resumable: bool) -> None:
        lease = Lease("an engine")
        started = RunStarted(run_id, 0.5, ("read",), 1.7e9, seq=1)
        summary = RunSummary(run_id, "running", "nightly", 1.7e9, seq=1, is_resumable=is_resumable)
        chunk = b"" if is_resumable else None
        journal = SqliteJournal(folder / "runs.db")
        await journal.create(run_id, lease, chunk, EventBatch(line_of(started), summary))
        await journal.release(run_id, lease)
        await journal.aclose()

    words = "is interrupted: its engine is gone"
    asyncio.run(interrupted("kept", is_resumable=True))
    asyncio.run(interrupted("told", is_resumable=False))
    kept, told = (run("watch", run_id, "-q", *JOURNAL).errors for run_id in ("kept", "told"))
    assert kept == f"run 'kept' {words}; continue it with resume\n"
    assert told == f"run 'told' {words}\n"


async def test_a_run_that_was_resumed_says_what_its_times_are_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    journal = MemoryJournal()
    dag = DAGBuilder("nightly").node(flows.odd, inputs={"number": "n"}).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
    with pytest.raises(NodeFailedError):
        await engine.execute({"n": 7}, run_id="r")
    with pytest.raises(NodeFailedError):
        await engine.start_resume("r")
    reader = RunReader(journal)
    view = await reader.view("r")
    assert view.time is not None
    started, ended = view.time - 30.0, view.time + view.seconds
    run = replace(await reader.run("r"), started=started, ended=ended)
    history._show_state(run, view)
    shown = capsys.readouterr().out.splitlines()
    assert f"failed in {history._row_of_run(run)[4]};" in shown[0]
    (line,) = (text for text in shown if "sessions" in text)
    assert line.split(maxsplit=1)[1] == (
        f"2; the last took {duration(view.seconds)}, and times of nodes are its"
    )
    assert f"failed in {view.seconds:.3f} s of session 2" in next(RunReport.of(view).lines())


def test_a_resume_that_runs_nothing_leaves_what_is_shown_of_a_run(journal: Path, run: Run) -> None:
    def shown() -> tuple[float, list[str]]:
        (only,) = run("runs", *JOURNAL, "--json-lines", "--name", "nightly").lines
        lines = run("show", "good", *JOURNAL).lines
        return json.loads(only)["ended"], [line for line in lines if "engine" not in line]

    events = ("show", "good", "--json-lines", *JOURNAL)
    before, count = shown(), len(run(*events).lines)
    run("resume", "good", "flows:nightly", "-q", *JOURNAL)
    assert shown() == before
    assert len(run(*events).lines) > count


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
    await journal.create("r", lease, b"", EventBatch(line_of(started), summary))
    view = await history.watched(RunReader(journal), "r", json_lines=True, quiet=True)
    assert (view.status, view.sessions, [*view.nodes]) == ("completed", 1, ["fetch", "title"])
    written = capsys.readouterr()
    kinds = [json.loads(line)["type"] for line in written.out.splitlines()]
    assert kinds[:3] == ["run.started", "reset", "run.started"]
    assert kinds[-1] == "run.ended"
    assert "run 'r' was deleted; another one has its id" in written.err
