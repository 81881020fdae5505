"""A census of the Python standard library that is installed here, or of any directory.

It shows a chain of maps in one graph. A generator gives the folders, a map finds the files of each
folder, two maps parse them: first the library, then its tests. A file is parsed while other folders
are still searched. Every other node looks at one side of what was found, and starts when its own
inputs are there, so that most findings about the library are printed while the tests are still
being parsed. The last node writes the report.

Run it with ``python examples/source_census.py``, or with a directory as its argument. What is
noted about each file is in ``source_facts.py``, what is concluded in ``source_findings.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import source_findings
from source_facts import facts_of
from source_findings import ByFile, Finding
from taskiq import InMemoryBroker

from taskiq_flow import DAG, DataflowRegistry, ExecutionEngine, Item, Recorder, in_process

MAX_PARALLEL = 32  # files of a part that are being parsed or wait for a process
TEST_FOLDERS = {"test", "tests", "idle_test"}
KINDS_OF_FACTS = (
    "lines",
    "kinds",
    "imports",
    "names",
    "functions",
    "documented",
    "years",
    "failure",
)
CLEAR_LINE = "\r\x1b[K"


def find_folders(directory: str) -> Iterator[str]:
    """Yield a directory and the folders below it, each as soon as it is seen."""
    for folder, folders, _ in os.walk(directory):
        folders[:] = sorted(set(folders) - {"site-packages", "__pycache__"})
        yield folder


def find_files(folder: str, base: str) -> tuple[list[str], list[str]]:
    """The Python files in one folder, as seen from ``base``: the library's and the tests'."""
    paths = [path for path in sorted(Path(folder).glob("*.py")) if path.is_file()]
    files = [str(path.relative_to(base)) for path in paths]
    is_test = not TEST_FOLDERS.isdisjoint(Path(folder).relative_to(base).parts)
    return ([], files) if is_test else (files, [])


# Parsing is pure CPU time: each core has a process for it.
parse_file = in_process(facts_of)


def facts_by_kind(paths: list[str], facts: list[dict[str, Any]]) -> list[ByFile]:
    """The facts of all files: one value for each kind of fact."""
    found = sorted(zip(paths, facts, strict=True), key=lambda pair: Path(pair[0]))
    return [{path: of[kind] for path, of in found if kind in of} for kind in KINDS_OF_FACTS]


def report(*findings: Finding) -> str:
    """All findings as one text."""
    return "\n\n".join(map(table, findings))


def make_dag(
    parse: Callable[..., Any] = parse_file,
    as_task: Callable[[Callable[..., Any]], Any] = lambda function: function,
) -> DAG:
    """The graph. What is registered without ``inputs`` takes the keys that its parameters name.

    A broker with workers elsewhere makes each function a task of its own, with ``as_task``.
    """
    registry = DataflowRegistry()
    registry.register_task(as_task(find_folders), output="folders")
    registry.register_task(
        as_task(find_files),
        inputs={"folder": "folders", "base": "base"},
        map_over="folders",
        flatten=True,
        outputs=["library_files", "test_files"],
    )
    parse_task, gather_task = as_task(parse), as_task(facts_by_kind)
    for part in ("library", "test"):
        registry.register_task(
            parse_task,
            name=f"parse_{part}_files",
            inputs={"path": f"{part}_files", "base": "base"},
            map_over=f"{part}_files",
            max_parallel=MAX_PARALLEL,
            output=f"{part}_parsed",
        )
        registry.register_task(
            gather_task,
            name=f"{part}_facts",
            inputs=[f"{part}_files", f"{part}_parsed"],
            outputs=[f"{part}_{kind}" for kind in KINDS_OF_FACTS],
        )
    registry.register_task(as_task(source_findings.import_graph))
    findings = (
        source_findings.lines,
        source_findings.largest_packages,
        source_findings.largest_files,
        source_findings.oldest_notices,
        source_findings.constructs,
        source_findings.most_used_names,
        source_findings.longest_functions,
        source_findings.most_complex_functions,
        source_findings.deepest_functions,
        source_findings.docstring_coverage,
        source_findings.most_imported,
        source_findings.import_cycles,
        source_findings.never_imported,
        source_findings.unread_files,
    )
    keys = [registry.register_task(as_task(task)).task_name for task in findings]
    registry.register_task(as_task(report), inputs=keys)
    dag = registry.build_dag()
    # Both maps could run side by side. One after the other, the library's findings come early.
    dag.add_edge("library_facts", "parse_test_files")
    return dag


class Progress:
    """A bar that is redrawn on a terminal; a line at each quarter elsewhere."""

    width = 40

    def __init__(self) -> None:
        self.total = 0  # grows while files are found
        self.done = 0
        self.on_terminal = sys.stderr.isatty()

    def advance(self) -> None:
        """One more is done."""
        before, self.done = self.done, self.done + 1
        steps = self.width if self.on_terminal else 4
        if before * steps // self.total != self.done * steps // self.total:
            self.show()

    def show(self) -> None:
        """Write how far it is, over what was there if that can be done."""
        count = f"{self.done:,} of {self.total:,} files parsed"
        if not self.on_terminal:
            print(count, file=sys.stderr)
        elif self.done == self.total:
            print(CLEAR_LINE, end="", file=sys.stderr, flush=True)
        else:
            bar = "#" * (self.width * self.done // self.total)
            line = f"{CLEAR_LINE}[{bar:<{self.width}}] {count}"
            print(line, end="", file=sys.stderr, flush=True)


def say(line: str) -> None:
    """Print a line where a progress bar may stand."""
    over_a_bar = sys.stdout.isatty() and sys.stderr.isatty()
    print(f"{CLEAR_LINE if over_a_bar else ''}{line}", flush=True)


def headline(result: Any) -> str:
    """A result in a few words."""
    return str(result["headline"]) if isinstance(result, dict) and "headline" in result else "done"


def table(finding: Finding) -> str:
    """A finding with aligned columns, numbers to the right."""
    columns = [
        aligned([name, *(row[index] for row in finding["rows"])])
        for index, name in enumerate(finding["columns"])
    ]
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    title = f"{finding['title']}: {finding['headline']}"
    return "\n".join([title, "-" * len(title), *lines])


def aligned(column: Sequence[Any]) -> list[str]:
    """A column, its name first, as texts of one length: numbers to the right, all else left."""
    is_numeric = isinstance(column[-1], int)
    cells = [f"{value:,}" if isinstance(value, int) else str(value) for value in column]
    width = max(map(len, cells))
    return [cell.rjust(width) if is_numeric else cell.ljust(width) for cell in cells]


async def census(engine: ExecutionEngine, directory: Path, run_id: str | None = None) -> str:
    """Run the graph on a directory, print each result as it comes, and return the report."""
    inputs = {"directory": str(directory), "base": str(base_of(directory))}
    started = time.monotonic()
    progress = Progress()
    result: Any = ""
    async for name, result in engine.execute_async(inputs, run_id=run_id, items=True):
        if not isinstance(result, Item):
            say(f"{time.monotonic() - started:6.2f} s  {name:<24}{headline(result)}")
        elif name == "find_files":
            progress.total += sum(map(len, result.value))
        elif name != "find_folders":
            progress.advance()
    return str(result)


def base_of(directory: Path) -> Path:
    """Where the dotted names of a directory's modules begin: above the package that it is in."""
    while (directory / "__init__.py").exists():
        directory = directory.parent
    return directory


def directory(text: str) -> Path:
    """The directory of that name."""
    found = Path(text).resolve()
    if not found.is_dir():
        raise argparse.ArgumentTypeError(f"{found} is not a directory")
    return found


def command_line() -> argparse.ArgumentParser:
    """What may be written behind the command: a directory, else the standard library's is taken."""
    parser = argparse.ArgumentParser(description="Take a census of Python source files.")
    default = sysconfig.get_paths()["stdlib"]
    parser.add_argument("directory", nargs="?", type=directory, default=default)
    return parser


async def main(directory: Path, history: str | None) -> None:
    """Take the census, record it, and print its report."""
    print(f"Census of {directory}\n")
    listeners = [] if history is None else [Recorder(history, name="census")]
    engine = ExecutionEngine(InMemoryBroker(), make_dag(), listeners=listeners)
    text = await census(engine, directory, run_id="census")
    print(f"\n{text}")


if __name__ == "__main__":
    parser = command_line()
    parser.add_argument("--history", metavar="FILE", help="record the run there, as 'census'")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.directory, arguments.history))
