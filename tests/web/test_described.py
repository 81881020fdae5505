"""What the application answers is what its OpenAPI document says, by schemathesis.

In all of its phases: ``TASKIQ_FLOW_TESTS_SECONDS=60 python -m pytest tests/web/test_described.py``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("schemathesis")

SECONDS = os.environ.get("TASKIQ_FLOW_TESTS_SECONDS")
BOUNDS = ("--max-time", SECONDS) if SECONDS else ("--phases", "fuzzing", "--max-examples", "3")

KNOWN = """
[parameters]
"path.run" = "r1"
"path.node" = "long"

[[operations]]
include-name = "DELETE /api/v1/runs/{run}"
parameters = { "path.run" = "r2" }
"""
"""Names of a run and of a node that are there; most others are not."""

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,unsupported_method"
)


@pytest.mark.parametrize("control", [(), ("--control",)], ids=["reading", "control"])
def test_each_answer_is_described(control: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.web.described", *control]
    (tmp_path / "known.toml").write_text(KNOWN)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        try:
            done = subprocess.run(  # noqa: S603
                [
                    *(sys.executable, "-m", "schemathesis.cli", "--config-file", "known.toml"),
                    *("run", f"{address}/api/v1/openapi.json", "--checks", CHECKS),
                    *("--exclude-path", "/api/v1/events", *BOUNDS),
                    *("--generation-database", "none", "--no-color", "--warnings", "off"),
                ],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            server.terminate()
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"Selected: (\d+)/\d+\s+Tested: (\d+)", done.stdout)
    assert counts is not None, done.stdout
    assert counts[1] == counts[2], done.stdout  # none was left out for lack of time
