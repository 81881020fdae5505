"""Pipelines over HTTP: their graphs, the state of their last run, and new runs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from taskiq import AsyncBroker

from taskiq_flow.engine.arguments import checked_id
from taskiq_flow.engine.connection import check_broker
from taskiq_flow.errors import ConfigurationError, TaskiqFlowError
from taskiq_flow.events import Event, RunStarted
from taskiq_flow.pipelines.base import RunnablePipeline
from taskiq_flow.views.pipeline_status import status_of
from taskiq_flow.views.run_view import RunView
from taskiq_flow.web.api import json_response, read_body
from taskiq_flow.web.app import HANDLERS
from taskiq_flow.web.guard import LOCAL_HOSTS, guard_of, token_of

Drawing = TypeVar("Drawing")

HEALTH = "/health"
"""What needs no token: it tells nothing of pipelines."""


def create_visualization_api(
    broker: AsyncBroker,
    app: Starlette | None = None,
    *,
    control: bool = False,
    token: str | None = None,
    allowed_hosts: Collection[str] = LOCAL_HOSTS,
) -> PipelinesApi:
    """Routes for pipelines of ``broker``, in an application of their own, or in ``app``.

    ``app``: one of Starlette or FastAPI that the routes are added to. They can only read, unless
    ``control`` is true: then ``POST /pipelines/{id}`` begins runs. ``token``, ``allowed_hosts``: as
    for ``runs_app``; a token is sent as ``Authorization: Bearer TOKEN``.

    Raises ``TypeError`` and ``ValueError``.

    >>> from taskiq_flow.web import create_visualization_api
    >>> broker = InMemoryBroker()
    >>> api = create_visualization_api(broker)
    >>> api.add_pipeline("nightly", Pipeline(broker).call_next(abs))
    >>> [route.path for route in api.app.routes][:2]
    ['/health', '/pipelines']
    """
    check_broker(broker)
    guard = guard_of(allowed_hosts, token_of(token), needs_token=lambda path: path != HEALTH)
    return PipelinesApi(broker, app, guard, control=control, has_token=token is not None)


class PipelinesApi:
    """What ``create_visualization_api`` returns. ``app``: the application, to be served."""

    def __init__(
        self,
        broker: AsyncBroker,
        app: Starlette | None,
        guard: Middleware,
        *,
        control: bool,
        has_token: bool,
    ) -> None:
        self._broker = broker
        self._control = control
        self._pipelines: dict[str, tuple[RunnablePipeline, _LastRun]] = {}
        if app is None:
            app = Starlette(exception_handlers=HANDLERS)
            app.state.has_token = has_token
        elif not has_token:  # whoever it belongs to may have asked for one for other routes
            app.state.has_token = False
        self.app = app
        one = "/pipelines/{id}"
        for path, endpoint, method in (
            (HEALTH, self._health, "GET"),
            ("/pipelines", self._list, "GET"),
            (f"{one}/status", self._status, "GET"),
            (f"{one}/dag", self._dag, "GET"),
            (f"{one}/dag/dot", self._dot, "GET"),
            (f"{one}/visualize", self._visualize, "GET"),
            (one, self._begin, "POST"),
        ):
            app.router.routes.append(Route(path, endpoint, methods=[method], middleware=[guard]))

    def add_pipeline(self, id: str, pipeline: RunnablePipeline) -> None:  # noqa: A002 - as in paths
        """Show a pipeline as ``/pipelines/{id}``. Its runs are seen from then on.

        Raises ``ConfigurationError`` if the id is taken, or if the pipeline has another broker.
        """
        if "/" in checked_id("id", id) or id in (".", ".."):
            raise ValueError(
                f"id is {id!r}; give one without '/', and neither '.' nor '..', as it is a part of "
                "an address"
            )
        if not isinstance(pipeline, RunnablePipeline):
            raise TypeError(f"{pipeline!r} is no pipeline; give a Pipeline or a DataflowPipeline")
        if id in self._pipelines:
            raise ConfigurationError(f"there is a pipeline {id!r} already; give it another id")
        if pipeline.broker is not self._broker:
            raise ConfigurationError(
                f"pipeline {id!r} has another broker than these routes; make routes for each broker"
            )
        last = _LastRun()
        pipeline.with_hooks(last)
        self._pipelines[id] = pipeline, last

    def _found(self, request: Request) -> tuple[RunnablePipeline, _LastRun]:
        name = request.path_params["id"]
        if name not in self._pipelines:
            raise HTTPException(404, f"there is no pipeline {name!r}; GET /pipelines lists them")
        return self._pipelines[name]

    async def _health(self, request: Request) -> Response:
        return json_response({"status": "ok"})

    async def _list(self, request: Request) -> Response:
        found = [
            {"id": name, "status": status_of(last.view).status}
            for name, (_, last) in self._pipelines.items()
        ]
        return json_response({"pipelines": found})

    async def _status(self, request: Request) -> Response:
        _, last = self._found(request)
        return json_response(status_of(last.view).model_dump(mode="json"))

    async def _dag(self, request: Request) -> Response:
        text = self._drawn(request, lambda pipeline: pipeline.dag.to_json())
        return Response(text, media_type="application/json")

    async def _dot(self, request: Request) -> Response:
        text = self._drawn(request, lambda pipeline: pipeline.dag.to_dot())
        return Response(text, media_type="text/vnd.graphviz")

    async def _visualize(self, request: Request) -> Response:
        return json_response(self._drawn(request, lambda pipeline: pipeline.visualize()))

    def _drawn(self, request: Request, draw: Callable[[RunnablePipeline], Drawing]) -> Drawing:
        pipeline, _ = self._found(request)
        try:
            return draw(pipeline)
        except TaskiqFlowError as error:  # it has no steps, or its first one takes not one value
            raise _unprocessable(error) from error

    async def _begin(self, request: Request) -> Response:
        if not self._control:
            raise HTTPException(403, "the application is read-only; it was made without control")
        pipeline, _ = self._found(request)
        args, kwargs = _arguments(await read_body(request))
        try:
            task = await pipeline.kiq(*args, **kwargs)  # type: ignore[attr-defined]
        except (TaskiqFlowError, TypeError, ValueError) as error:
            raise _unprocessable(error) from error
        return json_response({"pipeline_id": task.pipeline_id}, 202)


class _LastRun:
    """A listener: the view of the run of a pipeline that began last."""

    def __init__(self) -> None:
        self.view = RunView()

    def on_event(self, event: Event) -> None:
        if isinstance(event, RunStarted) and event.run_id != self.view.run_id:
            self.view = RunView()
        if self.view.run_id in ("", event.run_id):
            self.view.apply(event)


def _unprocessable(error: Exception) -> HTTPException:
    return HTTPException(422, f"{type(error).__name__}: {error}")


def _arguments(body: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of ``kiq`` in ``{"args": [...], "kwargs": {...}}``."""
    args, kwargs = body.get("args", []), body.get("kwargs", {})
    if body.keys() - {"args", "kwargs"} or not (
        isinstance(args, list) and isinstance(kwargs, dict)
    ):
        raise HTTPException(400, 'the body is not of the form {"args": [...], "kwargs": {...}}')
    return args, kwargs
