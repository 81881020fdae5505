"""What a registry knows of its tasks before any of them runs, and then the run.

Tasks are registered under the keys that they take and give. From these alone the registry can say
who produces what, who consumes it and what has to come from outside, and the graph can say what
may run side by side.

Run it with ``python examples/registry_discovery.py``.
"""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq import InMemoryBroker

from taskiq_flow import DataflowRegistry, ExecutionEngine

broker = InMemoryBroker()


@broker.task
async def split(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [word.strip(".,;").lower() for word in text.split()]


@broker.task
async def count(words: list[str]) -> dict[str, int]:
    """How often each word occurs."""
    return {word: words.count(word) for word in sorted(set(words))}


@broker.task
async def longest(words: list[str]) -> str:
    """The longest word, the first of them in the text."""
    return max(words, key=len)


@broker.task
async def summarise(counts: dict[str, int], longest_word: str, least_count: int) -> str:
    """One sentence on the text."""
    frequent = [word for word, number in counts.items() if number >= least_count]
    return f"Repeated: {', '.join(frequent)}. Longest: {longest_word}."


async def on_step(task_name: str, result: Any) -> None:
    """Is called by the engine for each node, when its result has come."""
    print(f"  {task_name} completed with a {type(result).__name__}")


async def main() -> None:
    """Register, ask, draw, run."""
    registry = DataflowRegistry()
    registry.register_task(split, output="words", inputs=["text"])
    registry.register_task(count, output="counts", inputs=["words"])
    registry.register_task(longest, output="longest_word", inputs=["words"])
    registry.register_task(
        summarise, output="summary", inputs=["counts", "longest_word", "least_count"]
    )

    print("Tasks:          ", [task.task_name for task in registry.get_tasks()])
    print("Outputs:        ", registry.get_outputs())
    print("External inputs:", registry.get_external_inputs())
    for key in ["text", *registry.get_outputs()]:
        producer = registry.get_producer(key)
        made_by = producer.task_name if producer else "the caller"
        taken_by = [consumer.task_name for consumer in registry.get_consumers(key)]
        print(f"{key!r} is made by {made_by} and taken by {taken_by or 'nobody'}")

    dag = registry.build_dag()
    print("\nThe graph:")
    dag.print()
    print("\nLevels, each needing only those above it:")
    for number, level in enumerate(dag.get_parallel_levels()):
        print(f"  {number}: {[node.task_name for node in level]}")

    print("\nSteps, as they complete:")
    await broker.startup()
    engine = ExecutionEngine(broker, dag, on_step_complete=on_step)
    text = "The graph is what the keys say; the engine runs the graph."
    results = await engine.execute(inputs={"text": text, "least_count": 2})
    await broker.shutdown()

    print("\nResults:")
    for key, value in results.items():
        print(f"  {key} = {value!r}")


if __name__ == "__main__":
    asyncio.run(main())
