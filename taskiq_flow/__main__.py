"""The command ``taskiq-flow``, also ``python -m taskiq_flow``. Needs the extra ``cli``."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def main(arguments: list[str] | None = None) -> None:
    """Do what the command line says, and exit."""
    try:
        module: Any = importlib.import_module("taskiq_flow.cli.app")
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("typer", "rich"):
            raise
        sys.stderr.write(
            f"the command line needs {error.name}, which is not installed; install the extra cli: "
            "pip install 'taskiq-flow[cli]'\n"
        )
        sys.exit(2)
    module.main(arguments)


if __name__ == "__main__":
    main()
