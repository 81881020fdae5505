"""The code of docs/testing.md runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path

from tests.scripts import ROOT, Scripts

PAGE = ROOT / "docs" / "testing.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_test_of_the_page_passes(tmp_path: Path, scripts: Scripts) -> None:
    for block in blocks():
        name = re.match(r"# (\S+\.py)\n", block)
        if name is not None:
            (tmp_path / name[1]).write_text(block, encoding="utf-8")
    scripts.output("import test_tasks; test_tasks.test_the_length_of_a_page()", cwd=tmp_path)


def test_the_broker_of_the_page_is_in_memory_where_the_address_says_so(
    tmp_path: Path, scripts: Scripts
) -> None:
    address = "import os\nos.environ['BROKER_URL'] = 'memory://'\n"
    code = f"{address}{blocks()[-1]}\nprint(repr(broker))"
    assert scripts.output(code, cwd=tmp_path) == "InMemoryBroker()\n"
