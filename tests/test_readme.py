"""The README's code runs and prints what the README says it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n\n```text\n(?P<output>.*?)```", re.DOTALL)
EXAMPLE = re.compile(
    r"`python (?P<script>examples/\w+\.py)` prints\n\n```text\n(?P<output>.*?)```", re.DOTALL
)


def blocks() -> list[tuple[str, str]]:
    return [(match["code"], match["output"]) for match in BLOCK.finditer(README.read_text("utf-8"))]


def run(*arguments: str) -> str:
    done = subprocess.run(  # noqa: S603 - code of this repository
        [sys.executable, "-X", "utf8", "-W", "error", *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        cwd=README.parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("number", range(len(blocks())))
def test_a_code_block_prints_what_stands_below_it(number: int) -> None:
    code, output = blocks()[number]
    assert run("-c", code) == output


def test_no_code_block_is_left_out() -> None:
    assert len(blocks()) == README.read_text("utf-8").count("```python") > 0


def test_the_output_of_the_example_is_the_real_one() -> None:
    match = EXAMPLE.search(README.read_text("utf-8"))
    assert match is not None
    assert run(match["script"]) == match["output"]
