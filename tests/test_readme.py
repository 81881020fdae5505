"""The code of the README and of the docs prints the output that stands below it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.suite import NAMES
from tests.commands import ROOT, Scripts

DOCS = ROOT / "docs"
README = ROOT / "README.md"
TESTED_ELSEWHERE = {
    "cli.md",  # tests/cli/test_page.py
    "deploying.md",  # tests/distributed/test_examples.py
    "distributed.md",  # tests/distributed/test_examples.py
    "production.md",  # the same
    "serializers.md",  # the same
    "testing.md",  # tests/test_testing_page.py
    "writing_a_journal.md",  # tests/distributed/test_postgres_journal.py
}
PAGES = [README, *(p for p in sorted(DOCS.glob("*.md")) if p.name not in TESTED_ELSEWHERE)]
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n\n```text\n(?P<output>.*?)```", re.DOTALL)
FENCE = re.compile(r"^ *```(?P<language>.+)$", re.MULTILINE)
SHELL = {  # pages with commands, and what runs these
    "README.md": "tests/test_first_stream.py, tests/cli/test_page.py",
    "benchmarks.md": "nothing: they take half an hour",
    "cli.md": "tests/cli/test_page.py, tests/cli/test_serving.py",
    "deploying.md": "tests/test_production_page.py, which only reads them",
    "distributed.md": "tests/distributed/test_examples.py",
    "surviving.md": "tests/journal/test_sqlite.py",
    "tour.md": "tests/distributed/test_examples.py",
    "tracing.md": "nothing: the command is OpenTelemetry's",
    "writing_a_journal.md": "tests/distributed/test_postgres_journal.py, without createdb",
}
EXAMPLE = re.compile(
    r"`python (?P<script>examples/\w+\.py)` prints\n\n```text\n(?P<output>.*?)```", re.DOTALL
)
LINK = re.compile(r"\]\((?!https?:)(?P<path>[^)#]*)(?:#(?P<heading>[^)]*))?\)")


def blocks() -> dict[str, tuple[str, str]]:
    return {
        f"{page.name}-{number}": (match["code"], match["output"])
        for page in PAGES
        for number, match in enumerate(BLOCK.finditer(page.read_text("utf-8")), 1)
    }


def run(script: str) -> str:
    done = subprocess.run(  # noqa: S603 - code of this repository
        [sys.executable, "-X", "utf8", "-W", "error", script],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", blocks())
def test_a_code_block_prints_what_stands_below_it(
    name: str, tmp_path: Path, scripts: Scripts
) -> None:
    code, output = blocks()[name]
    if "import numpy" in code:
        pytest.importorskip("numpy")  # not in the environment of the core
    if "to_svg" in code or "lay_out" in code:
        pytest.importorskip("pygraphviz")  # likewise
    assert scripts.output(code, cwd=tmp_path) == output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_code_block_of_a_page_has_its_output_below_it(page: Path) -> None:
    text = page.read_text("utf-8")
    assert len(BLOCK.findall(text)) == text.count("```python")


def test_every_block_is_one_of_those_that_are_run() -> None:
    found = {
        page.name: {match["language"] for match in FENCE.finditer(page.read_text("utf-8"))}
        for page in [README, *DOCS.glob("*.md")]
    }
    assert {page for page, languages in found.items() if "sh" in languages} == SHELL.keys()
    assert {page for page, languages in found.items() if "sql" in languages} == {
        "writing_a_journal.md"  # tests/distributed/test_postgres_journal.py
    }
    assert set().union(*found.values()) == {"python", "text", "sh", "sql"}


def test_the_output_of_the_example_is_the_real_one() -> None:
    match = EXAMPLE.search((DOCS / "examples.md").read_text("utf-8"))
    assert match is not None
    assert run(match["script"]) == match["output"]


def test_the_page_of_benchmarks_names_each_of_them() -> None:
    table = (DOCS / "benchmarks.md").read_text("utf-8").split("| figures | benchmarks |")[1]
    named = re.findall(r"`(\w+)`", table.split("\n\n")[0])
    assert sorted(named) == sorted(NAMES)


def test_the_index_lists_each_page() -> None:
    listed = {match["path"] for match in LINK.finditer((DOCS / "index.md").read_text("utf-8"))}
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= listed


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [README, ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name
)
def test_each_link_within_the_repository_leads_to_a_file_and_a_heading(page: Path) -> None:
    for match in LINK.finditer(page.read_text("utf-8")):
        target = (page.parent / match["path"]).resolve() if match["path"] else page
        assert target.exists(), match[0]
        if match["heading"]:
            assert match["heading"] in anchors(target), match[0]
