"""The code of docs/testing.md runs as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "testing.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_test_of_the_page_passes(tmp_path: Path) -> None:
    for block in blocks():
        name = re.match(r"# (\S+\.py)\n", block)
        if name is not None:
            (tmp_path / name[1]).write_text(block, encoding="utf-8")
    code = "import test_tasks; test_tasks.test_the_length_of_a_page()"
    environment = {**os.environ, "PYTHONPATH": f"{PAGE.parents[1]}"}
    command = [sys.executable, "-W", "error", "-c", code]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=25)  # noqa: S603


def test_the_broker_of_the_page_is_in_memory_where_the_address_says_so(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{PAGE.parents[1]}",
        "BROKER_URL": "memory://",
    }
    command = [sys.executable, "-c", f"{blocks()[-1]}\nprint(repr(broker))"]
    done = subprocess.run(  # noqa: S603
        command,
        cwd=tmp_path,
        env=environment,
        check=True,
        timeout=25,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "InMemoryBroker()\n"
