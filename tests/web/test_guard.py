"""Who is refused, and what nobody is shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from taskiq import InMemoryBroker
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from taskiq_flow import ConfigurationError, DAGBuilder, ExecutionEngine, MemoryJournal
from taskiq_flow.web import guard, runs_app, server
from taskiq_flow.web import serve as serve_forever
from tests.waiting import LONGEST
from tests.web.site import Serve, Site, run_example

TOKEN = "a-token-that-nobody-guesses"


@pytest.fixture
async def journal() -> MemoryJournal:
    journal = MemoryJournal()
    await run_example(journal)
    return journal


def ws(site: Site) -> str:
    return site.base.replace("http", "ws", 1) + "/ws"


async def test_other_hosts_are_refused(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal))
    for path in ("/", "/api/v1/runs", "/static/app.js"):
        for host in ("evil.example", "localhost.evil.example", "", "[", "127.0.0.2"):
            response = await site.get(path, headers={"host": host})
            assert response.status_code == 403


async def test_allowed_hosts_are_served_on_any_port(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal, allowed_hosts=["runs.example", "::1"]))
    for host in ("runs.example", "RUNS.example:8421", "[::1]:9"):
        assert (await site.get("/api/v1/runs", headers={"host": host})).status_code == 200
    assert (await site.get("/api/v1/runs")).status_code == 403


async def test_nothing_is_told_without_the_token(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal, token=TOKEN))
    for path in ("runs", "runs/r1", "runs/r1/events", "events", "dags", "about", "openapi.json"):
        assert (await site.get(f"/api/v1/{path}")).status_code == 401
        wrong = {"authorization": "Bearer wrong"}
        assert (await site.get(f"/api/v1/{path}", headers=wrong)).status_code == 401
    assert (await site.get("/")).status_code == 200  # the page itself knows nothing
    with pytest.raises(InvalidStatus):
        async with connect(ws(site), proxy=None):
            pass
    right = {"authorization": f"Bearer {TOKEN}"}
    assert (await site.get("/api/v1/runs", headers=right)).status_code == 200


async def test_the_token_is_exchanged_for_a_cookie_that_scripts_cannot_read(
    serve: Serve, journal: MemoryJournal
) -> None:
    site = await serve(runs_app(journal, token=TOKEN))
    for wrong in ({"token": "x"}, {"token": 1}, {}, {"token": TOKEN + "\ud800"}):
        body = json.dumps(wrong)
        headers = {"content-type": "application/json"}
        response = await site.client.post("/api/v1/session", content=body, headers=headers)
        assert response.status_code == 401
    response = await site.post("/api/v1/session", {"token": TOKEN})
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert (await site.get("/api/v1/runs")).status_code == 200  # the client keeps cookies
    name, value = cookie.split(";")[0].split("=")
    async with connect(ws(site), proxy=None, additional_headers={"cookie": f"{name}={value}"}):
        pass
    site.client.cookies.clear()
    for cookie in (f"{name}=x", f"{name}={value}x", f"x={value}", "=;\x80"):
        response = await site.get("/api/v1/runs", headers={"cookie": cookie.encode("latin-1")})
        assert response.status_code == 401


FOREIGN = [
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


async def test_pages_of_other_origins_neither_write_nor_connect(
    serve: Serve, journal: MemoryJournal
) -> None:
    site = await serve(runs_app(journal, control=True))
    for headers in FOREIGN:
        assert (await site.post("/api/v1/runs/r1/cancel", **headers)).status_code == 403
        assert (await site.client.delete("/api/v1/runs/r1", headers=headers)).status_code == 403
        with pytest.raises(InvalidStatus) as caught:
            async with connect(ws(site), proxy=None, additional_headers=headers):
                pass
        assert caught.value.response.status_code == 403


async def test_the_own_origin_writes_and_connects(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal, control=True))
    assert (await site.post("/api/v1/runs/r1/cancel", origin=site.base)).status_code == 409
    async with connect(ws(site), proxy=None, origin=Origin(site.base)):
        pass


async def test_only_json_objects_are_taken(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal, control=True))
    path = "/api/v1/runs/r1/cancel"
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = {"content-type": kind}
        assert (await site.client.post(path, content=b"{}", headers=headers)).status_code == 415
    for body in (b"[]", b"{", b"\xff", b"[" * 9000):
        headers = {"content-type": "application/json"}
        assert (await site.client.post(path, content=body, headers=headers)).status_code == 400


async def test_it_is_read_only_unless_control_is_asked_for(
    serve: Serve, journal: MemoryJournal
) -> None:
    dag = DAGBuilder("one").node(abs, inputs=["number"]).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
    site = await serve(runs_app(journal, engines=[engine]))
    for path in ("runs", "runs/r1/cancel", "runs/r1/resume", "runs/r1/rerun"):
        response = await site.post(f"/api/v1/{path}", {"from": ["one"], "inputs": {"number": 1}})
        assert response.status_code == 403
    assert (await site.client.delete("/api/v1/runs/r1")).status_code == 403
    assert (await site.json("/api/v1/about"))["graphs"] == []
    assert len((await site.json("/api/v1/runs"))["runs"]) == 1


async def test_a_run_in_progress_is_cancelled(serve: Serve) -> None:
    never = asyncio.Event()
    dag = DAGBuilder().node(lambda n: never.wait(), name="wait", inputs=["n"]).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=MemoryJournal())
    handle = engine.start({"n": 1}, run_id="r1")
    site = await serve(runs_app(engine, control=True))
    await site.until_there("/api/v1/runs/r1")
    response = await site.post("/api/v1/runs/r1/cancel")
    assert (response.status_code, response.json()) == (202, {"requested": "cancel"})
    with contextlib.suppress(Exception):
        await handle
    assert (await site.json("/api/v1/runs/r1"))["status"] == "cancelled"


POLICY = {
    **dict.fromkeys(("script-src", "style-src", "connect-src"), "'self'"),
    **dict.fromkeys(("default-src", "frame-ancestors", "base-uri", "form-action"), "'none'"),
    "img-src": "'self' data:",
}


async def test_every_answer_has_the_headers_that_bind_browsers(
    serve: Serve, journal: MemoryJournal
) -> None:
    site = await serve(runs_app(journal))
    for path in ("/", "/api/v1/runs", "/api/v1/runs/r9", "/static/app.js", "/none"):
        for headers in ({}, {"host": "evil.example"}):
            answer = (await site.get(path, headers=headers)).headers
            policy = dict(
                part.split(" ", 1) for part in answer["content-security-policy"].split("; ")
            )
            assert policy == POLICY
            assert answer["x-content-type-options"] == "nosniff"
            assert answer["referrer-policy"] == "no-referrer"


async def test_files_of_the_page_are_sent_once(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal))
    headers = (await site.get("/static/app.js")).headers
    assert headers["cache-control"] == "no-cache"
    known = {"if-none-match": headers["etag"]}
    assert (await site.get("/static/app.js", headers=known)).status_code == 304
    assert (await site.get("/api/v1/runs")).headers["cache-control"] == "no-store"


async def test_large_bodies_are_refused_unread(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal, control=True))
    chunk = b"6000\r\n" + b" " * 0x6000 + b"\r\n"
    for end in (
        b"content-length: 70000\r\n\r\n",
        b"content-length: 10000000\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n" + 3 * chunk,
    ):
        reader, writer = await asyncio.open_connection(*site.address)
        writer.write(
            b"POST /api/v1/runs/r1/cancel HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\n" + end
        )
        assert b" 413 " in await reader.readline()
        writer.close()


async def test_slow_headers_end_the_connection(
    serve: Serve, journal: MemoryJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.2)
    site = await serve(runs_app(journal))
    whole = b"GET /api/v1/about HTTP/1.1\r\nhost: localhost\r\n\r\n"
    for before, start in ((b"", b""), (b"", whole[:30]), (whole, whole[:30])):
        reader, writer = await asyncio.open_connection(*site.address)
        async with asyncio.timeout(LONGEST):
            if before:
                writer.write(before)
                await reader.readuntil(b"}")
            writer.write(start)
            assert b" 408 " in await reader.read()
        writer.close()


async def test_connections_of_one_address_are_bounded(
    serve: Serve, journal: MemoryJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MOST_OF_ADDRESS", 2)
    site = await serve(runs_app(journal))
    async with (
        site.client.stream("GET", "/api/v1/events") as first,
        site.client.stream("GET", "/api/v1/events") as second,
    ):
        assert (first.status_code, second.status_code) == (200, 200)
        assert (await site.get("/api/v1/runs")).status_code == 429
        monkeypatch.setattr(guard, "MOST_CONNECTIONS", 2)
        assert (await site.get("/api/v1/runs")).status_code == 503
        monkeypatch.setattr(guard, "MOST_CONNECTIONS", 9)
    await site.until_there("/api/v1/runs")


SHOWING = ("runs/r1/events", "runs/r1", "runs/r1/nodes/long", "runs/r1/nodes/one")


async def everything(site: Site) -> str:
    texts = [(await site.get(f"/api/v1/{path}")).text for path in SHOWING]
    return "".join(texts)


async def test_no_value_is_shown_without_values(serve: Serve, journal: MemoryJournal) -> None:
    site = await serve(runs_app(journal, values=False))
    assert "ebbebbebb" not in await everything(site)
    assert (await site.get("/api/v1/runs/r1/nodes/long/value")).status_code == 403
    assert not (await site.json("/api/v1/runs/r1/nodes/long"))["has_value"]


async def test_values_and_errors_are_redacted(serve: Serve, journal: MemoryJournal) -> None:
    seen = []

    def redact(node: str, text: str) -> str:
        seen.append(node)
        return text.replace("ebb", "***").replace("5 is", "*** is")

    site = await serve(runs_app(journal, redact=redact))
    text = await everything(site)
    assert "ebb" not in text
    assert "5 is odd" not in text
    assert "*********" in text
    assert "*** is odd" in text
    assert {"long", "one"} <= set(seen)
    assert (await site.get("/api/v1/runs/r1/nodes/long/value")).status_code == 403


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, "'secret.txt'"),
        ({"redact": lambda node, text: text.replace("secret", "***")}, "'***.txt'"),
        ({"values": False}, None),
    ],
)
async def test_items_of_failed_elements_are_redacted_as_values_are(
    serve: Serve, options: dict[str, Any], shown: str | None
) -> None:
    def read(path: str) -> None:
        raise ValueError

    journal = MemoryJournal()
    dag = DAGBuilder().node(read, inputs=["path"], map_over="path").build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal, on_error="collect")
    await engine.execute({"path": ["secret.txt"]}, run_id="m")
    site = await serve(runs_app(journal, **options))
    assert (await site.json("/api/v1/runs/m/nodes/read%5B0%5D"))["item"] == shown
    assert (await site.json("/api/v1/runs/m/nodes/read"))["listed"][0]["item"] == shown
    assert ("secret" in (await site.get("/api/v1/runs/m/events")).text) == (not options)


async def test_a_text_whose_redaction_fails_is_hidden(
    serve: Serve, journal: MemoryJournal, caplog: pytest.LogCaptureFixture
) -> None:
    site = await serve(runs_app(journal, redact=lambda node, text: text[10**6]))
    text = await everything(site)
    assert "ebb" not in text
    assert "is odd" not in text
    assert "(hidden)" in text
    assert "redact= failed" in caplog.text


async def test_an_error_of_ours_tells_nothing_of_itself(
    serve: Serve, journal: MemoryJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = runs_app(journal)
    monkeypatch.setattr(app.state.hub, "view", lambda run: 1 / 0)
    site = await serve(app)
    response = await site.get("/api/v1/runs/r1")
    assert response.status_code == 500
    assert "division" not in response.text
    assert response.headers["content-security-policy"] == guard.POLICY


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "runs.example"])  # noqa: S104
def test_an_address_for_others_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigurationError, match="token"):
        serve_forever(runs_app(MemoryJournal()), host)
