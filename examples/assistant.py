"""An assistant that answers from the standard library's documentation, word by word.

Its model is a generator: each word is printed as it comes, while other sources are still searched.
One of them is too slow. At its timeout a fallback takes its place, so that the answer is complete
in time. The model needs no key: it quotes the sentences that fit the question best.

    python examples/assistant.py "How do I read a compressed file?"
"""

from __future__ import annotations

import ast
import asyncio
import math
import re
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

from taskiq import InMemoryBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, Item, NodeFellBack, in_process

LIBRARY = Path(sysconfig.get_path("stdlib"))
DOCSTRING = re.compile(r'(?:#[^\n]*\n|\s)*r?"""(.*?)"""', re.DOTALL)
SENTENCE = re.compile(r"[A-Z][^.:]{20,200}\.(?=\s|$)")


def stems(text: str) -> set[str]:
    """The longer words of a text, without their endings."""
    return {re.sub(r"(ed|ing|s)$", "", word) for word in re.findall(r"[a-z]{4,}", text.lower())}


def pages(question: str) -> dict[str, str]:
    """The docstrings of the three modules that fit the question best. Rare words count for more."""
    texts = {path.stem: path.read_text("utf-8", "replace") for path in LIBRARY.glob("*.py")}
    found = {name: match[1] for name in sorted(texts) if (match := DOCSTRING.match(texts[name]))}
    stems_of = {name: stems(f"{name} {text}") for name, text in found.items()}
    spread = Counter(stem for page in stems_of.values() for stem in page)

    def score(name: str) -> float:
        rarity = [math.log(len(found) / spread[stem]) for stem in stems(question) & stems_of[name]]
        return sum(rarity) / math.sqrt(len(stems_of[name]))

    return {name: found[name] for name in sorted(found, key=score, reverse=True)[:3]}


async def answer(question: str, pages: dict[str, str]) -> AsyncIterator[str]:
    """The model: the sentences that have most in common with the question, one word at a time."""
    quotes = [f"{text} [{name}]" for name in pages for text in SENTENCE.findall(pages[name])]
    for quote in sorted(quotes, key=lambda text: -len(stems(question) & stems(text)))[:3]:
        for word in quote.split():
            await asyncio.sleep(0.06)  # the pace of a model
            yield word


def functions(pages: dict[str, str]) -> list[str]:
    """The public functions of these modules."""
    return [
        f"{name}.{node.name}"
        for name in pages
        for node in ast.parse((LIBRARY / f"{name}.py").read_bytes()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]


def users(pages: dict[str, str]) -> list[str]:
    """The files that import these modules, by the syntax trees of all: it takes many seconds."""
    return [
        path.name
        for path in sorted(LIBRARY.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Import) and any(alias.name in pages for alias in node.names)
    ]


def likely_users(pages: dict[str, str]) -> list[str]:
    """The fallback: a glance at the text of the files in one folder."""
    wanted = re.compile(rf"^\s*(import|from) ({'|'.join(pages)})\b", re.MULTILINE)
    texts = {path.name: path.read_text("utf-8", "replace") for path in LIBRARY.glob("*.py")}
    return [name for name in sorted(texts) if wanted.search(texts[name])]


def footnote(answer: list[str], functions: list[str], users: list[str]) -> str:
    """What stands below the answer."""
    return f"{len(answer)} words. See {', '.join(functions[:3])}; used in {', '.join(users[:4])}."


class Fallbacks:
    """A listener that says where a fallback takes a source's place."""

    def on_event(self, event: object) -> None:
        """Take one event of the run."""
        if isinstance(event, NodeFellBack):
            print(f"\n    {event.task_name}: {type(event.error).__name__}, fallback", flush=True)


async def main(question: str) -> None:
    """Ask, and print each word and each source when it is there."""
    builder = DAGBuilder().node(pages).node(answer).node(functions)
    # In a process of its own the search can be ended; a thread would go on after the timeout.
    builder.node(in_process(users), timeout=1.0, fallback=likely_users)
    dag = builder.node(footnote).build()
    dag.print()
    started = time.monotonic()
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Fallbacks()], run_timeout=60)
    async for name, result in engine.execute_async({"question": question}, items=True):
        if isinstance(result, Item):
            print(result.value, end=" ", flush=True)
        else:
            print(f"\n    {name}, after {time.monotonic() - started:.1f} s", flush=True)
    print(f"\n{result}")


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "How do I read a compressed file?"))
