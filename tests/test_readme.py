"""The code of the README, and of a page of the docs, prints what stands below it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, ROOT / "docs/surviving.md", ROOT / "docs/cpu_bound.md")
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n\n```text\n(?P<output>.*?)```", re.DOTALL)
EXAMPLE = re.compile(
    r"`python (?P<script>examples/\w+\.py)` prints\n\n```text\n(?P<output>.*?)```", re.DOTALL
)


def blocks() -> list[tuple[str, str]]:
    found = (match for page in PAGES for match in BLOCK.finditer(page.read_text("utf-8")))
    return [(match["code"], match["output"]) for match in found]


def run(*arguments: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(  # noqa: S603 - code of this repository
        [sys.executable, "-X", "utf8", "-W", "error", *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("number", range(len(blocks())))
def test_a_code_block_prints_what_stands_below_it(number: int, tmp_path: Path) -> None:
    code, output = blocks()[number]
    assert run("-c", code, cwd=tmp_path) == output


def test_no_code_block_is_left_out() -> None:
    texts = [page.read_text("utf-8") for page in PAGES]
    assert all("```python" in text for text in texts)
    assert len(blocks()) == sum(text.count("```python") for text in texts)


def test_the_output_of_the_example_is_the_real_one() -> None:
    match = EXAMPLE.search(README.read_text("utf-8"))
    assert match is not None
    assert run(match["script"]) == match["output"]
