"""A search index of the standard library's documentation, in one graph of maps.

find → read → clean → embed → index. Each file goes through the chain by itself, eight tasks at a
time; no stage waits for another one. Reading is flaky, as networks are, and is tried again. The run
is stopped half way, as by Ctrl-C, and resumed: what was finished is not computed again.

    python examples/document_pipeline.py
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import sysconfig
import tempfile
from collections import Counter
from pathlib import Path

from taskiq import InMemoryBroker

from taskiq_flow import DAG, DAGBuilder, ExecutionEngine, Item, Retry

STOP_AFTER = 60
"""Files that are embedded before the first run is stopped."""

QUESTION = "gzip compressed file"

executions: Counter[str] = Counter()
"""How often each task was executed, over both runs."""

refused: set[str] = set()
"""Files whose first reading was refused."""


def find(folder: str, most: int) -> list[str]:
    """The modules to be indexed."""
    return sorted(str(path) for path in Path(folder).glob("*.py"))[:most]


def read(path: str) -> str:
    """A file's text. Every fifth file is refused the first time."""
    executions["read"] += 1
    if sum(path.encode()) % 5 == 0 and path not in refused:
        refused.add(path)
        raise ConnectionError(path)
    return Path(path).read_text(encoding="utf-8")


def clean(text: str) -> list[str]:
    """The words of a module's docstrings."""
    executions["clean"] += 1
    docstrings = re.findall(r'"""(.*?)"""', text, re.DOTALL)
    return re.findall(r"[a-z]{3,}", " ".join(docstrings).lower())


def embed(words: list[str]) -> dict[str, float]:
    """A vector of length one: how often each word stands there."""
    executions["embed"] += 1
    counts = Counter(words)
    norm = math.sqrt(sum(count**2 for count in counts.values())) or 1.0
    return {word: count / norm for word, count in counts.items()}


def index(paths: list[str], vectors: list[dict[str, float]]) -> dict[str, list[tuple[str, float]]]:
    """For each word, the modules in which it stands. Rare words weigh more."""
    found: dict[str, list[tuple[str, float]]] = {}
    for path, vector in zip(paths, vectors, strict=True):
        for word, share in vector.items():
            found.setdefault(word, []).append((Path(path).stem, share))
    return {
        word: [(name, share * math.log(len(paths) / len(places))) for name, share in places]
        for word, places in found.items()
    }


def pipeline() -> DAG:
    """The graph. ``paths`` is a list; whatever maps over it, or over its outputs, is a stage."""
    builder = DAGBuilder()
    builder.node(find, output="paths")
    builder.node(read, inputs=["paths"], map_over="paths", output="texts", retry=Retry(wait=0.01))
    builder.node(clean, inputs=["texts"], map_over="texts", output="words")
    builder.node(embed, inputs=["words"], map_over="words", output="vectors")
    return builder.node(index).build()


async def main() -> None:
    """Run, stop, resume, ask."""
    logging.getLogger("taskiq").setLevel(logging.CRITICAL)  # it logs each reading that is refused
    dag = pipeline()
    dag.print()
    with tempfile.TemporaryDirectory() as folder:
        engine = ExecutionEngine(InMemoryBroker(), dag, 8, journal=Path(folder) / "runs.db")
        inputs = {"folder": sysconfig.get_path("stdlib"), "most": 120}
        run = engine.execute_async(inputs, run_id="index", items=True)
        embedded = 0
        async for name, result in run:
            embedded += name == "embed" and isinstance(result, Item)
            if embedded == STOP_AFTER:
                break
        await run.aclose()
        print(f"\nstopped after {embedded} files")
        results = {name: result async for name, result in engine.resume("index")}
        await engine.journal.aclose()
    files = len(results["find"])
    again = executions["embed"] - files
    print(f"resumed: {files} files, read again after a refusal: {len(refused)}")
    print(f"embedded more than once: {max(again, 0)} (at most 8 were under way)")
    scores: Counter[str] = Counter()
    for word in QUESTION.split():
        for name, share in results["index"].get(word, []):
            scores[name] += share
    print(f"\n{QUESTION!r}: {', '.join(name for name, _ in scores.most_common(3))}")


if __name__ == "__main__":
    asyncio.run(main())
