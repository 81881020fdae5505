"""What the application answers under ``/api/v1``."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast, get_args
from urllib.parse import quote, unquote

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from taskiq_flow.errors import MissingNodeError
from taskiq_flow.journal.log_values import encoded_value
from taskiq_flow.journal.moments import moment_of
from taskiq_flow.journal.summary import RunState
from taskiq_flow.previews import printable
from taskiq_flow.views.node_view import NodeView
from taskiq_flow.views.report import RunReport
from taskiq_flow.web.frames import Form, encoded
from taskiq_flow.web.graphs import Graphs
from taskiq_flow.web.guard import SESSION, Token
from taskiq_flow.web.hub import Hub
from taskiq_flow.web.openapi import document
from taskiq_flow.web.recent import shown_run
from taskiq_flow.web.runner import Runner
from taskiq_flow.web.snapshot import node_content, report_content, snapshot
from taskiq_flow.web.streams import FrameResponse

MOST_LISTED = 200
"""Runs on one page of the list."""

_LISTED_BY = ("status", "name", "tag", "since", "before", "limit")

_BODY_SECONDS = 10.0


def json_response(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response with JSON."""
    return Response(encoded(content), status, headers, "application/json")


class Api:
    """The handlers of routes that read. ``control``: whether there are others that write."""

    def __init__(
        self, hub: Hub, graphs: Graphs, runner: Runner, token: Token | None, *, control: bool
    ) -> None:
        self._hub = hub
        self._graphs = graphs
        self._runner = runner
        self._token = token
        self._control = control

    def routes(self) -> list[Route]:
        """All routes. The names of runs and nodes are single segments, as ``path_value`` says."""
        run, node = "/api/v1/runs/{run}", "/api/v1/runs/{run}/nodes/{node}"
        return [
            Route("/api/v1/openapi.json", self.openapi),
            Route("/api/v1/about", self.about),
            Route(SESSION, self.session, methods=["POST"]),
            Route("/api/v1/runs", self.runs),
            Route(run, self.run),
            Route(f"{run}/graph", self.graph),
            Route(f"{run}/events", self.events),
            Route(f"{run}/report", self.report),
            Route(f"{run}/trace", self.trace),
            Route(node, self.node),
            Route(f"{node}/value", self.value),
            Route("/api/v1/events", self.all_events),
            Route("/api/v1/dags", self.dags),
        ]

    async def openapi(self, request: Request) -> Response:
        """The description of these routes."""
        return json_response(document())

    async def about(self, request: Request) -> Response:
        """What the application allows."""
        shown = self._hub.shown
        graphs = [printable(name) for name in self._runner.engines] if self._control else []
        return json_response(
            {"control": self._control, "values": shown.whole_values, "graphs": graphs}
        )

    async def session(self, request: Request) -> Response:
        """Exchange the token for a cookie, which scripts of the page cannot read."""
        body = await read_body(request)
        token = self._token
        if token is None:
            return json_response({"ok": True})
        given = body.get("token")
        if not isinstance(given, str) or not token.is_valid(given):
            raise HTTPException(401, "the token is wrong; open the address that has #token=")
        response = json_response({"ok": True})
        response.set_cookie(
            token.cookie,
            token.cookie_value,
            path=request.scope.get("root_path") or "/",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    async def runs(self, request: Request) -> Response:
        """The newest runs, page by page."""
        query = request.query_params
        _check_asked(query)
        status = query.get("status")
        if status is not None and status not in get_args(RunState):
            choice = ", ".join(get_args(RunState))
            raise HTTPException(400, f"status is {status!r}; give one of {choice}")
        asked = query.get("limit", "100")
        limit = _number(asked)
        if limit is None or not 1 <= limit <= MOST_LISTED or limit % 1:
            raise HTTPException(400, f"limit is {asked}; give a number from 1 to {MOST_LISTED}")
        found = await self._hub.reader.runs(
            status=cast("RunState | None", status),
            name=query.get("name"),
            tag=query.getlist("tag"),
            since=_moment(query.get("since"), "since"),
            before=_moment(query.get("before"), "before"),
            limit=int(limit),
        )
        before = found[-1].started if len(found) == limit else None
        shown = [shown_run(run) for run in found]
        return json_response({"runs": shown, "before": before, "now": time.time()})

    async def run(self, request: Request) -> Response:
        """A snapshot of a run."""
        view, run = await self._hub.view(path_value(request, "run"))
        content = snapshot(view, run, self._hub.shown, await self._hub.left(view, run))
        graph = self._runner.graph_of(run) if self._control else None
        return json_response({**content, "graph": None if graph is None else printable(graph)})

    async def graph(self, request: Request) -> Response:
        """Where the boxes of a run's graph lie."""
        fold = request.query_params.get("fold")
        if fold not in (None, "0", "1"):
            raise HTTPException(400, f"fold is {fold!r}; give 0 or 1, or leave it out")
        view, run = await self._hub.view(path_value(request, "run"))
        unfolded = tuple(request.query_params.getlist("unfolded"))
        try:
            body, tag = await self._graphs.layout(
                view, run, fold=None if fold is None else fold == "1", unfolded=unfolded
            )
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        headers = {"etag": f'"{tag}"', "cache-control": "private, no-cache"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type="application/json")

    async def events(self, request: Request) -> Response:
        """The events of a run, the present ones and those that will come."""
        run_id, form = path_value(request, "run"), _form(request)
        given = request.headers.get("last-event-id") if form == "sse" else None
        if given is None:
            given = request.query_params.get("after")
        after = await self._hub.begins_after(run_id, given)
        if form == "sse" and after:
            run = await self._hub.reader.run(run_id)
            if after == run.seq and run.ended is not None:
                return Response(status_code=204)  # an EventSource then stops asking
        return FrameResponse(self._hub.frames(run_id, after), form)

    async def all_events(self, request: Request) -> Response:
        """The newest runs, and those that change from then on."""
        return FrameResponse(self._hub.recent.frames(), _form(request))

    async def report(self, request: Request) -> Response:
        """What held a run back."""
        view, run = await self._hub.view(path_value(request, "run"))
        return json_response(report_content(view, await self._hub.left(view, run)))

    async def trace(self, request: Request) -> Response:
        """The times of a run in Chrome's trace format."""
        view, run = await self._hub.view(path_value(request, "run"))
        return _attachment(RunReport.of(view).to_trace().encode(), f"{run.run_id}.trace.json")

    async def node(self, request: Request) -> Response:
        """One node or element."""
        view, run = await self._hub.view(path_value(request, "run"))
        name = path_value(request, "node")
        node: NodeView | None
        try:
            node = view.node(name)
        except MissingNodeError:
            is_element = name.rpartition("[")[0] in view.nodes
            node = await self._hub.element(view.run_id, name) if is_element else None
        if node is None:
            raise HTTPException(404, f"run {view.run_id!r} has no node or element {name!r} so far")
        return json_response(node_content(node, view, run, self._hub.shown))

    async def value(self, request: Request) -> Response:
        """A value as it is stored, which nobody decodes here."""
        if not self._hub.shown.whole_values:
            raise HTTPException(403, "whole values are not given: values=False or redact= is set")
        name = path_value(request, "node")
        try:
            data, is_json = await encoded_value(
                self._hub.reader.journal, path_value(request, "run"), name
            )
        except MissingNodeError as error:
            raise HTTPException(404, str(error)) from error
        return _attachment(data, f"{name}.{'json' if is_json else 'bin'}")

    async def dags(self, request: Request) -> Response:
        """The graphs that the application was given."""
        found = []
        for name, dag in self._graphs.dags.items():
            inputs, required = dag.external_inputs, dag.plan().required
            optional = [key for key in inputs if key not in required]
            content = {"name": name, "inputs": inputs, "optional": optional}
            found.append(content | json.loads(dag.to_json()))
        return json_response({"dags": found})


def path_value(request: Request, key: str) -> str:
    """A name in the path of a request, or in its query, which counts then.

    Clients take the names ``.`` and ``..`` for steps within a path, and some servers in between
    take ``%2F`` for a slash.
    """
    given = request.query_params.getlist(key)
    if len(given) > 1:
        raise HTTPException(400, f"{key} is given {len(given)} times; give it once")
    text: str = request.path_params[key]
    return given[0] if given else unquote(text)


def _form(request: Request) -> Form:
    return "sse" if "text/event-stream" in request.headers.get("accept", "") else "lines"


def _check_asked(query: QueryParams) -> None:
    """Refuse what would be left out: an unknown parameter, and all but one, except of tags."""
    for name in query:
        if name not in _LISTED_BY:
            choice = ", ".join(_LISTED_BY)
            raise HTTPException(400, f"{name!r} is no parameter of runs; give one of {choice}")
        if name != "tag" and (count := len(query.getlist(name))) > 1:
            raise HTTPException(400, f"{name} is given {count} times; give it once")


def _number(text: str) -> float | None:
    """The number that a text is, if it is one and finite."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _moment(text: str | None, name: str) -> float | datetime | None:
    """Seconds since 1970, a date, or how long ago: ``2h``."""
    if text is None:
        return None
    if (number := _number(text)) is not None:
        return number
    try:
        return moment_of(text)
    except ValueError as error:
        raise HTTPException(400, f"{name}: {error}, or seconds since 1970") from error


async def read_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request, ``{}`` without a body."""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            data = await request.body()
    except TimeoutError:
        raise HTTPException(408, "the body did not come in time") from None
    try:
        body = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise HTTPException(400, "the body is no JSON object")
    return body


def _attachment(data: bytes, name: str) -> Response:
    """A file to be stored, which no browser shows."""
    kind = "application/json" if name.endswith(".json") else "application/octet-stream"
    encoded_name = quote(printable(name), safe="")
    headers = {"content-disposition": f"attachment; filename*=UTF-8''{encoded_name}"}
    return Response(data, headers=headers, media_type=kind)
