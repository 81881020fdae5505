"""The application that shows runs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.errors import (
    ConfigurationError,
    JournalError,
    RunLockedError,
    RunNotFoundError,
    TaskiqFlowError,
)
from taskiq_flow.execution_engine import ExecutionEngine
from taskiq_flow.journal.given import as_journal
from taskiq_flow.journal.protocol import Journal
from taskiq_flow.journal.reader import RunReader
from taskiq_flow.suggestions import suggests_keywords
from taskiq_flow.web.api import Api, json_response
from taskiq_flow.web.control import Control
from taskiq_flow.web.graphs import Graphs
from taskiq_flow.web.guard import HEADERS, LOCAL_HOSTS, guard_of, token_of
from taskiq_flow.web.hub import Hub
from taskiq_flow.web.messages import message_of
from taskiq_flow.web.runner import Runner
from taskiq_flow.web.shown import Redact, Shown
from taskiq_flow.web.socket import Socket

T = TypeVar("T")

UNNAMED = "unnamed"
"""The name by which a graph without a name is run."""

_STATUSES = (
    (RunNotFoundError, 404),
    (RunLockedError, 409),
    (JournalError, 503),
    (ConfigurationError, 501),
)

STATIC = Path(__file__).parent / "static"


@suggests_keywords()
def runs_app(
    source: ExecutionEngine | RunReader | Journal | str | os.PathLike[str],
    *,
    control: bool = False,
    token: str | None = None,
    allowed_hosts: Collection[str] = LOCAL_HOSTS,
    engines: Mapping[str, ExecutionEngine] | Iterable[ExecutionEngine] = (),
    dags: Mapping[str, DAG] | Iterable[DAG] = (),
    redact: Redact | None = None,
    values: bool = True,
) -> Starlette:
    """An application that shows the runs of a journal: a page, and what the page is made of.

    ``source``: the journal, its path or address, or an engine that has it. The application is
    complete in itself and can be mounted in another one.

    It can only read, unless ``control`` is true: then runs can be cancelled and deleted.
    ``engines``, and ``source`` if it is one, then begin runs of their graphs, and continue or rerun
    earlier ones; the journal of ``source`` has all of these. They are cancelled when the
    application shuts down. The engines' brokers have to be started.

    ``allowed_hosts``: the names and addresses under which it may be asked for; others are refused,
    as another site could direct its own name here. ``token``: who does not have it sees nothing;
    needed where others than the users of this machine can connect. ``redact``: given a node's name
    and a text that shows a value or an error, returns the text to show. ``values=False`` shows no
    values; errors are shown. ``dags``: further graphs, by the name that their runs have, drawn with
    their inputs and conditions.

    Raises ``ConfigurationError`` for an engine without a journal, ``TypeError`` and ``ValueError``.

    >>> from taskiq_flow.web import runs_app, serve
    >>> app = runs_app(MemoryJournal())
    >>> [route.path for route in app.routes][:2]
    ['/api/v1/openapi.json', '/api/v1/about']
    """
    if redact is not None and not callable(redact):
        raise TypeError(f"redact is {redact!r}; give a function of a node's name and a text")
    secret = token_of(token)
    guard = guard_of(allowed_hosts, secret)
    known = _engines_by_name(source, engines)
    hub = Hub(_reader_of(source, makes_file=control and bool(known)), Shown(redact, values=values))
    graphs = Graphs(
        {name: engine.options["dag"] for name, engine in known.items()}
        | _by_name("dags", dags, lambda dag: dag.name)
    )
    runner = Runner(hub.reader, known)
    api = Api(hub, graphs, runner, secret, control=control)

    async def cancel(run_id: str) -> bool:
        if not control:
            raise ConfigurationError(
                "the application is read-only; it was made without control=True"
            )
        return await hub.reader.request(run_id, "cancel")

    async def socket(websocket: WebSocket) -> None:
        await Socket(websocket, hub.watch, cancel).serve()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await runner.close()

    app = Starlette(
        routes=[
            *_by_path([*api.routes(), *Control(hub, runner, is_allowed=control).routes()]),
            WebSocketRoute("/ws", socket),
            Route("/", _page),
            Mount("/static", _Static(directory=STATIC)),
        ],
        middleware=[guard],
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )
    app.state.hub = hub
    app.state.has_token = token is not None
    return app


def _reader_of(
    source: ExecutionEngine | RunReader | Journal | str | os.PathLike[str], *, makes_file: bool
) -> RunReader:
    """The reader of a journal. ``makes_file``: a file that is not there yet is no error."""
    if isinstance(source, RunReader):
        return source
    journal = source.journal if isinstance(source, ExecutionEngine) else source
    return RunReader((makes_file and as_journal(journal)) or journal)


def _engines_by_name(
    source: object, engines: Mapping[str, ExecutionEngine] | Iterable[ExecutionEngine]
) -> dict[str, ExecutionEngine]:
    """The engines that run graphs. The one of ``source`` may have a graph without a name."""
    found = _by_name("engines", engines, lambda engine: engine.options["dag"].name)
    if isinstance(source, ExecutionEngine) and source not in found.values():
        found.setdefault(source.options["dag"].name or UNNAMED, source)
    return found


def _by_name(
    argument: str, given: Mapping[str, T] | Iterable[T], name_of: Callable[[T], str | None]
) -> dict[str, T]:
    """Graphs, or engines of graphs, by the names that they were given with, or have."""
    if isinstance(given, Mapping):
        return dict(given)
    found: dict[str, T] = {}
    for each in given:
        if (name := name_of(each)) is None:
            raise ValueError(
                f"the graph of {each!r} has no name; give {argument}={{name: {argument[:-1]}}}, or "
                "DAGBuilder(name)"
            )
        found[name] = each
    return found


def _by_path(routes: Iterable[Route]) -> list[Route]:
    """One route for each path, so that a refusal of a method names all that there are."""
    found: dict[str, dict[str, Any]] = {}
    for route in routes:
        found.setdefault(route.path, {}).update(dict.fromkeys(route.methods or (), route.endpoint))

    def of_method(handlers: dict[str, Any]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            response: Response = await handlers[request.method](request)
            return response

        return handle

    return [
        Route(path, of_method(handlers), methods=[*handlers]) for path, handlers in found.items()
    ]


class _Static(StaticFiles):
    """Files that browsers keep, and ask for once more only whether they have changed."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


async def _page(request: Request) -> Response:
    return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})


async def _refused(request: Request, error: Exception) -> Response:
    told = error if isinstance(error, HTTPException) else HTTPException(500, "")
    content = {"type": "Refused", "message": told.detail}
    return json_response({"error": content}, told.status_code, told.headers)


async def _failed(request: Request, error: Exception) -> Response:
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)
    content = {"type": type(error).__name__, "message": message_of(error)}
    return json_response({"error": content}, status)


async def _broken(request: Request, error: Exception) -> Response:
    content = {"type": "InternalError", "message": "the application failed; its log says more"}
    return json_response({"error": content}, 500, HEADERS)


HANDLERS = {HTTPException: _refused, TaskiqFlowError: _failed, Exception: _broken}
"""What is answered where a request cannot be served, by the exception."""
