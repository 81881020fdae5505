"""A newcomer's first stream: from an empty folder, with what the README says and nothing else."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.scripts import ROOT

MOST_SECONDS = 120


@pytest.mark.timeout(MOST_SECONDS + 30)
def test_the_readme_leads_from_an_empty_folder_to_a_stream(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    program, output = re.findall(r"```(?:python|text)\n(.*?)```", readme, re.DOTALL)[:2]
    lines = [line for line in program.splitlines() if line]
    steps = re.findall(r"\.(call_next|call_after|map|filter)\(", program)
    assert len(lines) < 10
    assert len(steps) == len(output.splitlines()) == 3

    done = subprocess.run(  # noqa: S603 - a script of this repository
        [ROOT / "scripts/first_stream"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=MOST_SECONDS,
        check=False,
        cwd=tmp_path,
    )
    if "Failed to establish a new connection" in done.stdout:
        pytest.skip("there is no package index to install from")
    assert done.returncode == 0, done.stdout
    assert output in done.stdout
    (seconds,) = re.findall(r"^From an empty folder .*: (\d+) s$", done.stdout, re.MULTILINE)
    assert int(seconds) < MOST_SECONDS
