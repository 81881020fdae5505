"""Many who watch, and pages that stay open; ``scripts/bench web`` and ``web_pages`` take longer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import web

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the memory of a process is read in /proc"
)


async def test_nobody_who_watches_misses_an_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "CLIENTS", 60)
    *_, missed = await web.many_clients(tmp_path, seconds=1, rounds=1)
    assert missed.met, missed


async def test_a_client_that_takes_nothing_costs_little_memory(tmp_path: Path) -> None:
    (check,) = await web.stalled_client(tmp_path, 4_000)
    assert check.met, check


async def test_pages_that_stay_open_do_not_grow(tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    pytest.importorskip("pygraphviz")
    from benchmarks import web_pages  # noqa: PLC0415 - needs what is looked for here
    from tests.web.browser import CHROMIUM  # noqa: PLC0415

    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")

    for check in await web_pages.a_day(tmp_path, 1_600):
        assert check.met, check
