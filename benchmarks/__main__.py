"""Runs all benchmarks or one, each in a process of its own, and sums up what was met."""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.report import Check, Options, print_checks
from benchmarks.suite import NAMES, run_one


def main() -> int:
    """Run what the command line names; return 1 if a target was missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES, help="one benchmark; all if left out")
    parser.add_argument("folder", nargs="?", type=Path, help="workflow files, for 'workflows'")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer, for a first look")
    arguments = parser.parse_args()
    if arguments.folder is not None and not any(arguments.folder.glob("*.json")):
        parser.error(f"no workflow files (*.json) in {arguments.folder}")
    options = Options(arguments.quick, arguments.folder)
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    spawn = multiprocessing.get_context("spawn")
    checks: list[Check] = []
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        for name in [arguments.name] if arguments.name else NAMES:
            checks += processes.submit(run_one, name, options).result()
    missed = [check for check in checks if not check.met]
    print_checks("Summary", checks)
    print(f"{len(checks) - len(missed)} of {len(checks)} targets met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
