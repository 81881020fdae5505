"""The description of the routes, in OpenAPI 3.1."""

from __future__ import annotations

from typing import Any, get_args

from taskiq_flow.journal.summary import RunState
from taskiq_flow.version import __version__
from taskiq_flow.web.guard import SESSION

Content = dict[str, Any]

_RUN = {"name": "run", "in": "path", "required": True, "schema": {"type": "string"}}
_NODE = {"name": "node", "in": "path", "required": True, "schema": {"type": "string"}}
_INSTEAD = "in place of the one in the path, which clients change if it is . or .."
_REFUSALS = {
    "400": "a parameter or the body is wrong",
    "401": "the token is missing or wrong",
    "403": "the host, the origin or what is asked for is not allowed",
    "404": "there is no such run, node or value",
    "405": "the method is another one",
    "408": "the body did not come in time",
    "409": "an engine has the run, or none has it, or there is one of this name",
    "413": "the body is larger than 64 KB",
    "415": "the body is no JSON",
    "422": "the engine refuses the inputs or the graph, or the graph is too large to be drawn",
    "429": "too many connections of one address, or runs in progress",
    "501": "something that is needed is not installed",
    "503": "too many connections, or the journal cannot be read",
}
_TEXT = {"type": "string"}
_MOMENT: Content = {"type": ["number", "string"]}
_OBJECT: Content = {"type": "object"}
_LIST: Content = {"type": "array", "items": _OBJECT}
_TEXTS: Content = {"type": "array", "items": _TEXT}
_FLAG: Content = {"type": "boolean"}
_NAME: Content = {"type": "string", "minLength": 1}
_TAGS: Content = {"type": "array", "items": {"type": "string", "pattern": r"\S"}}


def _object(**properties: Content) -> Content:
    """What an answer has: these properties, and others perhaps."""
    return {"type": "object", "properties": properties, "required": [*properties]}


def _body(**properties: Content) -> Content:
    """What the body of a request may have."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


_BEGUN = _object(run=_TEXT)


def document() -> Content:
    """The description."""
    run, node = "/api/v1/runs/{run}", "/api/v1/runs/{run}/nodes/{node}"
    summaries = _object(runs=_LIST, before={"type": ["number", "null"]}, now={"type": "number"})
    after = _query("after", {"type": "string"}, "the number of the last event that is known")
    fold = _query("fold", {"type": "string", "enum": ["0", "1"]}, "equal nodes are one box")
    unfolded = _query("unfolded", _TEXTS, "nodes with their own boxes")
    return {
        "openapi": "3.1.0",
        "info": {"title": "taskiq-flow", "version": __version__},
        "paths": {
            "/api/v1/openapi.json": _get("This document.", _OBJECT),
            "/api/v1/about": _get(
                "What is allowed, and which graphs can be run.",
                _object(control=_FLAG, values=_FLAG, graphs=_TEXTS),
            ),
            SESSION: _post(
                "Exchange the token for a cookie.", _object(ok=_FLAG), _body(token=_TEXT)
            ),
            "/api/v1/runs": _post(
                "Begin a run.",
                _BEGUN,
                _body(graph=_TEXT, inputs=_OBJECT, outputs=_TEXTS, run=_NAME, tags=_TAGS),
                status="202",
            )
            | _get(
                "Runs, the newest first.",
                summaries,
                _query("status", {"type": "string", "enum": [*get_args(RunState)]}, "of the run"),
                _query("name", _TEXT, "of the run's graph"),
                _query("tag", _TEXTS, "those of the run; of several, it has all"),
                _query("since", _MOMENT, "started since: seconds since 1970, a date, or 2h"),
                _query("before", _MOMENT, "started before then"),
                _query("limit", {"type": "integer", "minimum": 1, "maximum": 200}, "how many"),
            ),
            run: _get("A snapshot of a run, and its ``seq``.", _object(seq={}, nodes=_LIST), _RUN)
            | _delete("Delete a run that no engine has.", _object(deleted=_TEXT), _RUN),
            f"{run}/graph": _get(
                "Where the boxes lie.", _object(boxes=_LIST, edges=_LIST), _RUN, fold, unfolded
            ),
            f"{run}/events": _stream("The events of a run, until it has ended.", _RUN, after),
            f"{run}/report": _get("What held it back.", _object(sentence=_TEXT), _RUN),
            f"{run}/trace": _get("Times in Chrome's trace format.", {}, _RUN),
            f"{run}/cancel": _post(
                "Ask the engine to cancel it.", _object(requested=_TEXT), None, _RUN, status="202"
            ),
            f"{run}/resume": _post(
                "Continue it.", _BEGUN, _body(allow_changed=_FLAG, tags=_TAGS), _RUN, status="202"
            ),
            f"{run}/rerun": _post(
                "Run nodes again, and those that take other inputs, as a new run.",
                _BEGUN,
                _body(
                    **{"from": _TEXTS},
                    inputs=_OBJECT,
                    run=_NAME,
                    allow_changed=_FLAG,
                    tags=_TAGS,
                ),
                _RUN,
                status="202",
            ),
            node: _get("One node or element.", _object(state=_TEXT), _RUN, _NODE),
            f"{node}/value": _get(
                "A value as it is stored.", {}, _RUN, _NODE, media="application/octet-stream"
            ),
            "/api/v1/events": _stream("The newest runs, and those that change."),
            "/api/v1/dags": _get(
                "The graphs that are known, with their inputs and which of these are optional.",
                _object(dags={"type": "array", "items": _object(inputs=_TEXTS, optional=_TEXTS)}),
            ),
        },
    }


def _query(name: str, schema: Content, about: str) -> Content:
    return {"name": name, "in": "query", "schema": schema, "description": about}


def _get(
    about: str, schema: Content, *parameters: Content, media: str = "application/json"
) -> Content:
    content = {media: {"schema": schema}, "application/json": {"schema": schema}}
    return {"get": _operation(about, {"200": _answer(about, content)}, parameters)}


def _post(
    about: str, schema: Content, body: Content | None, *parameters: Content, status: str = "200"
) -> Content:
    content = {"application/json": {"schema": schema}}
    operation = _operation(about, {status: _answer(about, content)}, parameters)
    if body is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": body}}}
    return {"post": operation}


def _delete(about: str, schema: Content, *parameters: Content) -> Content:
    content = {"application/json": {"schema": schema}}
    return {"delete": _operation(about, {"200": _answer(about, content)}, parameters)}


def _stream(about: str, *parameters: Content) -> Content:
    content: Content = {"application/x-ndjson": {}, "text/event-stream": {}}
    answers = {"200": _answer(about, content), "204": {"description": "there will be no more"}}
    return {"get": _operation(about, answers, parameters)}


def _operation(about: str, answers: Content, parameters: tuple[Content, ...]) -> Content:
    refusals = {
        status: _answer(text, {"application/json": {"schema": _object(error=_OBJECT)}})
        for status, text in _REFUSALS.items()
    }
    of_path = [parameter["name"] for parameter in parameters if parameter["in"] == "path"]
    return {
        "summary": about,
        "parameters": [*parameters, *(_query(name, _TEXT, _INSTEAD) for name in of_path)],
        "responses": {**answers, **refusals},
    }


def _answer(about: str, content: Content) -> Content:
    return {"description": about, "content": content}
