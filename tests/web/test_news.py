"""How those who watch are woken."""

from __future__ import annotations

import asyncio

import pytest

from taskiq_flow import MemoryJournal
from taskiq_flow.web import recent, runs_app, window
from taskiq_flow.web.news import AT_ONCE, News
from tests.waiting import LONGEST
from tests.web.site import Serve
from tests.web.written import Written


async def test_others_have_their_turn_while_many_are_woken() -> None:
    news, woken, seen = News(), 0, []

    async def watch() -> None:
        nonlocal woken
        assert await news.wait()
        woken += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(10 * AT_ONCE):
            tasks.create_task(watch())
        await asyncio.sleep(0)
        news.tell()
        while woken < 10 * AT_ONCE:
            await asyncio.sleep(0)
            seen.append(woken)
    assert max(after - before for before, after in zip([0, *seen], seen, strict=False)) <= AT_ONCE


async def test_whoever_waits_no_more_is_forgotten() -> None:
    news = News()
    waiting = asyncio.create_task(news.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not news._waiting


@pytest.mark.parametrize("path", ["/api/v1/runs/r1/events", "/api/v1/events"])
@pytest.mark.parametrize(("accept", "sign"), [("*/*", b"\n\n"), ("text/event-stream", b"\n:\n\n")])
async def test_a_stream_without_events_has_signs_of_life(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, path: str, accept: str, sign: bytes
) -> None:
    monkeypatch.setattr(window, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(window, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(recent, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(recent, "_LOOKS_UNTIL_LIFE", 5)
    journal = MemoryJournal()
    await Written(journal).begin()
    site = await serve(runs_app(journal))
    received = b""
    async with (
        asyncio.timeout(LONGEST),
        site.client.stream("GET", path, headers={"accept": accept}) as response,
    ):
        async for part in response.aiter_bytes():
            received += part
            if received.count(sign) >= 2:
                break
    assert received.count(b"run.") == 1
