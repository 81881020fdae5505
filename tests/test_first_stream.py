"""A newcomer's first stream: from an empty folder, with what the README says and nothing else."""

from __future__ import annotations

import re
import resource
import subprocess
from pathlib import Path

import pytest

from tests.commands import ROOT

MOST_SECONDS = 60
"""Of CPU time. On a machine that does nothing else, two minutes by the clock are more than that."""

PATIENCE = 300
"""Seconds by the clock, for a machine that does much else."""


@pytest.mark.timeout(PATIENCE + 30)
def test_the_readme_leads_from_an_empty_folder_to_a_stream(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    program, output = re.findall(r"```(?:python|text)\n(.*?)```", readme, re.DOTALL)[:2]
    lines = [line for line in program.splitlines() if line]
    steps = re.findall(r"\.(call_next|call_after|map|filter)\(", program)
    assert len(lines) < 10
    assert len(steps) == len(output.splitlines()) == 3

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(  # noqa: S603 - a script of this repository
        [ROOT / "scripts/first_stream"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
        cwd=tmp_path,
    )
    if "Failed to establish a new connection" in done.stdout:
        pytest.skip("there is no package index to install from")
    assert done.returncode == 0, done.stdout
    assert output in done.stdout
    assert re.search(r"^From an empty folder .*: \d+ s$", done.stdout, re.MULTILINE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MOST_SECONDS
