import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from taskiq_flow.processes.in_process import runs_in_process

EXAMPLES = Path(__file__).parent.parent / "examples"

Importer = Callable[[str], ModuleType]

SHAPES = '''"""Shapes. Copyright (c) 1999-2004 Nobody."""

import os
from . import sizes
from .sizes import big as large


# A class with one public method that says what it does.
class Circle:
    def area(self):
        """Says so."""
        if self.r:
            for part in self.parts:
                return part and self.r
        elif self.x:
            return [i for i in self.x if i]
        return len(self.x) + len(self.y)

    def _secret(self):
        import json
        return json


if __name__ == "__main__":
    import sys
'''

SIZES = """import os, os.path
from pkg.shapes import Circle


async def big(x): return lambda: len(x)
"""

TEST_OF_SHAPES = """from pkg.shapes import Circle
assert Circle
"""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Importer:
    """Imports examples, which find their neighbours as they do when they are run."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


@pytest.fixture
def audio(example: Importer) -> ModuleType:
    return example("audio_pipeline")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    files = {
        "pkg/__init__.py": "",
        "pkg/shapes.py": SHAPES,
        "pkg/sizes.py": SIZES,
        "pkg/broken.py": "x = 1\ndef f(:\n",
        "pkg/bad_coding.py": "# -*- coding: uft-8 -*-\n",
        "pkg/tests/test_shapes.py": TEST_OF_SHAPES,
        "pkg/site-packages/other.py": "import pkg\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - ours


def rows_of(finding: dict[str, Any]) -> list[list[Any]]:
    rows: list[list[Any]] = finding["rows"]
    return rows


async def test_the_audio_graph_catalogues_its_clips(audio: ModuleType, tmp_path: Path) -> None:
    clips = {
        "beat": audio.clicks(90),
        "faster_beat": audio.clicks(150),
        "tone": audio.tone(440.0),
        "noise": audio.noise(0.2),
    }
    files = [str(tmp_path / f"{name}.wav") for name in clips]
    for path, samples in zip(files, clips.values(), strict=True):
        audio.write_wav(path, samples)
    results = await audio.make_engine().execute({"audio_files": files})
    assert results["tags"] == {
        "beat": ["tonal", "rhythmic", "dark"],
        "faster_beat": ["tonal", "rhythmic", "dark"],
        "tone": ["tonal", "dark"],
        "noise": ["noisy", "bright"],
    }
    assert results["catalogue"]["beat"]["bpm"] == 90
    assert results["catalogue"]["beat"]["like"][0] == "faster_beat"
    assert results["catalogue"]["tone"]["bpm"] == "-"


def test_the_registry_example_prints_what_it_discovers() -> None:
    ended = run("registry_discovery.py")
    assert "'words' is made by split and taken by ['count', 'longest']" in ended.stdout
    assert "summary = 'Repeated: graph, the. Longest: engine.'" in ended.stdout
    assert ended.stderr == ""


def test_the_facts_of_a_file_are_exact(example: Importer, package: Path) -> None:
    facts = example("source_facts").facts_of(str(package / "pkg/shapes.py"))
    kinds = {kind: count for kind, count in facts.pop("kinds").items() if count}
    assert kinds == {"functions": 2, "classes": 1, "if": 3, "loops": 1, "comprehensions": 1}
    assert facts == {
        "lines": {"all": 25, "empty": 6, "comments": 1},
        "imports": {"on load": [".sizes", ".sizes.big", "os"], "later": ["json", "sys"]},
        "names": {"self": 7, "part": 2, "i": 3, "len": 2, "json": 1, "__name__": 1},
        "functions": [
            {"name": "area", "line": 10, "lines": 8, "branches": 4, "depth": 2},
            {"name": "_secret", "line": 19, "lines": 3, "branches": 0, "depth": 0},
        ],
        "documented": [True, False, True],
        "years": [1999],
    }


async def test_files_are_parsed_in_other_processes(example: Importer, package: Path) -> None:
    census = example("source_census")
    path = str(package / "pkg/shapes.py")
    assert runs_in_process(census.parse_file) is not None
    assert await census.parse_file(path) == example("source_facts").facts_of(path)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("pkg/broken.py", "SyntaxError: invalid syntax (line 2)"),
        ("pkg/bad_coding.py", "SyntaxError: unknown encoding: uft-8"),
        ("pkg/absent.py", "FileNotFoundError: "),
    ],
)
def test_a_file_without_facts_says_why(
    example: Importer, package: Path, file: str, reason: str
) -> None:
    (failure,) = example("source_facts").facts_of(str(package / file)).items()
    assert failure[0] == "failure"
    assert failure[1].startswith(reason)


async def test_the_census_of_a_package_is_exact(example: Importer, package: Path) -> None:
    census = example("source_census")
    engine = census.ExecutionEngine(census.InMemoryBroker(), census.make_dag())
    inputs = {"directory": str(package / "pkg"), "base": str(census.base_of(package / "pkg"))}
    names = []
    results: dict[str, Any] = {}
    async for name, result in engine.execute_async(inputs):
        names.append(name)
        results[name] = result
    assert results["find_files"] == [
        (
            [f"pkg/{name}.py" for name in ("__init__", "bad_coding", "broken", "shapes", "sizes")],
            [],
        ),
        ([], ["pkg/tests/test_shapes.py"]),
    ]
    assert len(results["parse_library_files"]) == 5
    assert rows_of(results["lines"]) == [["library", 3, 30, 21, 1, 8], ["tests", 1, 2, 2, 0, 0]]
    assert results["import_graph"] == {
        "pkg": [],
        "pkg.shapes": ["pkg.sizes"],
        "pkg.sizes": ["pkg.shapes"],
    }
    assert rows_of(results["import_cycles"]) == [[2, "pkg.shapes > pkg.sizes > pkg.shapes"]]
    assert rows_of(results["most_imported"])[0] == [2, 0, "os"]
    assert rows_of(results["most_used_names"]) == [[3, "len", 7, "self"]]
    assert rows_of(results["longest_functions"])[0] == [8, "area", "pkg/shapes.py:10"]
    assert [row[0] for row in rows_of(results["unread_files"])] == [
        "pkg/bad_coding.py",
        "pkg/broken.py",
    ]
    assert names[-1] == "report"
    assert names.index("library_facts") < names.index("parse_test_files")


def test_the_census_reports_a_broken_file_and_a_few_lines_of_progress(package: Path) -> None:
    ended = run("source_census.py", str(package / "pkg"))
    assert "Files that cannot be read: 2 files, among them pkg/bad_coding.py" in ended.stdout
    assert "pkg/broken.py      SyntaxError: invalid syntax (line 2)" in ended.stdout
    lines = ended.stderr.splitlines()
    assert lines[-1] == "6 of 6 files parsed"
    assert len(lines) <= 6


def test_the_document_pipeline_is_stopped_and_resumed() -> None:
    program = [sys.executable, "-W", "error", str(EXAMPLES / "document_pipeline.py")]
    printed = subprocess.run(program, check=True, capture_output=True, text=True, timeout=60).stdout  # noqa: S603
    assert "3 ── embed ×words  ← clean  gives vectors" in printed
    assert "stopped after 60 files\nresumed: 120 files" in printed
    assert "'gzip compressed file': gzip" in printed


def test_the_assistant_speaks_while_it_searches_and_replaces_the_slow_source() -> None:
    program = [sys.executable, "-W", "error", str(EXAMPLES / "assistant.py"), "Read a zip file"]
    printed = subprocess.run(program, check=True, capture_output=True, text=True, timeout=60).stdout  # noqa: S603
    assert "1 ┬─ answer ⇉   ← pages  takes question" in printed
    before, _, after = printed.partition("    users: NodeTimeoutError, fallback\n")
    said, _, footnote = after.partition("    answer, after ")
    assert before.splitlines()[-1].endswith(" ")
    assert "    users, after " in said
    assert said.splitlines()[-1].endswith("] ")
    assert re.search(r"^\d+ words. See \w+.\w+, .*; used in \w+\.py, ", footnote, re.MULTILINE)
