"""``python -m website`` builds the site into ``build/site``; ``--serve`` serves it."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from website.check import faults
from website.pages import Pages

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "docs"
SITE = ROOT / "build" / "site"
ZENSICAL = [sys.executable, "-m", "zensical"]


def build() -> int:
    """Build the site and check it. Returns the exit code."""
    Pages(ROOT).write(PAGES)
    done = subprocess.run([*ZENSICAL, "build", "--clean", "--strict"], cwd=ROOT, check=False)  # noqa: S603 - ours
    if done.returncode:
        return done.returncode
    found = faults(SITE)
    print(*found, sep="\n", file=sys.stderr, end="\n" if found else "")
    if not found:
        print(f"The site is in {SITE.relative_to(ROOT)}: open index.html there.")
    return 1 if found else 0


def serve(address: str) -> int:
    """Serve the site until Ctrl-C. What changes in ``docs/`` is shown within about a second."""
    Pages(ROOT).write(PAGES)
    server = subprocess.Popen([*ZENSICAL, "serve", "--dev-addr", address], cwd=ROOT)  # noqa: S603 - ours
    try:
        while server.poll() is None:
            time.sleep(0.5)
            try:
                Pages(ROOT).write(PAGES)
            except LookupError as error:  # half of an edit
                print(error, file=sys.stderr)
    except KeyboardInterrupt:
        server.terminate()
    return server.wait()


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/docs", description="Builds the documentation's site."
    )
    parser.add_argument(
        "--serve", action="store_true", help="serve it, and build again what changes"
    )
    parser.add_argument(
        "--address", default="localhost:8000", help="where; localhost:8000 by default"
    )
    arguments = parser.parse_args()
    return serve(arguments.address) if arguments.serve else build()


if __name__ == "__main__":
    sys.exit(main())
