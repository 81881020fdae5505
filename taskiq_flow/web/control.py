"""What the application does with runs: begin, cancel, resume, rerun and delete them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from taskiq_flow.dataflow.reading import InputReader
from taskiq_flow.execution_engine import ExecutionEngine
from taskiq_flow.previews import printable
from taskiq_flow.web.api import json_response, path_value, read_body
from taskiq_flow.web.hub import Hub
from taskiq_flow.web.runner import Runner

Body = dict[str, Any]


class Control:
    """The handlers of routes that write. Without ``is_allowed`` each of them refuses."""

    def __init__(self, hub: Hub, runner: Runner, *, is_allowed: bool) -> None:
        self._reader = hub.reader
        self._runner = runner
        self._is_allowed = is_allowed

    def routes(self) -> list[Route]:
        """All routes."""
        run = "/api/v1/runs/{run}"
        return [
            Route("/api/v1/runs", self.start, methods=["POST"]),
            Route(run, self.delete, methods=["DELETE"]),
            Route(f"{run}/cancel", self.cancel, methods=["POST"]),
            Route(f"{run}/resume", self.resume, methods=["POST"]),
            Route(f"{run}/rerun", self.rerun, methods=["POST"]),
        ]

    async def start(self, request: Request) -> Response:
        """Begin a run of a known graph."""
        known = {"graph": str, "inputs": dict, "outputs": list, "run": str, "tags": list}
        body = await self._body(request, **known)
        inputs, outputs, new_id = body.get("inputs"), body.get("outputs"), _new_id(body)
        run_id = await self._runner.begin(
            self._runner.engine(body.get("graph")),
            lambda engine: engine.execute_async(
                _read(engine, inputs), outputs=outputs, run_id=new_id
            ),
            new_id,
            body.get("tags", ()),
        )
        return _has_begun(run_id)

    async def resume(self, request: Request) -> Response:
        """Continue a run that has ended or was interrupted."""
        body = await self._body(request, allow_changed=bool, tags=list)
        run_id, allow_changed = path_value(request, "run"), body.get("allow_changed", False)
        await self._runner.begin(
            await self._runner.engine_of(run_id),
            lambda engine: engine.resume(run_id, replay=False, allow_changed=allow_changed),
            tags=body.get("tags", ()),
        )
        return _has_begun(run_id)

    async def rerun(self, request: Request) -> Response:
        """Run nodes of a run again, and those that take other inputs, as a new run."""
        known = {"from": list, "inputs": dict, "run": str, "allow_changed": bool, "tags": list}
        body = await self._body(request, **known)
        run_id, new_id = path_value(request, "run"), _new_id(body)
        from_, inputs = body.get("from", []), body.get("inputs")
        if not from_ and not inputs:
            raise HTTPException(422, "nothing says what runs again; give from, inputs or both")
        allow_changed = body.get("allow_changed", False)
        begun = await self._runner.begin(
            await self._runner.engine_of(run_id),
            lambda engine: engine.rerun(
                run_id,
                from_,
                replay=False,
                allow_changed=allow_changed,
                new_run_id=new_id,
                inputs=_read(engine, inputs),
            ),
            new_id,
            body.get("tags", ()),
        )
        return _has_begun(begun)

    async def cancel(self, request: Request) -> Response:
        """Ask the engine that has a run to cancel it."""
        await self._body(request)
        run_id = path_value(request, "run")
        if not await self._reader.request(run_id, "cancel"):
            raise HTTPException(409, f"no engine has run {run_id!r}, so there is nobody to ask")
        return json_response({"requested": "cancel"}, 202)

    async def delete(self, request: Request) -> Response:
        """Delete a run that no engine has."""
        await self._body(request)
        run_id = path_value(request, "run")
        await self._reader.run(run_id)  # which creates no file
        await self._reader.journal.delete(run_id)
        return json_response({"deleted": printable(run_id)})

    async def _body(self, request: Request, **known: type) -> Body:
        """The body of a request, which may have these keys. Raises ``HTTPException``."""
        if not self._is_allowed:
            raise HTTPException(403, "the application is read-only; it was made without control")
        body = await read_body(request)
        for key, value in body.items():
            if key not in known:
                listed = ", ".join(map(repr, known)) or "none"
                raise HTTPException(400, f"the body has {printable(key)!r}; known keys: {listed}")
            if not isinstance(value, known[key]) or (
                isinstance(value, list) and not all(isinstance(name, str) for name in value)
            ):
                raise HTTPException(400, f"{key!r} in the body is no {_KINDS[known[key]]}")
        return body


def _read(engine: ExecutionEngine, inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The inputs as the annotations of the engine's graph say. Raises ``InputError``."""
    return InputReader(engine.options["dag"].plan()).all_of_json(inputs or {})


_KINDS = {str: "text", dict: "object", list: "list of texts", bool: "true or false"}


def _new_id(body: Body) -> str | None:
    """The id that a new run is to have, if any."""
    run_id: str | None = body.get("run")
    if run_id is not None and (not run_id or run_id != printable(run_id)):
        raise HTTPException(400, "'run' in the body is no name; give one, or leave it out")
    return run_id


def _has_begun(run_id: str) -> Response:
    return json_response({"run": printable(run_id)}, 202)
