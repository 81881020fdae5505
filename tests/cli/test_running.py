"""Runs that commands begin, stop, continue, and that others watch and cancel meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from taskiq_flow import NodeFailure, NodeSkipped, RunReader
from taskiq_flow.cli.output import Results, say, show
from taskiq_flow.cli.signals import Signals
from tests.cli.conftest import Run, Start
from tests.commands import Command

JOURNAL = ("--journal", "runs.db")


@pytest.fixture
def at_gate(folder: Path, start: Start) -> Command:
    """A run that waits at its gate."""
    command = start("run", "flows:gated", *JOURNAL, "--run-id", "r1")
    command.until((folder / "at_gate").exists)
    return command


def status(folder: Path) -> str:
    async def read() -> str:
        reader = RunReader(folder / "runs.db")
        try:
            return (await reader.run("r1")).status
        finally:
            await reader.aclose()

    return asyncio.run(read())


def test_results_are_written_as_they_come_and_progress_elsewhere(run: Run) -> None:
    done = run("run", "flows:nightly", "-i", "url=a.org")
    assert done.output == "fetch: <h1>Tides</h1> read at a.org\ntitle: Tides\n"
    assert "title: completed in" in done.errors
    quiet = run("run", "flows:nightly", "-i", "url=a.org", "--quiet", "--output", "fetch")
    assert (quiet.output, quiet.errors) == ("fetch: <h1>Tides</h1> read at a.org\n", "")


def test_what_tasks_print_is_no_result(run: Run) -> None:
    done = run("run", "flows:louds", "--json-lines", "--quiet")
    assert (done.code, done.output) == (0, '{"node": "loud", "value": 1}\n')
    assert sorted(done.errors.splitlines()) == ["counting", "in a process"]


def test_a_pipeline_is_run_with_its_input(run: Run) -> None:
    done = run("run", "flows:pipeline", "-i", "input=a.org", "--quiet")
    assert done.output == "fetch: <h1>Tides</h1> read at a.org\ntitle: Tides\n"


def test_a_pipeline_that_says_so_has_its_own_run_id(run: Run) -> None:
    quiet = ("-i", "input=a.org", "--quiet", *JOURNAL)
    run("run", "flows:named", *quiet)
    run("run", "flows:named", *quiet, "--run-id", "other")
    lines = [json.loads(line) for line in run("runs", *JOURNAL, "--json-lines").lines]
    assert [(each["run_id"], each["name"]) for each in lines] == [
        ("other", "flows:named"),
        ("tides", "flows:named"),
    ]
    again = run("run", "flows:named", *quiet)
    assert (again.code, again.output) == (3, "")
    assert "run 'tides' is in the journal already" in again.errors


def test_json_lines_have_values_whole(run: Run) -> None:
    done = run("run", "flows:nightly", "-i", f"url={'x' * 5_000}", "--json-lines")
    first, second = map(json.loads, done.lines)
    assert first == {"node": "fetch", "value": f"<h1>Tides</h1> read at {'x' * 5_000}"}
    assert second == {"node": "title", "value": "Tides"}


def test_values_that_json_does_not_carry_are_written_all_the_same(run: Run) -> None:
    (line,) = run("run", "flows:odd_values", "--json-lines").lines
    nan, two, data, day, complex_number, surrogate, point = json.loads(line)["value"]
    assert (nan, two, data, day) == ("NaN", [1, 2], "_w==", "2026-11-26")
    assert complex_number in (
        "1+2j",
        {"kind": "complex", "size": 6, "text": "(1+2j)", "cut": False},
    )
    assert surrogate == "\udc80"
    assert point == {"x": 1, "y": 0}


def test_failures_in_a_list_are_written_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    failure = NodeFailure("odd[1]", "t", ValueError("7 is odd"), 1, 1)
    skipped = NodeSkipped("r", 39684.5, "odd[2]", ("before[2]",), index=2, seq=133)
    Results(json_lines=False).write("odd", [2, failure, [skipped, "x"]])
    assert capsys.readouterr().out == "odd: [2, failed: ValueError: 7 is odd, [skipped, 'x']]\n"
    Results(json_lines=True).write("odd", [2, failure, [skipped, "x"]])
    line = json.loads(capsys.readouterr().out)
    assert line["value"] == [2, None, [None, "x"]]
    error, other = line["missing"]
    assert (error["index"], error["error"]["message"]) == (1, "7 is odd")
    assert other == {"index": 2, "skipped": ["before[2]"]}


def test_what_a_message_has_for_terminals_does_not_reach_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say("error: \x1b[31mred\x07\n\tbelow")
    show("\x9b2J\rover")
    assert capsys.readouterr() == ("\\x9b2J\\rover\n", "error: \\x1b[31mred\\x07\n\tbelow\n")


def test_failures_that_are_collected_are_results(run: Run) -> None:
    lines = [
        json.loads(line)
        for line in run("run", "flows:engine", "-i", "number=7", "--json-lines").lines
    ]
    assert lines[0]["node"] == "odd"
    assert lines[0]["error"]["message"] == "7 is odd"
    assert lines[1] == {"node": "half", "skipped": ["odd"]}


def test_an_element_that_failed_is_told_by_the_exit_code_as_watch_tells_it(run: Run) -> None:
    words = ["flows:mapped", "-i", "numbers=[2, 7]", "--on-error", "collect", "--run-id", "r"]
    assert run("run", *words, *JOURNAL).code == run("watch", "r", *JOURNAL).code == 1


def test_an_engine_keeps_its_options_and_its_listeners(folder: Path, run: Run) -> None:
    assert run("run", "flows:engine", "-i", "number=4").output == "odd: 4\nhalf: 2.0\n"
    assert (folder / "engine.db").exists()
    assert (folder / "events").read_text().split()[0] == "RunStarted"
    done = run("run", "flows:engine", "-i", "number=7", "--on-error", "raise", *JOURNAL)
    assert done.output == ""
    assert (folder / "runs.db").exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_cancels_the_run_which_can_be_resumed(
    folder: Path, run: Run, at_gate: Command, number: signal.Signals, code: int
) -> None:
    at_gate.send(number)
    done = at_gate.wait()
    assert (done.code, done.output) == (code, "")
    assert done.errors.splitlines()[-2:] == [
        "run 'r1' was cancelled",
        "resume it with: taskiq-flow resume r1 flows:gated --journal runs.db",
    ]
    assert status(folder) == "cancelled"
    assert not (folder / "after").exists()
    (folder / "open").touch()
    resumed = run("resume", "r1", "flows:gated", *JOURNAL)
    assert (resumed.code, resumed.output) == (0, "gate: open\nafter: open for all\n")
    assert status(folder) == "completed"


def test_a_sync_task_that_goes_on_holds_nobody_up(folder: Path, start: Start) -> None:
    command = start("run", "flows:blocking")
    command.until((folder / "at_gate").exists)
    command.send(signal.SIGINT)
    assert command.wait().code == 130  # the task takes a minute


def test_the_second_signal_ends_a_command_whose_event_loop_is_blocked(
    folder: Path, start: Start
) -> None:
    command = start("run", "flows:hogging")
    command.until((folder / "at_gate").exists)
    command.send(signal.SIGINT)
    command.send(signal.SIGTERM)  # a second SIGINT could be taken for the first one
    assert command.wait().code == 130  # the task takes a minute


def test_an_asyncio_task_that_does_not_end_holds_nobody_up(run: Run) -> None:
    done = run("run", "flows:leaves_a_task", "-i", "url=a.org")
    assert (done.code, done.output) == (0, "fetch: <h1>Tides</h1> read at a.org\n")


async def test_a_signal_that_is_ignored_stays_so() -> None:
    """As SIGHUP below ``nohup``, and SIGINT in the background of a script."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0)
        assert signals.code is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_journal_may_be_named_by_the_environment(folder: Path, start: Start) -> None:
    env: dict[str, str | None] = {"TASKIQ_FLOW_JOURNAL": "other.db"}
    assert start("run", "flows:make", "-i", "url=x", "--run-id", "r1", env=env).wait().code == 0
    (line,) = start("runs", "--json-lines", env=env).wait().lines
    assert json.loads(line)["run_id"] == "r1"


def test_part_of_a_run_runs_again_under_a_new_name(run: Run) -> None:
    run("run", "flows:nightly", "-i", "url=a.org", *JOURNAL, "--run-id", "r1")
    done = run("rerun", "r1", "flows:nightly", "--from", "title", "--new-run-id", "r2", *JOURNAL)
    assert done.output == "fetch: <h1>Tides</h1> read at a.org\ntitle: Tides\n"
    assert "fetch: completed, from the journal" in done.errors
    assert run("show", "r2", *JOURNAL).lines[5].split() == ["again", "from", "r1"]


def test_nodes_that_take_other_inputs_run_again(folder: Path, run: Run) -> None:
    run("run", "flows:halves", "-i", "number=4", *JOURNAL, "--run-id", "r1")
    again = ("rerun", "r1", "flows:halves", "--quiet", *JOURNAL)
    (folder / "inputs.json").write_text('{"number": 10}')
    for given, output in (
        (("-i", "number=6"), "odd: 6\nhalf: 3.0\n"),
        (("--input-json", "number=8", "--from", "half"), "odd: 8\nhalf: 4.0\n"),
        (("--input-file", "inputs.json"), "odd: 10\nhalf: 5.0\n"),
    ):
        done = run(*again, *given)
        assert (done.code, done.output) == (0, output), done
    for others, code, words in (
        ([], 2, "nothing says what runs again; give --from, --input or both"),
        (["-i", "number=x"], 3, "'x', which cannot be read as int"),
    ):
        done = run(*again, *others)
        assert (done.code, words in done.errors) == (code, True), done


def test_the_command_that_resumes_has_the_options_that_the_run_had(folder: Path, run: Run) -> None:
    options = ("--max-parallel", "2", "--on-error", "continue", "--timeout", "9.5")
    begin = ("run", "flows:halves", "-i", "number=7", "--run-id", "a b", *JOURNAL, *options)
    command = "taskiq-flow resume 'a b' flows:halves --journal runs.db " + " ".join(options)
    assert run(*begin).errors.endswith(f"resume it with: {command}\n")
    assert f"continue it with {command}, or" in run(*begin).errors


def test_a_run_goes_on_with_the_on_error_that_it_was_begun_with(folder: Path, run: Run) -> None:
    begin = ("run", "flows:mapped", "--input-json", "numbers=[2, 3]", "--run-id", "r1", "--quiet")
    assert run(*begin, *JOURNAL, "--on-error", "collect").code == 1
    told = "run 'r1' was begun with --on-error collect, which holds for this one too\n"
    for command in (("resume", "r1"), ("rerun", "r1", "--from", "odd")):
        done = run(*command[:2], "flows:mapped", *command[2:], *JOURNAL, "--quiet")
        assert (done.code, done.errors) == (1, told)
        assert "failed: ValueError: 3 is odd" in done.output
    other = run("resume", "r1", "flows:mapped", *JOURNAL, "--quiet", "--on-error", "raise")
    assert (other.code, told in other.errors) == (1, False)
    assert "error: node 'odd[1]' failed" in other.errors


def test_others_watch_and_cancel_a_run(
    folder: Path, start: Start, run: Run, at_gate: Command
) -> None:
    watching = start("watch", "r1", *JOURNAL)
    following = start("watch", "r1", *JOURNAL, "--json-lines", "--quiet")
    following.until(lambda: "node.began" in following.output)
    leaving = start("watch", "r1", *JOURNAL)
    leaving.until(lambda: "gate: running" in leaving.errors)
    leaving.send(signal.SIGINT)
    left = leaving.wait()
    assert left.code == 130
    assert "run 'r1' goes on" in left.errors

    assert run("cancel", "r1", *JOURNAL).errors == "run 'r1' is cancelled\n"
    assert at_gate.wait().code == 130
    watched = watching.wait()
    assert watched.code == 130
    assert "run r1: cancelled in" in watched.errors
    followed = following.wait()
    assert json.loads(followed.lines[0])["type"] == "run.started"
    assert json.loads(followed.lines[-1])["outcome"] == "cancelled"
    assert followed.errors == ""
    again = run("cancel", "r1", *JOURNAL)
    assert (again.code, again.errors) == (
        0,
        "run 'r1' was cancelled, so there was nothing to cancel\n",
    )


def test_a_run_in_progress_is_not_run_again(folder: Path, run: Run, at_gate: Command) -> None:
    again = ("rerun", "r1", "flows:gated", "--from", "gate", "--quiet", *JOURNAL)
    refused = run(*again)
    assert (refused.code, refused.output) == (5, "")
    assert (
        "run 'r1' is in progress, and what it has yet to do would be done twice" in refused.errors
    )
    (folder / "open").touch()
    assert at_gate.wait().code == 0
    assert run(*again).output == "gate: open\nafter: open for all\n"


def test_watching_ends_with_the_code_of_the_run(
    folder: Path, start: Start, run: Run, at_gate: Command
) -> None:
    watching = start("watch", "r1", *JOURNAL)
    watching.until(lambda: "gate: running" in watching.errors)
    (folder / "open").touch()
    assert at_gate.wait().code == 0
    assert watching.wait().code == 0
    run("run", "flows:halves", "-i", "number=7", *JOURNAL, "--run-id", "r2")
    failed = run("watch", "r2", *JOURNAL)
    assert failed.code == 1
    assert "odd: failed: ValueError: 7 is odd" in failed.errors


def test_a_run_whose_engine_is_killed_is_interrupted(
    folder: Path, start: Start, run: Run, at_gate: Command
) -> None:
    watching = start("watch", "r1", *JOURNAL)
    watching.until(lambda: "gate: running" in watching.errors)
    at_gate.send(signal.SIGKILL)
    assert at_gate.wait().code == -signal.SIGKILL
    watched = watching.wait()
    assert watched.code == 5
    assert "run 'r1' is interrupted" in watched.errors
    rows = [line.split(maxsplit=2) for line in run("show", "r1", *JOURNAL).lines[-2:]]
    assert rows[0][0] == "!"
    assert [row[1:] for row in rows] == [["gate", "interrupted"], ["after", "pending"]]
    again = run("cancel", "r1", *JOURNAL)
    words = "run 'r1' is interrupted and no engine has it, so there was nothing to cancel\n"
    assert (again.code, again.errors) == (0, words)


def test_a_closed_pipe_ends_the_run_quietly(folder: Path, start: Start) -> None:
    os.mkfifo(folder / "pipe")
    command = start("run", "flows:gated", "--quiet", stdout=str(folder / "pipe"))
    with (folder / "pipe").open():
        command.until((folder / "at_gate").exists)
    (folder / "open").touch()
    done = command.wait()
    assert (done.code, done.errors) == (141, "")


def test_the_broker_is_that_of_the_tasks_or_the_one_that_is_named(folder: Path, run: Run) -> None:
    (folder / "tasks.py").write_text(BROKERS)
    assert run("run", "tasks:one").output == "first: 1\n"
    refused = run("run", "tasks:both")
    assert (refused.code, refused.output) == (2, "")
    assert "belong to 2 brokers; say which one runs it with --broker" in refused.errors
    assert run("run", "tasks:plain", "--broker", "tasks:a").output == "plain: 3\n"


BROKERS = """
from taskiq import InMemoryBroker
from taskiq_flow import DAGBuilder
a, b = InMemoryBroker(), InMemoryBroker()
@a.task
def first(): return 1
@b.task
def second(): return 2
def plain(): return 3
one = DAGBuilder().node(first).build()
both = DAGBuilder().node(first).node(second).build()
plain = DAGBuilder().node(plain).build()
"""
