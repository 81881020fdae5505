"""Whether the process that holds a lease is gone."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from taskiq_flow.journal import lease as owner
from taskiq_flow.journal.lease import is_gone, new_owner, readable


@pytest.fixture
def ended() -> Iterator[subprocess.Popen[str]]:
    """A process that was killed, and nobody has asked yet how it ended; it gave its name first."""
    script = "from taskiq_flow.journal.lease import new_owner; print(new_owner()); input()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(  # noqa: S603 - made above
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_a_process_that_was_killed_is_gone(ended: subprocess.Popen[str]) -> None:
    assert ended.stdout is not None
    name = ended.stdout.readline().strip()
    assert not is_gone(name)
    ended.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(name)
    ended.wait()
    assert is_gone(name)


def test_another_process_of_the_same_number_is_not_the_one() -> None:
    name = new_owner()
    assert not is_gone(name)
    since = name.split()[-2]
    assert is_gone(name.replace(f" since {since} ", f" since {int(since) - 1} "))


@pytest.mark.parametrize(
    ("owner", "text"),
    [
        ("vmpid:[4026531836] process 12 since 1667623 0f9d9463", "process 12 on vm"),
        ("mac.local process 12 since ? 0f9d9463", "process 12 on mac.local"),
        ("engine a", "engine a"),
    ],
)
def test_an_owner_is_named_in_messages_by_its_process_and_machine(owner: str, text: str) -> None:
    assert readable(owner) == text


def test_names_are_like_no_other() -> None:
    assert len({new_owner() for _ in range(100)}) == 100


def test_a_process_after_a_fork_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    new_owner()
    other = os.getppid()
    monkeypatch.setattr(os, "getpid", lambda: other)
    assert f" process {other} since " in new_owner()


@pytest.mark.parametrize(
    "name",
    [
        *("", "engine", " process ", "{place}", "{place} process ", "{place} process 1"),
        *("{place} process 12", "{place} process 12 since", "{place} process 12 since 34"),
        *("{place} process 12 since  ", "{place} process -1 since 34 ab"),
        *("{place} process 0 since 34 ab", "{place} process x since 34 ab"),
        "{place} process ²³ since 34 ab",
        f"{{place}} process {'9' * 30} since 34 ab",
        f"{{place}} process {'9' * 5000} since 34 ab",
        "elsewhere process 999999 since 34 ab",
        *("another{place} process 999999 since 34 ab", "{place}\n process 999999 since 34 ab"),
    ],
)
def test_who_is_elsewhere_or_nobody_that_is_known_counts_as_alive(name: str) -> None:
    assert not is_gone(name.format(place=owner._host()))


def test_a_process_that_others_may_not_see_counts_as_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kill(pid: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    name = new_owner()
    monkeypatch.setattr(os, "kill", kill)
    assert not is_gone(name)
