"""``python -m taskiq_flow``: help and version."""

from __future__ import annotations

import argparse

from taskiq_flow.version import __version__

HELP = f"""\
taskiq_flow {__version__} runs graphs of tasks on taskiq and streams their results.

start a worker:  taskiq worker module:broker
                 (module: a file with a broker and its tasks, such as tasks for tasks.py)
run a graph:     from your own code, with ExecutionEngine(broker, dag).execute(inputs)
"""


def main(arguments: list[str] | None = None) -> None:
    """Print the help, or the version."""
    parser = argparse.ArgumentParser(
        prog="python -m taskiq_flow",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"taskiq_flow {__version__}")
    parser.parse_args(arguments)
    parser.print_help()


if __name__ == "__main__":
    main()
