"""The commands of docs/cli.md write what stands below them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.cli.conftest import Start

PAGE = Path(__file__).parents[2] / "docs/cli.md"
MODULE = re.compile(r"```python\n(.*?)```", re.DOTALL)
EXAMPLE = re.compile(r"```sh\n(?P<commands>[^`]*)```\n\n```text\n(?P<output>[^`]*)```")

VARIES = [
    (re.compile(r"\d+(\.\d+)? m?s\b"), "TIME"),
    (re.compile(r"\d\d:\d\d:\d\d"), "CLOCK"),
    (re.compile(r"engine +\S+, process \d+"), "engine PROCESS"),
    (re.compile(r'File ".*flows.py"'), 'File "flows.py"'),
    (re.compile(r" +"), " "),
]


def without_what_varies(text: str) -> list[str]:
    for pattern, word in VARIES:
        text = pattern.sub(word, text)
    return [line.rstrip() for line in text.splitlines()]


def test_the_commands_of_the_page_write_what_stands_below_them(folder: Path, start: Start) -> None:
    text = PAGE.read_text("utf-8")
    (module,) = MODULE.findall(text)
    (folder / "flows.py").write_text(module)
    env: dict[str, str | None] = {}
    count = 0
    for example in EXAMPLE.finditer(text):
        output = ""
        for line in example["commands"].splitlines():
            words = shlex.split(line)
            if words[0] == "export":
                env |= dict([words[1].split("=", 1)])
                continue
            assert words[0] == "taskiq-flow"
            done = start(*words[1:], env=env).wait()
            shows_errors = done.code and "--quiet" in words
            output += done.output + (done.errors if shows_errors else "")
            count += 1
        assert without_what_varies(output) == without_what_varies(example["output"])
    assert count == 10
