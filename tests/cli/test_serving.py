"""The page of the runs is served until Ctrl-C, and opened by the address that is written."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.cli.conftest import Run, Start
from tests.commands import Command

SERVE = ("serve", "--journal", "runs.db", "--port", "0")


@pytest.fixture
def journal(folder: Path, run: Run) -> Path:
    """A journal with the run ``r1``."""
    given = ("-i", "url=a.org", "--journal", "runs.db", "--run-id", "r1", "--quiet")
    assert run("run", "flows:nightly", *given).code == 0
    return folder / "runs.db"


def address_of(command: Command) -> str:
    command.until(lambda: command.output.endswith("\n"))
    return command.output.strip()


def read(url: str, token: str = "", body: bytes | None = None) -> Any:
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    with urlopen(Request(url, body, headers)) as response:  # noqa: S310 - the address of the test
        return json.load(response)


def refusal_of(url: str, body: bytes | None = None) -> int:
    with pytest.raises(HTTPError) as caught:
        read(url, body=body)
    caught.value.close()
    return caught.value.code


def test_runs_and_graphs_are_served_until_ctrl_c(journal: Path, start: Start) -> None:
    command = start(*SERVE, "flows:nightly", "flows:make")
    address = address_of(command)
    assert address.startswith("http://127.0.0.1:")
    runs = read(f"{address}/api/v1/runs")
    assert [run["run"] for run in runs["runs"]] == ["r1"]
    dags = read(f"{address}/api/v1/dags")
    assert [dag["name"] for dag in dags["dags"]] == [
        "nightly",
        "flows:make",
    ]
    assert refusal_of(f"{address}/api/v1/runs/r1/cancel", b"{}") == 403  # it is read-only
    command.send(signal.SIGINT)
    done = command.wait()
    assert (done.code, done.output, done.errors) == (130, f"{address}\n", "")


def test_with_control_runs_can_be_cancelled(journal: Path, start: Start) -> None:
    command = start(*SERVE, "--control")
    url = f"{address_of(command)}/api/v1/runs/r1/cancel"
    assert refusal_of(url, b"{}") == 409  # nobody has the run any more
    command.send(signal.SIGINT)
    command.wait()


def test_with_control_a_server_makes_the_journal(folder: Path, start: Start, run: Run) -> None:
    done = run(*SERVE, "--control")  # which begins no runs
    assert (done.code, "there is no journal at" in done.errors) == (5, True)
    command = start(*SERVE, "flows:nightly", "--control")
    api = f"{address_of(command)}/api/v1"
    listed = read(f"{api}/runs")
    assert (listed["runs"], listed["before"]) == ([], None)
    assert read(f"{api}/runs", body=b'{"inputs": {"url": "a.org"}, "run": "r1"}') == {"run": "r1"}
    assert [each["run"] for each in read(f"{api}/runs")["runs"]] == ["r1"]
    command.send(signal.SIGINT)
    command.wait()
    done = run("serve", "flows:nightly", "--control", "--port", "0", "--journal", "no/runs.db")
    assert (done.code, "unable to open database file" in done.errors) == (5, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_the_runs_of_the_server(
    folder: Path, start: Start, run: Run, number: signal.Signals
) -> None:
    command = start(*SERVE, "flows:gated", "--control")
    address = address_of(command)
    read(f"{address}/api/v1/runs", body=b'{"run": "r1"}')
    command.until((folder / "at_gate").exists)
    command.send(number)
    done = command.wait()
    assert (done.code, done.output, done.errors) == (128 + number, f"{address}\n", "")
    (line,) = run("runs", "--journal", "runs.db", "--json-lines").lines
    assert json.loads(line)["status"] == "cancelled"


def test_other_machines_need_a_token(journal: Path, start: Start) -> None:
    command = start(*SERVE, "--host", "0.0.0.0")  # noqa: S104 - for the moment of the test
    address, token = address_of(command).split("/#token=")
    host, port = address.removeprefix("http://").split(":")
    assert host == socket.gethostname()
    local = f"http://127.0.0.1:{port}/api/v1/runs"
    assert refusal_of(local) == 401
    assert read(local, token)
    command.send(signal.SIGINT)
    command.wait()


def test_a_token_that_is_given_is_used(journal: Path, start: Start) -> None:
    token = "a-token-that-nobody-guesses"
    command = start(*SERVE, env={"TASKIQ_FLOW_TOKEN": token})
    address, _, shown = address_of(command).partition("/#token=")
    assert shown == token
    assert refusal_of(f"{address}/api/v1/runs") == 401
    command.send(signal.SIGINT)
    command.wait()


def test_what_cannot_be_served_is_refused(journal: Path, folder: Path, run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, code, words in (
            (("--port", port), 2, f"nothing can be served at '127.0.0.1', port {port}: "),
            (("--token", "short"), 2, "the token has 5 characters; give at least 16"),
            (("flows:nightli",), 2, "did you mean 'nightly'?"),
            (("flows:cyclic",), 3, "cycle"),
            (("--journal", "none.db"), 5, "there is no journal at"),
            (("--journal", "flows.py"), 5, "file is not a database"),
        ):
            done = run(*SERVE, *arguments)
            assert (done.code, done.output) == (code, "")
            assert words in done.errors


def test_without_the_extra_it_is_named(journal: Path, folder: Path, run: Run) -> None:
    (folder / "starlette.py").write_text("raise ModuleNotFoundError(name='starlette')")
    done = run(*SERVE, "flows:nightly")
    assert (done.code, done.output) == (3, "")
    assert "install the extra web: pip install 'taskiq-flow[web]'" in done.errors
