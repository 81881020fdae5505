"""The code of docs/testing.md runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.commands import ROOT, Scripts

PAGE = ROOT / "docs" / "testing.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page."""
    path = tmp_path_factory.mktemp("page")
    for block in blocks():
        name = re.match(r"# (\S+\.py)\n", block)
        if name is not None:
            (path / name[1]).write_text(block, encoding="utf-8")
    return path


TESTS = re.findall(r"^# (test_\w+)\.py$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("module", TESTS)
def test_the_tests_of_the_page_pass(module: str, folder: Path, scripts: Scripts) -> None:
    code = f"import {module} as tests\n"
    code += "for name, test in vars(tests).items():\n"
    code += "    if name.startswith('test_'): test(); print(name)"
    written = (folder / f"{module}.py").read_text(encoding="utf-8")
    tests = re.findall(r"^def (test_\w+)", written, re.MULTILINE)
    assert scripts.output(code, cwd=folder).split() == tests


def test_the_broker_of_the_page_is_in_memory_where_the_address_says_so(
    tmp_path: Path, scripts: Scripts
) -> None:
    address = "import os\nos.environ['BROKER_URL'] = 'memory://'\n"
    code = f"{address}{blocks()[-1]}\nprint(repr(broker))"
    assert scripts.output(code, cwd=tmp_path) == "InMemoryBroker()\n"
