"""The application that shows runs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.errors import ConfigurationError, JournalError, RunNotFoundError, TaskiqFlowError
from taskiq_flow.execution_engine import ExecutionEngine
from taskiq_flow.journal.protocol import Journal
from taskiq_flow.journal.reader import RunReader
from taskiq_flow.web.api import Api, json_response
from taskiq_flow.web.graphs import Graphs
from taskiq_flow.web.guard import HEADERS, LOCAL_HOSTS, Guard, token_of
from taskiq_flow.web.hub import Hub
from taskiq_flow.web.shown import Redact, Shown
from taskiq_flow.web.socket import Socket

STATIC = Path(__file__).parent / "static"


def runs_app(
    source: ExecutionEngine | RunReader | Journal | str | os.PathLike[str],
    *,
    control: bool = False,
    token: str | None = None,
    allowed_hosts: Collection[str] = LOCAL_HOSTS,
    dags: Mapping[str, DAG] | Iterable[DAG] = (),
    redact: Redact | None = None,
    values: bool = True,
) -> Starlette:
    """An application that shows the runs of a journal: a page, and what the page is made of.

    ``source``: the journal, its path or address, or an engine that has it. The application is
    complete in itself and can be mounted in another one.

    It can only read, unless ``control`` is true: then runs can be cancelled. ``allowed_hosts``: the
    names and addresses under which it may be asked for; others are refused, as another site could
    direct its own name here. ``token``: who does not have it sees nothing; needed where others than
    the users of this machine can connect. ``redact``: given a node's name and a text that shows a
    value or an error, returns the text to show. ``values=False`` shows no values; errors are shown.
    ``dags``: graphs, by the name that their runs have, drawn with their inputs and conditions.

    Raises ``ConfigurationError`` for an engine without a journal, ``TypeError`` and ``ValueError``.

    >>> from taskiq_flow.web import runs_app, serve
    >>> app = runs_app(MemoryJournal())
    >>> [route.path for route in app.routes][:2]
    ['/api/v1/openapi.json', '/api/v1/about']
    """
    if isinstance(allowed_hosts, str):
        raise TypeError(f"allowed_hosts is {allowed_hosts!r}; give a list of names")
    if redact is not None and not callable(redact):
        raise TypeError(f"redact is {redact!r}; give a function of a node's name and a text")
    secret = token_of(token)
    hub = Hub(_reader_of(source), Shown(redact, values=values))
    api = Api(hub, Graphs(_by_name(dags)), secret, control=control)

    async def socket(websocket: WebSocket) -> None:
        await Socket(websocket, hub, control=control).serve()

    app = Starlette(
        routes=[
            *api.routes(),
            WebSocketRoute("/ws", socket),
            Route("/", _page),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, hosts=allowed_hosts, token=secret)],
        exception_handlers=HANDLERS,
    )
    app.state.hub = hub
    app.state.has_token = token is not None
    return app


def _reader_of(
    source: ExecutionEngine | RunReader | Journal | str | os.PathLike[str],
) -> RunReader:
    if isinstance(source, RunReader):
        return source
    return RunReader(source.journal if isinstance(source, ExecutionEngine) else source)


def _by_name(dags: Mapping[str, DAG] | Iterable[DAG]) -> Mapping[str, DAG]:
    if isinstance(dags, Mapping):
        return dags
    found: dict[str, DAG] = {}
    for dag in dags:
        if dag.name is None:
            raise ValueError(f"{dag!r} has no name; give dags={{name: dag}}, or DAGBuilder(name)")
        found[dag.name] = dag
    return found


async def _page(request: Request) -> Response:
    return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = error.detail if isinstance(error, HTTPException) else ""
    return json_response({"error": {"type": "Refused", "message": text}}, status)


async def _failed(request: Request, error: Exception) -> Response:
    status = 500
    if isinstance(error, RunNotFoundError):
        status = 404
    elif isinstance(error, JournalError):
        status = 503
    elif isinstance(error, ConfigurationError):
        status = 501
    content = {"type": type(error).__name__, "message": str(error)}
    return json_response({"error": content}, status)


async def _broken(request: Request, error: Exception) -> Response:
    content = {"type": "InternalError", "message": "the application failed; its log says more"}
    return json_response({"error": content}, 500, HEADERS)


HANDLERS = {HTTPException: _refused, TaskiqFlowError: _failed, Exception: _broken}
"""What is answered where a request cannot be served, by the exception."""
